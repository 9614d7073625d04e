"""The safetensors reader and `fastrnn.save`."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from files_support import H, I, assert_as_torch, is_mapped, refused, sample
from support import CELLS, assert_same_bits


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_a_layer_goes_round(name: str, dtype: str, tmp_path: Path) -> None:
    layer = CELLS[name].build(I, H, num_layers=2, bidirectional=True, dropout=0.5, batch_first=True, dtype=dtype)
    path = tmp_path / "layer.safetensors"
    fastrnn.save(path, layer)
    assert os.listdir(tmp_path) == ["layer.safetensors"]
    again = fastrnn.load(path)
    assert repr(again) == repr(layer)
    assert_same_bits(again.state_dict(), layer.state_dict())
    assert_same_bits(again(sample(I, dtype))[0], layer(sample(I, dtype))[0])


def test_a_model_runs_from_its_file_alone(tmp_path: Path) -> None:
    model = {
        "embedding": fastrnn.Embedding(7, I),
        "rnn": fastrnn.GRU(I, H, reset_after=False),
        "head": fastrnn.Linear(H, 2, bias=False, dtype=np.float64),
    }
    path = tmp_path / "model.safetensors"
    fastrnn.save(path, model)
    again = fastrnn.load(path)
    assert list(again) == list(model)
    ids = np.arange(6).reshape(3, 2)
    for layers in (model, again):
        y, _ = layers["rnn"](layers["embedding"](ids))
        assert layers["head"](y.astype(np.float64)).shape == (3, 2, 2)
    assert all(layer.dtype == np.float64 for layer in fastrnn.load(path, options={"dtype": np.float64}).values())
    with pytest.raises(ValueError, match="got 'batch_first' in options=; those to give are dtype"):
        fastrnn.load(path, "head", {"batch_first": True})
    for name, layer in model.items():
        assert repr(again[name]) == repr(layer)
        assert_same_bits(again[name].state_dict(), layer.state_dict())
        assert type(fastrnn.load(path, name)) is type(layer)


def test_the_description_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fastrnn.save(path, [fastrnn.LSTM(I, H), fastrnn.Linear(H, 2)])
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["fastrnn"]) == {
        "format": 1,
        "layers": [
            {
                "name": "0",
                "type": "LSTM",
                "cell": "lstm",
                "options": {
                    "input_size": I,
                    "hidden_size": H,
                    "num_layers": 1,
                    "bias": True,
                    "batch_first": False,
                    "bidirectional": False,
                    "dropout": 0.0,
                    "zoneout": 0.0,
                    "recurrent_dropout": 0.0,
                    "recurrent_dropout_mode": "sequence",
                    "proj_size": 0,
                    "peephole": False,
                    "coupled": False,
                    "activations": None,
                    "clip": None,
                    "layer_norm": False,
                    "heads": 1,
                    "dtype": "float32",
                },
            },
            {
                "name": "1",
                "type": "Linear",
                "options": {"in_features": H, "out_features": 2, "bias": True, "dtype": "float32"},
            },
        ],
    }
    assert header["0.weight_ih_l0"]["shape"] == [4 * H, I]


def test_loaded_layers_can_be_trained_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    fastrnn.save(path, fastrnn.LSTM(I, H, rng=0))
    before = path.read_bytes()
    layer = fastrnn.load(path)
    assert all(is_mapped(p) for p in layer.parameters().values())
    layer.initialise(rng=1)
    layer.load_state_dict(fastrnn.LSTM(I, H).state_dict())
    assert path.read_bytes() == before
    fastrnn.save(path, layer)  # in the place of the file that it is mapped from
    assert_same_bits(fastrnn.load(path).state_dict(), layer.state_dict())


def test_what_save_refuses(tmp_path: Path) -> None:
    layer = fastrnn.GRU(I, H)
    for path, layers, error, words in (
        ("a.pt", layer, ValueError, r"a.pt; its name must end in .safetensors or .npz"),
        ("a.npz", [layer], ValueError, "an .npz file holds one recurrent layer"),
        ("a.npz", fastrnn.Linear(2, 2), ValueError, "an .npz file holds one recurrent layer"),
        ("a.safetensors", [], ValueError, "save got no layers"),
        (
            "a.safetensors",
            [np.zeros(2)],
            TypeError,
            "save got ndarray; it takes RNN, GRU, LSTM, sLSTM, Embedding, Linear and ",
        ),
        ("a.safetensors", {"": layer, "b": layer}, TypeError, "a layer of the name ''"),
        ("a.safetensors", {1: layer}, TypeError, "a layer of the name 1"),
    ):
        with pytest.raises(error, match=words):
            fastrnn.save(tmp_path / path, layers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"would hold an .npz archive: use fastrnn.save"):
        layer.save(tmp_path / "a.safetensors")
    assert os.listdir(tmp_path) == []
    fastrnn.save(tmp_path / "a.npz", layer)
    assert_same_bits(fastrnn.load(tmp_path / "a.npz").state_dict(), layer.state_dict())


def test_our_files_in_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    fastrnn.save(path, [fastrnn.Embedding(7, I), fastrnn.LSTM(I, H, bidirectional=True), fastrnn.Linear(2 * H, 2)])
    loaded = fastrnn.load(path)
    model = torch.nn.Sequential(
        torch.nn.Embedding(7, I), torch.nn.LSTM(I, H, bidirectional=True), torch.nn.Linear(2 * H, 2)
    )
    model.load_state_dict(files.load_file(path))
    assert_as_torch(loaded["1"], model[1])
    np.testing.assert_array_equal(loaded["0"](np.arange(7)), model[0].weight.detach().numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_files_of_pytorch(dtype: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    modules = torch.nn.ModuleDict(
        {"enc": torch.nn.LSTM(I, H, 2, proj_size=3), "dec": torch.nn.GRU(I, H, bidirectional=True)}
    )
    modules.to(getattr(torch, dtype))
    path = tmp_path / "model.safetensors"
    files.save_file({**modules.state_dict(), "head": torch.zeros(2, 2), "steps": torch.arange(3)}, path)
    layers = fastrnn.load(path, options={"batch_first": True})
    assert sorted(layers) == ["dec", "enc"]
    for name, layer in layers.items():
        assert layer.batch_first
        assert layer.dtype == ("float64" if dtype == "float64" else "float32")
        modules[name].batch_first = True
        assert_as_torch(layer, modules[name])
        assert all(is_mapped(p) for p in layer.parameters().values()) == (dtype in ("float32", "float64"))


HEADERS: list[tuple[Any, bytes, str]] = [
    (b"{", b"", "no JSON"),
    (b"[" * 5000, b"", "is of no kind that is known"),
    (b'{"a":' * 100_000, b"", "nested too deeply"),
    (b'{"a": 1, "a": 2}', b"", "names something twice"),
    (b'{"a": ' + b"9" * 5000 + b"}", b"", "a number that is too long"),
    ({"a": 3}, b"", "'a' is not described by a dtype"),
    ({"a": tensor([2], 4, 0)}, b"", "'a' is not described by a dtype"),
    ({"a": tensor([2], 0, 8, "F31")}, b"1" * 8, "has dtype 'F31'"),
    ({"a": tensor([2], 0, 4)}, b"1" * 4, "says F32 of shape (2,) in 4 bytes"),
    ({"a": tensor([-1, -2], 0, 8)}, b"1" * 8, "has no shape"),
    ({"a": tensor([2**40, 2**40], 0, 8)}, b"1" * 8, "says F32 of shape"),
    ({"a": tensor([2**62 - 1, 4], 0, 8)}, b"1" * 8, "says F32 of shape"),
    ({"a": tensor([2], 0, 8)}, b"1" * 4, "reaches beyond the end of the file"),
    ({"a": tensor([2**40], 0, 2**42)}, b"1" * 4, "reaches beyond the end of the file"),
    ({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, b"1" * 12, "overlaps another or leaves a hole"),
    ({"a": tensor([1], 4, 8)}, b"1" * 8, "overlaps another or leaves a hole"),
    ({"a": tensor([1], 0, 4)}, b"1" * 8, "4 bytes that belong to no tensor"),
    ({"__metadata__": {"a": 1}}, b"", "__metadata__ is no mapping"),
    ({"__metadata__": {"fastrnn": "[" * 100_000}}, b"", "nested too deeply"),
    ({"__metadata__": {"fastrnn": "{}"}}, b"", "names no format and no layers"),
    ({"__metadata__": {"fastrnn": '{"format": 3, "layers": [1]}'}}, b"", "written by a newer fastrnn"),
    ({"__metadata__": {"fastrnn": '{"format": 1, "layers": [1]}'}}, b"", "a layer without a name or options"),
    ({"__metadata__": {"fastrnn": "\ud800"}}, b"", "its description is no JSON"),
    (
        {"__metadata__": {"fastrnn": '{"format": 1, "layers": [{"name": "", "type": ["x"], "options": {}}]}'}},
        b"",
        "its cell is None",
    ),
    ({"x": tensor([1], 0, 4)}, b"1234", "holds 1 arrays and no recurrent layer"),
]


@pytest.mark.parametrize(("header", "data", "words"), HEADERS, ids=[words for *_, words in HEADERS])
def test_headers_that_lie(header: Any, data: bytes, words: str, tmp_path: Path) -> None:
    refused(raw(tmp_path / "a.safetensors", header, data), words)


def test_lengths_that_lie(tmp_path: Path) -> None:
    for length in (100, 2**62, 2**64 - 1):
        refused(raw(tmp_path / "a.safetensors", {}, b"", length), "is cut off or damaged: its header claims")
    path = raw(tmp_path / "a.safetensors", {}, b"", 2**24 + 1)
    with open(path, "r+b") as file:
        file.truncate(2**24 + 100)
    refused(path, "has a header of 16,777,217 bytes")


def described(**changes: Any) -> dict[str, Any]:
    options = {"input_size": 1, "hidden_size": 1, **changes}
    entry = {"name": "", "type": "RNN", "cell": "rnn_tanh", "options": options}
    return {"__metadata__": {"fastrnn": json.dumps({"format": 1, "layers": [entry]})}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 10**6}, "RNN needs weight_ih_l0 of shape (1000000, 1)"),
        ({"hidden_size": 10**30}, "RNN needs weight_ih_l0 of shape"),
        ({"hidden_size": -1}, "hidden_size must be at least 1"),
        ({"num_layers": 1024}, "RNN needs weight_ih_l1, which is missing"),
        ({"num_layers": 10**9}, "num_layers must be at most 1024"),
        ({"nonlinearity": "relu"}, "its options say otherwise"),
        ({"dtype": "float64"}, "of shape (1, 1) and float64, not of (1, 1) and float32"),
        ({"size": 3}, "unexpected keyword argument 'size'"),
        ({"clip": 10**400}, "does not fit together"),
        ({"bias": False}, "its description knows no 'bias_ih_l0'"),
    ],
)
def test_descriptions_that_lie(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    names = {"weight_ih_l0": [1, 1], "weight_hh_l0": [1, 1], "bias_ih_l0": [1], "bias_hh_l0": [1]}
    tensors = {name: tensor(shape, 4 * i, 4 * i + 4) for i, (name, shape) in enumerate(names.items())}
    data = np.zeros(4, np.float32).tobytes()
    assert isinstance(fastrnn.load(raw(tmp_path / "good", {**tensors, **described()}, data)), fastrnn.RNN)
    refused(raw(tmp_path / "a.safetensors", {**tensors, **described(**changes)}, data), words)

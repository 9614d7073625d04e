"""`fastrnn.load` of every kind alike: names, options, .npz; `fastrnn inspect`."""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import main
from fastrnn.files import inspecting
from files_support import H, I, at_most, refused, sample
from support import CELLS, assert_same_bits, complaint


def saved(path: Path, **layers: Any) -> Path:
    """The parameters of layers in an .npz file, by PyTorch's names."""
    arrays = {f"{name}.{own}": p for name, layer in layers.items() for own, p in layer.parameters().items()}
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
# An sLSTM's parameters are those of an LSTM by name and shape, and are taken for them.
@pytest.mark.parametrize("name", [name for name in CELLS if "slstm" not in name])
def test_npz_of_parameters(name: str, dtype: str, tmp_path: Path) -> None:
    layer = CELLS[name].build(I, H, num_layers=3, bidirectional=True, batch_first=True)
    state = {f"net.{own}": p.astype(dtype) for own, p in layer.parameters().items()}
    state["net.weight_hh_l0"] = np.asfortranarray(state["net.weight_hh_l0"])
    np.savez_compressed(tmp_path / "a.npz", **state, other=np.array("text"), more=np.arange(3))
    options = {"batch_first": True, **CELLS[name].options}
    again = fastrnn.load(tmp_path / "a.npz", "net", options)
    wide = np.dtype("float64" if dtype == "float64" else "float32")
    assert_same_bits(dict(again.parameters()), {own.removeprefix("net."): a.astype(wide) for own, a in state.items()})
    assert fastrnn.load(tmp_path / "a.npz", "net", {**options, "dtype": np.float64}).dtype == np.float64
    if dtype == "float32":
        assert_same_bits(again(sample())[0], layer(sample())[0])


def test_names_and_options(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", a=fastrnn.LSTM(I, H, 2), b=fastrnn.GRU(I, H), c=fastrnn.RNN(I, H))
    with pytest.raises(KeyError, match=r"a.npz has no layer 'd'; its layers are 'a', 'b', 'c'"):
        fastrnn.load(path, "d")
    with pytest.raises(ValueError, match=r"its layer 'c' \(PyTorch\) does not say what it computes: give options="):
        fastrnn.load(path)
    with pytest.raises(
        ValueError, match=r"got 'hidden_size', 'size' in options=; those to give are activations, batch_first, clip,"
    ):
        fastrnn.load(path, options={"hidden_size": 3, "size": 2})
    with pytest.raises(ValueError, match=r"got 'nonlinearity' in options="):
        fastrnn.load(path, "a", {"nonlinearity": "relu"})
    with pytest.raises(ValueError, match="RNN got nonlinearity='sin'"):
        fastrnn.load(path, "c", {"nonlinearity": "sin"})
    with pytest.raises(TypeError, match="batch_first must be True or False"):
        fastrnn.load(path, "a", {"batch_first": 1})
    layers = fastrnn.load(path, options={"nonlinearity": "relu", "dropout": 0.5, "reset_after": False}, rng=3)
    assert list(layers) == ["a", "b", "c"]
    assert (layers["a"].dropout, layers["b"].reset_after, layers["c"].nonlinearity) == (0.5, False, "relu")
    first, second = (fastrnn.load(path, "a", {"dropout": 0.5}, rng=3).forward(sample())[0] for _ in range(2))
    assert_same_bits(first, second)
    own = tmp_path / "own.npz"
    fastrnn.GRU(I, H).save(own)
    with pytest.raises(ValueError, match="has reset_after=True; options= says reset_after=False"):
        fastrnn.load(own, options={"reset_after": False})


@pytest.mark.parametrize(
    ("layer", "options", "words"),
    [
        (fastrnn.LSTM(I, H, peephole=True), {"peephole": False}, "has peephole=True; options= says peephole=False"),
        (fastrnn.LSTM(I, H), {"peephole": True}, "peephole=True"),
        (fastrnn.LSTM(I, H), {"coupled": True}, "has coupled=False; options= says coupled=True"),
        (fastrnn.LSTM(I, H), {"activations": ("sigmoid", "relu", "relu")}, "has activations=None; options= says"),
        (fastrnn.GRU(I, H), {"clip": 0.1}, "has clip=None; options= says clip=0.1"),
        (fastrnn.GRU(I, H, clip=0.1), {"clip": None}, "has clip=0.1; options= says clip=None"),
        (fastrnn.RNN(I, H, nonlinearity="elu"), {"nonlinearity": ("elu", 2)}, r"has nonlinearity=\('elu', 1.0\)"),
    ],
)
def test_options_that_contradict_our_files(layer: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fastrnn.save(path, layer)
    with pytest.raises(ValueError, match=words):
        fastrnn.load(path, options=options)


def test_options_that_say_the_same_as_our_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fastrnn.save(path, fastrnn.LSTM(I, H, clip=2, activations=("sigmoid", ("elu", 1.0), "tanh")))
    given = {"clip": np.float32(2), "peephole": np.False_, "activations": ["sigmoid", "elu", "tanh"]}
    layer = fastrnn.load(path, options={**given, "dropout": 0.5, "batch_first": True, "dtype": np.float64})
    assert (layer.clip, layer.dropout, layer.batch_first, layer.dtype) == (2, 0.5, True, np.float64)
    fastrnn.save(path, fastrnn.GRU(I, H))
    assert fastrnn.load(path, options={"activations": ("sigmoid", "tanh")}).activations in (None, ("sigmoid", "tanh"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_hh_l0": np.zeros((4 * H, H + 1))}, "weight_ih_l0 (16, 3) and weight_hh_l0 (16, 5) are of no cell"),
        ({"weight_hh_l0": np.zeros(4 * H)}, "are not both matrices, but of shape (16, 3) and (16,)"),
        ({"weight_hh_l0": None}, "are not both matrices"),
        ({"bias_hh_l0": None}, "as lstm: bias_hh_l0 missing"),
        ({"bias_ih_l0": np.zeros(3)}, "as lstm: bias_ih_l0 has shape (3,) instead of (16,)"),
        ({"weight_ih_l1": np.zeros((4 * H, H))}, "as lstm: weight_hh_l1, bias_ih_l1, bias_hh_l1 missing"),
        ({"weight_ih_l999": np.zeros((4 * H, H))}, "it names a layer 999 and has 5 tensors"),
        ({"weight_ih_l0": np.zeros((4 * H, I), np.int8)}, "weight_ih_l0 holds int8"),
        (
            {"weight_ih_l0": np.zeros((5 * H, I)), "weight_hh_l0": np.zeros((5 * H, H))},
            "as lstm: bias_ih_l0 has shape (16,) instead of (20,)",
        ),
    ],
)
def test_parameters_that_fit_no_layer(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    state = {f"x.{n}": a for n, a in {**fastrnn.LSTM(I, H).state_dict(), **change}.items() if a is not None}
    good = {f"y.{n}": a for n, a in fastrnn.LSTM(I, H).state_dict().items()}
    np.savez(tmp_path / "a.npz", **state, **good)
    refused(tmp_path / "a.npz", "its layer 'x' (PyTorch) fits no layer here: ", words)
    assert isinstance(fastrnn.load(tmp_path / "a.npz", "y"), fastrnn.LSTM)


HEADED: list[tuple[Any, dict[str, Any]]] = [
    (fastrnn.LSTM(I, 8, 2, heads=2), {"heads": 2}),
    (fastrnn.GRU(I, 8, heads=4, bidirectional=True), {"heads": 4}),
    (fastrnn.RNN(I, 8, heads=8, bias=False), {"heads": 8, "nonlinearity": "tanh"}),
    (fastrnn.LSTM(I, 6, heads=2, peephole=True), {"heads": np.int64(2)}),
    (fastrnn.sLSTM(I, 8), {"forget_gate": "sigmoid"}),
    (fastrnn.sLSTM(I, 8, 2, heads=2, forget_gate="exponential"), {"heads": 2, "forget_gate": "exponential"}),
]


@pytest.mark.parametrize(("layer", "options"), HEADED)
def test_heads_and_the_slstm_of_weights_alone(layer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", a=layer, plain=fastrnn.GRU(I, H))
    found = fastrnn.load(path, "a", options)
    assert repr(found) == repr(layer)
    assert_same_bits(found(sample())[0], layer(sample())[0])
    assert repr(fastrnn.load(path, options=options)["plain"]) == repr(fastrnn.GRU(I, H))  # neither is its own


def test_heads_are_for_layers_that_do_not_fit_without(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", whole=fastrnn.LSTM(I, H), headed=fastrnn.LSTM(I, H, heads=4))
    found = fastrnn.load(path, options={"heads": 4})
    assert repr(found) == repr({"whole": fastrnn.LSTM(I, H), "headed": fastrnn.LSTM(I, H, heads=4)})
    rnn = fastrnn.RNN(I, 4 * H, heads=4)  # of the shapes of an LSTM
    assert repr(fastrnn.load(saved(tmp_path / "b.npz", a=rnn), "a", {"heads": 4, "nonlinearity": "tanh"})) == repr(rnn)


@pytest.mark.parametrize(
    ("layer", "options", "words"),
    [
        (fastrnn.LSTM(I, H), {"layer_norm": True}, "a.npz: its layer 'a': the cell lstm has {'layer_norm': False}"),
        (HEADED[0][0], {}, "weight_hh_l0 (32, 4) is that of a layer with heads: give options={'heads': 2} for LSTM, "),
        (HEADED[1][0], {}, "for sLSTM; or options={'heads': 4} for GRU; or options={'heads': 12} for RNN"),
        (HEADED[2][0], {"heads": 3}, "weight_ih_l0 (8, 3) and weight_hh_l0 (8, 1) are not those of heads=3"),
        (HEADED[1][0], {"heads": 4, "forget_gate": "sigmoid"}, "are not those of heads=4 of an sLSTM"),
        (HEADED[0][0], {"heads": 0}, "load got heads=0 in options=; heads must be an integer and at least 1"),
        (HEADED[0][0], {"heads": True}, "load got heads=True in options="),
        (HEADED[4][0], {"heads": 3}, "got heads=3 in options=; it has no weights of these"),
        (HEADED[4][0], {"forget_gate": "tanh"}, 'forget_gate must be "sigmoid" or "exponential".'),
        (fastrnn.GRU(I, H), {"forget_gate": "sigmoid"}, "got 'forget_gate' in options=; those to give are"),
        (
            fastrnn.GRU(I, H),
            {"clop": 1},
            "those to give are activations, batch_first, clip, dropout, dtype, heads, layer_norm, rec",
        ),
    ],
)
def test_heads_that_do_not_fit(layer: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", a=layer)
    with pytest.raises(ValueError, match=re.escape(words)):
        fastrnn.load(path, options=options)


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no array in version 1 or 2"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234"), "float32 of shape (2,), but 4 bytes"),
        (npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**61}, 8)}}"), "says float32 of shape"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}", b"1" * 16), "holds object"),
        (npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 5000},)}}"), "holds object"),
        (npy("(" * 9000), "holds object"),
        (npy("__import__('os').system('touch called')"), "holds object"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"12345678"), "holds object"),
        (npy("{'descr': '|V0', 'fortran_order': False, 'shape': (9999999999,)}"), "holds object"),
        (npy("{'descr': 3, 'fortran_order': False, 'shape': (1,)}"), "holds object"),
        (npy("{'descr': '<f3', 'fortran_order': False, 'shape': (1,)}"), "has a type that NumPy does not know"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "its header would take 4,294,967,307 bytes"),
        (npy("{}", b"", b"\3\0"), "is no array in version 1 or 2"),
    ],
    ids=range(13),
)
def test_npy_entries_that_lie(content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.npz", "w") as file:
        file.writestr("weight_ih_l0.npy", content)
    refused(tmp_path / "a.npz", "weight_ih_l0", words)
    assert os.listdir() == ["a.npz"]


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, weight_ih_l0=np.zeros((4, 2**23), np.float32))
    refused(path, "claims to unpack to 134,")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", b"1" * 16))
    refused(path, "its entry 'a.npy' has a compression of kind 14, which is not read")


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastrnn.load(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        fastrnn.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(fastrnn.FileError, match="pipe is not a regular file"):
        fastrnn.load(tmp_path / "pipe")
    (tmp_path / "old.pt").write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 300)
    refused(tmp_path / "old.pt", "is a tar file")


def test_onnx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    import fastrnn.onnx

    monkeypatch.chdir(tmp_path)
    layers = {"word": fastrnn.GRU(I, H, rng=0), "tag": fastrnn.RNN(I, H, rng=1)}
    fastrnn.onnx.save(layers, "a.onnx")
    assert list(fastrnn.load("a.onnx")) == ["word", "tag"]
    for name, layer in layers.items():
        loaded = fastrnn.load(Path("a.onnx"), name).state_dict()
        for own, array in layer.state_dict().items():
            np.testing.assert_array_equal(loaded[own], array)
    with pytest.raises(KeyError, match=r"a\.onnx has no layer 'x'.* are word, tag"):
        fastrnn.load("a.onnx", "x")
    with pytest.raises(ValueError, match=r"a\.onnx: load got options dropout; an ONNX file says everything"):
        fastrnn.load("a.onnx", options={"dropout": 0.1})
    Path("b.onnx").write_bytes(b"\x08")
    with pytest.raises(fastrnn.FileError, match=r"b\.onnx is no ONNX model"):
        fastrnn.load("b.onnx", "x")


# fastrnn inspect


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = fastrnn.LSTM(I, H).state_dict()
    del bad["bias_hh_l0"]
    layers = {"enc": fastrnn.GRU(I, H, 2, bidirectional=True), "dec\x1b[2J": fastrnn.RNN(I, H)}
    state = {f"{n}.{own}": p for n, layer in layers.items() for own, p in layer.parameters().items()}
    np.savez("a.npz", **state, **{f"bad.{n}": a for n, a in bad.items()}, other=np.zeros(3))
    assert main(["inspect", "a.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("a.npz: npz, ")
    assert lines[1].split("  ")[1].strip() == "enc"
    assert "GRU(input_size=3, hidden_size=4, num_layers=2, bidirectional=True, reset_after=True)" in lines[1]
    assert "us a step here" in lines[1]
    assert lines[2].lstrip().startswith("dec\\x1b[2J  RNN(input_size=3, hidden_size=4)")
    assert lines[3].strip() == "to be given in options=: nonlinearity, 'tanh' or 'relu'"
    assert lines[4].strip() == "bad      does not fit: as lstm: bias_hh_l0 missing"
    assert main(["inspect", "--json", "a.npz"]) == 0
    facts = json.loads(capsys.readouterr().out)
    enc, dec, wrong = facts["layers"]
    assert facts["arrays"] == len(state) + len(bad) + 1
    assert enc["cells"] == ["gru"]
    assert enc["parameters"] == sum(p.size for p in layers["enc"].parameters().values())
    assert enc["microseconds_per_step"] > 0
    assert dec["open"] == {"nonlinearity": ["tanh", "relu"]}
    assert wrong["unfit"] == "as lstm: bias_hh_l0 missing"
    np.savez("norm.npz", **fastrnn.LSTM(I, H, layer_norm=True).parameters())
    assert main(["inspect", "norm.npz"]) == 0
    assert "LSTM(input_size=3, hidden_size=4, layer_norm=True)" in capsys.readouterr().out
    np.savez("none.npz", a=np.zeros(3))
    assert main(["inspect", "none.npz"]) == 0
    assert "none of its 1 arrays is one of a recurrent layer" in capsys.readouterr().out
    Path("text").write_text("text")
    assert complaint(capsys, "inspect", "text").startswith(
        "fastrnn inspect: error: text is of no kind that is known here"
    )
    assert complaint(capsys, "inspect", "missing") == "fastrnn inspect: error: missing: No such file or directory\n"


def test_inspect_of_our_own_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    fastrnn.save(path, {"e": fastrnn.Embedding(5, I), "r": fastrnn.LSTM(I, H, proj_size=2, dtype=np.float64)})
    assert main(["inspect", str(path)]) == 0
    _, embedding, lstm = capsys.readouterr().out.splitlines()
    assert "Embedding(num_embeddings=5, embedding_dim=3)  15 parameters, float32" in embedding
    assert "LSTM(input_size=3, hidden_size=4, proj_size=2)" in lstm


def test_inspect_of_as_many_heads_as_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastrnn.LSTM(8, 512, 2, heads=512).save(tmp_path / "a.npz")
    assert main(["inspect", str(tmp_path / "a.npz")]) == 0
    assert "heads=512" in capsys.readouterr().out


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    """A file of 600 MB with holes in it, which costs nothing; its layer is larger than what is made to be timed."""
    G, header, at = 20_000, {}, 0
    shapes = {"weight_ih_l0": [G, 3000], "weight_hh_l0": [G, 5000], "bias_ih_l0": [G], "bias_hh_l0": [G]}
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    assert path.stat().st_size > 600_000_000
    with at_most(2**24):
        (layer,) = inspecting.report(path)["layers"]
    assert layer["sizes"]["hidden_size"] == 5000
    assert layer["microseconds_per_step"] > 100
    with at_most(2**21):
        fastrnn.load(path)

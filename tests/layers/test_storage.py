"""Parameters and layers on their way in and out: state_dict, files, pickle, copies."""

import copy
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import FileError, ShapeError, storage
from support import CELLS, assert_same_bits, draw, whole

I, H = 4, 6
STACK = {"num_layers": 2, "bidirectional": True, "dropout": 0.5, "batch_first": True}


def layer_of(name: str, **options: Any) -> Any:
    return CELLS[name].build(I, H, **{**STACK, **options})


def assert_same_layer(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    assert repr(a) == repr(b)
    assert_same_bits(a.state_dict(), b.state_dict())
    x = np.random.default_rng(0).standard_normal((2, 3, I)).astype(a.dtype)
    assert_same_bits(a(x)[0], b(x)[0])


# state_dict


@pytest.mark.parametrize("name", CELLS)
def test_state_dict_goes_round_and_holds_copies(name: str) -> None:
    a, b = layer_of(name, seed=1), layer_of(name, seed=2)
    saved = a.state_dict()
    b.load_state_dict(saved)
    assert_same_layer(a, b)
    for array in saved.values():
        array[...] = 0
    assert all(p.any() for p in b.parameters().values())


@pytest.mark.parametrize("convert", [np.float64, np.float16, np.int32, lambda a: a.tolist(), np.asfortranarray])
def test_load_state_dict_takes_what_numpy_makes_real_arrays_of(convert: Any) -> None:
    a, b = layer_of("gru", seed=1), layer_of("gru", seed=2)
    b.load_state_dict({name: convert(p) for name, p in a.parameters().items()})
    for name, p in b.parameters().items():
        assert p.dtype == np.float32
        np.testing.assert_array_equal(p, np.asarray(convert(a.parameters()[name])).astype(np.float32))


def test_load_state_dict_reads_before_it_writes() -> None:
    """Views of the layer's own arrays: the two biases change places."""
    layer = fastrnn.GRU(I, H)
    before, live = layer.state_dict(), dict(layer.parameters())
    live["bias_ih_l0"], live["bias_hh_l0"] = live["bias_hh_l0"], live["bias_ih_l0"]
    layer.load_state_dict(live)
    np.testing.assert_array_equal(layer.parameters()["bias_ih_l0"], before["bias_hh_l0"])
    np.testing.assert_array_equal(layer.parameters()["bias_hh_l0"], before["bias_ih_l0"])


def test_load_state_dict_says_everything_and_changes_nothing() -> None:
    layer = fastrnn.LSTM(I, H, rng=0)
    before = layer.state_dict()
    bad: dict[str, Any] = layer.state_dict()
    del bad["bias_hh_l0"]
    bad["weight_ih_l1"] = bad["weight_ih_l0"]
    bad["weight_ih_l0"] = bad["weight_ih_l0"] + 1
    bad["weight_hh_l0"] = bad["weight_hh_l0"].T
    bad["bias_ih_l0"] = bad["bias_ih_l0"].astype(complex)
    with pytest.raises(ShapeError) as error:
        layer.load_state_dict(bad)
    assert str(error.value) == (
        "LSTM(input_size=4).load_state_dict got other names than the layer has.\n"
        "  missing: bias_hh_l0.\n"
        "  unexpected: weight_ih_l1.\n"
        "It also got weight_hh_l0 with shape (6, 24).\n"
        "  The layer's has shape (24, 6).\n"
        "It also got bias_ih_l0 with dtype complex128.\n"
        "  It must hold real numbers that convert to float32."
    )
    assert_same_bits(layer.state_dict(), before)


def test_load_state_dict_knows_a_prefix_when_it_sees_one() -> None:
    layer = fastrnn.LSTM(I, H)
    with pytest.raises(ValueError, match=r"All its names start with 'encoder.lstm.': remove it with name.removeprefix"):
        layer.load_state_dict({f"encoder.lstm.{k}": v for k, v in layer.state_dict().items()})


def test_load_state_dict_needs_a_mapping_of_arrays() -> None:
    layer = fastrnn.RNN(I, H)
    with pytest.raises(TypeError, match="load_state_dict takes a mapping of names to arrays, got list"):
        layer.load_state_dict([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got bias_ih_l0 of type list.\n  NumPy cannot make an array of it"):
        layer.load_state_dict({**layer.state_dict(), "bias_ih_l0": [[1], [1, 2]]})


def test_the_state_dict_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = torch.nn.LSTM(I, H, num_layers=2, bidirectional=True, proj_size=3)
    layer = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True, proj_size=3)
    assert list(layer.state_dict()) == list(module.state_dict())
    layer.load_state_dict(module.state_dict())
    for name, p in layer.parameters().items():
        np.testing.assert_array_equal(p, module.state_dict()[name].numpy())
    module.load_state_dict({name: torch.from_numpy(p) for name, p in layer.state_dict().items()})
    with pytest.raises(ValueError, match=r"of type Parameter.\n  NumPy cannot make an array of it: .*requires grad"):
        layer.load_state_dict(dict(module.named_parameters()))


# Files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_save_and_load(name: str, dtype: str, tmp_path: Path) -> None:
    layer = layer_of(name, dtype=dtype, bias=False)
    path = tmp_path / "layer"
    layer.save(path)
    assert os.listdir(tmp_path) == ["layer"], "the name is taken as it is and nothing is left beside it"
    assert_same_layer(fastrnn.load(path), layer)
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {"fastrnn", *layer.parameters()}
        assert json.loads(str(archive["fastrnn"]))["format"] == storage.FORMAT


def test_the_generator_of_a_loaded_layer(tmp_path: Path) -> None:
    layer_of("gru").save(tmp_path / "a.npz")
    x = np.ones((2, 3, I), np.float32)
    first, second = (fastrnn.load(str(tmp_path / "a.npz"), rng=5).forward(x)[0] for _ in range(2))
    assert_same_bits(first, second)


def test_saving_replaces_a_file_and_keeps_its_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "layer.npz", tmp_path / "link.npz"
    path.write_text("something else")
    path.chmod(0o640)
    link.symlink_to(path)
    layer = layer_of("lstm")
    layer.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same_layer(fastrnn.load(path), layer)


def test_a_save_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layer.npz"
    old = layer_of("gru", seed=1)
    old.save(path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        layer_of("gru", seed=2).save(path)
    assert os.listdir(tmp_path) == ["layer.npz"]
    assert_same_layer(fastrnn.load(path), old)


def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("gru")
    with pytest.raises(FileNotFoundError):
        layer.save(tmp_path / "missing" / "layer.npz")
    with pytest.raises(IsADirectoryError, match="is a directory: give the name of a file in it"):
        layer.save(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        layer.save(tmp_path / "pipe")
    (tmp_path / "locked.npz").write_text("precious")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to what is protected
    with pytest.raises(PermissionError, match="is write-protected and was not replaced"):
        layer.save(tmp_path / "locked.npz")
    assert (tmp_path / "locked.npz").read_text() == "precious"


def written(path: Path, **entries: Any) -> Path:
    np.savez(path, **entries)
    return path


def header(**changes: Any) -> np.ndarray:
    options = {"input_size": 2, "hidden_size": 3}
    return np.array(json.dumps({"format": 1, "cell": "gru", "options": options, **changes}))


def test_files_that_hold_no_layer(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    foreign = "is not a file that a fastrnn layer was saved to"
    with pytest.raises(FileNotFoundError):
        fastrnn.load(path)
    for content, what in (
        (b"", "is empty"),
        (b"text", "is of no kind that is known here"),
        (b"PK\3\4", "is no complete"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=f"file.npz {what}"):
            fastrnn.load(path)
        with pytest.raises(FileError, match=f"file.npz {foreign}: it is no complete .npz archive"):
            storage.read(path)
    with pytest.raises(FileError, match=f"{foreign}: it has no entry 'fastrnn', only a"):
        storage.read(written(path, a=np.zeros(2)))
    for entries, text in (
        ({"a": np.zeros(2)}, r"file.npz \(npz\) holds 1 arrays and no recurrent layer"),
        ({"fastrnn": np.array("{")}, f"{foreign}: its entry 'fastrnn' is no JSON"),
        ({"fastrnn": np.array("[1]")}, f"{foreign}: its entry 'fastrnn' names no format"),
        ({"fastrnn": header(format="1")}, f"{foreign}: its entry 'fastrnn' names no format"),
        (
            {"fastrnn": header(format=2)},
            "has format 2, written by a newer fastrnn; this one reads formats up to 1: upgr",
        ),
        ({"fastrnn": np.array([{}], object)}, "its entry 'fastrnn' holds Python objects or no numbers"),
        ({"fastrnn": header(cell="peephole")}, "holds no layer that is known here: its cell is 'peephole'"),
        ({"fastrnn": header(options=[])}, "describes a layer without a name or options"),
        (
            {"fastrnn": header(options={"input_size": 2, "hidden_size": 3, "size": 3})},
            "does not fit together: .*unexpected keyword argument 'size'",
        ),
        (
            {"fastrnn": header()},
            "does not fit together: GRU needs weight_ih_l0, which is missing",
        ),
    ):
        with pytest.raises(FileError, match=text):
            fastrnn.load(written(path, **entries))


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "layer.npz"
    layer_of("lstm").save(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"layer.npz is no complete archive"):
        fastrnn.load(path)
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: Bad CRC-32"):
        fastrnn.load(path)
    content[len(content) // 2] ^= 0xFF
    entry = content.rfind(b"PK\x01\x02")
    for offset, bit, words in (
        (8, 1, "is damaged: .*encrypted"),
        (10, 64, "has a compression of kind 64, which is not read"),
    ):
        wrong = bytearray(content)
        wrong[entry + offset] ^= bit
        path.write_bytes(wrong)
        with pytest.raises(FileError, match=words):
            fastrnn.load(path)


# Copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("name", CELLS)
def test_pickle_and_deepcopy_are_independent_and_continue_alike(name: str, duplicate: Any) -> None:
    layer = layer_of(name)
    x = np.ones((2, 3, I), np.float32)
    layer.forward(x)
    twin = duplicate(layer)
    assert_same_layer(layer, twin)
    assert_same_bits(layer.forward(x)[0], twin.forward(x)[0])  # the generator came along
    twin.parameters()["weight_ih_l0"][...] = 0
    assert layer.parameters()["weight_ih_l0"].any()
    y, _, tape = layer.forward(x)
    with pytest.raises(ValueError, match="got the tape of another layer"):
        twin.backward(tape, y)


def test_a_shallow_copy_shares_the_parameters() -> None:
    layer = layer_of("lstm")
    twin = copy.copy(layer)
    assert twin.parameters() is layer.parameters()
    assert_same_layer(layer, twin)


@pytest.mark.parametrize("name", CELLS)
def test_frozen_layers_pickle_by_their_weights(name: str) -> None:
    layer = CELLS[name].build(I, H)
    e = draw(CELLS[name], layer, 3, 2)
    fast = layer.freeze()
    expected = fast(e.x, whole(e.state))
    assert copy.copy(fast) is fast
    assert copy.deepcopy(fast) is fast
    layer.parameters()["weight_hh_l0"][...] = 0
    twin = pickle.loads(pickle.dumps(fast))
    assert isinstance(twin, fastrnn.Frozen)
    y, state = twin(e.x, whole(e.state))
    assert_same_bits(y, expected[0])
    assert_same_bits(state, expected[1])
    assert len(pickle.dumps(fast)) < 4000 + sum(p.nbytes for p in layer.parameters().values())

"""PyTorch's files: state dicts in archives and in pickles, checkpoints, TorchScript, and pickles that want more."""

import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.files import pickles
from files_support import H, I, assert_as_torch, at_most, is_mapped, refused

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def archive(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """A file as torch.save writes it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled)
        for name, content in entries.items():
            file.writestr(f"m/data/{name}", content)
    return path


def state_of(**shapes: tuple[int, ...]) -> bytes:
    """The pickle of a state dict of float32 tensors, each in the storage of its name, written opcode by opcode."""
    out = b"\x80\x02}("
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=object))
        out += text(name) + tensor(name, size, 0, shape, tuple(np.cumprod((1, *shape[:0:-1]), dtype=object)[::-1]))
    return out + b"u."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    digits = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + digits


def tensor(key: str, size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(size) + b"tQ"
    axes = b"".join(b"(" + b"".join(whole(int(n)) for n in numbers) + b"t" for numbers in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + axes + b"\x89}tR"


LSTM = {"weight_ih_l0": (4, 1), "weight_hh_l0": (4, 1), "bias_ih_l0": (4,), "bias_hh_l0": (4,)}


def test_the_pickles_of_these_tests(tmp_path: Path) -> None:
    numbers = {name: np.arange(4, dtype=np.float32) for name in LSTM}
    path = archive(tmp_path / "a.pt", state_of(**LSTM), **{name: a.tobytes() for name, a in numbers.items()})
    layers = fastrnn.load(path)
    assert list(layers) == [""]
    for name, p in layers[""].parameters().items():
        np.testing.assert_array_equal(p.reshape(-1), numbers[name])
    assert isinstance(fastrnn.load(path, ""), fastrnn.LSTM)


@pytest.mark.parametrize("old", [False, True], ids=["archive", "pickles in a row"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_state_dicts(dtype: str, old: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    modules = torch.nn.ModuleDict(
        {
            "enc": torch.nn.LSTM(I, H, 2, bidirectional=True, proj_size=2),
            "dec": torch.nn.GRU(I, H, bias=False),
            "cell": torch.nn.LSTMCell(I, H),
            "out": torch.nn.Linear(H, 2),
        }
    ).to(getattr(torch, dtype))
    path = tmp_path / "m.pt"
    torch.save(modules.state_dict(), path, _use_new_zipfile_serialization=not old)
    layers = fastrnn.load(path)
    assert list(layers) == ["enc", "dec", "cell"]
    for name in ("enc", "dec"):
        assert_as_torch(layers[name], modules[name])
        # the storages of older files lie where they happen to lie
        assert old or all(is_mapped(p) for p in layers[name].parameters().values()) == (dtype in ("float32", "float64"))
    for name, p in layers["cell"].parameters().items():
        expected = modules["cell"].state_dict()[name.removesuffix("_l0")]
        np.testing.assert_array_equal(p, expected.to(torch.float64).numpy())


@pytest.mark.parametrize("old", [False, True], ids=["archive", "pickles in a row"])
def test_checkpoints(old: bool, tmp_path: Path) -> None:
    """Weights among optimizers, numbers, views, tied and transposed tensors."""
    torch = pytest.importorskip("torch")
    module = torch.nn.RNN(I, H)
    state = module.state_dict()
    state["weight_ih_l0"] = torch.stack([torch.zeros(I, H), state["weight_ih_l0"].T.contiguous()])[1].T
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 1, I))[0].sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "loss": np.float32(0.5),
        "state_dict": {f"net.rnn.{name}": t for name, t in state.items()},
        "tied": [torch.nn.Parameter(state["bias_ih_l0"])],
        "optimizer": optimizer.state_dict(),
        "numbers": {"set": {1, 2}, "dtype": torch.float32, "size": torch.Size([1]), "long": torch.arange(3)},
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"give options={'nonlinearity': 'tanh'} or options={'nonlinearity': 'relu'}"):
        fastrnn.load(path)
    layers = fastrnn.load(path, options={"nonlinearity": "tanh"})
    assert list(layers) == ["state_dict.net.rnn"]
    for name, p in layers["state_dict.net.rnn"].parameters().items():
        np.testing.assert_array_equal(p, state[name].numpy())
        assert p.flags.c_contiguous


@pytest.mark.filterwarnings("ignore")  # torch.jit says that it is deprecated
def test_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = torch.nn.GRU(I, H, num_layers=2), torch.nn.Linear(H, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.rnn(x)[0])

    net = Net()
    torch.jit.trace(net, torch.zeros(2, 1, I)).save(str(tmp_path / "m.pt"))
    assert_as_torch(fastrnn.load(tmp_path / "m.pt", "rnn"), net.rnn)


ORDERED = b"ccollections\nOrderedDict\n"


class Calls:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch called",)


PICKLES = [
    (pickle.dumps(Calls(), 2), "calls posix.system, which is not on the list"),
    (pickle.dumps(Calls(), 4), "calls posix.system, which is not on the list"),
    (b"cos\nsystem\n(S'touch called'\ntR.", "calls os.system"),
    (b"(S'touch called'\nios\nsystem\n.", "holds the opcode b'S', which files of weights do not use"),
    (b"c__builtin__\neval\n(S'1'\ntR.", "calls __builtin__.eval"),
    (b"ctorch.nn.modules.rnn\nLSTM\n)\x81}b.", "calls torch.nn.modules.rnn.LSTM"),
    (b"ctorch.storage\n_load_from_bytes\n(C\x01atR.", "calls torch.storage._load_from_bytes"),
    (b"c__torch__.a\nB\n)\x81.", "calls __torch__.a.B"),
    (b"\x80\x02", "is a damaged pickle: it has no end"),
    (b"", "is a damaged pickle"),
    (b"\xff.", "is a damaged pickle"),
    (b"u.", "is a damaged pickle"),
    (b"t.", "is a damaged pickle"),
    (b"(.", "a mark where a value should be"),
    (b"h\x00.", "is a damaged pickle"),
    (b"}]s.", "is a damaged pickle"),
    (b"N]a.", "appends to something that is no list"),
    (b"N(NNu.", "sets items of something that is no dict"),
    (b"K\x01K\x02K\x03\x93.", "is a damaged pickle: a name is no text"),
    (b"}(" + whole(2**61 - 1) + b"Nu" + b"N.", "holds 0 arrays"),
    (b"}" + text("k" * 5000) + b"Ns.", "has a key of 5,000 characters; 4096 are the most"),
    (
        b"}" + text("a" * 4000) + b"}" + text("b" * 4000) + tensor("a", 1, 0, (1,), (1,)) + b"ss.",
        "the names on the way to 'aaaa",
    ),
    (
        b"](NNe" + b"q\x00" + b"](" + b"h\x00" * 99 + b"eq\x01" + ORDERED + b"h\x01\x85R" + b".",
        "holds 0 arrays",
    ),
    (
        b"](NNeq\x00](" + b"h\x00" * 99 + b"eq\x01(" + (ORDERED + b"h\x01\x85R") * 9 + b"t.",
        "it makes dicts of one list again and again",
    ),
    (b"K\x01Q.", "refers to something beside it"),
    (b"(X\x06\x00\x00\x00moduletQ.", "refers to something beside it"),
    (b"K\x01)R.", "calls something that has no name"),
    (b"\x8e" + b"\xff" * 8 + b"a.", "is a damaged pickle"),
    (b"r\xff\xff\xff\x7fN.", "is a damaged pickle"),
    (b"(" * 100_000 + b".", "a mark where a value should be"),
    (b"K\x01.", "holds 0 arrays and no recurrent layer"),
    (b"N" + b"\x85" * 100_000 + b".", "nested deeper than 64"),
    (b"}(" + b"X\x01\x00\x00\x00a}(" * 100 + b"u" * 101 + b".", "nested deeper than 64"),
    (b"}q\x00X\x01\x00\x00\x00ah\x00s.", "holds 0 arrays and no recurrent layer"),
    (b"N" + b"\x85" * 100_000 + b"q\x00}h\x00Ns.", "holds 0 arrays and no recurrent layer"),
    (tensor("a", 1, 0, (1,) * 100, (1,) * 100).join((b"", b".")), "describes a tensor that has no storage"),
    (tensor("a", 1, 0, (2**62,), (1,)) + b".", "describes a tensor that has no storage, or numbers"),
    (tensor("a", 1, -1, (1,), (1,)) + b".", "describes a tensor that has no storage, or numbers"),
    (state_of(a=(2,)).replace(whole(2), whole(1), 1), "'a' of shape (2,) reaches beyond its storage of 1 elements"),
    (b"}X\x01\x00\x00\x00a" + tensor("a", 2, 1, (2,), (1,)) + b"s.", "reaches beyond its storage of 2 elements"),
    (b"}X\x01\x00\x00\x00a" + tensor("a", 1, 0, (2**40, 2**20), (0, 0)) + b"s.", "reaches beyond its storage of 1"),
    (state_of(**LSTM), "has no entry 'm/data/weight_ih_l0'"),
]


@pytest.mark.parametrize(("pickled", "words"), PICKLES, ids=[f"{i} {words}" for i, (_, words) in enumerate(PICKLES)])
def test_pickles(pickled: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(archive(tmp_path / "a.pt", pickled), words)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(("pickled", "words"), PICKLES[:12], ids=[words for _, words in PICKLES[:12]])
def test_pickles_in_a_row(pickled: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    path.write_bytes(MAGIC + b"\x80\x02M\xe9\x03." + b"}." + pickled)
    refused(path, words)
    assert not (tmp_path / "called").exists()


def test_storages_that_lie(tmp_path: Path) -> None:
    good = dict.fromkeys(LSTM, b"\x00" * 16)
    assert fastrnn.load(archive(tmp_path / "a.pt", state_of(**LSTM), **good))
    path = archive(tmp_path / "a.pt", state_of(**LSTM), **{**good, "bias_hh_l0": b"\0" * 15})
    refused(path, "its entry 'm/data/bias_hh_l0' is shorter than the pickle says")
    # a layer of a terabyte in a file of some hundred bytes
    wide = {**LSTM, "weight_ih_l0": (4, 2**36)}
    refused(archive(tmp_path / "a.pt", state_of(**wide), **good), "its entry 'm/data/weight_ih_l0' is shorter")


def test_rows_of_pickles_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    start = MAGIC + b"\x80\x02M\xe9\x03." + b"}." + state_of(a=(2,))
    keys = b"]X\x01\x00\x00\x00aa."
    path.write_bytes(start + keys + (2).to_bytes(8, "little") + b"\0" * 8)
    refused(path, "holds 1 arrays and no recurrent layer")
    for rest, words in (
        (b"", "storages is a damaged pickle"),
        (b"N.", "is no file of PyTorch's that is known here"),
        (b"]X\x01\x00\x00\x00ba.", "no tensor lies in its storage 'b'"),
        (b"](" + text("x") + b"\x85q\x00" + b"0h\x00h\x00\x86q\x00" * 24 + b"e.", "of a key that is a tuple"),
        (b"](" + b"N" + b"\x85" * 100_000 + b"e.", "no tensor lies in its storage of a key that is a tuple"),
        (keys, "is cut off or damaged: its storage 'a'"),
        (keys + b"\xff" * 8, "is cut off or damaged: its storage 'a'"),
    ):
        path.write_bytes(start + rest)
        refused(path, words)


def test_archives_that_lie(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", state_of(**LSTM), **dict.fromkeys(LSTM, b"\x00" * 16))
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    refused(path, "is no complete archive")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", b"\0" * 2**27)  # a bomb
    refused(path, "claims to unpack to 134,217,728: it is not read")
    path.write_bytes(content.replace(b"m/data/bias_hh_l0", b"m/data/bias_ih_l0"))
    refused(path, "two of its entries have the same name")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../etc/passwd", b"")
    refused(path, "is an archive of something else: it holds '../../etc/passwd'")
    # an entry whose own header is that of another
    broken = bytearray(content)
    at = broken.find(b"m/data/weight_ih_l0")
    broken[at : at + 1] = b"n"
    path.write_bytes(broken)
    refused(path, "is damaged: File name in directory", "weight_ih_l0")


def test_keys_of_one_hash() -> None:
    """Whole numbers that would make a dict quadratic."""
    pickled = b"}(" + b"".join(b"\x8a\x0c" + ((2**61 - 1) * n).to_bytes(12, "little") + b"N" for n in range(1, 20_000))
    begin = time.process_time()
    assert len(pickles.read(io.BytesIO(pickled + b"u."), "it").value) == 19_999
    assert time.process_time() - begin < 0.5


def test_names_that_come_once_per_tensor(tmp_path: Path) -> None:
    many = b"q\x000}(" + b"".join(whole(n) + b"h\x00" for n in range(4000)) + b"u"
    pickled = b"}" + text("k" * 4000) + tensor("a", 1, 0, (1,), (1,)) + many + b"s."
    refused(archive(tmp_path / "a.pt", pickled), "the names on the way to 'kkkk", "or too many such")


@pytest.mark.parametrize("kind", ["HalfStorage", "FloatStorage"])
def test_layers_that_share_one_storage(kind: str, tmp_path: Path) -> None:
    """Views that have to be copied, many times the file: half precision, and transposed ones."""
    H = 128
    own = {"weight_ih_l0": (4 * H, H), "weight_hh_l0": (4 * H, H), "bias_ih_l0": (4 * H,), "bias_hh_l0": (4 * H,)}

    def pickled(layers: int) -> bytes:
        out = b"}("
        for k in range(layers):
            for name, shape in own.items():
                strides = (1, 4 * H)[: len(shape)]
                one = tensor("a", 4 * H * H, 0, shape, strides)
                out += text(f"l{k}.{name}") + one.replace(b"FloatStorage", kind.encode())
        return out + b"u."

    content = (np.arange(4 * H * H) % 1000).astype(np.float16 if kind == "HalfStorage" else np.float32)
    path = archive(tmp_path / "a.pt", pickled(3), a=content.tobytes())
    np.testing.assert_array_equal(
        fastrnn.load(path, "l2").parameters()["weight_hh_l0"], content.astype(np.float32).reshape(H, 4 * H).T
    )
    archive(path, pickled(400), a=content.tobytes())
    with at_most(2**28), pytest.raises(fastrnn.FileError, match="and its layers far more: it is not read"):
        fastrnn.load(path)


def test_a_big_pickle_is_walked_once() -> None:
    """Lists of lists that hold each other many times, and pairs of a long list."""
    many = 3000
    shared = b"](" + b"K\x01" * many + b"eq\x00"
    pickled = b"ccollections\nOrderedDict\n(](" + shared + b"h\x00" * many + b"etR."
    with pytest.raises(fastrnn.FileError, match="is a damaged pickle: too many values"):
        pickles.read(io.BytesIO(pickled), "it")

"""Files with some bytes changed: each gives layers or an error that names the file, and takes no more memory than its
size allows. FASTRNN_MUTATIONS says how many of each kind; `.ci/long` takes 10,000."""

import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.files import inspecting
from fastrnn.files.tensors import FREE
from files_support import H, I
from test_flax_files import flax_lstm, packed
from test_pytorch_files import LSTM, archive, state_of

MUTATIONS = int(os.environ.get("FASTRNN_MUTATIONS", "300"))
INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"9" * 12,
    b"[" * 40,
    b"-1",
]


def own_npz(path: Path) -> None:
    fastrnn.LSTM(I, H).save(path)


def foreign_npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **fastrnn.GRU(I, H).state_dict())


def safetensors(path: Path) -> None:
    model = {"e": fastrnn.Embedding(5, I), "r": fastrnn.RNN(I, H, nonlinearity="relu"), "o": fastrnn.Linear(H, 2)}
    fastrnn.save(path.with_suffix(".safetensors"), model)
    path.with_suffix(".safetensors").rename(path)


def pytorch(path: Path) -> None:
    archive(path, state_of(**LSTM), **dict.fromkeys(LSTM, b"\x00" * 16))


def older_pytorch(path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.GRU(I, H).state_dict(), path, _use_new_zipfile_serialization=False)


def hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": {"layers": []}}'
        for name in ("lstm", "lstm_1"):
            for i, shape in enumerate([(I, 4 * H), (H, 4 * H), (4 * H,)]):
                file[f"layers/{name}/cell/vars/{i}"] = np.ones(shape, np.float32)
            file[f"layers/{name}/vars"] = np.zeros(1)
            file[f"layers/{name}/cell"].attrs["name"] = "x"


def keras(path: Path) -> None:
    pytest.importorskip("h5py")
    stream = path.with_suffix(".h5")
    hdf5(stream)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", '{"config": {"layers": [{"class_name": "LSTM", "config": {"name": "lstm"}}]}}')
        file.writestr("model.weights.h5", stream.read_bytes())


def msgpack(path: Path) -> None:
    path.write_bytes(packed(flax_lstm()[0]))


WRITERS = [own_npz, foreign_npz, safetensors, pytorch, older_pytorch, hdf5, keras, msgpack]


def mutated(content: bytes, seed: int) -> bytes:
    """Bits turned, bytes changed, cut out, doubled or cut off, once or some times."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) or 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if data else b""
            case 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                piece = rng.choice(INTERESTING)
                data[at : at + len(piece)] = piece
            case 3:
                del data[at : at + rng.randrange(1, 40)]
            case 4:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            case 5:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_mutations(write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    write(path)
    content = path.read_bytes()
    before = sorted(os.listdir())
    assert fastrnn.load(path)
    kinds = set()
    tracemalloc.start()
    try:
        for seed in range(MUTATIONS):
            path.write_bytes(mutated(content, seed))
            tracemalloc.reset_peak()
            outcome = result_of(path)
            kinds.add(type(outcome))
            if isinstance(outcome, Exception):
                assert type(outcome) in (fastrnn.FileError, ValueError), (seed, outcome)
                assert str(path) in str(outcome), (seed, outcome)
            peak = tracemalloc.get_traced_memory()[1]
            assert peak < FREE // 8, (seed, peak)
    finally:
        tracemalloc.stop()
    assert len(kinds) > 1, "some can be read still, and some not"
    assert sorted(os.listdir()) == before
    path.write_bytes(content)
    assert inspecting.report(path)["layers"]


def result_of(path: Path) -> Any:
    """The layers, whose parameters are touched, or the error."""
    try:
        found = fastrnn.load(path)
    except Exception as error:
        return error
    for layer in found.values() if isinstance(found, dict) else [found]:
        for p in layer.parameters().values():
            p.tobytes()
    return found

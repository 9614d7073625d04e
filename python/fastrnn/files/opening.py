"""A file of any kind, opened: what it is, and the layers it holds, none of which is read yet."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from .. import storage
from . import description, hdf5, keras, msgpack, naming, npz, onnx_nodes, pytorch, safetensors
from .archive import Archive
from .errors import FileError
from .found import Found
from .tensors import Bytes, Path, Tensor, map_file

READ = "safetensors, npz, PyTorch's .pt (zip and older) and TorchScript, Keras' .keras and .h5, Flax's msgpack"
_TAR = b"ustar"


class Contents(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    kind
        Of the file, in words.
    layers
        Recurrent layers, those that do not fit too; of our own files all layers.
    own
        Whether fastrnn wrote it, so that it says everything.
    tensors
        How many arrays it holds.
    """

    kind: str
    layers: list[Found]
    own: bool
    tensors: int


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Open a file; its tensors can be loaded as long as the block lasts, and what was loaded stays.

    Those of an ONNX file cannot: its layers are only described.

    Raises
    ------
    FileError
        If it is damaged, or of no kind that is known here.
    OSError
        If it cannot be opened.
    """
    name, data = os.fspath(path), map_file(path)
    if str(name).endswith(".onnx"):
        layers, version, tensors = onnx_nodes.find(str(name), data)
        yield Contents(f"ONNX, opset {version}", layers, False, tensors)
    elif bytes(data[:4]) in (b"PK\3\4", b"PK\5\6"):
        with Archive(path) as archive:
            yield _archive(archive, data)
    else:
        yield _plain(name, data)


def _archive(archive: Archive, data: Bytes) -> Contents:
    if {keras.CONFIG, keras.WEIGHTS} <= archive.entries.keys():
        layers = keras.find_archive(archive, data)
        return Contents("Keras", layers, False, sum(len(layer.tensors) for layer in layers))
    if pytorch.is_archive(archive):
        kind = "TorchScript" if pytorch.is_script(archive) else "PyTorch"
        return _named(kind, pytorch.read_archive(archive, data))
    if npz.is_npz(archive):
        if f"{description.KEY}.npy" in archive.entries:
            return _own_npz(archive)
        return _named("npz", npz.tensors(archive))
    entries = ", ".join(map(repr, list(archive.entries)[:5]))
    raise FileError(f"{archive.name} is an archive of something else: it holds {entries or 'nothing'}. Read are {READ}")


def _plain(name: str, data: Bytes) -> Contents:
    if hdf5.is_hdf5(data):
        layers = keras.find_h5(name, data)
        return Contents("Keras, HDF5", layers, False, sum(len(layer.tensors) for layer in layers))
    if pytorch.is_legacy(data):
        return _named("PyTorch before 1.6", pytorch.read_legacy(name, data))
    if safetensors.is_safetensors(data):
        tensors, metadata = safetensors.read(name, data)
        if description.KEY not in metadata:
            return _named("safetensors", tensors)
        text = metadata[description.KEY].encode("utf-8", "surrogatepass")
        told = safetensors.parse_json(text, f"{name}: its description")
        return Contents("safetensors of fastrnn", description.read_layers(told, tensors, name), True, len(tensors))
    if bytes(data[257:262]) == _TAR:
        raise FileError(f"{name} is a tar file; PyTorch's of before version 0.2 are not read. Read are {READ}")
    if msgpack.is_msgpack(data):
        return _named("Flax, msgpack", msgpack.read(name, data))
    what = "is empty" if data.size == 0 else "is of no kind that is known here"
    raise FileError(f"{name} {what}. Read are {READ}")


def _named(kind: str, tensors: Mapping[str, Tensor]) -> Contents:
    return Contents(kind, naming.find(tensors), False, len(tensors))


def _own_npz(archive: Archive) -> Contents:
    """One layer that its ``save`` wrote."""
    told = storage.description_in(archive)
    if "model" in told:
        raise FileError(f"{archive.name} holds a language model: fastrnn.lm.model.LanguageModel.load reads it")
    tensors = {name: t for name, t in npz.tensors(archive).items() if name != description.KEY}
    options = told.get("options")
    entry = {"name": "", "cell": told.get("cell"), "options": options if isinstance(options, dict) else None}
    whole = {"format": told["format"], "layers": [entry]}
    layers = description.read_layers(whole, tensors, archive.name, storage.FORMAT)
    return Contents("npz of fastrnn", layers, True, len(tensors))

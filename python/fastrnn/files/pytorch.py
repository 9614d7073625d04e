"""What torch.save and TorchScript write: archives with a pickle, or, before PyTorch 1.6, pickles in a row."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import pickles
from .archive import Archive
from .errors import FileError
from .pickles import StoredTensor, Thing
from .tensors import REAL, Array, Budget, Bytes, Order, Tensor, as_array, native, not_real

_MAGIC = 0x1950A86A20F9469CFC6C
_DEPTH = 64  # of dicts in dicts
_LONGEST_LINE = 2**16


def is_archive(archive: Archive) -> bool:
    """Whether an archive is one of PyTorch's."""
    return _root(archive) is not None


def is_script(archive: Archive) -> bool:
    """Whether it is an archive of TorchScript."""
    return f"{_root(archive)}constants.pkl" in archive.entries


def _root(archive: Archive) -> str | None:
    found = [entry for entry in archive.entries if entry.endswith("/data.pkl") and entry.count("/") == 1]
    return found[0].removesuffix("data.pkl") if len(found) == 1 else None


def is_legacy(data: Bytes) -> bool:
    """Whether a file starts with the pickled number that PyTorch's older files start with."""
    return bytes(data[:15]).startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


def read_archive(archive: Archive, data: Bytes) -> dict[str, Tensor]:
    """Return the tensors of a zip file, those of float32 and float64 where they lie in its mapped bytes.

    Raises
    ------
    FileError
        If it is damaged, or its pickle holds more than weights.
    """
    root = _root(archive)
    big = f"{root}byteorder" in archive.entries and bytes(archive.read(f"{root}byteorder")) == b"big"

    unpacked = functools.cache(archive.read)  # layers may share it

    def storage(key: str, size: int) -> Bytes:
        entry = f"{root}data/{key}"
        if entry not in archive.entries:
            raise FileError(f"{archive.name} is damaged: it has no entry {entry!r}")
        if archive.entries[entry].file_size < size:
            raise FileError(f"{archive.name}: its entry {entry!r} is shorter than the pickle says")
        place = archive.region(entry)
        return unpacked(entry) if place is None else data[place[0] :][: place[1]]

    pickled = f"{root}data.pkl"
    stream = _Stream(archive.read(pickled), 0)
    content = pickles.read(stream, f"{archive.name}: its entry {pickled!r}", is_script(archive))
    return _tensors(archive.name, archive.size, content.value, storage, ">" if big else "<")


def read_legacy(name: str, data: Bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of PyTorch's older kind; their storages follow its pickles.

    Raises
    ------
    FileError
        If it is damaged, or its pickle holds more than weights.
    """
    stream = _Stream(data, 0)
    magic, protocol, about, content, keys = (
        pickles.read(stream, f"{name}: its pickle of the {what}")
        for what in ("magic number", "protocol", "system", "content", "storages")
    )
    if magic.value != _MAGIC or protocol.value != 1001 or not isinstance(keys.value, list):
        raise FileError(f"{name} is no file of PyTorch's that is known here")
    places, at = {}, stream.at
    for key in keys.value:
        if not isinstance(key, str) or key not in content.storages:
            what = repr(key) if isinstance(key, str) else f"of a key that is a {type(key).__name__}"
            raise FileError(f"{name} is damaged: no tensor lies in its storage {what}")
        size = int.from_bytes(bytes(data[at : at + 8]), "little") * _width(content.storages[key])
        if at + 8 + size > data.size:
            raise FileError(f"{name} is cut off or damaged: its storage {key!r} reaches beyond its end")
        places[key] = data[at + 8 : at + 8 + size]
        at += 8 + size

    def storage(key: str, size: int) -> Bytes:
        if key not in places or places[key].size < size:
            raise FileError(f"{name} is cut off or damaged: its storage {key!r} is shorter than the pickle says")
        return places[key]

    little = not isinstance(about.value, dict) or about.value.get("little_endian", True)
    return _tensors(name, data.size, content.value, storage, "<" if little else ">")


def _width(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


class _Stream:
    """Bytes as a file to be read from, which gives no more than there is."""

    def __init__(self, data: Bytes, at: int) -> None:
        self._data, self.at = data, at

    def read(self, size: int) -> bytes:
        read = bytes(self._data[self.at : self.at + max(0, min(size, self._data.size))])
        self.at += len(read)
        return read

    def readline(self) -> bytes:
        line = bytes(self._data[self.at : self.at + _LONGEST_LINE])
        line = line[: line.find(b"\n") + 1]
        self.at += len(line)
        return line


def _walk(name: str, content: Any) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    """Go through dicts, lists and objects for tensors, with the names on the way to each; each dict is entered once."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Thing):
            value = value.state
        if isinstance(value, StoredTensor):
            yield path, value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            if len(path) == _DEPTH:
                raise FileError(f"{name} holds dicts nested deeper than {_DEPTH}")
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, str(key)), item) for key, item in reversed(list(items)) if isinstance(key, (str, int))]


def _tensors(
    name: str, size: int, content: Any, storage: Callable[[str, int], Bytes], order: Order
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    budget = Budget(name, size)
    for path, tensor in _walk(name, content):
        key = ".".join(path)
        budget.pay_path(key)
        found[key] = _tensor(f"{name}: its tensor {key!r}", tensor, storage, order)
    return found


def _tensor(who: str, tensor: StoredTensor, storage: Callable[[str, int], Bytes], order: Order) -> Tensor:
    (dtype, key, size), offset, shape, strides = tensor
    if dtype not in REAL:
        return Tensor(dtype, shape, not_real(who, dtype))
    width = _width(dtype)
    elements = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if elements > size or (elements and last >= size):
        raise FileError(f"{who} of shape {shape} reaches beyond its storage of {size:,} elements")

    def load() -> Array:
        first, end = (offset, last + 1) if elements else (0, 0)
        numbers = as_array(storage(key, size * width)[first * width : end * width], dtype, (end - first,), order)
        if elements == 0:
            return np.empty(shape, numbers.dtype)
        steps = [stride * numbers.itemsize for stride in strides]
        return native(np.lib.stride_tricks.as_strided(numbers, shape, steps))

    return Tensor(dtype, shape, load)

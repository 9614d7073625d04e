"""Arrays of .npz files, by NumPy's format of .npy entries; no pickle, and no size that the entry does not have."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .archive import Archive
from .errors import FileError
from .tensors import Array, Bytes, Shape, Tensor, count, native, not_real

_MAX_HEADER = 10_000


class Header(NamedTuple):
    """What stands before the numbers of a .npy entry."""

    dtype: np.dtype[Any]
    shape: Shape
    fortran: bool
    size: int  # of the header


def is_npz(archive: Archive) -> bool:
    """Whether all entries are arrays by their names."""
    return bool(archive.entries) and all(entry.endswith(".npy") for entry in archive.entries)


def read_header(archive: Archive, entry: str) -> Header:
    """Return the header of an entry, of which the entry's size is what it says.

    Raises
    ------
    FileError
        If not, or if it holds Python objects.
    """
    who = f"{archive.name}: its entry {entry.removesuffix('.npy')!r}"
    stream = io.BytesIO(archive.start(entry, _MAX_HEADER + 100))
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise FileError(f"{who} has version {version} of the .npy format, which is not known here")
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except FileError:
        raise
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise FileError(f"{who} is no array: {str(error).splitlines()[0] if str(error) else error!r}") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise FileError(f"{who} holds Python objects, which are never loaded")
    size, have = stream.tell(), archive.entries[entry].file_size
    if count(shape, who) * dtype.itemsize != have - size:
        raise FileError(f"{who} says {dtype} of shape {shape}, but {have - size:,} bytes follow")
    return Header(dtype, shape, fortran, size)


def read_array(archive: Archive, entry: str) -> Array:
    """Return an entry as it is, in memory of its own."""
    header = read_header(archive, entry)
    return _shaped(archive.read(entry), header)


def _shaped(data: Bytes, header: Header) -> Array:
    numbers = data[header.size :].view(header.dtype)
    return numbers.reshape(header.shape[::-1]).T if header.fortran else numbers.reshape(header.shape)


def read_all(archive: Archive) -> dict[str, Array]:
    """Return all arrays by the names that NumPy gives them."""
    return {entry.removesuffix(".npy"): read_array(archive, entry) for entry in archive.entries}


def tensors(archive: Archive) -> Mapping[str, Tensor]:
    """Return all arrays by name, to be read later; what is no array of numbers is not looked at."""
    found = {}
    for entry in archive.entries:
        name, header = entry.removesuffix(".npy"), read_header(archive, entry)
        found[name] = _tensor(archive, entry, header)
    return found


def _tensor(archive: Archive, entry: str, header: Header) -> Tensor:
    dtype, shape = header.dtype, header.shape
    # bfloat16 of ml_dtypes is saved as two bytes without a type
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        return Tensor("void16", shape, not_real(f"{archive.name}: its entry {entry!r}", "2 bytes without a type"))
    if dtype.kind != "f" or dtype.itemsize > 8:
        return Tensor(dtype.name, shape, not_real(f"{archive.name}: its entry {entry!r}", dtype.name))

    def load() -> Array:
        array = _shaped(archive.read(entry), header)
        return native(array.astype(np.float32) if dtype.itemsize == 2 else array)

    return Tensor(dtype.name, shape, load)

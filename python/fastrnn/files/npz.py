"""Arrays of .npz files, by NumPy's format of .npy entries; no pickle, and no size that the entry does not have."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .archive import Archive
from .errors import FileError
from .tensors import Array, Bytes, Shape, Tensor, count, native, not_real

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: 2, 2: 4}  # bytes of the header's length, by version of the format
_MAX_HEADER = 10_000
_HEADER = re.compile(
    r"\{'descr': '([<>|=])([biufcUSV])(\d{1,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\),? ?\}\s*"
)


class Header(NamedTuple):
    """What stands before the numbers of a .npy entry."""

    dtype: np.dtype[Any]
    shape: Shape
    fortran: bool
    size: int  # of the header


def is_npz(archive: Archive) -> bool:
    """Whether all entries are arrays by their names."""
    return bool(archive.entries) and all(entry.endswith(".npy") for entry in archive.entries)


def read_header(archive: Archive, entry: str) -> Header | None:
    """Return the header of an entry, of which the entry's size is what it says; None for what holds no plain numbers.

    Raises
    ------
    FileError
        If it is no array, or says another size.
    """
    who = f"{archive.name}: its entry {entry.removesuffix('.npy')!r}"
    start = archive.start(entry, _MAX_HEADER)
    width = _LENGTHS.get(start[6] if len(start) > 6 else 0)
    if start[:6] != _MAGIC or width is None:
        raise FileError(f"{who} is no array in version 1 or 2 of the .npy format")
    size = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if size > len(start):
        raise FileError(f"{who} is no array: its header would take {size:,} bytes")
    match = _HEADER.fullmatch(start[8 + width : size].decode("latin-1"))
    if match is None or match[3] == "0":
        return None
    order, kind, items, fortran, axes = match.groups()
    try:
        dtype = np.dtype(f"{order}{kind}{items}")
    except (TypeError, ValueError) as error:
        raise FileError(f"{who} has a type that NumPy does not know: {error}") from error
    shape = tuple(int(n) for n in axes.replace(",", " ").split())
    have = archive.entries[entry].file_size
    if count(shape, who) * dtype.itemsize != have - size:
        raise FileError(f"{who} says {dtype} of shape {shape}, but {have - size:,} bytes follow")
    return Header(dtype, shape, fortran == "True", size)


def read_array(archive: Archive, entry: str) -> Array:
    """Return an entry as it is, in memory of its own."""
    header = read_header(archive, entry)
    if header is None:
        raise FileError(f"{archive.name}: its entry {entry.removesuffix('.npy')!r} holds Python objects or no numbers")
    return _shaped(archive.read(entry), header)


def _shaped(data: Bytes, header: Header) -> Array:
    numbers = data[header.size :].view(header.dtype)
    return numbers.reshape(header.shape[::-1]).T if header.fortran else numbers.reshape(header.shape)


def read_all(archive: Archive) -> dict[str, Array]:
    """Return all arrays by the names that NumPy gives them."""
    return {entry.removesuffix(".npy"): read_array(archive, entry) for entry in archive.entries}


def tensors(archive: Archive) -> Mapping[str, Tensor]:
    """Return all arrays by name, to be read later."""
    found = {}
    for entry in archive.entries:
        name, header = entry.removesuffix(".npy"), read_header(archive, entry)
        found[name] = _tensor(archive, entry, header)
    return found


def _tensor(archive: Archive, entry: str, header: Header | None) -> Tensor:
    who = f"{archive.name}: its entry {entry!r}"
    if header is None:
        return Tensor("object", (), not_real(who, "Python objects or no numbers"))
    dtype = header.dtype
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        return Tensor(dtype.name, header.shape, not_real(who, dtype.name))

    def load() -> Array:
        array = _shaped(archive.read(entry), header)
        return native(array.astype(np.float32) if dtype.itemsize == 2 else array)

    return Tensor(dtype.name, header.shape, load)

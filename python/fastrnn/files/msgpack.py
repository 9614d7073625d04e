"""Flax's files: MessagePack maps in maps, whose arrays are extensions of type 1 (shape, dtype, bytes).

https://github.com/msgpack/msgpack/blob/master/spec.md describes the format. Nothing is copied before an array is asked
for.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import Any

from .errors import FileError
from .tensors import LONGEST, REAL, Array, Budget, Bytes, Tensor, as_array, count, not_real

_DEPTH = 64
_NDARRAY = 1
_MEMBERS = 128  # of an array's header, more than any has
_CHUNKED = "__msgpack_chunked_array__"
_KINDS = ("bin", 0xC4, "BHI"), ("ext", 0xC7, "BHI"), ("str", 0xD9, "BHI"), ("array", 0xDC, "HI"), ("map", 0xDE, "HI")
# by the first byte: the kind of what follows, and how its length or value is packed
_SIZED = {first + i: (kind, form) for kind, first, forms in _KINDS for i, form in enumerate(forms)}
_NUMBERS = dict(enumerate("fdBHIQbhiq", start=0xCA))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def is_msgpack(data: Bytes) -> bool:
    """Whether a file starts with a map that has a text as its first key."""
    first, second = bytes(data[:1]), bytes(data[1:6])
    start = {b"\xde": 2, b"\xdf": 4}.get(first, 0 if first and 0x81 <= first[0] <= 0x8F else None)
    return (
        start is not None and len(second) > start and (0xA0 <= second[start] <= 0xBF or 0xD9 <= second[start] <= 0xDB)
    )


def read(name: str, data: Bytes) -> dict[str, Tensor]:
    """Return the arrays of a file, the keys on the way to each joined by slashes.

    Raises
    ------
    FileError
        If it is damaged, or an array is not as its header says.
    """
    reader, found, budget = _Reader(name, data), {}, Budget(name, data.size)
    for path, kind, value in reader.walk():
        if kind == "ext":
            budget.pay_path(path)
            found[path] = _tensor(f"{name}: its entry {path!r}", name, data, value)
    return found


def _tensor(who: str, name: str, data: Bytes, place: slice) -> Tensor:
    members = itertools.islice(_Reader(name, data[place]).walk(), _MEMBERS)
    parts = {path: value for path, _, value in members}
    shape = tuple(parts[path] for path in parts if path.startswith("0/"))
    dtype, numbers = parts.get("1"), parts.get("2")
    if not isinstance(dtype, str) or not isinstance(numbers, slice):
        raise FileError(f"{who} is no array of shape, dtype and bytes")
    size = count(shape, who)
    have = numbers.stop - numbers.start
    if dtype not in REAL:
        return Tensor(dtype, shape, not_real(who, dtype))
    if size * {"float64": 8, "float32": 4}.get(dtype, 2) != have:
        raise FileError(f"{who} says {dtype} of shape {shape} in {have:,} bytes")
    mine = data[place][numbers]

    def load() -> Array:
        return as_array(mine, dtype, shape)

    return Tensor(dtype, shape, load)


class _Reader:
    """Goes through values one after the other."""

    def __init__(self, name: str, data: Bytes) -> None:
        self._name, self._data, self._at = name, data, 0

    def _take(self, size: int) -> bytes:
        return bytes(self._data[self._skip(size)])

    def _skip(self, size: int) -> slice:
        start = self._at
        if start + size > self._data.size:
            raise FileError(f"{self._name} is cut off or damaged: it has no {size:,} bytes at {start:,}")
        self._at = start + size
        return slice(start, self._at)

    def _unpack(self, form: str) -> Any:
        return struct.unpack(">" + form, self._take(struct.calcsize(">" + form)))[0]

    def walk(self) -> Iterator[tuple[str, str, Any]]:
        """Yield path, kind and value of all that is no map and no array; bytes and Flax's arrays as where they lie."""
        open_: list[tuple[str, str, int, int]] = []  # path, kind, number of members, the next
        path = ""
        while True:
            kind, value = self._value()
            if kind in ("map", "array"):
                if len(open_) == _DEPTH:
                    raise FileError(f"{self._name} is nested deeper than {_DEPTH}")
                open_.append((path, kind, value, 0))
            elif kind != "ext" or value[0] == _NDARRAY:
                yield path, kind, value[1] if kind == "ext" else value
            while open_ and open_[-1][3] == open_[-1][2]:
                open_.pop()
            if not open_:
                break
            above, kind, size, i = open_[-1]
            open_[-1] = (above, kind, size, i + 1)
            key = self._key() if kind == "map" else str(i)
            path = f"{above}/{key}" if above else key
            if len(path) > LONGEST:
                raise FileError(f"{self._name}: the names on the way to {path[:40]!r}... are longer than {LONGEST}")
        if self._at != self._data.size:
            raise FileError(f"{self._name} is damaged: it goes on after its last value")

    def _key(self) -> str:
        kind, value = self._value()
        if kind != "value" or not isinstance(value, (str, int)):
            raise FileError(f"{self._name} has a key that is no text")
        if value == _CHUNKED:
            raise FileError(f"{self._name} holds an array in several chunks, as Flax writes those above 1 GB")
        return str(value)

    def _value(self) -> tuple[str, Any]:
        """Read one value: a number or text, the place of bytes, or how many members follow."""
        (first,) = self._take(1)
        if first <= 0x7F or first >= 0xE0:
            return "value", first if first <= 0x7F else first - 256
        if first <= 0x8F:
            return "map", first & 15
        if first <= 0x9F:
            return "array", first & 15
        if first <= 0xBF:
            return "value", self._text(first & 31)
        if first in _CONSTANTS:
            return "value", _CONSTANTS[first]
        if first in _NUMBERS:
            return "value", self._unpack(_NUMBERS[first])
        if 0xD4 <= first <= 0xD8:
            return self._extension(1 << (first - 0xD4))
        if first not in _SIZED:
            raise FileError(f"{self._name} is damaged: {first:#x} starts no value")
        kind, form = _SIZED[first]
        size = self._unpack(form)
        if kind == "ext":
            return self._extension(size)
        if kind == "str":
            return "value", self._text(size)
        return (kind, size) if kind in ("map", "array") else ("value", self._skip(size))

    def _extension(self, size: int) -> tuple[str, Any]:
        kind = self._unpack("b")
        return "ext", (kind, self._skip(size))

    def _text(self, size: int) -> str:
        return self._take(size).decode("utf-8", "replace")

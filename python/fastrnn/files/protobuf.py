"""The wire format of protobuf: the fields of a message, one after the other, where they lie.

The format is https://protobuf.dev/programming-guides/encoding/. What is not asked for is passed over and not read, so
that a message of many gigabytes costs as little as the fields that matter.
"""

import struct
from collections.abc import Iterator
from typing import Any

from .errors import FileError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTHS = {FIXED64: 8, FIXED32: 4}
MOST_NUMBERS = 4096  # in a list that is read


def fields(message: memoryview, who: str) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and value of each field: an int, or the bytes where they lie.

    Raises
    ------
    FileError
        If they end too early, or are none; `who` is called damaged then.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at, who)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(message, at, who)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at, who)
        elif wire in _WIDTHS:
            size = _WIDTHS[wire]
        else:
            raise FileError(f"{who}, or damaged: it has a field of the unknown kind {wire}")
        if size > end - at:
            raise FileError(f"{who}, or damaged: a field of {size:,} bytes has {end - at:,} left")
        yield number, wire, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int, who: str) -> tuple[int, int]:
    """Return an integer and where it ends."""
    found = 0
    for k in range(10):
        if at + k >= len(message):
            raise FileError(f"{who}, or damaged: it ends inside a number")
        byte = message[at + k]
        found |= (byte & 127) << (7 * k)
        if byte < 128:
            return found & (2**64 - 1), at + k + 1
    raise FileError(f"{who}, or damaged: a number in it has no end")


def signed(number: int) -> int:
    """Return an int64 of what a varint holds."""
    return number - 2**64 if number >= 2**63 else number


def text(value: int | memoryview | bytes, who: str) -> str:
    """Return a string.

    Raises
    ------
    FileError
        If it is none.
    """
    if isinstance(value, int):
        raise FileError(f"{who}, or damaged: it has a number in the place of text")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{who}, or damaged: it holds text that is not UTF-8") from error


def integers(wire: int, value: Any, who: str) -> list[int]:
    """Return what a repeated field of integers holds at one place: one, or several side by side."""
    if wire == VARINT:
        return [signed(value)]
    found, at = list[int](), 0
    while at < len(value):
        if len(found) == MOST_NUMBERS:
            raise FileError(f"{who}, or damaged: a list in it has more than {MOST_NUMBERS} numbers")
        number, at = _varint(value, at, who)
        found.append(signed(number))
    return found


def floats(value: Any, who: str) -> list[float]:
    """Return what a field of float32, also a repeated one, holds at one place."""
    if isinstance(value, int):
        raise FileError(f"{who}, or damaged: it has an integer in the place of other numbers")
    if len(value) % 4 or len(value) > 4 * MOST_NUMBERS:
        raise FileError(f"{who}, or damaged: a list in it has {len(value)} bytes")
    return list(struct.unpack(f"<{len(value) // 4}f", value))

"""HDF5 files as Keras writes them through h5py: old-style groups, whole datasets, texts as attributes.

A reader of its own, because the HDF5 library is not made for files that lie: it may crash or never return. The names
are those of the HDF5 File Format Specification, version 1.1, "Disk Format: Level 0 to 2", and its letters for sizes:
every address and length takes 8 bytes. Each step is paid from a budget that grows with the file, so that parts that
overlap or point back cost no more than the file's honest reading.
"""

import struct
from typing import Any, NamedTuple

from .errors import FileError
from .tensors import Array, Bytes, Order, Shape, Tensor, as_array, count, not_real

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1
_DEPTH = 64
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOLS = 0x1, 0x3, 0x7, 0x8, 0xC, 0x10, 0x11
_LINKS = (0x2, 0x6)  # of newer groups
_FLOATS = {(4, 8, 23): "float32", (8, 11, 52): "float64", (2, 5, 10): "float16", (2, 8, 7): "bfloat16"}


class Content(NamedTuple):
    """What a file holds, by paths without a slash at the start; that of the root is empty."""

    tensors: dict[str, Tensor]
    texts: dict[str, dict[str, str]]  # the attributes that are one text, by path and name


class _Message(NamedTuple):
    kind: int
    flags: int
    body: bytes


def is_hdf5(data: Bytes) -> bool:
    """Whether a file starts as HDF5 files do."""
    return bytes(data[:8]) == SIGNATURE


def read(name: str, data: Bytes) -> Content:
    """Return the datasets and texts of a file.

    Parameters
    ----------
    name
        Of the file, for errors.
    data
        Its bytes, mapped; float32 and float64 datasets stay there.

    Raises
    ------
    FileError
        If it is damaged, or uses more of HDF5 than Keras does: chunks, filters, links, data in other files.
    """
    return _Reader(name, data).run()


class _Reader:
    def __init__(self, name: str, data: Bytes) -> None:
        self._name, self._data = name, data
        self._budget = 10_000 + min(data.size // 4, 2**21)
        self._content = Content({}, {})

    def _refuse(self, what: str) -> FileError:
        return FileError(f"{self._name} is damaged: {what}")

    def _take(self, at: int, size: int) -> bytes:
        self._budget -= 1 + size // 64
        if self._budget < 0:
            raise self._refuse("its parts overlap or point back")
        if at + size > self._data.size:
            raise self._refuse(f"it has no {size:,} bytes at {at:,}")
        return bytes(self._data[at : at + size])

    def _unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self._take(at, struct.calcsize("<" + form)))

    def run(self) -> Content:
        version, offsets, lengths = self._data[8:9].tobytes(), self._data[13:14].tobytes(), self._data[14:15].tobytes()
        if version not in (b"\0", b"\1"):
            raise FileError(
                f"{self._name} is an HDF5 file of a newer kind than Keras writes; written again by h5py without "
                "libver='latest' it can be read"
            )
        if offsets != b"\x08" or lengths != b"\x08":
            raise self._refuse("its addresses do not have 8 bytes")
        (root,) = self._unpack("Q", 64 if version == b"\0" else 68)
        waiting, seen = [("", root)], {root}
        while waiting:
            path, address = waiting.pop()
            if path.count("/") >= _DEPTH:
                raise self._refuse(f"its groups are nested deeper than {_DEPTH}")
            for name, child in reversed(self._object(path, address)):
                below = f"{path}/{name}" if path else name
                if child in seen:
                    raise self._refuse(f"{below!r} is there twice")
                seen.add(child)
                waiting.append((below, child))
        return self._content

    def _object(self, path: str, address: int) -> list[tuple[str, int]]:
        """Read one object header; return the members if it is a group's."""
        messages = self._messages(path, address)
        kinds = {message.kind: message for message in messages}
        if shared := [m for m in messages if m.flags & 2 and m.kind in (_DATASPACE, _DATATYPE, _LAYOUT)]:
            raise self._refuse(f"{path!r} shares a message of kind {shared[0].kind}, which Keras' files do not")
        texts = {}
        for message in messages:
            if message.kind == _ATTRIBUTE and (text := self._attribute(message.body)):
                texts[text[0]] = text[1]
        self._content.texts[path] = texts
        if any(kind in kinds for kind in _LINKS):
            raise FileError(f"{self._name}: its group {path!r} holds links as newer HDF5 does, which are not followed")
        if _SYMBOLS in kinds:
            return self._members(path, kinds[_SYMBOLS].body)
        if _LAYOUT in kinds and _DATATYPE in kinds and _DATASPACE in kinds:
            self._content.tensors[path] = self._dataset(path, kinds)
        return []

    def _messages(self, path: str, address: int) -> list[_Message]:
        version, _, number, _, size = self._unpack("BBHII", address)
        if version != 1:
            raise self._refuse(f"{path!r} has no object header of version 1")
        blocks, found = [(address + 16, size)], list[_Message]()
        while blocks and len(found) < number:
            at, size = blocks.pop(0)
            end = at + size
            while at + 8 <= end and len(found) < number:
                kind, length, flags = self._unpack("HHB", at)
                body = self._take(at + 8, length)
                if kind == _CONTINUATION and length >= 16:
                    blocks.append(struct.unpack("<QQ", body[:16]))
                found.append(_Message(kind, flags, body))
                at += 8 + length
        return found

    def _members(self, path: str, body: bytes) -> list[tuple[str, int]]:
        if len(body) < 16:
            raise self._refuse(f"the group {path!r} has no symbol table")
        tree, heap = struct.unpack("<QQ", body[:16])
        mark, size, _, names = self._unpack("4s4xQQQ", heap)
        if mark != b"HEAP":
            raise self._refuse(f"the group {path!r} has no names")
        found: list[tuple[str, int]] = []
        waiting = [(tree, _DEPTH)]
        while waiting:
            at, depth = waiting.pop()
            mark, kind, level, used = self._unpack("4sBBH", at)
            if mark != b"TREE" or kind != 0 or depth == 0:
                raise self._refuse(f"the group {path!r} has no tree of members")
            for i in range(used):
                (child,) = self._unpack("Q", at + 32 + 16 * i)
                if level:
                    waiting.append((child, depth - 1))
                else:
                    found += self._symbols(path, child, names, size)
        return found

    def _symbols(self, path: str, at: int, names: int, size: int) -> list[tuple[str, int]]:
        mark, _, number = self._unpack("4sHH", at)
        if mark != b"SNOD":
            raise self._refuse(f"the group {path!r} has no table of members")
        found: list[tuple[str, int]] = []
        for i in range(number):
            offset, header, cache = self._unpack("QQI", at + 8 + 40 * i)
            if offset >= size:
                raise self._refuse(f"a member of {path!r} has no name")
            start = self._take(names + offset, min(size - offset, 1024, max(self._data.size - names - offset, 0)))
            name = start.partition(b"\0")[0].decode("utf-8", "replace")
            if cache == 2:
                raise FileError(f"{self._name}: {path}/{name} is a link to another place, which is not followed")
            found.append((name, header))
        return found

    def _dataset(self, path: str, kinds: dict[int, _Message]) -> Tensor:
        who = f"{self._name}: its dataset {path!r}"
        if _EXTERNAL in kinds:
            raise FileError(f"{who} has its numbers in another file, which is not opened")
        shape = self._shape(kinds[_DATASPACE].body, who)
        dtype, order, width = _datatype(kinds[_DATATYPE].body, who)
        if dtype is None:
            return Tensor("other", shape, not_real(who, "something else"))
        size = count(shape, who) * width
        at, have = self._place(kinds[_LAYOUT].body, who)
        if size == 0:
            at, have = 0, 0
        if have != size or at + size > self._data.size:
            raise FileError(f"{who} says {dtype} of shape {shape}, but has {have:,} bytes at {at:,} of the file")
        name, data = dtype, self._data[at : at + size]

        def load() -> Array:
            return as_array(data, name, shape, order)

        return Tensor(dtype, shape, load)

    def _place(self, body: bytes, who: str) -> tuple[int, int]:
        """Return where the numbers of a dataset lie and how many bytes they are."""
        version, kind = body[:2].ljust(2, b"\0")
        if version not in (3, 4) or kind != 1 or len(body) < 18:
            why = "in chunks or compressed, which Keras does not write" if kind == 2 else "in a way that is not known"
            raise FileError(f"{who} is stored {why}")
        address, size = struct.unpack("<QQ", body[2:18])
        if address == _UNDEFINED and size:
            raise FileError(f"{who} was never written")
        return address, size

    def _shape(self, body: bytes, who: str) -> Shape:
        version, rank = body[:2].ljust(2, b"\0")
        start = {1: 8, 2: 4}.get(version, 0)
        if not start or rank > 32 or len(body) < start + 8 * rank or (version == 2 and body[3] == 2):
            raise FileError(f"{who} has no shape")
        return struct.unpack(f"<{rank}Q", body[start : start + 8 * rank])

    def _attribute(self, body: bytes) -> tuple[str, str] | None:
        """Return the name and the text of an attribute that is one text, else None."""
        if len(body) < 9 or body[0] not in (1, 2, 3):
            return None
        version, _, name_size, type_size, space_size = struct.unpack("<BBHHH", body[:8])
        at = 9 if version == 3 else 8
        parts = []
        for size in (name_size, type_size, space_size):
            parts.append(body[at : at + size])
            at += size + (-size % 8 if version == 1 else 0)
        name, kind, space = parts
        value = body[at:]
        if len(kind) < 8 or len(space) < 2 or space[1] != 0:
            return None
        title = name.partition(b"\0")[0].decode("utf-8", "replace")
        if kind[0] & 15 == 3:
            text = value[: int.from_bytes(kind[4:8], "little")]
        elif kind[0] & 15 == 9 and kind[1] & 15 == 1 and len(value) >= 16:
            text = self._from_heap(*struct.unpack("<IQI", value[:16]))
        else:
            return None
        return title, text.rstrip(b"\0").decode("utf-8", "replace")

    def _from_heap(self, length: int, address: int, index: int) -> bytes:
        """Return an object of a global heap."""
        mark, size = self._unpack("4s4xQ", address)
        if mark != b"GCOL":
            raise self._refuse("a text is not where it should be")
        at, end = address + 16, min(address + size, self._data.size)
        while at + 16 <= end:
            number, _, have = self._unpack("HH4xQ", at)
            if number == index:
                return self._take(at + 16, min(length, have))
            if number == 0:
                break
            at += 16 + have + -have % 8
        raise self._refuse("a text is missing")


def _datatype(body: bytes, who: str) -> tuple[str | None, Order, int]:
    """Return dtype, byte order and bytes of one number; None for what is no real number."""
    if len(body) < 8:
        raise FileError(f"{who} has no type")
    size = int.from_bytes(body[4:8], "little")
    if body[0] & 15 != 1 or len(body) < 20:
        return None, "<", size
    exponent, mantissa = body[13], body[15]
    if body[1] & 0x40:
        return None, "<", size
    return _FLOATS.get((size, exponent, mantissa)), ">" if body[1] & 1 else "<", size

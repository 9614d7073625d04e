"""Zip archives that may lie: nothing is read that the sizes of the file do not allow."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Self

import numpy as np

from .errors import FileError
from .tensors import FACTOR, FREE, Bytes, Path, open_file

_DEFLATES = 1040  # bytes from one, at most

# What the standard library raises for damaged archives. RuntimeError: of encryption; NotImplementedError: of versions
# and kinds of compression; the others come from fields that lie.
_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError),
    *(struct.error, ValueError, OverflowError, IndexError),
)


class Archive:
    """The entries of a zip file, whose sizes are checked before anything is unpacked.

    Parameters
    ----------
    path
        The file. It stays open until the block ends that the archive is the context of.

    Raises
    ------
    FileError
        If it is no complete archive, or claims more than it can hold.
    """

    def __init__(self, path: Path) -> None:
        self.name = os.fspath(path)
        self._file = open_file(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._zip = zipfile.ZipFile(self._file)
            self.entries = self._checked()
        except _DAMAGES as error:
            self._file.close()
            if isinstance(error, FileError):
                raise
            raise FileError(f"{self.name} is no complete archive: {error}") from error

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        """Return the entries by name, which are each once and together not larger than the file can hold."""
        infos = self._zip.infolist()
        entries = {info.filename: info for info in infos}
        if len(entries) < len(infos):
            raise FileError(f"{self.name} is damaged: two of its entries have the same name")
        for info in infos:
            most = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATES)
            if info.compress_size > self.size or info.file_size > most:
                raise FileError(
                    f"{self.name} is damaged: its entry {info.filename!r} claims to be {info.file_size:,} bytes, "
                    f"packed {info.compress_size:,}, in a file of {self.size:,}"
                )
        total = sum(info.file_size for info in infos)
        if total > FREE + FACTOR * self.size:
            raise FileError(f"{self.name} has {self.size:,} bytes and claims to unpack to {total:,}: it is not read")
        return entries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def read(self, entry: str) -> Bytes:
        """Return the bytes of an entry, checked by its sum."""
        with self._reading(entry), self._zip.open(self._known(entry)) as stream:
            return self._take(stream, self.entries[entry].file_size)

    def start(self, entry: str, size: int) -> bytes:
        """Return the first bytes of an entry."""
        with self._reading(entry), self._zip.open(self._known(entry)) as stream:
            return stream.read(size)

    def _known(self, entry: str) -> zipfile.ZipInfo:
        """Return an entry that unpacks without taking more memory than what comes out."""
        info = self.entries[entry]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FileError(
                f"{self.name}: its entry {entry!r} has a compression of kind {info.compress_type}, which is not read"
            )
        return info

    def _take(self, stream: IO[bytes], size: int) -> Bytes:
        data = np.empty(size, np.uint8)
        view, done = data.data, 0
        while done < size:
            got = stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError(f"it ends after {done:,} of {size:,} bytes")
            done += got
        stream.read(1)  # the sum is compared when nothing is left
        return data

    def region(self, entry: str) -> tuple[int, int] | None:
        """Return where the bytes of an entry lie in the file and how many they are; None if they are compressed."""
        info = self.entries[entry]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return None
        with self._reading(entry):
            self._zip.open(info).close()  # compares the entry's own header with the directory's
            self._file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", self._file.read(4))
        begin = info.header_offset + 30 + name + extra
        if begin + info.file_size > self.size:
            raise FileError(f"{self.name}: its entry {entry!r} reaches beyond the end of the file")
        return begin, info.file_size

    @contextmanager
    def _reading(self, entry: str) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except _DAMAGES as error:
            raise FileError(f"{self.name} is damaged: {error} (entry {entry!r})") from error

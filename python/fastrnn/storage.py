"""Layers in files: .npz with the parameters and, as JSON, what is needed to make the layer again. No pickle."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .files.errors import FileError
from .files.tensors import open_file

if TYPE_CHECKING:
    from .files.archive import Archive

__all__ = ["FORMAT", "HEADER", "FileError", "Path", "naming", "read", "replacing", "try_folder", "write"]

Array = NDArray[Any]
Path = str | os.PathLike[str]

FORMAT = 1
HEADER = "fastrnn"  # the entry that holds the description


def write(path: Path, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a description and arrays; a file already there is replaced only when the new one is complete.

    Parameters
    ----------
    path
        The exact name; no ending is added.
    description
        What JSON can hold. The format's version is added to it.

    Raises
    ------
    OSError
        If the path cannot be written to. Nothing is changed then.
    """
    import json

    if os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"{os.fspath(path)} would hold an .npz archive: use fastrnn.save(path, layer) for safetensors")
    entries: dict[str, Any] = {HEADER: np.array(json.dumps({"format": FORMAT, **description})), **arrays}
    with replacing(path) as file:
        np.savez(file, **entries)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a new file to be written to, which takes the place of that of the name when the block is done.

    Raises
    ------
    OSError
        If the path cannot be written to. Nothing is changed then.
    """
    target = os.path.realpath(os.fspath(path))
    mode = _mode_of_target(target)
    # beside the target, as only within one file system a rename is atomic
    temporary = f"{target}.{os.urandom(4).hex()}.tmp"
    with open(temporary, "xb") as file, naming(target):
        try:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let errors of writing, such as that of a full disk, name the file."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, name) from error


def try_folder(path: Path) -> None:
    """Find out before the work whether a file of that name could be written where it is to be.

    Raises
    ------
    OSError
        That names the file, if not.
    """
    name = os.fspath(path)
    trial = f"{os.path.realpath(name)}.{os.urandom(4).hex()}.tmp"  # where write puts the new file, too
    try:
        open(trial, "xb").close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
    os.unlink(trial)


def _mode_of_target(target: str) -> int | None:
    """Return the permissions of a file that is to be replaced, None for a new one; refuse what is no writable file."""
    if not os.path.lexists(target):
        return None
    mode = os.stat(target).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{target} is a directory: give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise OSError(f"{target} is not a regular file and cannot be replaced by a saved layer")
    if not os.access(target, os.W_OK):
        raise PermissionError(f"{target} is write-protected and was not replaced")
    return stat.S_IMODE(mode)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the description and the arrays that `write` put into a file.

    Raises
    ------
    FileError
        If the file is something else, damaged, or of a newer format.
    OSError
        If it cannot be read.
    """
    import zipfile

    from .files import npz
    from .files.archive import Archive

    name = os.fspath(path)
    with open_file(path) as file:
        if not zipfile.is_zipfile(file):
            raise FileError(f"{name} is not a file that a fastrnn layer was saved to: it is no complete .npz archive")
    with Archive(path) as archive:
        described = description_in(archive)
        entries = npz.read_all(archive)
    del entries[HEADER]
    if described["format"] > FORMAT:
        raise FileError(
            f"{name} has format {described['format']}, written by a newer fastrnn; this one reads formats up to "
            f"{FORMAT}: upgrade fastrnn"
        )
    return described, entries


def description_in(archive: "Archive") -> dict[str, Any]:
    """Return the description that an archive holds.

    Raises
    ------
    FileError
        If it holds none.
    """
    import json

    from .files import npz

    foreign = f"{archive.name} is not a file that a fastrnn layer was saved to"
    if f"{HEADER}.npy" not in archive.entries:
        listed = ", ".join(entry.removesuffix(".npy") for entry in list(archive.entries)[:10])
        raise FileError(f"{foreign}: it has no entry {HEADER!r}, only {listed or 'nothing'}")
    try:
        description = json.loads(str(npz.read_array(archive, f"{HEADER}.npy")))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{foreign}: its entry {HEADER!r} is no JSON: {error}") from error
    if not isinstance(description, dict) or type(description.get("format")) is not int:
        raise FileError(f"{foreign}: its entry {HEADER!r} names no format")
    return description

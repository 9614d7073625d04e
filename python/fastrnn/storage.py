"""Layers in files: .npz with the parameters and, as JSON, what is needed to make the layer again. No pickle."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Path = str | os.PathLike[str]

FORMAT = 1
HEADER = "fastrnn"  # the entry that holds the description


class FileError(ValueError):
    """A file that holds no layer, or one that this version cannot read."""


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

    target = os.path.realpath(os.fspath(path))
    mode = _mode_of_target(target)
    entries: dict[str, Any] = {HEADER: np.array(json.dumps({"format": FORMAT, **description})), **arrays}
    # beside the target, as only within one file system a rename is atomic
    temporary = f"{target}.{os.urandom(4).hex()}.tmp"
    with open(temporary, "xb") as file, naming(target):
        try:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            np.savez(file, **entries)
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
    import json
    import zipfile
    import zlib

    name = os.fspath(path)
    foreign = f"{name} is not a file that a fastrnn layer was saved to"
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise FileError(f"{foreign}: it is no complete .npz archive")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                entries = {key: archive[key] for key in archive.files}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            # RuntimeError: what a damaged directory says of encryption, compression and versions
            raise FileError(f"{name} is damaged: {error}") from error
        except ValueError as error:  # an entry that is no array, or one of Python objects
            raise FileError(f"{foreign}: {error}") from error
    if HEADER not in entries:
        raise FileError(f"{foreign}: it has no entry {HEADER!r}, only {', '.join(entries) or 'nothing'}")
    try:
        description = json.loads(str(entries.pop(HEADER)))
    except json.JSONDecodeError as error:
        raise FileError(f"{foreign}: its entry {HEADER!r} is no JSON: {error}") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise FileError(f"{foreign}: its entry {HEADER!r} names no format")
    if description["format"] > FORMAT:
        raise FileError(
            f"{name} has format {description['format']}, written by a newer fastrnn; this one reads formats up to "
            f"{FORMAT}: upgrade fastrnn"
        )
    return description, entries

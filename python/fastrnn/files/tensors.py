"""Arrays of a file that are not read yet, and how their bytes become float32 or float64."""

import math
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import FileError

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Path = str | os.PathLike[str]
Shape = tuple[int, ...]
Order = Literal["<", ">"]  # little or big end first

MAX_AXES = 32
LONGEST = 4096  # characters of a path in a file
FACTOR, FREE = 20, 2**26  # how far a file may unpack: weights hardly shrink, and a small model may be all zeros
REAL = ("float64", "float32", "float16", "bfloat16")  # what becomes a parameter


class Tensor(NamedTuple):
    """One array of a file; `load` reads it, widened to float32 or float64, as memory that may be written to.

    What is of int8 stays so.
    """

    dtype: str  # NumPy's name, or one that NumPy lacks, such as bfloat16
    shape: Shape
    load: Callable[[], Array]


def map_file(path: Path) -> Bytes:
    """Return the bytes of a file by mapping: read when touched, and private to this process when written to.

    Raises
    ------
    FileError
        If it is no regular file.
    OSError
        If it cannot be opened.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


def open_file(path: Path) -> Any:
    """Open a regular file to be read; a pipe would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise FileError(f"{os.fspath(path)} is not a regular file")
    return open(path, "rb")


class Budget:
    """How much may be made of a file beside what is mapped, by its size: files can name the same bytes many times."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._bytes, self._characters = 2 * (FREE + FACTOR * size), 2**22 + 4 * size

    def pay(self, array: Array) -> Array:
        """Return the array; one that lies in the mapped file costs nothing.

        Raises
        ------
        FileError
            If that is more than the budget.
        """
        self._bytes -= 0 if _is_mapped(array) else array.nbytes
        if self._bytes < 0:
            raise FileError(f"{self._name} has {self._size:,} bytes and its layers far more: it is not read")
        return array

    def pay_path(self, path: str) -> None:
        """Count the characters of a path, which is composed of names in the file.

        Raises
        ------
        FileError
            If it is too long, or that is more than the budget.
        """
        self._characters -= len(path)
        if len(path) > LONGEST or self._characters < 0:
            what = f"longer than {LONGEST} characters, or too many such"
            raise FileError(f"{self._name}: the names on the way to {path[:40]!r}... are {what}")


def _is_mapped(array: Array) -> bool:
    owner: Any = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner is not None


def count(shape: Sequence[int], who: str) -> int:
    """Return the number of elements of a shape that a file names.

    Raises
    ------
    FileError
        If it is no shape.
    """
    if len(shape) > MAX_AXES or not all(isinstance(n, int) and 0 <= n < 2**62 for n in shape):
        raise FileError(f"{who} has no shape that an array can have")
    return math.prod(shape)


def as_array(data: Bytes, dtype: str, shape: Shape, order: Order = "<") -> Array:
    """Return bytes as an array of float32 or float64: of one of these as they lie, else widened.

    Parameters
    ----------
    data
        Exactly the bytes of the array, in C order.
    dtype
        One of `REAL`.
    order
        Of the bytes of a number.
    """
    if dtype == "bfloat16":
        wide = data.view(f"{order}u2").astype(np.uint32)
        return (wide << 16).view(np.float32).reshape(shape)
    array = data.view(np.dtype(dtype).newbyteorder(order)).reshape(shape)
    return array.astype(np.float32) if dtype == "float16" else native(array)


def native(array: Array) -> Array:
    """Return an array of this machine's byte order in aligned memory, itself where it is that already."""
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def not_real(who: str, dtype: str) -> Callable[[], Array]:
    """Return what `Tensor.load` is of an array that no parameter can be made of."""

    def refuse() -> Array:
        raise FileError(f"{who} holds {dtype}; parameters are real numbers: {', '.join(REAL)}")

    return refuse

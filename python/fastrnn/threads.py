"""How many threads a call may use: one number for the process, another for a block of code."""

import operator
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ._core import available_threads

MOST = 1024

_process: int | None = None  # as set, or as FASTRNN_NUM_THREADS says
_asked = False  # whether that variable was looked at
_default: int | None = None  # where nobody set a number, once asked for
_block: ContextVar[int | None] = ContextVar("fastrnn threads", default=None)


def _read(n: int) -> int:
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"the number of threads must be an integer, got {n!r}")
    count = operator.index(n)
    if not 1 <= count <= MOST:
        raise ValueError(f"the number of threads must be in 1..{MOST}, got {count}")
    return count


def _own_variable() -> int | None:
    """Return what FASTRNN_NUM_THREADS says."""
    own = os.environ.get("FASTRNN_NUM_THREADS", "").strip()
    if not own:
        return None
    if not (own.isascii() and own.isdigit() and 1 <= int(own) <= MOST):
        raise ValueError(f"FASTRNN_NUM_THREADS is {own!r} but must be an integer in 1..{MOST}: correct or unset it")
    return int(own)


def _by_default() -> int:
    # OpenMP allows a list, one number per nesting level; the variable is not ours, so a bad value is no error.
    theirs = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if theirs:
        if theirs.isascii() and theirs.isdigit() and 1 <= int(theirs) <= MOST:
            return int(theirs)
        warnings.warn(
            f"OMP_NUM_THREADS starts with {theirs!r}, not an integer in 1..{MOST}, and is ignored; "
            f"fastrnn uses {available_threads()} threads",
            RuntimeWarning,
            stacklevel=3,
        )
    return available_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in the whole process.

    Parameters
    ----------
    n
        At least 1. More than the machine has processors is allowed and slower.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer in 1..1024.
    """
    global _process
    _process = _read(n)


def get_num_threads() -> int:
    """Return how many threads a call made here may use.

    That is the number of the innermost ``threads(n)`` block of this thread; else of ``set_num_threads``; else of the
    environment variable FASTRNN_NUM_THREADS; else of OMP_NUM_THREADS; else the number of processors this process may
    use. The environment is read once, when the number is first needed.

    Raises
    ------
    ValueError
        If FASTRNN_NUM_THREADS is not an integer in 1..1024.
    """
    global _default
    n = limit()
    if n is not None:
        return n
    if _default is None:
        _default = _by_default()
    return _default


def limit() -> int | None:
    """Return the number of threads that fastrnn was told to use here; None if nobody told.

    Raises
    ------
    ValueError
        If FASTRNN_NUM_THREADS is not an integer in 1..1024.
    """
    global _process, _asked
    n = _block.get()
    if n is not None:
        return n
    if _process is None and not _asked:
        _process = _own_variable()
        _asked = True
    return _process


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Limit the calls in a block to n threads; other Python threads are not affected.

    Parameters
    ----------
    n
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If n is not an integer in 1..1024.

    Examples
    --------
    >>> with fastrnn.threads(1):
    ...     y, state = layer(x)
    """
    token = _block.set(_read(n))
    try:
        yield
    finally:
        _block.reset(token)

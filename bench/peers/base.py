"""What every side of a comparison has."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..grid.problems import Problem
from ..grid.shapes import Point

Array = NDArray[Any]


class Job(NamedTuple):
    """A point made ready by one side.

    Attributes
    ----------
    run : callable
        Computes once; what it returns is complete and in host memory.
    read : callable
        Makes arrays of what `run` returned, by name: y, the final states h and c, dx and "d" + a parameter's name.
        Not timed. y has to be there, of the rest what this side gives.
    around : callable
        A context that a user enters once for many runs.
    """

    run: Callable[[], Any]
    read: Callable[[Any], dict[str, Array]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def results(self) -> dict[str, Array]:
        """Compute once and read."""
        with self.around():
            return self.read(self.run())


class Peer(ABC):
    """Another implementation, imported when it is made; ImportError if it is not installed.

    Attributes
    ----------
    key, title, short : str
        What ``--peers`` takes, what tables show, and the head of a narrow column.
    needs : str
        What to install.
    tolerance : float or None
        For a side that rounds on purpose: what its results may differ by; it is never the best.
    weights : {"int8", "bfloat16"} or None
        What such a side keeps its matrices as.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    short: ClassVar[str]
    needs: ClassVar[str]
    tolerance: ClassVar[float | None] = None
    weights: ClassVar[str | None] = None
    version: str

    @abstractmethod
    def __init__(self, threads: int) -> None: ...

    @classmethod
    @abstractmethod
    def unsupported(cls, point: Point) -> str | None:
        """Say why it has nothing to compare at this point; None if it has."""

    @abstractmethod
    def job(self, problem: Problem) -> Job:
        """Prepare everything that a user would prepare once."""

    def forget(self) -> None:
        """Drop what was kept for the jobs so far."""
        return


def gradient_names(names: list[str]) -> list[str]:
    """The results' names of the gradients of these parameters."""
    return [f"d{name}" for name in names]


def contiguous(array: Array) -> Array:
    """The array, copied if its rows do not follow each other."""
    return np.ascontiguousarray(array)

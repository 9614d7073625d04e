"""A program in two versions, and how they are measured."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..grid.timing import MismatchError, compare, settle, undisturbed
from ..peers.base import Job
from .result import InSituResult

RUNS = 5
FEWEST_PAIRS = 3
WARM_UPS = 3
SAME = 1e-3  # losses after some steps of training, and outputs, relative to the largest


class Stopwatch:
    """Adds up the seconds between start and stop, for the call at hand."""

    def __init__(self) -> None:
        self.seconds = self.since = 0.0

    def start(self) -> None:
        self.since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.since


@dataclass
class Side:
    """One version of a program.

    Attributes
    ----------
    run : callable
        One call of the whole; returns what is compared: outputs, or the loss of a training step.
    watch : Stopwatch
        Runs while the recurrent part does; stands still where that cannot be told from the rest.
    around : callable
        A context that a user enters once for many calls.
    """

    run: Callable[[], Any]
    watch: Stopwatch = field(default_factory=Stopwatch)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def timed(self) -> tuple[float, float]:
        """Seconds of one call, and of its recurrent part."""
        self.watch.seconds = 0.0
        with self.around():
            begin = time.perf_counter()
            self.run()
            return time.perf_counter() - begin, self.watch.seconds


@dataclass
class Pair:
    """Both versions, ready to run, and the recurrent part of each by itself, where it can be taken out."""

    plain: Side
    fast: Side
    alone: tuple[Job, Job] | None = None  # fastrnn's first


@dataclass(frozen=True)
class Program:
    """A program by name.

    Attributes
    ----------
    build : callable
        Makes the pair for so many threads; ImportError where something is missing.
    threads_from : int
        The least number of threads at which there is something to compare.
    always : bool
        Whether it is measured without being named.
    """

    name: str
    build: Callable[[int], Pair]
    threads_from: int = 1
    always: bool = True

    def measure(self, threads: int, seconds: float) -> InSituResult:
        """Verify, then time: runs of pairs of calls, the two versions by turns. What goes wrong is in the result."""
        try:
            pair = self.build(threads)
            _verify(pair)
            return InSituResult(self.name, threads, *_runs(pair, seconds), alone=_alone(pair, seconds))
        except ImportError as error:
            return InSituResult(self.name, threads, skipped=str(error))
        except Exception as error:  # of whatever kind: the other programs go on
            return InSituResult(self.name, threads, failed=f"{type(error).__name__}: {error}")


def _verify(pair: Pair) -> None:
    for _ in range(WARM_UPS):
        found = []
        for side in (pair.plain, pair.fast):
            with side.around():
                found.append(np.asarray(side.run(), dtype=np.float64))
        error = float(np.max(np.abs(found[0] - found[1])) / (np.max(np.abs(found[0])) or 1.0))
        if not error <= SAME:
            raise MismatchError(f"the two versions differ by {error:.1e}, more than {SAME:.0e}")


def _runs(pair: Pair, seconds: float) -> tuple[list[float], list[float], float, float]:
    """Ratios of whole calls and of their recurrent parts, one of each run; median seconds of a call of each version."""
    whole, inside = [], []
    calls: tuple[list[float], list[float]] = ([], [])
    with undisturbed():
        for _ in range(RUNS):
            times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
            settle()
            for side in (pair.plain, pair.fast):
                side.timed()  # a run begins after a rest, a call of a program in the middle of it
            end = time.perf_counter() + seconds
            while len(times[0]) < FEWEST_PAIRS or time.perf_counter() < end:
                for side, seen in zip((pair.plain, pair.fast), times, strict=True):
                    seen.append(side.timed())
            plain, fast = (np.median(seen, axis=0) for seen in times)
            whole.append(float(plain[0] / fast[0]))
            if fast[1] > 0:
                inside.append(float(plain[1] / fast[1]))
            calls[0].append(float(plain[0]))
            calls[1].append(float(fast[0]))
    return whole, inside, statistics.median(calls[0]), statistics.median(calls[1])


def _alone(pair: Pair, seconds: float) -> float | None:
    """The ratio of the recurrent part by itself, each version in calls of its own after a rest."""
    if pair.alone is None:
        return None
    return compare(*pair.alone, seconds, False, lambda: None).ratio

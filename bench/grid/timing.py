"""Verify, then time: two sides turn by turn in one process, so that what disturbs one disturbs the other."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..peers.base import Job

Array = NDArray[Any]

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # sums of some thousand terms in another order
SAMPLE = 200e-6  # seconds of calls that the clock resolves well
TURN = 10e-3
SLOW_TURNS, FEWEST_TURNS, MOST_TURNS = 2, 3, 60
SLOW = 4.0  # times our time: the ratio of such a peer needs no third digit
LONG = 1.0  # seconds of a pair of turns from where such a peer gets one only


class MismatchError(AssertionError):
    """The two sides do not compute the same."""


@dataclass(frozen=True)
class Times:
    """Seconds of a call: median, 10th and 90th percentile of `samples`; processors kept busy meanwhile."""

    median: float
    low: float
    high: float
    samples: int
    processors: float


@dataclass(frozen=True)
class Comparison:
    """Both sides' times from one interleaved measurement."""

    ours: Times
    peer: Times

    @property
    def ratio(self) -> float:
        return self.peer.median / self.ours.median


def verify(ours: dict[str, Array], peer: dict[str, Array], tolerance: float) -> float:
    """Return the largest difference, relative to the largest magnitude of each result that both sides give.

    Raises
    ------
    MismatchError
        If it passes the tolerance, or if shapes differ.
    """
    worst = 0.0
    for name in sorted(ours.keys() & peer.keys() | {"y"}):
        a, b = ours[name], peer[name]
        if a.shape != b.shape:
            raise MismatchError(f"{name} has shape {b.shape}, fastrnn's {a.shape}")
        largest = float(np.max(np.abs(a), initial=0.0))
        error = float(np.max(np.abs(a - b), initial=0.0)) / (largest or 1.0)
        if not error <= tolerance:
            raise MismatchError(f"{name} differs by {error:.1e} of its magnitude, more than {tolerance:.0e}")
        worst = max(worst, error)
    return worst


def settle(most: float = 0.5) -> None:
    """Wait until the other threads of this process sleep: those of a pool spin for a while after their last task.

    Their state is asked, not the process's CPU clock, to which the system adds a running thread's time at its next tick
    only. ONNX Runtime's threads spin for tens of milliseconds.
    """
    end = time.perf_counter() + most
    quiet = 0
    while quiet < 2 and time.perf_counter() < end:
        time.sleep(1e-3)
        quiet = 0 if _others_run() else quiet + 1


def _others_run() -> bool:
    mine = threading.get_native_id()
    for thread in os.listdir("/proc/self/task"):
        if int(thread) == mine:
            continue
        with suppress(OSError), open(f"/proc/self/task/{thread}/stat") as stat:  # it may have ended
            if stat.read().rpartition(")")[2].split()[0] == "R":
                return True
    return False


class Clock:
    """One side's job, timed in turns of some milliseconds; very short calls in runs that the clock resolves.

    Parameters
    ----------
    job : Job
        What is timed.
    alone : bool
        Whether the process has one thread only, and nothing to wait for between turns.
    """

    def __init__(self, job: Job, alone: bool) -> None:
        self.job, self.alone = job, alone
        self.calls = 1
        self.seen: list[float] = []
        self.wall = self.busy = 0.0
        with job.around():
            self.estimate = self._time(1)
            while self.estimate < TURN:  # the first call may be a cold one
                self.calls = max(1, round(SAMPLE / self.estimate))
                before, self.estimate = self.estimate, self._time(self.calls)
                if self.estimate > 0.7 * before:
                    break

    @property
    def cost(self) -> float:
        """About the seconds of a turn."""
        return max(TURN, self.estimate) + self._warm_ups() * self.estimate + (0 if self.alone else 10e-3)

    def turn(self) -> None:
        """Time some calls, the caches warm and the other side's threads asleep."""
        if not self.alone:
            settle()
        with self.job.around():
            for _ in range(self._warm_ups()):
                self.job.run()
            begin, busy = time.perf_counter(), time.process_time()
            while True:
                self.seen.append(self._time(self.calls))
                if time.perf_counter() - begin > TURN:
                    break
            self.wall += time.perf_counter() - begin
            self.busy += time.process_time() - busy

    def times(self) -> Times:
        low, median, high = np.quantile(self.seen, (0.1, 0.5, 0.9)).tolist()
        return Times(median, low, high, len(self.seen), self.busy / self.wall)

    def _warm_ups(self) -> int:
        """A call that takes long spends little of it on a cold start."""
        return 2 if self.estimate < 5e-3 else 1 if self.estimate < 50e-3 else 0

    def _time(self, calls: int) -> float:
        run = self.job.run
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - begin) / calls


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def compare(ours: Job, peer: Job, seconds: float, alone: bool, between: Callable[[], None]) -> Comparison:
    """Time both in turns for about that long, but three turns of each at least; a much slower peer gets less.

    Parameters
    ----------
    ours, peer : Job
        The two sides.
    seconds : float
        How long.
    alone : bool
        As for `Clock`.
    between : callable
        Called before every pair of turns.
    """
    with undisturbed():
        clocks = [Clock(ours, alone), Clock(peer, alone)]
        cost = sum(clock.cost for clock in clocks)
        turns = min(max(round(seconds / cost), FEWEST_TURNS), MOST_TURNS)
        if clocks[1].estimate > SLOW * clocks[0].estimate:
            turns = SLOW_TURNS if cost < LONG else 1
        for _ in range(turns):
            between()
            for clock in clocks:
                clock.turn()
            clocks.reverse()  # so that neither always comes first
        mine, other = sorted(clocks, key=lambda clock: clock.job is not ours)
        return Comparison(mine.times(), other.times())

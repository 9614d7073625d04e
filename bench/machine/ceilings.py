"""What the machine can do at best: peaks of products, and read bandwidth by working set, measured through the core."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrnn import _core

from ..grid.shapes import DType

DTYPES: tuple[DType, ...] = ("float32", "float64")
WEIGHTS = ("int8", "bfloat16")
WORKING_SETS = tuple(kb << 10 for kb in (16, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10))
RUN = 2e-3  # seconds of one measurement; the best of several counts, since a ceiling is a maximum
RUNS = 9
LINE = 64


@dataclass(frozen=True)
class Ceilings:
    """Of some threads that all work at once.

    Attributes
    ----------
    peak : dict of str to float
        Multiplications and additions per second of all threads together, by dtype, and of products with weights of int8
        and bfloat16, where results of older versions have none.
    bandwidth : dict of int to float
        Bytes per second that one of the threads reads, by the bytes of its own working set.
    """

    threads: int
    peak: dict[str, float]
    bandwidth: dict[int, float]

    def read_bandwidth(self, size: float) -> float:
        """Bytes per second of one thread with this working set; between the measured ones by its logarithm."""
        sizes = sorted(self.bandwidth)
        return float(np.interp(math.log(max(size, 1)), np.log(sizes), [self.bandwidth[s] for s in sizes]))

    def to_json(self) -> dict[str, Any]:
        bandwidth = {str(size): rate for size, rate in self.bandwidth.items()}
        return {"threads": self.threads, "peak": self.peak, "bandwidth": bandwidth}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Ceilings":
        return Ceilings(data["threads"], data["peak"], {int(size): rate for size, rate in data["bandwidth"].items()})


def _timed(work: Callable[[int], float], count: int) -> tuple[float, float]:
    """What the work says it did, and the seconds it took."""
    begin = time.perf_counter()
    done = work(count)
    return done, time.perf_counter() - begin


def _rate(work: Callable[[int], float], count: int) -> float:
    done, seconds = _timed(work, count)
    return done / seconds


def _count(work: Callable[[int], float], seconds: float) -> int:
    """How many rounds of the work take that long.

    The least of three times counts: a thread that was interrupted once would otherwise get far too few rounds.
    """
    count = 1
    while True:
        took = min(_timed(work, count)[1] for _ in range(3))
        if took > seconds / 4:
            return max(1, round(count * seconds / took))
        count *= 4


def _together(works: list[Callable[[], float]]) -> list[float]:
    """Run one work per thread, all from the same moment."""
    if len(works) == 1:
        return [works[0]()]
    results = [0.0] * len(works)
    start = threading.Barrier(len(works))

    def run(i: int) -> None:
        start.wait()
        results[i] = works[i]()

    team = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    return results


class PeakMeter:
    """Measures a peak of some threads, again and again: the clock of a shared machine moves.

    Parameters
    ----------
    kind : str
        One of `DTYPES` or `WEIGHTS`.
    """

    def __init__(self, threads: int, kind: str, seconds: float = RUN) -> None:

        def work(count: int) -> float:
            return _core.narrow_loop(count, kind) if kind in WEIGHTS else _core.fma_loop(count, kind)

        count = _count(work, seconds)
        self.works: list[Callable[[], float]] = [lambda: _rate(work, count)] * threads

    def read(self) -> float:
        """Operations per second of all threads together, now."""
        return sum(_together(self.works))


def _aligned(size: int) -> NDArray[np.float32]:
    """So many bytes that begin with a cache line: a vector across two of them is read at half the rate."""
    whole = np.ones(size + LINE, np.uint8)  # written, as pages that were only promised are all the same one
    start = -whole.ctypes.data % LINE
    return whole[start : start + size].view(np.float32)


def _reader(size: int) -> Callable[[], float]:
    """Reads an array of its own again and again; returns the rate."""
    array = _aligned(size)

    def work(count: int) -> float:
        return _core.read_loop(array, count)

    count = _count(work, RUN)
    return lambda: _rate(work, count)


def _bandwidth(threads: int, size: int) -> float:
    """The rate of each of the threads, every one with its own array."""
    works = [_reader(size) for _ in range(threads)]
    return max(sum(_together(works)) / threads for _ in range(RUNS))


def measure(threads: int) -> Ceilings:
    """Measure the peak of every kind and the bandwidth of every working set; takes about a second."""
    peak: dict[str, float] = {}
    for kind in (*DTYPES, *WEIGHTS):
        if kind in WEIGHTS and not _core.narrow_loop(1, kind):  # they become float32 first
            peak[kind] = peak["float32"]
            continue
        meter = PeakMeter(threads, kind)
        peak[kind] = max(meter.read() for _ in range(RUNS))
    return Ceilings(threads, peak, {size: _bandwidth(threads, size) for size in WORKING_SETS})

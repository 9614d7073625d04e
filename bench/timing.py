"""Verify, then time: two callables turn by turn in one process, so that what disturbs one disturbs the other."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Sequence[NDArray[Any]]]
TOLERANCE = 1e-4  # of the largest magnitude: float32 sums of some thousand terms in another order


class MismatchError(AssertionError):
    """The two sides do not compute the same."""


@dataclass(frozen=True)
class Times:
    """Seconds a call: median, and 10th and 90th percentile."""

    median: float
    low: float
    high: float


def verify(ours: Call, peer: Call) -> None:
    """Raise MismatchError if the results differ by more than rounding."""
    left, right = ours(), peer()
    if len(left) != len(right):
        raise MismatchError(f"{len(left)} results against {len(right)}")
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        error = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        if not error <= TOLERANCE:
            raise MismatchError(f"result {i} differs by {error:.1e} of its magnitude")


def compare(ours: Call, peer: Call, seconds: float) -> tuple[Times, Times]:
    """Time both for that long; short calls are timed in runs of about 200 us, which the clock resolves well."""
    repeats = [_repeats(call) for call in (ours, peer)]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, n, seen in zip((ours, peer), repeats, times, strict=True):
            seen.append(_run(call, n))
    return _summary(times[0]), _summary(times[1])


def alone(call: Call, seconds: float) -> Times:
    """Time one side by itself: a stream of steps that finds its weights in the cache."""
    n, seen = _repeats(call), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(seen) < 5:
        seen.append(_run(call, n))
    return _summary(seen)


def _run(call: Call, n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def _repeats(call: Call) -> int:
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    return max(1, int(200e-6 / max(time.perf_counter() - start, 1e-7)))


def _summary(seen: list[float]) -> Times:
    tenths = statistics.quantiles(seen, n=10, method="inclusive")
    return Times(statistics.median(seen), tenths[0], tenths[-1])

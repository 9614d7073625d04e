"""What fastrnn promises about itself, checked by pairs of its own calls, turn by turn in one process.

A ratio is the second time over the first unless the claim's note says otherwise.
"""

import functools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import fastrnn
from fastrnn import _core

from ..grid.problems import Problem
from ..grid.shapes import CELLS, Cell, Mode, Point
from ..grid.timing import Clock, compare, undisturbed
from ..peers.base import Job
from ..peers.ours import FastRNN
from ..report.results import ClaimResult
from . import dropin, heads, language
from .memory import MEMORY_POINT, allowed_bytes

TINY = 1e-36  # what scales float32 so that gradients and states vanish into subnormal numbers
TWO_THREADS = 1.7
WORTH = 20e-6  # seconds of a step on one thread from where two threads have to pay
NOISE = 0.03
AGAIN = 3  # how often what is missed is measured again


@dataclass(frozen=True)
class Claim:
    """One promise.

    Attributes
    ----------
    measure : callable
        Takes about the seconds it may last; returns the figure, or a pair of it and the limit that applies to it.
        ImportError where it needs a peer that is missing.
    """

    name: str
    measure: Callable[[float], float | tuple[float, float]]
    limit: float
    at_most: bool
    unit: str
    note: str = ""

    def check(self, seconds: float) -> ClaimResult:
        """Measure it, and if it is missed again; the median counts. What goes wrong is named in the result."""
        result = ClaimResult(self.name, None, self.limit, self.at_most, self.unit)
        figures: list[float] = []
        try:
            while len(figures) <= AGAIN:
                found = self.measure(seconds)
                figure, limit = found if isinstance(found, tuple) else (found, self.limit)
                figures.append(figure)
                result = replace(result, measured=statistics.median(figures), limit=limit)
                if len(figures) == 1 and result.verdict == "ok":
                    break
            return result
        except ImportError as error:
            return replace(result, measured=None, skipped=str(error))
        except Exception as error:  # of whatever kind: the other claims go on
            return replace(result, measured=None, failed=f"{type(error).__name__}: {error}")


def _job(point: Point) -> Job:
    return FastRNN(point.threads).job(Problem(point))


def _on(threads: int, run: Callable[[], Any]) -> Job:
    """A job of its own number of threads, set once for a turn."""
    return Job(run, lambda done: {}, lambda: fastrnn.threads(threads))


def _ratio(first: Job, second: Job, seconds: float, alone: bool = False) -> float:
    """The second's time over the first's, in turns."""
    return compare(first, second, seconds, alone, lambda: None).ratio


def _point(cell: Cell, mode: Mode, T: int, B: int, H: int) -> Point:
    return Point(cell, mode, T, B, H, H)


# Resets and lengths


def _resets(point: Point, seconds: float) -> float:
    return _ratio(_job(point), _job(replace(point, variant="reset")), seconds, alone=True)


def _lengths(point: Point, seconds: float) -> float:
    """Time per valid token over that of a dense run."""
    short = replace(point, variant="lengths")
    ratio = _ratio(_job(point), _job(short), seconds, alone=True)
    return ratio * float(point.rows.sum()) / float(short.rows.sum())


def _packed(point: Point, seconds: float) -> float:
    """PyTorch's packed sequences over ours."""
    from ..peers.pytorch import PyTorch

    problem = Problem(replace(point, variant="lengths"))
    return _ratio(FastRNN(1).job(problem), PyTorch(1).job(problem), seconds, alone=True)


# Cells with options


def _variant(options: dict[str, Any], mode: Mode, H: int, seconds: float) -> float:
    """Time of an LSTM with options over that of one without."""
    x = np.random.default_rng(0).standard_normal((100, 16, H), dtype=np.float32)

    def job(layer: fastrnn.LSTM) -> Job:
        def train() -> Any:
            y, _, tape = layer.forward(x)
            return layer.backward(tape, y)

        return _on(1, train if mode == "training" else lambda: layer(x))

    return _ratio(job(fastrnn.LSTM(H, H, rng=0)), job(fastrnn.LSTM(H, H, rng=0, **options)), seconds)


# Subnormal numbers


def _vanishing(point: Point, scale_x: float, scale_dy: float) -> Job:
    """The point without biases, its input and gradient scaled: nothing keeps states or gradients up."""
    layer = getattr(fastrnn, point.cell)(point.I, point.H, bias=False, rng=0)
    problem = Problem(point)
    x, dy = problem.x * np.float32(scale_x), problem.dy * np.float32(scale_dy)
    if point.mode == "inference":
        frozen = layer.freeze()
        return _on(1, lambda: frozen(x))
    return _on(1, lambda: layer.backward(layer.forward(x, training=True)[2], dy))


def _denormals(point: Point, scale_x: float, scale_dy: float, seconds: float) -> float:
    return _ratio(_vanishing(point, 1, 1), _vanishing(point, scale_x, scale_dy), seconds, alone=True)


def _mode_changed(seconds: float) -> float:
    """How many of the caller's subnormal results are lost after calls of all kinds on one and two threads."""
    del seconds
    subnormal = np.full(64, 1e-40, np.float32)
    lost = 0
    for cell in CELLS:
        for threads in (1, 2):
            for mode in ("inference", "training"):
                with fastrnn.threads(threads):
                    _vanishing(_point(cell, mode, 20, 16, 64), TINY, TINY).run()
                lost += int(np.count_nonzero(subnormal * np.float32(0.5) == 0))
    return float(lost)


# Threads


def _two_against_one(point: Point, seconds: float) -> tuple[float, float]:
    """One thread's time over two threads', and the least: where steps are short it only must not be slower.

    Two directions share nothing, so that they have to gain at any length.
    """
    run = _job(point).run
    found = compare(_on(2, run), _on(1, run), seconds, False, lambda: None)
    owes = point.bidirectional or found.peer.median / point.T >= WORTH
    return found.ratio, TWO_THREADS if owes else 1 - NOISE


def _alternating(seconds: float) -> float:
    """PyTorch's and our call by turns, over the sum of each alone."""
    from ..peers.pytorch import PyTorch

    point = replace(_point("LSTM", "inference", 25, 16, 256), threads=2)
    problem = Problem(point)
    ours, peer = FastRNN(2).job(problem), PyTorch(2).job(problem)

    def both() -> None:
        ours.run()
        peer.run()

    jobs = [Job(ours.run, ours.read, peer.around), peer, Job(both, ours.read, peer.around)]
    with undisturbed():
        clocks = [Clock(job, alone=False) for job in jobs]
        for _ in range(max(5, round(seconds / sum(clock.cost for clock in clocks)))):
            for clock in clocks:
                clock.turn()
    first, second, together = (clock.times().median for clock in clocks)
    return together / (first + second)


# Instruction sets, latency, memory


def _avx2(point: Point, seconds: float) -> float:
    """AVX-512's time over that of AVX2."""
    for isa in ("avx512", "avx2"):
        if isa not in _core.isas():
            raise ImportError(f"this machine or this build has no {isa}")
    jobs = []
    for isa in ("avx2", "avx512"):
        problem = Problem(point)
        problem.layer._use_isa(isa)
        jobs.append(FastRNN(1).job(problem))
    return _ratio(jobs[0], jobs[1], seconds, alone=True)


def _microseconds(point: Point, seconds: float) -> float:
    """A stream of such calls and nothing else."""
    with undisturbed():
        clock = Clock(_job(point), alone=True)
        for _ in range(max(5, round(seconds / clock.cost))):
            clock.turn()
    return clock.times().median * 1e6


def _memory(seconds: float) -> float:
    """Peak of one training call over what it cannot do without, in a process of its own: a peak only ever rises."""
    del seconds
    done = subprocess.run([sys.executable, "-m", f"{__package__}.memory"], check=True, capture_output=True)
    return int(done.stdout) / allowed_bytes(MEMORY_POINT)


THREAD_SIZES = [(64, 1), (64, 4), (64, 16), (128, 1), (256, 1), (256, 4), (256, 16), (512, 1), (512, 16), (256, 64)]


MODES: tuple[Mode, ...] = ("inference", "training")


def _thread_points() -> Iterator[Point]:
    for cell in CELLS:
        for mode in MODES:
            for H, B in THREAD_SIZES if cell == "LSTM" else [(64, 1), (256, 1), (256, 16)]:
                yield _point(cell, mode, 50, B, H)
    for H in (64, 256, 512):
        for mode in MODES:
            yield replace(_point("LSTM", mode, 50, 1, H), bidirectional=True)


def _all() -> Iterator[Claim]:
    bind = functools.partial

    for cell in CELLS:
        for mode in MODES:
            point = _point(cell, mode, 100, 16, 128)
            yield Claim(f"reset masks, {cell} {mode}", bind(_resets, point), 1.05, True, "x", "with a mask : without")
    dense = {mode: _point("LSTM", mode, 100, 64, 256) for mode in MODES}
    for mode in MODES:
        note = "time per valid token, lengths 10..100 : dense"
        yield Claim(f"variable lengths, LSTM {mode}", bind(_lengths, dense[mode]), 1.1, True, "x", note)
    for mode, least in zip(MODES, (1.4, 2.5), strict=True):
        note = "PyTorch's PackedSequence : fastrnn"
        yield Claim(
            f"variable lengths against PyTorch, LSTM {mode}", bind(_packed, dense[mode]), least, False, "x", note
        )

    variants: list[tuple[str, dict[str, Any], float]] = [
        ("peephole", {"peephole": True}, 1.15),
        ("peephole clip coupled", {"peephole": True, "clip": 3.0, "coupled": True}, 1.15),
        ("activations", {"activations": ("hard_sigmoid", "softsign", "softplus")}, 1.3),
        ("layer norm", {"layer_norm": True}, 1.5),
        ("zoneout and recurrent dropout", {"zoneout": (0.1, 0.05), "recurrent_dropout": 0.2}, 1.6),
    ]
    for name, options, most in variants:
        for mode in MODES:
            for H in (64, 128, 256):
                measure = bind(_variant, options, mode, H)
                yield Claim(f"LSTM with {name}, {mode} H={H}", measure, most, True, "x", "with : without")

    scales: list[tuple[str, Mode, float, float]] = [
        ("states vanish", "inference", TINY, 1),
        ("gradients vanish", "training", 1, TINY),
        ("both vanish", "training", TINY, TINY),
    ]
    for cell in CELLS:
        for name, mode, x, dy in scales:
            measure = bind(_denormals, _point(cell, mode, 100, 16, 128), x, dy)
            yield Claim(f"denormals, {cell} {mode}, {name}", measure, 1.1, True, "x", "vanishing : normal data")
    yield Claim("denormals, the caller's results lost", _mode_changed, 0, True, "numbers")

    for point in _thread_points():
        name = f"two threads, {point.name.removesuffix('-t1')}"
        yield Claim(name, bind(_two_against_one, point), TWO_THREADS, False, "x", "one thread : two")
    note = "one after the other : each alone"
    yield Claim("PyTorch and fastrnn by turns, two threads", _alternating, 1.1, True, "x", note)

    for H, B in ((256, 16), (256, 64), (512, 16), (512, 64)):
        point = _point("LSTM", "inference", 25, B, H)
        yield Claim(f"AVX2, {point.name.removesuffix('-t1')}", bind(_avx2, point), 0.8, False, "x", "AVX-512 : AVX2")
    yield Claim("one step, LSTM H=64 B=1", bind(_microseconds, _point("LSTM", "step", 1, 1, 64)), 3, True, "us")
    yield Claim(
        "a call with T=1, LSTM H=256 B=1", bind(_microseconds, _point("LSTM", "call", 1, 1, 256)), 80, True, "us"
    )
    note = "peak : x + y + dy + dx + 5*T*B*H floats"
    yield Claim("memory of training, LSTM T=1000 B=64 H=512", _memory, 1.1, True, "x", note)
    for claim in (*dropin.claims(), *heads.claims(), *language.claims()):
        yield Claim(*claim)


CLAIMS = {claim.name: claim for claim in _all()}

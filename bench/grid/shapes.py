"""What is measured: points, their names, and the two grids."""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fastrnn.spec import describe

Cell = Literal["LSTM", "GRU", "RNN"]
Mode = Literal["inference", "call", "training", "step"]
Variant = Literal["", "lengths", "reset", "batch_first"]
DType = Literal["float32", "float64"]

CELLS: tuple[Cell, ...] = get_args(Cell)
MODES: tuple[Mode, ...] = get_args(Mode)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
GATES = {cell: describe(name).gates for cell, name in (("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "rnn_tanh"))}
MOST_FLOPS = 2e10
SHORTEST_LENGTH = 10

_NAME = re.compile(
    r"(?P<cell>LSTM|GRU|RNN)-(?P<mode>inference|call|training|step)"
    r"-T(?P<T>\d+)-B(?P<B>\d+)(-I(?P<I>\d+))?-H(?P<H>\d+)"
    r"(-L(?P<layers>\d+))?(?P<bidirectional>-bi)?(-(?P<dtype>float64))?(-(?P<variant>lengths|reset|batch_first))?"
    r"-t(?P<threads>\d+)"
)


@dataclass(frozen=True)
class Point:
    """One layer, at one size, used in one way, on some threads.

    Attributes
    ----------
    cell : {"LSTM", "GRU", "RNN"}
        The GRU has ``reset_after``, the RNN tanh.
    mode : {"inference", "call", "training", "step"}
        A frozen layer called on a sequence; the layer itself called, which packs its weights each time; forward and
        backward with the gradients of x and all parameters; one step of a frozen layer.
    T, B, I, H : int
        Time steps, batch, input and hidden size.
    layers, bidirectional, dtype, threads
        As the layer's options, and the number of threads of both sides.
    variant : {"", "lengths", "reset", "batch_first"}
        Sequences of 10..T steps, uniformly drawn; a mask that cuts sequences; the other layout of x and y.
    """

    cell: Cell
    mode: Mode
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: DType = "float32"
    threads: int = 1
    variant: Variant = ""

    @property
    def sizes(self) -> str:
        """The name without cell, mode and threads; I only where it is not H."""
        parts = [f"T{self.T}", f"B{self.B}"]
        parts += [f"I{self.I}"] * (self.I != self.H) + [f"H{self.H}"]
        parts += [f"L{self.layers}"] * (self.layers > 1) + ["bi"] * self.bidirectional
        parts += [self.dtype] * (self.dtype != "float32") + [self.variant] * bool(self.variant)
        return "-".join(parts)

    @property
    def name(self) -> str:
        """For example ``LSTM-training-T100-B64-H256-lengths-t1``."""
        return f"{self.cell}-{self.mode}-{self.sizes}-t{self.threads}"

    @staticmethod
    def parse(name: str) -> "Point":
        """Read a point's name; ValueError if it is none."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a point, such as LSTM-training-T100-B64-H256-lengths-t1")
        part = match.groupdict()
        H = int(part["H"])
        return Point(
            cast(Cell, part["cell"]),
            cast(Mode, part["mode"]),
            int(part["T"]),
            int(part["B"]),
            int(part["I"] or H),
            H,
            int(part["layers"] or 1),
            part["bidirectional"] is not None,
            cast(DType, part["dtype"] or "float32"),
            int(part["threads"]),
            cast(Variant, part["variant"] or ""),
        )

    @property
    def regular(self) -> bool:
        """Whether it is on the plain grid: one layer, one direction, float32, I = H, nothing special."""
        return self == Point(self.cell, self.mode, self.T, self.B, self.H, self.H, threads=self.threads)

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def input_sizes(self) -> list[int]:
        """What each layer reads: I, and after the first D*H."""
        return [self.I] + [self.directions * self.H] * (self.layers - 1)

    @cached_property
    def lengths(self) -> NDArray[np.int64] | None:
        """(B,) the sequences' lengths, the same in every run; None: all are T."""
        if self.variant != "lengths":
            return None
        shortest = min(SHORTEST_LENGTH, self.T)
        return np.random.default_rng(0).integers(shortest, self.T, self.B, np.int64, endpoint=True)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(T,) how many sequences are still running at each step."""
        lengths = np.full(self.B, self.T) if self.lengths is None else self.lengths
        running = lengths[None, :] > np.arange(self.T)[:, None]
        count: NDArray[np.int64] = running.sum(axis=1)
        return count

    @property
    def step_flops(self) -> float:
        """Multiplications and additions of the products of one step of one sequence."""
        products = 6 if self.mode == "training" else 2  # backward has two for each of forward's
        columns = sum((size + self.H) * self.directions for size in self.input_sizes)
        return float(products * GATES[self.cell] * self.H * columns)

    @property
    def flops(self) -> float:
        """Multiplications and additions of the products of one call."""
        return self.step_flops * float(self.rows.sum())


def capped(point: Point) -> Point:
    """The point with T shortened so that a call stays below 2e10 operations, but never below 2."""
    return replace(point, T=min(point.T, max(2, int(MOST_FLOPS / (point.step_flops * point.B)))))


def _square(cell: Cell, mode: Mode, T: int, B: int, H: int) -> Point:
    return Point(cell, mode, T, B, H, H)


def _grid(cell: Cell, mode: Mode) -> Iterator[Point]:
    for H in (32, 64, 128, 256, 512, 1024):
        for B in (1, 4, 16, 64, 128):
            for T in (1,) if mode == "step" else (25, 100, 500):
                yield _square(cell, mode, T, B, H)


def _beside_the_grid(cell: Cell, mode: Mode) -> Iterator[Point]:
    if mode == "call":
        for T, B, H in ((1, 1, 64), (1, 1, 256), (1, 16, 256), (25, 1, 64), (25, 16, 256), (100, 64, 256)):
            yield _square(cell, mode, T, B, H)
    if mode in ("inference", "training"):
        for B, H in ((1, 64), (1, 256), (16, 128), (64, 256)):
            yield replace(_square(cell, mode, 100, B, H), bidirectional=True)
            yield replace(_square(cell, mode, 100, B, H), layers=2, bidirectional=True)
            yield replace(_square(cell, mode, 100, B, H), dtype="float64")
        for H in (64, 256, 512):
            yield replace(_square(cell, mode, 100, 64, H), variant="lengths")
        for B, H in ((1, 64), (16, 128), (64, 256)):
            yield replace(_square(cell, mode, 100, B, H), variant="reset")
            yield replace(_square(cell, mode, 100, B, H), variant="batch_first")
        for B in (1, 16):
            yield Point(cell, mode, 100, B, 40, 512)
            yield Point(cell, mode, 100, B, 512, 64)


def full(threads: Sequence[int]) -> list[Point]:
    """Every point of the grid, and what stands beside it; calls of too many operations are shortened."""
    points = [
        replace(capped(point), threads=n)
        for n in threads
        for cell in CELLS
        for mode in MODES
        for point in (*(_grid(cell, mode) if mode != "call" else ()), *_beside_the_grid(cell, mode))
    ]
    return list(dict.fromkeys(points))  # shortened ones may coincide


_QUICK = [
    _square("LSTM", "inference", 100, 1, 64),
    _square("LSTM", "inference", 100, 1, 256),
    _square("LSTM", "inference", 100, 16, 128),
    _square("LSTM", "inference", 25, 64, 256),
    _square("LSTM", "training", 100, 1, 64),
    _square("LSTM", "training", 100, 16, 128),
    replace(_square("LSTM", "training", 100, 64, 128), variant="lengths"),
    _square("LSTM", "step", 1, 1, 64),
    _square("LSTM", "step", 1, 1, 256),
    _square("GRU", "inference", 100, 1, 128),
    _square("GRU", "training", 25, 16, 128),
    _square("RNN", "inference", 100, 1, 128),
    _square("RNN", "training", 25, 16, 128),
]


def quick(threads: Sequence[int]) -> list[Point]:
    """Some points that say most of it in a minute."""
    return [replace(point, threads=n) for n in threads for point in _QUICK]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name holds one of the patterns, or matches it as in a shell."""
    return any(one in name or fnmatch.fnmatchcase(name, one) for one in patterns)


def select(points: Iterable[Point], patterns: Sequence[str]) -> list[Point]:
    """The points whose name holds one of the patterns or matches it as in a shell; all where there is none.

    A pattern that is the whole name of a point also selects that point where it is not among them.
    """
    if not patterns:
        return list(points)
    found = [p for p in points if matches(p.name, patterns)]
    named = [Point.parse(one) for one in patterns if _NAME.fullmatch(one)]
    return list(dict.fromkeys(found + named))

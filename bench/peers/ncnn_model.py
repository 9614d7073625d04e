"""ncnn, whose LSTM takes weights of int8 and rounds x and h as it goes; one sequence, one layer, one direction."""

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fastrnn.frozen import integers_of

from ..grid.problems import Problem
from ..grid.shapes import Point
from .base import Array, Job, Peer

FLOAT32, INT8 = 0, 0x000D4B38  # what stands before a matrix in a file of weights
GATES = (0, 1, 3, 2)  # i f o g


class NcnnInt8(Peer):
    """int8 with a scale for each row, as its own tool makes it."""

    key, title, short, needs = "ncnn-int8", "ncnn int8", "ncnn i8", "ncnn"
    tolerance, weights = 5e-2, "int8"

    def __init__(self, threads: int) -> None:
        import ncnn

        self.ncnn: Any = ncnn
        self.threads = threads
        self.version = ncnn.__version__

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.mode == "training":
            return "it runs inference only"
        if point.cell != "LSTM":
            return "on x86 its LSTM alone has int8 kernels of its own"
        if point.B > 1 or point.variant == "reset":
            return "it runs one sequence at a time, without a reset mask"
        if point.layers > 1 or point.bidirectional or point.dtype != "float32":
            return "one float32 layer in one direction is compared"
        return None

    def job(self, problem: Problem) -> Job:
        names = ["y", "h", "c"] if problem.point.mode == "step" else ["y"]
        rows = problem.x.reshape(-1, problem.point.I)  # B = 1, whichever axis that is
        given = {"x": rows, "h0": problem.h0[0], "c0": problem.c0[0]}
        inputs = [(name, self.ncnn.Mat(given[name])) for name in ("x", "h0", "c0")[: len(names)]]
        net = self._load(problem, [name for name, _ in inputs], names)

        def run() -> dict[str, Any]:
            extractor = net.create_extractor()
            for name, mat in inputs:
                extractor.input(name, mat)
            return {name: extractor.extract(name)[1] for name in names}

        shapes = {"y": problem.dy.shape, "h": problem.h0.shape, "c": problem.c0.shape}
        return Job(run, lambda done: {name: np.array(mat).reshape(shapes[name]) for name, mat in done.items()})

    def _load(self, problem: Problem, inputs: list[str], outputs: list[str]) -> Any:
        net = self.ncnn.Net()
        net.opt.num_threads = self.threads
        with tempfile.TemporaryDirectory() as folder:
            texts, weights = Path(folder, "lstm.param"), Path(folder, "lstm.bin")
            texts.write_text(_layers(problem.point, inputs, outputs), encoding="ascii")
            weights.write_bytes(_weights(problem))
            if net.load_param(str(texts)) or net.load_model(str(weights)):
                raise RuntimeError("ncnn does not load its LSTM")
        return net


def _layers(point: Point, inputs: list[str], outputs: list[str]) -> str:
    """A file's first part: a number of format, how many layers and blobs, and a line for each layer."""
    ends = f"{len(inputs)} {len(outputs)} {' '.join(inputs)} {' '.join(outputs)}"
    lines = ["7767517", f"{len(inputs) + 1} {len(inputs) + len(outputs)}"]
    lines += [f"Input {name} 0 1 {name}" for name in inputs]
    # units, elements of W_ih, direction, size of the cell state, int8
    return "\n".join([*lines, f"LSTM lstm {ends} 0={point.H} 1={4 * point.H * point.I} 2=0 3={point.H} 8=2", ""])


def _weights(problem: Problem) -> bytes:
    """The other part: W_ih, the sum of the biases, W_hh, then what the rows of W_ih and W_hh were multiplied by."""

    def ordered(name: str) -> Array:
        gates = np.split(problem.weights[f"{name}_l0"], len(GATES))
        return np.concatenate([gates[i] for i in GATES])

    def matrix(tag: int, array: Array) -> bytes:
        data = np.ascontiguousarray(array).tobytes()
        return struct.pack("<I", tag) + data + bytes(-len(data) % 4)

    (ih, ih_scale), (hh, hh_scale) = (integers_of(ordered(f"weight_{side}")) for side in ("ih", "hh"))
    bias = matrix(FLOAT32, ordered("bias_ih") + ordered("bias_hh"))
    scales = b"".join((1 / scale).astype(np.float32).tobytes() for scale in (ih_scale, hh_scale))
    return matrix(INT8, ih) + bias + matrix(INT8, hh) + scales

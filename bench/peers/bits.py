"""Sides whose weights have fewer bits than float32: ours, and PyTorch in bfloat16. All round on purpose."""

import fastrnn

from ..grid.problems import Problem
from ..grid.shapes import Point
from .base import Array, Job, Peer
from .ours import FastRNN
from .pytorch import PyTorch


def _not_for_training(point: Point) -> str | None:
    if point.mode == "training":
        return "its weights are for inference only"
    return None if point.dtype == "float32" else "it rounds float32 weights"


class FastRNNInt8(Peer):
    """A frozen layer of int8."""

    key, title, short, needs = "fastrnn-int8", "fastrnn int8", "our i8", ""
    tolerance = 5e-2
    weights = "int8"

    def __init__(self, threads: int) -> None:
        self.ours = FastRNN(threads)
        self.version = fastrnn.__version__

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.mode == "call":
            return "a layer that is not frozen has float32 weights"
        return _not_for_training(point)

    def job(self, problem: Problem) -> Job:
        return self.ours.frozen(problem, self.weights)


class FastRNNBFloat16(FastRNNInt8):
    """A frozen layer of bfloat16."""

    key, title, short, needs = "fastrnn-bfloat16", "fastrnn bfloat16", "our bf", ""
    tolerance = 2e-2
    weights = "bfloat16"


class PyTorchBFloat16(PyTorch):
    """The module and its input in bfloat16."""

    key, title, short, needs = "torch-bfloat16", "PyTorch bfloat16", "torch bf", "torch"
    tolerance, weights = 5e-2, "bfloat16"

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.variant in ("lengths", "reset"):
            return "whole batches only"
        return _not_for_training(point)

    def job(self, problem: Problem) -> Job:
        torch = self.torch
        module = self._module(problem).bfloat16()

        def narrow(array: Array) -> object:
            return torch.from_numpy(array).bfloat16()

        x = narrow(problem.x)
        state = None
        if problem.point.mode == "step":
            state = narrow(problem.h0)
            if problem.point.cell == "LSTM":
                state = (state, narrow(problem.c0))

        def read(done: object) -> dict[str, Array]:
            y: Array = done[0].float().numpy()  # type: ignore[index]
            return {"y": y}

        return Job(lambda: module(x, state), read, torch.inference_mode)

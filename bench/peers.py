"""The sides of a comparison: small classes that make a callable for one point from the same weights and input."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fastrnn
from shapes import Point

Array = NDArray[Any]
Call = Callable[[], Sequence[Array]]


class Problem:
    """The input of a point, and PyTorch's initial weights for it; nobody writes to either."""

    def __init__(self, point: Point) -> None:
        self.point = point
        torch.manual_seed(0)
        self.module = getattr(torch.nn, point.cell)(point.I, point.H)
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((point.T, point.B, point.I), dtype=np.float32)
        self.dy = rng.standard_normal((point.T, point.B, point.H), dtype=np.float32)


class FastRNN:
    """This package through its public API."""

    name = f"fastrnn {fastrnn.__version__}"

    @staticmethod
    def set_threads(n: int) -> None:
        fastrnn.set_num_threads(n)

    @staticmethod
    def call(problem: Problem) -> Call:
        point = problem.point
        layer = getattr(fastrnn, point.cell)(point.I, point.H)
        layer.load_state_dict(problem.module.state_dict())
        x, dy = problem.x, problem.dy
        if point.mode == "train":

            def train() -> Sequence[Array]:
                y, _, tape = layer.forward(x, training=True)
                grads = layer.backward(tape, dy)
                return [y, grads.x, *grads.parameters.values()]

            return train
        if point.mode == "step":
            frozen = layer.freeze()
            shape = (1, point.B, point.H)
            zeros = [np.zeros(shape, np.float32) for _ in range(2)]
            new = [np.empty(shape, np.float32) for _ in range(2)]
            lstm = point.cell == "LSTM"
            state: Any = fastrnn.LSTMState(*zeros) if lstm else zeros[0]
            state_out: Any = fastrnn.LSTMState(*new) if lstm else new[0]
            out, x_t = np.empty((point.B, point.H), np.float32), x[0]
            return lambda: [frozen.step(x_t, state, out=out, state_out=state_out)[0][None]]
        return lambda: [layer(x)[0]]


class PyTorch:
    """torch.nn, in inference_mode or with autograd."""

    name = f"PyTorch {torch.__version__}"

    @staticmethod
    def set_threads(n: int) -> None:
        torch.set_num_threads(n)

    @staticmethod
    def call(problem: Problem) -> Call:
        module, x, dy = problem.module, torch.from_numpy(problem.x), torch.from_numpy(problem.dy)
        if problem.point.mode == "train":
            x = x.clone().requires_grad_()

            def train() -> Sequence[Array]:
                x.grad = None
                module.zero_grad(set_to_none=True)
                y, _ = module(x)
                y.backward(dy)
                return [y.detach().numpy(), x.grad.numpy(), *(p.grad.numpy() for p in module.parameters())]

            return train

        def infer() -> Sequence[Array]:
            with torch.inference_mode():
                return [module(x)[0].numpy()]

        return infer

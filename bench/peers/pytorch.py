"""PyTorch: torch.nn.LSTM, GRU and RNN, and the cells of one step."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..grid.problems import Problem
from ..grid.shapes import Point
from .base import Array, Job, Peer, gradient_names

Forward = Callable[[Any], tuple[Any, Any]]  # x -> y, state


class PyTorch(Peer):
    """The module, in inference_mode or with autograd."""

    key, title, short, needs = "torch", "PyTorch", "torch", "torch"

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch: Any = torch
        self.version = torch.__version__

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.variant == "reset" and (point.layers > 1 or point.bidirectional):
            return "a loop over steps with resets is written for one layer and direction only"
        return None

    def job(self, problem: Problem) -> Job:
        torch, point = self.torch, problem.point
        module = self._module(problem)
        forward = self._forward(module, problem)
        if point.mode == "training":
            return self._training(module, forward, problem)
        x = torch.from_numpy(problem.x)
        return Job(lambda: forward(x), lambda done: {"y": done[0].numpy(), **_states(done[1])}, torch.inference_mode)

    def _module(self, problem: Problem) -> Any:
        torch, point = self.torch, problem.point
        module = getattr(torch.nn, point.cell)(
            point.I,
            point.H,
            point.layers,
            bidirectional=point.bidirectional,
            batch_first=point.variant == "batch_first",
            dtype=getattr(torch, point.dtype),
        )
        module.load_state_dict({name: torch.from_numpy(w) for name, w in problem.weights.items()})
        return module

    def _forward(self, module: Any, problem: Problem) -> Forward:
        torch, point = self.torch, problem.point
        if point.mode == "step":
            state = torch.from_numpy(problem.h0)
            if point.cell == "LSTM":
                state = (state, torch.from_numpy(problem.c0))
            return lambda x: module(x, state)
        if point.variant == "lengths":
            return self._packed(module, torch.from_numpy(point.lengths), point.T)
        if problem.reset is not None:
            return self._cut(lambda x, state: module(x[None], state), problem, layer_axis=1)
        return lambda x: module(x)

    def _packed(self, module: Any, lengths: Any, T: int) -> Forward:
        rnn = self.torch.nn.utils.rnn

        def forward(x: Any) -> tuple[Any, Any]:
            packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, state = module(packed)
            return rnn.pad_packed_sequence(y, total_length=T)[0], state

        return forward

    def _cut(self, step: Callable[[Any, Any], tuple[Any, Any]], problem: Problem, layer_axis: int) -> Forward:
        """A loop over time steps that zeroes the state where a sequence is cut."""
        torch, point = self.torch, problem.point
        assert problem.reset is not None, "only points with resets are run in a loop"
        keep = torch.from_numpy((~problem.reset).astype(point.dtype)[..., None])
        zeros = torch.zeros((*(1,) * layer_axis, point.B, point.H), dtype=getattr(torch, point.dtype))

        def forward(x: Any) -> tuple[Any, Any]:
            state = (zeros, zeros) if point.cell == "LSTM" else zeros
            rows = []
            for x_t, keep_t in zip(x, keep, strict=True):
                state = tuple(s * keep_t for s in state) if point.cell == "LSTM" else state * keep_t
                y_t, state = step(x_t, state)
                rows.append(y_t)
            return (torch.cat(rows) if layer_axis else torch.stack(rows)), state

        return forward

    def _training(self, module: Any, forward: Forward, problem: Problem) -> Job:
        torch = self.torch
        x, dy = torch.from_numpy(problem.x).clone().requires_grad_(), torch.from_numpy(problem.dy)
        parameters = list(module.parameters())
        names = gradient_names(list(problem.weights))

        def run() -> Any:
            x.grad = None
            module.zero_grad(set_to_none=True)
            y, state = forward(x)
            y.backward(dy)
            return y, state, x.grad, [p.grad for p in parameters]

        def read(done: Any) -> dict[str, Array]:
            y, state, dx, gradients = done
            named = {name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)}
            return {"y": y.detach().numpy(), **_states(state), "dx": dx.numpy(), **named}

        return Job(run, read)


class PyTorchCell(PyTorch):
    """The cell of one step, as LSTMCell; in a loop where sequences are cut."""

    key, title, short, needs = "torch-cell", "PyTorch cell", "cell", "torch"

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.layers > 1 or point.bidirectional:
            return "a cell is one layer and one direction"
        return None if point.mode == "step" or point.variant == "reset" else "a cell computes single steps"

    def _module(self, problem: Problem) -> Any:
        torch, point = self.torch, problem.point
        cell = getattr(torch.nn, f"{point.cell}Cell")(point.I, point.H, dtype=getattr(torch, point.dtype))
        cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(w) for name, w in problem.weights.items()})
        return cell

    def _forward(self, module: Any, problem: Problem) -> Forward:
        torch = self.torch

        def step(x: Any, state: Any) -> tuple[Any, Any]:
            new = module(x, state)
            return (new[0] if isinstance(new, tuple) else new), new

        if problem.reset is not None:
            return self._cut(step, problem, layer_axis=0)
        state = torch.from_numpy(problem.h0[0])
        if problem.point.cell == "LSTM":
            state = (state, torch.from_numpy(problem.c0[0]))
        return lambda x: step(x[0], state)

    def job(self, problem: Problem) -> Job:
        job = super().job(problem)
        if problem.point.mode != "step":
            return job
        return job._replace(
            read=lambda done: {name: value.reshape(1, *value.shape[-2:]) for name, value in job.read(done).items()}
        )


def _states(state: Any) -> dict[str, Array]:
    """h and c as (L*D,B,H); those of a cell have no first axis."""
    parts = state if isinstance(state, tuple) else (state,)
    arrays = [np.asarray(part.detach()) for part in parts]
    return {name: a if a.ndim == 3 else a[None] for name, a in zip("hc", arrays, strict=False)}

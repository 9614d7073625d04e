"""This package through its public API."""

from collections.abc import Callable
from typing import Any

import numpy as np

import fastrnn

from ..grid.problems import Problem
from .base import Array, Job


class FastRNN:
    """fastrnn: a frozen layer, the layer itself, or forward and backward."""

    title = "fastrnn"

    def __init__(self, threads: int) -> None:
        fastrnn.set_num_threads(threads)

    def job(self, problem: Problem) -> Job:
        """Prepare what a user would prepare once."""
        point = problem.point
        if point.mode == "training":
            return Job(_training(problem), _read_training)
        if point.mode != "call":
            return self.frozen(problem)
        return _calls(problem, problem.layer)

    def frozen(self, problem: Problem, weights: str | None = None) -> Job:
        """Prepare a sequence or a step of a frozen layer."""
        frozen = problem.layer.freeze(weights)
        if problem.point.mode == "step":
            return Job(_step(problem, frozen), lambda done: {"y": done[0][None], **_states(done[1])})
        return _calls(problem, frozen)


def _calls(problem: Problem, compute: Any) -> Job:
    x, lengths, reset = problem.x, problem.point.lengths, problem.reset
    return Job(lambda: compute(x, lengths=lengths, reset=reset), lambda done: {"y": done[0], **_states(done[1])})


def _states(state: Any) -> dict[str, Array]:
    return {"h": state.h, "c": state.c} if isinstance(state, fastrnn.LSTMState) else {"h": state}


def _training(problem: Problem) -> Callable[[], Any]:
    layer, x, dy = problem.layer, problem.x, problem.dy
    lengths, reset = problem.point.lengths, problem.reset

    def run() -> Any:
        y, state, tape = layer.forward(x, lengths=lengths, reset=reset, training=True)
        return y, state, layer.backward(tape, dy)

    return run


def _read_training(done: Any) -> dict[str, Array]:
    y, state, gradients = done
    named = {f"d{name}": gradient for name, gradient in gradients.parameters.items()}
    return {"y": y, **_states(state), "dx": gradients.x, **named}


def _step(problem: Problem, frozen: Any) -> Callable[[], Any]:
    x = problem.x[0]
    lstm = problem.point.cell == "LSTM"
    state = fastrnn.LSTMState(problem.h0, problem.c0) if lstm else problem.h0
    state_out = fastrnn.LSTMState(np.empty_like(problem.h0), np.empty_like(problem.c0)) if lstm else problem.h0.copy()
    out = np.empty((problem.point.B, problem.point.H), problem.point.dtype)
    return lambda: frozen.step(x, state, out=out, state_out=state_out)

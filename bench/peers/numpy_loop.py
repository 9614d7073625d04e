"""A plain loop over time steps in NumPy: what one writes without a library."""

from typing import Any

import numpy as np

from ..grid.problems import Problem
from ..grid.shapes import Point
from .base import Array, Job, Peer, contiguous


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


class NumPyLoop(Peer):
    """One product for all inputs, then one per step; its threads are those of NumPy's BLAS."""

    key, title, short, needs = "numpy", "NumPy", "NumPy", "numpy"

    def __init__(self, threads: int) -> None:
        self.version = np.__version__  # threads: the worker's environment sets those of every BLAS

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.mode == "training":
            return "a plain loop has no gradients"
        if point.variant == "lengths" or point.layers > 1 or point.bidirectional:
            return "the plain loop has one layer, one direction and whole sequences only"
        return None

    def job(self, problem: Problem) -> Job:
        point, w = problem.point, problem.weights
        batch_first, reset = point.variant == "batch_first", problem.reset
        w_ih, w_hh = contiguous(w["weight_ih_l0"].T), contiguous(w["weight_hh_l0"].T)
        step = _STEPS[point.cell]
        folded = w["bias_ih_l0"].copy()
        hidden = np.zeros_like(folded)
        kept = 2 * point.H if point.cell == "GRU" else len(folded)  # the GRU's b_hn stays on the hidden side
        folded[:kept] += w["bias_hh_l0"][:kept]
        hidden[kept:] = w["bias_hh_l0"][kept:]
        h0, c0 = (
            (problem.h0[0], problem.c0[0])
            if point.mode == "step"
            else (np.zeros((point.B, point.H), point.dtype) for _ in range(2))
        )

        def run() -> tuple[Array, Array, Array]:
            x = problem.x.swapaxes(0, 1) if batch_first else problem.x
            gates = x @ w_ih + folded
            y = np.empty((*x.shape[:2], point.H), x.dtype)
            h, c = h0, c0
            for t in range(len(x)):
                if reset is not None:
                    keep = ~reset[t, :, None]
                    h, c = h * keep, c * keep
                h, c = step(gates[t], h @ w_hh + hidden, h, c)
                y[t] = h
            return (contiguous(y.swapaxes(0, 1)) if batch_first else y), h, c

        def read(done: tuple[Array, Array, Array]) -> dict[str, Array]:
            y, h, c = done
            return {"y": y, "h": h[None]} | ({"c": c[None]} if point.cell == "LSTM" else {})

        return Job(run, read)


def _lstm(x: Array, g: Array, h: Array, c: Array) -> tuple[Array, Array]:
    i, f, n, o = np.split(x + g, 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(n)
    return _sigmoid(o) * np.tanh(c), c


def _gru(x: Array, g: Array, h: Array, c: Array) -> tuple[Array, Array]:
    size = h.shape[-1]
    r, z = np.split(_sigmoid(x[:, : 2 * size] + g[:, : 2 * size]), 2, axis=-1)
    n = np.tanh(x[:, 2 * size :] + r * g[:, 2 * size :])
    return n + z * (h - n), c


def _rnn(x: Array, g: Array, h: Array, c: Array) -> tuple[Array, Array]:
    return np.tanh(x + g), c


_STEPS: dict[str, Any] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}

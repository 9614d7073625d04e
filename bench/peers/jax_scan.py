"""JAX: lax.scan over the steps after one product for all inputs, jitted; training through jax.vjp, jitted as well."""

import os
from typing import Any

import numpy as np

from ..grid.problems import Problem
from ..grid.shapes import Point
from .base import Array, Job, Peer

Tree = dict[str, Any]


class JAX(Peer):
    """Weights are arguments in JAX's usual layout (in, out), so nothing is transposed in a call."""

    key, title, short, needs = "jax", "JAX", "JAX", "jax"

    def __init__(self, threads: int) -> None:
        import jax

        # Its pool has as many threads as this process may use processors while it is made; they may then run on all.
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(before)[:threads])
        jax.numpy.zeros(1).block_until_ready()
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), before)
        self.jax: Any = jax
        self.version = jax.__version__

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        if point.dtype != "float32" and os.environ.get("JAX_ENABLE_X64", "0").lower() not in ("1", "true"):
            return "float64 needs JAX_ENABLE_X64=1"
        if point.bidirectional and point.variant in ("lengths", "reset"):
            return "both directions are written for whole sequences only"
        return None

    def forget(self) -> None:
        self.jax.clear_caches()

    def job(self, problem: Problem) -> Job:
        jax, point = self.jax, problem.point
        weights = {name: jax.numpy.asarray(np.ascontiguousarray(w.T)) for name, w in problem.weights.items()}
        x, dy = jax.numpy.asarray(problem.x), jax.numpy.asarray(problem.dy)
        network = _Network(jax, problem)
        if point.mode != "training":
            starts = [jax.numpy.asarray(s) for s in (problem.h0, problem.c0)] if point.mode == "step" else []
            forward = jax.jit(network)
            return Job(lambda: jax.block_until_ready(forward(weights, x, *starts)), _read)

        def loss_and_gradients(weights: Tree, x: Any, dy: Any) -> Any:
            (y, state), pull = jax.vjp(network, weights, x)
            zeros = jax.tree.map(jax.numpy.zeros_like, state)
            return y, state, *pull((dy, zeros))

        compiled = jax.jit(loss_and_gradients)
        return Job(lambda: jax.block_until_ready(compiled(weights, x, dy)), _read)


def _read(done: Any) -> dict[str, Array]:
    y, state, *gradients = done
    named = {"y": y, **state}
    if gradients:
        named |= {f"d{name}": gradient.T for name, gradient in gradients[0].items()} | {"dx": gradients[1]}
    return {name: np.asarray(value) for name, value in named.items()}


class _Network:
    """weights, x and perhaps the initial states to (y, {"h": ..., "c": ...}), as JAX traces it."""

    def __init__(self, jax: Any, problem: Problem) -> None:
        self.jax, self.point, self.suffixes = jax, problem.point, problem.suffixes()
        jnp = jax.numpy
        self.running: Any = None
        if self.point.lengths is not None:
            self.running = jnp.asarray(np.arange(self.point.T)[:, None, None] < self.point.lengths[:, None])
        self.reset: Any = None if problem.reset is None else jnp.asarray(problem.reset[:, :, None])

    def __call__(self, weights: Tree, x: Any, h0: Any = None, c0: Any = None) -> tuple[Any, Tree]:
        jnp, point = self.jax.numpy, self.point
        batch_first = point.variant == "batch_first"
        y = x.swapaxes(0, 1) if batch_first else x
        states: list[Any] = []
        for suffixes in self.suffixes:
            sides = []
            for direction, suffix in enumerate(suffixes):
                own = {name.removesuffix(suffix): w for name, w in weights.items() if name.endswith(suffix)}
                k = len(states)
                zeros = jnp.zeros((point.B, point.H), x.dtype)
                start = (zeros if h0 is None else h0[k], zeros if c0 is None else c0[k])
                side, state = self._layer(own, y, start, reverse=bool(direction))
                sides.append(side)
                states.append(state)
            y = jnp.concatenate(sides, axis=-1) if len(sides) > 1 else sides[0]
        finals = {name: jnp.stack([state[i] for state in states]) for i, name in enumerate(self._state_names())}
        return (y.swapaxes(0, 1) if batch_first else y), finals

    def _state_names(self) -> list[str]:
        return ["h", "c"] if self.point.cell == "LSTM" else ["h"]

    def _layer(self, w: Tree, x: Any, start: tuple[Any, Any], reverse: bool) -> tuple[Any, tuple[Any, Any]]:
        jnp, running, reset = self.jax.numpy, self.running, self.reset
        cell = {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.point.cell]

        def step(state: tuple[Any, Any], given: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any], Any]:
            gates, runs, cut = given
            h, c = state
            if cut is not None:
                h, c = jnp.where(cut, 0, h), jnp.where(cut, 0, c)
            new_h, new_c = cell(gates, h @ w["weight_hh"] + w["bias_hh"], h, c)
            if runs is None:
                return (new_h, new_c), new_h
            return (jnp.where(runs, new_h, h), jnp.where(runs, new_c, c)), jnp.where(runs, new_h, 0)

        gates = x @ w["weight_ih"] + w["bias_ih"]
        state, y = self.jax.lax.scan(step, start, (gates, running, reset), reverse=reverse)
        return y, state

    def _lstm(self, x: Any, g: Any, h: Any, c: Any) -> tuple[Any, Any]:
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        i, f, n, o = jnp.split(x + g, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(n)
        return sigmoid(o) * jnp.tanh(c), c

    def _gru(self, x: Any, g: Any, h: Any, c: Any) -> tuple[Any, Any]:
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        (xr, xz, xn), (gr, gz, gn) = (jnp.split(part, 3, axis=-1) for part in (x, g))
        r, z = sigmoid(xr + gr), sigmoid(xz + gz)
        n = jnp.tanh(xn + r * gn)
        return (1 - z) * n + z * h, c

    def _rnn(self, x: Any, g: Any, h: Any, c: Any) -> tuple[Any, Any]:
        return self.jax.numpy.tanh(x + g), c

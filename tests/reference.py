"""The textbook: every cell in float64 NumPy, one sequence and one time step at a time, forward only.

This file is the twin of ``csrc/kernels/cells.hpp`` and the first link of the chain of trust, so it is obvious rather
than fast. Gradients come from the complex step (Squire and Trapp 1998): f(x + i*e*v) has the imaginary part
e * df/dv, with no subtraction and so no rounding, for e as small as 1e-200. There is no second hand-derived BPTT that
could share a mistake with the first. Everything therefore also runs on complex numbers.

Letters: T time, B batch, I input, H hidden, P projection size (H without one), L layers, D directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = tuple[Array, ...]  # (h,), (h, c) of an LSTM, (h, c, n, m) of an sLSTM

STEP = 1e-200


def sigmoid(z: Array) -> Array:
    e = np.exp(np.where(z.real > 0, -z, z))  # never overflows
    y: Array = np.where(z.real > 0, 1, e) / (1 + e)
    return y


def tanh(z: Array) -> Array:
    y: Array = np.tanh(z)
    return y


def relu(z: Array) -> Array:
    return np.where(z.real <= 0, 0, z)  # a NaN stays one


def magnitude(z: Array) -> Array:
    return np.where(z.real < 0, -z, z)


# The activation functions of ONNX: f(z, alpha, beta). At a kink the slope is that of the left side.
ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "sigmoid": lambda z, _, __: sigmoid(z),
    "tanh": lambda z, _, __: tanh(z),
    "relu": lambda z, _, __: relu(z),
    "affine": lambda z, alpha, beta: alpha * z + beta,
    "leaky_relu": lambda z, alpha, _: np.where(z.real <= 0, alpha * z, z),
    "thresholded_relu": lambda z, alpha, _: np.where(z.real <= alpha, 0, z),
    "scaled_tanh": lambda z, alpha, beta: alpha * np.tanh(beta * z),
    "hard_sigmoid": lambda z, alpha, beta: np.where(
        (alpha * z + beta).real <= 0, 0, np.where((alpha * z + beta).real >= 1, 1, alpha * z + beta)
    ),
    "elu": lambda z, alpha, _: np.where(z.real <= 0, alpha * np.expm1(np.where(z.real <= 0, z, 0)), z),
    "softsign": lambda z, _, __: z / (1 + magnitude(z)),
    "softplus": lambda z, _, __: np.where(z.real > 0, z, 0) + np.log1p(np.exp(-magnitude(z))),
}


@dataclass(frozen=True)
class Variant:
    """What makes a cell another than the usual one, in one direction."""

    activations: tuple[tuple[str, float, float], ...]  # (name, alpha, beta) for each use
    clip: float = np.inf
    coupled: bool = False

    def __call__(self, use: int, z: Array) -> Array:
        """The activation of the clipped z."""
        name, alpha, beta = self.activations[use]
        within = np.where(z.real > self.clip, self.clip, np.where(z.real < -self.clip, -self.clip, z))
        return ACTIVATIONS[name](within, alpha, beta)


OPTIONAL = ("weight_hr", "weight_peephole", "weight_norm_ih", "weight_norm_hh", "weight_norm_c")


@dataclass(frozen=True)
class Weights:
    """Parameters of one layer in one direction, by PyTorch's names; an absent bias is zero."""

    weight_ih: Array  # (G*H, I)
    weight_hh: Array  # (G*H, P), block diagonal with heads
    bias_ih: Array  # (G*H,)
    bias_hh: Array  # (G*H,)
    weight_hr: Array | None  # (P, H)
    weight_peephole: Array | None = None  # (3, H) of i, f, o
    weight_norm_ih: Array | None = None  # (G*H,)
    weight_norm_hh: Array | None = None  # (G*H,)
    weight_norm_c: Array | None = None  # (H,)
    bias_norm_c: Array | float = 0.0  # (H,)
    variant: Variant = Variant(())
    kept: Array | None = None  # (P,) of h_prev what recurrent dropout keeps, at one step
    scale: float = 1.0  # of what is kept

    def seen(self, h_prev: Array) -> Array:
        """h_prev as the recurrent products see it."""
        return h_prev if self.kept is None else np.where(self.kept, h_prev * self.scale, 0)

    def products(self, x: Array, h_prev: Array) -> tuple[Array, Array]:
        """W_ih x + b_ih and W_hh h_prev + b_hh, all gates below one another: two (G*H,)."""
        return self.weight_ih @ x + self.bias_ih, self.weight_hh @ self.seen(h_prev) + self.bias_hh

    def normalised_products(self, x: Array, h_prev: Array) -> tuple[Array, Array]:
        """LN(W_ih x) and LN(W_hh h_prev), each over all gates at once, with the biases behind it."""
        of_x, of_h = normalised(self.weight_ih @ x), normalised(self.weight_hh @ h_prev)
        return self.weight_norm_ih * of_x + self.bias_ih, self.weight_norm_hh * of_h + self.bias_hh


def normalised(v: Array) -> Array:
    """v less its mean, over its standard deviation (Ba et al. 2016)."""
    away = v - np.sum(v) / len(v)
    y: Array = away / np.sqrt(np.sum(away**2) / len(v) + 1e-5)
    return y


def rnn_tanh(p: Weights, x: Array, state: State) -> State:
    """h = tanh(W_ih x + b_ih + W_hh h_prev + b_hh) (Elman 1990)."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    return (tanh(a + b),)


def rnn_relu(p: Weights, x: Array, state: State) -> State:
    """h = relu(W_ih x + b_ih + W_hh h_prev + b_hh) (Le et al. 2015)."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    return (relu(a + b),)


def gru(p: Weights, x: Array, state: State) -> State:
    """The GRU with the reset gate after the product, as PyTorch and cuDNN have it."""
    return gru_of(*p.products(x, state[0]), state)


def gru_norm(p: Weights, x: Array, state: State) -> State:
    """`gru` of normalised products (Ba et al. 2016)."""
    return gru_of(*p.normalised_products(x, state[0]), state)


def gru_of(a: Array, b: Array, state: State) -> State:
    (h_prev,) = state
    (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
    r = sigmoid(a_r + b_r)
    z = sigmoid(a_z + b_z)
    n = tanh(a_n + r * b_n)
    return ((1 - z) * n + z * h_prev,)


def gru_original(p: Weights, x: Array, state: State) -> State:
    """The GRU of Cho et al. 2014: the reset gate acts on h_prev before the product."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    (a_r, a_z, a_n), (b_r, b_z, _) = np.split(a, 3), np.split(b, 3)
    W_hn, b_hn = np.split(p.weight_hh, 3)[2], np.split(p.bias_hh, 3)[2]
    r = sigmoid(a_r + b_r)
    z = sigmoid(a_z + b_z)
    n = tanh(a_n + W_hn @ (r * h_prev) + b_hn)
    return ((1 - z) * n + z * h_prev,)


def lstm(p: Weights, x: Array, state: State) -> State:
    """The LSTM with a forget gate (Gers et al. 2000); with weight_hr its projection (Sak et al. 2014)."""
    h_prev, c_prev = state
    a, b = p.products(x, h_prev)
    i, f, g, o = np.split(a + b, 4)
    c = sigmoid(f) * c_prev + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return (h if p.weight_hr is None else p.weight_hr @ h, c)


def lstm_norm(p: Weights, x: Array, state: State) -> State:
    """`lstm` of normalised products, and of c normalised on its way into h (Ba et al. 2016)."""
    h_prev, c_prev = state
    a, b = p.normalised_products(x, h_prev)
    i, f, g, o = np.split(a + b, 4)
    c = sigmoid(f) * c_prev + sigmoid(i) * tanh(g)
    return (sigmoid(o) * tanh(p.weight_norm_c * normalised(c) + p.bias_norm_c), c)


def log_sigmoid(z: Array) -> Array:
    y: Array = np.where(z.real < 0, z, 0) - np.log1p(np.exp(np.where(z.real < 0, z, -z)))
    return y


def slstm_with(p: Weights, x: Array, state: State, log_f: Callable[[Array], Array]) -> State:
    """The sLSTM of Beck et al. 2024, stabilised; m is z_i where n_prev is 0. Equal powers: m is z_i."""
    h_prev, c_prev, n_prev, m_prev = state
    a, b = p.products(x, h_prev)
    z_i, z_f, z_g, z_o = np.split(a + b, 4)
    k = log_f(z_f) + m_prev
    m = np.where((n_prev.real != 0) & (k.real > z_i.real), k, z_i)
    i = np.exp(z_i - m)
    f = np.exp(np.where((k - m).real > 0, 0, k - m))
    c = f * c_prev + i * tanh(z_g)
    n = f * n_prev + i
    return (sigmoid(z_o) * c / n, c, n, m)


def slstm(p: Weights, x: Array, state: State) -> State:
    """`slstm_with` a sigmoid forget gate."""
    return slstm_with(p, x, state, log_sigmoid)


def slstm_exponential(p: Weights, x: Array, state: State) -> State:
    """`slstm_with` an exponential forget gate."""
    return slstm_with(p, x, state, lambda z: z)


def rnn_general(p: Weights, x: Array, state: State) -> State:
    """h = f(W_ih x + b_ih + W_hh h_prev + b_hh)."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    return (p.variant(0, a + b),)


def gru_general(p: Weights, x: Array, state: State) -> State:
    """`gru` with any activations, clipped."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
    r, z = p.variant(0, a_r + b_r), p.variant(0, a_z + b_z)
    n = p.variant(1, a_n + r * b_n)
    return ((1 - z) * n + z * h_prev,)


def gru_original_general(p: Weights, x: Array, state: State) -> State:
    """`gru_original` with any activations, clipped."""
    (h_prev,) = state
    a, b = p.products(x, h_prev)
    (a_r, a_z, a_n), (b_r, b_z, _) = np.split(a, 3), np.split(b, 3)
    W_hn, b_hn = np.split(p.weight_hh, 3)[2], np.split(p.bias_hh, 3)[2]
    r, z = p.variant(0, a_r + b_r), p.variant(0, a_z + b_z)
    n = p.variant(1, a_n + W_hn @ (r * p.seen(h_prev)) + b_hn)
    return ((1 - z) * n + z * h_prev,)


def lstm_general(p: Weights, x: Array, state: State) -> State:
    """`lstm` with any activations, clipped, peepholes (Gers and Schmidhuber 2000), i and f coupled or not."""
    h_prev, c_prev = state
    a, b = p.products(x, h_prev)
    i, f, g, o = np.split(a + b, 4)
    p_i, p_f, p_o = np.zeros((3, len(i))) if p.weight_peephole is None else p.weight_peephole
    i = p.variant(0, i + p_i * c_prev)
    f = 1 - i if p.variant.coupled else p.variant(0, f + p_f * c_prev)
    c = f * c_prev + i * p.variant(1, g)
    h = p.variant(0, o + p_o * c) * p.variant(2, c)
    return (h if p.weight_hr is None else p.weight_hr @ h, c)


CELLS: dict[str, Callable[[Weights, Array, State], State]] = {
    "rnn_tanh": rnn_tanh,
    "rnn_relu": rnn_relu,
    "gru": gru,
    "gru_original": gru_original,
    "lstm": lstm,
    "gru_norm": gru_norm,
    "lstm_norm": lstm_norm,
    "slstm": slstm,
    "slstm_exponential": slstm_exponential,
    "rnn_general": rnn_general,
    "gru_general": gru_general,
    "gru_original_general": gru_original_general,
    "lstm_general": lstm_general,
}


def block_diagonal(weight: Array, heads: int) -> Array:
    """The whole matrix (G*H, H) of which each row is stored with the columns of its unit's head only."""
    size = weight.shape[1]
    H = size * heads
    whole = np.zeros((len(weight), H), weight.dtype)
    for row, values in enumerate(weight):
        head = row % H // size
        whole[row, head * size : (head + 1) * size] = values
    return whole


@dataclass(frozen=True)
class Noise:
    """Zoneout, by masks or in expectation, and recurrent dropout, for every layer and direction."""

    zoneout: tuple[float, float] = (0.0, 0.0)  # of h and of c: the part that stays where there is no mask
    zoned: tuple[Array | None, ...] = (None, None)  # (L*D, T, B, size) bool, True where the state stays
    kept: Array | None = None  # (L*D, T, B, P) bool, True keeps
    scale: float = 1.0  # of what is kept

    def at(self, side: int, b: int, n: int) -> "Noise":
        """That of one sequence in one direction, (T, size) each."""
        zoned = tuple(None if mask is None else mask[side, :n, b] for mask in self.zoned)
        return replace(self, zoned=zoned, kept=None if self.kept is None else self.kept[side, :n, b])

    def step(self, cell: str, p: Weights, x: Array, state: State, t: int) -> State:
        """The state after a step, of which a part is as it was (Krueger et al. 2016)."""
        new = CELLS[cell](p if self.kept is None else replace(p, kept=self.kept[t], scale=self.scale), x, state)
        after = []
        for k, (s, s_new) in enumerate(zip(state, new, strict=True)):
            z, mask = (self.zoneout[k], self.zoned[k]) if k < 2 else (0, None)
            after.append(z * s + (1 - z) * s_new if mask is None else np.where(mask[t], s, s_new))
        return tuple(after)


@dataclass(frozen=True)
class Problem:
    """A stack of recurrent layers together with one input: all that a forward pass needs.

    The number of layers and of directions is read off the parameters' names.
    """

    cell: str
    parameters: dict[str, Array]
    x: Array  # (T, B, I)
    state: State  # h (L*D, B, P) and, for an LSTM, c (L*D, B, H), for an sLSTM c, n, m
    lengths: Array | None = None  # (B,)
    reset: Array | None = None  # (T, B) bool
    masks: Array | None = None  # (L-1, T, B, D*P) bool, True keeps
    scale: float = 1.0  # of what a mask keeps
    hidden: Array | None = None  # (T, B, D*P) added to h of the last layer, to differentiate by it
    variants: tuple[Variant, ...] = ()  # of a general cell, for each direction
    heads: int = 1  # weight_hh is (G*H, P / heads): the columns of each unit's own head
    noise: Noise = Noise()

    @property
    def num_layers(self) -> int:
        return sum(name.startswith("weight_ih") and not name.endswith("_reverse") for name in self.parameters)

    @property
    def suffixes(self) -> list[str]:
        return ["", "_reverse"] if "weight_ih_l0_reverse" in self.parameters else [""]

    def weights(self, layer: int, suffix: str) -> Weights:
        weight_ih = self.parameters[f"weight_ih_l{layer}{suffix}"]
        zero = np.zeros(len(weight_ih))
        return Weights(
            weight_ih=weight_ih,
            weight_hh=block_diagonal(self.parameters[f"weight_hh_l{layer}{suffix}"], self.heads),
            bias_ih=self.parameters.get(f"bias_ih_l{layer}{suffix}", zero),
            bias_hh=self.parameters.get(f"bias_hh_l{layer}{suffix}", zero),
            bias_norm_c=self.parameters.get(f"bias_norm_c_l{layer}{suffix}", 0.0),
            **{name: self.parameters.get(f"{name}_l{layer}{suffix}") for name in OPTIONAL},
            variant=self.variants[self.suffixes.index(suffix)] if self.variants else Variant(()),
        )


def run(
    cell: str,
    p: Weights,
    x: Array,
    state: State,
    reset: Array,
    reverse: bool,
    nudge: Array | None,
    noise: Noise,
) -> tuple[list[Array], State]:
    """One sequence (its x without padding) in one direction: h of every step, and the state after the last one.

    reset[t] cuts between t-1 and t whichever way the layer runs; forwards, the initial state is before the cut at 0.
    """
    T = len(x)
    y: list[Array] = [x[:0]] * T
    for t in reversed(range(T)) if reverse else range(T):
        cut = t + 1 < T and reset[t + 1] if reverse else reset[t]
        if cut:
            state = tuple(np.zeros_like(s) for s in state)
        state = noise.step(cell, p, x[t], state, t)
        if nudge is not None:
            state = (state[0] + nudge[t], *state[1:])
        y[t] = state[0]
    return y, state


def forward(problem: Problem) -> tuple[Array, State]:
    """y (T, B, D*P), zero past each length, and the final state, shaped like the initial one."""
    q = problem
    T, B, _ = q.x.shape
    D = len(q.suffixes)
    lengths = np.full(B, T) if q.lengths is None else q.lengths
    reset = np.zeros((T, B), bool) if q.reset is None else q.reset
    arrays = [q.x, *q.state, *q.parameters.values()] + ([] if q.hidden is None else [q.hidden])
    dtype = np.result_type(np.float64, *arrays)
    final = tuple(s.astype(dtype) for s in q.state)
    y = q.x
    for layer in range(q.num_layers):
        x = y
        if layer > 0 and q.masks is not None:
            x = np.where(q.masks[layer - 1], x * q.scale, 0)
        P = q.parameters[f"weight_hh_l{layer}"].shape[1] * q.heads
        y = np.zeros((T, B, D * P), dtype)
        for d, suffix in enumerate(q.suffixes):
            p = q.weights(layer, suffix)
            units = slice(d * P, (d + 1) * P)
            for b in range(B):
                n = lengths[b]
                initial = tuple(s[layer * D + d, b] for s in q.state)
                last = layer == q.num_layers - 1
                nudge = q.hidden[:n, b, units] if last and q.hidden is not None else None
                noise = q.noise.at(layer * D + d, b, n)
                h, end = run(q.cell, p, x[:n, b], initial, reset[:n, b], suffix == "_reverse", nudge, noise)
                for t in range(n):
                    y[t, b, units] = h[t]
                for s, value in zip(final, end, strict=True):
                    s[layer * D + d, b] = value
    return y, final


STATE_NAMES = ("h0", "c0", "n0", "m0")


def loss(problem: Problem, dy: Array, dstate: State) -> Any:
    """sum(y*dy) + sum(hn*dhn) + sum(cn*dcn) + ...: its gradients are what backward(tape, dy, dstate) returns."""
    y, state = forward(problem)
    return np.sum(y * dy) + sum(np.sum(s * ds) for s, ds in zip(state, dstate, strict=True))


def variables(problem: Problem) -> dict[str, Array]:
    """What the loss can be differentiated by: x, h0, c0, ..., hidden (every h_t of the last layer), each parameter."""
    T, B, _ = problem.x.shape
    P = problem.parameters[f"weight_hh_l{problem.num_layers - 1}"].shape[1] * problem.heads
    hidden = np.zeros((T, B, len(problem.suffixes) * P)) if problem.hidden is None else problem.hidden
    state = dict(zip(STATE_NAMES, problem.state, strict=False))
    return {"x": problem.x, **state, "hidden": hidden, **problem.parameters}


def with_variable(problem: Problem, name: str, value: Array) -> Problem:
    if name == "x":
        return replace(problem, x=value)
    if name == "hidden":
        return replace(problem, hidden=value)
    if name in STATE_NAMES:
        k = STATE_NAMES.index(name)
        return replace(problem, state=(*problem.state[:k], value, *problem.state[k + 1 :]))
    return replace(problem, parameters=problem.parameters | {name: value})


def derivative(problem: Problem, dy: Array, dstate: State, name: str, direction: Array) -> float:
    """The derivative of the loss when the variable moves along direction."""
    value = variables(problem)[name]
    return float(loss(with_variable(problem, name, value + 1j * STEP * direction), dy, dstate).imag / STEP)


def unit_directions(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
    for index in np.ndindex(shape):
        e = np.zeros(shape)
        e[index] = 1
        yield index, e


def gradient(problem: Problem, dy: Array, dstate: State, name: str) -> Array:
    """The whole gradient with respect to one variable, element by element."""
    g = np.zeros(variables(problem)[name].shape)
    for index, e in unit_directions(g.shape):
        g[index] = derivative(problem, dy, dstate, name, e)
    return g

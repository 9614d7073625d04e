"""The textbook of ONNX's recurrent nodes, by ONNX's own text (https://onnx.ai/onnx/operators/).

Letters and the order of the gates are those of that text.
"""

from typing import Any

import numpy as np

from reference import Array, State, Variant


def step_of(
    op_type: str, options: dict[str, Any], act: Variant, W: Array, R: Array, Wb: Array, Rb: Array, P: Array | None
) -> Any:
    """The function from x_t and (H_prev,) or (H_prev, C_prev) to the next state; act: f, g, h by their numbers."""

    def rnn(x: Array, state: State) -> State:
        (H_prev,) = state
        return (act(0, x @ W.T + H_prev @ R.T + Wb + Rb),)

    def gru(x: Array, state: State) -> State:
        (H_prev,) = state
        (Wz, Wr, Wh), (Rz, Rr, Rh) = np.split(W, 3), np.split(R, 3)
        (Wbz, Wbr, Wbh), (Rbz, Rbr, Rbh) = np.split(Wb, 3), np.split(Rb, 3)
        z = act(0, x @ Wz.T + H_prev @ Rz.T + Wbz + Rbz)
        r = act(0, x @ Wr.T + H_prev @ Rr.T + Wbr + Rbr)
        if options.get("linear_before_reset", 0) != 0:
            h = act(1, x @ Wh.T + r * (H_prev @ Rh.T + Rbh) + Wbh)
        else:
            h = act(1, x @ Wh.T + (r * H_prev) @ Rh.T + Rbh + Wbh)
        return ((1 - z) * h + z * H_prev,)

    def lstm(x: Array, state: State) -> State:
        H_prev, C_prev = state
        i, o, f, c = np.split(x @ W.T + H_prev @ R.T + Wb + Rb, 4)
        Pi, Po, Pf = np.zeros((3, len(i))) if P is None else np.split(P, 3)
        i = act(0, i + Pi * C_prev)
        f = 1 - i if options.get("input_forget", 0) else act(0, f + Pf * C_prev)
        C = f * C_prev + i * act(1, c)
        return act(0, o + Po * C) * act(2, C), C

    return {"RNN": rnn, "GRU": gru, "LSTM": lstm}[op_type]


# Each with its default alpha and beta: those of the operator of that name, else 1 and 0 or 1 and 1.
ACTIVATIONS: dict[str, tuple[str, tuple[float, ...]]] = {
    "relu": ("relu", ()),
    "tanh": ("tanh", ()),
    "sigmoid": ("sigmoid", ()),
    "affine": ("affine", (1, 0)),
    "leakyrelu": ("leaky_relu", (0.01,)),
    "thresholdedrelu": ("thresholded_relu", (1,)),
    "scaledtanh": ("scaled_tanh", (1, 1)),
    "hardsigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "elu": ("elu", (1,)),
    "softsign": ("softsign", ()),
    "softplus": ("softplus", ()),
}


def activations_of(op_type: str, options: dict[str, Any], D: int) -> list[Variant]:
    """The activations of each direction: alphas and betas are dealt out in order to the functions that have them."""
    usual = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[op_type]
    names = options.get("activations", usual * D)[: len(usual) * D]
    alphas, betas = (list(options.get(f"activation_{word}", [])) for word in ("alpha", "beta"))
    found = []
    for name in names:
        word, defaults = ACTIVATIONS[name.lower()]
        alpha = 0 if not defaults else alphas.pop(0) if alphas else defaults[0]
        beta = 0 if len(defaults) < 2 else betas.pop(0) if betas else defaults[1]
        found.append((word, float(alpha), float(beta)))
    clip = options.get("clip", np.inf)
    return [Variant(tuple(found[d * len(usual) : (d + 1) * len(usual)]), clip) for d in range(D)]


def node(
    op_type: str, options: dict[str, Any], X: Array, W: Array, R: Array, B: Array | None, lengths: Any, *states: Any
) -> list[Array]:
    """Y, Y_h and, of an LSTM, Y_c of one node; `states` are initial_h and, of an LSTM, initial_c and P."""
    P = states[2] if len(states) > 2 else None
    states = states[:2]
    batch_first = options.get("layout", 0) == 1
    if batch_first:
        X, states = X.swapaxes(0, 1), tuple(None if s is None else s.swapaxes(0, 1) for s in states)
    (T, batch, _), (D, _, H) = X.shape, R.shape
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    chosen = activations_of(op_type, options, D)
    Y, ends = np.zeros((T, D, batch, H)), [np.zeros((D, batch, H)) for _ in range(1 + (op_type == "LSTM"))]
    for d, reverse in enumerate(backwards[options.get("direction", "forward")]):
        Wb, Rb = np.split(np.zeros(2 * len(W[d])) if B is None else B[d], 2)
        step = step_of(op_type, options, chosen[d], W[d], R[d], Wb, Rb, None if P is None else P[d])
        for b in range(batch):
            n = T if lengths is None else int(lengths[b])
            given = [*states, None, None][: len(ends)]
            state = tuple(np.zeros(H) if s is None else s[d, b] for s in given)
            for t in reversed(range(n)) if reverse else range(n):
                state = step(X[t, b], state)
                Y[t, d, b] = state[0]
            for end, value in zip(ends, state, strict=True):
                end[d, b] = value
    if batch_first:
        return [Y.transpose(2, 0, 1, 3), *(end.swapaxes(0, 1) for end in ends)]
    return [Y, *ends]

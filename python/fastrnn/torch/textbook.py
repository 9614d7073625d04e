"""The layers in PyTorch's own operations, step by step: what a second derivative is taken through."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .noise import Noise, split

if TYPE_CHECKING:
    from .options import Options

# The activations by name, of x, alpha and beta, as ONNX defines them.
_FUNCTIONS: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "relu": lambda x, a, b: torch.relu(x),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: torch.where(x > 0, x, a * x),
    "thresholded_relu": lambda x, a, b: torch.where(x > a, x, 0),
    "scaled_tanh": lambda x, a, b: a * torch.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: (a * x + b).clamp(0, 1),
    "elu": lambda x, a, b: torch.where(x > 0, x, a * torch.expm1(x.clamp(max=0))),
    "softsign": lambda x, a, b: x / (1 + x.abs()),
    "softplus": lambda x, a, b: torch.nn.functional.softplus(x),
}

_GATED = ("sigmoid", "tanh", "tanh")
_USUAL = {
    "rnn_tanh": ("tanh",),
    "rnn_relu": ("relu",),
    "gru": _GATED,
    "gru_original": _GATED,
    "gru_norm": _GATED,
    "lstm": _GATED,
}


class Functions:
    """The activations of one direction, by their place, with the clip before them; and whether f = 1 - i."""

    def __init__(self, options: "Options", reverse: bool) -> None:
        usual = (math.inf, False, False, [[(name, 0.0, 0.0) for name in _USUAL.get(options.cell, ())]], (0.0, 0.0))
        clip, self.coupled, _, sides, _ = options.general or usual
        self._clip = None if math.isinf(clip) else clip
        self._side = sides[-1 if reverse else 0]

    def __call__(self, place: int, x: Tensor) -> Tensor:
        name, alpha, beta = self._side[place]
        return _FUNCTIONS[name](x if self._clip is None else x.clamp(-self._clip, self._clip), alpha, beta)


def run(
    x: Tensor,
    hx: list[Tensor],
    weights: list[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    masks: Tensor | None,
    scale: float,
    options: "Options",
) -> tuple[Tensor, list[Tensor]]:
    """Compute what fastrnn::train does, y and the final states, from the same arguments; differentiable at will."""
    packed = x.dim() == 2
    if packed:
        assert lengths is not None
        time, batch = int(lengths.max()) if len(lengths) else 0, len(lengths)
    else:
        if options.batch_first:
            x, reset = x.transpose(0, 1), None if reset is None else reset.t()
        time, batch = x.shape[0], x.shape[1]
    if lengths is None:
        lengths = torch.full((batch,), time, device=x.device)
    lengths = lengths.to(x.device)
    runs = torch.arange(time, device=x.device)[:, None] < lengths  # (T,B)
    if packed:
        x = x.new_zeros(time, batch, x.shape[1]).index_put((runs,), x)
    masks, noise = _unpacked(masks, options, runs, packed)
    cuts = torch.zeros_like(runs) if reset is None else reset.to(x.device) & runs
    each = len(weights) // (options.num_layers * options.directions)
    ends = []
    for layer in range(options.num_layers):
        if layer and masks is not None:
            x = torch.where(masks[layer - 1], x * scale, 0)
        sides = []
        for side in range(options.directions):
            i = layer * options.directions + side
            start = [s[i] for s in hx]
            of_side = weights[i * each : (i + 1) * each]
            y, end = _direction(x, start, of_side, runs, cuts, side == 1, options, noise and noise.of_side(i))
            sides.append(y)
            ends.append(end)
        x = torch.cat(sides, -1)
    if packed:
        x = x[runs]
    elif options.batch_first:
        x = x.transpose(0, 1)
    return x, [torch.stack(of_sides) for of_sides in zip(*ends, strict=True)]


def _direction(
    x: Tensor,
    start: list[Tensor],
    weights: list[Tensor],
    runs: Tensor,
    cuts: Tensor,
    reverse: bool,
    options: "Options",
    noise: Noise | None,
) -> tuple[Tensor, list[Tensor]]:
    """Run one direction of one layer over (T,B,I); sequences that have not begun or have ended keep their state."""
    time, batch = runs.shape
    step = functools.partial(_step, options, Functions(options, reverse))
    states = start or [x.new_zeros(shape[1:]) for shape in options.state_shapes(batch)]
    size = states[0].shape[1]
    if reverse:  # a cut lies between t-1 and t
        cuts = torch.cat([cuts[1:], torch.zeros_like(cuts[:1])])
    rows: list[Tensor] = [x.new_zeros(batch, size)] * time
    for t in reversed(range(time)) if reverse else range(time):
        cut, running = cuts[t, :, None], runs[t, :, None]
        before = [torch.where(cut, 0, s) for s in states]
        seen = before[0] if noise is None else noise.seen(t, before[0])
        after = _zoned(options, noise, t, before, step(x[t], before, seen, weights))
        rows[t] = torch.where(running, after[0], 0)
        states = [torch.where(running, new, old) for new, old in zip(after, states, strict=True)]
    return torch.stack(rows) if rows else x.new_zeros(0, batch, size), states


def _unpacked(
    masks: Tensor | None, options: "Options", runs: Tensor, packed: bool
) -> tuple[Tensor | None, Noise | None]:
    """Return the masks of dropout and of the noise, (...,T,B,size)."""
    time, batch = runs.shape
    masks, noise = split(masks, options, (int(runs.sum()),) if packed else (time, batch), batch)

    def rows(mask: Tensor | None) -> Tensor | None:
        if mask is None or not packed:
            return mask
        return torch.stack([m.new_zeros(time, batch, m.shape[1]).index_put((runs,), m) for m in mask])

    if noise is not None:
        kept = rows(noise.kept) if noise.by_time else noise.kept
        noise = noise._replace(kept=kept, zoned_h=rows(noise.zoned_h), zoned_c=rows(noise.zoned_c))
    return rows(masks), noise


def _zoned(options: "Options", noise: Noise | None, t: int, before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """The states after zoneout: by its masks, or without any in expectation."""
    if not any(options.zoneout):
        return after
    pairs = list(zip(before, after, strict=True))
    if noise is None:
        return [z * old + (1 - z) * new for z, (old, new) in zip(options.zoneout, pairs, strict=False)]
    masks = (noise.zoned_h, noise.zoned_c)
    return [new if m is None else torch.where(m[t], old, new) for m, (old, new) in zip(masks, pairs, strict=False)]


def _step(
    options: "Options", use: Functions, x: Tensor, states: list[Tensor], seen: Tensor, weights: list[Tensor]
) -> list[Tensor]:
    """Apply the equations of RNN, GRU and LSTM; seen: h as the recurrent products see it."""
    h = states[0]
    w_ih, w_hh, *others = weights
    biases = others[: 2 * options.has_bias(len(weights) * options.num_layers * options.directions)]
    of_x, of_h = x @ w_ih.t(), _recurrent(seen, w_hh, options.heads)
    gains = others[len(biases) :] if options.cell.endswith("_norm") else []
    if gains:
        of_x, of_h = gains[0] * _normalised(of_x), gains[1] * _normalised(of_h)
    if biases:
        of_x, of_h = of_x + biases[0], of_h + biases[1]
    if options.cell.startswith("rnn"):
        return [use(0, of_x + of_h)]
    if options.cell.startswith("gru"):
        (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        r, z = use(0, r_x + r_h), use(0, z_x + z_h)
        if options.cell == "gru_original":
            n_h = _recurrent(r * seen, w_hh.chunk(3)[2], options.heads)
            n = use(1, n_x + (n_h + biases[1].chunk(3)[2] if biases else n_h))
        else:
            n = use(1, n_x + r * n_h)
        return [(1 - z) * n + z * h]
    if options.cell.startswith("slstm"):
        return _slstm(options.cell, (of_x + of_h).chunk(4, -1), states)
    if options.cell == "lstm_norm":
        i, f, g, o = (of_x + of_h).chunk(4, -1)
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
        of_c = gains[2] * _normalised(c)
        return [torch.sigmoid(o) * torch.tanh(of_c + gains[3] if biases else of_c), c]
    return _lstm(options, use, (of_x + of_h).chunk(4, -1), states[1], others[len(biases) :])


def _normalised(rows: Tensor) -> Tensor:
    """Layer normalisation without gain and bias."""
    return torch.nn.functional.layer_norm(rows, rows.shape[-1:])


def _recurrent(h: Tensor, weight: Tensor, heads: int) -> Tensor:
    """W_hh h of weights (G*H,H/heads), of which each head's rows multiply its own units."""
    if heads == 1:
        return h @ weight.t()
    batch, size = h.shape[0], weight.shape[1]
    blocks = weight.reshape(-1, heads, size, size)
    return torch.einsum("bki,gkoi->bgko", h.reshape(batch, heads, size), blocks).reshape(batch, -1)


def _slstm(cell: str, gates: Sequence[Tensor], states: list[Tensor]) -> list[Tensor]:
    """The equations of `fastrnn.sLSTM`; where the branches of a maximum meet, that of the kernels is taken."""
    (z_i, z_f, z_g, z_o), (_, c_prev, n_prev, m_prev) = gates, states
    k = (torch.nn.functional.logsigmoid(z_f) if cell == "slstm" else z_f) + m_prev
    m = torch.where((n_prev != 0) & (k > z_i), k, z_i)
    i, f = torch.exp(z_i - m), torch.exp(torch.where(k > m, 0, k - m))
    c, n = f * c_prev + i * torch.tanh(z_g), f * n_prev + i
    return [torch.sigmoid(z_o) * c / n, c, n, m]


def _lstm(
    options: "Options", use: Functions, gates: Sequence[Tensor], c_prev: Tensor, others: list[Tensor]
) -> list[Tensor]:
    into_i, into_f, into_g, into_o = gates
    peephole = others[-1] if options.peephole else None
    if peephole is not None:
        into_i, into_f = into_i + peephole[0] * c_prev, into_f + peephole[1] * c_prev
    i = use(0, into_i)
    f = 1 - i if use.coupled else use(0, into_f)
    c = f * c_prev + i * use(1, into_g)
    if peephole is not None:
        into_o = into_o + peephole[2] * c
    h = use(0, into_o) * use(2, c)
    return [h @ others[0].t() if options.proj_size else h, c]

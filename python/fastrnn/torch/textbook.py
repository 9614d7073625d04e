"""The layers in PyTorch's own operations, step by step: what a second derivative is taken through."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .options import Options


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
        if masks is not None:
            masks = torch.stack([m.new_zeros(time, batch, m.shape[1]).index_put((runs,), m) for m in masks])
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
            y, end = _direction(x, start, weights[i * each : (i + 1) * each], runs, cuts, side == 1, options)
            sides.append(y)
            ends.append(end)
        x = torch.cat(sides, -1)
    if packed:
        x = x[runs]
    elif options.batch_first:
        x = x.transpose(0, 1)
    return x, [torch.stack(of_sides) for of_sides in zip(*ends, strict=True)]


def _direction(
    x: Tensor, start: list[Tensor], weights: list[Tensor], runs: Tensor, cuts: Tensor, reverse: bool, options: "Options"
) -> tuple[Tensor, list[Tensor]]:
    """Run one direction of one layer over (T,B,I); sequences that have not begun or have ended keep their state."""
    time, batch = runs.shape
    states = start or [x.new_zeros(shape[1:]) for shape in options.state_shapes(batch)]
    size = states[0].shape[1]
    if reverse:  # a cut lies between t-1 and t
        cuts = torch.cat([cuts[1:], torch.zeros_like(cuts[:1])])
    rows: list[Tensor] = [x.new_zeros(batch, size)] * time
    for t in reversed(range(time)) if reverse else range(time):
        cut, running = cuts[t, :, None], runs[t, :, None]
        after = _step(x[t], [torch.where(cut, 0, s) for s in states], weights, options)
        rows[t] = torch.where(running, after[0], 0)
        states = [torch.where(running, new, old) for new, old in zip(after, states, strict=True)]
    return torch.stack(rows) if rows else x.new_zeros(0, batch, size), states


def _step(x: Tensor, states: list[Tensor], weights: list[Tensor], options: "Options") -> list[Tensor]:
    """Apply the equations of torch.nn.RNN, GRU and LSTM."""
    h = states[0]
    projected = options.proj_size > 0
    w_ih, w_hh, *biases = weights[:-1] if projected else weights
    of_x, of_h = x @ w_ih.t(), h @ w_hh.t()
    if biases:
        of_x, of_h = of_x + biases[0], of_h + biases[1]
    if options.cell == "rnn_tanh":
        return [torch.tanh(of_x + of_h)]
    if options.cell == "rnn_relu":
        return [torch.relu(of_x + of_h)]
    if options.cell == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, -1), of_h.chunk(3, -1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return [(1 - z) * n + z * h]
    i, f, g, o = (of_x + of_h).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return [h @ weights[-1].t() if projected else h, c]

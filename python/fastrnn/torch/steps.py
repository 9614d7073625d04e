"""One step of a cell on the CPU, straight to the core: describing every tensor would take longer than the step.

The core gets addresses, so everything about the tensors is looked at here. Where something is out of the ordinary,
`run` returns None: the operators do the same work, and raise what torch.nn raises.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._core import Network
from .autograd import gradients, nobody_looks
from .ops import Options
from .workers import HOST, team_size

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


@functools.lru_cache(maxsize=256)
def _network(cell: str, input_size: int, hidden_size: int, bias: bool, dtype: torch.dtype) -> Network:
    return Network(cell, _DTYPES[dtype], input_size, hidden_size, 0, 1, False, bias, host=HOST)


def _fits(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a tensor is what its address says: dense memory of that shape and dtype on the CPU, and no more to it."""
    return (
        type(t) in _PLAIN
        and t.dtype is dtype
        and t.is_cpu
        and t.shape == shape
        and t.is_contiguous()
        and not t.is_neg()
        and not t._is_zerotensor()
        and t.data_ptr() != 0  # whose storage FSDP has freed
    )


def run(
    cell: str, hidden_size: int, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the next states of a batch x (B,I), or None where that is for the operators.

    Parameters
    ----------
    cell : str
        The core's name of it.
    states
        h (B,H), or h and c, or nothing for zeros.
    weights
        weight_ih, weight_hh, and both biases or none.
    """
    dtype, shape = x.dtype, x.shape
    if dtype not in _DTYPES or len(shape) != 2 or not _fits(x, shape, dtype):
        return None
    B, input_size = shape
    wanted = (B, hidden_size)
    grad = x.requires_grad
    for state in states:
        if not _fits(state, wanted, dtype):
            return None
        grad = grad or state.requires_grad
    shapes = _shapes(cell, input_size, hidden_size)
    for weight, size in zip(weights, shapes, strict=False):
        if not _fits(weight, size, dtype):
            return None
        grad = grad or weight.requires_grad
    if not nobody_looks() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return None
    network = _network(cell, input_size, hidden_size, len(weights) == 4, dtype)
    if grad and torch.is_grad_enabled():
        result: tuple[Tensor, ...] = _Step.apply(_Call(network, cell, len(states)), x, *states, *weights)
        return result
    ends = _new_ends(cell, x, wanted)
    network.step_at(_addresses(weights), _step(x, states, ends[0], ends, None), B, team_size())
    return ends


@functools.lru_cache(maxsize=256)
def _shapes(cell: str, input_size: int, hidden_size: int) -> tuple[tuple[int, ...], ...]:
    """Of the weights; none where the core has no such network."""
    rows = hidden_size * {"lstm": 4, "gru": 3}.get(cell, 1)
    return (rows, input_size), (rows, hidden_size), (rows,), (rows,)


class _Call:
    """What a step is besides its tensors."""

    def __init__(self, network: Network, cell: str, states: int) -> None:
        self.network, self.cell, self.states = network, cell, states


def _new_ends(cell: str, x: Tensor, size: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (x.new_empty(size), x.new_empty(size)) if cell == "lstm" else (x.new_empty(size),)


def _addresses(weights: Sequence[Tensor]) -> tuple[int, ...]:
    if len(weights) == 2:
        return weights[0].data_ptr(), weights[1].data_ptr(), 0, 0
    ih, hh, bias_ih, bias_hh = weights
    return ih.data_ptr(), hh.data_ptr(), bias_ih.data_ptr(), bias_hh.data_ptr()


def _step(
    x: Tensor, states: Sequence[Tensor], y: Tensor, ends: Sequence[Tensor], tape: Tensor | None
) -> tuple[int, ...]:
    h0 = states[0].data_ptr() if states else 0
    c0 = states[1].data_ptr() if len(states) > 1 else 0
    c = ends[1].data_ptr() if len(ends) > 1 else 0
    return (
        x.data_ptr(),
        h0,
        c0,
        y.data_ptr(),
        ends[0].data_ptr() if ends else 0,
        c,
        tape.data_ptr() if tape is not None else 0,
    )


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, weights = tensors[: call.states], tensors[call.states :]
        B = x.shape[0]
        ends = _new_ends(call.cell, x, (B, weights[1].shape[1]))
        y = torch.empty_like(ends[0])  # which backward reads; the caller may write to the other
        tape = torch.empty(call.network.step_tape_bytes(B), dtype=torch.uint8, device="cpu")
        call.network.step_at(_addresses(weights), _step(x, states, y, ends, tape), B, team_size())
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, y, tape)
        return ends

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dc: Tensor | None = None) -> tuple[Any, ...]:
        call: _Call = ctx.call
        x, *tensors, y, tape = ctx.saved_tensors
        states, weights = tensors[: call.states], tensors[call.states :]
        seeds = tuple(None if d is None else d.contiguous() for d in (dh, dc))
        plain = not torch.is_grad_enabled() and nobody_looks()
        if not plain or not all(d is None or _fits(d, y.shape, y.dtype) for d in seeds):
            return None, *_by_operators(call, x, states, weights, y, tape, dh, dc)
        if dh is None and dc is None:
            return (None,) * (2 + len(tensors))
        dx, dstates, dweights = (
            torch.empty_like(x),
            [torch.empty_like(s) for s in states],
            [*map(torch.empty_like, weights)],
        )
        # the core writes the gradient of a state that is not there as well
        h, c = (*dstates, *_new_ends(call.cell, x, y.shape)[len(dstates) :], None)[:2]
        call.network.step_backward_at(
            _addresses(weights),
            _step(x, states, y, (), tape),
            (0 if seeds[0] is None else seeds[0].data_ptr(), 0 if seeds[1] is None else seeds[1].data_ptr()),
            (dx.data_ptr(), h.data_ptr(), 0 if c is None else c.data_ptr()),
            _addresses(dweights),
            x.shape[0],
            team_size(),
        )
        return None, dx, *dstates, *dweights


def _by_operators(
    call: _Call,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    y: Tensor,
    tape: Tensor,
    dh: Tensor | None,
    dc: Tensor | None,
) -> tuple[Any, ...]:
    """The gradients by fastrnn::backward, whose own gradients PyTorch knows."""
    options = Options(call.cell, y.shape[1], 0, 1, False, False)
    given = (x[None], [s[None] for s in states], list(weights), None, None, None, 1.0, *options)
    seeds = [None if d is None else d[None] for d in (dh, dc)]
    dx, dstates, dweights = gradients(given, y[None], tape, None, *seeds)
    return None if dx is None else dx[0], *(None if s is None else s[0] for s in dstates), *dweights


__all__ = ["run"]

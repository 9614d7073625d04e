"""One step of a cell on the CPU, straight to the core: describing every tensor would take longer than the step.

The core gets addresses, so everything about the tensors is looked at here. Where something is out of the ordinary,
`run` returns None: the operators do the same work, and raise what torch.nn raises.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._core import Network
from .autograd import gradients, nobody_looks
from .loops import Loop, Rows, loop_of
from .ops import Options
from .workers import HOST, team_size

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class _Facts(NamedTuple):
    """What the core says of a cell with such sizes."""

    network: Network
    weights: tuple[tuple[int, ...], ...]  # their shapes
    slots: int  # gate gradients of a unit


@functools.lru_cache(maxsize=256)
def _facts(cell: str, input_size: int, hidden_size: int, bias: bool, dtype: torch.dtype) -> _Facts:
    network = Network(cell, _DTYPES[dtype], input_size, hidden_size, 0, 1, False, bias, host=HOST)
    slots, input_slot, _ = network.step_slots()
    rows = hidden_size * (slots - input_slot)
    return _Facts(network, ((rows, input_size), (rows, hidden_size), *[(rows,)] * (2 * bias)), slots)


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
    module: torch.nn.Module, cell: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...] | None:
    """Return the next states of a batch x (B,I), or None where that is for the operators.

    Parameters
    ----------
    module : Module
        The cell, by which its loops are told from others'.
    cell : str
        The core's name of it.
    states
        h (B,H), or h and c, or nothing for zeros.
    weights
        weight_ih, weight_hh, and both biases or none.
    """
    if not nobody_looks() or forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu"):
        return None
    dtype, shape = x.dtype, x.shape
    if dtype not in _DTYPES or len(shape) != 2 or not _fits(x, shape, dtype):
        return None
    B, input_size = shape
    hidden_size = weights[1].shape[-1]
    if not input_size or not hidden_size:
        return None
    facts = _facts(cell, input_size, hidden_size, len(weights) == 4, dtype)
    wanted = (B, hidden_size)
    grad = x.requires_grad
    for state in states:
        if not _fits(state, wanted, dtype):
            return None
        grad = grad or state.requires_grad
    for weight, size in zip(weights, facts.weights, strict=True):
        if not _fits(weight, size, dtype):
            return None
        grad = grad or weight.requires_grad
    if grad and torch.is_grad_enabled():
        loop = loop_of(module, facts.network, weights)
        deferred = loop.open > 0
        loop.open += 1
        shared = loop.shared() if deferred else weights
        result: tuple[Tensor, ...] = _Step.apply(_Call(facts, cell, len(states), loop, deferred), x, *states, *shared)
        return result
    ends = _new_ends(cell, x, wanted)
    facts.network.step_at(_addresses(weights), _step(x, states, ends[0], ends, None), B, team_size())
    return ends


class _Call(NamedTuple):
    """What a step is besides its tensors."""

    facts: _Facts
    cell: str
    states: int
    loop: Loop
    deferred: bool  # whether the gradients of the weights are left to the loop


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
        tape = torch.empty(call.facts.network.step_tape_bytes(B), dtype=torch.uint8, device="cpu")
        call.facts.network.step_at(_addresses(weights), _step(x, states, y, ends, tape), B, team_size())
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, y, tape)
        return ends

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dc: Tensor | None = None) -> tuple[Any, ...]:
        call: _Call = ctx.call
        call.loop.open = 0
        x, *tensors, y, tape = ctx.saved_tensors
        states, weights = tensors[: call.states], tensors[call.states :]
        if dh is None and dc is None:
            return (None,) * (2 + len(tensors))
        seeds = [None if d is None else d.contiguous() for d in (dh, dc)]
        if not _as_saved(call, x, states, weights, y, tape, seeds):
            return None, *_by_operators(call, x, states, weights, y, tape, dh, dc)
        B, size = y.shape
        dx, dstates = torch.empty_like(x), [torch.empty_like(s) for s in states]
        # the core writes the gradient of a state that is not there as well
        h, c = (*dstates, *_new_ends(call.cell, x, y.shape)[len(dstates) :], None)[:2]
        dz, dweights = None, []
        if call.deferred:
            dz = x.new_empty((B, call.facts.slots * size))
        else:
            dweights = [*map(torch.empty_like, weights)]
        call.facts.network.step_backward_at(
            _addresses(weights),
            _step(x, states, y, (), tape),
            (0 if seeds[0] is None else seeds[0].data_ptr(), 0 if seeds[1] is None else seeds[1].data_ptr()),
            (dx.data_ptr(), h.data_ptr(), 0 if c is None else c.data_ptr()),
            (0, 0, 0, 0) if dz is not None else _addresses(dweights),
            0 if dz is None else dz.data_ptr(),
            B,
            team_size(),
        )
        if dz is not None:
            call.loop.leave(Rows(dz, x, states[0] if states else None))
            return None, dx, *dstates, *(None for _ in weights)
        return None, dx, *dstates, *dweights


def _as_saved(
    call: _Call,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    y: Tensor,
    tape: Tensor,
    seeds: Sequence[Tensor | None],
) -> bool:
    """Whether backward can go straight to the core, too: hooks on saved tensors may have given others back."""
    if torch.is_grad_enabled() or not nobody_looks() or len(y.shape) != 2:
        return False
    dtype, (B, size) = y.dtype, y.shape
    return (
        dtype in _DTYPES
        and _fits(x, (B, x.shape[-1]), dtype)
        and all(_fits(s, (B, size), dtype) for s in states)
        and all(_fits(w, shape, dtype) for w, shape in zip(weights, call.facts.weights, strict=True))
        and _fits(y, (B, size), dtype)
        and all(d is None or _fits(d, (B, size), dtype) for d in seeds)
        and type(tape) is Tensor
        and tape.is_cpu
        and tape.dtype is torch.uint8
        and tape.is_contiguous()
        and tape.numel() >= call.facts.network.step_tape_bytes(B)
    )


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

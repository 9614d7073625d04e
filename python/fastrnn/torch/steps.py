"""One step of a cell on the CPU, straight to the core: describing every tensor would take longer than the step.

The core looks at the tensors itself. Where something about them is out of the ordinary, `run` returns None: the
operators do the same work, and raise what torch.nn raises.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._core import Cell, Network, Tensors
from .autograd import gradients
from .guards import nobody_looks
from .loops import Loop, Rows, loop_of
from .options import Options
from .workers import HOST, team_size

_PLAIN = (Tensor, torch.nn.Parameter)
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_TENSORS = Tensors(Tensor.__dlpack_c_exchange_api__, _PLAIN)


class _Facts(NamedTuple):
    """What computes a cell with such sizes."""

    cell: Cell
    slots: int  # gate gradients of a unit


@functools.lru_cache(maxsize=256)
def _facts(cell: str, input_size: int, hidden_size: int, bias: bool, dtype: torch.dtype) -> _Facts:
    network = Network(cell, _DTYPES[dtype], input_size, hidden_size, 0, 1, False, bias, host=HOST)
    core = Cell(network, _TENSORS)
    return _Facts(core, core.slots()[0])


def run(
    module: torch.nn.Module, cell: str, x: Tensor, states: tuple[Tensor, ...], weights: tuple[Tensor, ...]
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
    hidden = weights[1]
    if type(x) not in _PLAIN or x.dtype not in _DTYPES or x.dim() != 2 or hidden.dim() != 2:
        return None
    size, wanted = hidden.shape[1], 2 if cell == "lstm" else 1
    if not size or not x.shape[1]:
        return None
    facts = _facts(cell, x.shape[1], size, len(weights) == 4, x.dtype)
    if len(states) == wanted:
        if any(type(s) not in _PLAIN for s in states):
            return None
        ends = tuple(map(torch.empty_like, states))
    else:
        ends = tuple(x.new_empty((len(x), size)) for _ in range(wanted))
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *states))):
        return ends if facts.cell.step(x, states, weights, ends, None, None, team_size()) else None
    y = torch.empty_like(ends[0])  # which backward reads; the caller may write to the other
    tape = torch.empty(facts.cell.tape_bytes(len(x)), dtype=torch.uint8, device="cpu")
    if not facts.cell.step(x, states, weights, ends, y, tape, team_size()):
        return None
    loop = loop_of(module, facts.cell, weights)
    deferred = loop.open > 0
    loop.open += 1
    call = _Call(facts, cell, len(states), loop, deferred)
    result: tuple[Tensor, ...] = _Step.apply(
        call, (ends, y, tape), x, *states, *(loop.shared() if deferred else weights)
    )
    return result


class _Call(NamedTuple):
    """What a step is besides its tensors."""

    facts: _Facts
    name: str
    states: int
    loop: Loop
    deferred: bool  # whether the gradients of the weights are left to the loop


class _Step(torch.autograd.Function):
    """Takes a step that was computed into the graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, found: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ends: tuple[Tensor, ...]
        ends, y, tape = found
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, y, tape)
        return ends

    @staticmethod
    def backward(ctx: Any, *seeds: Tensor | None) -> tuple[Any, ...]:
        call: _Call = ctx.call
        call.loop.open = 0
        saved = ctx.saved_tensors
        x, states, weights = saved[0], saved[1 : 1 + call.states], saved[1 + call.states : -2]
        y, tape = saved[-2:]
        if all(seed is None for seed in seeds):
            return (None,) * len(saved)
        found = _by_core(call, x, states, weights, y, tape, seeds)
        return None, None, *(found or _by_operators(call, x, states, weights, y, tape, *seeds))


def _by_core(
    call: _Call,
    x: Tensor,
    states: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    y: Tensor,
    tape: Tensor,
    seeds: Sequence[Tensor | None],
) -> tuple[Any, ...] | None:
    """The gradients, or None where they are for the operators: hooks on saved tensors may have given others back."""
    if torch.is_grad_enabled() or not nobody_looks():
        return None
    seeds = tuple(seed if seed is None else seed.contiguous() for seed in seeds)
    dx = torch.empty_like(x)
    dstates = tuple(torch.empty_like(y) for _ in seeds)
    if call.deferred:
        dz, dweights = x.new_empty((len(x), call.facts.slots * y.shape[-1])), ()
    else:
        dz, dweights = None, tuple(map(torch.empty_like, weights))
    done = call.facts.cell.step_backward(x, states, weights, y, tape, seeds, dx, dstates, dweights, dz, team_size())
    if not done:
        return None
    if dz is not None:
        call.loop.leave(Rows(dz, x, states[0] if states else None))
    return dx, *dstates[: call.states], *(dweights or (None,) * len(weights))


def _by_operators(
    call: _Call,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    y: Tensor,
    tape: Tensor,
    *seeds: Tensor | None,
) -> tuple[Any, ...]:
    """The gradients by fastrnn::backward, whose own gradients PyTorch knows."""
    options = Options(call.name, y.shape[1], 0, 1, False, False)
    given = (x[None], [s[None] for s in states], list(weights), None, None, None, 1.0, *options)
    dends = [None if d is None else d[None] for d in seeds]
    dx, dstates, dweights = gradients(given, y[None], tape, None, dends)
    return None if dx is None else dx[0], *(None if s is None else s[0] for s in dstates), *dweights


__all__ = ["run"]

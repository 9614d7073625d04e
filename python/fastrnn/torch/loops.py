"""The gradient of the weights of a cell that is called in a loop, computed once for all steps.

Each step by itself would write whole matrices of gradients for PyTorch to add up. Instead the steps after the first
take the weights through one node of the graph, `_Shared`. The backward of each leaves what the gradients are made of,
its gate gradients, its input and its state, in a `Loop`; that node, which the engine runs after all of them, multiplies
them.
"""

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._core import Cell, product
from .workers import HOST, team_size


class Rows(NamedTuple):
    """What one step leaves: gate gradients (B,slots*H), input (B,I), and the state it began with, None for zeros."""

    dz: Tensor
    x: Tensor
    h0: Tensor | None


class Loop:
    """The weights of one cell as its steps share them, and what the steps of each running backward pass have left."""

    def __init__(self, cell: Cell, weights: Sequence[Tensor]) -> None:
        self.cell, self.weights = cell, tuple(weights)
        self._ids = [*map(id, weights)]
        self.open = 0  # steps since the last backward
        self.left: dict[tuple[int, int], list[Rows]] = {}  # by thread and pass
        self._shared: tuple[Tensor, ...] = ()
        self._made_of: list[tuple[int, bool]] = []

    def fits(self, cell: Cell, weights: Sequence[Tensor]) -> bool:
        return self.cell is cell and self._ids == [*map(id, weights)]

    def shared(self) -> tuple[Tensor, ...]:
        """Return the weights behind the node."""
        now = [(w._version, w.requires_grad) for w in self.weights]
        if now != self._made_of:
            self._shared, self._made_of = _Shared.apply(self, *self.weights), now
        return self._shared

    def leave(self, rows: Rows) -> None:
        """Keep the rows of a step for the node of this backward pass; a pass that asks for no weights forgets them."""
        key = _here()
        found = self.left.get(key)
        if found is None:
            found = self.left[key] = []
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.left.pop(key, None))
        found.append(rows)

    def forget(self) -> None:
        """Drop what a pass that failed in this thread has left."""
        thread = threading.get_ident()
        for key in [key for key in self.left if key[0] == thread]:
            del self.left[key]


_LOOPS: weakref.WeakKeyDictionary[nn.Module, Loop] = weakref.WeakKeyDictionary()


def loop_of(module: nn.Module, cell: Cell, weights: Sequence[Tensor]) -> Loop:
    """Return the loop of a cell, a new one if its weights are others than before."""
    loop = _LOOPS.get(module)
    if loop is None or not loop.fits(cell, weights):
        loop = _LOOPS[module] = Loop(cell, weights)
    if loop.left and torch._C._current_graph_task_id() < 0:
        loop.forget()
    return loop


def _here() -> tuple[int, int]:
    return threading.get_ident(), torch._C._current_graph_task_id()


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: Loop, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.loop = weakref.ref(loop)  # which holds the outputs; the steps keep it alive
        ctx.set_materialize_grads(False)
        return tuple(w.detach() for w in weights)  # the same memory and version

    @staticmethod
    def backward(ctx: Any, *direct: Tensor | None) -> tuple[Tensor | None, ...]:
        loop = ctx.loop()
        rows = None if loop is None else loop.left.pop(_here(), None)
        if rows is None:
            return None, *direct
        made = _gradients(loop.cell, len(direct) == 4, rows)
        return None, *(m if d is None else m + d for m, d in zip(made, direct, strict=True))


def _gradients(cell: Cell, bias: bool, rows: Sequence[Rows]) -> list[Tensor]:
    """The sums over all rows of dz times the input and the state; the same bits for any number of threads."""
    slots, input_slot, turn = cell.slots()
    dz, x = torch.cat([r.dz for r in rows]), torch.cat([r.x for r in rows])
    size = dz.shape[1] // slots
    h0 = torch.cat([dz.new_zeros((len(r.x), size)) if r.h0 is None else r.h0 for r in rows])
    gates = slots - input_slot
    of_x = dz[:, input_slot * size :] if input_slot else dz
    of_h = dz[:, : gates * size] if input_slot else dz
    ones = dz.new_ones((1, len(dz)))
    hidden = [_product(of_h, True, h0)]
    found = [_product(of_x, True, x)]
    if bias:
        found.append(_product(ones, False, of_x)[0])
        hidden.append(_product(ones, False, of_h)[0])
    hidden = [torch.roll(g, -turn * size, 0) if turn else g for g in hidden]
    return [found[0], hidden[0], *found[1:], *hidden[1:]]


def _product(a: Tensor, transposed: bool, b: Tensor) -> Tensor:
    arrays: list[np.ndarray[Any, Any]] = [t.contiguous().numpy() for t in (a, b)]
    return torch.from_numpy(product(arrays[0], transposed, arrays[1], False, team_size(), host=HOST))


__all__ = ["Loop", "Rows", "loop_of"]

"""Derivatives of the operators, first and of any order, and `run`, which picks the operator for a call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import onnx, ops, textbook
from .bits import Bits, infer
from .guards import check_devices, exporting_to_onnx, nobody_looks
from .ops import library
from .options import Options


def _keep(ctx: Any, call: tuple[Any, ...], *more: Tensor | None) -> None:
    """Save the arguments of train, and some more tensors."""
    x, hx, weights, lengths, reset, masks, scale, *options = call
    ctx.set_materialize_grads(False)
    ctx.sizes = len(hx), len(weights)
    ctx.scale, ctx.options = scale, tuple(options)
    ctx.save_for_backward(x, *hx, *weights, lengths, reset, masks, *more)


def _kept(ctx: Any) -> tuple[tuple[Any, ...], list[Tensor | None]]:
    """Return the arguments of train, and what else was saved."""
    states, weights = ctx.sizes
    x, *rest = ctx.saved_tensors
    others = rest[states + weights :]
    return (x, rest[:states], rest[states : states + weights], *others[:3], ctx.scale, *ctx.options), others[3:]


def _first(ctx: Any, dy: Tensor | None, dends: Sequence[Tensor | None]) -> tuple[Any, list[Any], list[Any]]:
    """Return the gradients of x, of the states and of the weights."""
    call, (y, tape) = _kept(ctx)
    return gradients(call, y, tape, dy, dends)


def gradients(
    call: tuple[Any, ...], y: Any, tape: Any, dy: Tensor | None, dends: Sequence[Tensor | None]
) -> tuple[Any, list[Any], list[Any]]:
    """Return the gradients of x, of the states and of the weights, from what train was given and gave."""
    seeds = [t for t in (dy, *dends) if t is not None]
    if not seeds:
        return None, [None] * len(call[1]), [None] * len(call[2])
    if any(torch._C._functorch.is_legacy_batchedtensor(t) for t in seeds):
        return _first_by_textbook(call, (dy, *dends))
    if torch._C._are_functorch_transforms_active():
        dx, *rest = _MappedBackward.apply(_pack(call), dy, *dends, y, tape, call[0], *call[1], *call[2])
        return dx, rest[: len(call[1])], rest[len(call[1]) :]
    direct = not torch.is_grad_enabled() and _is_plain((*seeds, y, tape, call[0], *call[1], *call[2]))
    return (ops.kernels(call[0]).backward if direct else _backward)(dy, list(dends), y, tape, *call)


def _backward(dy: Tensor | None, dends: list[Tensor | None], *rest: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Call the operator. PyTorch differentiates no list with a None in it: what is missing of one becomes zeros."""
    given = [d for d in dends if d is not None]
    if given and len(given) < len(dends):
        shapes = Options(*rest[-len(Options._fields) :]).state_shapes(given[0].shape[1])
        given = [given[0].new_zeros(shape) if d is None else d for d, shape in zip(dends, shapes, strict=True)]
    result: tuple[Tensor, list[Tensor], list[Tensor]] = torch.ops.fastrnn.backward(dy, given, *rest)
    return result


def _first_by_textbook(call: tuple[Any, ...], seeds: Sequence[Tensor | None]) -> tuple[Any, list[Any], list[Any]]:
    """The same for many seeds at once, as torch.autograd.functional.jacobian(vectorize=True) gives them."""
    x, hx, weights, lengths, reset, masks, scale, *options = call
    with torch.enable_grad():
        into = [t.detach().requires_grad_() for t in (x, *hx, *weights)]
        states, parameters = into[1 : 1 + len(hx)], into[1 + len(hx) :]
        y, ends = textbook.run(into[0], states, parameters, lengths, reset, masks, scale, Options(*options))
    pairs = [(r, s) for r, s in zip((y, *ends), seeds, strict=True) if s is not None]
    dx, *others = torch.autograd.grad([r for r, _ in pairs], into, [s for _, s in pairs], allow_unused=True)
    return dx, others[: len(hx)], others[len(hx) :]


def _second(
    ctx: Any, ddx: Tensor | None, ddhx: Sequence[Tensor | None], ddweights: Sequence[Tensor | None]
) -> tuple[list[Any], list[Any]]:
    """Return the gradients of dy and dends, and of x, the states and the weights.

    They are taken of what backward computes, by PyTorch's own means, through the equations as `textbook` has them.
    """
    (x, hx, weights, lengths, reset, masks, scale, *options), given = _kept(ctx)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that nothing is reached through the past of these tensors
        into = [_as_target(t) for t in (x, *hx, *weights)]
        seeds = [None if t is None else _as_target(t) for t in given]
        states, parameters = into[1 : 1 + len(hx)], into[1 + len(hx) :]
        y, last = textbook.run(into[0], states, parameters, lengths, reset, masks, scale, Options(*options))
        pairs = [(r, s) for r, s in zip((y, *last), seeds, strict=False) if s is not None]
        found = torch.autograd.grad(
            [r for r, _ in pairs], into, [s for _, s in pairs], create_graph=True, materialize_grads=True
        )
        ends = [
            (f, w) for f, w in zip(found, (ddx, *ddhx, *ddweights), strict=True) if w is not None and f.requires_grad
        ]
        targets = [*(s for s in seeds if s is not None), *into]
        second: Sequence[Tensor | None] = [None] * len(targets)
        if ends:
            second = torch.autograd.grad(
                [f for f, _ in ends], targets, [w for _, w in ends], create_graph=again, allow_unused=True
            )
    values = iter(second)
    return [None if s is None else next(values) for s in seeds], list(values)


def _as_target(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


_FIXED = (None,) * (4 + len(Options._fields))  # lengths, reset, masks, scale and the options: no gradients


def _train_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], Tensor]) -> None:
    y, _, tape = output
    _keep(ctx, inputs, y, tape)


def _train_gradients(ctx: Any, dy: Tensor | None, dends: list[Tensor | None], _: Any) -> tuple[Any, ...]:
    return *_first(ctx, dy, dends), *_FIXED


def _backward_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, dends, _, _, *call = inputs
    _keep(ctx, tuple(call), dy, *dends)


def _backward_gradients(ctx: Any, ddx: Tensor | None, ddhx: Any, ddweights: Any) -> tuple[Any, ...]:
    states, weights = ctx.sizes
    (of_dy, *of_dends), (of_x, *rest) = _second(ctx, ddx, ddhx or [None] * states, ddweights or [None] * weights)
    return of_dy, of_dends, None, None, of_x, rest[:states], rest[states:], *_FIXED


def _infer_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _keep(ctx, (*inputs[:5], None, 1.0, *inputs[5:]))


def _infer_gradients(ctx: Any, dy: Tensor | None, dends: list[Tensor | None]) -> tuple[Any, ...]:
    """The call is computed again, with a tape: exported programs hold infer, and may be differentiated."""
    call, _ = _kept(ctx)
    y, _, tape = torch.ops.fastrnn.train(*call)
    none = (None,) * (2 + len(Options._fields))  # lengths, reset and the options
    return *gradients(call, y, tape, dy, dends), *none


torch.library.register_autograd("fastrnn::infer", _infer_gradients, setup_context=_infer_context, lib=library)
torch.library.register_autograd("fastrnn::train", _train_gradients, setup_context=_train_context, lib=library)
torch.library.register_autograd("fastrnn::backward", _backward_gradients, setup_context=_backward_context, lib=library)


# The same in eager mode, with less around it than a registered gradient has; and for torch.func, which takes no other.


_PLAIN = (Tensor, torch.nn.Parameter)


def _is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nobody but the core has to see a call: no subclass, transform, mode or profiler."""
    gpu = None
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor():
            return False
        if not tensor.is_cpu:
            gpu = tensor.device
    if gpu is not None and (gpu.type != "cuda" or any(t is not None and t.device != gpu for t in tensors)):
        return False
    return nobody_looks()


class _Packing(NamedTuple):
    """The arguments of train that are no differentiable tensors, and how to tell the others apart."""

    states: int
    rest: tuple[Any, ...]  # lengths, reset, masks, scale and the options
    plain: bool  # whether the core may be called directly

    def call(self, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        return x, list(tensors[: self.states]), list(tensors[self.states :]), *self.rest

    def seeds(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return dy and dends, and what follows them among the arguments of backward."""
        count = 1 + Options(*self.rest[4:]).states
        return tensors[:count], tensors[count:]


def _pack(call: tuple[Any, ...], plain: bool = False) -> _Packing:
    return _Packing(len(call[1]), call[3:], plain)


class _Train(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packing: _Packing, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        call = packing.call(x, tensors)
        operator = ops.kernels(x).train if packing.plain else torch.ops.fastrnn.train
        y, ends, tape = operator(*call)
        _keep_train(ctx, call, y, tape)
        return y.clone(), *ends, tape  # a copy: the caller may write to it, backward reads the original

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *given: Tensor | None) -> tuple[Any, ...]:
        dx, dhx, dweights = _first(ctx, dy, given[:-1])
        return None, dx, *dhx, *dweights


class _MappedTrain(_Train):
    generate_vmap_rule = True

    @staticmethod
    def forward(packing: _Packing, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        y, ends, tape = torch.ops.fastrnn.train(*packing.call(x, tensors))
        return y, *ends, tape

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        packing, x, *tensors = inputs
        _keep_train(ctx, packing.call(x, tensors), output[0], output[-1])


def _keep_train(ctx: Any, call: tuple[Any, ...], y: Tensor, tape: Tensor) -> None:
    ctx.mark_non_differentiable(tape)
    _keep(ctx, call, y, tape)


class _MappedBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(packing: _Packing, *tensors: Any) -> tuple[Tensor, ...]:
        (dy, *dends), (y, tape, x, *rest) = packing.seeds(tensors)
        dx, dhx, dweights = _backward(dy, dends, y, tape, *packing.call(x, rest))
        return dx, *dhx, *dweights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        packing, *tensors = inputs
        seeds, (_, _, x, *rest) = packing.seeds(tensors)
        _keep(ctx, packing.call(x, rest), *seeds)

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Any, ...]:
        states, _ = ctx.sizes
        ddx, *rest = given
        seeds, into = _second(ctx, ddx, rest[:states], rest[states:])
        return None, *seeds, None, None, *into


def run(
    x: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    reset: Tensor | None,
    masks: Tensor | None,
    scale: float,
    options: Options,
    training: bool,
    bits: Bits | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Call the operator that fits, with a tape where something is to be differentiated or dropped: y and final states.

    A program exported of a module that is not `training` gets the operator without a tape, which computes everything
    again where it is differentiated after all. `bits`: what a module that is not `training` computes with where nothing
    is to be differentiated. Forward-mode derivatives, and transforms inside transforms, go through
    `textbook`, which PyTorch differentiates.

    Raises
    ------
    RuntimeError
        If a tensor is where fastrnn cannot compute, or not all are at one place.
    """
    compiling, exporting = torch.compiler.is_compiling(), torch.compiler.is_exporting()
    if exporting and exporting_to_onnx():
        return onnx.write(x, hx, weights, lengths, reset, masks, options)
    if exporting:
        hx = hx or _zeros(x, lengths, options)  # AOTInductor takes an empty list for none at all
    call = (x, list(hx), list(weights), lengths, reset, masks, scale, *options)
    tensors = (*hx, *weights)
    plain = not compiling and _is_plain((x, *tensors))
    if not plain or not x.is_cpu:
        check_devices(options.cell, x, *tensors)
    mapped = torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0 or (mapped and torch._C._functorch.maybe_current_level() > 1):
        return textbook.run(x, call[1], call[2], lengths, reset, masks, scale, options)
    wanted = torch.is_grad_enabled() and (mapped or x.requires_grad or any(t.requires_grad for t in tensors))
    if bits is not None and not training and (exporting or not wanted):
        return infer(bits, plain, call[:5], options)
    if masks is None and (not wanted or (exporting and not training)):
        y, ends = (ops.kernels(x).infer if plain else torch.ops.fastrnn.infer)(*call[:5], *options)
    elif not wanted or compiling:
        y, ends, _ = torch.ops.fastrnn.train(*call)
    else:
        function: Any = _MappedTrain if mapped else _Train
        y, *ends, _ = function.apply(_pack(call, plain), x, *tensors)
    return y, ends


def _zeros(x: Tensor, lengths: Tensor | None, options: Options) -> list[Tensor]:
    """The states that a call without any begins with."""
    batch = x.shape[0 if options.batch_first else 1] if x.dim() == 3 or lengths is None else lengths.shape[0]
    return [x.new_zeros(shape) for shape in options.state_shapes(batch)]


__all__ = ["gradients", "run"]

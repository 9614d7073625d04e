"""Weights in fewer bits: modules in eval mode, without gradients, on weights that were packed once.

What is packed is a cache: of no interest to state_dict, pickles and copies, and made again where a parameter has
another address or version counter than when it was made, or some optimizer has stepped since.
"""

import functools
import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import _core
from ..checks import Problems
from ..frozen import Words, as_given, check_matrices
from ..spec import describe
from .calls import Call
from .guards import exporting_to_onnx, nobody_looks
from .ops import _CALL, _OPTIONS, _for_each, _lend, _network, _on_cpu, _outputs, _whole, library
from .options import Options
from .workers import team_size

_PLAIN = (Tensor, torch.nn.Parameter)


class _Packed(NamedTuple):
    """Packed weights, and what they were made of."""

    core: _core.Frozen
    kept: tuple[Tensor, ...]  # the parameters' memory, which nothing else takes while it is here
    seen: list[tuple[int, int]]

    def fits(self, weights: Sequence[Tensor]) -> bool:
        return self.seen == _look(weights)


_steps = 0  # of optimizers in this process: fused ones change parameters without counting it in their version


def _after_step(*_: Any) -> None:
    global _steps
    _steps += 1


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_after_step)


def _look(weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Address and version of each; of those made in inference mode, which have no version, one that never fits."""
    seen = [(w.data_ptr(), -next(_numbers) if w.is_inference() else w._version) for w in weights]
    return [*seen, (_steps, 0)]


_numbers = itertools.count(1)
_all: weakref.WeakValueDictionary[int, "Bits"] = weakref.WeakValueDictionary()  # by number, for compiled programs


class Bits:
    """What a module keeps its weights as in inference, and those that it has packed.

    Attributes
    ----------
    words : pair of str
        For weight_ih and weight_hh.
    number : int
        By which the operator finds it.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.number = next(_numbers)
        self._packed: _Packed | None = None
        _watch_optimizers()
        _all[self.number] = self

    def __reduce__(self) -> tuple[type["Bits"], tuple[Words]]:
        return Bits, (self.words,)

    def core(self, weights: Sequence[Tensor], options: Options, input_size: int) -> _core.Frozen:
        """Return the packed weights of now. Threads may meet here: each returns what fits the weights that it has."""
        packed = self._packed
        if packed is None or not packed.fits(weights):
            packed = self._packed = _pack(weights, options, input_size, self.words)
        return packed.core


# ---- one time step, without what PyTorch does around an operator ---------------------------------------------------


def step_layer(module: Any, x: Any, hx: Any) -> tuple[Tensor, list[Tensor]] | None:
    """Return y and the states of a layer's call with one time step, or None where that is for the operator.

    Parameters
    ----------
    module
        A layer with `Bits`.
    x
        (1,B,I), or with batch_first (B,1,I).
    hx
        h (L,B,P), or h and c (L,B,H), or None for zeros.
    """
    if not _quick(module) or type(x) not in _PLAIN or x.dim() != 3:
        return None
    axis = 1 if module.batch_first else 0
    if x.shape[axis] != 1 or module.bidirectional:
        return None
    states = () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
    options, weights = module._options(), module._weights()
    core = _core_for(module._bits, options, weights, x, states)
    if core is None:
        return None
    arrays = [_array(state) for state in states]
    found = _step(core, options, _array(x)[0 if axis == 0 else (slice(None), 0)], arrays)
    if found is None:
        return None
    y, ends = found
    return torch.from_numpy(np.expand_dims(y, axis)), [torch.from_numpy(end) for end in ends]


def step_cell(module: Any, x: Any, states: Sequence[Any]) -> tuple[Tensor, ...] | None:
    """Return the next states of a cell, x (B,I) and states (B,H), or None where that is for the operator."""
    if not _quick(module) or any(type(t) not in _PLAIN or t.dim() != 2 for t in (x, *states)):
        return None
    options, weights = Options(module._cell(), module.hidden_size, 0, 1, False, False), module._weights()
    core = _core_for(module._bits, options, weights, x, states)
    if core is None:
        return None
    # The axis of layers comes and goes in NumPy, where that takes a fifth of the time.
    found = _step(core, options, _array(x), [_array(state)[None] for state in states])
    return None if found is None else tuple([torch.from_numpy(end[0]) for end in found[1]])


def _quick(module: Any) -> bool:
    """Whether a module is in eval mode, and nobody wants to see operators."""
    return not (
        torch.compiler.is_compiling()
        or module.training
        or torch._C._get_tracing_state() is not None
        or not nobody_looks()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


def _core_for(
    bits: Bits, options: Options, weights: Sequence[Tensor], x: Tensor, states: Sequence[Any]
) -> _core.Frozen | None:
    """Return the packed weights of now, or None where the tensors are for the operator."""
    packed = bits._packed
    fits = packed is not None and packed.fits(weights)
    for t in (x, *states) if fits else (x, *states, *weights):
        if type(t) not in _PLAIN or t.dtype is not torch.float32 or not t.is_cpu or t.is_neg():
            return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *states, *weights)):
        return None
    if len(states) not in (0, options.states) or weights[0].shape[-1] != x.shape[-1]:
        return None
    return packed.core if packed is not None and fits else bits.core(weights, options, x.shape[-1])


def _step(core: _core.Frozen, options: Options, x: Any, states: list[Any]) -> tuple[Any, tuple[Any, ...]] | None:
    """Return y (B,P) and the states (L,B,size) of x (B,I), arrays of NumPy; None where the core does not take them."""
    given: Any = None if not states else states[0] if options.states == 1 else tuple(states)
    found = core.step(x, given, None, None, team_size())
    if found is None:
        return None
    y, ends = found
    return y, (ends,) if options.states == 1 else ends


def _array(tensor: Tensor) -> Any:
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


# ---- packing -------------------------------------------------------------------------------------------------------


def _pack(weights: Sequence[Tensor], options: Options, input_size: int, words: Words) -> _Packed:
    seen = _look(weights)  # before they are read: who changes them meanwhile makes them pack again
    kept = tuple(w.detach() for w in weights)
    has_bias = options.has_bias(len(weights))
    shapes = describe(options.cell, options.proj_size > 0, options.peephole).shapes(
        input_size, options.hidden_size, options.num_layers, has_bias, options.bidirectional, options.proj_size
    )
    problems = Problems(lambda: f"{_name(options)} with weights={as_given(words)!r}")
    named = {name: w.numpy() for name, w in zip(shapes, kept, strict=True)}
    check_matrices(problems, named, words, 'Keep them in full: fastrnn.torch.accelerate(model, weights="float32").')
    problems.refuse()
    core = _network(options, len(weights), input_size, torch.float32).freeze([_whole(w) for w in kept], words)
    return _Packed(core, kept, seen)


def _name(options: Options) -> str:
    name = options.cell.split("_")[0]
    return f"fastrnn.torch.{'sLSTM' if name == 'slstm' else name.upper()}"


def refuse(words: Words, options: Options, x: Tensor, weights: Sequence[Tensor]) -> None:
    """Refuse what only float32 weights on the CPU can be computed with.

    Raises
    ------
    RuntimeError
    """
    who = f"{_name(options)} with weights={as_given(words)!r}"
    instead = 'keep them in full with fastrnn.torch.accelerate(model, weights="float32")'
    for tensor in (x, *weights):
        if tensor.device.type not in ("cpu", "meta"):
            raise RuntimeError(f"{who} runs on the CPU, not on {tensor.device}: move it back, or {instead}")
        if tensor.dtype != torch.float32:
            raise RuntimeError(f"{who} takes float32, not {tensor.dtype}: convert with .float(), or {instead}")
    if options.heads > 1:
        raise RuntimeError(f"{who} cannot have heads={options.heads}: {instead}")
    if torch.compiler.is_exporting() and not exporting_to_onnx():
        raise RuntimeError(f"{who} cannot be exported: a program holds float32 weights; {instead}")


# ---- the operator --------------------------------------------------------------------------------------------------

library.define(
    f"infer_bits({_CALL}, str ih, str hh, int number, {_OPTIONS}) -> (Tensor, Tensor[])",
    tags=torch.Tag.pt2_compliant_tag,
)


@_on_cpu
def infer_bits(*given: Any) -> tuple[Tensor, list[Tensor]]:
    """As fastrnn::infer, with weights in fewer bits, which the `Bits` of that number may have packed already."""
    ih, hh, number = given[5:8]
    call = Call.read_inference(*given[:5], *given[8:])
    bits, options, size = _all.get(number), call.options, call.x.shape[-1]
    if bits is None or bits.words != (ih, hh):
        core = _pack(call.weights, options, size, (ih, hh)).core
    else:
        core = bits.core(call.weights, options, size)
    y, ends = core.forward(*_lend(call), options.batch_first, team_size())
    return torch.from_numpy(y), [torch.from_numpy(end) for end in ends]


@torch.library.register_fake("fastrnn::infer_bits", lib=library)
def _fake(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], lengths: Tensor | None, *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    return _outputs(x, hx, weights, lengths, Options(*rest[4:]))


torch.library.register_vmap("fastrnn::infer_bits", _for_each(torch.ops.fastrnn.infer_bits), lib=library)


def infer(bits: Bits, plain: bool, call: tuple[Any, ...], options: Options) -> tuple[Tensor, list[Tensor]]:
    """Compute a call (x, hx, weights, lengths, reset) of a module; `plain`: without PyTorch's seeing an operator."""
    refuse(bits.words, options, call[0], call[2])
    operator = infer_bits if plain else torch.ops.fastrnn.infer_bits
    found: tuple[Tensor, list[Tensor]] = operator(*call, *bits.words, bits.number, *options)
    return found


__all__ = ["Bits", "infer", "step_cell", "step_layer"]

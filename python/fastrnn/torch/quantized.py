"""LSTM and GRU modules that torch.ao has quantized dynamically, on the int8 weights that they hold.

torch.ao.nn.quantized.dynamic is deprecated; it is not imported here: a model that holds one of its modules has done so.
`accelerate` gives such a module a class made here, derived from the one that it has, whose calls go to packed weights.
Those are made at the first call, and again when the module has got other ones; pickles and copies do not hold them.
"""

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import _core
from ..frozen import keep_integers
from .guards import nobody_looks
from .identity import derived, remade
from .ops import _network, _rows, _whole
from .options import Options
from .sequences import lengths_of
from .workers import team_size

_ORIGIN = "torch.ao.nn.quantized.dynamic.modules.rnn"
_CELLS = {"LSTM": "lstm", "GRU": "gru"}


class _Packed:
    """Packed weights, and the objects of torch.ao's that they were made of; a copy holds nothing."""

    def __init__(self, core: _core.Frozen | None = None, made_of: tuple[Any, ...] = ()) -> None:
        self.core, self.made_of = core, made_of

    def __reduce__(self) -> tuple[type["_Packed"], tuple[()]]:
        return _Packed, ()


class _Taken:
    """A module of torch.ao's with a class made here; ``_was`` is the class that it had."""

    _was: type
    _packed: _Packed

    def __reduce_ex__(self, protocol: Any) -> Any:
        return remade(super().__reduce_ex__(protocol), _anew, self._was)


def _anew(kind: type) -> Any:
    """A module without attributes, for pickle and copies."""
    made: Any = _made(kind)
    return made.__new__(made)


def _bases() -> tuple[type, ...]:
    module = sys.modules.get(_ORIGIN)
    return () if module is None else (module.LSTM, module.GRU)


def is_quantized_layer(module: nn.Module) -> bool:
    """Tell whether it is torch.ao's dynamically quantized LSTM or GRU."""
    return isinstance(module, _bases())


def is_taken(module: nn.Module) -> bool:
    """Tell whether fastrnn computes it already."""
    return isinstance(module, _Taken)


def obstacle(module: Any) -> str | None:
    """Return why a quantized LSTM or GRU keeps its own code."""
    if type(module) not in _bases():
        return f"{type(module).__name__} is derived from torch.ao's, and may do something else"
    if module.dtype != torch.qint8:
        return f"its weights are {module.dtype}: accelerate the model that it was made of, in float32"
    if "forward" in vars(module) or "forward_impl" in vars(module):
        return "its forward was replaced"
    return None


def take_quantized(module: Any) -> None:
    """Let packed weights compute a module's calls."""
    kind: Any = type(module)
    module.__class__ = _made(kind)
    module._packed = _Packed()


def give_back_quantized(module: nn.Module) -> None:
    """Give a module the class back that it had."""
    if isinstance(module, _Taken):
        module.__dict__.pop("_packed", None)
        module.__class__ = module._was


@functools.cache
def _made(kind: type) -> type:
    """The class derived from one of torch.ao's whose calls are computed here."""
    theirs: Any = kind

    def forward_impl(
        self: Any, input: Any, hx: Any, batch_sizes: Any, max_batch_size: int, sorted_indices: Any
    ) -> tuple[Any, Any]:
        states = [] if hx is None else list(hx) if self.mode == "LSTM" else [hx]
        if self.training or not _ordinary((input, *states)) or not input.numel():
            return theirs.forward_impl(self, input, hx, batch_sizes, max_batch_size, sorted_indices)
        if hx is None:
            self.check_input(input, batch_sizes)
        else:
            hx = self.permute_hidden(hx, sorted_indices)
            self.check_forward_args(input, hx, batch_sizes)
            states = list(hx) if self.mode == "LSTM" else [hx]
        batch_first = self.batch_first and batch_sizes is None
        lengths = None if batch_sizes is None else _whole(lengths_of(batch_sizes))
        given = [_whole(state.detach()) for state in states]
        x = _rows(input.detach(), batch_first)
        y, ends = _core_of(self).forward(x, given, lengths, None, batch_first, team_size())
        after = tuple(map(torch.from_numpy, ends))
        return torch.from_numpy(y), after if self.mode == "LSTM" else after[0]

    return derived(kind, (_Taken, kind), {"forward_impl": forward_impl})


def _ordinary(tensors: tuple[Any, ...]) -> bool:
    """Whether all are float32 on the CPU, and nobody looks at a call: neither compiles, traces nor transforms it."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0:
        return False
    plain = all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.is_cpu for t in tensors)
    return plain and nobody_looks() and not any(t.is_neg() for t in tensors)


def _core_of(module: Any) -> _core.Frozen:
    made_of = tuple(one.param for one in module._all_weight_values)
    packed: _Packed = module._packed
    same = len(packed.made_of) == len(made_of) and all(a is b for a, b in zip(packed.made_of, made_of, strict=True))
    if packed.core is None or not same:
        packed = module._packed = _Packed(_pack(module), made_of)
    assert packed.core is not None
    return packed.core


def _pack(module: Any) -> _core.Frozen:
    """Pack the integers of a module, with the scales that they have."""
    found = module._weight_bias()
    arrays: list[Any] = []
    scales: list[Any] = []
    for layer in range(module.num_layers):
        for suffix in [f"l{layer}", f"l{layer}_reverse"][: 1 + module.bidirectional]:
            for name in (f"weight_ih_{suffix}", f"weight_hh_{suffix}"):
                values, counts = keep_integers(*_integers(found["weight"][name]))
                arrays.append(values)
                scales.append(counts)
            for name in (f"bias_ih_{suffix}", f"bias_hh_{suffix}"):
                arrays.append(found["bias"][name].detach().numpy())
                scales.append(None)
    options = Options(
        _CELLS[module.mode], module.hidden_size, 0, module.num_layers, module.bidirectional, module.batch_first
    )
    network = _network(options, len(arrays), module.input_size, torch.float32)
    return network.freeze(arrays, ("int8", "int8"), None, scales)


def _integers(weight: Tensor) -> tuple[Any, Any]:
    """The integers of a matrix (rows,K), less their zero point, and what one of each row counts."""
    integers = weight.int_repr().numpy().astype(np.int16)
    rows = len(integers)
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return integers - weight.q_zero_point(), np.full(rows, weight.q_scale(), np.float32)
    zeros = weight.q_per_channel_zero_points().numpy().astype(np.int16)
    return integers - zeros[:, None], weight.q_per_channel_scales().numpy().astype(np.float32)


__all__ = ["give_back_quantized", "is_quantized_layer", "is_taken", "obstacle", "take_quantized"]

"""The operators fastrnn::infer, train and backward: the core on tensors, and what PyTorch has to know about them.

Arguments of all three: ``x`` (T,B,I), with ``batch_first`` (B,T,I), or packed (tokens,I); ``hx`` the initial states,
(h,), (h, c) or none at all for zeros; ``weights`` in the order of the module's parameters; ``lengths`` (B,) int64;
``reset`` (T,B) or (B,T) bool; ``masks`` (L-1,T,B,D*P), for packed x (L-1,tokens,D*P), bool and ``scale``, dropout
between the layers, in training with zoneout or recurrent dropout as `noise` has them; then the fields of `Options`.
``infer`` and ``train`` return ``y`` and the final states, ``train`` also a tape, bytes that only ``backward`` reads;
``dends`` are the gradients of the final states, or none at all for zeros. Tensors in half precision are computed in
float32 on the CPU; `gpu` says how on a GPU.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from .._core import Network
from ..memory import Drawn
from .calls import Call, check_states, rows
from .guards import check_devices, exporting_to_onnx
from .noise import Noise, split
from .options import Options
from .workers import HOST, team_size

_OPTIONS = (
    "str cell, int hidden_size, int proj_size, int num_layers, bool bidirectional, bool batch_first, "
    "str variant, int heads, str build=''"
)
_CALL = "Tensor x, Tensor[] hx, Tensor[] weights, Tensor? lengths, Tensor? reset"
_DROPOUT = "Tensor? masks, float scale"


def _new_library() -> torch.library.Library:
    """Open the namespace of the operators; an import before this one in the same process may have left its own."""
    before = getattr(torch.ops.fastrnn, "_library", None)
    if before is not None:
        before._destroy()
    found = torch.library.Library("fastrnn", "DEF")
    torch.ops.fastrnn._library = found
    return found


library = _new_library()
library.define(f"infer({_CALL}, {_OPTIONS}) -> (Tensor, Tensor[])", tags=torch.Tag.pt2_compliant_tag)
library.define(
    f"train({_CALL}, {_DROPOUT}, {_OPTIONS}) -> (Tensor, Tensor[], Tensor)", tags=torch.Tag.pt2_compliant_tag
)
library.define(
    f"backward(Tensor? dy, Tensor[] dends, Tensor y, Tensor tape, {_CALL}, {_DROPOUT}, {_OPTIONS}) "
    "-> (Tensor, Tensor[], Tensor[])",
    tags=torch.Tag.pt2_compliant_tag,
)


Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _register(name: str, device: str, kernel: Callable[..., Any]) -> None:
    """Register a function as the operator of that name on a device, without letting a compiler look into it."""
    hidden: list[Any] = []

    def call(*arguments: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # whose import takes seconds; who compiles has it already
            return kernel(*arguments)
        if not hidden:
            hidden.append(sys.modules["torch._dynamo"].disable(kernel))
        return hidden[0](*arguments)

    torch.library.impl(library, name, device)(call)


def _on_cpu(kernel: Kernel) -> Kernel:
    _register(kernel.__name__, "CPU", kernel)
    return kernel


def _gpu() -> Any:
    """Return the operators on CUDA tensors, which load the GPU code."""
    from . import gpu

    return gpu


def _on_gpu(name: str) -> None:
    """Register `gpu`'s function of that name, to be loaded when it is called."""
    _register(name, "CUDA", lambda *arguments: getattr(_gpu(), name)(*arguments))


def kernels(x: Tensor) -> Any:
    """Return the module whose infer, train and backward compute where x is, for calls that PyTorch need not see."""
    return _gpu() if x.is_cuda else sys.modules[__name__]


# On the CPU

_HALF = (torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=256)
def _network(options: Options, weights: int, input_size: int, dtype: torch.dtype) -> Network:
    """Return the network that has so many weights."""
    name = "float64" if dtype == torch.float64 else "float32"
    sizes = (input_size, options.hidden_size, options.proj_size, options.num_layers)
    bias = options.has_bias(weights)
    return Network(
        options.cell, name, *sizes, options.bidirectional, bias, general=options.general, host=HOST, heads=options.heads
    )


def _whole(tensor: Tensor | None) -> Any:
    """Lend the core a C-contiguous tensor's memory; in half precision that of a copy in float32.

    Tensor.numpy() would fix the size of its storage, which FSDP frees.
    """
    if tensor is None:
        return None
    return to_dlpack((tensor.float() if tensor.dtype in _HALF else tensor).contiguous())


def _rows(tensor: Tensor | None, batch_first: bool) -> Any:
    """Lend a tensor (T,B,n), or packed (tokens,n)."""
    if tensor is None:
        return None
    return to_dlpack(rows(tensor.float() if tensor.dtype in _HALF else tensor, batch_first))


def _flags(reset: Tensor | None, batch_first: bool) -> Any:
    return None if reset is None else to_dlpack(reset.t() if batch_first else reset)


def _drawn(call: Call) -> Drawn:
    """Lend the core the masks of dropout, and of zoneout and recurrent dropout."""
    tokens = tuple(call.x.shape[:-1])
    if call.options.batch_first and len(tokens) == 2:
        tokens = tokens[::-1]
    batch = tokens[1] if len(tokens) == 2 else 0 if call.lengths is None else len(call.lengths)
    dropped, noise = split(call.masks, call.options, tokens, batch)
    if noise is not None:
        kept, by_time, of_kept, *zoned = noise
        noise = Noise(_whole(kept), by_time, of_kept, *map(_whole, zoned))
    return Drawn(_whole(dropped), call.scale, noise)


def _tensor(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _lend(call: Call) -> tuple[Any, Any, Any, Any]:
    """Lend the core x, the states, lengths and reset."""
    x, hx, _, lengths, reset, _, _, options = call
    batch_first = options.batch_first
    return _rows(x, batch_first), [_whole(h) for h in hx], _whole(lengths), _flags(reset, batch_first)


def _network_of(call: Call) -> Network:
    return _network(call.options, len(call.weights), call.x.shape[-1], call.x.dtype)


@_on_cpu
def infer(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], lengths: Tensor | None, reset: Tensor | None, *given: Any
) -> tuple[Tensor, list[Tensor]]:
    options = Options(*given)  # no Call, which takes a tenth of a small one's time
    check_states(hx, options)
    y, ends, _ = _network(options, len(weights), x.shape[-1], x.dtype).forward(
        [_whole(w) for w in weights],
        _rows(x, options.batch_first),
        [_whole(h) for h in hx],
        _whole(lengths),
        _flags(reset, options.batch_first),
        False,
        options.batch_first,
        team_size(),
    )
    return _tensor(y, x.dtype), [_tensor(end, x.dtype) for end in ends]


def _tape_size(x: Tensor, options: Options, weights: int, dropout: bool) -> Any:
    """Return how many bytes a tape takes at most; of symbolic sizes a symbolic number."""
    on_gpu = x.device.type == "cuda"
    network = _gpu().network(options, weights, x) if on_gpu else _network(options, weights, int(x.shape[-1]), x.dtype)
    each, more = network.tape_room(dropout)
    return math.prod(x.shape[:-1]) * each + more


@_on_cpu
def train(*given: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    call = Call.read(*given)
    size = _tape_size(call.x, call.options, len(call.weights), call.masks is not None)
    tape = torch.empty(size, dtype=torch.uint8, device=call.x.device)
    y, ends, _ = _network_of(call).forward(
        [_whole(w) for w in call.weights],
        *_lend(call),
        True,
        call.options.batch_first,
        team_size(),
        drawn=_drawn(call),
        room=to_dlpack(tape),
    )
    return _tensor(y, call.x.dtype), [_tensor(end, call.x.dtype) for end in ends], tape


@_on_cpu
def backward(
    dy: Tensor | None, dends: list[Tensor | None], y: Tensor, tape: Tensor, *given: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    call = Call.read(*given)
    x, states, *rest = _lend(call)
    network, batch_first, dtype = _network_of(call), call.options.batch_first, call.x.dtype
    made = network.tape(x, _whole(y), states, *rest, batch_first=batch_first, room=to_dlpack(tape), drawn=_drawn(call))
    dx, begins, gradients, _ = network.backward(
        [_whole(w) for w in call.weights],
        made,
        _rows(dy, batch_first),
        [_whole(d) for d in dends],
        False,
        team_size(),
    )
    return (
        _tensor(dx, dtype),
        [_tensor(s, dtype) for s in begins[: len(call.hx)]],
        [_tensor(g, dtype) for g in gradients],
    )


# On a GPU

for _name in ("infer", "train", "backward"):
    _on_gpu(_name)


# Without data


def _outputs(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], lengths: Tensor | None, options: Options
) -> tuple[Tensor, list[Tensor]]:
    check_devices(options.cell, x, *hx, *weights)
    if x.dim() == 2:
        if lengths is None:
            raise RuntimeError("packed sequences need their lengths")
        batch = lengths.shape[0]
    else:
        batch = x.shape[0] if options.batch_first else x.shape[1]
    y = x.new_empty((*x.shape[:-1], options.output_size))
    return y, [x.new_empty(shape) for shape in options.state_shapes(batch)]


@torch.library.register_fake("fastrnn::infer", lib=library)
def _infer_fake(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], lengths: Tensor | None, reset: Tensor | None, *given: Any
) -> tuple[Tensor, list[Tensor]]:
    _refuse_onnx(x, reset, None, Options(*given))
    return _outputs(x, hx, weights, lengths, Options(*given))


def _refuse_onnx(x: Tensor, reset: Any, masks: Any, options: Options) -> None:
    if exporting_to_onnx():
        from . import onnx

        onnx.refuse(x, reset, masks, options)


@torch.library.register_fake("fastrnn::train", lib=library)
def _train_fake(
    x: Tensor, hx: list[Tensor], weights: list[Tensor], lengths: Tensor | None, *rest: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    reset, masks, _, *given = rest
    options = Options(*given)
    _refuse_onnx(x, reset, masks, options)
    size: Any
    if x.dim() == 2 and x.device.type == "cuda":  # how many time steps there are stands in the lengths
        size = torch.library.get_ctx().new_dynamic_size()
    else:
        size = _tape_size(x, options, len(weights), masks is not None)
    return *_outputs(x, hx, weights, lengths, options), x.new_empty(size, dtype=torch.uint8)


@torch.library.register_fake("fastrnn::backward", lib=library)
def _backward_fake(
    dy: Tensor | None,
    dends: list[Tensor | None],
    y: Tensor,
    tape: Tensor,
    x: Tensor,
    hx: list[Tensor],
    weights: list[Tensor],
    *rest: Any,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    dx = x.new_empty(x.shape)
    if x.device.type == "cuda" and x.dim() == 3 and Options(*rest[-len(Options._fields) :]).batch_first:
        dx = x.new_empty((x.shape[1], x.shape[0], x.shape[2])).transpose(0, 1)  # a GPU computes it time first
    return dx, [h.new_empty(h.shape) for h in hx], [w.new_empty(w.shape) for w in weights]


# Under vmap and autocast


def _for_each(op: Any) -> Any:
    """Return a rule for vmap that runs the operator once for each element of the mapped axis."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def pick(argument: Any, dim: Any, i: int) -> Any:
            if isinstance(argument, (list, tuple)):
                return [pick(a, d, i) for a, d in zip(argument, dim, strict=True)]
            return argument if dim is None else argument.select(dim, i)

        pairs = list(zip(arguments, in_dims, strict=True))
        results = [op(*(pick(a, d, i) for a, d in pairs)) for i in range(info.batch_size)]
        stacked = [
            [torch.stack(tensors) for tensors in zip(*result, strict=True)]
            if isinstance(result[0], (list, tuple))
            else torch.stack(result)
            for result in zip(*results, strict=True)
        ]
        return tuple(stacked), tuple([0] * len(s) if isinstance(s, list) else 0 for s in stacked)

    return rule


for _name in ("infer", "train", "backward"):
    torch.library.register_vmap(f"fastrnn::{_name}", _for_each(getattr(torch.ops.fastrnn, _name)), lib=library)
for _name in ("infer", "train"):
    torch.library.register_autocast(f"fastrnn::{_name}", "cpu", torch.float32, lib=library)


__all__ = ["Options", "backward", "infer", "kernels", "library", "train"]

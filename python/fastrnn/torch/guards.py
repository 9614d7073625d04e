"""What calls are refused for."""

import functools
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import cuda


def refuse_torchscript() -> None:
    """Raise RuntimeError while TorchScript traces: it would keep results as constants."""
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(NO_TORCHSCRIPT)


NO_TORCHSCRIPT = (
    "fastrnn.torch cannot be traced or compiled by TorchScript: use torch.export or torch.compile, or call "
    "fastrnn.torch.restore(model) first"
)


def traced_for_onnx() -> bool:
    """Tell whether torch.onnx.export(dynamo=False) traces, which knows torch.nn's own modules."""
    return torch._C._get_tracing_state() is not None and exporting_to_onnx()


def exporting_to_onnx() -> bool:
    """Tell whether torch.onnx.export runs."""
    onnx = sys.modules.get("torch.onnx")  # whose import takes long
    return onnx is not None and bool(onnx.is_in_onnx_export())


def leaf_call(module: torch.nn.Module, input: Any, *others: Any, **named: Any) -> Any:
    """Record a call in the graph that torch.fx makes, where torch.nn's modules are leaves; None if it makes none."""
    if not isinstance(input, torch.fx.Proxy):
        return None
    tracer = input.tracer
    given = {name: value for name, value in named.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *others), given)


@functools.cache
def _without_gpu() -> str | None:
    return cuda.why_not()


def computes_on(device: torch.device) -> bool:
    """Tell whether tensors on a device can be computed with; those without data can be anywhere."""
    return device.type in ("cpu", "meta") or (device.type == "cuda" and _without_gpu() is None)


def check_devices(cell: str, input: Tensor, *tensors: Tensor) -> None:
    """Refuse tensors that are on neither the CPU nor a GPU that fastrnn can use, or not all at one place.

    Raises
    ------
    RuntimeError
        That names the device and what to do.
    """
    device = input.device
    if not computes_on(device):
        name = cell.split("_")[0].upper()
        why = f": {_without_gpu()}" if device.type == "cuda" else ""
        raise RuntimeError(
            f"fastrnn.torch.{name} cannot compute with a tensor on {device}{why}. "
            "Move model and input with .cpu(), or let fastrnn.torch.accelerate(model, fallback=True) run "
            f"torch.nn.{name} there."
        )
    for tensor in tensors:
        if tensor.device != device:
            raise RuntimeError(
                f"Input, states and parameters are not at the same device, found input tensor at {device} and "
                f"another at {tensor.device}"
            )


def nobody_looks() -> bool:
    """Whether no transform, mode or profiler wants to see operators."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd._profiler_enabled()
    )


def in_autocast(device: torch.device) -> bool:
    """Tell whether autocast is on for tensors on a device."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def as_autocast(tensor: Tensor) -> Tensor:
    """Return what autocast makes of a tensor: float32 on the CPU, whose kernels compute in it, on a GPU its dtype."""
    if tensor.device.type == "cuda":
        to = torch.get_autocast_dtype("cuda")
        return tensor.to(to) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def autocast_dtype(name: str, tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype of what torch.nn's module of that name makes of these tensors in autocast."""
    first, *others = tensors
    lower = torch.get_autocast_dtype(first.device.type)
    if first.is_cuda or name in ("RNN", "RNNCell") or (name == "LSTM" and lower == torch.bfloat16):
        return first.dtype if first.dtype == torch.float64 else lower
    return functools.reduce(torch.promote_types, (t.dtype for t in (first, *others)), lower)

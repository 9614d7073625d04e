"""What calls are refused for."""

import functools

import torch
from torch import Tensor

from .. import cuda


def refuse_torchscript() -> None:
    """Raise RuntimeError while TorchScript traces: it would keep results as constants."""
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "fastrnn.torch cannot be traced by TorchScript: use torch.export or torch.compile, or restore(model) first"
        )


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


def in_autocast(device: torch.device) -> bool:
    """Tell whether autocast is on for tensors on a device."""
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def as_autocast(tensor: Tensor) -> Tensor:
    """Return what autocast makes of a tensor: float32 on the CPU, whose kernels compute in it, on a GPU its dtype."""
    if tensor.device.type == "cuda":
        to = torch.get_autocast_dtype("cuda")
        return tensor.to(to) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

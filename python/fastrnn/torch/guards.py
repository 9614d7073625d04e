"""What calls are refused for."""

import torch
from torch import Tensor


def refuse_torchscript() -> None:
    """Raise RuntimeError while TorchScript traces: it would keep results as constants."""
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "fastrnn.torch cannot be traced by TorchScript: use torch.export or torch.compile, or restore(model) first"
        )


def check_devices(cell: str, input: Tensor, *tensors: Tensor) -> None:
    """Refuse tensors that are not in the CPU's memory, or not all at one place.

    Raises
    ------
    RuntimeError
        That names the device and what to do.
    """
    device = input.device
    if device.type not in ("cpu", "meta"):
        name = cell.split("_")[0].upper()
        raise RuntimeError(
            f"fastrnn.torch.{name} computes on the CPU and got a tensor on {device}: this fastrnn has no CUDA backend. "
            "Move model and input with .cpu(), or let fastrnn.torch.accelerate(model, fallback=True) run "
            f"torch.nn.{name} there."
        )
    for tensor in tensors:
        if tensor.device != device:
            raise RuntimeError(
                f"Input, states and parameters are not at the same device, found input tensor at {device} and "
                f"another at {tensor.device}"
            )

"""Which tensors the core can read."""

from torch import Tensor


def checked_device(name: str, *tensors: Tensor) -> None:
    """Refuse tensors that are not in the CPU's memory.

    Raises
    ------
    RuntimeError
        That names the device and what to do.
    """
    for tensor in tensors:
        if tensor.device.type not in ("cpu", "meta"):
            raise RuntimeError(
                f"fastrnn.torch.{name} computes on the CPU and got a tensor on {tensor.device}: this fastrnn has no "
                "CUDA backend. Move model and input with .cpu(), or let fastrnn.torch.accelerate(model, fallback=True) "
                f"run torch.nn.{name} there."
            )

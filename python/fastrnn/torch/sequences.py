"""What runs when: lengths and resets as the layers are given them, checked."""

from typing import Any

import torch
from torch import Tensor


def lengths_of(batch_sizes: Tensor) -> Tensor:
    """Return how long each row of a packed sequence is, from how many rows run at each time."""
    rows = torch.arange(int(batch_sizes[0]), device="cpu")
    return (batch_sizes[None, :] > rows[:, None]).sum(1)


def read_lengths(name: str, lengths: Any, B: int, T: int, device: torch.device) -> Tensor:
    """Return lengths (B,); those that are on the GPU beside their input stay there, and nobody waits to see them."""
    stays = isinstance(lengths, Tensor) and lengths.device == device
    tensor = lengths if stays else lengths.cpu() if isinstance(lengths, Tensor) else torch.tensor(lengths, device="cpu")
    if not tensor.numel():
        tensor = tensor.to(torch.int64)  # an empty list makes float32
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} got lengths of dtype {tensor.dtype}: they must be integers")
    tensor = tensor.to(torch.int64).reshape(1) if tensor.dim() == 0 and B == 1 else tensor.to(torch.int64)
    if tensor.shape != (B,):
        raise ValueError(
            f"{name} got lengths of shape {tuple(tensor.shape)} but must have ({B},): one for each sequence"
        )
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    seen = not transformed and type(tensor) is Tensor and tensor.is_cpu  # no stand-in without values
    if seen and B and not (int(tensor.min()) >= 0 and int(tensor.max()) <= T):
        raise ValueError(f"{name} got lengths {tensor.tolist()} but they must lie in 0..{T}, the number of time steps")
    return tensor


def read_reset(name: str, reset: Any, shape: tuple[int, int], batched: bool) -> Tensor:
    """Return reset as a tensor of that shape, (T,B) or (B,T) as the input is laid out."""
    if not isinstance(reset, Tensor):
        reset = torch.tensor(reset, device="cpu")  # a copy: backward reads it again
    if reset.dtype != torch.bool:
        raise TypeError(f"{name} got reset of dtype {reset.dtype}: it must be torch.bool")
    wanted = shape if batched else (shape[0] * shape[1],)
    if reset.shape != wanted:
        raise ValueError(
            f"{name} got reset of shape {tuple(reset.shape)} but it must have {wanted}, laid out as the input"
        )
    return reset.reshape(shape)


__all__ = ["lengths_of", "read_lengths", "read_reset"]

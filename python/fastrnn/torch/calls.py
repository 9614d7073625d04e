"""What the operators are given, on every device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .options import Options


class Call(NamedTuple):
    """The arguments that the operators share; `ops` says what they are."""

    x: Tensor
    hx: Sequence[Tensor]
    weights: Sequence[Tensor]
    lengths: Tensor | None
    reset: Tensor | None
    masks: Tensor | None
    scale: float
    options: Options

    @staticmethod
    def read(*given: Any) -> "Call":
        """Read the arguments of train, and the last ones of backward."""
        options = Options(*given[7:])
        check_states(given[1], options)
        return Call._make((*given[:7], options))

    @staticmethod
    def read_inference(*given: Any) -> "Call":
        """Read the arguments of infer, which has no dropout."""
        return Call.read(*given[:5], None, 1.0, *given[5:])


def check_states(hx: Sequence[Tensor], options: Options) -> None:
    """Refuse another number of states than the cell has, or none."""
    if hx and len(hx) != options.states:
        raise RuntimeError(f"hx must hold {options.states} states or none, got {len(hx)}")


def rows(tensor: Tensor, batch_first: bool) -> Tensor:
    """Return a tensor (T,B,n) whose last axis is contiguous; packed ones stay (tokens,n)."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor.transpose(0, 1) if batch_first and tensor.dim() == 3 else tensor


__all__ = ["Call", "check_states", "rows"]

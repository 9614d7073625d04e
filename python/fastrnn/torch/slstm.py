"""sLSTM, which torch.nn does not have, as a module."""

from typing import Any

import torch
from torch import Tensor

from .guards import leaf_call, nobody_looks
from .layers import LSTM
from .variants import read_variant, use_heads


def _seen(n: Tensor) -> bool:
    """Tell whether a tensor's numbers can be looked at now, and without waiting for them."""
    return (
        not torch.compiler.is_compiling()
        and nobody_looks()
        and type(n) in (Tensor, torch.nn.Parameter)
        and n.device.type == "cpu"
    )


class sLSTM(LSTM):
    """The LSTM with exponential gates of xLSTM, computed by fastrnn; `fastrnn.sLSTM` has the equations.

    Initial weights are uniform in +-1/sqrt(H), as those of `LSTM`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `torch.nn.LSTM`.
    heads, forget_gate
        As for `fastrnn.sLSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        heads: int = 1,
        forget_gate: str = "sigmoid",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options: dict[str, Any] = {
            "bias": bias,
            "batch_first": batch_first,
            "dropout": dropout,
            "bidirectional": bidirectional,
        }
        super().__init__(input_size, hidden_size, num_layers, **options, device=device, dtype=dtype)
        self.__dict__.update(read_variant(self, 0, {"heads": heads, "forget_gate": forget_gate}))
        self._core_cell = "slstm" if forget_gate == "sigmoid" else "slstm_exponential"
        if self.heads > 1:
            use_heads(self, self.heads)

    def forward(  # type: ignore[override]
        self,
        input: Any,
        hx: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        lengths: Any = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Run over a sequence, as `LSTM.forward` does; the states are h, c, n and m, (L*D,B,H) each."""
        recorded = leaf_call(self, input, hx=hx, lengths=lengths, reset=reset)
        if recorded is not None:
            return recorded
        if self._elsewhere(input):
            self._refuse_elsewhere(lengths, reset)
        if hx is not None and len(hx) != 4:
            raise RuntimeError("slstm expects four hidden states")
        if hx is not None and not all(isinstance(state, Tensor) for state in hx):
            kinds = ", ".join(type(state).__name__ for state in hx)
            raise TypeError(f"slstm expects four tensors as hidden states, got ({kinds})")
        if hx is not None and _seen(hx[2]) and bool((hx[2] < 0).any()):
            raise RuntimeError("slstm got a negative n in hidden[2], which sums up input gates; 0 is an empty memory")
        y, (h, c, n, m) = self._run(input, () if hx is None else hx, lengths, reset)
        return y, (h, c, n, m)


__all__ = ["sLSTM"]

"""LSTMCell, GRUCell and RNNCell: one step, with the constructors, parameters and errors of torch.nn."""

from typing import Any

import torch
from torch import Tensor, nn

from . import steps
from .autograd import run
from .bits import step_cell
from .guards import as_autocast, autocast_dtype, in_autocast, leaf_call, refuse_torchscript
from .identity import StandIn
from .options import Options


class _Cell(StandIn, nn.RNNCellBase):
    """What the three share."""

    _original: type[nn.RNNCellBase]
    _core: str  # the core's name of the cell

    def _cell(self) -> str:
        return self._core

    def _run(self, input: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._bits is not None and not self.training:
            ends = step_cell(self, input, states)
            return self._run_operators(input, states) if ends is None else ends
        if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
            ends = steps.run(self, self._cell(), input, states, self._weights())
            if ends is not None:
                return ends
        return self._run_operators(input, states)

    def _weights(self) -> tuple[Tensor, ...]:
        """Return the parameters of now, wherever a parametrization keeps them."""
        own = self._parameters
        ih, hh = own.get("weight_ih"), own.get("weight_hh")
        ih, hh = self.weight_ih if ih is None else ih, self.weight_hh if hh is None else hh
        if not self.bias:
            return ih, hh
        bias_ih, bias_hh = own.get("bias_ih"), own.get("bias_hh")
        return ih, hh, self.bias_ih if bias_ih is None else bias_ih, self.bias_hh if bias_hh is None else bias_hh

    def _run_operators(self, input: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        refuse_torchscript()
        name = self._original.__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for i, state in enumerate(states):
            which = f"hx[{i}]" if len(states) == 2 else "hidden"
            if state.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
        batched = input.dim() == 2
        if not batched:
            input, states = input.unsqueeze(0), tuple(s.unsqueeze(0) for s in states)
        weights, to = [*self._weights()], None
        if in_autocast(input.device):
            to = autocast_dtype(name, (input, *states))
            input, states, weights = as_autocast(input), tuple(map(as_autocast, states)), [*map(as_autocast, weights)]
        self._check(input, states, weights)
        options = Options(self._cell(), self.hidden_size, 0, 1, False, False)
        state = [s[None] for s in states]
        _, ends = run(input[None], state, weights, None, None, None, 1.0, options, self.training, self._bits)
        ends = [s[0] if batched else s[0, 0] for s in ends]
        return tuple(ends if to is None else (s.to(to) for s in ends))

    def _check(self, input: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> None:
        if input.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {self.input_size}")
        for i, state in enumerate(states):
            if input.size(0) != state.size(0):
                raise RuntimeError(
                    f"Input batch size {input.size(0)} doesn't match hidden{i} batch size {state.size(0)}"
                )
            if state.size(1) != self.hidden_size or state.dim() != 2:
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {state.size(1)}, expected {self.hidden_size}"
                )
        for tensor in (input, *states):
            if tensor.dtype != weights[0].dtype:
                raise RuntimeError(f"expected input and states of dtype {weights[0].dtype}, got {tensor.dtype}")

    def _elsewhere(self, input: Any) -> bool:
        return not self.hidden_size or super()._elsewhere(input)


class LSTMCell(_Cell):
    """`torch.nn.LSTMCell`, computed by fastrnn.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As for `torch.nn.LSTMCell`.
    """

    _original = nn.LSTMCell
    _core = "lstm"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Run one step: input (B,I) or (I,), hx the pair h, c of (B,H) or (H,), zeros by default; return the next pair.

        Raises
        ------
        ValueError, RuntimeError
            Where torch.nn raises them.
        """
        recorded = leaf_call(self, input, hx=hx)
        if recorded is not None:
            return recorded
        if self._elsewhere(input) or not _is_pair(hx):  # where torch.nn knows the error
            return nn.LSTMCell.forward(self, input, hx)
        h, c = self._run(input, () if hx is None else (hx[0], hx[1]))
        return h, c


def _is_pair(hx: Any) -> bool:
    return hx is None or (isinstance(hx, (tuple, list)) and len(hx) == 2 and all(isinstance(s, Tensor) for s in hx))


class _OneStateCell(_Cell):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Run one step: input (B,I) or (I,), hx (B,H) or (H,), zeros by default; return the next h.

        Raises
        ------
        ValueError, RuntimeError
            Where torch.nn raises them.
        """
        recorded = leaf_call(self, input, hx=hx)
        if recorded is not None:
            return recorded
        if self._elsewhere(input):
            return self._original.forward(self, input, hx)
        return self._run(input, () if hx is None else (hx,))[0]


class GRUCell(_OneStateCell):
    """`torch.nn.GRUCell`, computed by fastrnn.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype
        As for `torch.nn.GRUCell`.
    """

    _original = nn.GRUCell
    _core = "gru"

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)


class RNNCell(_OneStateCell):
    """`torch.nn.RNNCell`, computed by fastrnn.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, device, dtype
        As for `torch.nn.RNNCell`.
    """

    _original = nn.RNNCell
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def _cell(self) -> str:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return f"rnn_{self.nonlinearity}"


__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

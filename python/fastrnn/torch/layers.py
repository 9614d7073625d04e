"""LSTM, GRU and RNN with the constructors, arguments, parameters and errors of torch.nn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import layers
from ..options import NAMES, Activations, Zoneout, as_text, general, general_rnn
from .autograd import run
from .bits import step_layer
from .guards import as_autocast, autocast_dtype, in_autocast, leaf_call, refuse_torchscript
from .identity import StandIn
from .noise import Drawing, Rates
from .options import Options
from .sequences import lengths_of, read_lengths, read_reset
from .variants import (
    DEFAULTS,
    FIXED,
    add_norms,
    add_peepholes,
    are_defaults,
    noise_options,
    read_variant,
    reset_norms,
    use_heads,
)

_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class _Layer(StandIn, Drawing, nn.RNNBase):
    """What the three share; parameters, state_dict, repr and initial values are those of torch.nn's RNNBase."""

    _original: type[nn.RNNBase]
    _core_cell: str | None = None  # the core's name of it where torch.nn has no such cell
    _variant = ""  # as in `Options`
    heads = 1
    layer_norm = False

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.layer_norm:
            reset_norms(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and "training" in self.__dict__:
            raise AttributeError(f"{name} of a module is fixed when it is made: make a new {self._name}")
        super().__setattr__(name, value)

    def _choose(self, usual: tuple[str, ...], **given: Any) -> None:
        """Take options that torch.nn does not have, where some are given."""
        if are_defaults(given):
            return
        options = read_variant(self, len(usual), given)
        self.__dict__.update(options)
        if not options.get("reset_after", True):
            self._core_cell = "gru_original"
        self._variant = as_text(general(options, usual), options)
        self._rates = Rates.of(self._options())
        if options.get("peephole"):
            add_peepholes(self)
        if self.layer_norm:
            self._core_cell = f"{_CELLS[self.mode]}_norm"
            add_norms(self, self._core_cell)
        if self.heads > 1:
            use_heads(self, self.heads)

    @property
    def _name(self) -> str:
        """What errors call it."""
        return "sLSTM" if (self._core_cell or "").startswith("slstm") else self._original.__name__

    @property
    def _own(self) -> str:
        """The options that torch.nn does not have, as text; "" where there are none."""
        if not (self._variant or self._core_cell or self.heads > 1):
            return ""
        given = {key: getattr(self, key, default) for key, default in DEFAULTS.items()}
        return ", ".join(f"{key}={value!r}" for key, value in given.items() if value != DEFAULTS[key])

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), self._own)))

    def flatten_parameters(self) -> None:
        """Do nothing of what cuDNN wants for a cell that it does not have."""
        if not self._own:
            super().flatten_parameters()

    def _run(
        self, input: Tensor | PackedSequence, states: Sequence[Tensor], lengths: Any, reset: Tensor | None
    ) -> tuple[Any, tuple[Tensor, ...]]:
        refuse_torchscript()
        weights = self._weights()
        data = input.data if isinstance(input, PackedSequence) else input
        if not in_autocast(data.device):
            return self._run_in_dtype(input, states, weights, lengths, reset)
        to = autocast_dtype(self._original.__name__, (data, *states))
        input, states, weights = _cast(input), [*map(_cast, states)], [*map(_cast, weights)]
        y, ends = self._run_in_dtype(input, states, weights, lengths, reset)
        return _in_dtype(y, to), tuple(s.to(to) for s in ends)

    def _run_in_dtype(
        self,
        input: Tensor | PackedSequence,
        states: Sequence[Tensor],
        weights: list[Tensor],
        lengths: Any,
        reset: Tensor | None,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        if isinstance(input, PackedSequence):
            return self._run_packed(input, states, weights, lengths, reset)
        name = self._name
        if input.dim() not in (2, 3):
            noun = " tensor" if name == "RNN" else ""
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{noun} instead")
        batched = input.dim() == 3
        self._check_dimensions(states, batched)
        batch_dim = 0 if self.batch_first else 1
        if not batched:
            input, states = input.unsqueeze(batch_dim), [s.unsqueeze(1) for s in states]
        self._check(input, states, weights, None)
        T, B = input.shape[1 - batch_dim], input.shape[batch_dim]
        if not T:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            lengths = read_lengths(name, lengths, B, T, input.device)
        if reset is not None:
            reset = read_reset(name, reset, (B, T) if self.batch_first else (T, B), batched)
        masks, scale = self._masks((T, B))
        options = self._options()
        y, ends = run(input, states, weights, lengths, reset, masks, scale, options, self.training, self._bits)
        if not batched:
            y, ends = y.squeeze(batch_dim), [s.squeeze(1) for s in ends]
        return y, tuple(ends)

    def _run_packed(
        self, input: PackedSequence, states: Sequence[Tensor], weights: list[Tensor], lengths: Any, reset: Tensor | None
    ) -> tuple[PackedSequence, tuple[Tensor, ...]]:
        name = self._name
        if lengths is not None or reset is not None:
            raise ValueError(f"{name} got a PackedSequence and lengths or reset: give these beside a padded tensor")
        data, batch_sizes, order, back = input
        if order is not None:
            states = [s.index_select(1, order) for s in states]
        self._check(data, states, weights, batch_sizes)
        of_rows = lengths_of(batch_sizes)
        masks, scale = self._packed_masks(batch_sizes)
        options = self._options()._replace(batch_first=False)
        y, ends = run(data, states, weights, of_rows, None, masks, scale, options, self.training, self._bits)
        if back is not None:
            ends = [s.index_select(1, back) for s in ends]
        return PackedSequence(y, batch_sizes, order, back), tuple(ends)

    def _weights(self) -> list[Tensor]:
        """Return the parameters of now: torch.nn keeps a list, which functional_call and parametrizations pass by."""
        own = self._parameters
        return [w if (w := own.get(name)) is not None else getattr(self, name) for name in self._flat_weights_names]

    def _check(
        self, input: Tensor, states: Sequence[Tensor], weights: list[Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raise what torch.nn raises."""
        dtype = weights[0].dtype
        if input.dtype != dtype:
            raise ValueError(
                f"RNN input dtype ({input.dtype}) does not match weight dtype ({dtype}). "
                f"Convert input: input.to({dtype}), or convert model: model.to({input.dtype})"
            )
        dimensions = 2 if batch_sizes is not None else 3
        if input.dim() != dimensions:
            raise RuntimeError(f"input must have {dimensions} dimensions, got {input.dim()}")
        if self.input_size != input.size(-1):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.size(-1)}"
            )
        if not states:
            return
        sizes = [self.get_expected_hidden_size(input, batch_sizes)]
        sizes += [(*sizes[0][:2], self.hidden_size)] * (len(states) - 1)
        for i, (state, size) in enumerate(zip(states, sizes, strict=True)):
            which = f"hidden[{i}]" if len(states) > 1 else "hidden"
            self.check_hidden_size(state, size, f"Expected {which} size {{}}, got {{}}")
            if state.dtype != dtype:
                raise ValueError(f"RNN {which} dtype ({state.dtype}) does not match input dtype ({dtype}).")

    def _check_dimensions(self, states: Sequence[Tensor], batched: bool) -> None:
        wanted = 3 if batched else 2
        if all(s.dim() == wanted for s in states):
            return
        kind = "batched 3-D" if batched else "unbatched 2-D"
        found = [f"{s.dim()}-D" for s in states]
        if len(found) > 1:
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {wanted}-D but got ({', '.join(found)}) tensors"
            )
        raise RuntimeError(f"For {kind} input, hx should also be {wanted}-D but got {found[0]} tensor")

    def _options(self) -> Options:
        cell, sizes = self._core_cell or _CELLS[self.mode], (self.hidden_size, self.proj_size, self.num_layers)
        return Options(cell, *sizes, self.bidirectional, self.batch_first, self._variant, self.heads)

    def _refuse_elsewhere(self, lengths: Any, reset: Any) -> None:
        """Refuse what torch.nn's own forward, which is to run, does not know."""
        name = self._original.__name__
        if self._own:
            what = f"{type(self).__name__} with {self._own}"
            raise ValueError(f"{what} cannot run here: torch.nn.{name}, which would, has no such options")
        if lengths is not None or reset is not None:
            raise ValueError(f"{name} runs as torch.nn.{name} here, which knows neither lengths nor reset")


def _cast(value: Any) -> Any:
    """Return what autocast makes of a tensor or a packed sequence."""
    if not isinstance(value, PackedSequence):
        return as_autocast(value)
    data = as_autocast(value.data)
    return value if data is value.data else value._replace(data=data)


def _in_dtype(value: Any, to: torch.dtype) -> Any:
    return value._replace(data=value.data.to(to)) if isinstance(value, PackedSequence) else value.to(to)


class LSTM(_Layer):
    """`torch.nn.LSTM`, computed by fastrnn: the same constructor, parameters, results and errors, and more speed.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As for `torch.nn.LSTM`. Parameters in bfloat16 and float16 are computed with in float32.
    peephole, coupled, activations, clip, layer_norm, heads, zoneout, recurrent_dropout, recurrent_dropout_mode
        As for `fastrnn.LSTM`; torch.nn has none of them. Peepholes are the parameters ``weight_peephole_l0`` (3,H), of
        the gates i, f and o; layer normalisation has those of `fastrnn.LSTM`.
    """

    _original = nn.LSTM
    peephole = coupled = False
    activations: Any = None
    clip: float | None = None
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

    def __init__(
        self,
        *args: Any,
        peephole: bool = False,
        coupled: bool = False,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: bool = False,
        heads: int = 1,
        zoneout: Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: str = "sequence",
        **kwargs: Any,
    ) -> None:
        super().__init__("LSTM", *args, **kwargs)
        noise = noise_options(zoneout, recurrent_dropout, recurrent_dropout_mode)
        own = {"peephole": peephole, "coupled": coupled, "activations": activations, "clip": clip}
        self._choose(layers.LSTM._usual, **own, layer_norm=layer_norm, heads=heads, **noise)

    def forward(
        self,
        input: Any,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Any = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run over a sequence.

        Parameters
        ----------
        input : Tensor or PackedSequence
            (T,B,I), with ``batch_first`` (B,T,I), or (T,I) without a batch.
        hx : pair of Tensor, optional
            The initial h (L*D,B,P) and c (L*D,B,H); zeros by default.
        lengths : sequence of int or Tensor, optional
            (B,), each in 0..T, in any order: the output is zero past it, the final state that of the last step before,
            and the reverse direction starts there. What `pack_padded_sequence` is for, and under torch.compile too.
        reset : bool Tensor, optional
            (T,B), with ``batch_first`` (B,T), or (T,): True cuts the sequence before this step, in every layer: states
            and gradients do not pass. For episodes that begin inside a sequence.

        Returns
        -------
        output : Tensor or PackedSequence
            h of the last layer at each step, the directions side by side.
        (h_n, c_n)
            The final states.

        Raises
        ------
        RuntimeError, ValueError, TypeError
            Where torch.nn raises them, and for lengths and resets that do not fit.
        """
        recorded = leaf_call(self, input, hx=hx, lengths=lengths, reset=reset)
        if recorded is not None:
            return recorded
        if self._elsewhere(input):
            self._refuse_elsewhere(lengths, reset)
            return nn.LSTM.forward(self, input, hx)
        if hx is not None and len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")
        if self._bits is not None and lengths is None and reset is None:
            found = step_layer(self, input, hx)
            if found is not None:
                return found[0], tuple(found[1])
        y, (h, c) = self._run(input, () if hx is None else hx, lengths, reset)
        return y, (h, c)


class _OneState(_Layer):
    """GRU and RNN: a state of one tensor."""

    def forward(
        self, input: Any, hx: Tensor | None = None, lengths: Any = None, reset: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """Run over a sequence.

        Parameters
        ----------
        input, lengths, reset
            As for `LSTM.forward`.
        hx : Tensor, optional
            The initial h (L*D,B,H); zeros by default.

        Returns
        -------
        output : Tensor or PackedSequence
            h of the last layer at each step, the directions side by side.
        h_n : Tensor
            The final state.

        Raises
        ------
        RuntimeError, ValueError, TypeError
            Where torch.nn raises them, and for lengths and resets that do not fit.
        """
        recorded = leaf_call(self, input, hx=hx, lengths=lengths, reset=reset)
        if recorded is not None:
            return recorded
        if self._elsewhere(input):
            self._refuse_elsewhere(lengths, reset)
            return self._original.forward(self, input, hx)
        if self._bits is not None and lengths is None and reset is None:
            found = step_layer(self, input, hx)
            if found is not None:
                return found[0], found[1][0]
        y, (h,) = self._run(input, () if hx is None else (hx,), lengths, reset)
        return y, h


class GRU(_OneState):
    """`torch.nn.GRU`, computed by fastrnn: the same constructor, parameters, results and errors, and more speed.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `torch.nn.GRU`.
    reset_after, activations, clip, layer_norm, heads, zoneout, recurrent_dropout, recurrent_dropout_mode
        As for `fastrnn.GRU`; torch.nn has the first one only as True, and none of the others.
    """

    _original = nn.GRU
    reset_after = True
    activations: Any = None
    clip: float | None = None

    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: bool = False,
        heads: int = 1,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: str = "sequence",
        **kwargs: Any,
    ) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)
        noise = noise_options(zoneout, recurrent_dropout, recurrent_dropout_mode)
        own = {"reset_after": reset_after, "activations": activations, "clip": clip}
        self._choose(layers.GRU._usual, **own, layer_norm=layer_norm, heads=heads, **noise)


class RNN(_OneState):
    """`torch.nn.RNN`, computed by fastrnn: the same constructor, parameters, results and errors, and more speed.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As for `torch.nn.RNN`.
    nonlinearity, clip, heads, zoneout, recurrent_dropout, recurrent_dropout_mode
        As for `fastrnn.RNN`; torch.nn has "tanh" and "relu" only, and none of the others.
    """

    _original = nn.RNN
    nonlinearity: Any
    clip: float | None = None

    def __init__(
        self,
        *args: Any,
        clip: float | None = None,
        heads: int = 1,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: str = "sequence",
        **kwargs: Any,
    ) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if isinstance(self.nonlinearity, str) and self.nonlinearity not in NAMES:
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__("RNN_RELU" if self.nonlinearity == "relu" else "RNN_TANH", *args, **kwargs)
        given = {"clip": clip, "heads": heads, **noise_options(zoneout, recurrent_dropout, recurrent_dropout_mode)}
        if self.nonlinearity in ("tanh", "relu") and are_defaults(given):
            return
        given["nonlinearity"] = self.nonlinearity
        self.__dict__.update(read_variant(self, 1, given))
        if self.nonlinearity in ("tanh", "relu"):  # perhaps in another spelling
            self.mode = f"RNN_{self.nonlinearity.upper()}"
        else:
            self._core_cell = "rnn_general"
        read = {key: getattr(self, key) for key in given}
        self._variant = as_text(general_rnn(read), read)
        self._rates = Rates.of(self._options())
        if self.heads > 1:
            use_heads(self, self.heads)


def _refuse_projection(options: dict[str, Any]) -> None:
    if "proj_size" in options:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


__all__ = ["GRU", "LSTM", "RNN"]

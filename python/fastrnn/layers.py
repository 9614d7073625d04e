"""The layers RNN, GRU, LSTM, sLSTM: their options and equations; everything else they share stands in `recurrent`."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .initialise import Seed
from .options import Activation, Activations, General, Zoneout, general_rnn
from .parameters import Parameters
from .recurrent import Recurrent
from .results import LSTMState, sLSTMState

__all__ = ["CELLS", "GRU", "LSTM", "RNN", "Parameters", "sLSTM"]

Array = NDArray[Any]


class RNN(Recurrent[Array]):
    """The simple recurrent layer (Elman 1990): h = tanh(W_ih x + b_ih + W_hh h_prev + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and the number of layers, each fed with the output of the one before.
    nonlinearity : {"tanh", "relu"} or another activation
        The activation that produces h. Beside the two, which have kernels of their own: "sigmoid", "affine",
        "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu", "softsign" and "softplus", as ONNX
        defines them; with numbers as ``("leaky_relu", alpha)`` or ``("affine", alpha, beta)``. Of a bidirectional layer
        also ``{"forward": ..., "reverse": ...}``.
    clip : float, optional
        What enters the activation is kept within +-clip; its gradient is zero beyond.
    heads : int
        Blocks on the diagonal of W_hh, which divide H: a unit sees the h_prev of its own head only, H/heads units side
        by side, and the recurrent product takes as much less time. weight_hh is then (G*H,H/heads), each row with the
        columns of its own head.
    bias : bool
        Whether there are b_ih and b_hh.
    batch_first : bool
        Whether x, y and reset are (batch, time, ...) instead of (time, batch, ...). States never are.
    bidirectional : bool
        Whether each layer also runs backwards in time; y then holds both directions side by side.
    dropout : float
        Probability of dropping an element between the layers in training, in 0..1.
    zoneout : float
        Probability that an element of h stays what it was at a step of training, in 0..1 (Krueger et al. 2016, arXiv
        1606.01305): h = m * h_prev + (1 - m) * h_new with m of 0 and 1 drawn for each element and step. Inference takes
        the expectation, h = zoneout * h_prev + (1 - zoneout) * h_new.
    recurrent_dropout : float
        Probability of dropping an element of h_prev in training on its way into the recurrent product, in 0..1: W_hh
        multiplies m * h_prev / (1 - recurrent_dropout). All else sees h_prev whole, as (1 - z) * n + z * h_prev of a
        GRU and zoneout do; the original GRU multiplies r * m * h_prev / (1 - recurrent_dropout) for n.
    recurrent_dropout_mode : {"sequence", "step"}
        Whether m is drawn once for each sequence, layer and direction (Gal and Ghahramani 2016, arXiv 1512.05287), or
        anew at every step.
    dtype : np.float32 or np.float64
        Type of the parameters, the computation and the results.
    rng : seed, Generator or None
        Source of the initial parameters and of the masks of training. A Generator is used as it is, not copied.

    Raises
    ------
    TypeError, ValueError
        With every argument that does not fit.
    SizeError
        If the parameters do not fit into memory.
    """

    nonlinearity: Any
    clip: float | None
    _usual = ("tanh",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Activation | Mapping[str, Activation] = "tanh",
        clip: float | None = None,
        heads: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["sequence", "step"] = "sequence",
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(
            rng,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            nonlinearity=nonlinearity,
            clip=clip,
            heads=heads,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_mode=recurrent_dropout_mode,
            dtype=dtype,
        )

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}" if self.nonlinearity in ("tanh", "relu") else "rnn_general"

    def _general(self) -> General | None:
        return general_rnn(self._options)


class GRU(Recurrent[Array]):
    """The gated recurrent unit (Cho et al. 2014), gates in the order r z n: h = (1 - z) * n + z * h_prev.

    Parameters
    ----------
    input_size, hidden_size, num_layers, heads, bias, batch_first, bidirectional, dropout, dtype, rng
        As for `RNN`.
    zoneout, recurrent_dropout, recurrent_dropout_mode
        As for `RNN`.
    reset_after : bool
        Whether the reset gate acts after the recurrent product, as in PyTorch and cuDNN:
        n = tanh(W_in x + b_in + r * (W_hn h_prev + b_hn)); else, the original,
        n = tanh(W_in x + b_in + W_hn (r * h_prev) + b_hn).
    activations : pair, optional
        The activations of r and z and of n, ``("sigmoid", "tanh")`` by default; each as `RNN` takes its nonlinearity.
        Of a bidirectional layer also ``{"forward": pair, "reverse": pair}``.
    clip : float, optional
        As for `RNN`, of all activations.
    layer_norm : bool
        Whether W_ih x and W_hh h_prev are normalised before they meet (Ba et al. 2016, arXiv 1607.06450), each over its
        3*H numbers, all gates together. With v' = (v - mean(v)) / sqrt(variance(v) + 1e-5)::

            a = g_ih * (W_ih x)' + b_ih    b = g_hh * (W_hh h_prev)' + b_hh
            r = sigmoid(a_r + b_r)    z = sigmoid(a_z + b_z)    n = tanh(a_n + r * b_n)

        The gains are the parameters ``weight_norm_ih_l0`` and ``weight_norm_hh_l0`` (3*H,), ones at first; the biases
        are zeros at first. Not with activations, clip, ``reset_after=False``, zoneout or recurrent dropout.

    Raises
    ------
    TypeError, ValueError, SizeError
        As for `RNN`.
    """

    layer_norm: bool
    reset_after: bool
    activations: Any
    clip: float | None
    _usual = ("sigmoid", "tanh")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: bool = False,
        heads: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["sequence", "step"] = "sequence",
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(
            rng,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            reset_after=reset_after,
            activations=activations,
            clip=clip,
            layer_norm=layer_norm,
            heads=heads,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_mode=recurrent_dropout_mode,
            dtype=dtype,
        )

    def _cell(self) -> str:
        return "gru_norm" if self.layer_norm else "gru" if self.reset_after else "gru_original"


class LSTM(Recurrent[LSTMState]):
    """The long short-term memory with a forget gate (Gers et al. 2000), gates in the order i f g o.

    c = f * c_prev + i * g and h = o * tanh(c); with a projection h = W_hr (o * tanh(c)) (Sak et al. 2014).

    Parameters
    ----------
    input_size, hidden_size, num_layers, heads, bias, batch_first, bidirectional, dropout, dtype, rng
        As for `RNN`.
    recurrent_dropout, recurrent_dropout_mode
        As for `RNN`.
    zoneout : float or pair
        As for `RNN`, of h and of c with masks of their own, ``(0.1, 0.05)`` for two probabilities; a number is both.
        h_new = o * tanh(c_new) sees c_new = f * c_prev + i * g as it is before zoneout (Krueger et al. 2016); with a
        projection h is what it returns.
    proj_size : int
        P, the size of h with a projection, below hidden_size; 0 is none. Not with heads.
    peephole : bool
        Whether the gates see the cell state (Gers and Schmidhuber 2000): i and f add w * c_prev, o adds w * c before
        their activation. The parameter ``weight_peephole_l0`` (3,H) holds w of i, f and o.
    coupled : bool
        Whether f = 1 - i (Greff et al. 2017). The parameters keep their shapes; the rows of f are not used.
    activations : triple, optional
        The activations of i, f and o, of g, and of c in h = o * tanh(c), ``("sigmoid", "tanh", "tanh")`` by default;
        each as `RNN` takes its nonlinearity. Of a bidirectional layer also ``{"forward": triple, "reverse": triple}``.
    clip : float, optional
        As for `RNN`, of all activations: c is clipped on its way into h, not in the state.
    layer_norm : bool
        Whether W_ih x, W_hh h_prev and c are normalised (Ba et al. 2016, arXiv 1607.06450), the products each over its
        4*H numbers, all gates together. With v' = (v - mean(v)) / sqrt(variance(v) + 1e-5)::

            i, f, g, o = activations of g_ih * (W_ih x)' + b_ih + g_hh * (W_hh h_prev)' + b_hh
            c = f * c_prev + i * g    h = o * tanh(g_c * c' + b_c)

        The state c itself is not. The gains are the parameters ``weight_norm_ih_l0`` and ``weight_norm_hh_l0``
        (4*H,) and ``weight_norm_c_l0`` (H,), ones at first; the biases, with ``bias_norm_c_l0`` (H,), are zeros at
        first. Not with proj_size, peephole, coupled, activations, clip, zoneout or recurrent dropout.

    Raises
    ------
    TypeError, ValueError, SizeError
        As for `RNN`.
    """

    layer_norm: bool
    peephole: bool
    coupled: bool
    activations: Any
    clip: float | None
    _usual = ("sigmoid", "tanh", "tanh")
    _state_type = LSTMState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["sequence", "step"] = "sequence",
        proj_size: int = 0,
        peephole: bool = False,
        coupled: bool = False,
        activations: Activations | None = None,
        clip: float | None = None,
        layer_norm: bool = False,
        heads: int = 1,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(
            rng,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            recurrent_dropout_mode=recurrent_dropout_mode,
            proj_size=proj_size,
            peephole=peephole,
            coupled=coupled,
            activations=activations,
            clip=clip,
            layer_norm=layer_norm,
            heads=heads,
            dtype=dtype,
        )

    def _cell(self) -> str:
        return "lstm_norm" if self.layer_norm else "lstm"


class sLSTM(Recurrent[sLSTMState]):
    """The LSTM with exponential gates and a normaliser of xLSTM (Beck et al. 2024, arXiv 2405.04517), gates i f g o.

    With the input sides and the hidden sides added up to z_i, z_f, z_g, z_o and k = log f + m_prev::

        log f = log(sigmoid(z_f)), or z_f of an exponential forget gate
        m = max(z_i, k), the stabiliser; z_i where n_prev is 0
        i = exp(z_i - m)    f = exp(min(k - m, 0))
        c = f * c_prev + i * tanh(z_g)    n = f * n_prev + i
        h = sigmoid(z_o) * c / n

    m keeps the powers in range and cancels out of h. n is 0 at the first step and after a reset, when the memory is
    empty; of an initial state it must not be negative, which is checked on the CPU.

    Parameters
    ----------
    input_size, hidden_size, num_layers, heads, bias, batch_first, bidirectional, dropout, dtype, rng
        As for `RNN`.
    forget_gate : {"sigmoid", "exponential"}
        What f is of z_f before it is stabilised.

    Raises
    ------
    TypeError, ValueError, SizeError
        As for `RNN`.
    """

    forget_gate: str
    _usual = ()
    _state_type = sLSTMState

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        heads: int = 1,
        forget_gate: Literal["sigmoid", "exponential"] = "sigmoid",
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(
            rng,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            heads=heads,
            forget_gate=forget_gate,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            dropout=dropout,
            dtype=dtype,
        )

    def _cell(self) -> str:
        return "slstm" if self.forget_gate == "sigmoid" else "slstm_exponential"


class Kind(NamedTuple):
    """A layer of one cell: its class, and those of its options that the cell decides."""

    layer: type[RNN] | type[GRU] | type[LSTM] | type[sLSTM]
    options: Mapping[str, Any]
    guessed: bool = True  # tensors of its names and shapes are taken for it where nothing else is said


CELLS: Mapping[str, Kind] = {
    "rnn_tanh": Kind(RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": Kind(RNN, {"nonlinearity": "relu"}),
    "rnn_general": Kind(RNN, {}),
    "gru": Kind(GRU, {"reset_after": True}),
    "gru_original": Kind(GRU, {"reset_after": False}),
    "gru_norm": Kind(GRU, {"reset_after": True, "layer_norm": True}),
    "lstm": Kind(LSTM, {}),
    "lstm_norm": Kind(LSTM, {"layer_norm": True}),
    "slstm": Kind(sLSTM, {"forget_gate": "sigmoid"}, guessed=False),
    "slstm_exponential": Kind(sLSTM, {"forget_gate": "exponential"}, guessed=False),
}

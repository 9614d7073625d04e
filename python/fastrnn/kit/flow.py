"""How far gradients reach back: the norm of dL/dh_t against the distance from the loss."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..initialise import Seed, as_generator
from ..layers import GRU, LSTM, RNN
from ..recurrent import Recurrent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Flow", "flow"]

Array = NDArray[Any]
Layer = RNN | GRU | LSTM


class Flow(NamedTuple):
    """Norms of dL/dh_t over many sequences, by the distance of t from the last step.

    Attributes
    ----------
    distance : array
        (T,) 0, 1, ..., T-1 steps before the loss.
    low, median, high : array
        (T,) the 10th, 50th and 90th percentile over the sequences. At distance 0 all are 1.
    """

    distance: Array
    low: Array
    median: Array
    high: Array


def flow(layer: Recurrent[Any], x: ArrayLike, *, rng: Seed = 0) -> Flow:
    """Measure how the gradient of a loss at the last step fades, or grows, on its way back (Bengio et al. 1994).

    The loss of a sequence is u . h at its last step, with a random unit vector u of its own, so that the gradient
    starts with norm 1. What is measured is that of the last layer's h_t, dL/dh_t, before it passes the step's gates.

    Parameters
    ----------
    layer : RNN, GRU, LSTM or sLSTM
        In one direction; float64 shows smaller gradients than float32.
    x : array_like
        (T,B,I), with ``batch_first`` (B,T,I): B sequences of what the layer is to be judged by.
    rng : seed or Generator
        Source of the unit vectors.

    Returns
    -------
    Flow
        Median and spread over the sequences for every distance from the loss.

    Raises
    ------
    ValueError
        If the layer is bidirectional, or there is no sequence or no time step.
    ShapeError, TypeError, SizeError
        As calling the layer does.
    """
    name = type(layer).__name__
    if layer.bidirectional:
        raise ValueError(
            f"flow got a bidirectional {name}, whose two directions have two ends: take one in one direction"
        )
    y, _, tape = layer.forward(x, training=False)
    y = y[:, None] if y.ndim == 2 else y.swapaxes(0, 1) if layer.batch_first else y
    T, B, P = y.shape
    if not T or not B:
        raise ValueError(f"flow got x with {T} time steps and {B} sequences; it needs one of each at least")
    ends = as_generator("flow", rng).standard_normal((B, P))
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    dy = np.zeros(y.shape, layer.dtype)
    dy[-1] = ends
    shaped = dy[:, 0] if tape.given.unbatched else dy.swapaxes(0, 1) if layer.batch_first else dy
    hidden = layer.backward(tape, shaped, hidden=True).hidden
    assert hidden is not None, "the core gave no dL/dh"
    by_time = hidden[:, None] if tape.given.unbatched else hidden.swapaxes(0, 1) if layer.batch_first else hidden
    norms = np.linalg.norm(by_time.astype(np.float64), axis=2)[::-1]
    low, median, high = np.quantile(norms, (0.1, 0.5, 0.9), axis=1)
    return Flow(np.arange(T), low, median, high)


class Start(NamedTuple):
    """A layer and how its parameters start, as `compare` shows them."""

    cell: type[Layer]
    options: Mapping[str, Any] = {}
    recurrent: Literal["uniform", "orthogonal", "identity"] = "uniform"
    forget_bias: float | None = None


# The remedies of the literature: orthogonal starts (Saxe et al. 2014), ReLU from the identity (Le, Jaitly and Hinton
# 2015), gates (Hochreiter and Schmidhuber 1997, Cho et al. 2014), a forget gate that starts open (Jozefowicz et al.
# 2015).
STARTS = {
    "RNN": Start(RNN),
    "RNN, orthogonal": Start(RNN, {}, "orthogonal"),
    "RNN, identity": Start(RNN, {}, "identity"),
    "RNN, ReLU": Start(RNN, {"nonlinearity": "relu"}),
    "RNN, ReLU, identity": Start(RNN, {"nonlinearity": "relu"}, "identity"),
    "GRU": Start(GRU),
    "LSTM": Start(LSTM),
    "LSTM, forget bias 1": Start(LSTM, {}, "uniform", 1.0),
}


def compare(hidden_size: int, time: int, sequences: int, seed: int) -> dict[str, Flow]:
    """Measure layers of one size and all starts in float64, on inputs of white noise (T,B,H)."""
    LSTM(hidden_size, hidden_size, dtype=np.float64).estimate_memory(time, sequences)  # refuses what is too large
    x = np.random.default_rng(seed).standard_normal((time, sequences, hidden_size))
    flows = {}
    for name, start in STARTS.items():
        layer = start.cell(hidden_size, hidden_size, dtype=np.float64, rng=seed, **start.options)
        layer.initialise(start.recurrent, start.forget_bias, rng=seed)
        flows[name] = flow(layer, x, rng=seed)
    return flows


def table(flows: Mapping[str, Flow]) -> str:
    """Return medians by distance, each with how many times larger the 90th percentile is than the 10th."""
    longest = max(len(found.distance) for found in flows.values())
    distances = [d for d in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if d < longest] or [longest - 1]
    width = max(map(len, flows))
    lines = [" " * width + "".join(f"{f'{d} back':>15}" for d in distances)]
    for name, found in flows.items():
        cells = [_cell(found, d) for d in distances]
        lines.append(f"{name:{width}}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _cell(found: Flow, distance: int) -> str:
    low, median, high = (float(values[distance]) for values in (found.low, found.median, found.high))
    return f"{median:.1e} x{high / low:.1f}" if low > 0 and high / low < 1000 else f"{median:.1e} x-"


PANELS: Sequence[tuple[str, Sequence[str], str]] = (
    ("plain starts", ("RNN", "RNN, ReLU", "GRU", "LSTM"), "upper right"),
    ("remedies", ("RNN, orthogonal", "RNN, identity", "RNN, ReLU, identity", "LSTM, forget bias 1"), "lower left"),
)
# Okabe and Ito's colours, which those who confuse red and green can tell apart.
COLOURS = ("#D55E00", "#E69F00", "#0072B2", "#009E73")
BOTTOM = 1e-16  # of the picture
SMALLEST = 1e-300  # what a logarithmic axis takes for zero


def picture(flows: Mapping[str, Flow]) -> "Figure":
    """Return the medians over the distance, with a band from the 10th to the 90th percentile."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, names, corner) in zip(axes, PANELS, strict=True):
        for colour, name in zip(COLOURS, names, strict=True):
            found = flows[name]
            low, high = np.maximum(found.low, SMALLEST), np.maximum(found.high, SMALLEST)
            axis.fill_between(found.distance, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(found.distance, found.median, color=colour, label=name)
        axis.set(yscale="log", title=title, xlabel="steps before the loss")
        axis.grid(alpha=0.3)
        axis.legend(loc=corner)
    axes[0].set_ylabel("norm of dL/dh, 1 at the loss")
    axes[0].set_ylim(BOTTOM, 10)
    figure.suptitle("How far gradients reach back: median and 10th to 90th percentile over the sequences")
    return figure

"""Layers from weights in the forms of other texts."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .checks import Problems
from .layers import GRU, LSTM, RNN
from .memory import as_array

__all__ = ["from_concatenated"]

Array = NDArray[Any]

# The gates of each cell by the letters of their matrices, in the order of the layers' parameters. A minus: the gate is
# sigma(-z) there, so that 1 - G_u is what PyTorch calls z.
_GATES = {"rnn": ("a",), "gru": ("r", "-u", "c"), "lstm": ("u", "f", "c", "o")}
# ONNX's order of the gates, as positions in PyTorch's: iofc of ifgo, zrh of rzn.
ONNX_GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
_KINDS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def from_concatenated(
    cell: str, *, nonlinearity: str = "tanh", dtype: DTypeLike | None = None, **given: ArrayLike
) -> RNN | GRU | LSTM:
    """Build a layer from one matrix per gate over the previous state and the input, [a_prev, x], with one bias.

    The equations are those of many lectures and textbooks (as in Ng's Sequence Models):

    - ``"rnn"``: a = g(W_a [a_prev, x] + b_a)
    - ``"gru"``: c~ = tanh(W_c [G_r * c_prev, x] + b_c), c = G_u * c~ + (1 - G_u) * c_prev,
      with G_u = sigma(W_u [c_prev, x] + b_u) and G_r = sigma(W_r [c_prev, x] + b_r)
    - ``"lstm"``: c~ = tanh(W_c [a_prev, x] + b_c), c = G_u * c~ + G_f * c_prev, a = G_o * tanh(c),
      with G_u, G_f, G_o = sigma(W_u, W_f, W_o [a_prev, x] + b_u, b_f, b_o)

    Parameters
    ----------
    cell : {"rnn", "gru", "lstm"}
        The cell.
    nonlinearity : {"tanh", "relu"}
        g, of an RNN only.
    dtype : np.float32 or np.float64, optional
        Of the layer; by default float64 if one of the arrays is, else float32.
    **given : array_like
        ``W_a``, or ``W_r``, ``W_u``, ``W_c``, or ``W_u``, ``W_f``, ``W_c``, ``W_o``, each (H,H+I): the first H columns
        multiply the state. ``b_a`` and so on, each (H,) or (H,1); all or none: without them the layer has no biases.

    Returns
    -------
    RNN, GRU or LSTM
        One layer in one direction: of a GRU with ``reset_after=False``, and its parameters for the update gate are the
        negatives of W_u and b_u, because PyTorch's z is 1 - G_u. The bias is in ``bias_ih_l0``; ``bias_hh_l0`` is zero.

    Raises
    ------
    ShapeError, ValueError, TypeError
        With every name that is missing or unknown and every array that does not fit.
    """
    problems = Problems(lambda: f"from_concatenated({cell!r})")
    if cell not in _GATES:
        problems.value(f"cell={cell!r}", 'It must be "rnn", "gru" or "lstm".')
        problems.refuse()
    if cell != "rnn" and nonlinearity != "tanh":
        problems.value(f"nonlinearity={nonlinearity!r}", "Only an RNN has one to choose.")
    letters = [gate.lstrip("-") for gate in _GATES[cell]]
    weights = _named("W", letters, given, problems)
    biases = _named("b", letters, given, problems) if any(name.startswith("b_") for name in given) else {}
    known = {f"{kind}_{letter}" for kind in "Wb" for letter in letters}
    for name in sorted(set(given) - known):
        problems.type(name, f"The matrices of this cell are {', '.join(f'W_{letter}' for letter in letters)}.")
    problems.refuse()

    H, I = _sizes(weights, biases, problems)
    arrays = [*weights.values(), *biases.values()]
    if dtype is None:
        dtype = np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32
    options: dict[str, Any] = {"bias": bool(biases), "dtype": dtype}
    if cell == "gru":
        options["reset_after"] = False
    elif cell == "rnn":
        options["nonlinearity"] = nonlinearity
    layer = _KINDS[cell](I, H, rng=0, **options)
    signed = [(-1 if gate.startswith("-") else 1, gate.lstrip("-")) for gate in _GATES[cell]]
    joined = np.concatenate([sign * weights[f"W_{letter}"] for sign, letter in signed])
    state = {"weight_ih_l0": joined[:, H:], "weight_hh_l0": joined[:, :H]}
    if biases:
        bias = np.concatenate([sign * biases[f"b_{letter}"].reshape(-1) for sign, letter in signed])
        state |= {"bias_ih_l0": bias, "bias_hh_l0": np.zeros_like(bias)}
    layer.load_state_dict(state)
    return layer


def _named(kind: str, letters: list[str], given: dict[str, ArrayLike], problems: Problems) -> dict[str, Array]:
    """Return the arrays of that kind by name."""
    found = {}
    for letter in letters:
        name = f"{kind}_{letter}"
        if name not in given:
            problems.type(f"no {name}", f"It needs {', '.join(f'{kind}_{one}' for one in letters)}.")
            continue
        array = as_array(problems, name, given[name])
        if array is not None and array.dtype.kind not in "biuf":
            problems.type(f"{name} with dtype {array.dtype}", "It must hold real numbers.")
        elif array is not None:
            found[name] = array
    return found


def _sizes(weights: dict[str, Array], biases: dict[str, Array], problems: Problems) -> tuple[int, int]:
    """Return H and I, which all arrays must agree about."""
    first = next(iter(weights.values()))
    H, columns = first.shape if first.ndim == 2 else (0, 0)
    for name, array in weights.items():
        if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] <= array.shape[0]:
            why = "It must be (hidden, hidden + features): its first columns multiply the state, the others the input."
            problems.shape(f"{name} with shape {array.shape}", why)
        elif array.shape != first.shape:
            problems.shape(
                f"{name} with shape {array.shape}", f"All matrices must be alike; the first is {first.shape}."
            )
    for name, array in biases.items():
        if array.shape not in ((H,), (H, 1)):
            problems.shape(f"{name} with shape {array.shape}", f"It must be ({H},) or ({H}, 1).")
    problems.refuse()
    return H, columns - H

"""Layers from the textbook's matrices, against the textbook's equations as they are written there."""

from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.convert import from_concatenated
from support import Array, assert_close, complex_step

T, B, I, H = 4, 3, 2, 5
LETTERS = {"rnn": "a", "gru": "ruc", "lstm": "ufco"}
every_cell = pytest.mark.parametrize("cell", LETTERS)


def sigma(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def matrices(cell: str) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    given: dict[str, Array] = {f"W_{k}": rng.standard_normal((H, H + I)) for k in LETTERS[cell]}
    return given | {f"b_{k}": rng.standard_normal((H, 1)) for k in LETTERS[cell]}


def step(cell: str, p: dict[str, Array], state: Array, c: Array, x: Array) -> tuple[Array, Array]:
    """One step on columns, (H,B) and (I,B), and the memory cell of an LSTM."""
    both = np.concatenate([state, x])
    if cell == "rnn":
        return np.tanh(p["W_a"] @ both + p["b_a"]), c
    if cell == "gru":
        G_u, G_r = sigma(p["W_u"] @ both + p["b_u"]), sigma(p["W_r"] @ both + p["b_r"])
        new = np.tanh(p["W_c"] @ np.concatenate([G_r * state, x]) + p["b_c"])
        return G_u * new + (1 - G_u) * state, c
    G_u, G_f, G_o = (sigma(p[f"W_{k}"] @ both + p[f"b_{k}"]) for k in "ufo")
    c = G_u * np.tanh(p["W_c"] @ both + p["b_c"]) + G_f * c
    return G_o * np.tanh(c), c


def textbook(cell: str, p: dict[str, Array], x: Array) -> Array:
    """y (T,B,H) from x (T,B,I)."""
    state = np.zeros((H, x.shape[1]), complex)
    c, rows = state, []
    for x_t in x:
        state, c = step(cell, p, state, c, x_t.T)
        rows.append(state.T)
    return np.stack(rows)


@every_cell
def test_outputs_and_gradients(cell: str) -> None:
    given = matrices(cell)
    layer = from_concatenated(cell, **given)
    assert layer.dtype == np.float64
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, H))
    y, _, tape = layer.forward(x)
    assert_close(y, textbook(cell, given, x).real, "float64", "forward", "y")
    grads = layer.backward(tape, dy)
    assert_close(grads.x, complex_step(lambda z: np.sum(textbook(cell, given, z) * dy), x), "float64", "gradient", "dx")
    for name in given:
        wanted = complex_step(
            lambda z, name=name: np.sum(textbook(cell, {**given, name: z}, x) * dy),  # type: ignore[misc]
            given[name],
        )
        found = in_their_form(cell, grads.parameters, name)
        assert_close(found.reshape(wanted.shape), wanted, "float64", "gradient", f"d{name}")


def in_their_form(cell: str, gradients: dict[str, Array], name: str) -> Array:
    """The gradient of a matrix or bias of the textbook, from those of the layer's parameters."""
    kind, letter = name.split("_")
    gate = LETTERS[cell].index(letter)
    rows = slice(gate * H, (gate + 1) * H)
    sign = -1 if (cell, letter) == ("gru", "u") else 1
    if kind == "b":
        return sign * gradients["bias_ih_l0"][rows]
    return sign * np.hstack([gradients["weight_hh_l0"][rows], gradients["weight_ih_l0"][rows]])


@every_cell
def test_dtypes_and_biases(cell: str) -> None:
    given = {name: a for name, a in matrices(cell).items() if name.startswith("W")}
    assert not from_concatenated(cell, **given).bias
    small = {name: a.astype(np.float32) for name, a in given.items()}
    assert from_concatenated(cell, **small).dtype == np.float32
    assert from_concatenated(cell, dtype=np.float64, **small).dtype == np.float64
    flat = {name: a.reshape(-1) if name.startswith("b") else a.tolist() for name, a in matrices(cell).items()}
    x = np.ones((T, B, I))
    assert np.array_equal(from_concatenated(cell, **flat)(x)[0], from_concatenated(cell, **matrices(cell))(x)[0])


def test_relu() -> None:
    layer = from_concatenated("rnn", nonlinearity="relu", W_a=np.eye(2, 3))
    assert isinstance(layer, fastrnn.RNN)
    assert layer.nonlinearity == "relu"


@pytest.mark.parametrize(
    ("cell", "change", "error", "words"),
    [
        ("RNN", {}, ValueError, 'got cell=\'RNN\'.\n  It must be "rnn", "gru" or "lstm".'),
        ("gru", {"W_u": None}, TypeError, "got no W_u.\n  It needs W_r, W_u, W_c."),
        ("lstm", {"b_o": None}, TypeError, "got no b_o.\n  It needs b_u, b_f, b_c, b_o."),
        ("gru", {"W_f": np.zeros((H, H + I))}, TypeError, "got W_f.\n  The matrices of this cell are W_r, W_u, W_c."),
        (
            "gru",
            {"W_u": np.zeros((H, H))},
            fastrnn.ShapeError,
            "W_u with shape (5, 5).\n  It must be (hidden, hidden +",
        ),
        ("gru", {"W_u": np.zeros((H, H + 1))}, fastrnn.ShapeError, "All matrices must be alike; the first is (5, 7)."),
        ("gru", {"b_u": np.zeros((1, H))}, fastrnn.ShapeError, "b_u with shape (1, 5).\n  It must be (5,) or (5, 1)."),
        ("gru", {"W_u": [["a"]]}, TypeError, "W_u with dtype <U1.\n  It must hold real numbers."),
        ("gru", {"nonlinearity": "relu"}, ValueError, "Only an RNN has one to choose."),
        ("rnn", {"nonlinearity": "sin"}, ValueError, "nonlinearity='sin'"),
        ("rnn", {"dtype": np.int32}, TypeError, "dtype must be np.float32 or np.float64"),
    ],
    ids=str,
)
def test_bad_input(cell: str, change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {**matrices(cell.lower()), **change}
    with pytest.raises(error) as caught:
        from_concatenated(cell, **{name: a for name, a in given.items() if a is not None})
    assert words in str(caught.value)

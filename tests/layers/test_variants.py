"""General cells: activations, clipping, peepholes, the coupled gate, each against the textbook and the usual cell."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.options import NAMES
from support import Cell, assert_same_bits, draw, gradients_of, whole

T, B, I, H = 5, 4, 3, 9
NUMBERS = {"affine": (0.7, 0.1), "leaky_relu": (0.2,), "thresholded_relu": (0.3,), "scaled_tanh": (1.3, 0.6)}
CHOICES = [(name, *NUMBERS.get(name, ())) if name in NUMBERS else name for name in NAMES]


def example(layer: type[Any], textbook: str, stack: dict[str, Any] | None = None, **options: Any) -> Any:
    cell = Cell(layer, textbook, options)
    return draw(cell, cell.build(I, H, dtype="float64", **(stack or {})), T, B, lengths=True, reset=True)


def check(e: Any) -> None:
    e.check_forward()
    e.check_backward()


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("choice", CHOICES, ids=NAMES)
def test_every_activation_in_every_place(choice: Any, clip: float | None, isa: str) -> None:
    for layer, textbook, options in [
        (fastrnn.RNN, "rnn_general", {"nonlinearity": choice}),
        (fastrnn.GRU, "gru_general", {"activations": [choice, "softsign"]}),
        (fastrnn.GRU, "gru_original_general", {"activations": ["softsign", choice], "reset_after": False}),
        (fastrnn.LSTM, "lstm_general", {"activations": [choice, "softsign", "elu"]}),
        (fastrnn.LSTM, "lstm_general", {"activations": ["hard_sigmoid", choice, "elu"]}),
        (fastrnn.LSTM, "lstm_general", {"activations": ["hard_sigmoid", "softsign", choice]}),
    ]:
        e = example(layer, textbook, clip=clip, **options)
        if e.layer._general() is not None:
            e.layer._use_isa(isa)
            check(e)


@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_peepholes_clip_and_coupled_gate(peephole: bool, coupled: bool, clip: float | None, proj_size: int) -> None:
    if clip is None and not coupled and not peephole:
        return
    stack = {"num_layers": 2, "bidirectional": True, "dropout": 0.0}
    check(
        example(fastrnn.LSTM, "lstm_general", stack, peephole=peephole, coupled=coupled, clip=clip, proj_size=proj_size)
    )


def test_directions_with_activations_of_their_own() -> None:
    sides = {"forward": ["sigmoid", "tanh", "softsign"], "reverse": [("hard_sigmoid", 0.3, 0.4), "relu", "tanh"]}
    e = example(fastrnn.LSTM, "lstm_general", {"bidirectional": True}, activations=sides)
    check(e)
    assert e.layer.activations["reverse"] == (("hard_sigmoid", 0.3, 0.4), "relu", "tanh")
    check(
        example(fastrnn.RNN, "rnn_general", {"bidirectional": True}, nonlinearity={"forward": "tanh", "reverse": "elu"})
    )


def test_few_tokens_and_one_step() -> None:
    """Short calls pack nothing, and `step` runs the frozen weights."""
    cell = Cell(fastrnn.LSTM, "lstm_general", {"peephole": True, "clip": 1.0})
    layer = cell.build(I, H, num_layers=2)
    for batch in (1, 3):
        draw(cell, layer, 1, batch).check_backward()
    e = draw(cell, layer, 6, 3)
    y, end = layer(e.x, whole(e.state))
    frozen, state = layer.freeze(), whole(e.state)
    for t in range(6):
        out, state = frozen.step(e.x[t], state)
        assert_same_bits(out, np.ascontiguousarray(y[t]))
    assert_same_bits(state, end)


def test_the_usual_options_take_the_usual_kernels() -> None:
    plain = fastrnn.LSTM(I, H, rng=0)
    named = fastrnn.LSTM(I, H, activations=["sigmoid", "tanh", "tanh"], rng=0)
    assert named._general() is None
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    assert_same_bits(named(x)[0], plain(x)[0])


def test_wide_clip_and_zero_peepholes_change_little() -> None:
    """The general kernels compute the same equations as those of the usual cell."""
    plain = fastrnn.LSTM(I, H, dtype="float64", rng=0)
    general = fastrnn.LSTM(I, H, dtype="float64", peephole=True, clip=1e9, rng=0)
    general.load_state_dict({**plain.state_dict(), "weight_peephole_l0": np.zeros((3, H))})
    x = np.random.default_rng(0).standard_normal((T, B, I))
    outputs = []
    for layer in (plain, general):
        y, _, tape = layer.forward(x)
        outputs.append((y, layer.backward(tape, np.ones_like(y))))
    np.testing.assert_allclose(outputs[1][0], outputs[0][0], rtol=1e-13, atol=1e-15)
    for name, gradient in outputs[0][1].parameters.items():
        np.testing.assert_allclose(outputs[1][1].parameters[name], gradient, rtol=1e-11, atol=1e-13)


def test_coupled_gate_leaves_the_rows_of_f_unused() -> None:
    layer = fastrnn.LSTM(I, H, coupled=True, rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    y, _, tape = layer.forward(x)
    gradients = gradients_of(layer.backward(tape, np.ones_like(y)))
    for name in layer.parameters():
        assert not gradients[name][H : 2 * H].any()
    layer.parameters()["weight_ih_l0"][H : 2 * H] = 7
    assert_same_bits(layer(x)[0], y)


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 1e30])
def test_extreme_values_come_out_as_in_the_textbook(extreme: float) -> None:
    for choice in CHOICES:
        e = example(fastrnn.RNN, "rnn_general", nonlinearity=choice, clip=1e12)
        e.x[:] = 0
        e.layer.parameters()["weight_hh_l0"][...] = 0
        e.layer.parameters()["weight_ih_l0"][...] = 1
        e.x[0, :, 0] = extreme
        with np.errstate(all="ignore"):
            e.check_forward() if not math.isnan(extreme) else None
        if math.isnan(extreme):
            y = e.infer()[0]
            runs = (e.lengths > 0)[:, None] & np.ones(H, bool)
            assert np.isnan(y[0][runs]).all()


def test_an_infinite_cell_state_without_peepholes() -> None:
    """No product with a peephole that is not there."""
    x, state = np.zeros((1, 1, I)), fastrnn.LSTMState(np.zeros((1, 1, H)), np.full((1, 1, H), np.inf))
    plain = fastrnn.LSTM(I, H, dtype="float64", rng=0)
    for options in ({"clip": 50.0}, {"coupled": True}):
        y, end = fastrnn.LSTM(I, H, dtype="float64", rng=0, **options)(x, state)
        assert np.isfinite(y).all()
        assert np.isinf(end.c).all()
        if "clip" in options:
            np.testing.assert_allclose(y, plain(x, state)[0], rtol=1e-12)


@pytest.mark.parametrize(("dtype", "large"), [("float32", 3e38), ("float64", 1e308)])
def test_softsign_of_large_numbers(dtype: Any, large: float) -> None:
    layer = fastrnn.RNN(1, 1, nonlinearity="softsign", bias=False, dtype=dtype)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    y, _ = layer(np.array([[[large]], [[-large]]], dtype))
    np.testing.assert_array_equal(y.ravel(), [1, -1])


def test_files_copies_and_state_dicts(tmp_path: Path) -> None:
    layer = fastrnn.LSTM(
        I, H, peephole=True, coupled=True, clip=3, activations=["hard_sigmoid", "tanh", "softsign"], rng=0
    )
    assert [name for name in layer.parameters() if "peephole" in name] == ["weight_peephole_l0"]
    assert layer.parameters()["weight_peephole_l0"].shape == (3, H)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    layer.save(tmp_path / "layer.npz")
    for other in (fastrnn.load(tmp_path / "layer.npz"), copy.deepcopy(layer), layer.to("cpu", "float32")):
        assert other.clip == 3
        assert other.activations == (("hard_sigmoid", 0.2, 0.5), "tanh", "softsign")
        assert_same_bits(other(x)[0], layer(x)[0])
    assert "peephole=True, coupled=True" in repr(layer)
    assert "clip=3.0" in repr(layer)
    assert "peephole" not in repr(fastrnn.LSTM(I, H))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clip": 0}, "LSTM got clip=0.\n  clip must be a positive number, or None for none."),
        ({"clip": math.nan}, "LSTM got clip=nan.\n  clip must be a positive number"),
        ({"clip": 10**400}, "clip must be a positive number"),
        ({"clip": True}, "LSTM got clip=True.\n  clip must be a positive number"),
        ({"peephole": 1}, "LSTM got peephole=1.\n  peephole must be True or False."),
        ({"activations": "tanh"}, "It must be a sequence of 3: those of the gates, the candidate and c."),
        ({"activations": ["sigmoid", "tanh"]}, "It must be a sequence of 3"),
        (
            {"activations": ["sigmoid", "tanh", "gelu"]},
            "LSTM got 'gelu' among its activations.\n  An activation is one of",
        ),
        ({"activations": ["sigmoid", "tanh", ("tanh", 1)]}, "tanh takes no number."),
        ({"activations": ["sigmoid", "tanh", ("elu", 1, 2)]}, "elu takes one number, alpha."),
        ({"activations": ["sigmoid", "tanh", ("affine", 1, 2, 3)]}, "affine takes two numbers, alpha and beta."),
        ({"activations": ["sigmoid", "tanh", ("elu", math.inf)]}, "alpha and beta must be finite numbers."),
        ({"activations": ["sigmoid", "tanh", ("elu", "1")]}, "alpha and beta must be finite numbers."),
        ({"activations": ["sigmoid", "tanh", 3]}, "LSTM got 3 among its activations."),
        (
            {"activations": {"forward": ["sigmoid", "tanh", "tanh"]}},
            'A mapping names those of both directions, "forward"',
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        fastrnn.LSTM(I, H, **options)

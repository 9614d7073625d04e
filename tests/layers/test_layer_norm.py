"""Layer normalisation of LSTM and GRU: what only they have; their cells run in the grids of the other tests."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from support import CELLS, DTYPES, assert_same_bits, draw, gradients_of, largest, whole

NAMES = ["gru_norm", "lstm_norm"]
T, B, I, H = 6, 4, 5, 17


@pytest.mark.parametrize("name", NAMES)
def test_how_they_start(name: str) -> None:
    layer = CELLS[name].layer(I, H, 2, bidirectional=True, layer_norm=True, rng=0)
    own = layer.initialise("orthogonal", rng=1).parameters()
    gates = len(own["weight_hh_l0"])
    shapes = {"weight_norm_ih": (gates,), "weight_norm_hh": (gates,), "weight_norm_c": (H,), "bias_norm_c": (H,)}
    expected = shapes if name == "lstm_norm" else {k: shapes[k] for k in list(shapes)[:2]}
    found = {
        key.removesuffix("_l1_reverse"): p for key, p in own.items() if "norm" in key and key.endswith("_l1_reverse")
    }
    assert {key: p.shape for key, p in found.items()} == expected
    for key, p in own.items():
        if "norm" in key or key.startswith("bias"):
            assert (p == key.startswith("weight")).all(), key
    layer.initialise(forget_bias=1.0) if name == "lstm_norm" else None
    assert own["bias_ih_l1"][H] == (name == "lstm_norm")
    assert "layer_norm=True" in repr(layer)
    plain = CELLS[name].layer(I, H, bias=False, layer_norm=True).parameters()
    assert not any(key.startswith("bias") for key in plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_the_weights_does_not_matter(name: str) -> None:
    layer = CELLS[name].build(I, H, dtype="float64")
    e = draw(CELLS[name], layer, T, B)
    y = layer(e.x)[0]
    for key in ("weight_ih_l0", "weight_hh_l0"):
        layer.parameters()[key][...] *= 50
    assert 0 < largest(layer(e.x)[0] - y) < 1e-2  # what epsilon makes of it


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_steps_halves_and_calls_agree(name: str, dtype: str) -> None:
    layer = CELLS[name].build(I, H, num_layers=2, dtype=dtype)
    e = draw(CELLS[name], layer, T, B)
    frozen, state = layer.freeze(), whole(e.state)
    y, end = frozen(e.x, state)
    for t in range(T):
        out, state = frozen.step(e.x[t], state)
        assert_same_bits(out, np.ascontiguousarray(y[t]))
    assert_same_bits(state, end)
    first, between = frozen(e.x[:2], whole(e.state))
    rest, last = frozen(e.x[2:], between)
    assert_same_bits(np.concatenate([first, rest]), y)
    assert_same_bits(last, end)
    for batch in (1, 3):  # a few tokens, for which nothing is packed
        draw(CELLS[name], layer, 1, batch).check_backward() if dtype == "float64" else None


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_heads_are_normalised_together(name: str, heads: int) -> None:
    layer = CELLS[name].build(I, 12, num_layers=2, bidirectional=True, heads=heads, dtype="float64")
    e = draw(CELLS[name], layer, T, B, lengths=True, reset=True)
    e.check_forward()
    e.check_backward()


@pytest.mark.parametrize("distinct", [3, 40])  # with a table of the ids, and without
@pytest.mark.parametrize("name", NAMES)
def test_token_ids(name: str, distinct: int) -> None:
    layer = CELLS[name].build(I, H, dtype="float64")
    rng = np.random.default_rng(0)
    ids, table = rng.integers(0, distinct, (T, B)), rng.standard_normal((distinct, I))
    y, _, tape = layer.forward(ids, embedding=table)
    dense, _, dense_tape = layer.forward(table[ids])
    np.testing.assert_allclose(y, dense, rtol=1e-12, atol=1e-14)
    assert_same_bits(layer(ids, embedding=table)[0], np.ascontiguousarray(y))
    given, expected = layer.backward(tape, np.ones_like(y)), layer.backward(dense_tape, np.ones_like(y))
    for key, gradient in expected.parameters.items():
        np.testing.assert_allclose(given.parameters[key], gradient, rtol=1e-9, atol=1e-12)
    of_rows = np.zeros_like(table)
    np.add.at(of_rows, ids, expected.x)
    np.testing.assert_allclose(given.embedding, of_rows, rtol=1e-9, atol=1e-12)
    one_hot = CELLS[name].build(distinct, H, dtype="float64")
    y, _, tape = one_hot.forward(ids, embedding="one-hot")
    dense, _, dense_tape = one_hot.forward(np.eye(distinct)[ids])
    np.testing.assert_allclose(y, dense, rtol=1e-12, atol=1e-14)
    given, expected = one_hot.backward(tape, np.ones_like(y)), one_hot.backward(dense_tape, np.ones_like(y))
    for key, gradient in expected.parameters.items():
        np.testing.assert_allclose(given.parameters[key], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_weights_in_fewer_bits(name: str, tmp_path: Path) -> None:
    layer = CELLS[name].build(32, 48)
    x = np.random.default_rng(0).standard_normal((20, 3, 32), np.float32)
    y = layer(x)[0]
    for weights, error in (("bfloat16", 0.02), ("int8", 0.06)):
        frozen = layer.freeze(weights=weights)
        assert 0 < largest(frozen(x)[0] - y) < error
        fastrnn.save(tmp_path / "layer.safetensors", frozen)
        assert_same_bits(fastrnn.load(tmp_path / "layer.safetensors")(x)[0], frozen(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_files_copies_and_state_dicts(name: str, tmp_path: Path) -> None:
    layer = CELLS[name].build(I, H, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, T, B)
    layer.save(tmp_path / "layer.npz")
    np.savez(tmp_path / "bare.npz", **layer.state_dict())  # the names say what it is
    other = CELLS[name].layer(I, H, 2, bidirectional=True, layer_norm=True)
    other.load_state_dict(layer.state_dict())
    (bare,) = fastrnn.load(tmp_path / "bare.npz").values()
    for made in (fastrnn.load(tmp_path / "layer.npz"), bare, copy.deepcopy(layer), layer.to("cpu", "float32"), other):
        assert made.layer_norm
        assert_same_bits(made(e.x)[0], layer(e.x)[0])
    with pytest.raises(ValueError, match="layer_norm"):
        fastrnn.load(tmp_path / "layer.npz", options={"layer_norm": False})


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_estimated(name: str) -> None:
    layer, plain = CELLS[name].build(I, H), CELLS[name].layer(I, H)
    assert plain.estimate_memory(50, 8).tape < layer.estimate_memory(50, 8).tape
    tape = layer.forward(np.zeros((50, 8, I), np.float32))[2]
    assert layer.estimate_memory(50, 8).tape == tape.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_batch_are_sums(name: str) -> None:
    """Statistics are those of a row: sequences do not see one another."""
    layer = CELLS[name].build(I, H, dtype="float64")
    e = draw(CELLS[name], layer, T, B, lengths=True, reset=True)
    together = gradients_of(layer.backward(e.train()[2], e.dy))
    apart: dict[str, Any] = {}
    for b in range(B):
        assert e.lengths is not None
        assert e.reset is not None
        cuts = {"lengths": e.lengths[b : b + 1], "reset": e.reset[:, b : b + 1]}
        tape = layer.forward(e.x[:, b : b + 1], whole(tuple(s[:, b : b + 1] for s in e.state)), **cuts)[2]
        for key, g in layer.backward(tape, e.dy[:, b : b + 1]).parameters.items():
            apart[key] = apart.get(key, 0) + g
    for key, g in apart.items():
        np.testing.assert_allclose(together[key], g, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("LSTM", {"layer_norm": 1}, "LSTM got layer_norm=1.\n  layer_norm must be True or False."),
        ("LSTM", {"proj_size": 2}, "LSTM got layer_norm=True with proj_size.\n  Layer normalisation is for the usual"),
        (
            "LSTM",
            {"peephole": True, "clip": 1.0},
            "with peephole, clip.\n  Layer normalisation is for the usual equations:",
        ),
        ("LSTM", {"coupled": True}, "leave it or coupled away"),
        ("GRU", {"activations": ["sigmoid", "relu"]}, "leave it or activations away"),
        ("GRU", {"zoneout": 0.1, "recurrent_dropout": 0.2}, "leave it or zoneout and recurrent_dropout away"),
        ("GRU", {"reset_after": False}, "The candidate of reset_after=False has a product of its own"),
    ],
)
def test_what_is_refused(kind: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        getattr(fastrnn, kind)(I, H, **{"layer_norm": True, **options})


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_were_pickled_before_there_was_the_option(name: str) -> None:
    layer = CELLS[name].layer(I, H)
    state = layer.__getstate__()
    again = type(layer).__new__(type(layer))
    again.__setstate__({**state, "options": {k: v for k, v in state["options"].items() if k != "layer_norm"}})
    e = draw(CELLS[name], layer, T, B)
    assert not again.layer_norm
    assert_same_bits(again(e.x)[0], layer(e.x)[0])

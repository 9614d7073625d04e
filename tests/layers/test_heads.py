"""Layers with heads, whose recurrent weights are block diagonal: against the textbook and against the full matrix."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from support import (
    CELLS,
    DTYPES,
    Cell,
    assert_same_bits,
    draw,
    gradients_of,
    whole,
)

HEADED = ["rnn_tanh", "gru", "gru_original", "lstm", "slstm"]
RELATED = ["slstm_exponential", "gru_general", "lstm_general"]  # differ from these in their equations only
# T, B, I, H, heads: heads of one unit, narrower and wider than a vector, that end inside one and at its end
SIZES = [
    (4, 3, 2, 5, 5),
    (6, 5, 3, 12, 4),
    (3, 14, 5, 40, 2),
    (12, 7, 4, 48, 3),
    (9, 5, 17, 63, 3),
    (7, 6, 8, 64, 2),
    (3, 40, 3, 36, 6),
    (2, 1, 4, 128, 4),
    (1, 6, 4, 34, 2),
]


def headed(name: str, heads: int) -> Cell:
    cell = CELLS[name]
    return Cell(cell.layer, cell.textbook, {**cell.options, "heads": heads})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [(name, sizes) for name in HEADED for sizes in SIZES] + [(name, SIZES[k]) for name in RELATED for k in (1, 2)],
    ids=lambda one: "T{}-B{}-I{}-H{}-k{}".format(*one) if isinstance(one, tuple) else one,
)
def test_forward_and_backward_are_those_of_the_textbook(
    name: str, sizes: tuple[int, int, int, int, int], dtype: str, isa: str
) -> None:
    T, B, I, H, heads = sizes
    cell = headed(name, heads)
    layer = cell.build(I, H, isa=isa, dtype=dtype)
    assert layer.parameters()["weight_hh_l0"].shape[1] == H // heads
    e = draw(cell, layer, T, B, lengths=True, reset=True)
    e.check_forward()
    e.check_backward()


@pytest.mark.parametrize("name", ["gru", "gru_original", "slstm"])
def test_element_by_element(name: str) -> None:
    cell = headed(name, 3)
    draw(cell, cell.build(2, 6, dtype="float64"), 3, 2).check_backward_element_by_element()


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm", "slstm"])
def test_the_same_bits_from_any_number_of_threads(name: str, batch: int) -> None:
    cell = headed(name, 3)
    e = draw(cell, cell.build(9, 69, num_layers=2, bidirectional=True), 30, batch, lengths=True, reset=True)
    results = []
    for threads in (1, 2, 3, 8):
        with fastrnn.threads(threads):
            results.append((e.train()[:2], e.infer(), e.gradients()))
    for (y, end), inferred, gradients in results[1:]:
        assert_same_bits(y, results[0][0][0])
        assert_same_bits(end, results[0][0][1])
        assert_same_bits(inferred[0], results[0][1][0])
        assert_same_bits(gradients, results[0][2])


@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm"])
def test_the_full_matrix_with_zeros_outside_the_blocks(name: str) -> None:
    cell, heads, H = headed(name, 4), 4, 52
    layer = cell.build(5, H, dtype="float64")
    full = CELLS[name].build(5, H, dtype="float64")
    weights = layer.state_dict()
    full.load_state_dict({**weights, "weight_hh_l0": reference.block_diagonal(weights["weight_hh_l0"], heads)})
    e = draw(cell, layer, 11, 6)
    mine, others = e.gradients(), e.but(layer=full).gradients()
    np.testing.assert_allclose(e.infer()[0], e.but(layer=full).infer()[0], rtol=1e-13, atol=1e-15)
    blocks = reference.block_diagonal(np.ones_like(weights["weight_hh_l0"]), heads) != 0
    others["weight_hh_l0"] = others["weight_hh_l0"][blocks].reshape(-1, H // heads)
    for variable, gradient in mine.items():
        np.testing.assert_allclose(gradient, others[variable], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["gru", "lstm", "slstm"])
def test_steps_halves_and_token_ids(name: str) -> None:
    cell = headed(name, 3)
    layer = cell.build(6, 21, num_layers=2)
    e = draw(cell, layer, 8, 3)
    fast, start = layer.freeze(), whole(e.state)
    y, end = fast(e.x, start)
    state, y_half = start, []
    for part in (e.x[:3], e.x[3:]):
        out, state = fast(part, state)
        y_half.append(out)
    assert_same_bits(np.concatenate(y_half), y)
    assert_same_bits(state, end)
    state = copy.deepcopy(start)
    for t in range(8):
        out, state = fast.step(e.x[t], state, state_out=state)
        assert_same_bits(out, np.ascontiguousarray(y[t]))
    ids = np.random.default_rng(0).integers(0, 6, (8, 3))
    y, _, tape = layer.forward(ids, start, embedding="one-hot")
    x = np.eye(6, dtype=np.float32)[ids]
    assert_same_bits(y, layer.forward(x, start)[0])
    found, dense = (gradients_of(layer.backward(t, e.dy, hidden=True)) for t in (tape, layer.forward(x, start)[2]))
    for variable in layer.parameters():
        np.testing.assert_allclose(found[variable], dense[variable], rtol=2e-5, atol=2e-5)


def test_files_copies_initial_weights_and_sizes(tmp_path: Path) -> None:
    layer = fastrnn.sLSTM(3, 12, 2, heads=4, forget_gate="exponential", rng=0)
    assert "heads=4, forget_gate='exponential'" in repr(layer)
    assert "heads" not in repr(fastrnn.LSTM(3, 12))
    x = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
    layer.save(tmp_path / "layer.npz")
    fastrnn.save(tmp_path / "layers.safetensors", {"a": layer, "b": fastrnn.GRU(12, 6, heads=2)})
    both = fastrnn.load(tmp_path / "layers.safetensors")
    assert both["b"].heads == 2
    for other in (fastrnn.load(tmp_path / "layer.npz"), both["a"], copy.deepcopy(layer), layer.to("cpu", "float32")):
        assert (other.heads, other.forget_gate) == (4, "exponential")
        assert_same_bits(other(x)[0], layer(x)[0])
    layer.initialise("identity", forget_bias=2)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        np.testing.assert_array_equal(layer.parameters()[name], np.tile(np.eye(3, dtype=np.float32), (16, 1)))
    assert (layer.parameters()["bias_ih_l0"][12:24] == 2).all()
    layer.initialise("orthogonal")
    for block in np.split(layer.parameters()["weight_hh_l1"], 16):
        np.testing.assert_allclose(block @ block.T, np.eye(3), atol=1e-6)
    dense = fastrnn.LSTM(3, 512)
    assert fastrnn.LSTM(3, 512, heads=4).estimate_memory(40, 8).total < dense.estimate_memory(40, 8).total


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: fastrnn.LSTM(3, 8, heads=3), "LSTM got heads=3.\n  heads must divide hidden_size, 8"),
        (lambda: fastrnn.GRU(3, 8, heads=0), "GRU got heads=0.\n  heads must be at least 1."),
        (lambda: fastrnn.RNN(3, 8, heads=2.0), "RNN got heads=2.0.\n  heads must be an integer."),
        (lambda: fastrnn.LSTM(3, 8, heads=2, proj_size=4), "A projection mixes the heads"),
        (lambda: fastrnn.sLSTM(3, 8, forget_gate="tanh"), 'forget_gate must be "sigmoid" or "exponential".'),
        (lambda: fastrnn.LSTM(3, 8, heads=2).freeze("int8"), "with heads=2 are not kept in fewer bits"),
    ],
)
def test_what_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        make()

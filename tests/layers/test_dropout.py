"""Dropout between layers: the mask is an input of the kernel, drawn by the layer's generator."""

from typing import Any

import numpy as np
import pytest

import reference
from support import CELLS, DTYPES, Array, Example, assert_close, assert_same_bits, draw, gradients_of, parts, whole

STACK: dict[str, Any] = {"num_layers": 3, "bidirectional": True}


def run_with_masks(e: Example, masks: Array, scale: float) -> tuple[Array, list[Array], dict[str, Array]]:
    """y, final state and gradients, straight from the core, which takes the masks that a layer would draw."""
    parameters = e.layer.parameters()
    reset = None if e.reset is None else np.ascontiguousarray(e.reset)
    network = e.layer._network
    arrays = list(parameters.values())
    y, ends, tape = network.forward(arrays, e.x, e.state, e.lengths, reset, True, False, 2, None, (masks, scale, None))
    dx, begins, gradients, hidden = network.backward(arrays, tape, e.dy, e.dstate, True, 2)
    states = dict(zip(reference.STATE_NAMES, begins, strict=False))
    return y, list(ends), {"x": dx, **states, "hidden": hidden, **dict(zip(parameters, gradients, strict=True))}


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "lengths and reset"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_masks_equal_the_reference(name: str, dtype: str, cut: bool, isa: str) -> None:
    layer = CELLS[name].build(3, 9, isa=isa, dtype=dtype, **STACK)
    e = draw(CELLS[name], layer, 5, 7, lengths=cut, reset=cut)
    masks = np.random.default_rng(0).random((2, *e.dy.shape)) < 0.7
    y, state, gradients = run_with_masks(e, masks, 1 / 0.7)
    problem = e.problem(masks=masks, scale=1 / 0.7)
    expected_y, expected_state = reference.forward(problem)
    assert_close(y, expected_y, dtype, "forward", "y")
    for s, expected in zip(state, expected_state, strict=True):
        assert_close(s, expected, dtype, "forward", "state")
    e.check_backward(problem, gradients)


def test_what_is_dropped_is_selected_not_multiplied() -> None:
    """A NaN that is dropped is gone, forwards and backwards."""
    layer = CELLS["gru"].build(3, 4, num_layers=2)
    e = draw(CELLS["gru"], layer, 3, 2)
    e.x[:, 1] = np.nan
    masks = np.ones((1, 3, 2, 4), bool)
    masks[:, :, 1] = False
    y, _, gradients = run_with_masks(e, masks, 2.0)
    assert np.isfinite(y).all()
    assert np.isfinite(gradients["weight_ih_l1"]).all()
    assert np.isfinite(gradients["weight_hh_l1"]).all()


@pytest.mark.parametrize("name", CELLS)
def test_a_seed_gives_the_same_masks(name: str) -> None:
    def train(seed: int) -> tuple[Array, dict[str, Array]]:
        layer = CELLS[name].build(3, 9, dropout=0.5, rng=seed, **STACK)
        e = draw(CELLS[name], layer, 5, 7)
        y, _, tape = e.train()
        return y, gradients_of(layer.backward(tape, e.dy, whole(e.dstate)))

    y, gradients = train(1)
    again_y, again = train(1)
    assert_same_bits(again_y, y)
    assert_same_bits(again, gradients)
    assert not np.array_equal(train(2)[0], y)


def test_every_training_call_draws_anew_unless_told() -> None:
    layer = CELLS["lstm"].build(3, 9, dropout=0.5, rng=0, **STACK)
    e = draw(CELLS["lstm"], layer, 5, 7)
    first, second = e.train()[0], e.train()[0]
    assert not np.array_equal(first, second)
    told = [layer.forward(e.x, whole(e.state), training=True, rng=4)[0] for _ in range(2)]
    assert_same_bits(told[1], told[0])


@pytest.mark.parametrize("name", CELLS)
def test_there_is_no_dropout_outside_of_training(name: str) -> None:
    dropping = CELLS[name].build(3, 9, dropout=0.5, **STACK)
    plain = CELLS[name].build(3, 9, **STACK)
    e = draw(CELLS[name], plain, 5, 7)
    y, state, _ = plain.forward(e.x, whole(e.state), training=False)
    y_dropping, state_dropping, _ = dropping.forward(e.x, whole(e.state), training=False)
    assert_same_bits(y_dropping, y)
    assert_same_bits(state_dropping, state)
    assert_same_bits(dropping(e.x, whole(e.state))[0], e.infer()[0])
    assert_same_bits(dropping.freeze()(e.x, whole(e.state))[0], plain.freeze()(e.x, whole(e.state))[0])


def test_one_layer_has_nothing_to_drop() -> None:
    layer = CELLS["gru"].build(3, 9, dropout=0.9)
    e = draw(CELLS["gru"], layer, 5, 7)
    assert_same_bits(e.train()[0], e.but(layer=CELLS["gru"].build(3, 9)).train()[0])


def test_dropping_everything_leaves_the_last_layer_alone_with_its_biases() -> None:
    layer = CELLS["gru"].build(3, 9, num_layers=2, dropout=1.0)
    e = draw(CELLS["gru"], layer, 5, 7)
    y, _, tape = e.train()
    assert_same_bits(e.but(x=-e.x).train()[0], y)
    assert not layer.backward(tape, e.dy).x.any()


def test_the_share_and_the_scale_of_what_is_kept() -> None:
    """A second layer that sums its input with one weight: relu(sum of positive h) keeps the mean over many masks."""
    H = 64
    layer = CELLS["rnn_relu"].build(2, H, num_layers=2, bias=False, dropout=0.25, rng=0, dtype="float64")
    p = layer.parameters()
    p["weight_ih_l0"][...] = 1
    p["weight_hh_l0"][...] = p["weight_hh_l1"][...] = 0
    p["weight_ih_l1"][...] = np.eye(H)
    x = np.ones((200, 10, 2))
    y, _, _ = layer.forward(x, training=True)
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_allclose(values, [0, 2 / 0.75])
    assert counts[1] / y.size == pytest.approx(0.75, abs=0.01)  # 128 000 draws: the deviation is 0.0012
    assert parts(layer.forward(x, training=False)[1])[0].max() == 2

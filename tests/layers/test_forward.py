"""Inference, training and frozen forward passes against the textbook, and all the ways to hand over an array."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from fastrnn import _core
from support import (
    CELLS,
    DTYPES,
    LONG_SIZES,
    SIZES,
    USUAL,
    assert_close,
    assert_same_bits,
    draw,
    parts,
    sizes_id,
    whole,
)

STACKS: dict[str, dict[str, Any]] = {
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "three bidirectional": {"num_layers": 3, "bidirectional": True},
    "three, no bias": {"num_layers": 3, "bias": False},
}


@pytest.mark.parametrize("sizes", SIZES, ids=sizes_id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_one_layer_equals_the_reference(name: str, dtype: str, isa: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, input_size, hidden_size = sizes
    layer = CELLS[name].build(input_size, hidden_size, isa=isa, dtype=dtype)
    draw(CELLS[name], layer, T, B).check_forward()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_stacks_and_directions(name: str, dtype: str, stack: str) -> None:
    layer = CELLS[name].build(5, 9, dtype=dtype, **STACKS[stack])
    draw(CELLS[name], layer, 4, 7).check_forward()


@pytest.mark.parametrize("sizes", LONG_SIZES, ids=sizes_id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", USUAL)
def test_many_steps_and_many_rows(name: str, dtype: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, input_size, hidden_size = sizes
    layer = CELLS[name].build(input_size, hidden_size, dtype=dtype)
    draw(CELLS[name], layer, T, B).check_forward()


@pytest.mark.parametrize("B", range(1, 15))
def test_every_small_batch(B: int) -> None:
    """Each height that the last tile of batch rows can have, on the widest cell."""
    layer = CELLS["lstm"].build(4, 20, dtype="float32")
    draw(CELLS["lstm"], layer, 3, B).check_forward()


def test_the_two_gru_conventions_agree_where_they_must() -> None:
    """Of the reference itself: with a diagonal W_hn and no b_hn, r * (W_hn h) is W_hn (r * h)."""
    H = 4
    layer = CELLS["gru"].build(3, H, dtype="float64")
    p = layer.parameters()
    p["weight_hh_l0"][2 * H :] *= np.eye(H)
    p["bias_hh_l0"][2 * H :] = 0
    after = draw(CELLS["gru"], layer, 5, 2)
    before = after.but(cell=CELLS["gru_original"])
    np.testing.assert_allclose(
        reference.forward(before.problem())[0], reference.forward(after.problem())[0], rtol=1e-14
    )


@pytest.mark.parametrize("name", CELLS)
def test_no_state_is_a_state_of_zeros(name: str) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, 4, 5)
    zeros = tuple(np.zeros_like(s) for s in e.state)
    expected_y, expected_state = layer(e.x, whole(zeros))
    for state in [None, whole(tuple(zeros))] + ([(None, zeros[1]), (zeros[0], None)] if len(zeros) == 2 else []):
        y, end = layer(e.x, state)
        assert_same_bits(y, expected_y)
        assert_same_bits(end, expected_state)


def test_the_state_of_an_lstm_is_a_named_tuple() -> None:
    layer = CELLS["lstm"].build(3, 5)
    _, state = layer(np.zeros((2, 4, 3), np.float32))
    assert isinstance(state, fastrnn.LSTMState)
    assert state.h.shape == state.c.shape == (1, 4, 5)


@pytest.mark.parametrize("name", CELLS)
def test_an_empty_sequence_leaves_the_state(name: str) -> None:
    layer = CELLS[name].build(3, 5)
    e = draw(CELLS[name], layer, 0, 2)
    y, state = e.infer()
    assert y.shape == e.dy.shape
    assert_same_bits(parts(state), e.state)


def test_an_empty_batch_is_an_empty_result() -> None:
    layer = CELLS["lstm"].build(3, 5)
    y, state = layer(np.zeros((4, 0, 3), np.float32))
    assert y.shape == (4, 0, 5)
    assert state.h.shape == (1, 0, 5)


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_batch_first_only_changes_the_layout(name: str, bidirectional: bool) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=bidirectional)
    other = CELLS[name].build(3, 9, num_layers=2, bidirectional=bidirectional, batch_first=True)
    e = draw(CELLS[name], layer, 6, 5, lengths=True, reset=True)
    assert e.reset is not None
    y, state = e.infer()
    args: dict[str, Any] = {"lengths": e.lengths, "reset": e.reset.T}
    for x in (e.x.swapaxes(0, 1), np.ascontiguousarray(e.x.swapaxes(0, 1))):
        y_bt, state_bt = other(x, whole(e.state), **args)
        assert_same_bits(y_bt.swapaxes(0, 1), y)
        assert_same_bits(state_bt, state)
        y_bt, state_bt, _ = other.forward(x, whole(e.state), **args, training=True)
        y_train, state_train, _ = e.train()
        assert_same_bits(y_bt.swapaxes(0, 1), y_train)
        assert_same_bits(state_bt, state_train)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_one_sequence_without_a_batch_axis(name: str, batch_first: bool) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=True)
    bare = CELLS[name].build(3, 9, num_layers=2, bidirectional=True, batch_first=batch_first)
    e = draw(CELLS[name], layer, 6, 1, reset=True)
    assert e.reset is not None
    y, state = e.infer()
    y_bare, state_bare = bare(e.x[:, 0], whole(tuple(s[:, 0] for s in e.state)), reset=e.reset[:, 0])
    assert_same_bits(y_bare, y[:, 0])
    assert_same_bits(parts(state_bare), tuple(s[:, 0] for s in parts(state)))


def strided(x: np.ndarray) -> Iterator[np.ndarray]:
    """The same values in other places of memory."""
    T, B, features = x.shape
    yield np.asfortranarray(x)
    yield np.repeat(x, 2, axis=0)[::2]
    yield np.repeat(x, 3, axis=1)[:, ::3]
    yield np.repeat(x, 2, axis=2)[:, :, ::2]
    yield x[::-1].copy()[::-1]
    yield x[:, ::-1].copy()[:, ::-1]
    yield x[:, :, ::-1].copy()[:, :, ::-1]
    wide = np.full((T + 1, B + 2, features + 3), np.nan, x.dtype)
    wide[1:, 1:-1, 2:-1] = x
    yield wide[1:, 1:-1, 2:-1]
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    yield unaligned
    swapped = x.astype(x.dtype.newbyteorder())
    yield swapped
    frozen = x.copy()
    frozen.flags.writeable = False
    yield frozen


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_memory_layout_of_x(dtype: str) -> None:
    layer = CELLS["gru"].build(5, 9, dtype=dtype)
    e = draw(CELLS["gru"], layer, 4, 3)
    y, state = e.infer()
    for x in strided(e.x):
        y_other, state_other = e.but(x=x).infer()
        assert_same_bits(y_other, y)
        assert_same_bits(state_other, state)


def test_one_row_for_all_of_the_batch() -> None:
    """A broadcast x has strides of zero."""
    layer = CELLS["lstm"].build(5, 9)
    x = np.random.default_rng(0).standard_normal((4, 1, 5)).astype(np.float32)
    y, _ = layer(np.broadcast_to(x, (4, 3, 5)))
    expected, _ = layer(np.repeat(x, 3, axis=1))
    assert_same_bits(y, expected)


def test_the_inputs_are_left_alone() -> None:
    layer = CELLS["lstm"].build(3, 9, num_layers=2)
    e = draw(CELLS["lstm"], layer, 4, 5, lengths=True, reset=True)
    arrays = [e.x, *e.state, e.dy, *e.dstate, e.lengths, e.reset, *layer.parameters().values()]
    copies = [np.copy(a) for a in arrays]
    e.infer()
    e.gradients()
    for a, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, copy)


# ---- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 40])
def test_editing_a_parameter_in_place_is_seen_by_the_next_call(T: int) -> None:
    """Whether or not the call packs; a frozen layer stays as it was."""
    layer = CELLS["gru"].build(3, 9, dtype="float64")
    e = draw(CELLS["gru"], layer, T, 5)
    frozen = layer.freeze()
    before = frozen(e.x, whole(e.state))
    e.infer()
    layer.parameters()["weight_hh_l0"][...] *= 1.5
    e.check_forward()
    after = frozen(e.x, whole(e.state))
    assert_same_bits(after[0], before[0])
    assert_same_bits(after[1], before[1])


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CELLS)
def test_nan_and_inf_pass_through_as_in_the_reference(name: str, value: float, isa: str) -> None:
    layer = CELLS[name].build(5, 19, isa=isa)
    e = draw(CELLS[name], layer, 6, 9)
    e.x[2, 1, 3] = value
    e.x[4, 7, 0] = value
    with np.errstate(invalid="ignore", over="ignore"):
        expected, expected_state = reference.forward(e.problem())
    for y, state in (e.infer(), e.train()[:2], layer.freeze()(e.x, whole(e.state))):
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        np.testing.assert_array_equal(np.isposinf(y), np.isposinf(expected))
        np.testing.assert_array_equal(np.isneginf(y), np.isneginf(expected))
        finite = np.isfinite(expected)
        assert_close(y[finite], expected[finite], e.dtype, "forward", "the finite part of y")
        for s, expected_s in zip(parts(state), expected_state, strict=True):
            np.testing.assert_array_equal(np.isnan(s), np.isnan(expected_s))


@pytest.mark.parametrize("name", CELLS)
def test_a_nan_state_does_not_cross_a_reset(name: str) -> None:
    layer = CELLS[name].build(5, 9, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, 5, 4)
    e.reset = np.zeros((5, 4), bool)
    e.reset[2] = True
    clean, _ = e.infer()
    assert np.isfinite(clean).all()
    e.x[0, 1] = np.nan
    y, _ = e.infer()
    assert np.isnan(y[0, 1]).any()
    assert_same_bits(y[2:], clean[2:])
    others = [0, 2, 3]
    assert_same_bits(y[:, others], clean[:, others])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_subnormal_numbers_count_as_zero_at_worst(name: str, dtype: str) -> None:
    layer = CELLS[name].build(5, 9, bias=False, dtype=dtype)
    e = draw(CELLS[name], layer, 4, 3)
    tiny = float(np.finfo(dtype).smallest_normal)
    e = e.but(x=e.x * e.x.dtype.type(tiny / 8), state=tuple(s * s.dtype.type(tiny / 8) for s in e.state))
    assert np.any(e.x != 0)
    expected, _ = reference.forward(e.problem())
    y, _ = e.infer()
    # Normalisation multiplies what is small by up to 1 / sqrt(epsilon), an LSTM's twice in a step.
    assert np.max(np.abs(y - expected)) <= 4 * tiny * (1e5 ** len(e.x) if "norm" in name else 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_callers_floating_point_mode_is_left_alone(dtype: str) -> None:
    layer = CELLS["lstm"].build(5, 9, dtype=dtype)
    subnormal = np.full(64, np.finfo(dtype).smallest_subnormal)
    e = draw(CELLS["lstm"], layer, 30, 16)
    frozen = layer.freeze()
    e.infer()
    assert np.all(subnormal * 3 > 0)
    e.gradients()
    assert np.all(subnormal * 3 > 0)
    frozen(e.x)
    assert np.all(subnormal * 3 > 0)
    frozen.step(e.x[0])
    assert np.all(subnormal * 3 > 0)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("T", "B"), [(9, 13), (1, 3)])
def test_results_do_not_depend_on_what_memory_held_before(name: str, T: int, B: int) -> None:
    layer = CELLS[name].build(5, 17, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, T, B, lengths=True, reset=True)
    y, state = e.infer()
    gradients = e.gradients()
    frozen = layer.freeze()(e.x, whole(e.state), **e.cuts)
    _core.fill_memory(True)  # with NaN, and pointers to nowhere
    try:
        again, state_again = e.infer()
        gradients_again = e.gradients()
        frozen_again = layer.freeze()(e.x, whole(e.state), **e.cuts)
    finally:
        _core.fill_memory(False)
    assert_same_bits(again, y)
    assert_same_bits(state_again, state)
    assert_same_bits(gradients_again, gradients)
    assert_same_bits(frozen_again[0], frozen[0])


@pytest.mark.parametrize("name", CELLS)
def test_a_frozen_layer_computes_a_row_alike_whatever_stands_beside_it(name: str, isa: str) -> None:
    layer = CELLS[name].build(33, 41, isa=isa).freeze()
    x = np.random.default_rng(0).standard_normal((9, 13, 33), dtype=np.float32)
    y, _ = layer(x)
    for rows in (slice(0, 1), slice(2, 4), slice(5, 12)):
        assert_same_bits(layer(x[:, rows])[0], y[:, rows])

"""Sequences of unequal lengths, cuts inside them, and one sequence worked through piece by piece."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import reference
from fastrnn import _core
from support import CELLS, DTYPES, USUAL, Example, assert_same_bits, draw, gradients_of, parts, whole

STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def check(e: Example) -> None:
    e.check_forward()
    e.check_backward()


# ---- lengths and resets against the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["no reset", "reset"])
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_lengths_and_resets(name: str, dtype: str, lengths: bool, reset: bool, isa: str) -> None:
    layer = CELLS[name].build(3, 9, isa=isa, dtype=dtype, **STACK)
    check(draw(CELLS[name], layer, 5, 7, lengths=lengths, reset=reset))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", USUAL)
def test_many_steps_with_lengths_and_resets(name: str, bidirectional: bool) -> None:
    """Long enough for several chunks of time; most sequences end before the last of them begins."""
    layer = CELLS[name].build(3, 5, dtype="float64", bidirectional=bidirectional)
    e = draw(CELLS[name], layer, 300, 6, reset=True)
    e.lengths = np.array([3, 300, 0, 299, 1, 150])
    check(e)


@pytest.mark.parametrize("lengths", [[0, 0, 0], [5, 5, 5], [0, 5, 0], [1, 1, 1], [1, 2, 3], [3, 2, 1]], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_particular_lengths(name: str, lengths: list[int]) -> None:
    layer = CELLS[name].build(3, 8, dtype="float64", **STACK)
    e = draw(CELLS[name], layer, 5, 3)
    e.lengths = np.array(lengths)
    check(e)


@pytest.mark.parametrize("where", ["first", "second", "last", "every", "one row"])
@pytest.mark.parametrize("name", CELLS)
def test_particular_resets(name: str, where: str) -> None:
    layer = CELLS[name].build(3, 8, dtype="float64", **STACK)
    e = draw(CELLS[name], layer, 5, 7)
    e.reset = np.zeros((5, 7), bool)
    index: Any = {"first": 0, "second": 1, "last": 4, "every": slice(None), "one row": (slice(None), 3)}[where]
    e.reset[index] = True
    check(e)


@pytest.mark.parametrize("name", CELLS)
def test_a_reset_at_every_step_makes_the_steps_strangers(name: str) -> None:
    layer = CELLS[name].build(3, 9)
    e = draw(CELLS[name], layer, 6, 4)
    e.reset = np.ones((6, 4), bool)
    y, _ = e.infer()
    expected, _ = layer(e.x.reshape(1, 24, 3))
    np.testing.assert_allclose(y.reshape(1, 24, -1), expected, rtol=1e-5, atol=1e-6)
    gradients = e.gradients()
    for s, g in ((name, gradients[name]) for name in reference.STATE_NAMES if name in gradients):
        assert not g.any(), s


@st.composite
def examples(draw_from: st.DrawFn) -> Example:
    cell = CELLS[draw_from(st.sampled_from(sorted(CELLS)))]
    size = st.integers(1, 19)
    T, B = draw_from(st.integers(1, 6)), draw_from(st.integers(1, 9))
    layer = cell.build(
        draw_from(size),
        draw_from(size),
        isa=draw_from(st.sampled_from(_core.isas())),
        dtype=draw_from(st.sampled_from(DTYPES)),
        num_layers=draw_from(st.integers(1, 3)),
        bidirectional=draw_from(st.booleans()),
        bias=draw_from(st.booleans()),
    )
    e = draw(cell, layer, T, B, seed=draw_from(st.integers(0, 1000)))
    if draw_from(st.booleans()):
        e.lengths = np.array(draw_from(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    if draw_from(st.booleans()):
        flags = draw_from(st.lists(st.booleans(), min_size=T * B, max_size=T * B))
        e.reset = np.array(flags).reshape(T, B)
    return e


@given(examples())
def test_any_shape_option_lengths_and_resets(e: Example) -> None:
    check(e)


# ---- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_nothing_in_the_padding_matters(name: str, isa: str) -> None:
    """NaN in x, in dy and resets past a length change no bit of any result."""
    layer = CELLS[name].build(3, 9, isa=isa, **STACK)
    e = draw(CELLS[name], layer, 6, 7, lengths=True, reset=True)
    assert e.lengths is not None
    assert e.reset is not None
    y, state = e.infer()
    gradients = e.gradients()

    past = np.arange(6)[:, None] >= e.lengths
    e.x[past] = np.nan
    e.dy[past] = np.nan
    e.reset[past] = True
    for y_again, state_again in (e.infer(), e.train()[:2], layer.freeze()(e.x, whole(e.state), **e.cuts)):
        assert not np.isnan(y_again).any()
        assert not y_again[past].any()
        assert not any(np.isnan(s).any() for s in parts(state_again))
    y_again, state_again = e.infer()
    assert_same_bits(y_again, y)
    assert_same_bits(state_again, state)
    assert_same_bits(e.gradients(), gradients)
    assert not gradients["x"][past].any()
    assert not gradients["hidden"][past].any()


@pytest.mark.parametrize("name", CELLS)
def test_each_sequence_alone_gives_the_same(name: str) -> None:
    layer = CELLS[name].build(3, 9, dtype="float64", **STACK)
    e = draw(CELLS[name], layer, 6, 5, lengths=True)
    assert e.lengths is not None
    y, state = e.infer()
    for b, n in enumerate(e.lengths):
        y_alone, state_alone = layer(e.x[:n, b : b + 1], whole(tuple(s[:, b : b + 1] for s in e.state)))
        np.testing.assert_allclose(y[:n, b : b + 1], y_alone, rtol=1e-11, atol=1e-13)
        for s, alone in zip(parts(state), parts(state_alone), strict=True):
            np.testing.assert_allclose(s[:, b : b + 1], alone, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [list, tuple, np.int8, np.uint8, np.int32, np.int64])
def test_lengths_of_any_integer_kind(kind: Any) -> None:
    layer = CELLS["gru"].build(3, 5)
    e = draw(CELLS["gru"], layer, 4, 3)
    expected, _ = e.but(lengths=np.array([4, 0, 2])).infer()
    lengths = kind([4, 0, 2]) if kind in (list, tuple) else np.array([4, 0, 2], kind)
    y, _ = layer(e.x, whole(e.state), lengths=lengths)
    assert_same_bits(y, expected)


def test_strided_resets() -> None:
    layer = CELLS["gru"].build(3, 5)
    e = draw(CELLS["gru"], layer, 4, 3, reset=True)
    assert e.reset is not None
    expected, _ = e.infer()
    for reset in (np.asfortranarray(e.reset), np.repeat(e.reset, 2, axis=1)[:, ::2], e.reset[::-1].copy()[::-1]):
        y, _ = e.but(reset=reset).infer()
        assert_same_bits(y, expected)


def test_gradients_do_not_cross_a_reset() -> None:
    """A NaN gradient after the cut does not reach what stands before it."""
    layer = CELLS["lstm"].build(3, 9, num_layers=2)
    e = draw(CELLS["lstm"], layer, 6, 4)
    e.reset = np.zeros((6, 4), bool)
    e.reset[3] = True
    clean = e.gradients()
    e.dy[3:] = np.nan
    dirty = e.gradients()
    assert np.isnan(dirty["x"][3:]).all()
    for name in ("h0", "c0"):
        assert_same_bits(dirty[name], clean[name])
    assert_same_bits(dirty["x"][:3], clean["x"][:3])


# ---- piece by piece -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_a_frozen_layer_over_two_halves_equals_it_over_the_whole(name: str, dtype: str, isa: str) -> None:
    layer = CELLS[name].build(5, 19, isa=isa, dtype=dtype, num_layers=2)
    frozen = layer.freeze()
    for T, B, cut in [(9, 7, 4), (40, 3, 1), (2, 1, 1), (130, 6, 129)]:
        e = draw(CELLS[name], layer, T, B, reset=True)
        assert e.reset is not None
        y, state = frozen(e.x, whole(e.state), reset=e.reset)
        first, middle = frozen(e.x[:cut], whole(e.state), reset=e.reset[:cut])
        second, end = frozen(e.x[cut:], middle, reset=e.reset[cut:])
        assert_same_bits(np.concatenate([first, second]), y)
        assert_same_bits(end, state)


@pytest.mark.parametrize("name", CELLS)
def test_a_layer_over_two_halves_comes_close_to_the_whole(name: str) -> None:
    """Not frozen, a short piece may take another order of summation."""
    layer = CELLS[name].build(5, 19, dtype="float64")
    e = draw(CELLS[name], layer, 30, 6)
    y, state = e.infer()
    first, middle = layer(e.x[:1], whole(e.state))
    second, end = layer(e.x[1:], middle)
    np.testing.assert_allclose(np.concatenate([first, second]), y, rtol=1e-11, atol=1e-13)
    for s, expected in zip(parts(end), parts(state), strict=True):
        np.testing.assert_allclose(s, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("B", [1, 2, 6, 13])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_a_call_with_one_step(name: str, dtype: str, num_layers: int, B: int, isa: str) -> None:
    layer = CELLS[name].build(5, 19, isa=isa, dtype=dtype, num_layers=num_layers)
    frozen = layer.freeze()
    e = draw(CELLS[name], layer, 1, B)
    for state in (None, whole(e.state)):
        y, end = frozen(e.x, state)
        y_t, end_t = frozen.step(e.x[0], state)
        assert_same_bits(y_t, y[0])
        assert_same_bits(end_t, end)


@pytest.mark.parametrize("name", CELLS)
def test_steps_in_place_equal_the_whole_sequence(name: str) -> None:
    """With out and state_out (here the state itself) a loop of steps gives the bits of one call."""
    layer = CELLS[name].build(5, 19, num_layers=3)
    frozen = layer.freeze()
    e = draw(CELLS[name], layer, 8, 3)
    y, end = frozen(e.x, whole(e.state))
    state = whole(tuple(s.copy() for s in e.state))
    out = np.full(y.shape[1:], np.nan, y.dtype)
    for t in range(len(e.x)):
        y_t, state_t = frozen.step(e.x[t], state, out=out, state_out=state)
        assert y_t is out
        assert all(a is b for a, b in zip(parts(state_t), parts(state), strict=True))
        assert_same_bits(out, y[t])
        out[...] = np.nan
    assert_same_bits(state, end)


@pytest.mark.parametrize("name", CELLS)
def test_a_step_writes_every_element_of_its_outputs_and_keeps_its_input(name: str) -> None:
    layer = CELLS[name].build(5, 19)
    frozen = layer.freeze()
    e = draw(CELLS[name], layer, 1, 4)
    before = tuple(s.copy() for s in e.state)
    y, end = frozen.step(e.x[0], whole(e.state))
    assert_same_bits(e.state, before)
    assert not any(np.shares_memory(a, b) for a, b in zip(parts(end), e.state, strict=True))
    out = np.full_like(y, np.nan)
    state_out = whole(tuple(np.full_like(s, np.nan) for s in e.state))
    frozen.step(e.x[0], whole(e.state), out=out, state_out=state_out)
    assert_same_bits(out, y)
    assert_same_bits(state_out, end)


@pytest.mark.parametrize("name", CELLS)
def test_lengths_equal_a_stop_at_the_last_step(name: str, isa: str) -> None:
    """Of a frozen layer, bit for bit: what comes after the end of a sequence is as if it were not there."""
    layer = CELLS[name].build(5, 19, isa=isa, num_layers=2)
    frozen = layer.freeze()
    e = draw(CELLS[name], layer, 9, 3)
    y, end = frozen(e.x, whole(e.state), lengths=[4, 4, 4])
    short, short_end = frozen(e.x[:4], whole(e.state))
    assert_same_bits(y[:4], short)
    assert_same_bits(end, short_end)
    assert not y[4:].any()


def test_truncated_bptt_joins_through_the_state_gradient() -> None:
    """Backward over two halves, the state's gradient handed from the later to the earlier, equals it over the whole."""
    for name, cell in CELLS.items():
        layer = cell.build(3, 9, dtype="float64", num_layers=2)
        e = draw(cell, layer, 8, 5)
        expected = e.gradients()
        _, middle, first = layer.forward(e.x[:3], whole(e.state), training=True)
        _, _, second = layer.forward(e.x[3:], middle, training=True)
        late = layer.backward(second, e.dy[3:], whole(e.dstate))
        early = layer.backward(first, e.dy[:3], late.state)
        joined = gradients_of(early)
        joined["x"] = np.concatenate([early.x, late.x])
        for p in early.parameters:
            joined[p] = early.parameters[p] + late.parameters[p]
        for variable, g in joined.items():
            np.testing.assert_allclose(g, expected[variable], rtol=1e-10, atol=1e-12, err_msg=f"{name} {variable}")

"""BPTT against the complex step of the reference, and what a tape may and may not be used for."""

from typing import Any

import numpy as np
import pytest

import reference
from support import CELLS, DTYPES, LONG_SIZES, SIZES, USUAL, assert_same_bits, draw, gradients_of, sizes_id, whole

STACKS: dict[str, dict[str, Any]] = {
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "two layers": {"num_layers": 2},
    "three bidirectional": {"num_layers": 3, "bidirectional": True},
}


@pytest.mark.parametrize("H", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_every_element_of_every_gradient(name: str, dtype: str, H: int, isa: str) -> None:
    layer = CELLS[name].build(2, H, isa=isa, dtype=dtype)
    e = draw(CELLS[name], layer, 4, 3, lengths=True, reset=True)
    e.check_backward_element_by_element()


@pytest.mark.parametrize("name", CELLS)
def test_every_element_of_a_bidirectional_stack(name: str) -> None:
    layer = CELLS[name].build(2, 2, dtype="float64", num_layers=2, bidirectional=True)
    draw(CELLS[name], layer, 3, 3, lengths=True, reset=True).check_backward_element_by_element()


@pytest.mark.parametrize("sizes", SIZES, ids=sizes_id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_one_layer_equals_the_reference(name: str, dtype: str, isa: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, input_size, hidden_size = sizes
    if "norm" in name and dtype == "float32" and 1 in (input_size, hidden_size):
        pytest.skip("a normalised product does not hang on the size of a single input: its gradient is rounding")
    layer = CELLS[name].build(input_size, hidden_size, isa=isa, dtype=dtype)
    draw(CELLS[name], layer, T, B).check_backward()


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_stacks_and_directions(name: str, dtype: str, stack: str) -> None:
    layer = CELLS[name].build(5, 9, dtype=dtype, **STACKS[stack])
    draw(CELLS[name], layer, 4, 7).check_backward()


@pytest.mark.parametrize("sizes", LONG_SIZES, ids=sizes_id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in USUAL if "slstm" not in name])  # whose textbook takes 10 s
def test_many_steps_and_many_rows(name: str, dtype: str, sizes: tuple[int, int, int, int]) -> None:
    T, B, input_size, hidden_size = sizes
    layer = CELLS[name].build(input_size, hidden_size, dtype=dtype)
    draw(CELLS[name], layer, T, B).check_backward()


@pytest.mark.parametrize("B", range(1, 15))
def test_every_small_batch(B: int) -> None:
    layer = CELLS["lstm"].build(4, 20, dtype="float32")
    draw(CELLS["lstm"], layer, 3, B).check_backward()


@pytest.mark.parametrize("name", CELLS)
def test_none_is_zeros(name: str) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, 4, 5)
    tape = e.train()[2]
    zero_dy, zero_dstate = np.zeros_like(e.dy), tuple(np.zeros_like(d) for d in e.dstate)

    def gradients(dy: Any, dstate: Any) -> dict[str, np.ndarray]:
        return gradients_of(layer.backward(tape, dy, dstate))

    assert_same_bits(gradients(e.dy, None), gradients(e.dy, whole(zero_dstate)))
    assert_same_bits(gradients(None, whole(e.dstate)), gradients(zero_dy, whole(e.dstate)))
    if len(e.dstate) == 2:
        dh, dc = e.dstate
        assert_same_bits(gradients(e.dy, (None, dc)), gradients(e.dy, (zero_dstate[0], dc)))
        assert_same_bits(gradients(e.dy, (dh, None)), gradients(e.dy, (dh, zero_dstate[1])))
    assert not any(g.any() for g in gradients(None, None).values())


@pytest.mark.parametrize("name", CELLS)
def test_backward_twice_on_one_tape_gives_the_same_bits(name: str) -> None:
    layer = CELLS[name].build(3, 17, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, 7, 5, lengths=True, reset=True)
    tape = e.train()[2]
    first = layer.backward(tape, e.dy, whole(e.dstate), hidden=True)
    copies = {variable: g.copy() for variable, g in gradients_of(first).items()}
    layer.backward(tape, 2 * e.dy, None)  # another gradient in between
    e.infer()
    second = layer.backward(tape, e.dy, whole(e.dstate), hidden=True)
    assert_same_bits(gradients_of(second), copies)
    assert_same_bits(gradients_of(first), copies)


def test_hidden_is_there_only_when_asked_for() -> None:
    layer = CELLS["gru"].build(3, 9)
    e = draw(CELLS["gru"], layer, 4, 5)
    tape = e.train()[2]
    with_it = layer.backward(tape, e.dy, hidden=True)
    without = layer.backward(tape, e.dy)
    assert without.hidden is None
    assert with_it.hidden.shape == e.dy.shape
    assert_same_bits(without.x, with_it.x)
    assert_same_bits(without.parameters, with_it.parameters)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_batch_first_only_changes_the_layout(name: str, bidirectional: bool) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=bidirectional)
    other = CELLS[name].build(3, 9, num_layers=2, bidirectional=bidirectional, batch_first=True)
    e = draw(CELLS[name], layer, 6, 5, lengths=True, reset=True)
    assert e.reset is not None
    expected = e.gradients()
    _, _, tape = other.forward(e.x.swapaxes(0, 1), whole(e.state), lengths=e.lengths, reset=e.reset.T, training=True)
    for dy in (e.dy.swapaxes(0, 1), np.ascontiguousarray(e.dy.swapaxes(0, 1))):
        found = gradients_of(other.backward(tape, dy, whole(e.dstate), hidden=True))
        found["x"] = found["x"].swapaxes(0, 1)
        found["hidden"] = found["hidden"].swapaxes(0, 1)
        assert_same_bits(found, expected)


@pytest.mark.parametrize("name", CELLS)
def test_one_sequence_without_a_batch_axis(name: str) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2, bidirectional=True)
    e = draw(CELLS[name], layer, 6, 1, reset=True)
    assert e.reset is not None
    expected = e.gradients()
    _, _, tape = layer.forward(e.x[:, 0], whole(tuple(s[:, 0] for s in e.state)), reset=e.reset[:, 0], training=True)
    found = gradients_of(layer.backward(tape, e.dy[:, 0], whole(tuple(d[:, 0] for d in e.dstate)), hidden=True))
    for variable in ("x", *reference.STATE_NAMES, "hidden"):
        if variable in expected:
            expected[variable] = expected[variable][:, 0]
    assert_same_bits(found, expected)


def test_any_memory_layout_of_dy() -> None:
    layer = CELLS["gru"].build(3, 9)
    e = draw(CELLS["gru"], layer, 4, 5)
    expected = e.gradients()
    for dy in (np.asfortranarray(e.dy), e.dy[::-1].copy()[::-1], np.repeat(e.dy, 2, axis=2)[:, :, ::2]):
        assert_same_bits(e.but(dy=dy).gradients(), expected)
    constant = np.broadcast_to(np.float32(1), e.dy.shape)  # strides of zero: the gradient of y.sum()
    assert_same_bits(e.but(dy=constant).gradients(), e.but(dy=np.ones_like(e.dy)).gradients())


def test_a_strided_x_gives_the_same_gradients() -> None:
    """The tape keeps x where it is."""
    layer = CELLS["lstm"].build(3, 9)
    e = draw(CELLS["lstm"], layer, 4, 5)
    expected = e.gradients()
    for x in (np.asfortranarray(e.x), e.x[:, ::-1].copy()[:, ::-1], np.repeat(e.x, 2, axis=2)[:, :, ::2]):
        assert_same_bits(e.but(x=x).gradients(), expected)


@pytest.mark.parametrize("name", CELLS)
def test_a_nan_in_one_row_stays_in_that_row(name: str) -> None:
    layer = CELLS[name].build(3, 9, num_layers=2)
    e = draw(CELLS[name], layer, 6, 7)
    clean = e.gradients()
    e.x[2, 4] = np.nan
    dirty = e.gradients()
    others = [0, 1, 2, 3, 5, 6]
    for variable in ("x", *reference.STATE_NAMES, "hidden"):
        if variable in clean:
            assert_same_bits(dirty[variable][:, others], clean[variable][:, others])
    assert np.isnan(dirty["weight_hh_l0"]).any()


@pytest.mark.parametrize("name", CELLS)
def test_a_tape_does_not_see_what_the_caller_writes_to_its_small_arrays_afterwards(name: str) -> None:
    e = draw(CELLS[name], CELLS[name].build(3, 5, dtype="float64"), 6, 4, lengths=True, reset=True)
    expected = e.gradients()
    tape = e.train()[2]
    assert e.lengths is not None
    assert e.reset is not None
    e.lengths[:] = 50
    e.reset[...] ^= True
    for s in e.state:
        s[...] = np.nan
    found = gradients_of(e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True))
    assert_same_bits(found, expected)

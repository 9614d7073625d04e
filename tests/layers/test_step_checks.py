"""Bad input of a frozen layer's step: what every error says."""

from re import escape as says

import numpy as np
import pytest

import fastrnn
from fastrnn import ShapeError
from support import CELLS, state_shapes, whole

B, I, H = 3, 4, 6


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.fixture
def lstm() -> fastrnn.LSTM:
    return fastrnn.LSTM(I, H, rng=0)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((B, I + 1), "freeze().step got x with shape (3, 5) = (batch, features).\n  features is 5 but must be 4."),
        ((I, B), "Axis 0 is 4: did you mean x.swapaxes(0, 1)?"),
        ((I + 1,), "got x with shape (5,) = (features,)."),
        ((1, B, I), "For a whole sequence call the frozen layer itself: frozen(x, state)."),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_step_input(name: str, shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ShapeError, match=says(text)):
        CELLS[name].build(I, H).freeze().step(zeros(*shape))


@pytest.mark.parametrize("name", CELLS)
def test_step_outputs(name: str) -> None:
    layer = CELLS[name].build(I, H)
    fast, x = layer.freeze(), zeros(B, I)
    shapes = state_shapes(layer, B)
    P = shapes[0][2]
    for out, kind, text in (
        (np.zeros((B, P)), TypeError, "out with dtype float64.\n  It is written to and must have dtype float32"),
        (zeros(B, P + 1), ShapeError, f"It is written to and must have shape (3, {P})."),
        (zeros(B, 2 * P)[:, ::2], ValueError, "must be writeable, aligned and C-contiguous"),
        ([0.0], TypeError, f"must be a NumPy array: use np.empty((3, {P}), np.float32)."),
    ):
        with pytest.raises(kind, match=says(text)):
            fast.step(x, out=out)  # type: ignore[arg-type]
    read_only = zeros(B, P)
    read_only.setflags(write=False)
    with pytest.raises(ValueError, match="It is written to and must be writeable"):
        fast.step(x, out=read_only)
    with pytest.raises(ShapeError, match=r"state_out(\.h)? with shape \(2, 3"):
        fast.step(x, state_out=whole(tuple(zeros(2, *s[1:]) for s in shapes)))


@pytest.mark.parametrize("name", CELLS)
def test_step_refuses_outputs_that_share_memory(name: str) -> None:
    layer = CELLS[name].build(H, H)
    fast = layer.freeze()
    shapes = state_shapes(layer, B)
    state = tuple(zeros(*s) for s in shapes)
    fresh = whole(tuple(zeros(*s) for s in shapes))
    P = shapes[0][2]
    x = zeros(B, H)
    with pytest.raises(
        ValueError, match=says("got out that shares memory with state.\n  It would be overwritten while in ")
    ):
        fast.step(x, whole(state), out=state[0][0])
    with pytest.raises(ValueError, match="out that shares memory with x"):
        fast.step(x, whole(state), out=x.reshape(-1)[: B * P].reshape(B, P))
    with pytest.raises(ValueError, match="state_out that shares memory with out"):
        fast.step(x, whole(state), out=fresh[0][0] if len(state) > 1 else fresh[0], state_out=fresh)
    long = zeros(1, B + 1, P)
    with pytest.raises(ValueError, match="state_out that shares memory with state"):
        fast.step(x, whole((long[:, :B], *state[1:])), state_out=whole((long[:, 1:], *[s.copy() for s in state[1:]])))
    if len(state) > 1 and P == H:
        with pytest.raises(ValueError, match=r"state_out.c that shares memory with state.\n"):
            fast.step(x, whole(state), state_out=whole((state[1], state[0], *state[2:])))
        with pytest.raises(ValueError, match=r"state_out.c that shares memory with state_out"):
            fast.step(x, whole(state), state_out=(fresh[0], fresh[0], *fresh[2:]))


def test_a_pair_to_write_to_needs_both_members(lstm: fastrnn.LSTM) -> None:
    with pytest.raises(
        TypeError, match=r"got state_out.c of type NoneType.\n  It is written to and must be a NumPy array"
    ):
        lstm.freeze().step(zeros(B, I), state_out=(zeros(1, B, H), None))
    with pytest.raises(TypeError, match="got state_out of type ndarray"):
        lstm.freeze().step(zeros(B, I), state_out=zeros(1, B, H))


@pytest.mark.parametrize("name", CELLS)
def test_a_bidirectional_layer_has_no_step(name: str) -> None:
    with pytest.raises(ValueError, match="is bidirectional and has no step: its reverse direction starts at the end"):
        CELLS[name].build(I, H, bidirectional=True).freeze().step(zeros(B, I))

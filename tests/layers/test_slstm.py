"""The sLSTM: what its stabiliser is for, an empty memory, its state of four members."""

import re
from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from support import CELLS, DTYPES, Array, assert_same_bits, draw, whole

I, H = 3, 9
BOTH = ["slstm", "slstm_exponential"]


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("name", BOTH)
def test_the_stabiliser_cancels_out(name: str) -> None:
    """h, and c and n times e^m, are those of the equations without it."""
    layer = CELLS[name].build(I, H, dtype="float64")
    x = np.random.default_rng(0).standard_normal((12, 1, I))
    y, state = layer(x)
    p = layer.parameters()
    h = c = n = np.zeros(H)
    for t in range(12):
        z = p["weight_ih_l0"] @ x[t, 0] + p["bias_ih_l0"] + p["weight_hh_l0"] @ h + p["bias_hh_l0"]
        z_i, z_f, z_g, z_o = np.split(z, 4)
        f = np.exp(z_f) if layer.forget_gate == "exponential" else sigmoid(z_f)
        c, n = f * c + np.exp(z_i) * np.tanh(z_g), f * n + np.exp(z_i)
        h = sigmoid(z_o) * c / n
        np.testing.assert_allclose(y[t, 0], h, rtol=1e-12)
    for kept, plain in ((state.c, c), (state.n, n)):
        np.testing.assert_allclose((kept * np.exp(state.m))[0, 0], plain, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOTH)
def test_an_empty_memory_takes_the_first_input_alone(name: str, dtype: str, isa: str) -> None:
    """At the first step and after a reset n is 1 and m what enters the input gate, however large or small that is."""
    layer = CELLS[name].build(I, H, isa=isa, dtype=dtype)
    layer.parameters()["bias_ih_l0"][:H] = np.linspace(-1e4, 1e4, H)
    x = np.random.default_rng(0).standard_normal((6, 2, I)).astype(dtype)
    reset = np.zeros((6, 2), bool)
    reset[4, 1] = True
    for T, b in ((1, 0), (5, 1)):
        y, state, tape = layer.forward(x[:T], reset=reset[:T])
        p = layer.parameters()
        z = (p["weight_ih_l0"] @ x[T - 1, b] + p["bias_ih_l0"] + p["bias_hh_l0"])[:H]
        np.testing.assert_allclose(state.m[0, b], z, rtol=1e-6)
        assert (state.n[0, b] == 1).all()
        assert np.isfinite(y).all()
        gradients = layer.backward(tape, np.ones_like(y), whole(tuple(np.ones_like(s) for s in state)))
        assert all(np.isfinite(g).all() for g in (gradients.x, *gradients.state, *gradients.parameters.values()))


@pytest.mark.parametrize("large", [1e3, 1e30])
@pytest.mark.parametrize("name", BOTH)
def test_gates_far_beyond_the_range_of_exp(name: str, large: float, isa: str) -> None:
    layer = CELLS[name].build(I, H, isa=isa)
    e = draw(CELLS[name], layer, 7, 3)
    e.x *= large
    e.layer.parameters()["weight_hh_l0"][...] = 0
    e.check_forward()
    assert all(np.isfinite(g).all() for g in e.gradients().values())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("name", BOTH)
def test_infinities_and_nan_come_out_as_in_the_textbook(name: str, gate: int, value: float, isa: str) -> None:
    layer = CELLS[name].build(1, 5, isa=isa, dtype="float64", bias=True)
    p = layer.parameters()
    p["weight_hh_l0"][...] = p["weight_ih_l0"][...] = 0
    p["bias_ih_l0"][gate * 5 : gate * 5 + 5] = value
    e = draw(CELLS[name], layer, 2, 3)
    with np.errstate(all="ignore"):
        y, state = reference.forward(e.problem())
    found, end = e.infer()
    for mine, expected in ((found, y), *zip(end[1:3], state[1:3], strict=True)):
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(expected))
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", BOTH)
def test_every_gradient_of_every_state(name: str) -> None:
    """The final state's m has a gradient too, which goes the way that its maximum went."""
    layer = CELLS[name].build(2, 3, dtype="float64")
    e = draw(CELLS[name], layer, 4, 6)
    e.dy[:] = 0
    for member in range(4):
        only = e.but(dstate=tuple(d if k == member else np.zeros_like(d) for k, d in enumerate(e.dstate)))
        only.check_backward_element_by_element()


def test_its_state_is_a_tuple_of_four() -> None:
    layer = fastrnn.sLSTM(I, H, 2, rng=0)
    x = np.random.default_rng(0).standard_normal((4, 2, I), np.float32)
    y, state = layer(x)
    assert type(state) is fastrnn.sLSTMState
    assert [s.shape for s in state] == [(2, 2, H)] * 4
    assert type(layer.backward(layer.forward(x)[2], y).state) is fastrnn.sLSTMState
    fast = layer.freeze()
    out, ends = np.empty((2, H), np.float32), fastrnn.sLSTMState(*(np.zeros_like(s) for s in state))
    for t in range(4):
        got, ends = fast.step(x[t], ends, out=out, state_out=ends)
        assert got is out
        assert type(ends) is fastrnn.sLSTMState
        assert_same_bits(out, np.ascontiguousarray(fast(x[: t + 1])[0][-1]))
    none = (None, state.c, None, state.m)
    zeros = np.zeros_like(state.h)
    assert_same_bits(layer(x, none)[0], layer(x, (zeros, state.c, zeros, state.m))[0])
    one, alone = layer(x[:, 0])
    assert alone.m.shape == (2, H)
    np.testing.assert_allclose(one, y[:, 0], rtol=1e-5, atol=1e-6)


def says(state: Any) -> str:
    with pytest.raises(TypeError) as caught:
        fastrnn.sLSTM(I, H)(np.zeros((1, 1, I), np.float32), state)
    return str(caught.value)


def test_a_negative_normaliser_is_refused() -> None:
    layer = fastrnn.sLSTM(I, H, rng=0)
    x = np.ones((2, 3, I), np.float32)
    _, state = layer(x)
    wrong = state._replace(n=state.n.copy())
    wrong.n[0, 2, 4] = -0.5
    words = re.escape("state.n[0, 2, 4] = -0.5.\n  n of an sLSTM sums up its input gates and is not negative")
    fast = layer.freeze()
    calls = layer, layer.forward, fast, lambda x, state: fast.step(x[0], state), layer.freeze("int8")
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call(x, wrong)
    with pytest.raises(ValueError, match=r"state.n\[0, 4\] = -0.5"):
        fast.step(x[0, 2], tuple(s[:, 2] for s in wrong))
    y, _, tape = layer.forward(x, state._replace(n=-np.zeros_like(state.n)))
    layer.backward(tape, y, dstate=wrong)  # gradients have either sign


def test_what_is_no_state() -> None:
    pair = (np.zeros((1, 1, H), np.float32),) * 2
    assert "state of type tuple with 2 members" in says(pair)
    assert "The state of an sLSTM is (h, c, n, m), each an array or None for zeros" in says(pair[0])
    with pytest.raises(ValueError, match=re.escape("state.n with shape (1, 1, 2)")):
        fastrnn.sLSTM(I, H)(np.zeros((1, 1, I), np.float32), (None, None, np.zeros((1, 1, 2), np.float32), None))

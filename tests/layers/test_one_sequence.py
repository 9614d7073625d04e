"""One sequence of a small frozen layer, which the kernels run in a way of its own: the bits are those of a batch."""

from typing import Any

import numpy as np
import pytest

import fastrnn
from support import CELLS, assert_same_bits, parts

NAMES = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
T, B = 6, 3


def build(name: str, I: int, H: int, **options: Any) -> Any:
    layer = CELLS[name].build(I, H, **options)
    x = np.random.default_rng(H).standard_normal((T, B, I)).astype(layer.dtype)
    return layer, layer.freeze(), x


def row(state: Any, b: int) -> Any:
    """Of a state, or of several, that of one sequence."""
    one = [np.ascontiguousarray(s[:, b : b + 1]) for s in parts(state)]
    return fastrnn.LSTMState(*one) if len(one) == 2 else one[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("H", [1, 3, 8, 9, 16, 20, 33, 40, 48, 50, 64, 80, 100, 128, 129])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_row_of_a_batch(name: str, H: int, dtype: str, isa: str) -> None:
    _, fast, x = build(name, 2, H, dtype=dtype, isa=isa)
    _, first = fast(x[:2])
    y, end = fast(x[2:], first)
    for b in range(B):
        alone, last = fast(np.ascontiguousarray(x[2:, b : b + 1]), row(first, b))
        assert_same_bits(alone, y[:, b : b + 1])
        assert_same_bits(last, row(end, b))
        state = row(first, b)
        for t in range(2, T):
            y_t, state = fast.step(np.ascontiguousarray(x[t, b : b + 1]), state, state_out=state)
            assert_same_bits(y_t, y[t - 2, b : b + 1])
        assert_same_bits(state, row(end, b))


@pytest.mark.parametrize("I", [1, 8, 9, 30])
@pytest.mark.parametrize("name", NAMES)
def test_cuts_directions_and_layers(name: str, I: int, isa: str) -> None:
    layer, fast, x = build(name, I, 20, num_layers=2, bidirectional=True, isa=isa)
    reset = np.random.default_rng(1).random((T, B)) < 0.4
    lengths = [T, T - 2, 0]
    y, end = fast(x, reset=reset, lengths=lengths)
    plain, _ = layer(x, reset=reset, lengths=lengths)
    np.testing.assert_allclose(y, plain, rtol=1e-4, atol=1e-6)
    for b in range(B):
        alone, last = fast(x[:, b : b + 1], reset=reset[:, b : b + 1], lengths=lengths[b : b + 1])
        assert_same_bits(alone, y[:, b : b + 1])
        assert_same_bits(last, row(end, b))

"""Initial values: the distributions, their seeds, and the options of initialise."""

from typing import Any

import numpy as np
import pytest

import fastrnn
from support import CELLS, assert_same_bits

I, H = 5, 6


def build(name: str, **options: Any) -> Any:
    return CELLS[name].build(I, H, **options)


@pytest.mark.parametrize("name", CELLS)
def test_new_layers_are_uniform_and_seeded(name: str) -> None:
    layers = [CELLS[name].layer(30, 25, 2, **CELLS[name].options, rng=rng) for rng in (5, np.random.default_rng(5), 6)]
    assert_same_bits(layers[0].state_dict(), layers[1].state_dict())
    for label, p in layers[0].parameters().items():
        if "norm" in name and ("norm" in label or label.startswith("bias")):
            continue  # ones and zeros
        assert not np.array_equal(p, layers[2].parameters()[label])
        assert np.abs(p).max() <= 1 / 5
        if p.size > 500:
            assert np.abs(p).max() > 0.99 / 5
            assert abs(p.mean()) < 0.01


@pytest.mark.parametrize("name", CELLS)
def test_orthogonal_recurrent_weights(name: str) -> None:
    layer = build(name, num_layers=2, dtype=np.float64)
    assert layer.initialise("orthogonal", rng=1) is layer
    for label, p in layer.parameters().items():
        if label.startswith("weight_hh"):
            for gate in np.split(p, len(p) // H):
                np.testing.assert_allclose(gate.T @ gate, np.eye(p.shape[1]), atol=1e-14)
        assert p.any() or ("norm" in name and label.startswith("bias"))


@pytest.mark.parametrize("name", CELLS)
def test_identity_recurrent_weights(name: str) -> None:
    layer = build(name).initialise("identity", rng=1)
    for label, p in layer.parameters().items():
        if label.startswith("weight_hh"):
            for gate in np.split(p, len(p) // H):
                np.testing.assert_array_equal(gate, np.eye(*gate.shape))
        assert label.startswith("bias") != p.any()


def test_forget_bias() -> None:
    layer = fastrnn.LSTM(I, H, 2, bidirectional=True).initialise(forget_bias=1.0)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        total = layer.parameters()[f"bias_ih_{suffix}"] + layer.parameters()[f"bias_hh_{suffix}"]
        np.testing.assert_array_equal(total[H : 2 * H], 1)
        assert np.all(total[:H] != 1)

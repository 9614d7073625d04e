"""Zoneout and recurrent dropout on a GPU: with the masks of a layer on the CPU its results, and masks of its own."""

from typing import Any

import numpy as np
import pytest

import fastrnn
import fastrnn.cuda
from cuda_support import RELATIVE_ERROR, Array, example, needs_gpu, on_gpu, relative_error, to_gpu
from fastrnn.running import Running
from support import NOISE, Example, assert_same_bits, gradients_of, noisy, parts, whole
from test_cuda_resident import step_by_step

pytestmark = needs_gpu


@pytest.fixture
def masks_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self: Any, memory: Any, rate: float, shape: tuple[int, ...], rng: "np.random.Generator") -> Any:
        return to_gpu(Running._draw_below(self, memory, rate, shape, rng).view(np.uint8))

    monkeypatch.setattr(fastrnn.cuda.Layer, "_draw_below", draw)


def results(e: Example, layer: Any) -> list[Array]:
    y, state, tape = layer.forward(e.x, whole(e.state), **e.cuts, rng=5)
    gradients = gradients_of(layer.backward(tape, e.dy, whole(e.dstate), hidden=True))
    return [y, *parts(state), *gradients.values(), layer(e.x, whole(e.state), **e.cuts)[0]]


def check(e: Example, precision: str) -> None:
    """Against the CPU in float64, and one kernel a step against many steps in one."""
    wide = e.layer.to("cpu", "float64")
    exact = e.but(
        x=e.x.astype(np.float64),
        state=tuple(s.astype(np.float64) for s in e.state),
        dy=e.dy.astype(np.float64),
        dstate=tuple(s.astype(np.float64) for s in e.dstate),
    )
    layer = on_gpu(e.layer, precision)
    found = results(e, layer)
    for actual, expected in zip(found, results(exact, wide), strict=True):
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) <= RELATIVE_ERROR[precision]
    with step_by_step():
        assert_same_bits(tuple(found), tuple(results(e, layer)))


@pytest.mark.usefixtures("masks_of_the_cpu")
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm", "lstm_proj", "lstm_general"])
def test_training_and_inference_equal_those_of_the_cpu(name: str, noise: str) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    check(example(noisy(name, noise), "float64", 5, 9, 3, 20, lengths=True, reset=True, **options), "float64")


@pytest.mark.usefixtures("masks_of_the_cpu")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gru_original", "lstm"])
def test_fewer_bits(name: str, precision: str) -> None:
    check(example(noisy(name, "both"), precision, 4, 9, 7, 30, lengths=True, reset=True), precision)


def test_masks_of_its_own_are_drawn_on_the_gpu() -> None:
    x = np.random.default_rng(0).standard_normal((6, 40, 3), np.float32)
    h = np.random.default_rng(1).standard_normal((1, 40, 16), np.float32)
    layer = fastrnn.GRU(3, 16, zoneout=0.25, rng=0).to("cuda")
    y, _, _ = layer.forward(x, h, rng=1)
    stayed = float(np.mean(np.concatenate([h, y[:-1]]) == y))
    assert 0.2 < stayed < 0.3
    assert_same_bits(layer.forward(x, h, rng=1)[0], y)
    assert not np.array_equal(layer.forward(x, h, rng=2)[0], y)
    assert_same_bits(layer.to("cpu").to("cuda").forward(x, h, rng=1)[0], y)
    stays = fastrnn.LSTM(3, 16, zoneout=(1.0, 0.0), recurrent_dropout=1.0, rng=0).to("cuda")
    y, end, tape = stays.forward(x, fastrnn.LSTMState(h, 0 * h))
    assert_same_bits(y, np.repeat(h, 6, 0))
    assert end.c.any()
    assert not stays.backward(tape, np.ones_like(y)).parameters["weight_hh_l0"].any()

"""Zoneout and recurrent dropout: what the layer draws is given to the textbook, forwards and backwards."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from support import CELLS, NOISE, Array, Cell, Example, assert_same_bits, draw, gradients_of, noisy, whole

T, B, I = 7, 5, 3
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
# with noise all of these run general kernels, and the cells that are general anyway the same ones
NOISY = ["rnn_tanh", "gru", "gru_original", "lstm", "lstm_proj", "lstm_general"]


def general(cell: Cell) -> Cell:
    """The same with the textbook that takes variants."""
    textbook = cell.textbook if "general" in cell.textbook else re.sub("_tanh|_relu", "", cell.textbook) + "_general"
    return Cell(cell.layer, textbook, cell.options, cell.projected)


def drawn(layer: Any, time: int, batch: int, seed: int) -> reference.Noise:
    """The noise of forward(rng=seed) of a layer that drops nothing between its layers."""
    given: Any = SimpleNamespace(time=time, batch=batch)
    kept, by_time, scale, *zoned = layer._draw_noise(None, given, np.random.default_rng(seed))
    if kept is not None and not by_time:
        kept = np.broadcast_to(kept[:, None], (len(kept), time, *kept.shape[1:]))
    return reference.Noise(zoned=tuple(zoned), kept=kept, scale=scale)


def check_training(e: Example, seed: int = 5) -> None:
    problem = e.problem(noise=drawn(e.layer, *e.x.shape[:2], seed))
    y, state, tape = e.layer.forward(e.x, whole(e.state), **e.cuts, rng=seed)
    e.assert_close_to((y, state), reference.forward(problem), "training")
    e.check_backward(problem, gradients_of(e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", NOISY)
def test_training_is_that_of_the_textbook(name: str, noise: str, isa: str) -> None:
    cell = general(noisy(name, noise))
    check_training(draw(cell, cell.build(I, 9, isa=isa, dtype="float64", **STACK), T, B, lengths=True, reset=True))


# few tokens, which pack nothing; one step; chunks of time; more rows than units; a head of parts of vectors
@pytest.mark.parametrize(
    ("time", "batch", "H", "heads"), [(3, 2, 33, 1), (1, 1, 8, 1), (200, 2, 5, 1), (9, 70, 17, 1), (9, 11, 12, 3)]
)
@pytest.mark.parametrize("name", ["gru", "gru_original", "lstm", "lstm_proj"])
def test_other_sizes(name: str, time: int, batch: int, H: int, heads: int) -> None:
    cell = general(noisy(name, "both"))
    if heads > 1 and cell.projected:
        return
    layer = cell.build(I, H, dtype="float32", heads=heads)
    check_training(draw(cell, layer, time, batch, lengths=batch > 2, reset=batch > 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NOISY)
def test_inference_takes_the_expectation_of_zoneout(name: str, dtype: str, isa: str) -> None:
    cell = general(noisy(name, "both"))
    e = draw(cell, cell.build(I, 9, isa=isa, dtype=dtype, **STACK), T, B, lengths=True, reset=True)
    y, state, tape = e.layer.forward(e.x, whole(e.state), **e.cuts, training=False)
    expected = reference.forward(e.problem())
    for path, found in (("inference", e.infer()), ("no training", (y, state))):
        e.assert_close_to(found, expected, path)
    e.assert_close_to(e.layer.freeze()(e.x, whole(e.state), **e.cuts), expected, "frozen")
    e.check_backward(gradients=gradients_of(e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)))


def test_a_step_is_a_call_with_one_time_step() -> None:
    cell = noisy("lstm", "both")
    e = draw(cell, cell.build(I, 9, num_layers=2), T, B)
    frozen, state, y = e.layer.freeze(), whole(e.state), []
    for x in e.x:
        out, state = frozen.step(x, state)
        y.append(out)
    whole_y, whole_state = frozen(e.x, whole(e.state))
    assert_same_bits(np.stack(y), whole_y)
    assert_same_bits(state, whole_state)


def test_int8_and_bfloat16_have_zoneout_too() -> None:
    layer = fastrnn.LSTM(I, 8, zoneout=(1.0, 0.0), rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    h = np.random.default_rng(1).standard_normal((1, B, 8), np.float32)
    for word in ("int8", "bfloat16"):
        _, end = layer.freeze(word)(x, fastrnn.LSTMState(h, 0 * h))
        np.testing.assert_array_equal(end.h, h)
        assert end.c.any()


@pytest.mark.parametrize(("H", "batch"), [(69, 1), (24, 40)])
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm", "lstm_proj"])
def test_the_same_bits_from_any_number_of_threads(name: str, H: int, batch: int) -> None:
    cell = noisy(name, "both")
    e = draw(cell, cell.build(9, H, **STACK), 30, batch, lengths=True, reset=True)

    def results() -> tuple[Any, Any, Any, Any]:
        y, state, tape = e.layer.forward(e.x, whole(e.state), **e.cuts, rng=3)
        return y, state, gradients_of(e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)), e.infer()[0]

    with fastrnn.threads(1):
        expected = results()
    for threads in (2, 3, 8):
        with fastrnn.threads(threads):
            for found, one in zip(results(), expected, strict=True):
                assert_same_bits(found, one)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "lstm"])
def test_a_seed_gives_the_same_noise(name: str, noise: str) -> None:
    def train(layer: Any, e: Example, **rng: int) -> tuple[Array, dict[str, Array]]:
        y, _, tape = layer.forward(e.x, whole(e.state), **rng)
        return y, gradients_of(layer.backward(tape, e.dy, whole(e.dstate)))

    def make(seed: int) -> tuple[Any, Example]:
        layer = noisy(name, noise).build(I, 9, rng=seed, dropout=0.5, **STACK)
        return layer, draw(CELLS[name], layer, T, B)

    first = train(*make(1))
    again = train(*make(1))
    assert_same_bits(again[0], first[0])
    assert_same_bits(again[1], first[1])
    layer, e = make(1)
    assert_same_bits(train(layer, e)[0], first[0])
    assert not np.array_equal(train(layer, e)[0], first[0])
    assert_same_bits(train(layer, e, rng=8)[0], train(layer, e, rng=8)[0])
    assert not np.array_equal(layer.forward(e.x, whole(e.state), training=False)[0], first[0])


def test_backward_runs_again_with_the_same_masks() -> None:
    cell = noisy("lstm", "both")
    e = draw(cell, cell.build(I, 9, **STACK), T, B)
    tape = e.train()[2]
    first = gradients_of(e.layer.backward(tape, e.dy))
    e.train()
    assert_same_bits(gradients_of(e.layer.backward(tape, e.dy)), first)


def test_padding_and_packing_do_not_matter_to_a_sequence() -> None:
    """Packed, with the masks of its own tokens, every sequence comes out as it does padded."""
    cell = noisy("gru", "both")
    layer = cell.build(I, 9, dtype="float64", **STACK)
    e = draw(cell, layer, T, B)
    lengths = np.array([7, 6, 4, 4, 1])
    runs = np.arange(T)[:, None] < lengths
    given: Any = SimpleNamespace(time=T, batch=B)
    noise = layer._draw_noise(None, given, np.random.default_rng(0))
    how = lengths, None, True, False, 1, None
    arrays = list(layer.parameters().values())
    y, ends, tape = layer._network.forward(arrays, e.x, e.state, *how, (None, 1.0, noise))
    dx, *_ = layer._network.backward(arrays, tape, e.dy, e.dstate, False, 1)

    def packed(mask: Array) -> Array:
        return np.ascontiguousarray(mask[:, runs])

    kept, by_time, scale, zoned, _ = noise
    rows = packed(kept), by_time, scale, packed(zoned), None
    packed_y, packed_ends, packed_tape = layer._network.forward(
        arrays, np.ascontiguousarray(e.x[runs]), e.state, *how, (None, 1.0, rows)
    )
    packed_dx, *_ = layer._network.backward(arrays, packed_tape, e.dy[runs], e.dstate, False, 1)
    assert_same_bits(packed_y, y[runs])
    assert_same_bits(tuple(packed_ends), tuple(ends))
    assert_same_bits(packed_dx, dx[runs])


def test_what_zoneout_keeps_is_copied_and_how_often() -> None:
    H, rate = 64, (0.2, 0.7)
    layer = fastrnn.LSTM(2, H, zoneout=rate, rng=0)
    x = np.random.default_rng(0).standard_normal((20, 50, 2), np.float32)
    y, _, _ = layer.forward(x, rng=0)
    stays = np.concatenate([np.zeros((1, 50, H), np.float32), y[:-1]]) == y
    assert stays.mean() == pytest.approx(rate[0], abs=0.01)  # 64 000 draws: the deviation is 0.002
    noise = drawn(layer, 20, 50, 0)
    assert noise.zoned[0] is not None
    assert noise.zoned[1] is not None
    np.testing.assert_array_equal(stays, noise.zoned[0][0])
    assert noise.zoned[1].mean() == pytest.approx(rate[1], abs=0.01)
    assert np.mean(noise.zoned[0] & noise.zoned[1]) == pytest.approx(rate[0] * rate[1], abs=0.01)  # apart


@pytest.mark.parametrize("mode", ["sequence", "step"])
def test_the_share_the_scale_and_the_life_of_what_is_dropped(mode: Any) -> None:
    """relu(1 * x + W h) with the identity as W counts how often each element was kept."""
    H, time = 64, 30
    layer = fastrnn.RNN(1, H, nonlinearity="relu", recurrent_dropout=0.25, recurrent_dropout_mode=mode, bias=False)
    layer.load_state_dict({"weight_ih_l0": np.zeros((H, 1)), "weight_hh_l0": np.eye(H) * 0.75})
    y, _, _ = layer.forward(np.zeros((time, 40, 1), np.float32), np.ones((1, 40, H), np.float32), rng=1)
    kept = y[0] != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_allclose(y[0][kept], 1, rtol=1e-6)
    assert y[-1].mean() == pytest.approx(0.75 if mode == "sequence" else 0.75**time, abs=0.03)


def test_nothing_is_multiplied_that_is_dropped_or_stays() -> None:
    """A NaN of h_prev that is dropped, or of a new state that is not taken, is gone."""
    dropping = fastrnn.RNN(I, 4, recurrent_dropout=1.0, dtype="float64", rng=0)
    y, _, tape = dropping.forward(np.ones((1, 1, I)), np.full((1, 1, 4), np.nan), rng=0)
    assert np.isfinite(y).all()
    gradients = dropping.backward(tape, np.ones_like(y))
    assert not gradients.parameters["weight_hh_l0"].any()
    assert not gradients.state.any()
    stays = fastrnn.RNN(I, 4, zoneout=1.0, dtype="float64", rng=0)
    y, _, _ = stays.forward(np.full((2, 1, I), np.nan), rng=0)
    np.testing.assert_array_equal(y, 0)


def test_without_noise_the_usual_kernels_run() -> None:
    assert fastrnn.LSTM(I, 4, zoneout=0, recurrent_dropout=0.0, recurrent_dropout_mode="step")._general() is None
    assert fastrnn.RNN(I, 4, nonlinearity="relu", zoneout=0)._general() is None


def test_files_copies_and_other_formats(tmp_path: Path) -> None:
    layer = fastrnn.LSTM(I, 5, zoneout=(0.1, 0.05), recurrent_dropout=0.2, recurrent_dropout_mode="step", rng=0)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    layer.save(tmp_path / "layer.npz")
    for other in (fastrnn.load(tmp_path / "layer.npz"), copy.deepcopy(layer), layer.to("cpu", "float32")):
        assert other.zoneout == (0.1, 0.05)
        assert other.recurrent_dropout == 0.2
        assert other.recurrent_dropout_mode == "step"
        assert_same_bits(other(x)[0], layer(x)[0])
        assert_same_bits(other.forward(x, rng=0)[0], layer.forward(x, rng=0)[0])
    assert "zoneout=(0.1, 0.05), recurrent_dropout=0.2, recurrent_dropout_mode='step'" in repr(layer)
    fastrnn.save(tmp_path / "layer.safetensors", layer)
    assert fastrnn.load(tmp_path / "layer.safetensors", options={"recurrent_dropout": 0.5}).recurrent_dropout == 0.5
    with pytest.raises(ValueError, match=r"has zoneout=\(0\.1, 0\.05\); options= says zoneout=0\.3"):
        fastrnn.load(tmp_path / "layer.safetensors", options={"zoneout": 0.3})
    assert fastrnn.LSTM(I, 5, zoneout=(0.1, 0.1)).zoneout == 0.1


@pytest.mark.parametrize(
    ("layer", "options", "sentence"),
    [
        (fastrnn.LSTM, {"zoneout": 1.5}, "zoneout must be a number in 0..1, the probability to stay, or a pair"),
        (fastrnn.LSTM, {"zoneout": (0.1, 0.2, 0.3)}, "LSTM got zoneout=(0.1, 0.2, 0.3).\n  zoneout must be"),
        (fastrnn.LSTM, {"zoneout": (0.1,)}, "A pair has the probabilities of h and of c."),
        (fastrnn.LSTM, {"zoneout": "0.1"}, "LSTM got zoneout='0.1'.\n  zoneout must be"),
        (fastrnn.GRU, {"zoneout": (0.1, 0.2)}, "GRU got zoneout=(0.1, 0.2).\n  zoneout must be a number in 0..1"),
        (fastrnn.GRU, {"zoneout": np.nan}, "GRU got zoneout=nan"),
        (fastrnn.RNN, {"recurrent_dropout": -0.1}, "recurrent_dropout is the probability of dropping an element"),
        (fastrnn.RNN, {"recurrent_dropout": np.complex64(0.5)}, "recurrent_dropout must be a number in 0..1"),
        (fastrnn.RNN, {"recurrent_dropout": True}, "recurrent_dropout must be a number in 0..1"),
        (fastrnn.RNN, {"recurrent_dropout_mode": "batch"}, 'recurrent_dropout_mode must be "sequence" or "step".'),
    ],
)
def test_what_is_refused(layer: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        layer(I, 4, **options)


def test_the_estimate_of_memory_counts_the_masks() -> None:
    def tape(**options: Any) -> int:
        return fastrnn.LSTM(I, 8, num_layers=2, bidirectional=True, **options).estimate_memory(T, B).tape

    step = {"recurrent_dropout": 0.1, "recurrent_dropout_mode": "step"}
    plain, each = tape(clip=9.0), 2 * 2 * B * 8
    assert tape(zoneout=(0.1, 0.0)) - plain == T * each
    assert tape(zoneout=0.1) - plain == 2 * T * each
    assert tape(recurrent_dropout=0.1) - plain == each
    assert tape(zoneout=0.1, **step) - plain == 3 * T * each
    assert tape(clip=9.0, dropout=0.1) - plain >= T * B * 2 * 8

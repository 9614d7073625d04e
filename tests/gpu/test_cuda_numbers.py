"""Layers on a GPU against the textbook and against the CPU: every cell, every precision, every way to cut sequences.

Without a GPU they run where fastrnn was built with FASTRNN_CUDA=EMULATE, at sizes that an emulated one can do.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrnn
import reference
import support
from cuda_support import (
    EMULATED,
    PRECISIONS,
    RELATIVE_ERROR,
    example,
    needs_gpu,
    on_gpu,
    own_products,
    relative_error,
    rounded,
    small_chunks,
)
from support import CELLS, USUAL, Example, assert_same_bits, gradients_of, parts, whole

pytestmark = needs_gpu

# T, B, I, H
SMALL = [(1, 1, 1, 1), (2, 3, 5, 4), (4, 9, 7, 17), (3, 8, 16, 33)]
LARGE = [(1, 3, 9, 65), (2, 1, 130, 127)]
if not EMULATED:
    SMALL += [(25, 7, 64, 64), (3, 121, 100, 100), (25, 8, 127, 160)]
    LARGE += [
        (25, 256, 256, 256),
        (3, 8, 512, 512),
        (2, 9, 513, 513),
        (25, 64, 1024, 1024),
        (3, 1, 2048, 2048),
        (1000, 8, 64, 64),
    ]


def sizes_id(sizes: tuple[int, int, int, int]) -> str:
    return support.sizes_id(sizes)


def run(e: Example, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and gradients by name."""
    y, state = layer(e.x, whole(e.state), **e.cuts)
    y_tape, state_tape, tape = layer.forward(e.x, whole(e.state), **e.cuts, training=True)
    assert_same_bits(y_tape, y)
    assert_same_bits(state_tape, state)
    results = {"y": y, **dict(zip(("hn", "cn", "nn", "mn"), parts(state), strict=False))}
    return results, gradients_of(layer.backward(tape, e.dy, whole(e.dstate), hidden=True))


def without_kinks(e: Example, precision: str) -> Example:
    """In fewer bits, without what rounding alone decides: of an sLSTM's m = max(a, b), whether a or b has the gradient.

    h does not depend on m, whose scale c and n share, so only gradients of the final c, n and m tell the two apart.
    """
    if precision in ("float32", "float64") or len(e.dstate) < 4:
        return e
    return e.but(dstate=(e.dstate[0], *(np.zeros_like(d) for d in e.dstate[1:])))


def check(e: Example, precision: str, gradients: bool = True) -> None:
    """Against the CPU in float64."""
    e = without_kinks(e, precision)
    wide = e.layer.to("cpu", "float64")
    exact = e.but(
        layer=wide,
        x=e.x.astype(np.float64),
        state=tuple(s.astype(np.float64) for s in e.state),
        dy=e.dy.astype(np.float64),
        dstate=tuple(s.astype(np.float64) for s in e.dstate),
    )
    expected = run(exact, wide)
    actual = run(e, on_gpu(e.layer, precision))
    for name, value in actual[0].items():
        assert value.shape == expected[0][name].shape, name
        error = relative_error(value, expected[0][name])
        assert error <= RELATIVE_ERROR[precision], f"{name}: {error:.3g}"
    for name, value in actual[1].items() if gradients else ():
        assert value.shape == expected[1][name].shape, name
        error = relative_error(value, expected[1][name])
        assert error <= RELATIVE_ERROR[precision], f"dL/d{name}: {error:.3g}"


@pytest.mark.parametrize("sizes", SMALL, ids=sizes_id)
@pytest.mark.parametrize("cell", CELLS)
def test_float64_equals_the_textbook(cell: str, sizes: tuple[int, int, int, int]) -> None:
    e = example(CELLS[cell], "float64", *sizes, lengths=True, reset=True)
    gpu = e.but(layer=on_gpu(e.layer, "float64"))
    gpu.assert_close_to(gpu.infer(), reference.forward(e.problem()), "inference")
    gpu.assert_close_to(gpu.train()[:2], reference.forward(e.problem()), "training")
    if sizes[0] * sizes[3] < 100:  # the textbook is slow
        e.check_backward(gradients=gpu.gradients())


@pytest.mark.parametrize("sizes", SMALL + LARGE, ids=sizes_id)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", USUAL)
def test_every_precision(cell: str, precision: str, sizes: tuple[int, int, int, int]) -> None:
    if EMULATED and sizes in LARGE and cell not in ("gru", "lstm_proj"):
        pytest.skip("an emulated GPU runs the large sizes with two cells")
    full = precision in ("float32", "float64")
    # In fewer bits one unit may saturate to a slope of nothing, which only many even out; and of a ReLU near zero
    # rounding decides whether its gradient is there at all.
    even = sizes[1] * sizes[3] >= 100 and cell != "rnn_relu"
    # Normalisation takes the size of a single input away: its gradient is nothing but rounding.
    lost = "norm" in cell and sizes[2] == 1
    check(example(CELLS[cell], precision, *sizes), precision, gradients=(full or even) and not lost)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", [*(c for c in USUAL if c != "rnn_relu"), "lstm_proj_general"])
def test_two_layers_two_directions_lengths_and_resets(cell: str, precision: str) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    check(example(CELLS[cell], precision, 5, 9, 7, 20, lengths=True, reset=True, **options), precision)


@pytest.mark.parametrize("columns", [8, 32])
@pytest.mark.parametrize("cell", CELLS)
def test_tiles_of_8_and_of_32_rows(cell: str, columns: int) -> None:
    B, H = (5, 16) if columns == 8 else (67, 20)
    if not EMULATED and columns == 32:
        B, H = 515, 260
    core, device = fastrnn.cuda.devices.core(), fastrnn.cuda.device_info()[0]
    assert core.step_columns(H, B, 1, device["multiprocessors"]) == columns
    check(example(CELLS[cell], "float64", 3, B, 3, H, lengths=True), "float64")


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru_original", "lstm_proj"])
def test_chunks_of_time_change_nothing_but_the_order_of_sums(cell: str) -> None:
    e = example(CELLS[cell], "float64", 7, 3, 4, 6, lengths=True, reset=True, num_layers=2, bidirectional=True)
    whole_results = run(e, on_gpu(e.layer, "float64"))
    with small_chunks(600):
        chunked = run(e, on_gpu(e.layer, "float64"))
    for a, b in zip(whole_results, chunked, strict=True):
        for name, value in a.items():
            assert relative_error(b[name], value) < 1e-14, name


def test_products_over_many_tokens_are_cut_into_shares() -> None:
    core = fastrnn.cuda.devices.core()
    assert core.product_shares(16, 2400, 3, 100, 2) == 4
    e = example(CELLS["lstm"], "float64", 1200 if EMULATED else 12000, 2, 3, 4)
    check(e, "float64")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_same_bits_every_time(precision: str) -> None:
    e = example(CELLS["gru"], precision, 4, 9, 5, 40, lengths=True, reset=True, bidirectional=True)
    layer = on_gpu(e.layer, precision)
    first = run(e, layer)
    for _ in range(2 if EMULATED else 1000):
        again = run(e, layer)
        assert_same_bits(again[0], first[0])
        assert_same_bits(again[1], first[1])


@pytest.mark.parametrize("cell", CELLS)
def test_no_bias_and_states_of_none(cell: str) -> None:
    e = example(CELLS[cell], "float64", 3, 4, 5, 6, bias=False)
    gpu = on_gpu(e.layer, "float64")
    y, state, tape = gpu.forward(e.x)
    expected_y, expected_state, expected_tape = e.layer.forward(e.x)
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=1e-13)
    for a, b in zip(parts(state), parts(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)
    grads, expected = (
        gradients_of(gpu.backward(tape, None, whole(e.dstate))),
        gradients_of(e.layer.backward(expected_tape, None, whole(e.dstate))),
    )
    for name, value in expected.items():
        np.testing.assert_allclose(grads[name], value, rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("T", [0, 1])
@pytest.mark.parametrize("B", [0, 1])
def test_no_time_and_no_batch(T: int, B: int) -> None:
    e = example(CELLS["lstm"], "float32", T, B, 3, 4, num_layers=2)
    actual, expected = run(e, on_gpu(e.layer, "float32")), run(e, e.layer)
    for a, b in zip(actual, expected, strict=True):
        for name, value in b.items():
            assert a[name].shape == value.shape, name
            np.testing.assert_allclose(a[name], value, rtol=0, atol=1e-5, err_msg=name)


@given(data=st.data())
@settings(max_examples=25)
def test_any_call_equals_the_cpu(data: st.DataObject) -> None:
    cell = data.draw(st.sampled_from(sorted(CELLS)))
    T, B, I, H = (data.draw(st.integers(least, most)) for least, most in ((0, 6), (0, 12), (1, 9), (1, 20)))
    flags = {name: data.draw(st.booleans()) for name in ("bidirectional", "bias", "lengths", "reset")}
    e = example(CELLS[cell], "float64", T, B, I, H, num_layers=data.draw(st.integers(1, 3)), **flags)
    with small_chunks(data.draw(st.sampled_from([1, 2000, 64 << 20]))):
        actual = run(e, on_gpu(e.layer, "float64"))
    for found, expected in zip(actual, run(e, e.layer), strict=True):
        for name, value in expected.items():
            assert found[name].shape == value.shape, name
            assert relative_error(found[name], value) <= 1e-12, name


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_two_halves_equal_one_whole(cell: str) -> None:
    e = example(CELLS[cell], "bfloat16", 6, 3, 5, 20)
    gpu = on_gpu(e.layer, "bfloat16")
    with own_products():
        y, state = gpu(e.x, whole(e.state))
        first, middle = gpu(e.x[:3], whole(e.state))
        second, end = gpu(e.x[3:], middle)
    assert_same_bits(np.concatenate([first, second]), y)
    assert_same_bits(end, state)


def test_what_lies_past_a_length_does_not_matter() -> None:
    e = example(CELLS["lstm"], "float32", 5, 6, 3, 8, lengths=True, bidirectional=True, num_layers=2)
    layer = on_gpu(e.layer, "float32")
    clean = run(e, layer)
    assert e.lengths is not None
    x = e.x.copy()
    dy = e.dy.copy()
    for b, n in enumerate(e.lengths):
        x[n:, b] = np.nan
        dy[n:, b] = np.nan
    dirty = run(e.but(x=x, dy=dy), layer)
    for a, b in zip(clean, dirty, strict=True):
        assert_same_bits(b, a)


def test_a_nan_stays_in_its_row() -> None:
    e = example(CELLS["gru"], "float32", 4, 5, 3, 8)
    x = e.x.copy()
    x[1, 2] = np.nan
    y, _ = on_gpu(e.layer, "float32")(x)
    assert np.isnan(y[1:, 2]).all()
    assert np.isfinite(np.delete(y, 2, axis=1)).all()
    assert np.isfinite(y[0]).all()


def test_dropout_is_the_masks_that_were_drawn() -> None:
    e = example(CELLS["lstm"], "float64", 4, 3, 5, 6, num_layers=3, dropout=0.4, bidirectional=True)
    gpu = on_gpu(e.layer, "float64")
    y, state, tape = gpu.forward(e.x, whole(e.state), rng=7)
    masks = fastrnn.cuda.arrays.download(tape.core.drawn.masks, 0).astype(bool)
    assert masks.shape == (2, 4, 3, 12)
    problem = e.problem(masks=masks, scale=1 / 0.6)
    expected = reference.forward(problem)
    gpu_example = e.but(layer=gpu)
    gpu_example.assert_close_to((y, state), expected, "dropout")
    e.check_backward(problem, gradients_of(gpu.backward(tape, e.dy, whole(e.dstate), hidden=True)))
    assert_same_bits(gpu.forward(e.x, whole(e.state), rng=7)[0], y)
    assert np.any(gpu.forward(e.x, whole(e.state), rng=8)[0] != y)
    assert_same_bits(gpu.forward(e.x, whole(e.state), training=False)[0], gpu(e.x, whole(e.state))[0])


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x32-10, as Salmon et al. 2011 describe it."""
    x = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_masks_are_drawn_by_philox(drop: float) -> None:
    assert [f"{x:08x}" for x in philox(0, 0)] == [
        "6627e8d5",
        "e169c58d",
        "bc57ac4c",
        "9b00dbd8",
    ]  # Random123's known answer
    core = fastrnn.cuda.devices.core()
    seed, count = 0x123456789ABCDEF0, 1003
    masks = core.Array.empty((count,), "uint8", 0, 0)
    core.draw_masks(masks, drop, seed, 0)
    draws = [x for i in range((count + 3) // 4) for x in philox(i, seed)][:count]
    expected = [drop < 1 and x >= int(drop * 2**32) for x in draws]
    np.testing.assert_array_equal(fastrnn.cuda.arrays.download(masks, 0), np.array(expected, np.uint8))


def test_bfloat16_is_rounded_to_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159274, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3.4e38], np.float32)
    expected = [1.0, 1.0, 1.015625, -3.140625, np.inf, -np.inf, 0.0, -0.0, 9.1835e-41, np.inf]
    np.testing.assert_allclose(rounded(values, "bfloat16"), np.array(expected, np.float32), rtol=1e-3)
    assert np.isnan(rounded(np.array([np.nan], np.float32), "bfloat16"))[0]

"""Frozen layers with weights of bfloat16 and int8, in every version of the products that this processor runs."""

import pickle
import re
from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from fastrnn import _core
from fastrnn.frozen import Frozen, FrozenLSTM, integers_of, pack
from support import CELLS, Array, Example, assert_same_bits, draw, largest, parts, whole

WORDS = ("bfloat16", "int8")
ONE_PHASE = [name for name in CELLS if "original" not in name and "proj" not in name]
STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True}

# Largest error as a part of the largest magnitude, of layers with PyTorch's initial weights. A weight of bfloat16 is
# off by 1/512 of itself at most; of int8 by 1/254 of the largest of its row, as is what it multiplies. In a sum of H
# products errors add up like the root of H, and PyTorch's weights are smaller than 1 by this root.
BOUND = {"bfloat16": 3e-3, "int8": 1.2e-2}


def frozen(layer: Any, word: str, products: str | None = None) -> Frozen[Any]:
    """As layer.freeze, with one version of the products."""
    pair = (word, word)
    core = layer._network.freeze(list(layer.parameters().values()), pair, products)
    kind: type[Frozen[Any]] = FrozenLSTM if isinstance(layer, fastrnn.LSTM) else Frozen
    return kind(layer, core, pair)


def rounded(values: Array) -> Array:
    """To the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def is_matrix(name: str) -> bool:
    return name.startswith(("weight_ih", "weight_hh", "weight_hr"))


def all_close(run: Any, e: Example, expected: Any, bound: float) -> None:
    y, state = run(e.x, whole(e.state), **e.cuts)
    for actual, right in zip((y, *parts(state)), (expected[0], *expected[1]), strict=False):
        assert largest(actual - right) <= bound * largest(right)


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "B", "I", "H"), [(7, 5, 1, 3), (3, 13, 7, 17), (4, 1, 9, 40), (2, 70, 6, 33), (2, 18, 67, 101)]
)
@pytest.mark.parametrize("name", CELLS)
def test_bfloat16_is_the_layer_with_rounded_weights(name: str, T: int, B: int, I: int, H: int, isa: str) -> None:
    layer = CELLS[name].build(I, H, isa=isa, **STACK)
    e = draw(CELLS[name], layer, T, B, lengths=True, reset=True)
    runs = {products: frozen(layer, "bfloat16", products) for products in _core.products(isa)}
    for parameter, values in layer.parameters().items():
        if is_matrix(parameter):
            values[...] = rounded(values)
    expected = reference.forward(e.problem())
    for products, run in runs.items():  # Arm's multiply x and h to 2^-16, however few columns they have
        all_close(run, e, expected, 5e-5 if products == "neonbf16" else 1e-5)


@pytest.mark.parametrize(
    ("B", "I", "H"), [(1, 1, 1), (5, 4, 9), (13, 7, 17), (1, 66, 40), (70, 5, 33), (2, 96, 128), (35, 131, 97)]
)
@pytest.mark.parametrize("name", ONE_PHASE)
def test_int8_is_exact_where_integers_are(name: str, B: int, I: int, H: int, isa: str) -> None:
    """Rows of weights, x and h that are integers up to 127 times a power of two."""
    layer = CELLS[name].build(I, H, isa=isa)
    e = draw(CELLS[name], layer, 1, B)
    rng = np.random.default_rng(5)

    def integers(rows: int, columns: int) -> Array:
        drawn = rng.integers(-127, 128, (rows, columns))
        drawn[np.arange(rows), rng.integers(0, columns, rows)] = 127 * rng.choice([-1, 1], rows)
        return drawn.astype(np.float32)

    for parameter, values in layer.parameters().items():
        if is_matrix(parameter):
            values[...] = integers(*values.shape) * 2.0 ** rng.integers(-14, -9, (len(values), 1)) / values.shape[1]
    scales = 2.0 ** rng.integers(-8, -5, (B, 1))
    e = e.but(x=(integers(B, I) * scales)[None].astype(np.float32))
    e = e.but(state=((integers(B, H) * scales)[None].astype(np.float32), *e.state[1:]))
    expected = reference.forward(e.problem())
    for products in _core.products(isa):
        all_close(frozen(layer, "int8", products), e, expected, 4e-6)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", CELLS)
def test_errors_with_random_weights(name: str, word: str, isa: str) -> None:
    layer = CELLS[name].build(40, 64, isa=isa, num_layers=2)
    for B in (1, 9):
        e = draw(CELLS[name], layer, 30, B)
        e = e.but(state=tuple(0.3 * s for s in e.state))
        all_close(frozen(layer, word), e, reference.forward(e.problem()), 3 * BOUND[word])


@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm", "lstm_proj"])
def test_errors_do_not_grow_with_time(name: str) -> None:
    layer = CELLS[name].build(16, 48)
    x = np.random.default_rng(0).standard_normal((10_000, 1, 16), dtype=np.float32)
    right, _ = layer(x)
    for word in WORDS:
        error = np.abs(layer.freeze(word)(x)[0] - right)
        assert error.max() <= 3 * BOUND[word] * largest(right)
        assert error[-1000:].mean() <= 1.5 * error[1000:2000].mean()


@pytest.mark.parametrize("name", CELLS)
def test_rows_that_are_hard_for_int8(name: str, isa: str) -> None:
    """An outlier in one row of the weights or of x spoils no other row; rows of zeros and of subnormals are zeros."""
    layer = CELLS[name].build(24, 33, isa=isa)
    weights = layer.parameters()["weight_ih_l0"]
    weights[3, 5] *= 100  # its row has little left for the others
    weights[4] = 0
    weights[5] = 1e-41
    e = draw(CELLS[name], layer, 6, 4)
    e.x[2, 1, 7] = 300  # the saturated row alone is coarse
    e.x[:, 2] = 0
    e.x[:, 3] *= 1e-40
    expected = reference.forward(e.problem())[0]
    y, _ = layer.freeze("int8")(e.x, whole(e.state))
    error = np.abs(y - expected)
    others = np.arange(y.shape[2]) % 33 != 3
    if "proj" not in name:  # a projection mixes all units
        assert error[:, [0, 2, 3]][:, :, others].max() <= 8 * BOUND["int8"] * largest(expected)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", CELLS)
def test_not_a_number_stays_in_its_row(name: str, word: str, isa: str) -> None:
    run = frozen(CELLS[name].build(100, 101, isa=isa), word)
    x = np.random.default_rng(0).standard_normal((4, 6, 100), dtype=np.float32)
    right, _ = run(x)
    x[1, 2, 3] = np.nan
    x[2, 4, 0] = np.inf if word == "int8" else np.nan
    y, _ = run(x)
    assert_same_bits(y[:, [0, 1, 3, 5]], right[:, [0, 1, 3, 5]])
    assert_same_bits(y[0], right[0])
    if "rnn" not in name and "general" not in name:
        assert np.isnan(y[1:, 2]).all()


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_every_version_of_int8_has_the_same_bits(name: str, isa: str) -> None:
    layer = CELLS[name].build(21, 107, isa=isa, **STACK)
    e = draw(CELLS[name], layer, 5, 9, lengths=True)
    first, *others = [
        frozen(layer, "int8", products)(e.x, whole(e.state), **e.cuts) for products in _core.products(isa)
    ]
    for other in others:
        assert_same_bits(other[0], first[0])
        assert_same_bits(other[1], first[1])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", CELLS)
def test_rows_threads_and_pieces_make_no_difference(name: str, word: str, isa: str) -> None:
    run = frozen(CELLS[name].build(33, 150, isa=isa), word)
    x = np.random.default_rng(0).standard_normal((20, 70, 33), dtype=np.float32)
    y, end = run(x)
    for rows in (slice(0, 1), slice(2, 4), slice(5, 12)):
        assert_same_bits(run(x[:, rows])[0], y[:, rows])
    before = fastrnn.get_num_threads()
    try:
        for threads in (1, 3):
            fastrnn.set_num_threads(threads)
            assert_same_bits(run(x)[0], y)
            assert_same_bits(run(x[:, :1])[0], y[:, :1])
    finally:
        fastrnn.set_num_threads(before)
    half, state = run(x[:9])
    assert_same_bits(half, y[:9])
    for t in range(9, 20):
        y_t, state = run.step(x[t], state)
        assert_same_bits(y_t, y[t])
    assert_same_bits(parts(state), parts(end))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", CELLS)
def test_token_ids(name: str, word: str, isa: str) -> None:
    run = frozen(CELLS[name].build(11, 20, isa=isa), word)
    rng = np.random.default_rng(0)
    ids, embedding = rng.integers(0, 11, (9, 6)), rng.standard_normal((11, 11), dtype=np.float32)
    assert_same_bits(run(ids, embedding=embedding)[0], run(embedding[ids])[0])
    assert_same_bits(run(ids, embedding="one-hot")[0], run(np.eye(11, dtype=np.float32)[ids])[0])


@pytest.mark.parametrize("word", WORDS)
def test_results_do_not_depend_on_what_memory_held_before(word: str) -> None:
    for name in CELLS:
        layer = CELLS[name].build(5, 17, **STACK)
        e = draw(CELLS[name], layer, 9, 13, lengths=True, reset=True)
        y, _ = layer.freeze(word)(e.x, whole(e.state), **e.cuts)
        _core.fill_memory(True)
        try:
            again, _ = layer.freeze(word)(e.x, whole(e.state), **e.cuts)
        finally:
            _core.fill_memory(False)
        assert_same_bits(again, y)


# ---- the API ---------------------------------------------------------------------------------------------------------


def test_input_and_recurrent_weights_may_differ() -> None:
    layer = CELLS["lstm_proj"].build(40, 50)
    e = draw(CELLS["lstm_proj"], layer, 8, 3)
    expected = reference.forward(e.problem())
    mixed = layer.freeze({"ih": "int8", "hh": "bfloat16"})
    all_close(mixed, e, expected, 2 * BOUND["int8"])
    assert layer.freeze("int8").nbytes < mixed.nbytes < layer.freeze("bfloat16").nbytes
    assert repr(mixed) == "LSTM(input_size=40).freeze(weights={'ih': 'int8', 'hh': 'bfloat16'})"
    assert_same_bits(layer.freeze({"ih": "int8", "hh": "int8"})(e.x)[0], layer.freeze("int8")(e.x)[0])


def test_sizes_and_names() -> None:
    layer = fastrnn.GRU(256, 256, rng=0)
    full = layer.freeze().nbytes
    assert layer.freeze("bfloat16").nbytes < 0.51 * full
    assert layer.freeze("int8").nbytes < 0.27 * full
    assert repr(layer.freeze(weights="int8")) == "GRU(input_size=256).freeze(weights='int8')"
    assert repr(layer.freeze(weights=None)) == "GRU(input_size=256).freeze()"


@pytest.mark.parametrize("weights", ["int8", "bfloat16", {"ih": "bfloat16", "hh": "int8"}])
def test_pickles_keep_the_weights(weights: Any) -> None:
    fast = fastrnn.LSTM(5, 6, rng=0).freeze(weights)
    twin = pickle.loads(pickle.dumps(fast))
    x = np.random.default_rng(0).standard_normal((4, 3, 5), dtype=np.float32)
    assert repr(twin) == repr(fast)
    assert_same_bits(twin(x)[0], fast(x)[0])


@pytest.mark.parametrize("name", CELLS)
def test_scales_that_are_given_are_kept(name: str) -> None:
    """Rows whose integers are not up to 127; the same matrix by its own scales has the same bits."""
    layer = CELLS[name].build(24, 33, **STACK)
    e = draw(CELLS[name], layer, 4, 3)
    scales = {}
    for parameter, values in layer.parameters().items():
        if not is_matrix(parameter):
            continue
        integers, own = integers_of(values)
        assert np.abs(integers).max(axis=1).min() == 127
        scales[parameter] = own
        values[...] = own[:, None] * integers
        again, _ = integers_of(values, own)
        assert np.array_equal(again, integers)
    y, _ = layer.freeze("int8")(e.x)
    assert largest(pack(layer, ("int8", "int8"), scales)(e.x)[0] - y) < 2e-5
    coarse = {parameter: np.full_like(scale, np.float32(0.01)) for parameter, scale in scales.items()}
    for parameter in coarse:
        values = layer.parameters()[parameter]
        values[...] = np.rint(np.clip(values, -0.5, 0.5) / 0.01) * np.float32(0.01)
    right, _ = layer(e.x)
    fast = pack(layer, ("int8", "int8"), coarse)
    twin = pickle.loads(pickle.dumps(fast))
    assert_same_bits(twin(e.x)[0], fast(e.x)[0])
    assert largest(fast(e.x)[0] - right) < 3 * BOUND["int8"]
    with pytest.raises(ValueError, match="too few scales"):
        layer._network.freeze([*layer.parameters().values()], ("int8", "int8"), None, [])


@pytest.mark.parametrize("weights", ["int4", "", {"ih": "int8"}, {"ih": "int8", "hh": None}, {"w": 1, "hh": "int8"}, 8])
def test_other_words_are_refused(weights: Any) -> None:
    wanted = 'It must be None, "bfloat16" or "int8", or {"ih": word, "hh": word} with one of the two words for each.'
    with pytest.raises(ValueError, match=re.escape(f"freeze got weights={weights!r}.\n  {wanted}")):
        fastrnn.GRU(3, 4).freeze(weights)


@pytest.mark.parametrize("word", WORDS)
def test_weights_that_cannot_be_kept_are_refused(word: str) -> None:
    with pytest.raises(
        ValueError, match=r'Only float32 weights are kept in fewer bits, not float64: use to\("cpu", "fl'
    ):
        fastrnn.GRU(3, 4, dtype="float64").freeze(word)
    layer = fastrnn.LSTM(3, 4, proj_size=2)
    layer.parameters()["weight_ih_l0"][1, 2] = np.nan
    layer.parameters()["weight_hr_l0"][1, 2] = np.inf
    with pytest.raises(
        ValueError, match=rf"weight_ih_l0 with numbers that are not finite in {word}(.|\n)*weight_hr_l0"
    ):
        layer.freeze(word)
    big = fastrnn.GRU(3, 4)
    big.parameters()["weight_hh_l0"][1, 2] = np.finfo(np.float32).max
    if word == "int8":
        assert np.isfinite(big.freeze(word)(np.ones((2, 1, 3), np.float32))[0]).all()
    else:
        smallest = np.float32(3.3961776e38)  # of those that round to infinity
        for value in (np.finfo(np.float32).max, smallest):
            big.parameters()["weight_hh_l0"][1, 2] = value
            with pytest.raises(ValueError, match="weight_hh_l0 with numbers that are not finite in bfloat16"):
                big.freeze(word)
        big.parameters()["weight_hh_l0"][1, 2] = np.nextafter(smallest, np.float32(0))
        big.freeze(word)


def test_int8_refuses_sums_past_32_bits() -> None:
    wide = fastrnn.RNN(131_073, 1)
    with pytest.raises(ValueError, match=r"weight_ih_l0 with 131073 columns.\n  int8 takes at most 131072 columns"):
        wide.freeze("int8")
    wide.freeze("bfloat16")
    limit = fastrnn.RNN(131_072, 1)
    limit.parameters()["weight_ih_l0"][...] = 2.0**-17
    y, _ = limit.freeze("int8")(np.ones((1, 1, 131_072), np.float32))
    assert abs(float(y[0, 0, 0]) - float(limit(np.ones((1, 1, 131_072), np.float32))[0][0, 0, 0])) < 1e-6


def test_an_unknown_version_of_the_products_is_refused() -> None:
    network = fastrnn.RNN(2, 3)._network
    with pytest.raises(ValueError, match="products 'none' are not among those of"):
        network.freeze([], ("int8", "int8"), "none")
    with pytest.raises(ValueError, match="weights 'int2' are neither bfloat16 nor int8"):
        network.freeze([], ("int8", "int2"))

"""Embedding, Linear and the losses, against their formulas written out."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import Embedding, Linear, ShapeError, binary_cross_entropy, cross_entropy
from support import DTYPES, Array, assert_close, assert_same_bits, complex_step

RNG = np.random.default_rng(11)
NO_SUCH: Any = "none"


def normal(*shape: int, dtype: Any = "float64") -> Array:
    return RNG.standard_normal(shape).astype(dtype)


# The textbook, in complex numbers where complex_step needs them


def softmax_loss(logits: Array, targets: Array, weight: Array) -> Any:
    """Sum over rows of weight * -log softmax(logits)[target]."""
    rows = logits.reshape(-1, logits.shape[-1])
    total = 0.0
    for row, target, w in zip(rows, targets.reshape(-1), weight.reshape(-1), strict=True):
        total = total + w * (np.log(np.sum(np.exp(row))) - row[target])
    return total


def smoothed_loss(logits: Array, targets: Array, weight: Array, e: float) -> Any:
    """Sum over rows of weight * -sum_v q_v log softmax(logits)_v with q = (1 - e) onehot(target) + e / V."""
    V = logits.shape[-1]
    total = 0.0
    for row, target, w in zip(logits.reshape(-1, V), targets.reshape(-1), weight.reshape(-1), strict=True):
        q = np.full(V, e / V) + (1 - e) * (np.arange(V) == target)
        total = total + w * np.sum(q * (np.log(np.sum(np.exp(row))) - row))
    return total


def binary_loss(logits: Array, targets: Array, weight: Array) -> Any:
    p = 1 / (1 + np.exp(-logits))
    return np.sum(weight * -(targets * np.log(p) + (1 - targets) * np.log(1 - p)))


class TestEmbedding:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (1,), (5, 3), (0, 4), (2, 3, 4)])
    def test_rows_of_the_table(self, dtype: str, shape: tuple[int, ...]) -> None:
        table = Embedding(7, 4, dtype=dtype, rng=0)
        ids = RNG.integers(0, 7, shape)
        y, tape = table.forward(ids)
        assert y.dtype == dtype
        assert y.shape == (*shape, 4)
        assert_same_bits(y, table(ids))
        for index in np.ndindex(shape):
            assert_same_bits(y[index], table.parameters()["weight"][ids[index]])

        dy = normal(*shape, 4, dtype=dtype)
        expected = np.zeros((7, 4))
        for index in np.ndindex(shape):
            expected[ids[index]] += dy[index]
        grads = table.backward(tape, dy)
        assert grads.x is None
        assert_close(grads.parameters["weight"], expected, dtype, "gradient", "dL/dweight")

    def test_the_same_bits_every_time(self) -> None:
        table = Embedding(5, 33, rng=0)
        _, tape = table.forward(RNG.integers(0, 5, (200, 7)))
        dy = normal(200, 7, 33, dtype="float32")
        assert_same_bits(table.backward(tape, dy).parameters, table.backward(tape, dy).parameters)

    def test_nan_stays_in_its_row(self) -> None:
        table = Embedding(3, 2, rng=0)
        _, tape = table.forward([0, 1, 1])
        dy = np.array([[1, 2], [np.nan, 1], [1, 1]], np.float32)
        np.testing.assert_array_equal(table.backward(tape, dy).parameters["weight"], [[1, 2], [np.nan, 2], [0, 0]])

    @pytest.mark.parametrize(
        ("ids", "error", "words"),
        [
            ([0, 9], ValueError, r"Embedding\(num_embeddings=9, embedding_dim=2\) got ids\[1\] = 9.*0\.\.8"),
            ([[0], [-1]], ValueError, r"ids\[1, 0\] = -1"),
            ([-5, 3, 11], ValueError, r"ids\[0\] = -5 and 1 more out of range"),
            ([1.0], TypeError, r"ids with dtype float64.*must be integers"),
            ([True], TypeError, r"dtype bool"),
        ],
    )
    def test_bad_ids(self, ids: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=f"(?s){words}"):
            Embedding(9, 2)(ids)


class TestLinear:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("shape", [(), (1,), (5, 3), (0, 3)])
    def test_against_the_formula(self, dtype: str, bias: bool, shape: tuple[int, ...]) -> None:
        linear = Linear(4, 3, bias=bias, dtype=dtype, rng=0)
        p = {name: array.astype(float) for name, array in linear.parameters().items()}
        x, dy = normal(*shape, 4, dtype=dtype), normal(*shape, 3, dtype=dtype)

        def y_of(x: Array, weight: Array, bias: Array | None = None) -> Array:
            y = np.einsum("...i,oi->...o", x, weight)
            return y if bias is None else y + bias

        y, tape = linear.forward(x)
        assert_close(y, y_of(x, **p), dtype, "forward", "y")
        assert_same_bits(linear(x), y)
        grads = linear.backward(tape, dy)
        assert grads.x is not None
        assert_close(grads.x, complex_step(lambda z: np.sum(y_of(z, **p) * dy), x), dtype, "gradient", "dL/dx")
        assert grads.parameters.keys() == p.keys()
        for name, g in grads.parameters.items():
            expected = complex_step(lambda z, name=name: np.sum(y_of(x, **{**p, name: z}) * dy), p[name])  # type: ignore[misc]
            assert_close(g, expected, dtype, "gradient", f"dL/d{name}")

    def test_starts_as_in_pytorch(self) -> None:
        linear = Linear(100, 50, rng=3)
        for array in linear.parameters().values():
            assert 0.09 < np.abs(array).max() <= 0.1
        assert_same_bits(dict(linear.parameters()), dict(Linear(100, 50, rng=3).parameters()))

    @pytest.mark.parametrize(
        ("x", "error", "words"),
        [
            (np.zeros((5, 3), np.float32), ShapeError, r"got x with shape \(5, 3\).*must be 4"),
            (np.zeros((4, 3), np.float32), ShapeError, r"did you mean x\.swapaxes\(0, 1\)"),
            (np.float32(1), ShapeError, r"x with shape \(\)"),
            (np.zeros((5, 4)), TypeError, r"float64.*x\.astype\(np\.float32\)"),
            (np.zeros((5, 4), complex), TypeError, "complex128"),
        ],
    )
    def test_bad_input(self, x: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=f"(?s){words}"):
            Linear(4, 3)(x)


@pytest.mark.parametrize("part", [Embedding(5, 3, rng=0), Linear(5, 3, rng=0)], ids=["Embedding", "Linear"])
class TestBothParts:
    def test_tapes(self, part: Any) -> None:
        part = copy.deepcopy(part)
        x = np.zeros(2, int) if isinstance(part, Embedding) else np.zeros((2, 5), np.float32)
        dy = np.zeros((2, 3), np.float32)
        _, tape = part.forward(x)
        with pytest.raises(ValueError, match="another layer"):
            copy.deepcopy(part).backward(tape, dy)
        with pytest.raises(TypeError, match="takes the tape that forward returned, got ndarray"):
            part.backward(dy, dy)
        with pytest.raises(ShapeError, match=r"(?s)dy with shape \(3, 2\).*\(2, 3\)"):
            part.backward(tape, dy.T)
        with pytest.raises(TypeError, match=r"dy\.astype\(np\.float32\)"):
            part.backward(tape, dy.astype(float))
        part.load_state_dict(part.state_dict())
        with pytest.raises(ValueError, match="changed by load_state_dict: run forward again"):
            part.backward(tape, dy)

    def test_state(self, part: Any) -> None:
        for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
            assert_same_bits(dict(twin.parameters()), part.state_dict())
            assert twin.parameters()["weight"] is not part.parameters()["weight"]
        twin = type(part)(5, 3)
        twin.load_state_dict(part.state_dict())
        assert_same_bits(dict(twin.parameters()), part.state_dict())
        with pytest.raises(ValueError, match="unexpected: other"):
            twin.load_state_dict({**part.state_dict(), "other": 1})
        with pytest.raises(ShapeError, match="weight with shape"):
            twin.load_state_dict({**part.state_dict(), "weight": np.zeros((2, 2))})

    def test_bad_sizes(self, part: Any) -> None:
        with pytest.raises(ValueError, match=r"(?s)=0.*must be at least 1.*dtype must be"):
            type(part)(0, 3, dtype=np.float16)
        with pytest.raises(TypeError, match="must be an integer"):
            type(part)(2.5, 3)
        with pytest.raises(fastrnn.SizeError, match="the parameters would take"):
            type(part)(2**40, 2**40)
        with pytest.raises(TypeError, match="rng='seed'"):
            type(part)(2, 3, rng="seed")


MASKS: dict[str, Any] = {"all": None, "some": np.array([[True, False, True], [False, True, True]])}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
class TestLosses:
    def weight(self, mask: Array | None, reduction: str) -> Array:
        weight = np.ones((2, 3)) if mask is None else mask.astype(float)
        return weight / weight.sum() if reduction == "mean" else weight

    def test_softmax(self, dtype: str, reduction: Any, mask: Any) -> None:
        logits, targets = normal(2, 3, 4, dtype=dtype), RNG.integers(0, 4, (2, 3))
        weight = self.weight(mask, reduction)
        loss, dlogits = cross_entropy(logits, targets, mask=mask, reduction=reduction)
        assert loss == pytest.approx(softmax_loss(logits.astype(float), targets, weight), rel=1e-6)
        expected = complex_step(lambda z: softmax_loss(z, targets, weight), logits)
        assert_close(dlogits, expected, dtype, "gradient", "dlogits")
        np.testing.assert_array_equal(dlogits[weight == 0], 0)

    def test_smoothed(self, dtype: str, reduction: Any, mask: Any) -> None:
        logits, targets = normal(2, 3, 4, dtype=dtype), RNG.integers(0, 4, (2, 3))
        weight = self.weight(mask, reduction)
        loss, dlogits = cross_entropy(logits, targets, mask=mask, reduction=reduction, label_smoothing=0.3)
        assert loss == pytest.approx(smoothed_loss(logits.astype(float), targets, weight, 0.3), rel=1e-6)
        expected = complex_step(lambda z: smoothed_loss(z, targets, weight, 0.3), logits)
        assert_close(dlogits, expected, dtype, "gradient", "dlogits")
        np.testing.assert_array_equal(dlogits[weight == 0], 0)

    def test_binary(self, dtype: str, reduction: Any, mask: Any) -> None:
        logits, targets = normal(2, 3, dtype=dtype), RNG.random((2, 3)).astype(dtype)
        weight = self.weight(mask, reduction)
        loss, dlogits = binary_cross_entropy(logits, targets, mask=mask, reduction=reduction)
        assert loss == pytest.approx(binary_loss(logits.astype(float), targets, weight), rel=1e-6)
        expected = complex_step(lambda z: binary_loss(z, targets, weight), logits)
        assert_close(dlogits, expected, dtype, "gradient", "dlogits")
        np.testing.assert_array_equal(dlogits[weight == 0], 0)


class TestLossesAtTheEdges:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_large_logits(self, dtype: str) -> None:
        loss, dlogits = cross_entropy(np.array([[1e30, 0, -1e30], [0, 2000, 1000]], dtype), [0, 2], reduction="sum")
        assert loss == 1000
        np.testing.assert_array_equal(dlogits, [[0, 0, 0], [0, 1, -1]])
        loss, dlogits = binary_cross_entropy(np.array([1e30, -2000, -1e30], dtype), [1, 1, 0], reduction="sum")
        assert loss == 2000
        np.testing.assert_array_equal(dlogits, [0, -1, 0])

    def test_small_losses_are_kept(self) -> None:
        assert binary_cross_entropy(np.array([50.0]), [1])[0] == pytest.approx(math.exp(-50), rel=1e-12)
        assert binary_cross_entropy(np.array([-50.0]), [0])[1] == pytest.approx(math.exp(-50), rel=1e-12)

    def test_impossible_class(self) -> None:
        loss, dlogits = cross_entropy(np.array([[0.0, -np.inf]]), [0])
        assert loss == 0
        assert not dlogits.any()
        assert cross_entropy(np.array([[0.0, -np.inf]]), [1])[0] == np.inf

    def test_nan_is_seen_unless_masked(self) -> None:
        logits = np.array([[np.nan, 1.0], [0.0, 0.0], [np.inf, 0.0]])
        loss, dlogits = cross_entropy(logits, [0, 1, 0])
        assert math.isnan(loss)
        np.testing.assert_array_equal(np.isnan(dlogits).any(axis=1), [True, False, True])
        loss, dlogits = cross_entropy(logits, [0, 1, 0], mask=[False, True, False])
        assert loss == pytest.approx(math.log(2))
        np.testing.assert_array_equal(dlogits, [[0, 0], [0.5, -0.5], [0, 0]])

        assert math.isnan(binary_cross_entropy(logits[:, 0], [0, 1, 0])[0])
        loss, dlogits = binary_cross_entropy(logits[:, 0], [np.nan, 1, 7], mask=[False, True, False])
        assert loss == pytest.approx(math.log(2))
        np.testing.assert_array_equal(dlogits, [0, -0.5, 0])

    def test_targets_that_do_not_count_may_be_anything(self) -> None:
        targets = np.array([-100, 1])
        loss, dlogits = cross_entropy(np.zeros((2, 2)), targets, mask=targets != -100)
        assert loss == pytest.approx(math.log(2))
        np.testing.assert_array_equal(dlogits[0], 0)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_nothing_counts(self, reduction: Any) -> None:
        for loss, dlogits in (
            cross_entropy(np.ones((2, 3)), [0, 1], mask=[False, False], reduction=reduction),
            cross_entropy(np.ones((0, 3)), [], reduction=reduction),
            binary_cross_entropy(np.ones(2), [0, 1], mask=[False, False], reduction=reduction),
        ):
            assert loss == 0
            assert not dlogits.any()

    def test_inputs_are_left_alone(self) -> None:
        logits, targets = normal(3, 4), np.array([0, 1, 2])
        before = logits.copy()
        cross_entropy(logits, targets, mask=[True, False, True])
        binary_cross_entropy(logits, np.zeros((3, 4)), mask=np.zeros((3, 4), bool))
        assert_same_bits(logits, before)

    @pytest.mark.parametrize(
        ("call", "error", "words"),
        [
            (lambda: cross_entropy(np.zeros((2, 3)), [0, 3]), ValueError, r"targets\[1\] = 3.*0\.\.2"),
            (lambda: cross_entropy(np.zeros((2, 3)), [0]), ShapeError, r"targets with shape \(1,\).*shape \(2,\)"),
            (lambda: cross_entropy(np.zeros((2, 3)), np.zeros((2, 3))), ShapeError, r"targets\.argmax\(-1\)"),
            (lambda: cross_entropy(np.zeros((2, 3)), [0.0, 1.0]), TypeError, "must be integers"),
            (lambda: cross_entropy(np.zeros((2, 3), int), [0, 1]), TypeError, r"logits\.astype"),
            (lambda: cross_entropy(np.zeros((2, 0)), [0, 1]), ShapeError, "at least one class"),
            (lambda: cross_entropy(np.float64(1), 0), ShapeError, r"shape \(\)"),
            (lambda: cross_entropy(np.zeros((2, 3)), [0, 1], mask=[1, 0]), TypeError, "mask with dtype int64"),
            (lambda: cross_entropy(np.zeros((2, 3)), [0, 1], mask=[True]), ShapeError, r"mask with shape \(1,\)"),
            (lambda: cross_entropy(np.zeros((2, 3)), [9, 1], reduction=NO_SUCH), ValueError, r"= 9.*reduction="),
            (lambda: cross_entropy(np.zeros((2, 3)), [0, 1], label_smoothing=1.0), ValueError, "label_smoothing=1.0"),
            (lambda: binary_cross_entropy(np.zeros(2), [0, 1.5]), ValueError, r"targets\[1\] = 1\.5.*0\.\.1"),
            (lambda: binary_cross_entropy(np.zeros(2), [0, np.nan]), ValueError, r"targets\[1\] = nan"),
            (lambda: binary_cross_entropy(np.zeros(2), [0]), ShapeError, "shape of the logits"),
            (lambda: binary_cross_entropy(np.zeros(2), ["a", "b"]), TypeError, "booleans or numbers"),
        ],
    )  # fmt: skip
    def test_bad_input(self, call: Callable[[], Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=f"(?s){words}"):
            call()


class TestOutputsOfTheCaller:
    """Memory that the caller gives gets the very bits that new arrays would get."""

    def test_read_out_and_loss(self) -> None:
        linear, x = Linear(5, 30, rng=0), normal(7, 3, 5, dtype="float32")
        targets = RNG.integers(0, 30, (7, 3))
        y, tape = linear.forward(x)
        _, dlogits = cross_entropy(y, targets, label_smoothing=0.1)
        grads = linear.backward(tape, dlogits)
        room = np.full((7, 3, 30), np.nan, "float32")
        out, tape = linear.forward(x, out=room)
        assert out is room
        assert_same_bits(out, y)
        assert cross_entropy(room, targets, label_smoothing=0.1, out=room)[1] is room
        assert_same_bits(room, dlogits)
        sums = {name: np.ones_like(g) for name, g in grads.parameters.items()}
        found = linear.backward(tape, room, add_to=sums)
        assert found.parameters is sums
        for name, g in grads.parameters.items():
            np.testing.assert_allclose(sums[name], 1 + g, rtol=1e-6)

    def test_what_is_refused(self) -> None:
        linear, x = Linear(4, 4, rng=0), normal(6, 4, dtype="float32")
        with pytest.raises(ShapeError, match=r"out with shape \(6, 3\)"):
            linear.forward(x, out=np.empty((6, 3), "float32"))
        with pytest.raises(ValueError, match="out that shares memory with x"):
            linear.forward(x, out=x)
        with pytest.raises(TypeError, match="out with dtype float64"):
            cross_entropy(x, [0] * 6, out=np.empty((6, 4)))
        both = np.zeros((7, 4), "float32")
        with pytest.raises(ValueError, match="out that shares memory with logits"):
            cross_entropy(both[1:], [0] * 6, out=both[:-1])
        _, tape = linear.forward(x)
        with pytest.raises(ValueError, match=r"add_to with weight\.\n.*weight, bias"):
            linear.backward(tape, x, add_to={"weight": np.zeros((4, 4), "float32")})
        targets = np.zeros(3000, np.int64)
        out = targets.view(np.float32)[:6000].reshape(1000, 6)
        with pytest.raises(ValueError, match="out that shares memory with targets"):
            cross_entropy(np.zeros((1000, 6), "float32"), targets[:1000], out=out)
        with pytest.raises(ValueError, match="out that shares memory with targets"):
            cross_entropy(out, targets[:1000], out=out)
        with pytest.raises(ValueError, match="shares memory with dy"):
            linear.backward(tape, x, add_to={"weight": x[:4], "bias": np.zeros(4, "float32")})
        with pytest.raises(TypeError, match="add_to of type list"):
            linear.backward(tape, x, add_to=[1])
        with pytest.raises(ValueError, match="label_smoothing='a'"):
            cross_entropy(x, [0] * 6, label_smoothing="a")
        with pytest.raises(ValueError, match="logits of type list"):
            cross_entropy([[1.0], [1.0, 2.0]], [0, 0])
        with pytest.raises(ValueError, match="shares memory with weight"):
            linear.backward(tape, x, add_to=dict(linear.parameters()))

    @pytest.mark.parametrize("classes", [1, 3, 16, 17, 5000])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_threads_do_not_change_a_bit(self, classes: int, dtype: str) -> None:
        logits, targets = normal(200, classes, dtype=dtype), RNG.integers(0, classes, 200)
        found = []
        for count in (1, 2, 5):
            with fastrnn.threads(count):
                found.append(cross_entropy(logits, targets))
        assert found[0][0] == found[1][0] == found[2][0]
        assert_same_bits(found[1][1], found[0][1])
        assert_same_bits(found[2][1], found[0][1])
        assert found[0][0] == pytest.approx(
            softmax_loss(logits.astype(float), targets, np.full(200, 1 / 200)), rel=1e-6
        )

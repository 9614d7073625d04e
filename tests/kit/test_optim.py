"""The optimizers and the clipping of gradients, against their formulas written out."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastrnn import SGD, Adam, Embedding, Linear, ShapeError, clip_grad_norm, learning_rate
from support import DTYPES, Array, assert_close, assert_same_bits


def parts_to_train(dtype: str) -> list[Any]:
    """One is longer than a block of the optimizers."""
    return [Embedding(300, 71, dtype=dtype, rng=0), Linear(4, 3, dtype=dtype, rng=1)]


def random_gradients(parts: list[Any], seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{n: rng.standard_normal(a.shape).astype(a.dtype) for n, a in p.parameters().items()} for p in parts]


@pytest.mark.parametrize("dtype", DTYPES)
class TestOptimizers:
    def run(self, optimizer: Any, parts: list[Any]) -> tuple[list[dict[str, Array]], list[list[dict[str, Array]]]]:
        start = [part.state_dict() for part in parts]
        steps = [random_gradients(parts, seed) for seed in range(5)]
        for grads in steps:
            kept = copy.deepcopy(grads)
            optimizer.step(grads)
            for grad, keep in zip(grads, kept, strict=True):
                assert_same_bits(grad, keep)
        return start, steps

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_sgd(self, dtype: str, momentum: float) -> None:
        parts = parts_to_train(dtype)
        start, steps = self.run(SGD([p.parameters() for p in parts], lr=0.1, momentum=momentum), parts)
        for i, part in enumerate(parts):
            for name, array in part.parameters().items():
                p, v = start[i][name].astype(float), 0.0
                for grads in steps:
                    v = momentum * v + grads[i][name].astype(float)
                    p = p - 0.1 * v
                assert_close(array, p, dtype, "gradient", name)

    def test_adam(self, dtype: str) -> None:
        parts = parts_to_train(dtype)
        lr, b1, b2, eps = 0.01, 0.8, 0.99, 1e-3
        start, steps = self.run(Adam([p.parameters() for p in parts], lr, betas=(b1, b2), eps=eps), parts)
        for i, part in enumerate(parts):
            for name, array in part.parameters().items():
                # algorithm 1 of the paper, line by line
                theta, m, v = start[i][name].astype(float), 0.0, 0.0
                for t, grads in enumerate(steps, 1):
                    g = grads[i][name].astype(float)
                    m = b1 * m + (1 - b1) * g
                    v = b2 * v + (1 - b2) * g**2
                    m_hat = m / (1 - b1**t)
                    v_hat = v / (1 - b2**t)
                    theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
                assert_close(array, theta, dtype, "gradient", name)

    def test_adam_with_weight_decay(self, dtype: str) -> None:
        """As without, but that every parameter shrinks by lr * weight_decay of itself before."""
        parts, plain = parts_to_train(dtype), parts_to_train(dtype)
        optimizer = Adam([p.parameters() for p in parts], lr=0.1, weight_decay=0.5)
        reference = Adam([p.parameters() for p in plain], lr=0.1)
        for seed in range(3):
            for part in plain:
                for array in part.parameters().values():
                    array *= 1 - 0.1 * 0.5
            optimizer.step(random_gradients(parts, seed))
            reference.step(random_gradients(plain, seed))
        for part, other in zip(parts, plain, strict=True):
            for name, array in part.parameters().items():
                assert_same_bits(array, other.parameters()[name])

    def test_carry_on_from_a_state_dict(self, dtype: str) -> None:
        parts, twins = parts_to_train(dtype), parts_to_train(dtype)
        one, two = Adam([p.parameters() for p in parts]), Adam([p.parameters() for p in twins])
        one.step(random_gradients(parts, 0))
        for part, twin in zip(parts, twins, strict=True):
            twin.load_state_dict(part.state_dict())
        two.load_state_dict(one.state_dict())
        for optimizer in (one, two):
            optimizer.step(random_gradients(parts, 1))
        for part, twin in zip(parts, twins, strict=True):
            assert_same_bits(twin.state_dict(), part.state_dict())

    def test_clip_grad_norm(self, dtype: str) -> None:
        grads = random_gradients(parts_to_train(dtype), 0)
        before = copy.deepcopy(grads)
        norm = math.sqrt(sum(float(np.sum(g.astype(float) ** 2)) for one in grads for g in one.values()))
        assert clip_grad_norm(grads, 2 * norm) == pytest.approx(norm, rel=1e-12)
        assert clip_grad_norm(grads, math.inf) == pytest.approx(norm, rel=1e-12)
        for grad, old in zip(grads, before, strict=True):
            assert_same_bits(grad, old)
        assert clip_grad_norm(grads, norm / 4) == pytest.approx(norm, rel=1e-12)
        for grad, old in zip(grads, before, strict=True):
            for name in grad:
                assert_close(grad[name], old[name].astype(float) / 4, dtype, "forward", name)

    def test_clip_grad_norm_does_not_hide_nan(self, dtype: str) -> None:
        grads = {"a": np.array([np.nan, 3.0], dtype), "b": np.array([[4.0]], dtype)}
        assert math.isnan(clip_grad_norm(grads, 1.0))
        np.testing.assert_array_equal(grads["a"], [np.nan, 3])
        large = {"a": np.array([3e30, 4e30], dtype)}
        assert clip_grad_norm(large, 1.0) == pytest.approx(5e30)
        assert large["a"] == pytest.approx([0.6, 0.8])


class TestOptimizersInUse:
    def test_one_mapping_and_plain_dicts(self) -> None:
        linear = Linear(2, 2, rng=0)
        _, tape = linear.forward(np.zeros((1, 2), np.float32))
        SGD(linear.parameters(), lr=1.0).step({"weight": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)})
        assert_same_bits(linear.state_dict()["weight"], Linear(2, 2, rng=0).state_dict()["weight"] - 1)
        with pytest.raises(ValueError, match="changed by SGD"):
            linear.backward(tape, np.zeros((1, 2), np.float32))

        own = {"theta": np.array([1.0, 2.0])}
        SGD(own, lr=0.5).step({"theta": np.array([2.0, 2.0])})
        np.testing.assert_array_equal(own["theta"], [0.0, 1.0])

    def test_gradients_in_any_memory_layout(self) -> None:
        p, g = np.zeros((40, 30)), np.random.default_rng(0).standard_normal((30, 40)).T
        SGD({"p": p}, lr=1.0).step({"p": g})
        assert_same_bits(p, -g)
        norm = clip_grad_norm({"p": g}, 0.5)
        assert np.linalg.norm(g) == pytest.approx(0.5)
        assert norm > 1

    def test_learning_rate_may_change(self) -> None:
        p = {"p": np.zeros(2)}
        optimizer = SGD(p, lr=1.0)
        optimizer.lr = 0.25
        optimizer.step({"p": np.ones(2)})
        np.testing.assert_array_equal(p["p"], -0.25)

    @pytest.mark.parametrize(
        ("grads", "error", "words"),
        [
            ([{"weight": np.zeros((2, 2), np.float32)}], ValueError, "They must be weight, bias"),
            ([], ValueError, "got 0 mappings"),
            (None, TypeError, r"did you mean grads\.parameters"),
            ({"weight": np.zeros((2, 2)), "bias": np.zeros(3, np.float32)}, ShapeError, r"float64.*\(3,\)"),
            ({"weight": [[0, 0], [0, 0]], "bias": np.zeros(2, np.float32)}, TypeError, "weight with type list"),
        ],
    )
    def test_bad_gradients_change_nothing(self, grads: Any, error: type[Exception], words: str) -> None:
        linear = Linear(2, 2, rng=0)
        optimizer = Adam(linear.parameters())
        with pytest.raises(error, match=f"(?s){words}"):
            optimizer.step(grads)
        assert_same_bits(linear.state_dict(), Linear(2, 2, rng=0).state_dict())
        assert optimizer.steps == 0

    def test_whole_gradients_instead_of_their_parameters(self) -> None:
        linear = Linear(2, 2, rng=0)
        y, tape = linear.forward(np.zeros((1, 2), np.float32))
        grads: Any = linear.backward(tape, y)
        with pytest.raises(TypeError, match=r"(?s)SGD\.step got grads of type PartGradients.*grads\.parameters"):
            SGD(linear.parameters(), lr=1.0).step(grads)
        with pytest.raises(TypeError, match=r"grads\.parameters"):
            clip_grad_norm(grads, 1.0)

    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda p: SGD(p, lr=-1.0), ValueError, "lr=-1.0"),
            (lambda p: SGD(p, lr=math.nan), ValueError, "lr=nan"),
            (lambda p: SGD(p, lr=1.0, momentum=1.0), ValueError, "momentum=1.0"),
            (lambda p: Adam(p, betas=(0.9, 1.5), eps=-1.0), ValueError, r"(?s)beta2=1\.5.*It also got eps=-1\.0"),
            (lambda p: SGD([p, p], lr=1.0), ValueError, "the same array twice"),
            (lambda p: SGD({"p": np.zeros((3, 2)).T}, lr=1.0), ValueError, "C-contiguous"),
            (lambda p: SGD({"p": np.zeros(2, int)}, lr=1.0), ValueError, "float32 or float64"),
            (lambda p: SGD(p["weight"], lr=1.0), TypeError, r"(?s)of type ndarray.*layer\.parameters\(\)"),
            (lambda p: clip_grad_norm(p, 0.0), ValueError, "max_norm must be above 0"),
            (lambda p: clip_grad_norm({"p": np.zeros(2, int)}, 1.0), TypeError, "array of floats"),
            (lambda p: Adam(p).load_state_dict({}), ValueError, 'no "steps"'),
            (lambda p: Adam(p).load_state_dict({"steps": 1}), ValueError, r"missing: first_moment\.0\.weight"),
        ],
    )  # fmt: skip
    def test_bad_arguments(self, make: Callable[[Any], Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            make(Linear(2, 2).parameters())


class TestLearningRate:
    def test_up_and_down(self) -> None:
        rates = [learning_rate(step, 10, 2.0, warmup=4, last=0.5, shape="linear") for step in range(12)]
        assert rates == pytest.approx([0.5, 1, 1.5, 2, 2, 11 / 6, 10 / 6, 9 / 6, 8 / 6, 7 / 6, 1, 1])
        rates = [learning_rate(step, 4, 1.0) for step in range(6)]
        assert rates == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0])

    def test_nothing_but_warmup(self) -> None:
        assert learning_rate(3, 4, 1.0, warmup=4) == learning_rate(4, 4, 1.0, warmup=4) == 1
        assert learning_rate(0, 0, 1.0) == 1

    @pytest.mark.parametrize(
        ("arguments", "options", "words"),
        [
            ((-1, 10, 1.0), {}, "step=-1"),
            ((0, 10, -1.0), {}, "peak=-1.0"),
            ((0, 10, math.nan), {}, "peak=nan"),
            ((0, 10, 1.0), {"warmup": -1}, "warmup=-1"),
            ((0, 10, 1.0), {"last": 1.5}, "last=1.5"),
            ((0, 10, 1.0), {"shape": "round"}, "shape='round'"),
        ],
        ids=str,
    )
    def test_bad_input(self, arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            learning_rate(*arguments, **options)

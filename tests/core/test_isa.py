"""Every instruction set against the scalar build, and the activations of each against float64 and wider."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import _core
from support import CELLS, DTYPES, KNOWN_ISAS, Array, assert_close, draw, parts

# Largest error over the whole range of the argument, in units of the last place of the exact value.
ACTIVATION_ULP = {"tanh": 4.0, "sigmoid": 3.0}
ACTIVATION_ABSOLUTE = 2.0  # in units of the machine epsilon


def test_the_best_instruction_set_is_the_default_and_scalar_is_always_there() -> None:
    isas = _core.isas()
    assert isas[-1] == "scalar"
    assert set(isas) <= set(KNOWN_ISAS)
    assert len(set(isas)) == len(isas)
    assert fastrnn.info()["isas"] == isas
    assert fastrnn.info()["isa"] in isas


def test_a_layer_can_be_pinned(isa: str) -> None:
    layer = CELLS["gru"].build(3, 5, isa=isa)
    assert layer._network.isa == isa


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_an_instruction_set_equals_the_scalar_build(name: str, dtype: str, isa: str) -> None:
    """A larger case than the reference could be asked for: the sums are longer, the tiles full and the chunks many."""
    options: dict[str, Any] = {"dtype": dtype, "num_layers": 2, "bidirectional": True}
    scalar = CELLS[name].build(40, 70, isa="scalar", **options)
    layer = CELLS[name].build(40, 70, isa=isa, **options)
    expected, e = (draw(CELLS[name], each, 30, 29, lengths=True, reset=True) for each in (scalar, layer))
    for path, (y, state), (y_scalar, state_scalar) in [
        ("inference", e.infer(), expected.infer()),
        ("training", e.train()[:2], expected.train()[:2]),
    ]:
        assert_close(y, y_scalar, dtype, "forward", f"y, {path}")
        for s, s_scalar in zip(parts(state), parts(state_scalar), strict=True):
            assert_close(s, s_scalar, dtype, "forward", f"state, {path}")
    gradients = e.gradients()
    for variable, g in expected.gradients().items():
        assert_close(gradients[variable], g, dtype, "gradient", f"dL/d{variable}")


# ---- activations ----------------------------------------------------------------------------------------------------


def exact_tanh(x: Array) -> Array:
    y: Array = np.tanh(x)
    return y


def exact_sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


EXACT: dict[str, Callable[[Array], Array]] = {"tanh": exact_tanh, "sigmoid": exact_sigmoid}


def whole_range(dtype: str) -> Array:
    """Finite numbers spread evenly over the bit patterns, and densely where the functions bend."""
    info = np.finfo(dtype)
    bits = np.dtype(f"u{info.bits // 8}")
    largest_pattern = int(np.asarray(info.max).view(bits))
    patterns = np.arange(0, largest_pattern, largest_pattern // 400_000, dtype=bits).view(info.dtype)
    bends = np.linspace(0, 100 if dtype == "float32" else 760, 400_000, dtype=info.dtype)
    near = np.linspace(0, 1, 200_000, dtype=info.dtype)
    x = np.concatenate([patterns, bends, near, [info.max, info.smallest_normal]]).astype(info.dtype)
    return np.concatenate([x, -x])


def ulp_error(actual: Array, exact: Array) -> Array:
    """Distance in units of the last place of the exact value; 0 where both are about the smallest normal number.

    Subnormal results are flushed, and a sigmoid saturates there.
    """
    info = np.finfo(actual.dtype)
    error = np.abs(actual - exact)
    ulp = np.spacing(np.maximum(np.abs(exact), info.smallest_normal).astype(actual.dtype))
    return np.where(error <= 2 * info.smallest_normal, 0, error / ulp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_activations_over_the_whole_range(name: str, dtype: str, isa: str) -> None:
    x = whole_range(dtype)
    y = _core.activation(isa, name, x)
    assert y.dtype == x.dtype
    wide = x.astype(np.float64 if dtype == "float32" else np.longdouble)
    exact = EXACT[name](wide)
    error = ulp_error(y, exact)
    worst = np.argmax(error)
    assert error[worst] <= ACTIVATION_ULP[name], f"{name}({x[worst]!r}) = {y[worst]!r}"
    assert np.max(np.abs(y - exact)) <= ACTIVATION_ABSOLUTE * np.finfo(dtype).eps
    assert y.min() >= (-1 if name == "tanh" else 0)
    assert y.max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_at_the_ends(dtype: str, isa: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0], dtype)
    tanh, sigmoid = (_core.activation(isa, name, x) for name in ("tanh", "sigmoid"))
    np.testing.assert_array_equal(tanh, np.array([np.nan, 1, -1, 0, 0], dtype))
    np.testing.assert_array_equal(sigmoid[[0, 1, 3, 4]], np.array([np.nan, 1, 0.5, 0.5], dtype))
    assert 0 <= sigmoid[2] <= 2 * np.finfo(dtype).smallest_normal


@pytest.mark.parametrize("name", EXACT)
def test_an_activation_does_not_depend_on_the_lane(name: str, isa: str) -> None:
    """Each length leaves another number of elements in the last vector."""
    x = np.linspace(-4, 4, 67, dtype=np.float32)
    whole = _core.activation(isa, name, x)
    for n in range(len(x)):
        np.testing.assert_array_equal(_core.activation(isa, name, x[:n].copy()), whole[:n])

"""What the tests of the GPU share: which GPU there is, arrays on it, and how close results have to be."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastrnn.cuda
import support
from fastrnn.cuda import arrays
from support import Example

Array = NDArray[Any]

needs_gpu = pytest.mark.skipif(not fastrnn.cuda.is_available(), reason=f"no GPU: {fastrnn.cuda.why_not()}")
if fastrnn.cuda.is_available():
    fastrnn.cuda.devices.prepare(0)
EMULATED = any(device["emulated"] for device in fastrnn.cuda.device_info())

PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "float64")

# |result - reference| / |reference|, Euclidean. A rounding to the 8 bits of bfloat16 is 2e-3, to the 11 of float16 and
# tf32 2.4e-4.
RELATIVE_ERROR = {"float64": 1e-12, "float32": 1e-5, "tf32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}


def relative_error(actual: Array, expected: Array) -> float:
    size = np.linalg.norm(expected.ravel().astype(np.float64))
    return float(np.linalg.norm((actual.astype(np.float64) - expected).ravel()) / max(float(size), 1e-300))


def on_gpu(layer: Any, precision: str) -> Any:
    if precision == "tf32":
        return layer.to("cuda", fp32_precision="tf32")
    return layer.to("cuda", precision)


def rounded(array: Array, precision: str) -> Array:
    """The numbers that a layer of that precision sees."""
    if precision == "bfloat16":
        return arrays.from_bfloat16(arrays.as_bfloat16(array))
    if precision == "float16":
        return array.astype(np.float16).astype(array.dtype)
    return array


def example(
    cell: support.Cell, precision: str, T: int, B: int, I: int, H: int, *, seed: int = 0, **options: Any
) -> Example:
    """A layer on the CPU and an input, all numbers such that the precision holds them exactly."""
    cuts = {key: options.pop(key) for key in ("lengths", "reset") if key in options}
    layer = cell.build(I, H, dtype="float64" if precision == "float64" else "float32", seed=seed, **options)
    for p in layer.parameters().values():
        p[...] = rounded(p, precision)
    drawn = support.draw(cell, layer, T, B, seed=seed + 1, **cuts)
    return drawn.but(x=rounded(drawn.x, precision), dy=rounded(drawn.dy, precision))


class Foreign:
    """Somebody's array on the GPU that only has __cuda_array_interface__."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self.array.__cuda_array_interface__
        return interface


def to_gpu(array: Array, dtype: str | None = None) -> Any:
    """An array of the core's own kind."""
    return arrays.upload(array, dtype or array.dtype.name, 0, 0)


def from_gpu(array: Any) -> Array:
    copy: Array = arrays.download(array, 0)
    return copy


@contextmanager
def small_chunks(nbytes: int) -> Iterator[None]:
    """As if the time steps that are done at once had to keep to so few bytes."""
    core = fastrnn.cuda.devices.core()
    core.set_chunk_bytes(0, nbytes)
    try:
        yield
    finally:
        core.set_chunk_bytes(0, 64 << 20)


@contextmanager
def own_products() -> Iterator[None]:
    """As if there were no cuBLASLt, whose order of sums depends on how many rows a product has."""
    core, found = fastrnn.cuda.devices.core(), fastrnn.cuda.device_info()[0]["cublaslt"]
    core.prepare(0, None)
    try:
        yield
    finally:
        if found is not None:
            fastrnn.cuda.devices._prepared.pop(0, None)
            fastrnn.cuda.devices.prepare(0)

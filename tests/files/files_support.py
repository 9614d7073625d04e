"""What the tests of files share: comparing with PyTorch, sentences of errors, memory."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import FileError
from support import Array

T, B, I, H = 5, 2, 3, 4


def sample(features: int = I, dtype: str = "float32") -> Array:
    """x (T,B,features), the same at each call."""
    return np.random.default_rng(1).standard_normal((T, B, features)).astype(dtype)


def assert_as_torch(layer: Any, module: Any, rtol: float = 1e-5) -> None:
    """A layer gives what a module of PyTorch gives."""
    import torch

    x = sample(layer.input_size, layer.dtype.name)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    with torch.no_grad():
        expected = module.to(torch.float64)(torch.from_numpy(x.astype(np.float64)))[0].numpy()
    np.testing.assert_allclose(layer(x)[0], expected, rtol=rtol, atol=1e-6)


def refused(path: Path, *words: str, **arguments: Any) -> str:
    """The error of loading a file: it names the file, says these words, and nothing was read before."""
    with at_most(2**23 + 4 * path.stat().st_size), pytest.raises(FileError) as error:
        fastrnn.load(path, **arguments)
    text = str(error.value)
    assert str(path) in text
    for word in words:
        assert word in text, text
    return text


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """The block takes no more memory than that."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak:,} bytes at once, allowed are {size:,}"


def is_mapped(array: Array) -> bool:
    """Whether an array lies in a mapped file."""
    import mmap

    base: Any = array
    while not isinstance(base, mmap.mmap) and base is not None:
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base is not None

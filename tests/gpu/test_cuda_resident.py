"""Kernels that stay on the GPU for a run of time steps give the same bits as one kernel for each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import fastrnn.cuda
import support
from cuda_support import EMULATED, PRECISIONS, example, needs_gpu, on_gpu, small_chunks
from support import CELLS, assert_same_bits
from test_cuda_heads import headed
from test_cuda_numbers import run

pytestmark = needs_gpu

ONE_PHASE = [c for c in CELLS if "proj" not in c and "original" not in c]


@contextmanager
def step_by_step() -> Iterator[None]:
    """As if no run of steps fitted the GPU."""
    core = fastrnn.cuda.devices.core()
    core.set_resident(0, False)
    try:
        yield
    finally:
        core.set_resident(0, True)


def check_same_bits(
    cell: support.Cell, precision: str, T: int, B: int, I: int, H: int, *, chunk: int = 64 << 20, **options: Any
) -> None:
    e = example(cell, precision, T, B, I, H, **options)
    layer = on_gpu(e.layer, precision)
    with small_chunks(chunk):
        resident = run(e, layer)
        with step_by_step():
            stepped = run(e, layer)
    for found, expected in zip(resident, stepped, strict=True):
        assert_same_bits(found, expected)


# The tiles of 8 and of 16 rows, one and more of them a block; units that fill no block, and no piece of 16 bytes.
SIZES = [(3, 3, 9), (2, 18, 33), (2, 70, 20)]
if not EMULATED:
    SIZES += [(20, 32, 256), (9, 33, 250), (20, 1, 512), (20, 100, 384), (20, 128, 1024)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", ["lstm"] if EMULATED else ["rnn_tanh", "gru", "lstm"])
def test_every_precision(cell: str, precision: str, sizes: tuple[int, int, int]) -> None:
    if EMULATED and sizes != SIZES[0] and precision in ("bfloat16", "tf32", "float16"):
        pytest.skip("matrix instructions are slow where they are emulated")
    T, B, H = sizes
    check_same_bits(CELLS[cell], precision, T, B, 5, H)


@pytest.mark.parametrize("cell", ONE_PHASE)
def test_lengths_and_resets_in_two_directions_and_layers(cell: str) -> None:
    options = {"lengths": True, "reset": True, "num_layers": 2, "bidirectional": True}
    check_same_bits(CELLS[cell], "float32", 5, 9, 3, 20, **options)


def test_chunks_of_time_count_on() -> None:
    B, H = 10, 12
    check_same_bits(CELLS["lstm"], "float32", 7, B, 4, H, chunk=3 * B * 4 * H * 4, reset=True)


@pytest.mark.parametrize("heads", [2, 5])
def test_heads(heads: int) -> None:
    check_same_bits(headed("lstm", heads), "float32", 4, 3, 5, 40)


def test_plans() -> None:
    plan = fastrnn.cuda.devices.core().plan_resident
    # blocks for all units, B, multiprocessors, blocks held of tiles of 8 and of 16 rows: rows of a tile, groups
    assert plan(32, 1, 132, 3, 2) == (8, 1)
    assert plan(32, 32, 132, 3, 2) == (8, 4)
    assert plan(128, 8, 132, 1, 1) == (8, 1)
    assert plan(128, 32, 132, 1, 1) == (16, 1)
    assert plan(128, 32, 132, 1, 0) == (8, 1)
    assert plan(256, 8, 132, 1, 1)[1] == 0
    assert plan(16, 1000, 132, 2, 2) == (16, 16)

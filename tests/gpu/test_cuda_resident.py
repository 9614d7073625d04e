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

ONE_PHASE = [c for c in CELLS if not any(word in c for word in ("proj", "original", "norm"))]


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


# Small tiles and large ones, one and more of them a block; units that fill no block, and no piece of 16 bytes.
SIZES = [(3, 3, 9), (2, 18, 33), (2, 200, 40)]
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
    # blocks for all units, B, directions, multiprocessors, rows of small and large tiles, blocks held of these:
    # whether tiles are large, groups of blocks, directions at once
    assert plan(32, 1, 1, 132, (8, 32), (3, 2)) == (False, 1, 1)
    assert plan(32, 32, 1, 132, (8, 32), (3, 2)) == (False, 4, 1)
    assert plan(128, 8, 1, 132, (8, 32), (1, 1)) == (False, 1, 1)
    assert plan(128, 32, 1, 132, (8, 32), (1, 1)) == (True, 1, 1)
    assert plan(64, 40, 1, 132, (8, 16), (1, 1)) == (True, 2, 1)
    assert plan(128, 16, 1, 132, (8, 32), (1, 0)) == (False, 1, 1)
    assert plan(128, 32, 1, 132, (8, 32), (1, 0))[1] == 0
    assert plan(128, 8, 2, 132, (8, 32), (1, 1)) == (False, 1, 1)
    assert plan(256, 8, 1, 132, (8, 32), (1, 1))[1] == 0
    assert plan(8, 1000, 2, 132, (8, 32), (2, 2)) == (True, 16, 2)


def test_rows_for_which_there_is_no_room_at_once() -> None:
    check_same_bits(CELLS["lstm"], "float64", 2, 9, 1, 136)


def test_directions_one_after_the_other() -> None:
    H = 136 if EMULATED else 1000
    check_same_bits(CELLS["rnn_tanh"], "float32", 2, 1, 1, H, bidirectional=True)

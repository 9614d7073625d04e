"""Layers with heads on a GPU: heads within a tile, across tiles and of whole ones, against the CPU."""

import pytest

import fastrnn
from cuda_support import example, needs_gpu
from support import CELLS, Cell
from test_cuda_numbers import check

pytestmark = needs_gpu


def headed(name: str, heads: int) -> Cell:
    return Cell(CELLS[name].layer, CELLS[name].textbook, {**CELLS[name].options, "heads": heads})


# T, B, I, H, heads: the block of 16 units has several heads, one, a part of one, or parts of two
@pytest.mark.parametrize("sizes", [(3, 9, 3, 12, 6), (2, 3, 5, 32, 2), (3, 1, 2, 80, 2), (2, 5, 3, 42, 3)])
@pytest.mark.parametrize("name", ["rnn_tanh", "gru", "gru_original", "lstm", "slstm", "lstm_general"])
def test_heads_equal_the_textbook(name: str, sizes: tuple[int, int, int, int, int]) -> None:
    *others, heads = sizes
    e = example(headed(name, heads), "float64", *others, lengths=True, reset=True)
    check(e, "float64")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_heads_in_two_layers_and_directions(name: str, precision: str) -> None:
    e = example(headed(name, 3), precision, 4, 9, 7, 30, lengths=True, reset=True, num_layers=2, bidirectional=True)
    check(e, precision)


def test_a_layer_with_heads_comes_back_from_the_gpu() -> None:
    layer = fastrnn.sLSTM(3, 8, heads=4, forget_gate="exponential").to("cuda")
    assert layer.parameters()["weight_hh_l0"].shape == (32, 2)
    again = layer.to("cpu")
    assert (again.heads, again.forget_gate) == (4, "exponential")

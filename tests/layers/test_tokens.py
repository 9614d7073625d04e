"""Token ids in place of x: the bits of the rows they name, gradients against the reference, and what is refused."""

from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from support import (
    CELLS,
    DTYPES,
    TOLERANCE,
    USUAL,
    Example,
    assert_close,
    assert_same_bits,
    draw,
    gradients_of,
    largest,
    parts,
    whole,
)

# Ids and tokens: each often, each about once, one only.
VOCABULARIES = {"few ids": 3, "many ids": 400, "one id": 1}
STACKS: dict[str, dict[str, Any]] = {"plain": {}, "deep": {"num_layers": 2, "bidirectional": True}}


def with_ids(e: Example, V: int, one_hot: bool = False) -> tuple[Example, np.ndarray, Any]:
    """The example with x made of an embedding's rows; the ids, which are nonsense past a length; the embedding."""
    rng = np.random.default_rng(5)
    ids = rng.integers(0, V, e.x.shape[:2])
    table = np.eye(V, dtype=e.dtype) if one_hot else rng.standard_normal((V, e.layer.input_size)).astype(e.dtype)
    x = table[ids]
    if e.lengths is not None:
        ids[np.arange(len(ids))[:, None] >= e.lengths] = -7
    return e.but(x=x), ids, "one-hot" if one_hot else table


def trained(e: Example, x: Any, **options: Any) -> tuple[Any, Any, Any]:
    y, state, tape = e.layer.forward(x, whole(e.state), **e.cuts, **options)
    return y, state, e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)


@pytest.mark.parametrize("V", VOCABULARIES.values(), ids=VOCABULARIES.keys())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_an_embedding_equals_its_rows_and_the_reference(name: str, dtype: str, V: int, isa: str) -> None:
    layer = CELLS[name].build(5, 17, isa=isa, dtype=dtype)
    e, ids, table = with_ids(draw(CELLS[name], layer, 9, 6, lengths=True, reset=True), V)
    for run in (layer, layer.freeze()):
        y, state = run(ids, whole(e.state), **e.cuts, embedding=table)
        assert_same_bits((y, *parts(state)), (e.infer()[0], *parts(e.infer()[1])))
    y, state, grads = trained(e, ids, embedding=table)
    assert_same_bits((y, *parts(state)), (e.train()[0], *parts(e.train()[1])))
    assert grads.x is None
    e.check_backward(gradients={**gradients_of(grads), "x": e.gradients()["x"]})
    check_embedding_gradient(e, ids, grads.embedding)


def check_embedding_gradient(e: Example, ids: np.ndarray, gradient: np.ndarray) -> None:
    direction = np.random.default_rng(3).standard_normal(gradient.shape)
    moved = direction[np.clip(ids, 0, len(gradient) - 1)]
    expected = reference.derivative(e.problem(), e.dy, e.dstate, "x", moved)
    bound = TOLERANCE[e.dtype, "gradient"] * largest(gradient) * np.sqrt(gradient.size)
    assert abs(np.sum(gradient * direction) - expected) <= bound


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_one_hot_equals_the_identity(name: str, dtype: str, stack: str, isa: str) -> None:
    layer = CELLS[name].build(21, 9, isa=isa, dtype=dtype, **STACKS[stack])
    e, ids, _ = with_ids(draw(CELLS[name], layer, 7, 5, lengths=True, reset=True), 21, one_hot=True)
    for run in (layer, layer.freeze()):
        y, state = run(ids, whole(e.state), **e.cuts, embedding="one-hot")
        assert_same_bits((y, *parts(state)), (e.infer()[0], *parts(e.infer()[1])))
    _, _, grads = trained(e, ids, embedding="one-hot")
    assert grads.x is None
    assert grads.embedding is None
    e.check_backward(gradients={**gradients_of(grads), "x": e.gradients()["x"]})


@pytest.mark.parametrize("V", [2, 300])
@pytest.mark.parametrize("name", USUAL)
def test_stacks_and_directions(name: str, V: int) -> None:
    layer = CELLS[name].build(5, 9, dtype="float64", **STACKS["deep"])
    e, ids, table = with_ids(draw(CELLS[name], layer, 30, 20, lengths=True), V)
    y, _, grads = trained(e, ids, embedding=table)
    assert_same_bits(y, e.train()[0])
    e.check_backward(gradients={**gradients_of(grads), "x": e.gradients()["x"]})
    check_embedding_gradient(e, ids, grads.embedding)


@pytest.mark.parametrize("V", [4, 3000])
@pytest.mark.parametrize("sizes", [(60, 40, 9, 33), (1, 700, 3, 64), (900, 1, 4, 40)], ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_threads_do_not_change_a_bit(name: str, sizes: tuple[int, int, int, int], V: int) -> None:
    T, B, input_size, hidden_size = sizes
    layer = CELLS[name].build(input_size, hidden_size)
    e, ids, table = with_ids(draw(CELLS[name], layer, T, B), V)
    found = []
    for count in (1, 2, 3):
        with fastrnn.threads(count):
            y, state, grads = trained(e, ids, embedding=table)
            found.append((y, *parts(state), grads.embedding, *grads.parameters.values()))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])
    wanted = np.zeros(table.shape)
    np.add.at(wanted, ids, trained(e, e.x)[2].x)
    assert_close(found[0][-1 - len(layer.parameters())], wanted.astype("float32"), "float32", "gradient", "dE")


def test_rows_that_no_token_used_get_no_gradient() -> None:
    layer = CELLS["gru"].build(4, 8)
    table = np.ones((6, 4), "float32")
    _, _, tape = layer.forward([[1, 4], [4, 1]], embedding=table)
    grads = layer.backward(tape, np.ones((2, 2, 8), "float32"))
    assert np.flatnonzero(grads.embedding.any(axis=1)).tolist() == [1, 4]
    assert "embedding=(6, 4)" in repr(grads)


@pytest.mark.parametrize("embedding", ["one-hot", np.eye(5, dtype="float32")], ids=["one-hot", "embedding"])
def test_layouts(embedding: Any) -> None:
    time_first = CELLS["lstm"].build(5, 8)
    batch_first = CELLS["lstm"].build(5, 8, batch_first=True)
    ids = np.random.default_rng(0).integers(0, 5, (6, 3)).astype(np.uint8)
    y, _ = time_first(ids, embedding=embedding)
    assert_same_bits(batch_first(ids.T, embedding=embedding)[0].swapaxes(0, 1), y)
    assert_same_bits(time_first(ids[:, 1], embedding=embedding)[0], y[:, 1])
    assert_same_bits(time_first(ids[::-1][::-1].tolist(), embedding=embedding)[0], y)
    _, _, tape = time_first.forward(ids[:, 0], embedding=embedding)
    assert time_first.backward(tape, np.ones((6, 8), "float32")).x is None


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("embedding", ["one-hot", np.ones((2, 5))], ids=["one-hot", "embedding"])
def test_no_token_at_all(shape: tuple[int, int], embedding: Any) -> None:
    layer = CELLS["gru"].build(5, 8, dtype="float64", bidirectional=True)
    y, _, tape = layer.forward(np.zeros(shape, int), embedding=embedding)
    grads = layer.backward(tape, np.zeros(y.shape))
    assert y.shape == (*shape, 16)
    assert not any(g.any() for g in grads.parameters.values())


def test_what_is_refused() -> None:
    layer = CELLS["gru"].build(3, 8)
    table = np.ones((4, 3), "float32")

    def says(text: str, kind: type[Exception], ids: Any, embedding: Any = table, **options: Any) -> None:
        with pytest.raises(kind, match=text):
            layer(ids, embedding=embedding, **options)

    says(r"got ids\[1, 0\] = 4 and 1 more out of range.\n.*0..3", ValueError, [[0, 1], [4, -1]])
    says(r"got ids\[1\] = -1.\n", ValueError, [0, -1])
    says(r"got ids\[0, 0\] = 3.\n.*0..2", ValueError, [[3]], "one-hot")
    says("ids with dtype float64.\n  They are rows of the embedding and must be", TypeError, [[0.0, 1.0]])
    assert layer([], embedding=table)[0].shape == (0, 8)
    says(r"ids with shape \(1, 1, 1\).*\n.*\(time, batch\)", fastrnn.ShapeError, [[[1]]])
    says(r"ids with shape \(\)", fastrnn.ShapeError, 1)
    says(r'embedding=.one_hot.\.\n.*"one-hot"', ValueError, [[1]], "one_hot")
    says(r"embedding with shape \(3, 4\)(.|\n)*swapaxes\(0, 1\)", fastrnn.ShapeError, [[1]], table.T)
    says(r"embedding with shape \(0, 3\).\n.*no row", fastrnn.ShapeError, np.zeros((0, 1), int), table[:0])
    says("embedding with dtype float64", TypeError, [[1]], table.astype(float))
    says("got lengths", ValueError, [[1]], lengths=[2])
    with pytest.raises(TypeError, match=r"x with dtype int64.\n.*; token ids go with embedding=\."):
        layer([[1, 2, 3]])


def test_the_size_of_one_hot_vectors_is_not_counted() -> None:
    layer = fastrnn.LSTM(200_000, 2)
    _, _, tape = layer.forward(np.zeros((200, 200), int), embedding="one-hot")
    assert tape.nbytes < 11_000_000


def test_the_core_checks_ids_once_more() -> None:
    layer = CELLS["gru"].build(3, 8)
    with pytest.raises(IndexError, match=r"ids must lie in 0\.\.2"):
        layer._network.forward(layer._arrays(), np.full((1, 1), 3), None, None, None, False, False, 1)

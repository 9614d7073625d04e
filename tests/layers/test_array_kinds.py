"""Arrays that are more than their numbers, and parameters that can only be read."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn

T, B, I, H = 5, 2, 3, 4


class Quantity(np.ndarray[Any, Any]):
    """As astropy and pint have them."""

    unit = "V"


class Sparse:
    """As scipy has them."""

    nnz = 0
    shape = (T, I)

    def toarray(self) -> Any:
        return np.zeros((T, I))


def masked(array: Any) -> Any:
    return np.ma.masked_array(array, np.zeros(array.shape, bool))


def x() -> Any:
    return np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32)


CALLS: dict[str, Callable[[Any], Any]] = {
    "x": lambda kind: fastrnn.GRU(I, H)(kind(x())),
    "x of forward": lambda kind: fastrnn.GRU(I, H).forward(kind(x())),
    "x of a frozen layer": lambda kind: fastrnn.GRU(I, H).freeze()(kind(x())),
    "x of a step": lambda kind: fastrnn.GRU(I, H).freeze().step(kind(x()[0])),
    "the state of a step": lambda kind: fastrnn.GRU(I, H).freeze().step(x()[0], kind(np.zeros((1, B, H), np.float32))),
    "state": lambda kind: fastrnn.GRU(I, H)(x(), kind(np.zeros((1, B, H), np.float32))),
    "c": lambda kind: fastrnn.LSTM(I, H)(x(), (np.zeros((1, B, H)), kind(np.zeros((1, B, H), np.float32)))),
    "lengths": lambda kind: fastrnn.GRU(I, H)(x(), lengths=kind(np.array([1, 2]))),
    "reset": lambda kind: fastrnn.GRU(I, H)(x(), reset=kind(np.zeros((T, B), bool))),
    "ids": lambda kind: fastrnn.GRU(I, H)(kind(np.zeros((T, B), int)), embedding="one-hot"),
    "embedding": lambda kind: fastrnn.GRU(I, H)(np.zeros((T, B), int), embedding=kind(np.zeros((7, I), np.float32))),
    "dy": lambda kind: gradients(kind),
    "load_state_dict": lambda kind: fastrnn.Linear(I, H, bias=False).load_state_dict(
        {"weight": kind(np.zeros((H, I)))}
    ),
    "x of Linear": lambda kind: fastrnn.Linear(I, H)(kind(x())),
    "logits": lambda kind: fastrnn.cross_entropy(kind(x()), np.zeros((T, B), int)),
    "targets": lambda kind: fastrnn.cross_entropy(x(), kind(np.zeros((T, B), int))),
    "the mask of a loss": lambda kind: fastrnn.cross_entropy(
        x(), np.zeros((T, B), int), mask=kind(np.ones((T, B), bool))
    ),
}


def gradients(kind: Any) -> None:
    layer = fastrnn.GRU(I, H)
    y, _, tape = layer.forward(x())
    layer.backward(tape, kind(np.ones_like(y)))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (masked, r"MaskedArray.*\n.*mask would be ignored.*lengths=.*\.filled\(0\)"),
        (lambda a: a.view(Quantity), r"Quantity.*\n.*units would be ignored"),
        (lambda a: Sparse(), r"Sparse.*\n.*sparse.*toarray"),
    ],
    ids=["masked", "units", "sparse"],
)
def test_what_would_lose_its_meaning_is_refused(call: str, kind: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        CALLS[call](kind)


def test_masked_gradients_for_an_optimizer() -> None:
    layer = fastrnn.Linear(I, H)
    grads = {name: masked(p) for name, p in layer.state_dict().items()}
    before = layer.state_dict()
    with pytest.raises(TypeError, match="mask would be ignored"):
        fastrnn.SGD(layer.parameters(), 0.1).step(grads)
    assert all(np.array_equal(before[name], p) for name, p in layer.parameters().items())


def test_files_in_memory_are_their_numbers(tmp_path: Path) -> None:
    layer = fastrnn.GRU(I, H)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=(T, B, I))
    file[...] = x()
    assert np.array_equal(layer(file)[0], layer(x())[0])
    assert np.array_equal(layer.freeze().step(file[0])[0], layer.freeze().step(x()[0])[0])


def read_only() -> Any:
    """A layer as joblib loads it with mmap_mode="r"."""
    layer = fastrnn.LSTM(I, H, rng=0)
    for parameter in layer.parameters().values():
        parameter.flags.writeable = False
    return layer


class TestReadOnlyParameters:
    def test_computing(self) -> None:
        layer, writable = read_only(), fastrnn.LSTM(I, H, rng=0)
        y, _, tape = layer.forward(x())
        wanted, _, other = writable.forward(x())
        assert np.array_equal(y, wanted)
        found = layer.backward(tape, np.ones_like(y)).parameters
        for name, gradient in writable.backward(other, np.ones_like(y)).parameters.items():
            assert np.array_equal(found[name], gradient)
        assert np.array_equal(layer.freeze()(x())[0], wanted)

    @pytest.mark.parametrize(
        "write",
        [
            lambda layer: layer.load_state_dict(fastrnn.LSTM(I, H).state_dict()),
            lambda layer: layer.initialise("orthogonal"),
            lambda layer: fastrnn.SGD(layer.parameters(), 0.1),
        ],
        ids=["load_state_dict", "initialise", "SGD"],
    )
    @pytest.mark.parametrize("which", [None, "bias_hh_l0"])
    def test_writing(self, write: Any, which: str | None) -> None:
        layer = read_only()
        for name, parameter in layer.parameters().items():
            parameter.flags.writeable = which is not None and name != which
        before = layer.state_dict()
        with pytest.raises(ValueError, match=which or "weight_ih_l0") as caught:
            write(layer)
        assert "read-only" in str(caught.value) or "must be a writeable" in str(caught.value)
        assert all(np.array_equal(before[name], p) for name, p in layer.parameters().items())

    def test_an_optimizer_that_was_there_before(self) -> None:
        layer = fastrnn.LSTM(I, H)
        optimizer = fastrnn.Adam(layer.parameters(), 0.1)
        grads = {name: np.ones_like(p) for name, p in layer.parameters().items()}
        layer.parameters()["bias_hh_l0"].flags.writeable = False
        before, steps = layer.state_dict(), optimizer.state_dict()
        with pytest.raises(ValueError, match="read-only parameter bias_hh_l0"):
            optimizer.step(grads)
        assert all(np.array_equal(before[name], p) for name, p in layer.parameters().items())
        assert optimizer.state_dict()["steps"] == steps["steps"]

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
    def test_copies_are_writable(self, copied: Any) -> None:
        copied(read_only()).initialise()

"""Pieces of a graph that NumPy computes: of a few small arrays, as in a single time step, that takes less than a call.

A call of ONNX Runtime from Python takes 4 to 6 us, an operation of NumPy on a small array 0.3 to 2. NumPy is asked
where all pieces of a graph can be its: one piece each in turn takes longer than ONNX Runtime for both.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .constants import Constants
from .reading import attributes
from .views import view

Array = NDArray[Any]
Operation = Callable[..., Any]

_MOST = 1 << 12  # numbers in an array that comes in
_MOST_PRODUCTS = 1 << 17  # multiplications of a product
_FLOAT = np.dtype(np.float32)
_ALONE = 9000  # elements of a matrix that OpenBLAS multiplies one row with on one thread; its others would spin


class _TooLarge(Exception):
    """Arrays for which ONNX Runtime is better."""


class _Part(NamedTuple):
    """An operation, the places of what it reads, and those of what it writes."""

    operation: Operation
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Small:
    """Nodes in order, as operations on float32 arrays by their places.

    Parameters
    ----------
    parts
        What is done.
    values
        What there is beforehand: constants at their places, None elsewhere.
    count
        How many arrays come in; they have the first places.
    writes
        The places of the results.
    """

    def __init__(self, parts: Sequence[_Part], values: Sequence[Any], count: int, writes: Sequence[int]) -> None:
        self._parts, self._values, self._writes = list(parts), list(values[count:]), list(writes)

    def __call__(self, given: Sequence[Any]) -> list[Array] | None:
        """Return the results; None if the arrays are not few, small and float32, or do not fit each other."""
        for array in given:
            if array.size > _MOST or array.dtype != _FLOAT:
                return None
        values = [*given, *self._values]
        try:
            for operation, reads, writes in self._parts:
                found = operation(values[reads[0]]) if len(reads) == 1 else operation(*[values[k] for k in reads])
                if len(writes) == 1:
                    values[writes[0]] = found
                else:
                    for k, one in zip(writes, found, strict=True):
                        values[k] = one
        except (_TooLarge, ValueError, IndexError):  # ONNX Runtime says what does not fit
            return None
        return [np.ascontiguousarray(values[k]) if values[k].ndim else values[k] for k in self._writes]


def small(nodes: Sequence[Any], reads: Sequence[str], writes: Sequence[str], constants: Constants) -> Small | None:
    """Return nodes in order as operations of NumPy; None if one of them is of another kind.

    Parameters
    ----------
    nodes
        Of one piece of a graph.
    reads, writes
        Names of what comes in and what goes out.
    constants
        Of the graph.
    """
    places = {name: k for k, name in enumerate(reads)}
    values: list[Any] = [None] * len(places)
    parts = []
    for node in nodes:
        if node.domain not in ("", "ai.onnx") or not all(node.output):
            return None
        made = _operation(node, constants)
        if made is None:
            return None
        operation, inputs = made
        for name in inputs:
            if name not in places:
                value = constants.get(name) if constants.is_constant(name) else None
                if value is None or value.dtype != np.float32:
                    return None
                places[name] = len(values)
                values.append(value)
        for name in node.output:
            places[name] = len(values)
            values.append(None)
        parts.append(_Part(operation, tuple(places[n] for n in inputs), tuple(places[n] for n in node.output)))
    return Small(parts, values, len(reads), [places[name] for name in writes])


def _operation(node: Any, constants: Constants) -> tuple[Operation, list[str]] | None:
    """What a node does, and the names of the inputs that it takes when it is called."""
    kind, inputs = node.op_type, list(node.input)
    if kind in _SIMPLE:
        return _SIMPLE[kind], inputs
    given = attributes(node)
    if kind in ("MatMul", "Gemm"):
        return _product(node, given, constants)
    if kind == "LayerNormalization":
        return _norm(node, given)
    if kind == "Concat":
        axis = given["axis"]
        return (lambda *arrays: np.concatenate(arrays, axis)), inputs
    if kind == "Split":
        return _split(node, given, constants)
    moved = view(node, constants)
    if moved is not None and not moved[2] and inputs[0] and not constants.is_constant(inputs[0]):
        return moved[0], inputs[:1]
    return None


def _relu(x: Array) -> Any:
    return np.maximum(x, 0)


def _sigmoid(x: Array) -> Any:
    return np.tanh(x * 0.5) * 0.5 + 0.5


_SIMPLE: dict[str, Operation] = {"Relu": _relu, "Sigmoid": _sigmoid, "Tanh": np.tanh}
_SIMPLE |= {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def _product(node: Any, given: dict[str, Any], constants: Constants) -> tuple[Operation, list[str]] | None:
    """A product with a constant matrix, and of Gemm a constant to add."""
    inputs = list(node.input)
    if len(inputs) < 2 or not constants.is_constant(inputs[1]) or constants.is_constant(inputs[0]):
        return None
    if any(given.get(name, usual) != usual for name, usual in (("alpha", 1.0), ("beta", 1.0), ("transA", 0))):
        return None
    matrix = constants.get(inputs[1])
    if matrix is None or matrix.ndim != 2 or matrix.dtype != np.float32 or not 0 < matrix.size <= _MOST_PRODUCTS:
        return None
    matrix = matrix.T if given.get("transB") else matrix
    rows, columns = matrix.shape
    width = max(1, _ALONE // rows)
    count = -(-columns // width)
    stacked = np.zeros((count * width, rows), np.float32)
    stacked[:columns] = matrix.T
    whole, pieces = stacked[:columns].T, stacked.reshape(count, width, rows).transpose(0, 2, 1)

    is_gemm = node.op_type == "Gemm"

    def product(x: Array, *more: Array) -> Any:
        if is_gemm and x.ndim != 2:
            raise ValueError("Gemm takes matrices")
        if count > 1 and x.size == rows and x.shape[-1] == rows:  # one row
            found = np.matmul(x.reshape(1, rows), pieces).reshape(-1)[:columns].reshape(*x.shape[:-1], columns)
        elif x.size * columns > _MOST_PRODUCTS:
            raise _TooLarge
        else:
            found = np.matmul(x, whole)
        return np.add(found, more[0]) if more else found

    return product, [inputs[0], *filter(None, inputs[2:])]


def _norm(node: Any, given: dict[str, Any]) -> tuple[Operation, list[str]] | None:
    """Over the last axis."""
    if given.get("axis", -1) != -1 or len(node.output) > 1 or given.get("stash_type", 1) != 1:
        return None
    epsilon = given.get("epsilon", 1e-5)

    def norm(x: Array, scale: Array, *bias: Array) -> Any:
        centred = x - np.add.reduce(x, -1, keepdims=True) / x.shape[-1]
        variance = np.add.reduce(centred * centred, -1, keepdims=True) / x.shape[-1]
        found = centred / np.sqrt(variance + epsilon) * scale
        return found + bias[0] if bias else found

    return norm, list(filter(None, node.input))


def _split(node: Any, given: dict[str, Any], constants: Constants) -> tuple[Operation, list[str]] | None:
    """Views of an array side by side."""
    inputs, axis, count = list(node.input), given.get("axis", 0), len(node.output)
    sizes = given.get("split")
    if len(inputs) > 1 and inputs[1]:
        if not constants.is_constant(inputs[1]):
            return None
        value = constants.get(inputs[1])
        sizes = None if value is None else value.tolist()
    if sizes is None or len(sizes) != count or count == 1 or axis < 0:
        return None
    bounds = np.cumsum([0, *sizes]).tolist()
    before = (slice(None),) * axis
    parts = [(*before, slice(a, b)) for a, b in itertools.pairwise(bounds)]

    def split(x: Array) -> list[Array]:
        if x.shape[axis] != bounds[-1]:
            raise ValueError("the sizes of a Split are others")
        return [x[part] for part in parts]

    return split, inputs[:1]

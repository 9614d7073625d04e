"""The recurrent nodes of an ONNX file, without the onnx package and without its weights being read.

The messages and the numbers of their fields are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
Initializers and Constants have sizes; those of operators that only move axes follow from them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..checks import Problems
from ..nodes import DOMAINS, OPERATORS, WEIGHTS, Node, check_weights, no_layer, parse, unknown_operator, unused
from ..nodes import weight_names as weights_among
from . import protobuf
from .errors import FileError
from .found import Found, complete
from .tensors import MAX_AXES, Array, Bytes, Tensor, count

_TYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool"}
_TYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"}
_INT64, _FEW = 7, 32  # arrays of so few integers are read: they are axes
_DEEPEST = 100  # graphs inside each other
_MOST = 1_000_000  # nodes, initializers and inputs of all graphs
_FOLDED = ("Reshape", "Flatten", "Slice", "Split", "Gather")  # constant where their inputs are, of sizes not known here


class _Value(NamedTuple):
    """A constant: its type, its sizes where they are known, and its integers where they are few."""

    dtype: str
    shape: tuple[int, ...] | None
    integers: tuple[int, ...] | None = None


class _Raw(NamedTuple):
    """A node as it stands in the file; its attributes are not read yet."""

    name: str
    op_type: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: list[memoryview]

    @property
    def label(self) -> str:
        return self.name or next(filter(None, self.outputs), self.op_type)


class _Scope:
    """What is constant in a graph, by name, and what is not."""

    def __init__(self, around: "_Scope | None") -> None:
        self._around, self.known = around, dict[str, _Value | None]()

    def get(self, name: str) -> _Value | None:
        """Return the constant; None if it is none."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.known:
                return scope.known[name]
            scope = scope._around
        return None


class _Reader:
    """Goes through a file; `found` are its recurrent layers, `tensors` counts its initializers."""

    def __init__(self, name: str) -> None:
        self.who = f"{name} is no ONNX model"
        self.found: dict[str, Found] = {}
        self.tensors = self.version = self._count = 0

    def fields(self, message: Any) -> Iterator[tuple[int, int, Any]]:
        if not isinstance(message, memoryview):
            raise FileError(f"{self.who}, or damaged: it has a number in the place of a message")
        return protobuf.fields(message, self.who)

    def _text(self, value: Any) -> str:
        return protobuf.text(value, self.who)

    def _one_more(self) -> None:
        self._count += 1
        if self._count > _MOST:
            raise FileError(f"{self.who} that is read: it has more than {_MOST:,} nodes and arrays")

    def model(self, message: memoryview) -> None:
        graph, functions, versions, ir_version = None, [], [1], 0
        for number, _, value in self.fields(message):
            if number == 7:
                graph = value
            elif number == 25:
                functions.append(value)
            elif number == 8:
                read = {n: v for n, _, v in self.fields(value)}
                if self._text(read.get(1, b"")) in DOMAINS:
                    versions.append(_integer(read.get(2, 0)))
            elif number == 1:
                ir_version = _integer(value)
        self.version = max(versions)
        if graph is None or not any(number == 1 for number, _, _ in self.fields(graph)):
            raise FileError(f"{self.who}: it has no graph with nodes")
        self._graph(graph, None, 0, replaceable=ir_version >= 4)
        for function in functions:
            self._function(function)

    def _graph(self, message: Any, around: _Scope | None, depth: int, replaceable: bool = False) -> None:
        """Note the layers of a graph; if initializers are `replaceable`, those that are inputs too are no constants."""
        if depth > _DEEPEST:
            raise FileError(f"{self.who} that is read: its graphs stand inside each other more than {_DEEPEST} deep")
        scope, inputs = _Scope(around), []
        for number, _, value in self.fields(message):
            if number == 11:
                self._one_more()
                inputs.append(next((self._text(v) for n, _, v in self.fields(value) if n == 1), ""))
            elif number in (5, 15):
                self._one_more()
                self.tensors += 1
                name, tensor = self._tensor(value) if number == 5 else self._sparse(value)
                scope.known[name] = tensor
        for name in inputs:
            if replaceable or name not in scope.known:
                scope.known[name] = None
        for number, _, value in self.fields(message):
            if number == 1:
                self._node(self._raw(value), scope, depth)

    def _function(self, message: Any) -> None:
        """Note the layers of a function, whose weights come with each call."""
        nodes, name = [], ""
        for number, _, value in self.fields(message):
            if number == 1:
                name = self._text(value)
            elif number == 7:
                self._one_more()
                nodes.append(self._raw(value))
        for raw in nodes:
            if raw.op_type in OPERATORS and raw.domain in DOMAINS:
                why = f"it stands in the function {name}: fastrnn.onnx.load makes layers where that is called"
                where = unused(f"{name}/{raw.label}", self.found)
                self.found[where] = Found(where, "ONNX", {}, unfit=why)

    def _raw(self, message: Any) -> _Raw:
        words: dict[int, Any] = {1: [], 2: [], 3: "", 4: "", 7: ""}
        attributes = []
        for number, _, value in self.fields(message):
            if number in (1, 2):
                words[number].append(self._text(value))
            elif number in words:
                words[number] = self._text(value)
            elif number == 5:
                attributes.append(value)
        return _Raw(words[3], words[4], words[7], words[1], words[2], attributes)

    def _node(self, raw: _Raw, scope: _Scope, depth: int) -> None:
        self._one_more()
        ours = raw.domain in DOMAINS
        if ours and raw.op_type in OPERATORS:
            where = unused(raw.label, self.found)
            self.found[where] = complete(self._layer(where, raw, scope))
        value = self._folded(raw, scope) if ours else None
        scope.known |= dict.fromkeys(filter(None, raw.outputs), value)
        for attribute in raw.attributes:
            for number, _, one in self.fields(attribute):
                if number in (6, 11):
                    self._graph(one, scope, depth + 1)

    def _attributes(self, raw: _Raw) -> dict[str, Any]:
        """Return the attributes of a node, as plain values; tensors as `_Value`."""
        return dict(self._attribute(message) for message in raw.attributes)

    def _attribute(self, message: Any) -> tuple[str, Any]:
        """Return name and value; a value of another kind, such as a graph, is None."""
        name, integers, floats, strings = "", list[int](), list[float](), list[str]()
        found: Any = None
        for number, wire, value in self.fields(message):
            if number == 1:
                name = self._text(value)
            elif number == 2 and wire == protobuf.FIXED32:
                found = protobuf.floats(value, self.who)[0]
            elif number == 3 and wire == protobuf.VARINT:
                found = protobuf.signed(value)
            elif number == 4:
                found = self._text(value)
            elif number == 5:
                found = self._tensor(value)[1]
            elif number == 7:
                floats += protobuf.floats(value, self.who)
            elif number == 8:
                integers += protobuf.integers(wire, value, self.who)
            elif number == 9:
                strings.append(self._text(value))
            if len(integers) + len(floats) + len(strings) > protobuf.MOST_NUMBERS:
                raise FileError(f"{self.who} that is read: its attribute {name} has too many numbers")
        return name, found if found is not None else integers or floats or strings or None

    def _tensor(self, message: Any) -> tuple[str, _Value]:
        """Return the name of a tensor, and the tensor."""
        name, kind, shape, raw, given = "", 0, list[int](), b"", list[tuple[int, Any]]()
        for number, wire, value in self.fields(message):
            if number == 1 and len(shape) <= MAX_AXES:
                shape += protobuf.integers(wire, value, self.who)
            elif number == 2:
                kind = _integer(value)
            elif number == 7 and len(given) < _FEW:
                given.append((wire, value))
            elif number == 8:
                name = self._text(value)
            elif number == 9 and wire == protobuf.BYTES:
                raw = value
        size = count(shape, f"{self.who}, or damaged: its array {name!r}")
        few = None
        if kind == _INT64 and size <= _FEW:
            read = [one for wire, value in given for one in protobuf.integers(wire, value, self.who)]
            few = tuple(read or np.frombuffer(raw[: len(raw) // 8 * 8], "<i8")[:size].tolist())
        return name, _Value(_TYPES.get(kind, f"type {kind}"), tuple(shape), few)

    def _sparse(self, message: Any) -> tuple[str, _Value]:
        values = next((v for n, _, v in self.fields(message) if n == 1), memoryview(b""))
        name, tensor = self._tensor(values)
        return name, tensor._replace(shape=None, integers=None)

    def _folded(self, raw: _Raw, scope: _Scope) -> _Value | None:
        """Return what a node makes of constants; None if it is no constant."""
        if raw.op_type == "Constant":
            given = self._attributes(raw)
            value = given.get("value")
            return value if isinstance(value, _Value) else _Value("unknown", None)
        if raw.op_type not in (*_SHAPES, *_FOLDED) or not raw.inputs:
            return None
        inputs = [scope.get(name) for name in raw.inputs if name]
        known = [value for value in inputs if value is not None]
        if len(known) < len(inputs) or not known:
            return None
        return self._moved(raw, known)

    def _moved(self, raw: _Raw, known: Sequence[_Value]) -> _Value:
        """What an operator makes of constants whose sizes may be known."""
        given, first = self._attributes(raw), known[0]
        dtype = _TYPES.get(given.get("to", 0), "unknown") if raw.op_type == "Cast" else first.dtype
        if raw.op_type in _FOLDED or any(one.shape is None for one in known):
            return _Value(dtype, None)
        axes = known[1].integers if len(known) > 1 and raw.op_type != "Concat" else given.get("axes")
        shapes = [one.shape for one in known if one.shape is not None]
        try:
            return _Value(dtype, _SHAPES[raw.op_type](shapes, given, axes))
        except (ValueError, TypeError, IndexError):  # the node contradicts itself
            return _Value(dtype, None)

    def _layer(self, where: str, raw: _Raw, scope: _Scope) -> Found:
        """Return the layer of a node, or why there is none."""
        names = weights_among(raw.inputs)
        weights = [scope.get(name) if name else None for name in names]
        known = {n: one for n, one in zip(WEIGHTS, weights, strict=True) if one is not None}
        sized = {n: _as_tensor(one.dtype, one.shape) for n, one in known.items() if one.shape is not None}
        found = Found(where, "ONNX", sized)
        try:
            found.unfit = unknown_operator(raw.op_type, self.version, len(raw.inputs)) or ""
            if found.unfit:
                return found
            node = parse(raw.op_type, self._attributes(raw), bool(names[3]), "the node")
            missing = [name for name, one in zip(names, weights, strict=True) if name and one is None]
            found.unfit = no_layer(node, missing) or ""
            if not found.unfit and len(sized) < len(known):
                made = ", ".join(name for name in known if name not in sized)
                found.unfit = f"the sizes of its {made} are not worked out here; fastrnn.onnx.load makes the layer"
            if not found.unfit:
                problems = Problems(lambda: "the node")
                check_weights(problems, node, [known[n].shape if n in known else None for n in WEIGHTS])
                problems.refuse()
                found.said = {**node.options(), "batch_first": bool(node.layout)}
                found.tensors = _parameters(node, sized)
        except FileError:
            raise
        except (ValueError, TypeError) as error:
            found.unfit = " ".join(str(error).split())
        return found


def _parameters(node: Node, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The shapes of the parameters by PyTorch's names."""
    found = {}
    for suffix in ("l0", "l0_reverse")[: node.directions]:
        for name, one in (("weight_ih", "W"), ("weight_hh", "R")):
            found[f"{name}_{suffix}"] = _as_tensor(weights[one].dtype, weights[one].shape[1:])
        if "B" in weights:
            half = (weights["B"].shape[1] // 2,)
            found |= {f"bias_{s}_{suffix}": _as_tensor(weights["B"].dtype, half) for s in ("ih", "hh")}
        if "P" in weights:
            found[f"weight_peephole_{suffix}"] = _as_tensor(weights["P"].dtype, (3, node.hidden_size))
    return found


def _as_tensor(dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(dtype, shape, _refuse)


def _refuse() -> Array:
    raise FileError("layers of ONNX files are made by fastrnn.onnx.load, or fastrnn.load")


def _integer(value: Any) -> int:
    return protobuf.signed(value) if isinstance(value, int) else 0


# The sizes of what an operator makes, of the sizes of its inputs, its attributes and the axes that it is given.
_Shape = tuple[int, ...]
_Maker = Callable[[Sequence[_Shape], dict[str, Any], Any], _Shape]


def _same(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    return shapes[0]


def _broadcast(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    return np.broadcast_shapes(*shapes)


def _transposed(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    order = given.get("perm") or range(len(shapes[0]))[::-1]
    return tuple(shapes[0][k] for k in order)


def _unsqueezed(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    return np.expand_dims(np.broadcast_to(0, shapes[0]), tuple(axes)).shape


def _squeezed(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    return np.broadcast_to(0, shapes[0]).squeeze(None if axes is None else tuple(axes)).shape


def _joined(shapes: Sequence[_Shape], given: dict[str, Any], axes: Any) -> _Shape:
    axis, found = given["axis"], list(shapes[0])
    found[axis] = sum(shape[axis] for shape in shapes)
    return tuple(found)


_SHAPES: dict[str, _Maker] = {"Identity": _same, "Cast": _same, "Neg": _same, "Transpose": _transposed}
_SHAPES |= {"Unsqueeze": _unsqueezed, "Squeeze": _squeezed, "Concat": _joined}
_SHAPES |= {"Add": _broadcast, "Sub": _broadcast, "Mul": _broadcast}


def find(name: str, data: Bytes) -> tuple[list[Found], int, int]:
    """Return the layers of an ONNX file, the version of its operators, and how many initializers it has.

    Raises
    ------
    FileError
        If it is damaged, or no ONNX model.
    """
    reader = _Reader(name)
    reader.model(data.data)
    return list(reader.found.values()), reader.version, reader.tensors

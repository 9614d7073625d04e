"""A graph cut at its recurrent nodes: what runs when, and the pieces in between as sessions of ONNX Runtime.

Times are numbers: graph inputs are there at 0, pieces of ONNX Runtime run at odd times, one at each, and what runs here
at even ones. Each node runs as early as its inputs allow, so there are as few pieces as recurrent nodes in a row.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..storage import FileError
from . import types
from .arithmetic import small
from .choosing import Scope
from .reading import attributes, free_names, label, serialised
from .steps import Axis, Branch, Loop, Plan, Recurrence, Scan, Segment, Step
from .steps import View as ViewStep
from .types import CutError
from .views import Change, Sizes, view

Array = NDArray[Any]
Types = dict[str, Any]  # TypeProtos by name
MakeSession = Callable[[bytes], Any]


class Cut:
    """The plan of a scope and of the scopes inside it.

    Parameters
    ----------
    scope
        The graph.
    model
        The model it is of.
    make_session
        Makes an InferenceSession of a model's bytes.
    around
        The types of values of the graphs around it.
    inputs
        Types of its inputs that say more than the graph does.

    Raises
    ------
    CutError
        If a value that has to be passed on has a type that cannot be.
    """

    def __init__(
        self, scope: Scope, model: Any, make_session: MakeSession, around: Types, inputs: Sequence[Any] = ()
    ) -> None:
        self.scope, self._model, self._make_session = scope, model, make_session
        self.types: Types = dict(around)
        for k, value in enumerate(scope.graph.input):
            known = inputs[k] if k < len(inputs) else None
            self.types[value.name] = known if types.is_complete(known) else value.type
        self.outputs = [value.name for value in scope.graph.output]
        self._own = {value.name for value in scope.graph.input} | {name for n in scope.nodes for name in n.output}
        self._alive = self._find_alive()
        self._views = self._find_views()
        self._sort_out()

    # Which nodes matter, and where each runs

    def _is_constant(self, name: str) -> bool:
        return self.scope.constants.is_constant(name) or self.scope.constants.is_initializer(name)

    def _find_alive(self) -> set[int]:
        """The nodes, by place, that an output depends on and that are no constants."""
        wanted, alive = set(self.outputs), set()
        for k in reversed(range(len(self.scope.nodes))):
            node = self.scope.nodes[k]
            written = [name for name in node.output if name]
            if any(name in wanted for name in written) and not all(map(self.scope.constants.is_constant, written)):
                alive.add(k)
                wanted |= set(free_names(node))
        return alive

    def _find_views(self) -> dict[int, Change]:
        """The nodes that NumPy does, behind a recurrent node or between it and what comes before."""
        nodes, found = self.scope.nodes, {}
        ours = {k for k in self._alive if self._is_ours(k)}
        moving = {}
        for k in self._alive - ours:  # of a constant, which no step writes, ONNX Runtime makes what it makes
            if not self._is_constant(next(iter(nodes[k].input), "")) and (
                change := view(nodes[k], self.scope.constants)
            ):
                moving[k] = change
        here = {name for k in ours for name in nodes[k].output}
        for k in sorted(moving):
            if nodes[k].input[0] in here:
                found[k] = moving[k]
                here |= set(nodes[k].output)
        readers: dict[str, set[int]] = {}
        for k in self._alive:
            for name in free_names(nodes[k]):
                readers.setdefault(name, set()).add(k)
        before = set(ours)
        for k in sorted(moving, reverse=True):
            output = nodes[k].output[0]
            if output not in self.outputs and readers.get(output, set()) <= before:
                found[k] = moving[k]
                before.add(k)
        return found

    def _is_ours(self, k: int) -> bool:
        return k in self.scope.taken or any(scope.any_taken() for scope in self.scope.inner.get(k, ()))

    def _sort_out(self) -> None:
        """Give every node its time."""
        ready: dict[str, int] = {}
        self._at: dict[int, list[int]] = {}
        for k in sorted(self._alive):
            node = self.scope.nodes[k]
            last = max((ready.get(name, 0) for name in free_names(node)), default=0)
            here = k in self._views or self._is_ours(k)
            time = last + (last % 2 if here else 1 - last % 2)
            self._at.setdefault(time, []).append(k)
            ready |= dict.fromkeys(filter(None, node.output), time)

    # The steps

    def plan(self) -> Plan:
        """Make the sessions and all the steps."""
        steps: list[Step] = []
        for time in sorted(self._at):
            if time % 2:
                steps += self._segment(time)
            else:
                steps += [self._step(k) for k in self._at[time]]
        segments = [step for step in steps if isinstance(step, Segment)]
        if any(segment.small is None for segment in segments):  # going to and fro costs more than NumPy gains
            for segment in segments:
                segment.small = None
        constants = {name: self._constant(name) for name in dict.fromkeys(self.outputs) if self._is_constant(name)}
        inputs = [value.name for value in self.scope.graph.input]
        made = {*inputs, *constants, *(name for step in steps for name in step.writes)}
        reads = [name for step in steps for name in step.reads] + self.outputs
        needs = list(dict.fromkeys(name for name in reads if name not in made))
        return Plan(inputs, needs, self.outputs, constants, steps)

    def _constant(self, name: str) -> Array:
        value = self.scope.constants.get(name)
        if value is None:
            raise CutError(f"the sparse initializer {name!r} would have to be passed on")
        self.types.setdefault(
            name, types.tensor_type(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), [*value.shape])
        )
        return value

    def _source(self, name: str) -> str | Array | None:
        """What a step reads: a name, or a constant's value, or None for what is left out."""
        if not name:
            return None
        return self._constant(name) if self._is_constant(name) else name

    def _needed_after(self, time: int) -> set[str]:
        later = {name for t, ks in self._at.items() if t > time for k in ks for name in free_names(self.scope.nodes[k])}
        return later | set(self.outputs)

    def _segment(self, time: int) -> list[Step]:
        """The nodes of one odd time as a session, with the constants that they read, and in NumPy if that can be."""
        nodes = [self.scope.nodes[k] for k in self._at[time]]
        written = {name for node in nodes for name in node.output if name}
        writes = [name for name in dict.fromkeys(n for node in nodes for n in node.output) if name in written]
        wanted = self._needed_after(time)
        writes = [name for name in writes if name in wanted]
        read = list(dict.fromkeys(name for node in nodes for name in free_names(node) if name not in written))
        stored, made, reads = self._gather(read)
        graph = onnx.helper.make_graph(
            [*made, *nodes],
            f"{self.scope.graph.name or 'graph'}_{time}",
            [self._declared(name) for name in reads],
            [onnx.helper.make_empty_tensor_value_info(name) for name in writes],
        )
        for one in stored:
            (graph.sparse_initializer if isinstance(one, onnx.SparseTensorProto) else graph.initializer).append(one)
        data = self._serialised(graph)
        try:
            session = self._make_session(data)
        except Exception as error:
            if not types.is_onnxruntimes(error):
                raise
            raise CutError(f"ONNX Runtime refuses a piece of the cut graph: {error}") from error
        for output in session.get_outputs():
            self.types[output.name] = types.from_words(output.type, output.shape)
            types.refuse_foreign(output.name, self.types[output.name])
        return [Segment(session, reads, writes, small(nodes, reads, writes, self.scope.constants))]

    def _serialised(self, graph: Any) -> bytes:
        versions = {"opset_imports": self._model.opset_import, "ir_version": max(self._model.ir_version, 4)}
        try:
            return serialised(onnx.helper.make_model(graph, **versions), "a piece of the cut graph")
        except FileError as error:
            raise CutError(f"{error}") from error

    def _gather(self, names: Iterable[str]) -> tuple[list[Any], list[Any], list[str]]:
        """Of names: the initializers, the nodes that make constants, in order, and what has to be passed in."""
        constants, stored, made, reads = self.scope.constants, {}, {}, []
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in stored:
                continue
            if (node := constants.maker(name)) is not None:
                if id(node) not in made:
                    made[id(node)] = node
                    waiting += filter(None, node.input)
            elif constants.is_initializer(name):
                stored[name] = constants.initializer(name)
            elif name not in self._own and constants.is_constant(name):
                value = constants.get(name)
                assert value is not None, "a constant without a value"
                stored[name] = onnx.numpy_helper.from_array(value, name)
            else:
                reads.append(name)
        place = {id(node): k for k, node in enumerate(self.scope.nodes)}
        in_order = sorted(made.values(), key=lambda node: place[id(node)])
        return list(stored.values()), in_order, reads[::-1]

    def _declared(self, name: str) -> Any:
        kind = self.types.get(name)
        if not types.is_complete(kind):
            raise CutError(f"the type of {name!r} is not known where the graph would be cut")
        types.refuse_foreign(name, kind)
        value = onnx.ValueInfoProto(name=name)
        value.type.CopyFrom(kind)
        return value

    def _step(self, k: int) -> Step:
        node = self.scope.nodes[k]
        if k in self._views:
            change, sizes, is_bool = self._views[k]
            read, write = node.input[0], node.output[0]
            kind = self.types.get(read)
            element = onnx.TensorProto.BOOL if is_bool else types.element_of(kind)
            if element is not None:
                self.types[write] = types.tensor_type(element, sizes(types.sizes_of(kind)))
            return ViewStep(read, write, change)
        if k in self.scope.taken:
            return self._recurrence(k)
        make = {"If": self._branch, "Loop": self._loop, "Scan": self._scan}[node.op_type]
        try:
            return make(k)
        except FileError:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise CutError(f"the node {label(node)} ({node.op_type}) contradicts itself: {error}") from error

    def _recurrence(self, k: int) -> Step:
        node, parsed = self.scope.nodes[k], self.scope.taken[k]
        x = self.types.get(node.input[0])
        element = types.element_of(x)
        if element is None and self._is_constant(node.input[0]):
            element = onnx.helper.np_dtype_to_tensor_dtype(self._constant(node.input[0]).dtype)
        if element is None:
            raise CutError(f"the type of {node.input[0]!r} is not known where the graph would be cut")
        first, second, *_ = [*(types.sizes_of(x) or []), None, None]
        D, H = parsed.directions, parsed.hidden_size
        y: Sizes = [first, second, D, H] if parsed.layout else [first, D, second, H]
        ends: Sizes = [first, D, H] if parsed.layout else [D, second, H]
        for name, sizes in zip(node.output, (y, ends, ends), strict=False):
            self.types[name] = types.tensor_type(element, sizes)
        sources = [self._source(name) for name in node.input]
        return Recurrence(label(node), parsed, sources, node.output, zero_ends=True)

    # Nodes around graphs

    def _inside(self, k: int, which: int, inputs: Sequence[Any] = ()) -> tuple[Plan, list[Any]]:
        """The plan of a graph inside a node, and the types of its outputs."""
        cut = Cut(self.scope.inner[k][which], self._model, self._make_session, self.types, inputs)
        plan = cut.plan()
        declared = [value.type for value in cut.scope.graph.output]
        found = [cut.types.get(name) for name in plan.outputs]
        return plan, [one if types.sizes_of(one) is not None else two for one, two in zip(declared, found, strict=True)]

    def _branch(self, k: int) -> Step:
        node = self.scope.nodes[k]
        names = [one.name for one in node.attribute if one.HasField("g")]
        then, kinds = self._inside(k, names.index("then_branch"))
        otherwise, others = self._inside(k, names.index("else_branch"))
        for name, kind, other in zip(node.output, kinds, others, strict=True):
            known = kind if kind is not None else other
            element = types.element_of(known)
            same = types.sizes_of(kind) == types.sizes_of(other)
            self.types[name] = known if element is None or same else types.tensor_type(element)
        condition = self._source(node.input[0])
        assert condition is not None, "an If without a condition"
        return Branch(condition, then, otherwise, node.output)

    def _loop(self, k: int) -> Step:
        node = self.scope.nodes[k]
        trips, condition, *carried = (self._source(name) for name in node.input)
        kinds = [self._loose(name) for name in node.input[2:]]
        graph = self.scope.inner[k][0].graph
        ranks = [len(types.sizes_of(value.type) or []) for value in graph.input[:2]]
        fixed = [types.tensor_type(onnx.TensorProto.INT64, [1] * ranks[0])]
        fixed += [types.tensor_type(onnx.TensorProto.BOOL, [1] * ranks[1])]
        body, found = self._inside(k, 0, [*fixed, *kinds])
        n = len(kinds)
        empty = self._scanned_types(node.output[n:], found[1 + n :], [0] * (len(found) - 1 - n))
        self.types |= zip(node.output, map(_unsized, found[1 : 1 + n]), strict=False)
        return Loop(trips, condition, [one for one in carried if one is not None], body, ranks, empty, node.output)

    def _scan(self, k: int) -> Step:
        node, given = self.scope.nodes[k], attributes(self.scope.nodes[k])
        count = given["num_scan_inputs"]
        states, scanned = node.input[: len(node.input) - count], node.input[len(node.input) - count :]
        axes_in = _axes(given, "input", count)
        axes_out = _axes(given, "output", len(node.output) - len(states))
        kinds = [self._loose(name) for name in states]
        for name, (axis, _) in zip(scanned, axes_in, strict=True):
            element = types.element_of(self._type(name))
            sizes = types.sizes_of(self._type(name))
            if sizes:
                sizes = [size for j, size in enumerate(sizes) if j != axis % len(sizes)]
            kinds.append(None if element is None else types.tensor_type(element, sizes))
        body, found = self._inside(k, 0, kinds)
        n = len(states)
        empty = self._scanned_types(node.output[n:], found[n:], [axis for axis, _ in axes_out])
        self.types |= zip(node.output, map(_unsized, found[:n]), strict=False)
        begins, over = ([one for n in names if (one := self._source(n)) is not None] for names in (states, scanned))
        return Scan(begins, over, body, axes_in, axes_out, empty, node.output)

    def _type(self, name: str) -> Any:
        if self._is_constant(name):
            self._constant(name)
        return self.types.get(name)

    def _loose(self, name: str) -> Any:
        """The type of a value that is carried on: its sizes may change from one round to the next."""
        return _unsized(self._type(name))

    def _scanned_types(self, names: Sequence[str], kinds: Sequence[Any], axes: Sequence[int]) -> list[Array]:
        """Note the types of stacked outputs; return what they are if there was nothing to stack."""
        empty = []
        for name, kind, axis in zip(names, kinds, axes, strict=True):
            element, sizes = types.element_of(kind), types.sizes_of(kind)
            if element is None:
                raise CutError(f"the type of {name!r} is not known where the graph would be cut")
            stacked: Sizes = None
            if sizes is not None:
                stacked = list(sizes)
                stacked.insert(axis if axis >= 0 else len(stacked) + 1 + axis, None)
            self.types[name] = types.tensor_type(element, stacked)
            known = [size if isinstance(size, int) else 0 for size in sizes or []]
            empty.append(np.zeros((0, *known), onnx.helper.tensor_dtype_to_np_dtype(element)))
        return empty


def _axes(given: dict[str, Any], which: str, count: int) -> list[Axis]:
    axes = given.get(f"scan_{which}_axes") or [0] * count
    backwards = given.get(f"scan_{which}_directions") or [0] * count
    return [Axis(axis, bool(back)) for axis, back in zip(axes, backwards, strict=True)]


def _unsized(kind: Any) -> Any:
    element = types.element_of(kind)
    return kind if element is None else types.tensor_type(element)

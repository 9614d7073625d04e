"""What a session does, step by step: pieces of the graph in ONNX Runtime, recurrent nodes here, loops around both."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..nodes import Node
from .arithmetic import Small
from .running import Prepared

Array = NDArray[Any]
Env = dict[str, Any]  # values by name


class Run(NamedTuple):
    """What one call of a session hands down to its steps."""

    options: Any = None  # onnxruntime.RunOptions
    progress: Callable[[str, int, int], None] | None = None
    owned: frozenset[int] = frozenset()  # ids of the arrays that the session holds and that nobody else can reach


class Step(ABC):
    """A part of a plan: reads values by name and writes others.

    Attributes
    ----------
    reads, writes : list of str
        Names; "" among `writes` is an output that nobody wants.
    """

    reads: Sequence[str]
    writes: Sequence[str]

    @abstractmethod
    def __call__(self, env: Env, run: Run) -> None:
        """Put the values of `writes` into env."""

    def _write(self, env: Env, values: Sequence[Any]) -> None:
        for name, value in zip(self.writes, values, strict=False):
            if name:
                env[name] = value


class Plan:
    """The steps of a graph, in order.

    Attributes
    ----------
    inputs : list of str
        The graph's own inputs.
    needs : list of str
        Names that it reads of the graphs around it.
    outputs : list of str
        Names of what it returns.
    constants : dict of str to array
        Outputs that are known beforehand.
    """

    def __init__(
        self, inputs: Sequence[str], needs: Sequence[str], outputs: Sequence[str], constants: Env, steps: Sequence[Step]
    ) -> None:
        self.inputs, self.needs, self.outputs = list(inputs), list(needs), list(outputs)
        self.constants, self.steps = constants, list(steps)

    def __call__(self, env: Env, run: Run) -> list[Any]:
        if self.constants:
            env.update(self.constants)
        for step in self.steps:
            step(env, run)
        return [env[name] for name in self.outputs]

    def inside(self, env: Env, values: Sequence[Any], run: Run) -> list[Any]:
        """Run as the graph inside a node: `values` for its inputs, and what it needs of the values around it."""
        inner = {name: env[name] for name in self.needs}
        inner.update(zip(self.inputs, values, strict=True))
        return self(inner, run)


class Segment(Step):
    """Nodes that ONNX Runtime runs, or, where it can be and the arrays are small, NumPy."""

    def __init__(self, session: Any, reads: Sequence[str], writes: Sequence[str], small: Small | None = None) -> None:
        self.session, self.reads, self.writes, self.small = session, list(reads), list(writes), small

    def __call__(self, env: Env, run: Run) -> None:
        if self.small is not None:
            results = self.small([env[name] for name in self.reads])
            if results is not None:
                env.update(zip(self.writes, results, strict=True))
                return
        found = self.session.run(self.writes, {name: env[name] for name in self.reads}, run.options)
        env.update(zip(self.writes, found, strict=True))


class Recurrence(Step):
    """A recurrent node that runs here.

    Parameters
    ----------
    name
        Of the node.
    node
        What its attributes say.
    inputs
        A name, a constant or None for each input of the operator.
    writes
        The names of its outputs.
    zero_ends
        As of `Prepared`.
    """

    def __init__(
        self, name: str, node: Node, inputs: Sequence[str | Array | None], writes: Sequence[str], zero_ends: bool
    ) -> None:
        self.name, self.node, self.writes, self.zero_ends = name, node, list(writes), zero_ends
        self._inputs = [*inputs, *[None] * (12 - len(inputs))]
        self.reads = [one for one in self._inputs if isinstance(one, str)]
        self._last = 7 if node.op_type == "LSTM" else 6
        self._count = 8 if node.stored else 4
        weights = self._weights(self._inputs)
        self._fixed = None if any(isinstance(w, str) for w in weights) else self._prepare(weights, True)
        self._kept: tuple[Sequence[Any], Prepared] | None = None  # of weights that the session owns

    def _prepare(self, weights: Sequence[Any], packed: bool) -> Prepared:
        who = f"the node {self.name} ({self.node.op_type})"
        return Prepared(self.node, weights, who=who, packed=packed, zero_ends=self.zero_ends)

    def _prepared(self, weights: Sequence[Any], owned: frozenset[int]) -> Prepared:
        """Weights that come with the call; packed and kept where they are the session's own, which cannot change."""
        kept = self._kept
        if kept is not None and all(a is b for a, b in zip(weights, kept[0], strict=True)):
            return kept[1]
        if not all(w is None or id(w) in owned for w in weights):
            return self._prepare(weights, False)
        prepared = self._prepare(weights, True)
        self._kept = list(weights), prepared
        return prepared

    def __call__(self, env: Env, run: Run) -> None:
        values: list[Any] = [env[one] if type(one) is str else one for one in self._inputs]
        prepared = self._fixed or self._prepared(self._weights(values), run.owned)
        states, progress = values[5 : self._last], run.progress
        if progress is None:
            found = prepared(values[0], values[4], states)
        else:
            steps = values[0].shape[self.node.layout]
            found = prepared(values[0], values[4], states, lambda done, of: progress(self.name, done, of))
            progress(self.name, steps, steps)
        self._write(env, found)

    def _weights(self, inputs: Sequence[Any]) -> list[Any]:
        """W, R, B and P of the inputs of a node, and of a DynamicQuantizeLSTM its four more."""
        return [*inputs[1:4], *inputs[7:12]][: self._count]


class View(Step):
    """A node beside a recurrent one that NumPy does without a session: it only takes another view, or compares."""

    def __init__(self, read: str, write: str, change: Callable[[Array], Array]) -> None:
        self.reads, self.writes, self._change = [read], [write], change

    def __call__(self, env: Env, run: Run) -> None:
        env[self.writes[0]] = self._change(env[self.reads[0]])


class Branch(Step):
    """If: the graph that the condition chooses."""

    def __init__(self, condition: str | Array, then: Plan, otherwise: Plan, writes: Sequence[str]) -> None:
        self._condition, self._then, self._else = condition, then, otherwise
        self.reads = _names([condition], then, otherwise)
        self.writes = list(writes)

    def __call__(self, env: Env, run: Run) -> None:
        chosen = self._then if _scalar(_value(env, self._condition), bool) else self._else
        self._write(env, chosen.inside(env, [], run))


class Loop(Step):
    """Loop: the body over and over, what it returns carried on, what it scans stacked.

    Parameters
    ----------
    trips, condition
        Names, constants or None.
    carried
        Names or constants of the initial values.
    body
        Its plan.
    ranks
        Of the body's inputs: its iteration number and its condition may be declared as arrays of one.
    empty
        For each scanned output what it is if there is no iteration at all.
    writes
        Names of the outputs.
    """

    def __init__(
        self,
        trips: str | Array | None,
        condition: str | Array | None,
        carried: Sequence[str | Array],
        body: Plan,
        ranks: Sequence[int],
        empty: Sequence[Array],
        writes: Sequence[str],
    ) -> None:
        self._trips, self._condition, self._carried, self._body = trips, condition, list(carried), body
        self._ranks, self._empty = ranks, empty
        self.reads = _names([trips, condition, *carried], body)
        self.writes = list(writes)

    def __call__(self, env: Env, run: Run) -> None:
        trips = None if self._trips is None else _scalar(_value(env, self._trips), int)
        going = self._condition is None or _scalar(_value(env, self._condition), bool)
        values = [_value(env, one) for one in self._carried]
        scanned: list[list[Any]] = [[] for _ in self._empty]
        t = 0
        while going and (trips is None or t < trips):
            number = np.full((1,) * self._ranks[0], t, np.int64)
            flag = np.full((1,) * self._ranks[1], True)
            kept, *rest = self._body.inside(env, [number, flag, *values], run)
            values, found = rest[: len(values)], rest[len(values) :]
            for column, value in zip(scanned, found, strict=True):
                column.append(value)
            going = _scalar(kept, bool)
            t += 1
        stacked = [np.stack(column) if column else empty for column, empty in zip(scanned, self._empty, strict=True)]
        self._write(env, [*values, *stacked])


class Axis(NamedTuple):
    """Along what a Scan reads or writes one of its arrays."""

    axis: int
    backwards: bool


class Scan(Step):
    """Scan: the body over the slices of some inputs, its states carried on, its outputs stacked."""

    def __init__(
        self,
        states: Sequence[str | Array],
        scanned: Sequence[str | Array],
        body: Plan,
        axes_in: Sequence[Axis],
        axes_out: Sequence[Axis],
        empty: Sequence[Array],
        writes: Sequence[str],
    ) -> None:
        self._states, self._scanned, self._body = list(states), list(scanned), body
        self._axes_in, self._axes_out, self._empty = axes_in, axes_out, empty
        self.reads = _names([*states, *scanned], body)
        self.writes = list(writes)

    def __call__(self, env: Env, run: Run) -> None:
        values = [_value(env, one) for one in self._states]
        slices = []
        for one, (axis, backwards) in zip(self._scanned, self._axes_in, strict=True):
            moved = np.moveaxis(_value(env, one), axis, 0)
            slices.append(moved[::-1] if backwards else moved)
        if len({len(array) for array in slices}) > 1:
            raise ValueError(f"Scan got {[len(array) for array in slices]} steps; its inputs must have as many each.")
        collected: list[list[Any]] = [[] for _ in self._axes_out]
        for given in zip(*slices, strict=True):
            found = self._body.inside(env, [*values, *map(np.asarray, given)], run)
            values = found[: len(values)]
            for column, value in zip(collected, found[len(values) :], strict=True):
                column.append(value)
        stacked = []
        for column, (axis, backwards), empty in zip(collected, self._axes_out, self._empty, strict=True):
            array = np.stack(column[:: -1 if backwards else 1]) if column else empty
            stacked.append(np.moveaxis(array, 0, axis))
        self._write(env, [*values, *stacked])


def _names(given: Sequence[str | Array | None], *plans: Plan) -> list[str]:
    """The names among what is given, and what the plans need of the values around them."""
    names = [one for one in given if isinstance(one, str)]
    return list(dict.fromkeys([*names, *(name for plan in plans for name in plan.needs)]))


def _value(env: Mapping[str, Any], one: str | Array) -> Any:
    return env[one] if isinstance(one, str) else one


def _scalar(value: Any, kind: type[Any]) -> Any:
    """The only element of an array."""
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"a condition or a number of iterations has shape {array.shape}; it must be one value.")
    return kind(array.reshape(()).item())

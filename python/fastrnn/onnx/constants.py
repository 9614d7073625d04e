"""What of a graph is known before it runs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..checks import machine_memory, readable
from ..storage import FileError
from .reading import label

Array = NDArray[Any]

_FOLDED = {
    "Constant",
    "Identity",
    "Transpose",
    "Unsqueeze",
    "Squeeze",
    "Concat",
    "Reshape",
    "Flatten",
    "Slice",
    "Split",
}
_FOLDED |= {"Cast", "Gather", "Neg", "Add", "Sub", "Mul"}  # none of them makes much out of little


class Constants:
    """The values of a graph that are known before it runs: initializers, Constants, and simple operators of them.

    Parameters
    ----------
    graph, nodes
        A graph and its nodes in order.
    model_name
        What errors call the model.
    opsets
        The model's opset_import.
    around
        The constants of the graph around it.
    given
        Names that callers may set, so that their initializers are defaults and no constants.
    """

    def __init__(
        self,
        graph: Any,
        nodes: Sequence[Any],
        model_name: str,
        opsets: Any,
        around: "Constants | None" = None,
        given: Iterable[str] = (),
    ) -> None:
        self._name, self._opsets, self._around = model_name, opsets, around
        given = set(given)
        self._tensors = {t.name: t for t in graph.initializer if t.name not in given}
        self._sparse = {s.values.name: s for s in graph.sparse_initializer}
        self._known: dict[str, Array] = {}
        self._makers: dict[str, Any] = {}
        self._bound = {i.name for i in graph.input} | {name for node in nodes for name in node.output}
        for node in nodes:
            if node.op_type in _FOLDED and node.domain in ("", "ai.onnx") and all(map(self.is_constant, node.input)):
                self._makers |= dict.fromkeys(filter(None, node.output), node)

    def is_constant(self, name: str) -> bool:
        """Whether a value is known; of what is left out, "", nothing has to be."""
        if not name or name in self._tensors or name in self._makers:
            return True
        return self._around is not None and name not in self._bound and self._around.is_constant(name)

    def is_initializer(self, name: str) -> bool:
        """Whether it is an initializer, also a sparse one, of this graph or of one around it."""
        return self.initializer(name) is not None

    def initializer(self, name: str) -> Any:
        """The TensorProto or SparseTensorProto of that name, in this graph or one around it."""
        found = self._tensors.get(name, self._sparse.get(name))
        if found is None and self._around is not None and name not in self._bound:
            return self._around.initializer(name)
        return found

    def maker(self, name: str) -> Any:
        """The node of this graph that makes a constant; None if it is an initializer, or of a graph around."""
        return self._makers.get(name)

    def get(self, name: str) -> Array | None:
        """The value of that name, read-only; None where it is no constant.

        Raises
        ------
        FileError
            If its data contradict themselves.
        """
        if name in self._known:
            return self._known[name]
        if name in self._tensors:
            return self._keep(name, value_of(self._tensors[name], self._name))
        if name in self._makers:
            self._compute(name)
            return self._known[name]
        if self._around is not None and name not in self._bound:
            return self._around.get(name)
        return None

    def _keep(self, name: str, value: Array) -> Array:
        value.setflags(write=False)
        self._known[name] = value
        return value

    def _compute(self, name: str) -> None:
        """Run the nodes behind a value in the reference evaluator; their values are kept."""
        from onnx.reference import ReferenceEvaluator

        open_names, nodes = [name], {}
        given: dict[str, Array] = {}
        while open_names:
            one = open_names.pop()
            node = self._makers.get(one)
            if node is None or one in self._known:
                value = self.get(one)
                assert value is not None, "a constant that nothing makes"
                given[one] = value
            elif id(node) not in nodes:
                nodes[id(node)] = node
                open_names += filter(None, node.input)
        order = {id(node): k for k, node in enumerate(self._makers.values())}
        values: dict[str, Array] = given
        for node in sorted(nodes.values(), key=lambda node: order[id(node)]):
            self._refuse_growth(node, [values[n] for n in filter(None, node.input)])
            graph = onnx.helper.make_graph(
                [node],
                "constant",
                [onnx.helper.make_empty_tensor_value_info(n) for n in dict.fromkeys(filter(None, node.input))],
                [onnx.helper.make_empty_tensor_value_info(n) for n in filter(None, node.output)],
            )
            try:
                model = onnx.helper.make_model(graph, opset_imports=self._opsets)
                found = ReferenceEvaluator(model).run(None, {n: values[n] for n in filter(None, node.input)})
            except Exception as error:  # of whatever kind the evaluator raises for what does not fit
                raise FileError(f"{self._name}: the node {label(node)} ({node.op_type}) fails: {error}") from error
            for output, value in zip(filter(None, node.output), found, strict=True):
                values[output] = self._keep(output, np.asarray(value))

    def _refuse_growth(self, node: Any, inputs: Sequence[Array]) -> None:
        """Refuse a node whose output could not be held: a few of them in a row make anything out of nothing."""
        need = 8 * sum(array.nbytes for array in inputs)
        if node.op_type in ("Add", "Sub", "Mul", "Gather"):
            need *= max(1, min(array.size for array in inputs))
        if need > machine_memory():
            who = f"{self._name}: the node {label(node)} ({node.op_type})"
            raise FileError(
                f"{who} may make a constant of {readable(need)}; this machine has {readable(machine_memory())}"
            )


def value_of(tensor: Any, name: str) -> Array:
    """The value of an initializer, read-only.

    Raises
    ------
    FileError
        If its sizes, its type and its data contradict each other.
    """
    try:
        if any(size < 0 for size in tensor.dims):
            raise ValueError(f"its sizes are {list(tensor.dims)}")
        value = np.array(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise FileError(f"{name}: the initializer {tensor.name!r} contradicts itself: {error}") from error
    value.setflags(write=False)
    return value


def constants_of(graph: Any, nodes: Sequence[Any], model: Any, name: str, around: Constants | None = None) -> Constants:
    """The constants of a graph of a model; of the outermost one, initializers that callers may replace are none."""
    given = [i.name for i in graph.input] if model.ir_version >= 4 and around is None else []
    return Constants(graph, nodes, name, model.opset_import, around, given)

"""Which recurrent nodes of a model run here, in whatever graph they stand, and why the others do not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..checks import printable
from ..nodes import DOMAINS, OPERATORS, Node, departure, parse, unknown_operator, unused, weight_names
from ..storage import FileError
from .constants import Constants, constants_of
from .reading import attributes, label, opset, ordered, subgraphs
from .running import Prepared

_AROUND = ("If", "Loop", "Scan")  # the nodes around graphs that this package can run itself
_RELATIVES = ("DynamicQuantizeLSTM", "AttnLSTM")  # of ONNX Runtime's own domain


@dataclass
class Report:
    """What `accelerate` did.

    Attributes
    ----------
    taken : dict of str to str
        Names of the recurrent nodes that fastrnn computes, after those of the nodes around them, and what they are.
    left : dict of str to str
        Names of those that ONNX Runtime computes, and why.
    sessions : int
        How many pieces ONNX Runtime runs.
    """

    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    sessions: int = 0

    def __contains__(self, name: object) -> bool:
        return name in self.taken or name in self.left

    def __str__(self) -> str:
        lines = [f"fastrnn runs {len(self.taken)} of {len(self.taken) + len(self.left)} recurrent nodes"]
        lines[0] += f", ONNX Runtime the rest in {self.sessions} piece{'s' * (self.sessions != 1)}"
        width = max(map(len, (*self.taken, *self.left)), default=0)
        lines += [f"  {name:{width}}  {what}" for name, what in self.taken.items()]
        lines += [f"  {name:{width}}  left to ONNX Runtime: {why}" for name, why in self.left.items()]
        return "\n".join(map(printable, lines))


@dataclass
class Scope:
    """A graph, its nodes in order, its constants, the nodes to take, and the scopes inside its nodes.

    The keys of `taken` and `inner` are the nodes' places in `nodes`.
    """

    graph: Any
    nodes: list[Any]
    constants: Constants
    taken: dict[int, Node] = field(default_factory=dict)
    inner: dict[int, list["Scope"]] = field(default_factory=dict)

    def any_taken(self) -> bool:
        """Whether a node of it, or inside it, is taken."""
        return bool(self.taken) or any(scope.any_taken() for scopes in self.inner.values() for scope in scopes)


def choose(model: Any, name: str) -> tuple[Scope, Report]:
    """Look at every node of a model."""
    report = Report()

    def look(graph: Any, around: Constants | None, path: str, blocked: str | None) -> Scope:
        nodes = ordered(graph, name)
        scope = Scope(graph, nodes, constants_of(graph, nodes, model, name, around))
        for k, node in enumerate(nodes):
            if node.op_type in OPERATORS and node.domain in DOMAINS:
                where = unused(path + label(node), report)
                found = blocked or _parsed(node, scope.constants, opset(model))
                if isinstance(found, str):
                    report.left[where] = found
                else:
                    report.taken[where] = describe(found)
                    scope.taken[k] = found
            elif node.op_type in _RELATIVES:
                report.left[unused(path + label(node), report)] = f"{node.domain}.{node.op_type} is another operator"
            else:
                why = blocked or _no_way_into(node, opset(model))
                scope.inner[k] = [
                    look(inner, scope.constants, f"{path}{label(node)}/", why) for inner in subgraphs(node)
                ]
        return scope

    return look(model.graph, None, "", None), report


def _no_way_into(node: Any, version: int) -> str | None:
    if node.op_type not in _AROUND or node.domain not in DOMAINS:
        return f"it stands inside {node.op_type} {label(node)}"
    if node.op_type == "Scan" and version < 9:
        return f"it stands inside Scan {label(node)} of opset 8"
    return None


def _parsed(node: Any, constants: Constants, version: int) -> Node | str:
    """The description of a node that can be taken, or why it cannot."""
    if problem := unknown_operator(node.op_type, version, len(node.input)):
        return problem
    try:
        found = parse(node.op_type, attributes(node), bool(node.input[7:8] and node.input[7]), f"{node.op_type} node")
        names = weight_names(node.input)
        weights = [constants.get(one) if one else None for one in names]
        if all(w is not None or not one for w, one in zip(weights, names, strict=True)):
            Prepared(found, weights, who=f"{node.op_type} node", packed=False)
    except FileError:
        raise
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return departure(found) or found


def describe(node: Node) -> str:
    """A node in words."""
    parts = [f"hidden_size={node.hidden_size}"]
    parts += [node.direction] * (node.direction != "forward")
    parts += ["layout=1"] * node.layout
    parts += ["linear_before_reset"] * node.linear_before_reset
    if node.op_type == "RNN":
        parts += [side[0].name for side in node.activations]
    return f"{node.op_type}({', '.join(parts)})"


def recurrent_nodes(model: Any, name: str) -> Iterator[tuple[str, Any, Constants, Callable[[str], Any]]]:
    """Every RNN, GRU and LSTM node of a model: its unique name, itself, what is constant there, who makes a value."""
    seen = Report()

    def into(graph: Any, around: Constants | None, makers: dict[str, Any]) -> Iterator[Any]:
        nodes = ordered(graph, name)
        constants = constants_of(graph, nodes, model, name, around)
        makers = {**makers, **{output: node for node in nodes for output in node.output if output}}
        for node in nodes:
            if node.op_type in OPERATORS and node.domain in DOMAINS:
                seen.taken[where := unused(label(node), seen)] = node.op_type
                yield where, node, constants, makers.get
            for inner in subgraphs(node):
                yield from into(inner, constants, makers)

    yield from into(model.graph, None, {})

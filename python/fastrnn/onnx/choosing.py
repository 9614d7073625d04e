"""Which recurrent nodes of a model run here, in whatever graph they stand, and why the others do not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..checks import Problems, printable
from ..frozen import Words, as_given, check_matrices
from ..nodes import DOMAINS, QUANTIZED, Node, departure, operator_of, parse, unknown_operator, unused, weight_names
from ..storage import FileError
from .constants import Constants, constants_of
from .reading import attributes, label, opset, ordered, subgraphs
from .running import Prepared, as_parameters

_AROUND = ("If", "Loop", "Scan")  # the nodes around graphs that this package can run itself
_RELATIVES = ("DynamicQuantizeLSTM", "AttnLSTM")  # of ONNX Runtime's own domain, or what other domains call so


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


def choose(model: Any, name: str, words: Words | None = None) -> tuple[Scope, Report]:
    """Look at every node of a model; `words`: what to keep weights as that are constant and float32."""
    report = Report()

    def look(graph: Any, around: Constants | None, path: str, blocked: str | None) -> Scope:
        nodes = ordered(graph, name)
        scope = Scope(graph, nodes, constants_of(graph, nodes, model, name, around))
        for k, node in enumerate(nodes):
            if operator_of(node.domain, node.op_type):
                where = unused(path + label(node), report)
                found = blocked or _parsed(node, scope.constants, opset(model))
                if isinstance(found, str):
                    report.left[where] = found
                else:
                    scope.taken[k], more = _in_bits(found, node, scope.constants, words)
                    report.taken[where] = describe(found) + more
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
        names = weight_names(node.input, node.op_type)
        weights = [constants.get(one) if one else None for one in names]
        if found.stored and any(w is None and one for w, one in zip(weights, names, strict=True)):
            return "its weights come with the call"
        if all(w is not None or not one for w, one in zip(weights, names, strict=True)):
            Prepared(found, weights, who=f"{node.op_type} node", packed=False)
    except FileError:
        raise
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return departure(found) or found


def _in_bits(parsed: Node, node: Any, constants: Constants, words: Words | None) -> tuple[Node, str]:
    """A node with weights in fewer bits, or as it was where they stay in full, and what the report says of that."""
    if words is None or parsed.stored:
        return parsed, ""
    weights = [constants.get(one) if one else None for one in weight_names(node.input, node.op_type)]
    problems = Problems(lambda: "the node")
    if weights[0] is None or weights[1] is None:
        why = "they come with the call"
    elif weights[0].dtype != np.float32:
        why = f"they are {weights[0].dtype}"
    else:
        check_matrices(problems, as_parameters(parsed, weights), words, "")
        why = " ".join(problems.text().split())
    if why:
        return parsed, f", weights in full: {why}"
    return replace(parsed, words=words), f", weights={as_given(words)!r}"


def describe(node: Node) -> str:
    """A node in words."""
    parts = [f"hidden_size={node.hidden_size}"]
    parts += [node.direction] * (node.direction != "forward")
    parts += ["layout=1"] * node.layout
    parts += ["linear_before_reset"] * node.linear_before_reset
    if node.op_type == "RNN":
        parts += [side[0].name for side in node.activations]
    return f"{QUANTIZED if node.stored else node.op_type}({', '.join(parts)})"


def recurrent_nodes(model: Any, name: str) -> Iterator[tuple[str, Any, Constants, Callable[[str], Any]]]:
    """Every recurrent node of a model: its unique name, itself, what is constant there, who makes a value."""
    seen = Report()

    def into(graph: Any, around: Constants | None, makers: dict[str, Any]) -> Iterator[Any]:
        nodes = ordered(graph, name)
        constants = constants_of(graph, nodes, model, name, around)
        makers = {**makers, **{output: node for node in nodes for output in node.output if output}}
        for node in nodes:
            if operator_of(node.domain, node.op_type):
                seen.taken[where := unused(label(node), seen)] = node.op_type
                yield where, node, constants, makers.get
            for inner in subgraphs(node):
                yield from into(inner, constants, makers)

    yield from into(model.graph, None, {})

"""A recurrent node of ONNX by its attributes and the shapes of its weights; of what it takes to read one, nothing."""

import math
import operator
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checks import Problems
from .convert import ONNX_GATES
from .frozen import Words
from .layers import GRU, LSTM, RNN
from .options import NUMBERS, General

OPERATORS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")  # the last two are the LSTM's
WEIGHTS = ("W", "R", "B", "P")  # among the inputs
OLDEST = 7  # the opset that defined the three operators as they are
DOMAINS = ("", "ai.onnx")
# ONNX Runtime's own LSTM with weights of 8 bits, whose inputs stand behind those of an LSTM
QUANTIZED, QUANTIZED_DOMAIN = "DynamicQuantizeLSTM", "com.microsoft"
QUANTIZED_INPUTS = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
_USUAL = {op_type: tuple(name.lower() for name in names) for op_type, names in _DEFAULTS.items()}

# The activations by their names in lower case, as which ONNX Runtime compares them, with alpha and beta where there
# is one.
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    name.replace("_", ""): (
        name.title().replace("_", ""),
        numbers[0] if numbers else None,
        numbers[1] if len(numbers) > 1 else None,
    )
    for name, numbers in NUMBERS.items()
}
# The attributes: of which operators, and whether a number, a list of numbers, a word or a list of words.
_ATTRIBUTES: dict[str, tuple[tuple[str, ...], str]] = {
    "activation_alpha": (("RNN", "GRU", "LSTM"), "numbers"),
    "activation_beta": (("RNN", "GRU", "LSTM"), "numbers"),
    "activations": (("RNN", "GRU", "LSTM"), "words"),
    "clip": (("RNN", "GRU", "LSTM"), "number"),
    "direction": (("RNN", "GRU", "LSTM"), "word"),
    "hidden_size": (("RNN", "GRU", "LSTM"), "integer"),
    "layout": (("RNN", "GRU", "LSTM"), "integer"),
    "input_forget": (("LSTM",), "integer"),
    "linear_before_reset": (("GRU",), "integer"),
}


@dataclass(frozen=True)
class Activation:
    """One activation function with what it is scaled by; None where it has no such number.

    `assumed`: a number was not given, so that it is the text's default.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None
    assumed: bool = False

    def as_option(self) -> Any:
        """Return it as a layer's option has it."""
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", self.name).lower()
        numbers = [value for value in (self.alpha, self.beta) if value is not None]
        return (name, *numbers) if numbers else name

    def __str__(self) -> str:
        given = [
            f"{word}={value:g}" for word, value in (("alpha", self.alpha), ("beta", self.beta)) if value is not None
        ]
        return self.name + (f"({', '.join(given)})" if given else "")


@dataclass(frozen=True)
class Node:
    """What the attributes of an RNN, GRU or LSTM node say, with the defaults of the text.

    Attributes
    ----------
    op_type : {"RNN", "GRU", "LSTM"}
    hidden_size, layout : int
    direction : {"forward", "reverse", "bidirectional"}
    activations : tuple of tuples of Activation
        Of each direction, in the order f, g, h.
    clip : float or None
    input_forget, linear_before_reset : bool
    peepholes : bool
        Whether the node has the input P.
    words : pair of str or None
        What its weights are packed as, where they are packed once, in place of their own type.
    stored : bool
        Whether it is a DynamicQuantizeLSTM, whose weights are int8 already.
    """

    op_type: str
    hidden_size: int
    direction: str
    activations: tuple[tuple[Activation, ...], ...]
    clip: float | None
    layout: int
    input_forget: bool
    linear_before_reset: bool
    peepholes: bool
    words: Words | None = None
    stored: bool = False

    @property
    def directions(self) -> int:
        return DIRECTIONS[self.direction]

    def options(self) -> dict[str, Any]:
        """Return the options, beside the sizes, of the layer that computes it."""
        sides: list[Any] = [tuple(one.as_option() for one in side) for side in self.activations]
        if self.op_type == "RNN":
            sides = [side[0] for side in sides]
        activations = sides[0] if sides[0] == sides[-1] else dict(zip(("forward", "reverse"), sides, strict=True))
        if self.op_type == "RNN":
            return {"nonlinearity": activations, "clip": self.clip}
        usual = all(tuple(one.as_option() for one in side) == _USUAL[self.op_type] for side in self.activations)
        shared = {"activations": None if usual else activations, "clip": self.clip}
        if self.op_type == "GRU":
            return {"reset_after": self.linear_before_reset, **shared}
        return {"peephole": self.peepholes, "coupled": self.input_forget, **shared}


def unused(name: str, taken: Container[str]) -> str:
    """The name, numbered if another recurrent node of the model has it."""
    n, found = 2, name
    while found in taken:
        found, n = f"{name} ({n})", n + 1
    return found


def operator_of(domain: str, op_type: str) -> str | None:
    """Return the operator of a node that is computed here; None of another."""
    if domain in DOMAINS:
        return op_type if op_type in OPERATORS else None
    return QUANTIZED if (domain, op_type) == (QUANTIZED_DOMAIN, QUANTIZED) else None


def inputs_of(operator: str) -> tuple[str, ...]:
    """Return the names of its inputs, those left out behind the last one too."""
    if operator == QUANTIZED:
        return *INPUTS, *QUANTIZED_INPUTS
    return INPUTS if operator == "LSTM" else INPUTS[:6]


def weight_names(inputs: Sequence[str], operator: str = "LSTM") -> list[str]:
    """The names of W, R, B and P among the inputs of a node, and of a DynamicQuantizeLSTM its four more.

    "" stands for what it leaves out.
    """
    found = [*inputs, *[""] * (len(INPUTS) + len(QUANTIZED_INPUTS))]
    more = found[len(INPUTS) :][: len(QUANTIZED_INPUTS)] if operator == QUANTIZED else []
    return [*found[1:4], found[INPUTS.index("P")], *more]


def unknown_operator(op_type: str, version: int, inputs: int) -> str | None:
    """Say what of an opset and a number of inputs is not of the operators as they are known here; None: nothing."""
    if version < OLDEST:
        return f"opset {version}; the operators are as they are since opset {OLDEST}"
    most = len(inputs_of(op_type))
    if 3 <= inputs <= most:
        return None
    return f"it has {inputs} inputs instead of 3 to {most}"


def no_layer(node: Node, missing: Sequence[str]) -> str | None:
    """Say why no layer of fastrnn is equal to a node, `missing` of whose weights are not constant; None: one is."""
    if node.direction == "reverse":
        return "its attribute direction=reverse is of no layer: they run forwards or both ways"
    return f"its weights {', '.join(missing)} are not known before the model runs" if missing else None


def check_weights(problems: Problems, node: Node, shapes: Sequence[tuple[int, ...] | None]) -> int:
    """Check the shapes of W, R, B and P, None for what is left out; return the number of features."""
    W = shapes[0]
    D, H = node.directions, node.hidden_size
    rows = len(ONNX_GATES[node.op_type]) * H
    features = W[2] if W is not None and len(W) == 3 else 0
    wanted = ((D, rows, features), (D, rows, H), (D, 2 * rows), (D, 3 * H))
    for name, shape, want in zip(WEIGHTS, shapes, wanted, strict=True):
        if shape is None and name in ("W", "R"):
            problems.value(f"no {name}", "It is not optional.")
        elif shape is not None and (shape != want or 0 in want):
            text = f"({D}, {rows}, features), features at least 1" if name == "W" else str(want)
            why = f"With direction={node.direction} and hidden_size={H} it must be {text}."
            problems.shape(f"{name} with shape {shape}", why)
    return features


def departure(node: Node) -> str | None:
    """Say where ONNX Runtime (1.32) departs from the text of a node, which fastrnn follows; None: nowhere."""
    if node.op_type == "LSTM" and node.clip is not None:
        return f"with clip={node.clip:g} ONNX Runtime does not clip the cell state on its way into the output"
    for one in (one for side in node.activations for one in side):
        if one.assumed and one.name in ("Affine", "ThresholdedRelu", "ScaledTanh"):
            return f"ONNX Runtime has other defaults of {one.name} than the text"
    return None


def activation_attributes(layer: RNN | GRU | LSTM) -> dict[str, Any]:
    """Return the attributes of a node for the activations and the clip of a layer, where they are not the usual."""
    chosen = layer._general()
    if chosen is None and layer._cell() == "rnn_relu":  # Tanh is what a node without attributes has
        chosen = General(activations=[[("relu", 0.0, 0.0)]])
    return {} if chosen is None else general_attributes(chosen, layer.bidirectional)


def general_attributes(chosen: General, bidirectional: bool) -> dict[str, Any]:
    """Return the attributes of a node for what makes a cell another than the usual one."""
    clip, coupled, _, sides, _ = chosen
    ones = [one for side in ([*sides, *sides] if bidirectional and len(sides) == 1 else sides) for one in side]
    counts = [len(NUMBERS[name]) for name, _, _ in ones]
    found: dict[str, Any] = {"activations": [_ACTIVATIONS[name.replace("_", "")][0] for name, _, _ in ones]}
    alphas = [alpha for count, (_, alpha, _) in zip(counts, ones, strict=True) if count]
    betas = [beta for count, (_, _, beta) in zip(counts, ones, strict=True) if count > 1]
    more = {
        "clip": [] if math.isinf(clip) else clip,
        "input_forget": int(coupled),
        "activation_alpha": alphas,
        "activation_beta": betas,
    }
    return {**found, **{key: value for key, value in more.items() if value}}


def parse(op_type: str, attributes: Mapping[str, Any], peepholes: bool, who: str) -> Node:
    """Read the attributes of a node, and all that does not fit in them.

    Parameters
    ----------
    op_type
        One of OPERATORS, or DynamicQuantizeLSTM.
    attributes
        By name, as plain values: integers, floats, str or bytes, and lists of them.
    peepholes
        Whether it has the input P.
    who
        The subject of the error.

    Raises
    ------
    ValueError, TypeError
        With every attribute that does not fit.
    """
    problems = Problems(lambda: who)
    stored = op_type == QUANTIZED
    named, op_type = op_type, "LSTM" if stored else op_type
    given: dict[str, Any] = {}
    for name, value in attributes.items():
        operators, kind = _ATTRIBUTES.get(name, ((), ""))
        if op_type not in operators or (stored and name == "layout"):
            known = ", ".join(
                k for k, (ops, _) in _ATTRIBUTES.items() if op_type in ops and not (stored and k == "layout")
            )
            since = "" if stored else " from opset 7 on"
            problems.value(f"the attribute {name}", f"The attributes of {named}{since} are {known}.")
        elif value is not None:
            given[name] = _read(problems, name, value, kind)
    problems.refuse()

    if "hidden_size" not in given:
        problems.value("no attribute hidden_size", "It must be there: the number of hidden units, at least 1.")
    elif given["hidden_size"] < 1:
        problems.value(f"hidden_size={given['hidden_size']}", "It must be at least 1.")
    direction = given.get("direction", "forward")
    if direction not in DIRECTIONS:
        problems.value(f"direction={direction!r}", 'It must be "forward", "reverse" or "bidirectional".')
    layout = given.get("layout", 0)
    if layout not in (0, 1):
        problems.value(f"layout={layout}", "It must be 0, time first, or 1, batch first.")
    clip = given.get("clip")
    if clip is not None and not clip > 0:
        problems.value(f"clip={clip}", "It must be above 0, or left out.")
    activations = _activations(problems, op_type, DIRECTIONS.get(direction, 1), given)
    problems.refuse()
    return Node(
        op_type,
        given["hidden_size"],
        direction,
        activations,
        clip,
        layout,
        bool(given.get("input_forget", 0)),
        bool(given.get("linear_before_reset", 0)),
        peepholes,
        ("int8", "int8") if stored else None,
        stored,
    )


def _read(problems: Problems, name: str, value: Any, kind: str) -> Any:
    """Return an attribute as a plain value of its kind; note what is none."""
    reader: dict[str, Callable[[Any], Any]] = {"integer": operator.index, "number": float, "word": _word}
    try:
        if kind in reader:
            return reader[kind](value)
        if isinstance(value, (str, bytes)):
            raise TypeError
        return [_word(v) if kind == "words" else float(v) for v in value]
    except (TypeError, ValueError, OverflowError):
        form = {"integer": "an integer", "number": "a number", "word": "a string"}.get(kind, f"a list of {kind}")
        problems.type(f"{name}={value!r}", f"It must be {form}.")


def _word(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise TypeError
    return value


def _activations(
    problems: Problems, op_type: str, directions: int, given: Mapping[str, Any]
) -> tuple[tuple[Activation, ...], ...]:
    """Return the activations of each direction; alphas and betas are consumed by the functions that have them."""
    each = _DEFAULTS[op_type]
    names: Sequence[str] = given.get("activations") or each * directions
    if op_type == "RNN" and len(names) == 2 and directions == 1:
        names = names[:1]  # the default of the text itself names two
    if len(names) != len(each) * directions:
        why = f"{op_type} with {directions} direction{'s' * (directions > 1)} has {len(each) * directions}."
        problems.value(f"{len(names)} activations", why)
        return ()
    alphas, betas = iter(given.get("activation_alpha", ())), iter(given.get("activation_beta", ()))
    found = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            known = ", ".join(word for word, _, _ in _ACTIVATIONS.values())
            problems.value(f"the activation {name!r}", f"Known are {known}.")
            return ()
        word, alpha, beta = _ACTIVATIONS[name.lower()]
        a, b = _next(alphas, alpha), _next(betas, beta)
        assumed = (alpha is not None and a is None) or (beta is not None and b is None)
        found.append(Activation(word, alpha if a is None else a, beta if b is None else b, assumed))
    return tuple(tuple(found[k * len(each) : (k + 1) * len(each)]) for k in range(directions))


def _next(values: Any, default: float | None) -> float | None:
    return None if default is None else next(values, None)

"""A recurrent node by its attributes."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import Problems
from ..frozen import Words
from ..layers import GRU, LSTM, RNN
from ..options import NUMBERS
from . import quantized

OPERATORS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")  # the last two are the LSTM's
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}

_DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}

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
        shared = {"activations": activations, "clip": self.clip}
        if self.op_type == "GRU":
            return {"reset_after": self.linear_before_reset, **shared}
        return {"peephole": self.peepholes, "coupled": self.input_forget, **shared}


def operator_of(node: Any) -> str | None:
    """Return the operator of a NodeProto that is computed here; None of another."""
    if node.domain in ("", "ai.onnx"):
        return str(node.op_type) if node.op_type in OPERATORS else None
    return quantized.OPERATOR if (node.domain, node.op_type) == (quantized.DOMAIN, quantized.OPERATOR) else None


def inputs_of(operator: str) -> tuple[str, ...]:
    """Return the names of its inputs, those left out behind the last one too."""
    return (
        (*INPUTS, *quantized.INPUTS) if operator == quantized.OPERATOR else INPUTS if operator == "LSTM" else INPUTS[:6]
    )


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
    found: dict[str, Any] = {} if layer.clip is None else {"clip": layer.clip}
    given = layer.nonlinearity if isinstance(layer, RNN) else layer.activations
    if given is None:
        return found
    sides = list(given.values()) if isinstance(given, Mapping) else [given] * (1 + layer.bidirectional)
    chosen = sides if isinstance(layer, RNN) else [one for side in sides for one in side]
    split: list[tuple[str, Sequence[float]]] = [
        (one, ()) if isinstance(one, str) else (one[0], one[1:]) for one in chosen
    ]
    names = [_ACTIVATIONS[name.replace("_", "")][0] for name, _ in split]
    alphas = [numbers[0] for _, numbers in split if numbers]
    betas = [numbers[1] for _, numbers in split if len(numbers) > 1]
    more = {"activation_alpha": alphas, "activation_beta": betas}
    return {**found, "activations": names, **{key: values for key, values in more.items() if values}}


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
    stored = op_type == quantized.OPERATOR
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

"""The options of a layer, read and checked.

Activation functions, clipping, peepholes and the coupled gate, as ONNX has them, make a cell another than the usual
one, and so do zoneout and recurrent dropout: a layer with none of these runs the kernels of the usual cell; any of them
takes the general kernels. Layer normalisation has kernels of its own, which know none of these options.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .checks import MAX_LAYERS, Problems

# alpha and beta where a function has them, and what they are by default: the ONNX operators' own
NUMBERS: Mapping[str, tuple[float, ...]] = {
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01,),
    "thresholded_relu": (1.0,),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0,),
    "softsign": (),
    "softplus": (),
}
NAMES = tuple(NUMBERS)
# Of the layers' options; those without one are always told.
DEFAULTS: Mapping[str, Any] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "bidirectional": False,
    "dropout": 0,
    "proj_size": 0,
    "heads": 1,
    "layer_norm": False,
    "peephole": False,
    "coupled": False,
    "clip": None,
    "activations": None,
    "forget_gate": "sigmoid",
    "zoneout": 0,
    "recurrent_dropout": 0,
    "recurrent_dropout_mode": "sequence",
}

# a name, or (name, alpha) or (name, alpha, beta)
Activation: TypeAlias = str | tuple[str, float] | tuple[str, float, float]
# one for each use of the cell; apart for each direction as {"forward": ..., "reverse": ...}
Activations: TypeAlias = Sequence[Activation] | Mapping[str, Sequence[Activation]]
# a probability for all states, or those of h and of c
Zoneout: TypeAlias = float | tuple[float, float]


class General(NamedTuple):
    """What the core is told of a cell that is not a usual one; it reads the fields by their names.

    Attributes
    ----------
    activations
        Of each direction (name, alpha, beta) for each use.
    zoneout
        Of h and of c.
    """

    clip: float = math.inf
    coupled: bool = False
    peephole: bool = False
    activations: Sequence[Sequence[tuple[str, float, float]]] = ()
    zoneout: tuple[float, float] = (0.0, 0.0)


def read_options(name: str, options: Mapping[str, Any], activations: int) -> dict[str, Any]:
    """Check a layer's constructor arguments, of a cell with so many activations, and return them as plain values.

    Raises
    ------
    TypeError, ValueError
        With every argument that does not fit.
    """
    problems = Problems(lambda: name)
    read = dict(options)
    for key, value in options.items():
        got = f"{key}={value!r}"
        if key in ("input_size", "hidden_size", "num_layers", "proj_size", "heads"):
            least = 0 if key == "proj_size" else 1
            if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
                problems.type(got, f"{key} must be an integer.")
            elif operator.index(value) < least:
                problems.value(got, f"{key} must be at least {least}.")
            elif key == "num_layers" and value > MAX_LAYERS:
                problems.value(got, f"num_layers must be at most {MAX_LAYERS}.")
            else:
                read[key] = operator.index(value)
        elif key in ("bias", "batch_first", "bidirectional", "reset_after", "peephole", "coupled", "layer_norm"):
            if not isinstance(value, (bool, np.bool_)):
                problems.type(got, f"{key} must be True or False.")
            read[key] = bool(value)
        elif key in ("dropout", "recurrent_dropout"):
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
                problems.type(got, f"{key} must be a number in 0..1, the probability of dropping an element.")
            elif not 0 <= value <= 1:
                problems.value(got, f"{key} is the probability of dropping an element and must be in 0..1.")
            else:
                read[key] = float(value)
        elif key == "recurrent_dropout_mode":
            if not isinstance(value, str) or value not in ("sequence", "step"):
                problems.value(got, 'recurrent_dropout_mode must be "sequence" or "step".')
        elif key == "zoneout":
            read[key] = read_zoneout(problems, value, activations == 3)
        elif key == "nonlinearity":
            read[key] = read_nonlinearity(problems, value, options["bidirectional"])
        elif key == "activations" and value is not None:
            read[key] = read_activations(problems, key, value, activations, options["bidirectional"])
        elif key == "clip":
            read[key] = read_clip(problems, value)
        elif key == "forget_gate":
            if not isinstance(value, str) or value not in ("sigmoid", "exponential"):
                problems.value(got, 'forget_gate must be "sigmoid" or "exponential".')
        elif key == "dtype":
            read[key] = _layer_dtype(problems, value)
    proj_size, hidden_size = read.get("proj_size", 0), read["hidden_size"]
    if isinstance(proj_size, int) and isinstance(hidden_size, int) and proj_size >= hidden_size > 0:
        why = f"A projection makes the output smaller: proj_size must be below hidden_size, {hidden_size}; 0 is none."
        problems.value(f"proj_size={proj_size}", why)
    _check_heads(problems, read.get("heads", 1), hidden_size, proj_size)
    _check_layer_norm(problems, read)
    problems.refuse()
    return read


def _check_heads(problems: Problems, heads: Any, hidden_size: Any, proj_size: Any) -> None:
    if not all(isinstance(size, int) for size in (heads, hidden_size, proj_size)) or heads < 2:
        return
    if hidden_size > 0 and hidden_size % heads:
        problems.value(f"heads={heads}", f"heads must divide hidden_size, {hidden_size}: each has as many units.")
    if proj_size > 0:
        why = f"A projection mixes the heads: leave one of heads={heads} and proj_size={proj_size} away."
        problems.value(f"heads={heads}", why)


def _check_layer_norm(problems: Problems, read: Mapping[str, Any]) -> None:
    if read.get("layer_norm") is not True:
        return
    if read.get("reset_after") is False:
        why = "The candidate of reset_after=False has a product of its own: layer_norm=True takes reset_after=True."
        problems.value("layer_norm=True with reset_after=False", why)
    others: dict[str, Any] = {"proj_size": 0, "peephole": False, "coupled": False, "activations": None, "clip": None}
    others |= {"zoneout": 0.0, "recurrent_dropout": 0.0}
    given = [key for key, usual in others.items() if read.get(key, usual) != usual]
    if given:
        why = f"Layer normalisation is for the usual equations: leave it or {' and '.join(given)} away."
        problems.value(f"layer_norm=True with {', '.join(given)}", why)


def _layer_dtype(problems: Problems, value: object) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]
    except TypeError as error:
        problems.type(f"dtype={value!r}", f"dtype must be np.float32 or np.float64: {error}.")
        return np.dtype(np.float32)
    if value is None or dtype not in (np.float32, np.float64):
        problems.type(f"dtype={value!r}", "dtype must be np.float32 or np.float64.")
    return dtype


def read_activation(problems: Problems, got: str, value: Any) -> Activation:
    """Return a name, or the name with all of its numbers."""
    given: list[Any] = [value] if isinstance(value, str) else list(value) if isinstance(value, (tuple, list)) else []
    name, *numbers = given or [None]
    if not isinstance(name, str) or name not in NUMBERS:
        problems.value(got, f"An activation is one of {', '.join(NAMES)}.")
        return "tanh"
    defaults = NUMBERS[name]
    if len(numbers) > len(defaults):
        takes = ["no number", "one number, alpha", "two numbers, alpha and beta"][len(defaults)]
        problems.value(got, f"{name} takes {takes}.")
        return name
    if not all(_is_number(n) for n in numbers):
        problems.value(got, "alpha and beta must be finite numbers.")
        return name
    filled = (*(float(n) for n in numbers), *defaults[len(numbers) :])
    return (name, *filled) if filled else name  # type: ignore[return-value]


def read_activations(problems: Problems, key: str, value: Any, count: int, bidirectional: object) -> Any:
    """Return the activations of a cell that has so many, of each direction where they differ, with all numbers."""
    if isinstance(value, Mapping):
        if set(value) != {"forward", "reverse"} or bidirectional is not True:
            why = 'A mapping names those of both directions, "forward" and "reverse", of a bidirectional layer.'
            problems.value(f"{key}={value!r}", why)
            return None
        both = {d: read_activations(problems, key, value[d], count, False) for d in ("forward", "reverse")}
        return both["forward"] if both["forward"] == both["reverse"] else both
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        uses = ["that of h", "those of the gates and the candidate", "those of the gates, the candidate and c"][
            count - 1
        ]
        problems.value(f"{key}={value!r}", f"It must be a sequence of {count}: {uses}.")
        return None
    return tuple(read_activation(problems, f"{one!r} among its {key}", one) for one in value)


def read_nonlinearity(problems: Problems, value: Any, bidirectional: object) -> Any:
    """Return the activation of h, of each direction where they differ, with all numbers."""
    if isinstance(value, Mapping):
        wrapped = {direction: (one,) for direction, one in value.items()}
        read = read_activations(problems, "nonlinearity", wrapped, 1, bidirectional)
        return {d: one[0] for d, one in read.items()} if isinstance(read, dict) else read and read[0]
    return read_activation(problems, f"nonlinearity={value!r}", value)


def read_clip(problems: Problems, value: Any) -> float | None:
    """Return the bound on what enters an activation; None is none."""
    if value is None:
        return None
    if not _is_number(value) or value <= 0:
        problems.value(f"clip={value!r}", "clip must be a positive number, or None for none.")
        return None
    return float(value)


def read_zoneout(problems: Problems, value: Any, has_c: bool) -> Zoneout:
    """Return the probability that a state stays, of h and c apart where they differ."""
    given = list(value) if has_c and isinstance(value, (tuple, list)) else [value]
    if len(given) > 2 or not given or not all(_is_number(one) and 0 <= one <= 1 for one in given):
        pair = ", or a pair of these of h and c" if has_c else ""
        problems.value(f"zoneout={value!r}", f"zoneout must be a number in 0..1, the probability to stay{pair}.")
        return 0.0
    h, c = float(given[0]), float(given[-1])
    if len(given) == 1 and isinstance(value, (tuple, list)):
        problems.value(f"zoneout={value!r}", "A pair has the probabilities of h and of c.")
    return h if h == c else (h, c)


def noisy(options: Mapping[str, Any]) -> bool:
    """Say whether training changes states at random."""
    return bool(options.get("recurrent_dropout") or options.get("zoneout"))


def zoneout_of(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return zoneout of h and of c."""
    given = options.get("zoneout", 0.0)
    return given if isinstance(given, tuple) else (given, given)


def general(options: Mapping[str, Any], usual: tuple[str, ...]) -> General | None:
    """Return what the core is told of a cell with these options; None: it is the usual one."""
    activations = options.get("activations")
    if activations is None:
        activations = usual
    clip, coupled, peephole = options.get("clip"), options.get("coupled", False), options.get("peephole", False)
    if clip is None and not coupled and not peephole and activations == usual and not noisy(options):
        return None
    sides = list(activations.values()) if isinstance(activations, Mapping) else [activations]
    full = [[_full(one) for one in side] for side in sides]
    return General(math.inf if clip is None else clip, coupled, peephole, full, zoneout_of(options))


def general_rnn(options: Mapping[str, Any]) -> General | None:
    """Return what `general` does, of an RNN."""
    nonlinearity = options["nonlinearity"]
    sides = nonlinearity.items() if isinstance(nonlinearity, Mapping) else None
    chosen = (nonlinearity,) if sides is None else {side: (one,) for side, one in sides}
    usual = (nonlinearity,) if nonlinearity in ("tanh", "relu") else ()
    return general({**options, "activations": chosen}, usual)


def recurrent_dropout_of(options: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the probability to drop, and whether the mask is another at every step."""
    return options.get("recurrent_dropout", 0.0), options.get("recurrent_dropout_mode") == "step"


def as_text(chosen: General | None, options: Mapping[str, Any]) -> str:
    """Return what `general` found of options as text, for who can keep nothing else; "" for the usual cell."""
    if chosen is None:
        return ""
    import json  # not for who needs no text

    clip, *rest = chosen
    return json.dumps([None if math.isinf(clip) else clip, *rest, recurrent_dropout_of(options)])


@functools.lru_cache(maxsize=256)
def of_text(text: str) -> General | None:
    """Return what `as_text` wrote."""
    if not text:
        return None
    import json

    clip, coupled, peephole, sides, *noise = json.loads(text)
    full = [[(n, a, b) for n, a, b in side] for side in sides]
    zone_h, zone_c = noise[0] if noise else (0.0, 0.0)  # texts of before there was noise have none
    return General(math.inf if clip is None else clip, coupled, peephole, full, (zone_h, zone_c))


@functools.lru_cache(maxsize=256)
def recurrent_dropout_of_text(text: str) -> tuple[float, bool]:
    """Return what `recurrent_dropout_of` found."""
    if not text:
        return 0.0, False
    import json

    _, _, _, _, *noise = json.loads(text)
    p, by_time = noise[1] if noise else (0.0, False)
    return p, by_time


def _full(activation: Activation) -> tuple[str, float, float]:
    name, alpha, beta = (*((activation,) if isinstance(activation, str) else activation), 0.0, 0.0)[:3]
    return str(name), float(alpha), float(beta)


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, (bool, np.bool_)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer beyond all floats
        return False

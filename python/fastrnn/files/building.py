"""Layers from what was found in a file: options that are open are asked for, and arrays are taken as they are."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import Problems
from ..frozen import Frozen, Words, check_matrices, pack
from ..initialise import Seed, as_generator
from ..kit.parts import Embedding, Linear
from ..layers import CELLS
from ..options import read_options
from ..parameters import Parameters
from ..recurrent import Recurrent
from ..spec import describe
from .errors import FileError
from .found import SIZES, Found, fitting, options_of
from .tensors import Array, Budget, Tensor

# Options that may be others than a file says: they change neither the weights nor what is computed of them.
_FREE = {"dtype", "dropout", "recurrent_dropout", "recurrent_dropout_mode", "batch_first"}
Layer = Recurrent[Any] | Embedding | Linear | Frozen[Any]
PARTS: Mapping[str, type[Embedding] | type[Linear]] = {"Embedding": Embedding, "Linear": Linear}


def recurrent(cell: str, options: Mapping[str, Any], arrays: Mapping[str, Array], rng: Seed) -> Recurrent[Any]:
    """Make a layer whose parameters are the given arrays themselves; nothing is drawn.

    Raises
    ------
    TypeError, ValueError
        For options or arrays that are not those of the cell.
    """
    read = complete_options(cell, options)
    kind = CELLS[cell].layer
    wanted = shapes(cell, read)
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != read["dtype"]:
            raise ValueError(f"{kind.__name__} needs {name} of shape {shape} and dtype {read['dtype']}")
    layer = kind.__new__(kind)
    parameters = Parameters({name: arrays[name] for name in wanted})
    layer.__setstate__({"options": read, "parameters": parameters, "rng": as_generator(kind.__name__, rng)})
    return layer


def complete_options(cell: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a cell's layer, checked and with their defaults."""
    kind = CELLS[cell].layer
    signature = inspect.signature(kind)
    bound = signature.bind(**options)
    bound.apply_defaults()
    given = {name: value for name, value in bound.arguments.items() if name != "rng"}
    read = read_options(kind.__name__, given, len(kind._usual))
    decided = {**({"layer_norm": False} if "layer_norm" in read else {}), **CELLS[cell].options}
    if wrong := {name: value for name, value in decided.items() if read[name] != value}:
        raise ValueError(f"the cell {cell} has {wrong}, and its options say otherwise")
    return read


def shapes(cell: str, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a layer with these options, which `complete_options` returned."""
    sizes = {name: options.get(name, 0) for name in SIZES}
    return describe(cell, sizes["proj_size"] > 0, options.get("peephole", False)).shapes(**sizes)


def build(found: Found, options: Mapping[str, Any], who: str, rng: Seed, budget: Budget) -> Layer:
    """Make the layer that was found, with the options that the caller gives.

    Parameters
    ----------
    found
        One that fits.
    options
        Those of the call; what the layer does not have is not looked at here.
    who
        The subject of errors: the file and the layer.
    rng
        Of the layer.
    budget
        Of the file, for the arrays that do not lie in it as they are needed.

    Raises
    ------
    FileError
        If arrays cannot be read, or take more than the budget.
    ValueError
        If the file leaves several cells open, or says otherwise than the options.
    """
    scales = {name: budget.pay(tensor.load()) for name, tensor in found.scales.items()}
    if wrong := [name for name, one in scales.items() if not ((one >= 0) & np.isfinite(one)).all()]:
        raise FileError(f"{who} is damaged: a scale of {wrong[0]} is negative or not finite")
    arrays = {name: budget.pay(_loaded(tensor, scales.get(name))) for name, tensor in found.tensors.items()}
    if found.part:
        dtype = options.get("dtype", found.said["dtype"])
        return PARTS[found.part]._of_parameters({n: a.astype(dtype, copy=False) for n, a in arrays.items()}, rng)
    cell = choose(found, options, who)
    known = options_of(cell)
    chosen = {name: value for name, value in {**found.assumed, **found.said, **options}.items() if name in known}
    chosen.setdefault("dtype", np.result_type(*{array.dtype for array in arrays.values()}))
    sizes = {
        name: value for name, value in found.sizes.items() if name in inspect.signature(CELLS[cell].layer).parameters
    }
    try:
        read = complete_options(cell, {**sizes, **chosen, **CELLS[cell].options})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from error
    same = {n: a if a.dtype == read["dtype"] else budget.pay(a.astype(read["dtype"])) for n, a in arrays.items()}
    layer = recurrent(cell, read, same, rng)
    return layer if found.words is None else _in_bits(layer, found.words, scales, who)


def _loaded(tensor: Tensor, scale: Array | None) -> Array:
    """The numbers of a tensor; of integers what they stand for."""
    array = tensor.load()
    if scale is None:
        return array
    with np.errstate(over="ignore"):  # what is not finite then is refused
        found: Array = array.astype(np.float32) * scale[:, None]
    return found


def _in_bits(layer: Recurrent[Any], words: Words, scales: Mapping[str, Array], who: str) -> Frozen[Any]:
    """Freeze a layer whose file holds weights in fewer bits."""
    if layer.dtype != np.float32:
        raise ValueError(f"{who} holds weights in fewer bits, which are for float32: leave dtype out of options=")
    if layer.heads > 1:
        raise FileError(f"{who} holds weights in fewer bits and heads={layer.heads}: those of heads are kept in full.")
    problems = Problems(lambda: who)
    check_matrices(problems, layer.parameters(), words, "The file is damaged.")
    if problems.text():
        raise FileError(problems.text())
    return pack(layer, words, scales or None)


def choose(found: Found, options: Mapping[str, Any], who: str) -> str:
    """Return the one cell that file and options leave.

    Raises
    ------
    ValueError
        If there are several, which lists the choices, or none.
    """
    said, given = _as_read(found, found.said), _as_read(found, options)
    for name in given.keys() & said.keys() - _FREE:
        if given[name] != said[name]:
            raise ValueError(f"{who} has {name}={found.said[name]!r}; options= says {name}={options[name]!r}")
    known = {**found.assumed, **options, **found.said}
    cells = fitting(found, known)
    if len(cells) == 1:
        return cells[0]
    choices = " or ".join(
        f"options={dict(CELLS[cell].options)}" for cell in cells or found.cells if CELLS[cell].options
    )
    if cells:
        raise ValueError(f"{who} ({found.origin}) does not say what it computes: give {choices}")
    raise ValueError(f"{who} ({found.origin}) cannot be with options={dict(options)}: give {choices}")


def _as_read(found: Found, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options that a layer has as plain values, which can be compared."""
    kind = CELLS[found.cells[0]].layer  # the cells that fit are of one class
    names = {name for cell in found.cells for name in options_of(cell)}
    needed = {name: found.sizes[name] for name in ("hidden_size", "bidirectional")}
    given = {name: value for name, value in options.items() if name in names}
    read = read_options(kind.__name__, {**needed, **given}, len(kind._usual))
    if "activations" in read and read["activations"] is None:
        read["activations"] = kind._usual
    return {name: read[name] for name in given}


def check_options(options: Mapping[str, Any], found: list[Found], name: str) -> None:
    """Refuse options that no layer of a file has, or that follow from its weights.

    Raises
    ------
    ValueError
        With every one of them.
    """
    known = {option for layer in found for cell in layer.cells for option in options_of(cell)}
    known |= {"dtype" for layer in found if layer.part}
    guessed = [layer for layer in found if layer.origin == "PyTorch"]
    if "heads" not in options:
        known |= {"heads" for _ in guessed}
    elif any(layer.sizes["heads"] == options["heads"] for layer in guessed):
        known.add("heads")
    if "forget_gate" not in options:
        known |= {"forget_gate" for layer in guessed if "lstm" in layer.cells}
    wrong = [repr(option) for option in options if option not in known]
    if wrong:
        if wrong == ["'heads'"] and guessed:
            raise ValueError(f"load of {name} got heads={options['heads']!r} in options=; it has no weights of these")
        has = f"those to give are {', '.join(sorted(known))}" if known else "its layers have none to give"
        raise ValueError(f"load of {name} got {', '.join(wrong)} in options=; {has}, the sizes are in the file")


def refuse_unfit(layer: Found, who: str) -> None:
    """Refuse a layer that does not fit.

    Raises
    ------
    FileError
        That says why.
    """
    if layer.unfit:
        raise FileError(f"{who} ({layer.origin}) fits no layer here: {layer.unfit}")

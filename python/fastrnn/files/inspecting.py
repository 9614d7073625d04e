"""`fastrnn inspect`: the layers of a file, what fits and what not, and about how fast they would be here."""

import inspect
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checks import printable, readable
from ..frozen import Frozen, Weights, as_given
from ..layers import CELLS
from ..options import DEFAULTS
from .building import complete_options, recurrent, shapes
from .found import SIZES, Found, fitting, options_of
from .opening import opened
from .tensors import Path

_MEASURED = 2**19  # parameters of the largest layer that is made to be timed; larger ones are scaled up
_TURNS, _SECONDS = 5, 0.002
_PATIENCE = 0.6  # seconds for all layers; those left over then have no estimate
_STEPS = 32  # of a call of a bidirectional layer, which has no single steps


def report(path: Path) -> dict[str, Any]:
    """Return what a file holds, as JSON has it. No array is read.

    Parameters
    ----------
    path
        Of any kind that `fastrnn.load` reads. ONNX files need no extra here.

    Returns
    -------
    dict
        ``file``, ``kind``, ``bytes``, ``arrays`` and ``layers``, each with ``name``, ``origin``, ``parameters``,
        ``dtype``, ``tensors`` (how many) and, if it fits, ``type``, ``cells`` (those it can be), ``sizes``, ``options``
        (what the file says and what follows from its kind), ``open`` (options that must be given, with the choices),
        ``weights`` where they are in fewer bits, and ``microseconds_per_step``, estimated for one sequence, None behind
        many others; else ``unfit``, the reason.

    Raises
    ------
    FileError, OSError
        As `fastrnn.load` does.
    """
    until = time.perf_counter() + _PATIENCE
    paces: dict[str, float] = {}
    with opened(path) as contents:
        layers = [_described(layer) for layer in contents.layers]
    for layer in layers:
        if "cells" in layer:
            key = repr((layer["cells"][0], layer["sizes"], layer["dtype"], layer.get("weights")))
            if key not in paces and time.perf_counter() < until:
                double = "float64" in layer["dtype"]
                pace = microseconds_per_step(layer["cells"][0], layer["sizes"], double, layer.get("weights"))
                paces[key] = round(pace, 2)
            layer["microseconds_per_step"] = paces.get(key)
    name = os.fspath(path)
    return {
        "file": name,
        "kind": contents.kind,
        "bytes": os.path.getsize(path),
        "arrays": contents.tensors,
        "layers": layers,
    }


def _described(found: Found) -> dict[str, Any]:
    facts = {"name": found.name, "origin": found.origin, "parameters": found.parameters, "dtype": found.dtype}
    facts["tensors"] = len(found.tensors)
    if found.unfit:
        return {**facts, "unfit": found.unfit}
    if found.part:
        return {**facts, "type": found.part, "options": found.said}
    known = {**found.assumed, **found.said}
    cells = fitting(found, known) or found.cells
    options = {name: value for name, value in known.items() if name in options_of(cells[0])}
    if "dtype" in options:
        options["dtype"] = str(options["dtype"])
    deciding = {name for cell in cells for name in CELLS[cell].options} if len(cells) > 1 else set()
    asked = {name: [CELLS[cell].options[name] for cell in cells] for name in sorted(deciding)}
    if found.words is not None:
        facts["weights"] = as_given(found.words)
    return {
        **facts,
        "type": CELLS[cells[0]].layer.__name__,
        "cells": cells,
        "sizes": found.sizes,
        "options": options,
        "open": asked,
    }


def microseconds_per_step(cell: str, sizes: Mapping[str, Any], double: bool, weights: Weights = None) -> float:
    """Return about how long a frozen layer of these sizes takes for a time step of one sequence on this machine.

    A layer of zeros is timed; one that is too large to be made for that is scaled down, and its time up by the number
    of parameters, which a step reads.
    """
    wanted = made = _parameters(cell, sizes)
    small = dict(sizes)
    while made > _MEASURED and small["hidden_size"] > max(8, sizes["heads"]):
        factor = 0.98 * math.sqrt(_MEASURED / made)
        scaled = {name: max(int(small[name] * factor), 1) for name in ("input_size", "hidden_size", "proj_size")}
        scaled["hidden_size"] = max(scaled["hidden_size"] // sizes["heads"], 1) * sizes["heads"]
        small |= {name: size for name, size in scaled.items() if sizes[name]}
        made = _parameters(cell, small)
    return _timed(cell, small, double, weights) * wanted / made * 1e6


def _arguments(cell: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: sizes[name] for name in SIZES if name in inspect.signature(CELLS[cell].layer).parameters}


def _parameters(cell: str, sizes: Mapping[str, Any]) -> int:
    read = complete_options(cell, {**_arguments(cell, sizes), **CELLS[cell].options})
    return sum(math.prod(shape) for shape in shapes(cell, read).values())


def _timed(cell: str, sizes: Mapping[str, Any], double: bool, weights: Weights) -> float:
    """Return the seconds of a step, the least of some turns."""
    dtype = np.dtype(np.float64 if double else np.float32)
    options = complete_options(cell, {**_arguments(cell, sizes), **CELLS[cell].options, "dtype": dtype})
    arrays = {name: np.zeros(shape, dtype) for name, shape in shapes(cell, options).items()}
    layer = recurrent(cell, options, arrays, 0)
    return pace(layer.freeze(weights), layer)


def pace(fast: Frozen[Any], layer: Any) -> float:
    """Return the seconds that a frozen layer takes for a time step of one sequence, the least of some turns."""
    if layer.bidirectional:
        x = np.zeros((1, _STEPS, layer.input_size) if layer.batch_first else (_STEPS, 1, layer.input_size), layer.dtype)
        return _least(lambda: fast(x)) / _STEPS
    x = np.zeros((1, layer.input_size), layer.dtype)
    out, state = fast.step(x)
    return _least(lambda: fast.step(x, state, out=out, state_out=state))


def _least(call: Any) -> float:
    call()
    found = math.inf
    for _ in range(_TURNS):
        count, begin = 0, time.perf_counter()
        while (spent := time.perf_counter() - begin) < _SECONDS:
            call()
            count += 1
        found = min(found, spent / max(count, 1))
    return found


def text(facts: Mapping[str, Any]) -> str:
    """Return a report as lines to read."""
    lines = [f"{facts['file']}: {facts['kind']}, {readable(facts['bytes'])}, {len(facts['layers'])} layers"]
    if not facts["layers"]:
        lines.append(f"  none of its {facts['arrays']} arrays is one of a recurrent layer")
    width = max((len(layer["name"]) for layer in facts["layers"]), default=0)
    for layer in facts["layers"]:
        lines.append(f"  {layer['name']:<{width}}  {_line(layer)}".rstrip())
        for name, choices in layer.get("open", {}).items():
            lines.append(f"  {'':<{width}}  to be given in options=: {name}, {' or '.join(map(repr, choices))}")
    return "\n".join(map(printable, lines))


def _line(layer: Mapping[str, Any]) -> str:
    counted = f"{layer['parameters']:,} parameters, {layer['dtype']}, as in {layer['origin']}"
    if "unfit" in layer:
        return f"does not fit: {layer['unfit']}"
    shown = {**layer.get("sizes", {}), **layer["options"]}
    listed = ", ".join(
        f"{name}={value!r}" for name, value in shown.items() if DEFAULTS.get(name) != value and name != "dtype"
    )
    pace = layer.get("microseconds_per_step")
    about = f", about {pace:,.1f} us a step here" if pace is not None else ""
    kept = f".freeze(weights={layer['weights']!r})" if "weights" in layer else ""
    return f"{layer['type']}({listed}){kept}  {counted}{about}"

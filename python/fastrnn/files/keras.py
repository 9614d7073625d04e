"""Layers of Keras' files: .keras, .weights.h5 and the older .h5, whose datasets have three kinds of paths.

Keras' kernels are the transposed matrices, its gates i f g o and z r n.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import hdf5
from .archive import Archive
from .errors import FileError
from .found import Found, complete, joined, zeros_like
from .safetensors import parse_json
from .tensors import Array, Bytes, Tensor

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
_ORDER = {4: (0, 1, 2, 3), 3: (1, 0, 2), 1: (0,)}  # Keras' gate at each place of PyTorch's
_CELL = re.compile(r"(?:cell|cells|(?:\w+_)?cell(?:_\d+)?|stacked_rnn_cells(?:_\d+)?)")
_PARTS = re.compile(r"(.*)/(?:(vars)/[01]|(?:kernel|recurrent_kernel)(:0)?)")
_DEPTH = 64
# Ours of Keras' activations that are the same in all of its versions, unlike hard_sigmoid and leaky_relu.
_ACTIVATIONS = {
    **{name: name for name in ("sigmoid", "tanh", "relu", "elu", "softsign", "softplus")},
    "linear": "affine",
}
_USUAL = ("sigmoid", "tanh", "tanh")  # of an LSTM; of a GRU the first two


class _Cell(NamedTuple):
    """The arrays of one Keras cell and where they are: the path of its layer, its direction, and its own name."""

    layer: str
    direction: str
    name: str
    kernel: Tensor
    recurrent: Tensor
    bias: Tensor | None


def find_archive(archive: Archive, data: Bytes) -> list[Found]:
    """Return the layers of a .keras file.

    Raises
    ------
    FileError
        If it is damaged.
    """
    config = parse_json(bytes(archive.read(CONFIG)), f"{archive.name}: its {CONFIG}")
    place = archive.region(WEIGHTS)
    weights = archive.read(WEIGHTS) if place is None else data[place[0] :][: place[1]]
    who = f"{archive.name}: its entry {WEIGHTS!r}"
    if not hdf5.is_hdf5(weights):
        raise FileError(f"{who} is no HDF5 file")
    return find(hdf5.read(who, weights), config)


def find_h5(name: str, data: Bytes) -> list[Found]:
    """Return the layers of an HDF5 file of Keras.

    Raises
    ------
    FileError
        If it is damaged.
    """
    content = hdf5.read(name, data)
    text = content.texts.get("", {}).get("model_config")
    return find(content, None if text is None else parse_json(text.encode(), f"{name}: its model_config"))


def find(content: hdf5.Content, config: Mapping[str, Any] | None) -> list[Found]:
    """Return the layers, with what the model's configuration says of them if there is one."""
    by_name, by_path = ({}, {}) if config is None else _configurations(config)
    groups: dict[str, list[_Cell]] = {}
    for cell in _cells(_with_directions(content.tensors, by_name)):
        groups.setdefault(cell.layer, []).append(cell)
    found: dict[str, Found] = {}
    for path, cells in groups.items():
        told = content.texts.get(f"{path}/vars", {}).get("name")
        name = told or path.rpartition("/")[2]
        layer = _layer(path if name in found else name, cells)
        # older weights files hold no names, but paths that follow from the order of the layers
        said = by_path.get(path) if told is None and path in by_path else by_name.get(name)
        if said is not None and not layer.unfit:
            _configure(layer, said)
        found[layer.name] = complete(layer)
    return list(found.values())


def _with_directions(tensors: Mapping[str, Tensor], by_name: Mapping[str, Any]) -> dict[str, Tensor]:
    """Let the backward layer of each Bidirectional be called so in paths, which in .h5 have its own name."""
    pairs = set()
    for name, layer in by_name.items():
        inner = (
            _inner(layer["config"], "backward_layer") if layer and layer.get("class_name") == "Bidirectional" else None
        )
        if inner is not None and not str(inner.get("name")).startswith("backward_"):
            pairs.add((name, str(inner.get("name"))))

    def named(path: str) -> str:
        parts = path.split("/")
        after = itertools.pairwise(parts)
        return "/".join([parts[0], *(f"backward_{own}" if (above, own) in pairs else own for above, own in after)])

    return {named(path): tensor for path, tensor in tensors.items()} if pairs else dict(tensors)


def _cells(tensors: Mapping[str, Tensor]) -> Iterator[_Cell]:
    paths = []
    for path in tensors:
        match = _PARTS.fullmatch(path)
        if match and not path.startswith("optimizer") and (match[1], match[2], match[3] or "") not in paths:
            paths.append((match[1], match[2], match[3] or ""))
    for base, numbered, end in paths:
        names = (
            ["vars/0", "vars/1", "vars/2"] if numbered else [n + end for n in ("kernel", "recurrent_kernel", "bias")]
        )
        kernel, recurrent, bias = (tensors.get(f"{base}/{name}") for name in names)
        parts = base.split("/")
        if kernel is None or recurrent is None or (numbered and not _CELL.fullmatch(parts[-1])):
            continue  # no cell: a dense layer has no recurrent kernel
        own = parts[-1]
        if parts[0] == "model_weights":
            parts = parts[1:]
        while len(parts) > 1 and _CELL.fullmatch(parts[-1]):
            parts.pop()
            if parts[-1] == "cells":
                parts.pop()
        direction = re.match("(forward|backward)_", parts[-1])
        both = direction and len(parts) > 1 and _has_other(tensors, base, direction[1])
        yield _Cell(
            "/".join(parts[:-1] if both else parts),
            direction[1] if direction and both else "",
            own,
            kernel,
            recurrent,
            bias,
        )


def _has_other(tensors: Mapping[str, Tensor], base: str, direction: str) -> bool:
    """Whether there is a layer of the other direction beside."""
    parts = base.split("/")
    at = max(i for i, part in enumerate(parts) if part.startswith(f"{direction}_"))
    start = "/".join([*parts[:at], "backward_" if direction == "forward" else "forward_"])
    return any(path.startswith(start) for path in tensors)


def _layer(name: str, cells: list[_Cell]) -> Found:
    """Return cells in both directions, or stacked, as one layer, by PyTorch's names."""
    tensors: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    directions = {cell.direction for cell in cells}
    if len(cells) > len(directions) and directions != {""}:
        why = "its stacks run through in one direction each, where stacks here join the directions after each layer"
        return Found(name, "Keras", {}, unfit=why)
    stems = {re.sub(r"_\d+$", "", cell.name) for cell in cells}
    if len(stems) > 1:
        return Found(name, "Keras", {}, unfit=f"its stack is of different cells: {', '.join(sorted(stems))}")
    cells = sorted(cells, key=lambda cell: int((re.search(r"_(\d+)$", cell.name) or [0, 0])[1]))
    for k, cell in enumerate(cells):
        suffix = f"l{k}" if directions == {""} else "l0" + "_reverse" * (cell.direction == "backward")
        if problem := _convert(cell, suffix, tensors, said):
            return Found(name, "Keras", {}, unfit=problem)
    return Found(name, "Keras", tensors, said=said, assumed={"batch_first": True})


def _convert(cell: _Cell, suffix: str, tensors: dict[str, Tensor], said: dict[str, Any]) -> str:
    """Add a cell's arrays by PyTorch's names; return what is wrong with them."""
    kernel, recurrent, bias = cell.kernel, cell.recurrent, cell.bias
    columns = recurrent.shape[-1] if recurrent.shape else 0
    hidden = recurrent.shape[0] if recurrent.shape else 0
    gates = columns // hidden if hidden else 0
    if (
        len(kernel.shape) != 2
        or recurrent.shape != (hidden, gates * hidden)
        or kernel.shape[1] != columns
        or gates not in _ORDER
    ):
        return f"kernel {kernel.shape} and recurrent_kernel {recurrent.shape} are of no cell that is known here"

    def turned(a: Array) -> Array:
        return np.concatenate([np.split(a, gates, axis=-1)[g] for g in _ORDER[gates]], axis=-1).T

    tensors[f"weight_ih_{suffix}"] = joined([kernel], kernel.shape[::-1], turned)
    tensors[f"weight_hh_{suffix}"] = joined([recurrent], recurrent.shape[::-1], turned)
    if bias is None:
        return ""
    two = gates == 3 and len(bias.shape) == 2
    if bias.shape != ((2, columns) if two else (columns,)):
        return f"bias {bias.shape} does not fit recurrent_kernel {recurrent.shape}"
    if gates == 3 and said.setdefault("reset_after", two) != two:
        return "some of its cells have reset_after and some do not"
    if two:
        tensors[f"bias_ih_{suffix}"] = joined([bias], (columns,), lambda a: turned(a[0]))
        tensors[f"bias_hh_{suffix}"] = joined([bias], (columns,), lambda a: turned(a[1]))
    else:
        tensors[f"bias_ih_{suffix}"] = joined([bias], (columns,), turned)
        tensors[f"bias_hh_{suffix}"] = zeros_like(tensors[f"bias_ih_{suffix}"])
    return ""


# The model's configuration


def _configurations(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configuration of each layer by its name, where that is clear, and by its path in weights files."""
    by_name: dict[str, Any] = {}
    by_path: dict[str, Any] = {}
    waiting = [(config, "", 0)]
    while waiting:
        model, path, depth = waiting.pop()
        own = model.get("config")
        layers = own.get("layers") if isinstance(own, dict) else None
        counts: dict[str, int] = {}
        for layer in layers if isinstance(layers, list) and depth < _DEPTH else []:
            if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
                continue
            stem = _snake(str(layer.get("class_name")))
            number = counts[stem] = counts.get(stem, -1) + 1
            below = f"{path}layers/{stem}" + (f"_{number}" if number else "")
            name = str(layer["config"].get("name"))
            by_name[name] = None if name in by_name else layer
            by_path[below] = layer
            waiting.append((layer, f"{below}/", depth + 1))
    return by_name, by_path


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _inner(config: Mapping[str, Any], which: str) -> dict[str, Any] | None:
    layer = config.get(which)
    inner = layer.get("config") if isinstance(layer, dict) else None
    return inner if isinstance(inner, dict) else None


def _configure(found: Found, layer: Mapping[str, Any]) -> None:
    """Take over what a layer's configuration says, or why it cannot be followed."""
    config, sides = layer["config"], {"forward": layer["config"]}
    if layer.get("class_name") == "Bidirectional":
        forward = _inner(config, "layer")
        if forward is None:
            return
        # without a backward layer of its own it is a copy of the other
        copy = {**forward, "go_backwards": not forward.get("go_backwards")}
        sides = {"forward": forward, "reverse": _inner(config, "backward_layer") or copy}
        if config.get("merge_mode") != "concat":
            found.unfit = f"its directions are merged by {config.get('merge_mode')!r}; here they are side by side"
        elif "weight_hh_l0" not in found.tensors or "weight_hh_l0_reverse" not in found.tensors:
            found.unfit = "its configuration has two directions, and its weights have not"
    activations = {}
    for side, own in sides.items():
        if not found.unfit:
            activations[side], found.unfit = _configure_side(found, own, side == "reverse")
    if found.unfit or not all(activations.values()):
        return
    first = activations["forward"]
    given = first if all(one == first for one in activations.values()) else activations
    if isinstance(first, str):
        found.said["nonlinearity"] = given
    else:
        found.said["activations"] = None if given == _USUAL[: len(first)] else given


def _configure_side(found: Found, config: Mapping[str, Any], backwards: bool) -> tuple[Any, str]:
    """Return the activations of a layer in one direction, of all of its cells alike, and why it cannot be followed."""
    if bool(config.get("go_backwards")) != backwards:
        return None, f"it reads from the {'start' if backwards else 'end'}: go_backwards={not backwards}"
    own = _inner(config, "cell") or config
    several = own.get("cells")
    configs = [c.get("config") for c in several if isinstance(c, dict)] if isinstance(several, list) else [own]
    found_here = []
    for each in configs:
        if isinstance(each, dict):
            activations, problem = _configure_cell(found, each)
            if problem:
                return None, problem
            found_here.append(activations)
    if any(activations != found_here[0] for activations in found_here):
        return None, f"its cells have different activations: {', '.join(map(repr, found_here))}"
    return (found_here[0] if found_here else None), ""


def _configure_cell(found: Found, config: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the activations of one cell, and why it cannot be followed."""
    given = [_function(config.get("recurrent_activation", "sigmoid")), _function(config.get("activation", "tanh"))]
    known = [_ACTIVATIONS.get(name) if isinstance(name, str) else None for name in given]
    shape = found.tensors["weight_hh_l0"].shape if "weight_hh_l0" in found.tensors else (1, 1)
    gates = shape[0] // shape[1]
    if gates == 1:
        given, known = given[1:], known[1:]
    if None in known:
        shown, have = " and ".join(map(repr, given)), ", ".join(_ACTIVATIONS)
        return None, f"its activations are {shown}; those of Keras that are known here are {have}"
    after = config.get("reset_after")
    if isinstance(after, bool) and found.said.setdefault("reset_after", after) != after:
        return None, f"its configuration says reset_after={after}, and its bias has the shape of the other"
    return (known[0] if gates == 1 else tuple(known + known[1:] * (gates == 4))), ""


def _function(value: Any) -> Any:
    """Return the name of an activation, however it is written."""
    return value.get("config", value.get("class_name")) if isinstance(value, dict) else value

"""What our own files say of their layers: JSON under one name, so that a program in any language can run them.

``{"format": 1, "layers": [{"name": "encoder", "type": "LSTM", "cell": "lstm", "options": {...}}, ...]}``, in the order
in which they run. ``cell`` is the core's name of a recurrent layer's cell; an Embedding and a Linear have none.
``options`` are the arguments of the type, all of them. The arrays of a layer have its name, a dot, and PyTorch's name
of the parameter; those of a layer whose name is empty, which is then the only one, have the parameter's name alone.

A layer that was frozen with weights in fewer bits has ``"weights": {"ih": "int8", "hh": "bfloat16"}`` beside its
options, and the file is of format 2. Its matrices of int8 are I8 (rows,K), and beside each lies ``NAME_scale``, F32
(rows,), which the integers of a row are to be multiplied by; those of bfloat16 are BF16. All else is float32.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..frozen import Frozen, Words, read_words, stored, word_of
from ..layers import CELLS
from ..recurrent import Recurrent
from .building import PARTS, Layer, complete_options, shapes
from .errors import FileError
from .found import SIZES, Found
from .tensors import Array, Tensor

FORMAT = 2  # 1 where no layer has weights in fewer bits
KEY = "fastrnn"  # of the description, in the metadata of a safetensors file


def describe_layers(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """Return the description of layers by name."""
    entries = [_entry(name, layer) for name, layer in layers.items()]
    return {"format": FORMAT if any("weights" in entry for entry in entries) else 1, "layers": entries}


def _entry(name: str, layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Frozen):
        assert layer._weights is not None
        frozen: Any = layer._layer
        return {**_entry(name, frozen), "weights": dict(zip(("ih", "hh"), layer._weights, strict=True))}
    kind = type(layer).__name__
    if isinstance(layer, Recurrent):
        return {"name": name, "type": kind, "cell": layer._cell(), "options": layer._plain_options()}
    return {"name": name, "type": kind, "options": layer._plain_options()}


def arrays_of(layers: Mapping[str, Layer]) -> dict[str, Array]:
    """Return the parameters of layers by the names they have in a file."""
    return {
        _join(name, own): array
        for name, layer in layers.items()
        for own, array in (stored(layer) if isinstance(layer, Frozen) else layer.parameters()).items()
    }


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def read_layers(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str, newest: int = FORMAT
) -> list[Found]:
    """Return the layers that a description tells of, complete, none of whose tensors is read yet.

    `newest`: format that is read.

    Raises
    ------
    FileError
        If it is of a newer format, or does not fit the tensors.
    """
    version, entries = description.get("format"), description.get("layers")
    if type(version) is not int or not isinstance(entries, list) or not entries:
        raise FileError(f"{file} is damaged: its description names no format and no layers")
    if version > newest:
        raise FileError(
            f"{file} has format {version}, written by a newer fastrnn; this one reads formats up to {newest}: "
            "upgrade fastrnn"
        )
    found: dict[str, Found] = {}
    used: set[str] = set()
    for entry in entries:
        layer = _found(entry, tensors, file)
        names = {_join(layer.name, own) for own in (*layer.tensors, *map(scale_name, layer.scales))}
        if used & names or layer.name in found:
            raise FileError(f"{file} is damaged: it describes {layer.name!r} twice")
        used |= names
        found[layer.name] = layer
    if more := [name for name in tensors if name not in used]:
        raise FileError(f"{file} does not fit together: its description knows no {', '.join(map(repr, more[:5]))}")
    return list(found.values())


def _found(entry: Any, tensors: Mapping[str, Tensor], file: str) -> Found:
    fields = entry if isinstance(entry, dict) else {}
    name, kind, options = (fields.get(key) for key in ("name", "type", "options"))
    if not isinstance(name, str) or not isinstance(options, dict):
        raise FileError(f"{file} is damaged: it describes a layer without a name or options")
    cell = fields.get("cell")
    if isinstance(kind, str) and kind in PARTS:
        return _part(name, kind, options, tensors, file)
    if not isinstance(cell, str) or cell not in CELLS:
        raise FileError(f"{file} holds no layer that is known here: its cell is {cell!r}")
    if "weights" not in fields:
        return recurrent_layer(name, cell, options, tensors, file)
    words = _words(fields["weights"], file)
    found = recurrent_layer(name, cell, options, tensors, file, words)
    return replace(found, words=words)


def _words(given: Any, file: str) -> Words:
    try:
        words = read_words(lambda: "its description", given if isinstance(given, dict) else "")
    except ValueError as error:
        raise FileError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    assert words is not None
    return words


def scale_name(matrix: str) -> str:
    """Return the name of what the integers of a matrix count."""
    return f"{matrix}_scale"


def recurrent_layer(
    name: str,
    cell: str,
    options: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    file: str,
    words: Words | None = None,
) -> Found:
    """Return a recurrent layer with these options; `words`: what its matrices are kept as.

    Raises
    ------
    FileError
        If options and tensors do not fit.
    """
    try:
        read = complete_options(cell, options)
    except (TypeError, ValueError, OverflowError) as error:
        raise FileError(f"{file} does not fit together: {error}") from error
    kind = CELLS[cell].layer.__name__
    wanted, who = shapes(cell, read), f"{kind}({name!r})" if name else kind
    kept = {own: word_of(own, words) if words else None for own in wanted}
    mine: dict[str, Tensor] = {}
    for own, shape in wanted.items():
        mine |= _pick(name, who, {own: shape}, kept[own] or read["dtype"].name, tensors, file)
    counts = {scale_name(own): wanted[own][:1] for own, word in kept.items() if word == "int8"}
    scales = _pick(name, who, counts, "float32", tensors, file)
    integers = {own: scales[scale_name(own)] for own, word in kept.items() if word == "int8"}
    sizes = {size: read.get(size, 0) for size in SIZES}
    said = {option: value for option, value in read.items() if option not in SIZES}
    return Found(name, "fastrnn", mine, said=said, cells=[cell], sizes=sizes, scales=integers)


def _part(name: str, kind: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str) -> Found:
    try:
        wanted = PARTS[kind]._shapes(**{key: value for key, value in options.items() if key != "dtype"})
    except (TypeError, ValueError, OverflowError) as error:
        raise FileError(f"{file} does not fit together: {kind}: {error}") from error
    mine = _pick(name, f"{kind}({name!r})", wanted, str(options.get("dtype")), tensors, file)
    return Found(name, "fastrnn", mine, said=dict(options), part=kind)


def _pick(
    name: str, who: str, wanted: Mapping[str, tuple[int, ...]], dtype: str, tensors: Mapping[str, Tensor], file: str
) -> dict[str, Tensor]:
    """Return the tensors of a layer by its own names of them."""
    found = {}
    for own, shape in wanted.items():
        tensor = tensors.get(_join(name, own))
        if tensor is None:
            raise FileError(f"{file} does not fit together: {who} needs {_join(name, own)}, which is missing")
        if tensor.shape != shape or tensor.dtype != dtype:
            raise FileError(
                f"{file} does not fit together: {who} needs {_join(name, own)} of shape {shape} and {dtype}, not of "
                f"{tensor.shape} and {tensor.dtype}"
            )
        found[own] = tensor
    return found

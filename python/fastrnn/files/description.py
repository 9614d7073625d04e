"""What our own files say of their layers: JSON under one name, so that a program in any language can run them.

``{"format": 1, "layers": [{"name": "encoder", "type": "LSTM", "cell": "lstm", "options": {...}}, ...]}``, in the order
in which they run. ``cell`` is the core's name of a recurrent layer's cell; an Embedding and a Linear have none.
``options`` are the arguments of the type, all of them. The arrays of a layer have its name, a dot, and PyTorch's name
of the parameter; those of a layer whose name is empty, which is then the only one, have the parameter's name alone.
"""

from collections.abc import Mapping
from typing import Any

from ..layers import CELLS
from ..recurrent import Recurrent
from .building import PARTS, Layer, complete_options, shapes
from .errors import FileError
from .found import SIZES, Found
from .tensors import Array, Tensor

FORMAT = 1
KEY = "fastrnn"  # of the description, in the metadata of a safetensors file


def describe_layers(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """Return the description of layers by name."""
    return {"format": FORMAT, "layers": [_entry(name, layer) for name, layer in layers.items()]}


def _entry(name: str, layer: Layer) -> dict[str, Any]:
    kind = type(layer).__name__
    if isinstance(layer, Recurrent):
        return {"name": name, "type": kind, "cell": layer._cell(), "options": layer._plain_options()}
    return {"name": name, "type": kind, "options": layer._plain_options()}


def arrays_of(layers: Mapping[str, Layer]) -> dict[str, Array]:
    """Return the parameters of layers by the names they have in a file."""
    return {_join(name, own): a for name, layer in layers.items() for own, a in layer.parameters().items()}


def _join(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def read_layers(description: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str) -> list[Found]:
    """Return the layers that a description tells of, complete, none of whose tensors is read yet.

    Raises
    ------
    FileError
        If it is of a newer format, or does not fit the tensors.
    """
    version, entries = description.get("format"), description.get("layers")
    if type(version) is not int or not isinstance(entries, list) or not entries:
        raise FileError(f"{file} is damaged: its description names no format and no layers")
    if version > FORMAT:
        raise FileError(
            f"{file} has format {version}, written by a newer fastrnn; this one reads formats up to {FORMAT}: "
            "upgrade fastrnn"
        )
    found: dict[str, Found] = {}
    used: set[str] = set()
    for entry in entries:
        layer = _found(entry, tensors, file)
        names = {_join(layer.name, own) for own in layer.tensors}
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
    return recurrent_layer(name, cell, options, tensors, file)


def recurrent_layer(
    name: str, cell: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str
) -> Found:
    """Return a recurrent layer with these options.

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
    mine = _pick(name, f"{kind}({name!r})" if name else kind, shapes(cell, read), read["dtype"].name, tensors, file)
    sizes = {size: read.get(size, 0) for size in SIZES}
    said = {option: value for option, value in read.items() if option not in SIZES}
    return Found(name, "fastrnn", mine, said=said, cells=[cell], sizes=sizes)


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

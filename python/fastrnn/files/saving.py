"""`fastrnn.save`: layers into a file that fastrnn and others read."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import storage
from ..frozen import Frozen
from ..kit.parts import Embedding, Linear
from ..recurrent import Recurrent
from .tensors import Path

if TYPE_CHECKING:
    from .building import Layer


def save(path: Path, layers: "Layer | Mapping[str, Layer] | Sequence[Layer]") -> None:
    """Write layers to a safetensors file, by PyTorch's names, or one recurrent layer to an ``.npz`` file.

    Parameters
    ----------
    path
        A name that ends in ``.safetensors`` or ``.npz``. A file already there is replaced only when the new one is
        complete.
    layers
        A layer, or several by name, in the order in which they run; of a sequence the names are "0", "1", ... as in
        ``torch.nn.Sequential``. RNN, GRU, LSTM, sLSTM, Embedding and Linear, and what ``freeze`` makes: with
        ``weights="int8"`` or "bfloat16" the file holds these, and `load` returns a frozen layer with the same bits;
        without weights it is saved as its layer is.

    Raises
    ------
    TypeError, ValueError
        For other layers, names that cannot be told apart, or another ending.
    OSError
        If the path cannot be written to.

    Notes
    -----
    The names in the file are ``name.weight_ih_l0`` and so on, without ``name.`` if it is one layer:
    ``safetensors.torch.load_file`` gives the ``state_dict`` of the same model in PyTorch. The metadata hold a
    description of the layers, which `load` makes them from::

        {"format": 1, "layers": [{"name": "rnn", "type": "GRU", "cell": "gru", "options": {"input_size": 3, ...}}]}

    A layer with weights in fewer bits has ``"weights": {"ih": "int8", "hh": "int8"}`` there as well, and the format is
    2. Its matrices are I8 or BF16, and beside one of I8 lies ``NAME_scale``, (rows,), which each row is to be
    multiplied by.
    """
    import json

    from . import safetensors
    from .description import KEY, arrays_of, describe_layers

    named = _named(layers)
    name = str(os.fspath(path))
    if name.endswith(".npz"):
        ((only, layer),) = named.items() if len(named) == 1 else [("several", None)]
        if only or not isinstance(layer, Recurrent):
            raise ValueError(f"save got {name}: an .npz file holds one recurrent layer; use a name in .safetensors")
        layer.save(path)
        return
    if not name.endswith(".safetensors"):
        raise ValueError(f"save got {name}; its name must end in .safetensors or .npz")
    described = json.dumps(describe_layers(named), separators=(",", ":"))
    with storage.replacing(path) as file:
        safetensors.write(file, arrays_of(named), {"format": "pt", KEY: described})


def _named(layers: Any) -> "dict[str, Layer]":
    """Return layers by name; one alone has an empty one."""
    if isinstance(layers, Mapping):
        named = dict(layers)
    elif isinstance(layers, (list, tuple)):
        named = {str(i): layer for i, layer in enumerate(layers)}
    else:
        named = {"": layers}
    if not named:
        raise ValueError("save got no layers")
    for name, layer in named.items():
        if isinstance(layer, Frozen) and layer._weights is None:
            named[name] = layer._layer
    for name, layer in named.items():
        if not isinstance(layer, (Recurrent, Embedding, Linear, Frozen)):
            what = "RNN, GRU, LSTM, sLSTM, Embedding, Linear and frozen layers"
            raise TypeError(f"save got {type(layer).__name__}; it takes {what}")
        if not isinstance(name, str) or (not name and len(named) > 1):
            raise TypeError(f"save got a layer of the name {name!r}; several layers need names, which are texts")
    arrays = [f"{name}.{own}" for name, layer in named.items() for own in _names(layer)]
    if len(set(arrays)) < len(arrays):
        raise ValueError(f"save got names whose arrays cannot be told apart: {', '.join(named)}")
    return named


def _names(layer: "Layer") -> Iterable[str]:
    """The names of a layer's arrays in a file, and of those that they may have beside them."""
    if not isinstance(layer, Frozen):
        return layer.parameters()
    return [word for name in layer._layer.parameters() for word in (name, f"{name}_scale")]

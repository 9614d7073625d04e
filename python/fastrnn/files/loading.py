"""`fastrnn.load`: layers of files of any kind."""

import os
from collections.abc import Mapping
from typing import Any

from ..initialise import Seed
from .errors import FileError
from .tensors import Budget, Path


def load(path: Path, prefix: str | None = None, options: Mapping[str, Any] | None = None, *, rng: Seed = None) -> Any:
    """Read layers from a file, without the library that wrote it; no code in it is run.

    Parameters
    ----------
    path
        A file that `fastrnn.save` or ``layer.save`` wrote, or safetensors, ``.npz``, PyTorch's ``.pt`` (``.pth``,
        ``.bin``) of a ``state_dict``, TorchScript, Keras' ``.keras``, ``.weights.h5`` and ``.h5``, Flax's msgpack. What
        it is, is seen from its first bytes. Files ending in ``.onnx`` go to ``fastrnn.onnx.load``:
        the layers are then called as the nodes are, and have no options.
    prefix : str, optional
        The name of one layer, which is then returned alone; ``""`` is a layer whose parameters have no prefix.
    options : dict, optional
        What the file does not say, by the names of the layers' arguments: ``{"batch_first": True}``,
        ``{"nonlinearity": "relu"}``, ``{"reset_after": False}``, ``{"dropout": 0.1}``, ``{"dtype": np.float64}``. Each
        goes to all layers that have it. The defaults are those of the layers, with two exceptions: layers of Keras have
        ``batch_first=True``, and what would change the results, such as tanh or relu, is asked for. Weights alone of an
        LSTM or GRU, ``.weights.h5`` for one, do not say activations or ``go_backwards``: they are taken as those of a
        usual layer that reads from the start. PyTorch's names alone do not say heads, nor that a layer is an sLSTM:
        ``{"heads": 4}`` and ``{"forget_gate": "sigmoid"}`` do, each for the layers that it fits.
    rng : seed, Generator or None
        Source of the dropout masks; files hold no generator.

    Returns
    -------
    layer, or dict of str to layer
        The layer of a file that was saved from one, frozen where it has weights in fewer bits; a dict by name from a
        file of several, in the order of the file, and from files of other programs always. float16 and bfloat16 are
        widened to float32. Arrays of safetensors, PyTorch's and Keras' files that are float32 or float64 in the order
        that is needed are not read but mapped: they come into memory when they are used, and writing to them changes
        nothing in the file. As with any mapping, the file must not be cut short meanwhile; to be replaced, as
        `fastrnn.save` does it, is fine.

    Raises
    ------
    FileError
        If the file is damaged or of no kind that is known, or holds a recurrent layer that fits none here; of the
        latter `prefix` chooses another one.
    ValueError
        If options are open, with the choices; or if they contradict the file in more than dtype, dropout,
        recurrent_dropout, its mode and batch_first, or no layer has them.
    KeyError
        If no layer has the name `prefix`.
    OSError
        If it cannot be read.
    ImportError
        For an ONNX file, without the extra ``onnx``.
    """
    from . import building  # here, as all readers together cost more than the rest of fastrnn
    from .found import as_told
    from .opening import opened

    name, given = os.fspath(path), dict(options or {})
    if str(name).endswith(".onnx"):
        return _load_onnx(path, str(name), prefix, given)
    with opened(path) as contents:
        layers = contents.layers
        if prefix is not None:
            layers = [layer for layer in layers if layer.name == prefix]
            if not layers:
                have = ", ".join(repr(layer.name) for layer in contents.layers) or "none"
                raise KeyError(f"{name} has no layer {prefix!r}; its layers are {have}")
        elif not layers:
            raise FileError(f"{name} ({contents.kind}) holds {contents.tensors} arrays and no recurrent layer")
        layers = [as_told(layer, given) for layer in layers]
        for layer in layers:
            building.refuse_unfit(layer, _who(name, layer.name))
        building.check_options(given, layers, name)
        budget = Budget(name, os.path.getsize(path))
        made = {layer.name: building.build(layer, given, _who(name, layer.name), rng, budget) for layer in layers}
    alone = prefix is not None or (contents.own and list(made) == [""])
    return next(iter(made.values())) if alone else made


def _who(name: str, layer: str) -> str:
    return f"{name}: its layer {layer!r}" if layer else name


def _load_onnx(path: Path, name: str, prefix: str | None, options: Mapping[str, Any]) -> Any:
    """The layers of an ONNX file, or the one of the node that is called `prefix`."""
    from ..onnx import load  # here, as it needs an extra

    if options:
        raise ValueError(f"{name}: load got options {', '.join(options)}; an ONNX file says everything: leave them out")
    if prefix is None:
        return load(path)
    try:
        return load(path, nodes=[prefix])[prefix]
    except FileError:
        raise
    except ValueError as error:  # no node is called so
        raise KeyError(f"{name} has no layer {prefix!r}: {error}") from error

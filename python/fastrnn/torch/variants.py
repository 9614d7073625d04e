"""Options of our own beside those of torch.nn: activations, clipping, peepholes, coupled gate, norms, heads, noise."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..options import read_options
from ..spec import describe

# of a module that has none
DEFAULTS: Mapping[str, Any] = {
    "heads": 1,
    "forget_gate": None,
    "nonlinearity": "tanh",
    "reset_after": True,
    "layer_norm": False,
    "peephole": False,
    "coupled": False,
    "clip": None,
    "activations": None,
    "zoneout": 0.0,
    "recurrent_dropout": 0.0,
    "recurrent_dropout_mode": "sequence",
}
# What a module has from its making on; torch.nn's own "nonlinearity" is not among them.
FIXED = DEFAULTS.keys() - {"nonlinearity"}


def read_variant(module: nn.RNNBase, activations: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check options that torch.nn does not have, of a cell with so many activations; return them as plain values.

    Raises
    ------
    TypeError, ValueError
        With every one that does not fit.
    """
    sizes = {key: getattr(module, key) for key in ("hidden_size", "proj_size", "bidirectional")}
    read = read_options(type(module).__name__, {**sizes, **given}, activations)
    return {key: read[key] for key in given}


def are_defaults(given: Mapping[str, Any]) -> bool:
    """Say whether these options are as torch.nn's modules have them."""
    return all(type(value) is type(DEFAULTS[key]) and value == DEFAULTS[key] for key, value in given.items())


def noise_options(zoneout: Any, recurrent_dropout: Any, mode: Any) -> dict[str, Any]:
    """Return them by their names."""
    return {"zoneout": zoneout, "recurrent_dropout": recurrent_dropout, "recurrent_dropout_mode": mode}


def add_peepholes(module: nn.RNNBase) -> None:
    """Give a module the parameters weight_peephole (3,H) behind the others of each layer and direction."""
    for names in module._all_weights:
        name = names[0].replace("weight_ih", "weight_peephole")
        peephole = nn.Parameter(getattr(module, names[0]).new_empty(3, module.hidden_size))
        nn.init.uniform_(peephole, -1 / math.sqrt(module.hidden_size), 1 / math.sqrt(module.hidden_size))
        module.register_parameter(name, peephole)
        names.append(name)
    _in_order(module)


def add_norms(module: nn.RNNBase, cell: str) -> None:
    """Give a module the gains and biases of a normalised cell behind the others of each layer and direction."""
    sizes = {"gates": len(module.weight_hh_l0), "hidden": module.hidden_size}
    for names in module._all_weights:
        for base, axes, is_bias in describe(cell).parameters:
            if "_norm_" not in base or (is_bias and not module.bias):
                continue
            name = names[0].replace("weight_ih", base)
            module.register_parameter(name, nn.Parameter(getattr(module, names[0]).new_empty(sizes[axes[0]])))
            names.append(name)
    reset_norms(module)
    _in_order(module)


def reset_norms(module: nn.RNNBase) -> None:
    """Set the gains of a normalised cell to 1 and its biases to 0."""
    for name, parameter in module.named_parameters():
        if name.startswith(("weight_norm", "bias")):
            nn.init.constant_(parameter, 1.0 if name.startswith("weight") else 0.0)


def _in_order(module: nn.RNNBase) -> None:
    """Take the parameters that `_all_weights` lists as the weights, in its order."""
    module._flat_weights_names = [name for names in module._all_weights for name in names]
    for name in module._flat_weights_names:  # in this order in state_dict, too
        module._parameters[name] = module._parameters.pop(name)
    module._init_flat_weights()


def use_heads(module: nn.RNNBase, heads: int) -> None:
    """Give a module the recurrent weights (G*H,H/heads) of so many heads."""
    for names in module._all_weights:
        whole = getattr(module, names[1])
        own = nn.Parameter(whole.new_empty(whole.shape[0], module.hidden_size // heads))
        nn.init.uniform_(own, -1 / math.sqrt(module.hidden_size), 1 / math.sqrt(module.hidden_size))
        module._parameters[names[1]] = own
    module._init_flat_weights()


__all__ = [
    "DEFAULTS",
    "FIXED",
    "add_norms",
    "add_peepholes",
    "are_defaults",
    "noise_options",
    "read_variant",
    "reset_norms",
    "use_heads",
]

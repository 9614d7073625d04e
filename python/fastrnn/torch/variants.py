"""Options of our own beside those of torch.nn: activations, clipping, peepholes, the coupled gate."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checks import Problems
from ..options import as_text, general, read_activations, read_clip, read_nonlinearity

# of a module that has none
DEFAULTS: Mapping[str, Any] = {
    "nonlinearity": "tanh",
    "reset_after": True,
    "peephole": False,
    "coupled": False,
    "clip": None,
    "activations": None,
}


def read_variant(name: str, usual: tuple[str, ...], bidirectional: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a module of torch.nn's name and return them as plain values.

    Raises
    ------
    TypeError, ValueError
        With every one that does not fit.
    """
    problems, read = Problems(lambda: name), dict(given)
    for key, value in given.items():
        if key in ("reset_after", "peephole", "coupled") and not isinstance(value, bool):
            problems.type(f"{key}={value!r}", f"{key} must be True or False.")
        elif key == "activations" and value is not None:
            read[key] = read_activations(problems, key, value, len(usual), bidirectional)
        elif key == "nonlinearity":
            read[key] = read_nonlinearity(problems, value, bidirectional)
        elif key == "clip":
            read[key] = read_clip(problems, value)
    problems.refuse()
    return read


def text_of(usual: tuple[str, ...], options: Mapping[str, Any]) -> str:
    """Return what the operators are told of such options, "" for the usual cell."""
    return as_text(general(options, usual))


def add_peepholes(module: nn.RNNBase) -> None:
    """Give a module the parameters weight_peephole (3,H) behind the others of each layer and direction."""
    for names in module._all_weights:
        name = names[0].replace("weight_ih", "weight_peephole")
        peephole = nn.Parameter(getattr(module, names[0]).new_empty(3, module.hidden_size))
        nn.init.uniform_(peephole, -1 / math.sqrt(module.hidden_size), 1 / math.sqrt(module.hidden_size))
        module.register_parameter(name, peephole)
        names.append(name)
    module._flat_weights_names = [name for names in module._all_weights for name in names]
    for name in module._flat_weights_names:  # in this order in state_dict, too
        module._parameters[name] = module._parameters.pop(name)
    module._init_flat_weights()


__all__ = ["DEFAULTS", "add_peepholes", "read_variant", "text_of"]

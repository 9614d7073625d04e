"""How the parameters of a layer start out."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import checks
from .parameters import Parameters

Array = NDArray[Any]
# a string: naming numpy.random loads it, which costs more than all of fastrnn
Seed: TypeAlias = "int | Sequence[int] | np.random.Generator | None"
RecurrentWeights = Literal["uniform", "orthogonal", "identity"]


def initialise(
    parameters: Parameters,
    hidden_size: int,
    heads: int,
    recurrent: RecurrentWeights,
    forget_bias: float | None,
    rng: "np.random.Generator",
) -> None:
    """Draw all parameters anew, in place; see the layers' ``initialise`` for the meaning of the arguments."""
    k = 1 / np.sqrt(hidden_size)
    normalised = any(name.startswith("weight_norm") for name in parameters)
    for name, p in parameters.items():
        if name.startswith("weight_hh") and recurrent != "uniform":
            for block in np.split(p, len(p) // hidden_size * heads):
                block[...] = np.eye(*block.shape) if recurrent == "identity" else orthogonal(block.shape, rng)
        elif name.startswith("weight_norm"):
            p[...] = 1
        elif name.startswith("bias") and (normalised or recurrent == "identity"):
            p[...] = 0
        else:
            p[...] = rng.uniform(-k, k, p.shape)
        if name.startswith("bias") and forget_bias is not None:
            # both biases are added, so one of them holds the whole
            p[hidden_size : 2 * hidden_size] = forget_bias if name.startswith("bias_ih") else 0


def orthogonal(shape: tuple[int, ...], rng: "np.random.Generator") -> Array:
    """Return a random matrix (m,n), m >= n, with orthonormal columns, uniformly distributed (Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.standard_normal(shape))
    # QR is unique only up to the signs of R's diagonal; fixing them makes the distribution uniform
    signed: Array = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return signed


def as_generator(name: str, rng: Seed) -> "np.random.Generator":
    """Return the generator that an rng argument stands for."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise checks.seed_error(name, rng, error) from error

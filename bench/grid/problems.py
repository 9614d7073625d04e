"""The numbers of a point: fastrnn's own initial weights and drawn inputs, so that no peer is needed to make them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastrnn

from .shapes import Point

Array = NDArray[Any]
RESET_PROBABILITY = 0.02


def make_layer(point: Point) -> Any:
    """The layer of a point; the same weights in every run."""
    return getattr(fastrnn, point.cell)(
        point.I,
        point.H,
        point.layers,
        bidirectional=point.bidirectional,
        batch_first=point.variant == "batch_first",
        dtype=point.dtype,
        rng=0,
    )


class Problem:
    """Weights and arrays of a point; nobody writes to any of them.

    Attributes
    ----------
    weights : dict of str to array
        By PyTorch's names, in its layout and gate order.
    x, dy : array
        (T,B,I) and (T,B,D*H); with ``batch_first`` (B,T,...).
    h0, c0 : array
        (L*D,B,H), what a step starts from. Sequences start from zeros.
    reset : array or None
        (T,B) bool.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.layer = make_layer(point)
        self.weights: dict[str, Array] = self.layer.state_dict()
        rng = np.random.default_rng(1)
        dtype, width = np.dtype(point.dtype), point.directions * point.H
        rows = (point.B, point.T) if point.variant == "batch_first" else (point.T, point.B)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=dtype.type)

        self.x, self.dy = draw(*rows, point.I), draw(*rows, width)
        self.h0, self.c0 = (np.tanh(draw(point.layers * point.directions, point.B, point.H)) for _ in range(2))
        self.reset = rng.random((point.T, point.B)) < RESET_PROBABILITY if point.variant == "reset" else None

    def suffixes(self) -> list[list[str]]:
        """What ends the parameters' names, for each layer the one or two directions."""
        return [[f"_l{k}{end}" for end in ("", "_reverse")[: self.point.directions]] for k in range(self.point.layers)]

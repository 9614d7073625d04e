"""Nodes that NumPy does as well: those that move axes and no numbers, and comparisons, which decide for an If."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constants import Constants
from .reading import attributes

Array = NDArray[Any]
Sizes = list[int | str | None] | None  # of an array: a number, the name of one, or unknown; None: not even how many
# What is done to an array and to its sizes, and whether the result is bool whatever the array was.
Change = tuple[Callable[[Array], Array], Callable[[Sizes], Sizes], bool]


def view(node: Any, constants: Constants) -> Change | None:
    """Return what a node does; None if it is no such node, or it depends on more than one array."""
    if node.domain not in ("", "ai.onnx") or not node.input or node.op_type not in _MAKERS:
        return None
    if not all(map(constants.is_constant, node.input[1:])):
        return None
    given = attributes(node)
    second = constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    return _MAKERS[node.op_type](given, second)


def _identity(given: dict[str, Any], second: Array | None) -> Change:
    return lambda a: a, lambda sizes: sizes, False


def _transpose(given: dict[str, Any], second: Array | None) -> Change:
    order = given.get("perm")

    def sizes(old: Sizes) -> Sizes:
        return None if old is None else [old[k] for k in (order or range(len(old))[::-1]) if k < len(old)]

    return lambda a: a.transpose(order), sizes, False


def _squeeze(given: dict[str, Any], second: Array | None) -> Change:
    axes = _axes(given, second)

    def sizes(old: Sizes) -> Sizes:
        if old is None or axes is None:
            return None
        away = {axis % len(old) for axis in axes}
        return [size for k, size in enumerate(old) if k not in away]

    gone = None if axes is None else tuple(axes)
    return lambda a: a.squeeze(gone), sizes, False


def _unsqueeze(given: dict[str, Any], second: Array | None) -> Change | None:
    axes = _axes(given, second)
    if axes is None:
        return None

    def sizes(old: Sizes) -> Sizes:
        if old is None:
            return None
        rank = len(old) + len(axes)
        new, rest = {axis % rank for axis in axes}, iter(old)
        return [1 if k in new else next(rest, None) for k in range(rank)]

    places: dict[int, tuple[Any, ...]] = {}  # by the number of axes: None for a new one

    def change(a: Array) -> Array:
        place = places.get(a.ndim)
        if place is None:
            rank = a.ndim + len(axes)
            new = {axis % rank for axis in axes}
            place = places[a.ndim] = tuple(None if k in new else slice(None) for k in range(rank))
        found: Array = a[place]
        return found

    return change, sizes, False


def _reshape(given: dict[str, Any], second: Array | None) -> Change | None:
    if second is None:
        return None
    wanted: list[int] = second.tolist()
    copies = not given.get("allowzero", 0)

    def change(a: Array) -> Array:
        return a.reshape([a.shape[k] if size == 0 and copies else size for k, size in enumerate(wanted)])

    def sizes(old: Sizes) -> Sizes:
        kept: Sequence[int | str | None] = old or []
        return [
            (kept[k] if k < len(kept) else None) if size == 0 and copies else None if size < 0 else size
            for k, size in enumerate(wanted)
        ]

    return change, sizes, False


def _comparison(compare: Callable[[Array, Array], Array]) -> Callable[[dict[str, Any], Array | None], Change | None]:
    def make(given: dict[str, Any], second: Array | None) -> Change | None:
        if second is None or second.size != 1 or second.ndim:
            return None
        return lambda a: np.asarray(compare(a, second)), lambda sizes: sizes, True

    return make


def _axes(given: dict[str, Any], second: Array | None) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze: an attribute up to opset 12, an input since."""
    found: list[int] | None = given.get("axes") if second is None else np.atleast_1d(second).tolist()
    return found


_MAKERS: dict[str, Callable[[dict[str, Any], Array | None], Change | None]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Equal": _comparison(np.equal),
    "Less": _comparison(np.less),
    "Greater": _comparison(np.greater),
}

"""The losses: softmax and sigmoid with cross entropy, from logits, with their gradients."""

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..checks import Problems, output_array, overlaps
from ..memory import as_array, integers
from ..threads import get_num_threads

__all__ = ["binary_cross_entropy", "cross_entropy"]

Array = NDArray[Any]
Reduction = Literal["mean", "sum"]


def _logits(problems: Problems, value: ArrayLike) -> Array:
    array = as_array(problems, "logits", value)
    if array is None:
        problems.refuse()
    assert array is not None
    if array.dtype not in (np.float32, np.float64):
        fix = "logits.astype(np.float32)" if isinstance(value, np.ndarray) else "np.asarray(logits, dtype=np.float32)"
        problems.type(f"logits with dtype {array.dtype}", f"They must be float32 or float64: use {fix}.")
    return array


def _mask(problems: Problems, value: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    array = as_array(problems, "mask", value)
    if array is None:
        return None
    if array.dtype != bool:
        problems.type(f"mask with dtype {array.dtype}", "It must be boolean, True where the target counts.")
    elif array.shape != shape:
        problems.shape(f"mask with shape {array.shape}", f"It must have the shape of the targets: {shape}.")
    else:
        return cast("NDArray[np.bool_]", array)
    return None


def _select(losses: Array, dlogits: Array, mask: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Leave out what does not count; a select, not a product: a NaN that does not count reaches nothing."""
    dlogits[~mask] = 0.0
    return losses[mask], dlogits


def _reduce(losses: Array, dlogits: Array, mask: NDArray[np.bool_] | None, reduction: Reduction) -> tuple[float, Array]:
    """Sum what counts, in float64; a mean divides loss and gradient by how many count."""
    if mask is not None:
        losses, dlogits = _select(losses, dlogits, mask)
    total = float(losses.sum(dtype=np.float64))
    if reduction == "mean" and losses.size:
        total /= losses.size
        dlogits /= losses.size
    return total, dlogits


def _check_reduction(problems: Problems, reduction: object) -> None:
    if reduction not in ("mean", "sum"):
        problems.value(f"reduction={reduction!r}", 'It must be "mean" or "sum".')


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    out: Array | None = None,
) -> tuple[float, Array]:
    """Softmax and cross entropy in one: the loss ``-log softmax(logits)[target]`` and its gradient.

    Parameters
    ----------
    logits : array (...,V)
        Unnormalised log probabilities, float32 or float64.
    targets : integer array (...)
        The right class of each row, in 0..V-1.
    mask : bool array (...), optional
        True where a row counts. The target of a row that does not count may be any integer.
    reduction : {"mean", "sum"}
        Over all rows that count; the mean of none is 0.
    label_smoothing : float
        e in [0, 1): the target is 1 - e + e/V for the right class and e/V for each other one, instead of 1 and 0
        (Szegedy et al. 2016).
    out : array (...,V), optional
        Where dlogits is written; it may be the logits themselves.

    Returns
    -------
    loss : float
        In nats, summed in float64.
    dlogits : array (...,V)
        ``(softmax(logits) - target)``, divided by the number of rows for the mean; zero where the mask is
        False. The dtype is that of the logits.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If shapes, dtypes or a target do not fit.
    """
    problems = Problems(lambda: "cross_entropy")
    logits = _logits(problems, logits)
    classes = logits.shape[-1] if logits.ndim else 0
    shape = logits.shape[:-1]
    if classes == 0:
        problems.shape(f"logits with shape {logits.shape}", "They must have a last axis with at least one class.")
    got = as_array(problems, "targets", targets)
    if got is None:
        problems.refuse()
    assert got is not None
    counts = _mask(problems, mask, shape)
    if got.shape != shape:
        why = f"There must be one target per row of the logits {logits.shape}: shape {shape}."
        if got.shape == logits.shape:
            why += " They are class numbers, not one-hot vectors: did you mean targets.argmax(-1)?"
        problems.shape(f"targets with shape {got.shape}", why)
    elif classes:
        if counts is not None and got.dtype.kind in "iu":
            targets = np.where(counts, got, 0)  # those that do not count are not looked at
        targets = integers(problems, "targets", targets, "class numbers", classes)
    _check_reduction(problems, reduction)
    if not isinstance(label_smoothing, (int, float, np.number)) or not 0 <= label_smoothing < 1:
        problems.value(f"label_smoothing={label_smoothing!r}", "It must be at least 0 and below 1.")
    if out is not None and output_array(problems, "out", out, logits.shape, logits.dtype):
        overlaps(problems, {"out": out}, {"logits": None if out is logits else logits, "targets": got, "mask": counts})
    problems.refuse()

    rows = np.require(logits.reshape(-1, classes), requirements=["C", "A"])
    right = np.ascontiguousarray(cast("Array", targets).reshape(-1))
    count = len(rows) if counts is None else int(np.count_nonzero(counts))
    scale = 1 / count if reduction == "mean" and count else 1.0
    flat = None if out is None else out.reshape(-1, classes)
    losses, dlogits = _core.softmax(rows, right, label_smoothing, scale, get_num_threads(), flat)
    if counts is not None:
        losses, dlogits = _select(losses, dlogits, counts.reshape(-1))
    return float(losses.sum() * scale), dlogits.reshape(logits.shape) if out is None else out


def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, mask: ArrayLike | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Sigmoid and cross entropy in one, for yes-or-no targets.

    The loss of an element is ``-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z))``, computed as
    ``max(z, 0) - t z + log(1 + exp(-|z|))``, which neither overflows nor loses small values.

    Parameters
    ----------
    logits : array (...)
        Float32 or float64.
    targets : array (...)
        Booleans or numbers in 0..1.
    mask : bool array (...), optional
        True where an element counts; the target of one that does not may be anything.
    reduction : {"mean", "sum"}
        Over all elements that count; the mean of none is 0.

    Returns
    -------
    loss : float
        In nats, summed in float64.
    dlogits : array (...)
        ``sigmoid(logits) - targets``, divided by the number of elements for the mean; zero where the mask is False.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If shapes, dtypes or a target do not fit.
    """
    problems = Problems(lambda: "binary_cross_entropy")
    z = _logits(problems, logits)
    got = as_array(problems, "targets", targets)
    if got is None:
        problems.refuse()
    assert got is not None
    counts = _mask(problems, mask, z.shape)
    if got.shape != z.shape:
        problems.shape(f"targets with shape {got.shape}", f"They must have the shape of the logits: {z.shape}.")
    if got.dtype.kind not in "biuf":
        problems.type(f"targets with dtype {got.dtype}", "They must be booleans or numbers in 0..1.")
    else:
        outside = ~((got >= 0) & (got <= 1))
        if counts is not None and counts.shape == got.shape:
            outside &= counts
        if outside.any():
            where = tuple(np.argwhere(outside)[0])
            problems.value(f"targets[{', '.join(map(str, where))}] = {got[where]}", "Each must be in 0..1.")
    _check_reduction(problems, reduction)
    problems.refuse()

    t = got.astype(z.dtype)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller sees
        small = np.exp(-np.abs(z))
        losses = np.maximum(z, 0.0) - t * z + np.log1p(small)
        dlogits = np.where(z >= 0, 1.0, small) / (1.0 + small) - t
    return _reduce(losses, dlogits, counts, reduction)

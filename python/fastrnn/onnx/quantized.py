"""DynamicQuantizeLSTM of ONNX Runtime's domain com.microsoft: an LSTM whose weights are integers of 8 bits.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md describes it. A weight is
(integer - zero point) * scale, with one zero point and one scale for a whole matrix or for each of its columns, which
are rows here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import Problems
from ..frozen import keep_integers

Array = NDArray[Any]


def dequantised(
    problems: Problems, directions: int, hidden_size: int, given: Sequence[Array | None]
) -> tuple[list[Array | None], list[Array]]:
    """Return weights as an LSTM node has them, and what an integer of each of their rows counts.

    Parameters
    ----------
    problems
        Takes what does not fit; then nothing that is returned is of use.
    given
        W (D,I,4*H), R (D,H,4*H), both int8 or uint8, B, P, then W_scale, W_zero_point, R_scale and R_zero_point, each
        (D,) or (D,4*H); a zero point that is left out is 0.

    Returns
    -------
    weights
        W (D,4*H,I), R (D,4*H,H), float32, B and P.
    scales
        Of W and R, (D,4*H), as `keep_integers` has them.
    """
    W, R, B, P, *more = given
    rows = 4 * hidden_size
    of_w = _matrix(problems, "W", directions, rows, W, more[0], more[1])
    of_r = _matrix(problems, "R", directions, rows, R, more[2], more[3])
    return [of_w[0], of_r[0], B, P], [of_w[1], of_r[1]]


def _matrix(
    problems: Problems,
    name: str,
    directions: int,
    rows: int,
    integers: Array | None,
    scale: Array | None,
    zero: Array | None,
) -> tuple[Array, Array]:
    nothing = np.zeros((directions, rows, 1), np.float32), np.ones((directions, rows), np.float32)
    if integers is None or integers.dtype not in (np.int8, np.uint8) or integers.ndim != 3:
        got = f"no {name}" if integers is None else f"{name} of {integers.dtype} with shape {integers.shape}"
        problems.type(got, f"It must be int8 or uint8 of shape ({directions}, inputs, {rows}).")
        return nothing
    if integers.shape[::2] != (directions, rows) or not integers.size:
        problems.shape(f"{name} with shape {integers.shape}", f"It must be ({directions}, inputs, {rows}).")
        return nothing
    each = [(directions,), (directions, rows)]
    if scale is None or scale.dtype != np.float32 or scale.shape not in each:
        got = "no" if scale is None else f"{scale.dtype} of shape {scale.shape} as"
        problems.value(f"{got} {name}_scale", f"It must be float32 of shape {each[0]} or {each[1]}.")
        return nothing
    if not (np.isfinite(scale).all() and (scale >= np.finfo(np.float32).tiny).all()):
        problems.value(f"{name}_scale with {scale.min()}", "Scales must be positive, finite and not subnormal.")
        return nothing
    if zero is not None and (zero.dtype != integers.dtype or zero.shape not in each):
        why = f"It must be {integers.dtype}, as {name}, of shape {each[0]} or {each[1]}."
        problems.value(f"{zero.dtype} of shape {zero.shape} as {name}_zero_point", why)
        return nothing
    shift = np.zeros(directions, np.int16) if zero is None else zero.astype(np.int16)
    less = integers.swapaxes(1, 2).astype(np.int16) - _each_row(shift, rows)[:, :, None]
    return keep_integers(less, _each_row(scale, rows))


def _each_row(value: Array, rows: int) -> Array:
    return value if value.ndim == 2 else np.broadcast_to(value[:, None], (len(value), rows))

"""From what a user hands over to what the core takes: arrays (T,B,...) of the layer's dtype, or one clear error."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .checks import Problems
from .results import Tape
from .spec import Spec

Array = NDArray[Any]
OneHot: TypeAlias = Literal["one-hot"]
StateLike = ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None


States = tuple[Array | None, ...] | None  # None, also as a member: zeros


class Inputs(NamedTuple):
    """The arguments of one call over a sequence, as the core takes them."""

    x: Array  # (T, B, I), or token ids (T, B)
    states: States  # (L*D, B, size) each
    lengths: Array | None  # (B,) int64
    reset: Array | None  # (T, B) bool
    batch_first: bool
    unbatched: bool
    time: int
    batch: int
    embedding: Array | None  # (V, I); None beside token ids: they are one-hot
    ids: int | None  # rows of the embedding, 0 for one-hot ids, None where x holds features


class StepInputs(NamedTuple):
    """The arguments of one step, as the core takes them; ``out`` and ``ends`` are the caller's own memory."""

    x: Array  # (B, I)
    states: States  # (L, B, size) each
    out: Array | None  # (B, P)
    ends: tuple[Array, ...] | None  # the same
    unbatched: bool


def as_array(problems: Problems, name: str, value: ArrayLike) -> Array | None:
    """Return what NumPy makes of a value."""
    try:
        return checks.numbers(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a PyTorch tensor that requires a gradient
        checks.not_an_array(problems, name, value, error)
        return None


def as_real(problems: Problems, name: str, value: ArrayLike, dtype: np.dtype[Any]) -> Array | None:
    """Return an array of the layer's dtype; one that does not convert safely is a problem and comes back as it is."""
    array = as_array(problems, name, value)
    if array is None or array.dtype == dtype:
        return array
    if array.dtype.kind in "biuf" and np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    checks.unsafe_dtype(problems, name, hasattr(value, "astype"), array.dtype, dtype)
    return array


def integers(
    problems: Problems, name: str, value: ArrayLike, what: str, count: int, matters: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return ids as int64, each in 0..count-1 where it matters; a problem names the first that is not."""
    array = as_array(problems, name, value)
    if array is None:
        return np.zeros(0, np.int64)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        problems.type(f"{name} with dtype {array.dtype}", f"They are {what} and must be integers.")
        return np.zeros(array.shape, np.int64)
    if array.size and (array.min() < 0 or array.max() >= count):
        wrong = (array < 0) | (array >= count)
        bad = np.argwhere(wrong if matters is None else wrong & matters)
        if not len(bad):
            return array.astype(np.int64, copy=False)
        where = ", ".join(map(str, bad[0]))
        more = f" and {len(bad) - 1} more out of range" if len(bad) > 1 else ""
        got = f"{name}[{where}] = {array[tuple(bad[0])]}{more}"
        problems.value(got, f"They are {what} and must be in 0..{count - 1}.")
        return np.zeros(array.shape, np.int64)
    return array.astype(np.int64, copy=False)


def in_rows(array: Array) -> Array:
    """Return the array, copied if its last axis is not a contiguous run of aligned elements."""
    size = array.itemsize
    if array.strides[-1] == size and array.flags.aligned and not any(s % size for s in array.strides):
        return array
    return array.copy(order="C")


def read_state(
    problems: Problems, layer: Spec[Any], name: str, state: StateLike, batch: int | None, time: int | None
) -> States:
    """Return the states (L*D,B,size); None, for zeros, stays None.

    Parameters
    ----------
    batch
        None beside an unbatched x: the state then has no batch axis.
    time
        The number of time steps, for a hint; None where there is none.
    """
    if state is None:
        return None
    members = members_of(problems, layer, name, state)
    if members is None:
        return None
    shapes = layer._state_shapes(batch)
    return tuple(
        _read_member(problems, layer, of, value, shape, time)
        for (of, value), shape in zip(members, shapes, strict=True)
    )


def members_of(problems: Problems, layer: Spec[Any], name: str, state: Any) -> list[tuple[str, Any]] | None:
    """Return the members of a state and what to call them."""
    if not layer._has_cell_state:
        if isinstance(state, tuple):
            checks.one_state(problems, name, state)
            return None
        return [(name, state)]
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        checks.two_states(problems, name, state)
        return None
    return [(f"{name}.h", state[0]), (f"{name}.c", state[1])]


def _read_member(
    problems: Problems, layer: Spec[Any], name: str, value: Any, wanted: tuple[int, ...], time: int | None
) -> Array | None:
    if value is None:
        return None
    array = as_real(problems, name, value, layer.dtype)
    if array is None:
        return None
    last_axis = "hidden_size" if wanted[-1] == layer.hidden_size else "proj_size"
    checks.state_shape(problems, name, array.shape, wanted, last_axis, time)
    if array.shape != wanted:
        return None
    array = np.ascontiguousarray(array)
    if not array.flags.aligned:
        array = array.copy()
    return array[:, None] if array.ndim == 2 else array


def read_lengths(problems: Problems, lengths: Any, batch: int, time: int, unbatched: bool) -> Array | None:
    """Return lengths as (B,) int64; beside an unbatched x a single integer will do."""
    array = as_array(problems, "lengths", lengths)
    if array is None:
        return None
    is_array = hasattr(lengths, "astype")
    if array.size == 0 and not is_array:
        array = array.astype(np.int64)  # of an empty list NumPy makes float64
    if array.dtype.kind not in "iu":
        checks.integer_lengths(problems, is_array, array.dtype)
    if unbatched and array.ndim == 0:
        array = array[None]
    checks.length_shape(problems, array.shape, batch, time)
    if array.dtype.kind not in "iu":
        return None
    checks.length_range(problems, array, time)
    return np.ascontiguousarray(array, dtype=np.int64)


def read_reset(problems: Problems, reset: Any, wanted: tuple[int, ...], batch_first: bool) -> Array | None:
    """Return reset as (T,B) bool."""
    array = as_array(problems, "reset", reset)
    if array is None:
        return None
    if array.dtype != np.bool_:
        checks.boolean_reset(problems, hasattr(reset, "astype"), array.dtype)
    checks.reset_shape(problems, array.shape, wanted, batch_first)
    if array.shape != wanted:
        return None
    return np.ascontiguousarray(array[:, None] if array.ndim == 1 else array.T if batch_first else array)


def read_embedding(problems: Problems, layer: Spec[Any], embedding: "ArrayLike | OneHot") -> Array | None:
    """Return an embedding (V,I) of the layer's dtype, or None for one-hot."""
    if isinstance(embedding, str):
        if embedding != "one-hot":
            problems.value(f"embedding={embedding!r}", 'It must be an array (ids, features) or "one-hot".')
        return None
    array = as_real(problems, "embedding", embedding, layer.dtype)
    if array is not None:
        checks.embedding_shape(problems, array.shape, layer.input_size)
    return array if array is None else np.require(array, requirements=["C", "A"])


def read(
    layer: Spec[Any],
    who: Callable[[], str],
    x: ArrayLike,
    state: StateLike,
    lengths: Any,
    reset: Any,
    embedding: "ArrayLike | OneHot | None" = None,
) -> Inputs:
    """Check and convert the arguments of a call over a sequence.

    Raises
    ------
    TypeError, ValueError, ShapeError
        With every argument that does not fit.
    """
    problems = Problems(who)
    features = embedding is None  # x holds them, or ids
    array = as_real(problems, "x", x, layer.dtype) if features else as_array(problems, "ids", x)
    if array is not None and not features and not array.size and not isinstance(x, np.ndarray):
        array = array.astype(np.int64)  # of an empty list NumPy makes float64
    if array is not None and features:
        checks.input_shape(problems, array.shape, layer.input_size, layer.batch_first)
    elif array is not None:
        checks.ids_shape(problems, array.shape, layer.batch_first)
    if array is None or array.ndim - features not in (1, 2):
        problems.refuse()
    assert array is not None
    unbatched = array.ndim - features == 1
    batch_first = layer.batch_first and not unbatched
    if features:
        array = in_rows(array)
    array = array[:, None] if unbatched else array.swapaxes(0, 1) if batch_first else array
    T, B = array.shape[:2]

    states = read_state(problems, layer, "state", state, None if unbatched else B, T if T != B else None)
    if lengths is not None:
        lengths = read_lengths(problems, lengths, B, T, unbatched)
    if reset is not None:
        wanted = (T,) if unbatched else (B, T) if batch_first else (T, B)
        reset = read_reset(problems, reset, wanted, batch_first)
    rows, ids = None, None
    if embedding is not None:
        rows = read_embedding(problems, layer, embedding)
        problems.refuse()
        ids = 0 if rows is None else len(rows)
        what = "rows of the embedding" if ids else "places of the 1 in a one-hot vector"
        array = _read_ids(problems, array, what, ids or layer.input_size, lengths, batch_first, unbatched)
    problems.refuse()
    return Inputs(array, states, lengths, reset, batch_first, unbatched, T, B, rows, ids)


def _read_ids(
    problems: Problems,
    ids: Array,
    what: str,
    count: int,
    lengths: Array | None,
    batch_first: bool,
    unbatched: bool,
) -> NDArray[np.int64]:
    """Return ids (T,B) as int64; those past a length need not be in range."""
    runs = None if lengths is None else np.arange(len(ids))[:, None] < lengths

    def as_given(a: Array) -> Array:
        return a[:, 0] if unbatched else a.T if batch_first else a

    integers(problems, "ids", as_given(ids), what, count, None if runs is None else as_given(runs))
    problems.refuse()
    return np.ascontiguousarray(ids, dtype=np.int64)


def read_gradients(
    layer: Spec[Any], tape: Tape, dy: ArrayLike | None, dstate: StateLike
) -> tuple[Array | None, States]:
    """Check and convert what backward starts from: dy as (T,B,D*P), gradients of the final states; None stays None."""
    problems = Problems(lambda: f"{layer._brief()}.backward")
    array = None if dy is None else as_real(problems, "dy", dy, layer.dtype)
    if array is not None:
        checks.same_shape(problems, "dy", array.shape, tape.y_shape, "y of the forward call")
    batch = None if tape.unbatched else tape.batch
    dstates = read_state(problems, layer, "dstate", dstate, batch, None)
    problems.refuse()
    if array is not None:
        array = in_rows(array)
        array = array[:, None] if tape.unbatched else array.swapaxes(0, 1) if tape.batch_first else array
    return array, dstates


def read_step(layer: Spec[Any], x: ArrayLike, state: StateLike, out: Any, state_out: Any) -> StepInputs:
    """Check and convert the arguments of one step.

    Raises
    ------
    TypeError, ValueError, ShapeError
        With every argument that does not fit, and for outputs that share memory with what is still in use.
    """
    problems = Problems(lambda: f"{layer._brief()}.freeze().step")
    array = as_real(problems, "x", x, layer.dtype)
    if array is not None:
        checks.step_input_shape(problems, array.shape, layer.input_size)
    if array is None or array.ndim not in (1, 2):
        problems.refuse()
    assert array is not None
    unbatched = array.ndim == 1
    array = np.ascontiguousarray(in_rows(array))
    batch = None if unbatched else array.shape[0]
    states = read_state(problems, layer, "state", state, batch, None)

    y_shape = (layer._output_size,) if batch is None else (batch, layer._output_size)
    if out is not None and not checks.output_array(problems, "out", out, y_shape, layer.dtype):
        out = None
    ends: list[Array | None] = []
    members = None if state_out is None else members_of(problems, layer, "state_out", state_out)
    if members is not None:
        shapes = layer._state_shapes(batch)
        ends = [_writable(problems, layer, *named, wanted) for named, wanted in zip(members, shapes, strict=True)]
    checks.overlaps(
        problems,
        outputs={"out": out, **_named("state_out", ends)},
        inputs={"x": array, **_named("state", states or ())},
    )
    problems.refuse()
    if unbatched:
        array, out = array[None], None if out is None else out[None]
    written = tuple(s[:, None] if unbatched else s for s in ends if s is not None) or None
    return StepInputs(array, states, out, written, unbatched)


def _named(name: str, states: Sequence[Array | None]) -> dict[str, Array | None]:
    """Return arrays by the names that errors about overlaps give them."""
    return dict(zip((name, f"{name}.c"), states, strict=False))


def _writable(problems: Problems, layer: Spec[Any], name: str, value: Any, wanted: tuple[int, ...]) -> Array | None:
    return value if checks.output_array(problems, name, value, wanted, layer.dtype) else None

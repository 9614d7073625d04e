"""From what a user hands over to what the core takes: arrays (T,B,...) of the layer's dtype, or one clear error.

In two steps: everything is checked, then brought to the `Memory` of the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .checks import Problems
from .memory import Memory, Shape, as_array, as_real, integers
from .spec import Spec

Array = NDArray[Any]
OneHot: TypeAlias = Literal["one-hot"]
StateLike = ArrayLike | tuple[ArrayLike | None, ...] | None
States = tuple[Any, ...]  # arrays, None for one of zeros; none at all: all of them


class Inputs(NamedTuple):
    """The arguments of one call over a sequence, as the core takes them, in a device's memory."""

    x: Any  # (T, B, I), or token ids (T, B)
    states: States  # (L*D, B, size) each
    lengths: Any  # (B,) int64 or None
    reset: Any  # (T, B) bool or None
    batch_first: bool
    unbatched: bool
    time: int
    batch: int
    embedding: Array | None  # (V, I); None beside token ids: they are one-hot
    ids: int | None  # rows of the embedding, 0 for one-hot ids, None where x holds features

    @property
    def leading(self) -> Shape:
        """The axes of x before its features, as the caller has them."""
        if self.unbatched:
            return (self.time,)
        return (self.batch, self.time) if self.batch_first else (self.time, self.batch)


class StepInputs(NamedTuple):
    """The arguments of one step, as the core takes them; ``out`` and ``ends`` are the caller's own memory."""

    x: Array  # (B, I)
    states: States | None  # (L, B, size) each
    out: Array | None  # (B, P)
    ends: tuple[Array, ...] | None  # the same
    unbatched: bool


def read_state(
    problems: Problems,
    layer: Spec[Any],
    memory: Memory,
    name: str,
    state: StateLike,
    batch: int | None,
    time: int | None,
) -> States:
    """Return the states (L*D,B,size), checked and as the caller has them.

    Parameters
    ----------
    batch
        None beside an unbatched x: the state then has no batch axis.
    time
        The number of time steps, for a hint; None where there is none.
    """
    members = None if state is None else members_of(problems, layer, name, state)
    if members is None:
        return ()
    shapes = layer._state_shapes(batch)
    return tuple(
        [
            None if value is None else _read_member(problems, layer, memory, of, value, shape, time)
            for (of, value), shape in zip(members, shapes, strict=True)
        ]
    )


def members_of(problems: Problems, layer: Spec[Any], name: str, state: Any) -> list[tuple[str, Any]] | None:
    """Return the members of a state and what to call them."""
    if not layer._has_cell_state:
        if isinstance(state, tuple):
            checks.one_state(problems, name, state)
            return None
        return [(name, state)]
    members = [member for member, _ in layer._states]
    if not isinstance(state, (tuple, list)) or len(state) != len(members):
        checks.several_states(problems, name, state, members)
        return None
    return [(f"{name}.{member}", value) for member, value in zip(members, state, strict=True)]


def _read_member(
    problems: Problems, layer: Spec[Any], memory: Memory, name: str, value: Any, wanted: Shape, time: int | None
) -> Any:
    array = memory.real(problems, name, value, memory.state_dtype)
    if array is None:
        return None
    last_axis = "hidden_size" if wanted[-1] == layer.hidden_size else "proj_size"
    checks.state_shape(problems, name, array.shape, wanted, last_axis, time)
    if name == "state.n" and isinstance(
        array, np.ndarray
    ):  # on a GPU nobody waits to see it; gradients may be negative
        checks.normaliser(problems, name, array)
    array = memory.whole(problems, name, array)
    return array if array.shape == wanted else None


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
    memory: Memory,
    who: Callable[[], str],
    x: Any,
    state: StateLike,
    lengths: Any,
    reset: Any,
    embedding: "ArrayLike | OneHot | None" = None,
) -> Inputs:
    """Check the arguments of a call over a sequence and bring them where the device wants them.

    Raises
    ------
    TypeError, ValueError, ShapeError
        With every argument that does not fit.
    """
    problems = Problems(who)
    features = embedding is None  # x holds them, or ids
    array = memory.real(problems, "x", x, memory.dtype) if features else as_array(problems, "ids", x)
    if array is not None and not features and not array.size and not isinstance(x, np.ndarray):
        array = array.astype(np.int64)  # of an empty list NumPy makes float64
    shape = () if array is None else array.shape
    if array is not None and features:
        checks.input_shape(problems, shape, layer.input_size, layer.batch_first)
    elif array is not None:
        checks.ids_shape(problems, shape, layer.batch_first)
    if array is None or len(shape) - features not in (1, 2):
        problems.refuse()
    assert array is not None
    unbatched = len(shape) - features == 1
    batch_first = layer.batch_first and not unbatched
    T, B = (shape[0], 1) if unbatched else (shape[1], shape[0]) if batch_first else shape[:2]
    if features:
        array = memory.rows(problems, "x", array)

    states = read_state(problems, layer, memory, "state", state, None if unbatched else B, T if T != B else None)
    if lengths is not None:
        lengths = memory.lengths(problems, lengths, B, T, unbatched)
    if reset is not None:
        wanted = (T,) if unbatched else (B, T) if batch_first else (T, B)
        reset = memory.reset(problems, reset, wanted, batch_first)
    rows, ids = None, None
    if embedding is not None:
        rows = read_embedding(problems, layer, embedding)
        problems.refuse()
        ids = 0 if rows is None else len(rows)
        what = "rows of the embedding" if ids else "places of the 1 in a one-hot vector"
        runs = None  # ids past a length need not be in range
        if lengths is not None:
            runs = np.arange(T)[:, None] < lengths
            runs = runs[:, 0] if unbatched else runs.T if batch_first else runs
        array = integers(problems, "ids", array, what, ids or layer.input_size, runs)
    problems.refuse()
    array = memory.time_first(array, unbatched, batch_first)
    if not features:
        array = np.ascontiguousarray(array)
    states = memory.states(states, unbatched)
    return Inputs(array, states, lengths, reset, batch_first, unbatched, T, B, rows, ids)


def read_gradients(
    layer: Spec[Any], memory: Memory, who: Callable[[], str], call: Inputs, y_shape: Shape, dy: Any, dstate: Any
) -> tuple[Any, States]:
    """Check and bring what backward starts from: dy as (T,B,D*P), gradients of the final states; None stays None."""
    problems = Problems(lambda: f"{who()}.backward")
    array = None if dy is None else memory.real(problems, "dy", dy, memory.dtype)
    if array is not None:
        checks.same_shape(problems, "dy", array.shape, y_shape, "y of the forward call")
        if array.shape == y_shape:
            array = memory.rows(problems, "dy", array)
    dstates = read_state(problems, layer, memory, "dstate", dstate, None if call.unbatched else call.batch, None)
    problems.refuse()
    if array is not None:
        array = memory.time_first(array, call.unbatched, call.batch_first)
    return array, memory.states(dstates, call.unbatched)


def read_step(layer: Spec[Any], memory: Memory, x: ArrayLike, state: StateLike, out: Any, state_out: Any) -> StepInputs:
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
    array = np.ascontiguousarray(memory.rows(problems, "x", array))
    batch = None if unbatched else array.shape[0]
    states = read_state(problems, layer, memory, "state", state, batch, None)

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
        inputs={"x": array, **_named("state", states)},
    )
    problems.refuse()
    if unbatched:
        array, out = array[None], None if out is None else out[None]
    written = tuple(s[:, None] if unbatched else s for s in ends if s is not None) or None
    return StepInputs(array, memory.states(states, unbatched) or None, out, written, unbatched)


def _named(name: str, states: Sequence[Array | None]) -> dict[str, Array | None]:
    """Return arrays by the names that errors about overlaps give them."""
    return dict(zip((name, f"{name}.c"), states, strict=False))


def _writable(problems: Problems, layer: Spec[Any], name: str, value: Any, wanted: tuple[int, ...]) -> Array | None:
    return value if checks.output_array(problems, name, value, wanted, layer.dtype) else None

"""Arrays as users hand them over, and the memory of a device: `NumpyMemory` is for the CPU, `cuda.arrays` for GPUs."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .checks import Problems
from .threads import get_num_threads

Array = NDArray[Any]
Shape = tuple[int, ...]


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


class Drawn(NamedTuple):
    """What training draws.

    Attributes
    ----------
    masks, scale
        Of dropout between layers (L-1,T,B,D*P), True where an element is kept, and what those are multiplied by.
    noise
        Of recurrent dropout and zoneout, as the core takes it.
    """

    masks: Any = None
    scale: float = 1.0
    noise: Any = None


class Memory(ABC):
    """A device's memory: where it wants the arrays of a call, and the calls on them.

    What is given is all checked before any of it is brought there. Of the calls, `layer` is a `running.Running`,
    `given` are its `arguments.Inputs` and `tape` is a `results.Tape`; what they return is the caller's.

    Attributes
    ----------
    dtype, state_dtype
        Of x, y and the parameters; and of the states.
    where
        How reprs call it.
    """

    dtype: Any
    state_dtype: Any
    where = ""

    @abstractmethod
    def real(self, problems: Problems, name: str, value: Any, dtype: Any) -> Any:
        """Return an array of numbers that can be made ones of that dtype; None where it is none."""

    @abstractmethod
    def rows(self, problems: Problems, name: str, array: Any) -> Any:
        """Return an array whose last axis is contiguous."""

    @abstractmethod
    def whole(self, problems: Problems, name: str, array: Any) -> Any:
        """Return an array that is contiguous."""

    @abstractmethod
    def time_first(self, array: Any, unbatched: bool, batch_first: bool) -> Any:
        """Bring x, or what is laid out as it is; return it as (T,B,...)."""

    @abstractmethod
    def states(self, states: tuple[Any, ...], unbatched: bool) -> tuple[Any, ...]:
        """Bring states; return them with a batch."""

    @abstractmethod
    def lengths(self, problems: Problems, lengths: Any, batch: int, time: int, unbatched: bool) -> Any:
        """Bring lengths; return them as (B,) int64."""

    @abstractmethod
    def reset(self, problems: Problems, reset: Any, wanted: Shape, batch_first: bool) -> Any:
        """Bring reset, which must have the wanted shape; return it as (T,B) bool."""

    @abstractmethod
    def forward(
        self, layer: Any, given: Any, training: bool, packed: Any = None, drawn: Drawn | None = None
    ) -> tuple[Any, list[Any], Any]:
        """Return y, the final states and, in training, the core's tape; with packed weights or else the parameters."""

    @abstractmethod
    def backward(
        self, layer: Any, tape: Any, dy: Any, dstates: Any, hidden: bool
    ) -> tuple[Any, list[Any], list[Any], Any]:
        """Return the gradients of x or of the embedding, of the states, of the parameters, and dL/dh or None."""


def in_rows(array: Array) -> Array:
    """Return the array, copied if its last axis is not a contiguous run of aligned elements."""
    size = array.itemsize
    if array.strides[-1] == size and array.flags.aligned and not any(s % size for s in array.strides):
        return array
    return array.copy(order="C")


class NumpyMemory(Memory):
    """NumPy's, for the CPU: arrays that fit are used where they lie, others copied."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = self.state_dtype = dtype

    real = staticmethod(as_real)
    lengths = staticmethod(read_lengths)
    reset = staticmethod(read_reset)

    def rows(self, problems: Problems, name: str, array: Array) -> Array:
        return in_rows(array)

    def whole(self, problems: Problems, name: str, array: Array) -> Array:
        array = np.ascontiguousarray(array)
        return array if array.flags.aligned else array.copy()

    def time_first(self, array: Array, unbatched: bool, batch_first: bool) -> Array:
        return array[:, None] if unbatched else array.swapaxes(0, 1) if batch_first else array

    def states(self, states: tuple[Array | None, ...], unbatched: bool) -> tuple[Array | None, ...]:
        return tuple([None if s is None else s[:, None] for s in states]) if unbatched else states

    def forward(
        self, layer: Any, given: Any, training: bool, packed: Any = None, drawn: Drawn | None = None
    ) -> tuple[Array, list[Array], Any]:
        x, states, lengths, reset, batch_first, unbatched, _, _, rows, _ = given
        threads, tape = get_num_threads(), None
        if packed is not None:
            y, ends = packed.forward(x, states, lengths, reset, batch_first, threads, rows)
        else:
            how = training, batch_first, threads, rows, drawn
            y, ends, tape = layer._network.forward(layer._arrays(), x, states, lengths, reset, *how)
        if training:  # the tape reads it again
            y.setflags(write=False)
        return (y[:, 0], [s[:, 0] for s in ends], tape) if unbatched else (y, ends, tape)

    def backward(
        self, layer: Any, tape: Any, dy: Any, dstates: Any, hidden: bool
    ) -> tuple[Array | None, list[Array], list[Array], Array | None]:
        found = layer._network.backward(layer._arrays(), tape.core, dy, dstates, hidden, get_num_threads())
        dx, begins, gradients, dh = found
        if tape.given.unbatched:
            dx, dh = (a if a is None else a[:, 0] for a in (dx, dh))
            begins = [s[:, 0] for s in begins]
        return dx, begins, gradients, dh

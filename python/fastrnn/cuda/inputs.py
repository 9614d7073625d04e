"""From what a user hands over to arrays on the GPU, or one clear error: `fastrnn.inputs`' twin, with its sentences."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import checks, inputs
from ..checks import Problems
from ..spec import Spec
from .arrays import Memory, is_on_gpu

Shape = tuple[int, ...]


class Given(NamedTuple):
    """The arguments of one call, on the GPU, time first and with a batch."""

    x: Any  # (T, B, I)
    states: list[Any]  # (L*D, B, size) each, or None; none at all: zeros
    lengths: Any  # (B,) int64 or None
    reset: Any  # (T, B) bool or None
    time: int
    batch: int
    batch_first: bool
    unbatched: bool

    @property
    def leading(self) -> Shape:
        """The axes of x before its features, as the caller has them."""
        if self.unbatched:
            return (self.time,)
        return (self.batch, self.time) if self.batch_first else (self.time, self.batch)


class OnGpu(Protocol):
    """What is read here of a layer on a GPU."""

    batch_first: bool
    input_size: int
    hidden_size: int
    dtype: str
    _host: Spec[Any]

    @property
    def state_dtype(self) -> str: ...

    def _brief(self) -> str: ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tape:
    """What forward saved for backward, on the GPU. Read-only: backward may run on it any number of times.

    It holds x, y, the state, lengths and reset of the forward call by reference: do not change them before backward.
    """

    layer: OnGpu
    version: int
    given: Given
    y: Any
    y_shape: tuple[int, ...]
    masks: Any
    scale: float
    core: Any
    memory: Memory

    @property
    def nbytes(self) -> int:
        """Bytes it keeps on the GPU beside x and y."""
        return int(self.core.nbytes)

    def __repr__(self) -> str:
        size = checks.readable(self.nbytes)
        return f"<Tape of {type(self.layer).__name__} on GPU, T={self.given.time}, B={self.given.batch}, {size}>"


def real(problems: Problems, memory: Memory, name: str, value: Any, dtype: str) -> Any:
    """Return an array as it came, of numbers that can be made ones of that dtype; None after a problem."""
    if is_on_gpu(value):
        array = memory.see(value, dtype)
        if array.dtype != dtype:
            problems.type(
                f"{name} with dtype {array.dtype} on the GPU",
                f"It must have dtype {dtype} there: it is converted only where that is asked for.",
            )
            return None
        if array.device != memory.device:
            problems.value(f"{name} on GPU {array.device}", f"The layer is on GPU {memory.device}.")
            return None
        return array
    if dtype in ("float32", "float64"):
        host = inputs.as_real(problems, name, value, np.dtype(dtype))
        return host if host is not None and host.dtype == np.dtype(dtype) else None
    host = inputs.as_array(problems, name, value)
    if host is None:
        return None
    if host.dtype != np.float64 and (host.dtype.kind in "biuf" or str(host.dtype) == "bfloat16"):
        return host
    why = f"A layer in {dtype} rounds float32 and shorter; use np.asarray({name}, dtype=np.float32)."
    problems.type(f"{name} with dtype {host.dtype}", why)
    return None


def upload(memory: Memory, value: Any, dtype: str) -> Any:
    """Return a checked array on the GPU."""
    return memory.see(value, dtype) if isinstance(value, np.ndarray) else value


def in_rows(array: Any) -> bool:
    """Tell whether the last axis of an array on the GPU has unit stride."""
    return bool(array.shape[-1] <= 1 or array.strides[-1] == 1 or 0 in array.shape)


def read(layer: OnGpu, memory: Memory, x: Any, state: Any, lengths: Any, reset: Any) -> Given:
    """Check the arguments of a call over a sequence and bring them to the GPU.

    Raises
    ------
    TypeError, ValueError, ShapeError
        With every argument that does not fit.
    """
    problems = Problems(layer._brief)
    array = real(problems, memory, "x", x, layer.dtype)
    if array is None:
        problems.refuse()
    assert array is not None
    checks.input_shape(problems, tuple(array.shape), layer.input_size, layer.batch_first)
    if len(array.shape) not in (2, 3):
        problems.refuse()
    unbatched = len(array.shape) == 2
    batch_first = layer.batch_first and not unbatched
    first, second = (array.shape[0], 1) if unbatched else array.shape[:2]
    T, B = (second, first) if batch_first else (first, second)
    if is_on_gpu(array) and not in_rows(array):
        problems.value("x whose last axis is not contiguous", "On the GPU it is used as it lies: make it contiguous.")

    states = read_state(problems, layer, memory, "state", state, None if unbatched else B, T if T != B else None)
    lengths = read_lengths(problems, memory, lengths, B, T, unbatched)
    wanted = (T,) if unbatched else (B, T) if batch_first else (T, B)
    reset = read_reset(problems, memory, reset, wanted, batch_first)
    problems.refuse()
    array = upload(memory, array, layer.dtype)
    array = array.with_batch() if unbatched else array.swapped() if batch_first else array
    states = upload_states(memory, states, layer.state_dtype, unbatched)
    return Given(array, states, lengths, reset, T, B, batch_first, unbatched)


def read_state(
    problems: Problems, layer: OnGpu, memory: Memory, name: str, state: Any, batch: int | None, time: int | None
) -> list[Any]:
    """Return the states as they came; None, for zeros, stays None."""
    members = None if state is None else inputs.members_of(problems, layer._host, name, state)
    if members is None:
        return []
    shapes = layer._host._state_shapes(batch)
    return [
        _read_member(problems, layer, memory, of, value, shape, time)
        for (of, value), shape in zip(members, shapes, strict=True)
    ]


def upload_states(memory: Memory, states: list[Any], dtype: str, unbatched: bool) -> list[Any]:
    """Return checked states on the GPU, with a batch."""
    found = [None if s is None else upload(memory, s, dtype) for s in states]
    return [s.reshaped((s.shape[0], 1, s.shape[1])) if s is not None and unbatched else s for s in found]


def _read_member(
    problems: Problems, layer: OnGpu, memory: Memory, name: str, value: Any, wanted: Shape, time: int | None
) -> Any:
    if value is None:
        return None
    array = real(problems, memory, name, value, layer.state_dtype)
    if array is None:
        return None
    last_axis = "hidden_size" if wanted[-1] == layer.hidden_size else "proj_size"
    checks.state_shape(problems, name, tuple(array.shape), wanted, last_axis, time)
    if is_on_gpu(array) and not array.contiguous:
        problems.value(f"{name} that is not contiguous", "On the GPU it is used as it lies: make it contiguous.")
    return array


def read_lengths(problems: Problems, memory: Memory, lengths: Any, batch: int, time: int, unbatched: bool) -> Any:
    """Return lengths (B,) int64 on the GPU; of those that came from there the values are not looked at."""
    if lengths is None:
        return None
    if not is_on_gpu(lengths):
        host = inputs.read_lengths(problems, lengths, batch, time, unbatched)
        return None if host is None or host.shape != (batch,) else memory.see(host, "int64")
    array = memory.see(lengths, "int64")
    if array.dtype != "int64":
        problems.type(f"lengths with dtype {array.dtype} on the GPU", "They must have dtype int64 there.")
    checks.length_shape(problems, tuple(array.shape), batch, time)
    if not array.contiguous:
        problems.value("lengths that are not contiguous", "On the GPU they are used as they lie: make them contiguous.")
    return array


def read_reset(problems: Problems, memory: Memory, reset: Any, wanted: Shape, batch_first: bool) -> Any:
    """Return reset (T,B) on the GPU."""
    if reset is None:
        return None
    if not is_on_gpu(reset):
        host = inputs.read_reset(problems, reset, wanted, batch_first)
        return None if host is None else memory.see(host, "bool")
    array = memory.see(reset, "bool")
    if array.dtype != "bool":
        checks.boolean_reset(problems, True, np.dtype(array.dtype) if array.dtype != "bfloat16" else np.dtype("V2"))
    checks.reset_shape(problems, tuple(array.shape), wanted, batch_first)
    if tuple(array.shape) != wanted:
        return None
    return array.with_batch() if len(wanted) == 1 else array.swapped() if batch_first else array


def read_gradients(tape: Tape, memory: Memory, dy: Any, dstate: Any) -> tuple[Any, list[Any]]:
    """Check and bring to the GPU what backward starts from: dy (T,B,D*P), gradients of the final states; None stays."""
    layer, given = tape.layer, tape.given
    problems = Problems(lambda: f"{layer._brief()}.backward")
    array = None if dy is None else real(problems, memory, "dy", dy, layer.dtype)
    if array is not None:
        checks.same_shape(problems, "dy", tuple(array.shape), tape.y_shape, "y of the forward call")
        if is_on_gpu(array) and not in_rows(array):
            problems.value(
                "dy whose last axis is not contiguous", "On the GPU it is used as it lies: make it contiguous."
            )
    dstates = read_state(problems, layer, memory, "dstate", dstate, None if given.unbatched else given.batch, None)
    problems.refuse()
    if array is not None:
        array = upload(memory, array, layer.dtype)
        array = array.with_batch() if given.unbatched else array.swapped() if given.batch_first else array
    return array, upload_states(memory, dstates, layer.state_dtype, given.unbatched)

"""Whose arrays they are: NumPy's are copied to the GPU and back, those on the GPU are used where they lie.

A `Memory` belongs to one call: it sees the caller's arrays as the core's `Array`, makes new ones of the caller's kind,
and knows the device and the stream. Bfloat16 is unknown to NumPy: there it travels as float32.
"""

import sys
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from .. import checks, memory
from ..checks import Problems
from ..memory import Drawn, Shape
from .devices import core

_DLPACK_CUDA = (2, 13)


def is_on_gpu(value: Any) -> bool:
    """Tell whether an object says that its numbers are in a GPU's memory."""
    where = getattr(value, "__dlpack_device__", None)
    if where is not None:
        return int(where()[0]) in _DLPACK_CUDA
    return hasattr(value, "__cuda_array_interface__")


_AS_IT_LIES = "On the GPU it is used as it lies: make it contiguous."


class New(NamedTuple):
    """A new array: what `Memory.give` makes that of which the caller gets, and the core's view of it."""

    made: Any
    seen: Any


class Saved(NamedTuple):
    """What a forward call keeps for backward."""

    call: Any  # the core's
    y: Any
    bytes: Any
    drawn: Drawn | None

    @property
    def nbytes(self) -> int:
        """Bytes beside x and y."""
        return int(self.bytes.nbytes)


class Memory(memory.Memory):
    """How one kind of arrays is read, seen and made, for one call."""

    where = " on GPU"

    def __init__(self, device: int, stream: int, dtype: str) -> None:
        self.device = device
        self.stream = stream
        self.dtype = dtype
        self.state_dtype = state_dtype(dtype)

    @abstractmethod
    def make(self, shape: Shape, dtype: str) -> New:
        """Return a new array."""

    def give(self, new: New) -> Any:
        """Return what the caller gets of a new array, or of a view of it."""
        return new.made

    def swapped(self, new: New) -> New:
        """Return a new array with its first two axes exchanged, for `give`."""
        return New(new.made.swapaxes(0, 1), new.seen.swapped())

    def finish(self) -> None:
        """End a call: what it was given may be let go of after it."""

    def scratch(self, nbytes: int) -> Any:
        """Return bytes as the core sees them."""
        return self.make((nbytes,), "uint8").seen

    def _new_states(self, layer: Any, given: Any) -> tuple[list[New], list[Any]]:
        """Return states for the caller, and as the core sees them."""
        shapes = layer._state_shapes(None if given.unbatched else given.batch)
        made = [self.make(shape, self.state_dtype) for shape in shapes]
        return made, list(self.states(tuple(new.seen for new in made), given.unbatched))

    def forward(
        self, layer: Any, given: Any, training: bool, packed: Any = None, drawn: Drawn | None = None
    ) -> tuple[Any, list[Any], Any]:
        network, parameters = layer._network, layer._arrays()
        call = network.call(given.x, given.states, None, given.lengths, given.reset, drawn)
        y = self.make((*given.leading, layer._width), self.dtype)
        seen = self.time_first(y.seen, given.unbatched, given.batch_first)
        ends, ends_seen = self._new_states(layer, given)
        saved = self.scratch(network.tape_bytes(call)) if training else None
        scratch = self.scratch(network.forward_bytes(parameters, call, training))
        network.forward(self.stream, parameters, call, seen, ends_seen, saved, scratch)
        self.finish()
        return self.give(y), [self.give(end) for end in ends], Saved(call, seen, saved, drawn)

    def backward(
        self, layer: Any, tape: Any, dy: Any, dstates: Any, hidden: bool
    ) -> tuple[Any, list[Any], list[Any], Any]:
        given, (call, y, saved, _), network = tape.given, tape.core, layer._network
        T, B, I = given.time, given.batch, layer.input_size
        dx = self.make((T, I) if given.unbatched else (T, B, I), self.dtype)  # contiguous time first
        dh = self.make((*given.leading, layer._width), self.dtype) if hidden else None
        begins, begins_seen = self._new_states(layer, given)
        gradients = [self.make(p.shape, self.dtype) for p in layer._arrays()]
        network.backward(
            self.stream,
            layer._arrays(),
            call,
            y,
            saved,
            dy,
            dstates,
            dx.seen.reshaped((T, B, I)),
            begins_seen,
            [new.seen for new in gradients],
            None if dh is None else self.time_first(dh.seen, given.unbatched, given.batch_first),
            self.scratch(network.backward_bytes(call)),
        )
        self.finish()
        return (
            self.give(self.swapped(dx) if given.batch_first else dx),
            [self.give(begin) for begin in begins],
            [self.give(new) for new in gradients],
            None if dh is None else self.give(dh),
        )

    def see(self, value: Any, dtype: str) -> Any:
        """Return an array as the core sees it, copied to the GPU where it is not there; the dtype must fit."""
        if not is_on_gpu(value):
            return upload(np.asarray(value), dtype, self.device, self.stream)
        return borrow(value, self.device, self.stream)

    def real(self, problems: Problems, name: str, value: Any, dtype: str) -> Any:
        if is_on_gpu(value):
            array = self.see(value, dtype)
            if array.dtype != dtype:
                problems.type(
                    f"{name} with dtype {array.dtype} on the GPU",
                    f"It must have dtype {dtype} there: it is converted only where that is asked for.",
                )
                return None
            if array.device != self.device:
                problems.value(f"{name} on GPU {array.device}", f"The layer is on GPU {self.device}.")
                return None
            return array
        if dtype in ("float32", "float64"):
            host = memory.as_real(problems, name, value, np.dtype(dtype))
            return host if host is not None and host.dtype == np.dtype(dtype) else None
        host = memory.as_array(problems, name, value)
        if host is None:
            return None
        if host.dtype != np.float64 and (host.dtype.kind in "biuf" or str(host.dtype) == "bfloat16"):
            return host
        why = f"A layer in {dtype} rounds float32 and shorter; use np.asarray({name}, dtype=np.float32)."
        problems.type(f"{name} with dtype {host.dtype}", why)
        return None

    def rows(self, problems: Problems, name: str, array: Any) -> Any:
        if is_on_gpu(array) and not (array.shape[-1] <= 1 or array.strides[-1] == 1 or 0 in array.shape):
            problems.value(f"{name} whose last axis is not contiguous", _AS_IT_LIES)
        return array

    def whole(self, problems: Problems, name: str, array: Any) -> Any:
        if is_on_gpu(array) and not array.contiguous:
            problems.value(f"{name} that is not contiguous", _AS_IT_LIES)
        return array

    def time_first(self, array: Any, unbatched: bool, batch_first: bool) -> Any:
        array = self._brought(array, self.dtype)
        return array.with_batch() if unbatched else array.swapped() if batch_first else array

    def states(self, states: tuple[Any, ...], unbatched: bool) -> tuple[Any, ...]:
        found = [None if s is None else self._brought(s, self.state_dtype) for s in states]
        return tuple(s.reshaped((s.shape[0], 1, s.shape[1])) if s is not None and unbatched else s for s in found)

    def _brought(self, array: Any, dtype: str) -> Any:
        """Return a checked array on the GPU; one that was there already has been seen."""
        return self.see(array, dtype) if isinstance(array, np.ndarray) else array

    def lengths(self, problems: Problems, lengths: Any, batch: int, time: int, unbatched: bool) -> Any:
        """Bring lengths; of those that came from the GPU the values are not looked at."""
        if not is_on_gpu(lengths):
            host = memory.read_lengths(problems, lengths, batch, time, unbatched)
            return None if host is None or host.shape != (batch,) else self.see(host, "int64")
        array = self.see(lengths, "int64")
        if array.dtype != "int64":
            problems.type(f"lengths with dtype {array.dtype} on the GPU", "They must have dtype int64 there.")
        checks.length_shape(problems, array.shape, batch, time)
        if not array.contiguous:
            why = "On the GPU they are used as they lie: make them contiguous."
            problems.value("lengths that are not contiguous", why)
        return array

    def reset(self, problems: Problems, reset: Any, wanted: Shape, batch_first: bool) -> Any:
        if not is_on_gpu(reset):
            host = memory.read_reset(problems, reset, wanted, batch_first)
            return None if host is None else self.see(host, "bool")
        array = self.see(reset, "bool")
        if array.dtype != "bool":
            checks.boolean_reset(problems, True, np.dtype(array.dtype) if array.dtype != "bfloat16" else np.dtype("V2"))
        checks.reset_shape(problems, array.shape, wanted, batch_first)
        if array.shape != wanted:
            return None
        return array.with_batch() if len(wanted) == 1 else array.swapped() if batch_first else array


class OwnMemory(Memory):
    """The core's own arrays, also for whoever has no other way than ``__cuda_array_interface__``."""

    def make(self, shape: Shape, dtype: str) -> New:
        array = core().Array.empty(shape, dtype, self.device, self.stream)
        return New(array, array)

    def give(self, new: New) -> Any:
        return new.seen

    def swapped(self, new: New) -> New:
        return New(new.made, new.seen.swapped())


class HostMemory(OwnMemory):
    """NumPy's: copied to the GPU and back."""

    def give(self, new: New) -> Any:
        return download(new.seen, self.stream)


class TorchMemory(Memory):
    """PyTorch's tensors, from its own allocator."""

    def make(self, shape: Shape, dtype: str) -> New:
        torch = sys.modules["torch"]
        with torch.cuda.stream(_torch_stream(self.device, self.stream)):  # whose memory it may then be given again
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{self.device}")
        return New(tensor, core().Array.from_dlpack(torch.utils.dlpack.to_dlpack(tensor)))


class CupyMemory(Memory):
    """CuPy's arrays, from its own pool; it has no bfloat16."""

    def make(self, shape: Shape, dtype: str) -> New:
        cupy = sys.modules["cupy"]
        if dtype == "bfloat16":
            raise TypeError("CuPy has no bfloat16: use PyTorch's or JAX's arrays, or NumPy's float32")
        with cupy.cuda.Device(self.device), cupy.cuda.ExternalStream(self.stream):
            array = cupy.empty(shape, dtype)
        return New(array, core().Array.from_interface(array.__cuda_array_interface__, self.device, array))


class JaxMemory(OwnMemory):
    """JAX's arrays, which nobody else may write to: made by the core and handed over."""

    def give(self, new: New) -> Any:
        from jax import dlpack

        return dlpack.from_dlpack(new.seen)

    def finish(self) -> None:
        # JAX knows nothing of our stream, and gives memory that nobody holds any more to others
        core().synchronize(self.device, self.stream)


def state_dtype(dtype: str) -> str:
    """Return the dtype of the states of a layer in a dtype: float64's own, else float32."""
    return "float64" if dtype == "float64" else "float32"


def memory_for(value: Any, device: int, stream: Any, dtype: str) -> Memory:
    """Return the memory of the kind of an array, in the caller's stream or in the one that is given.

    Parameters
    ----------
    value
        x of the call.
    stream : None, int or object
        A stream's address, or an object of PyTorch, CuPy or another with ``__cuda_stream__``; None is the caller's: the
        current one of PyTorch or CuPy, else the default stream.
    dtype : str
        The layer's.
    """
    package = type(value).__module__.partition(".")[0] if is_on_gpu(value) else ""
    current = 0
    kind: type[Memory] = OwnMemory if is_on_gpu(value) else HostMemory
    if package == "torch":
        kind, current = TorchMemory, sys.modules["torch"].cuda.current_stream(device).cuda_stream
    elif package == "cupy":
        cuda = sys.modules["cupy"].cuda
        with cuda.Device(device):
            kind, current = CupyMemory, cuda.get_current_stream().ptr
    elif package in ("jax", "jaxlib"):
        kind = JaxMemory
    return kind(device, current if stream is None else as_stream(stream), dtype)


def as_stream(stream: Any) -> int:
    """Return a stream's address.

    Raises
    ------
    TypeError
        If it is none.
    """
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    raise TypeError(f"a stream is an address or an object with __cuda_stream__, cuda_stream or ptr, got {stream!r}")


def borrow(value: Any, device: int, stream: int) -> Any:
    """Return an array on the GPU as the core sees it, ready in that stream."""
    Array = core().Array
    if isinstance(value, Array):
        if value.stream != stream:
            core().wait_for(value.device, value.stream, stream)
        return value
    if type(value).__module__.partition(".")[0] == "torch":
        return _borrow_tensor(value, stream)
    if hasattr(value, "__dlpack__"):
        return Array.from_dlpack(value.__dlpack__(stream=stream or 1))
    interface = value.__cuda_array_interface__
    theirs = interface.get("stream")
    if theirs is not None and theirs != (stream or 1):
        core().wait_for(device, 0 if theirs == 1 else theirs, stream)
    where = core().device_of(interface["data"][0]) if interface["data"][0] else device
    return Array.from_interface(interface, where, value)


def _torch_stream(device: int, stream: int) -> Any:
    cuda = sys.modules["torch"].cuda
    return cuda.ExternalStream(stream, device=device) if stream else cuda.default_stream(device)


def _borrow_tensor(tensor: Any, stream: int) -> Any:
    """Return a tensor of PyTorch's as the core sees it, whose memory is not given away before that stream is done."""
    torch = sys.modules["torch"]
    device = tensor.device.index
    current = torch.cuda.current_stream(device).cuda_stream
    if current != stream:
        core().wait_for(device, current, stream)
        tensor.record_stream(_torch_stream(device, stream))
    return core().Array.from_dlpack(torch.utils.dlpack.to_dlpack(tensor.detach()))


def upload(value: Any, dtype: str, device: int, stream: int) -> Any:
    """Return a copy of a NumPy array on the GPU."""
    array = np.ascontiguousarray(value)
    array = as_bfloat16(array) if dtype == "bfloat16" else array.astype(dtype, copy=False)
    made = core().Array.empty(value.shape, dtype, device, stream)
    core().copy_in(made, array, stream)
    return made


def download(array: Any, stream: int) -> Any:
    """Return a copy in NumPy's memory, complete."""
    bfloat16 = array.dtype == "bfloat16"
    turned = not array.contiguous  # of an array of ours that is batch first
    shape = (array.shape[1], array.shape[0], *array.shape[2:]) if turned else array.shape
    copy = np.empty(shape, np.uint16 if bfloat16 else array.dtype)
    core().copy_out(array.swapped() if turned else array, copy, stream)
    result = from_bfloat16(copy) if bfloat16 else copy
    return result.swapaxes(0, 1) if turned else result


def as_bfloat16(array: Any) -> Any:
    """Return the bits of real numbers rounded to bfloat16, to even; a NaN stays one."""
    wide = np.ascontiguousarray(array, np.float32)
    bits = wide.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(wide), np.uint16(0x7FFF), rounded)


def from_bfloat16(bits: Any) -> Any:
    """Return the float32 that bits of bfloat16 mean."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

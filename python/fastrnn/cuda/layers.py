"""Layers whose parameters live on a GPU: made by ``layer.to("cuda")``."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments, checks
from ..arguments import Inputs
from ..initialise import Seed, as_generator
from ..parameters import Parameters
from ..results import Gradients, refuse_foreign
from ..spec import S, Spec
from . import arrays
from .arrays import Memory, memory_for
from .devices import core, index_of, make_network

DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tape:
    """What forward saved for backward, on the GPU. Read-only: backward may run on it any number of times.

    It holds x, y, the state, lengths and reset of the forward call by reference: do not change them before backward.
    """

    layer: "Layer[Any]"
    version: int
    given: Inputs
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


class Layer(Generic[S]):
    """An RNN, a GRU or an LSTM on a GPU: called, trained and read as the layer that it was made of.

    Its options are attributes, as that layer's. Letters as in `fastrnn.LSTM`: T time, B batch, I input, H hidden, P
    projection (else H), L layers, D directions.

    Arrays: NumPy's are copied to the GPU and the results back, and the call then waits for them. Arrays that are on the
    GPU (PyTorch, CuPy, JAX, anything with ``__dlpack__`` or ``__cuda_array_interface__``) are used where they lie, the
    results are of the same kind, and the call returns at once: everything is in the caller's stream, PyTorch's or
    CuPy's current one, or the one given as ``stream``. Their dtype must be the layer's, their last axis contiguous.

    A layer in bfloat16 or float16 adds up in float32 and keeps its states in it: ``state`` and its gradients are
    float32. Of NumPy's arrays it takes float32, which it rounds; NumPy gets bfloat16 as float32.

    Attributes
    ----------
    dtype : str
        Of the parameters, x and y: "float32", "float64", "bfloat16" or "float16".
    fp32_precision : {"ieee", "tf32"}
        Whether float32 products round their factors to 11 bits, which is faster; sums are float32 either way.
    device : int
        The number of the GPU.
    """

    def __init__(self, layer: Spec[S], device: str | int, dtype: str | None, fp32_precision: str) -> None:
        name = layer.dtype.name if dtype is None else dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in DTYPES:
            raise ValueError(f"{layer._brief()}.to got dtype={dtype!r}; on a GPU there are {', '.join(DTYPES)}.")
        if fp32_precision not in ("ieee", "tf32"):
            raise ValueError(f'{layer._brief()}.to got fp32_precision={fp32_precision!r}; it must be "ieee" or "tf32".')
        if fp32_precision == "tf32" and name != "float32":
            raise ValueError(f'{layer._brief()}.to got fp32_precision="tf32" for {name}; it is for float32 only.')
        self.device = index_of(device)
        self.dtype = name
        self.fp32_precision = fp32_precision
        self._host = copy.deepcopy(layer)
        precision = "tf32" if fp32_precision == "tf32" else name
        self._network = make_network(
            self.device, precision, layer.bias, layer, layer._cell(), layer.input_size, layer._general(), layer.heads
        )
        uploaded = {key: arrays.upload(p, name, self.device, 0).lasting() for key, p in layer.parameters().items()}
        core().synchronize(self.device)  # calls in any stream may read them
        self._parameters = Parameters(uploaded)

    def __getattr__(self, name: str) -> Any:
        host = self.__dict__.get("_host")
        if host is not None and name in host._options:
            return host._options[name]
        hint = (
            f': it is for layers on the CPU, .to("cpu").{name}'
            if not name.startswith("_") and hasattr(host, name)
            else ""
        )
        raise AttributeError(f"a layer on a GPU has no {name}{hint}")

    def _brief(self) -> str:
        return self._host._brief() + f'.to("cuda:{self.device}")'

    @property
    def state_dtype(self) -> str:
        """The dtype of states: float64's own, else float32."""
        return arrays.state_dtype(self.dtype)

    # Running

    def __call__(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: None = None,
        stream: Any = None,
    ) -> tuple[Any, S]:
        """Run over a sequence, without dropout and without saving anything for backward.

        Parameters
        ----------
        x, state, lengths, reset
            As for calling a layer on the CPU; see `Layer` for whose arrays they may be. Lengths on the GPU must be
            int64 and are not looked at: what is above T counts as T, what is negative as 0.
        embedding : None
            Token ids are for layers on the CPU.
        stream : None, int or object
            The CUDA stream, its address or an object of PyTorch or CuPy; None is the caller's current one.

        Returns
        -------
        y, state
            As from a layer on the CPU, of the kind of x.

        Raises
        ------
        ShapeError, ValueError, TypeError
            With everything that does not fit.
        MemoryError
            If the GPU has not enough memory.
        RuntimeError
            If CUDA reports an error.
        """
        memory, given = self._given(x, state, lengths, reset, embedding, stream)
        y, ends = self._run(memory, given, None, 1.0, None)
        return y[0], self._finish_state(memory, ends)

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: None = None,
        training: bool = True,
        rng: Seed = None,
        stream: Any = None,
    ) -> tuple[Any, S, Tape]:
        """Run over a sequence and save what `backward` needs.

        Parameters
        ----------
        x, state, lengths, reset, embedding, stream
            As for calling the layer.
        training : bool
            Whether to apply dropout between the layers.
        rng : seed or Generator, optional
            Where the seed of the masks comes from, which are drawn on the GPU (Philox, Salmon et al. 2011); by default
            the layer's own generator, which moves on.

        Returns
        -------
        y, state
            As from calling the layer.
        tape : Tape
            For `backward`, any number of times. It holds y: do not write to it before.

        Raises
        ------
        ShapeError, ValueError, TypeError, MemoryError, RuntimeError
            As calling the layer does.
        """
        memory, given = self._given(x, state, lengths, reset, embedding, stream)
        masks, scale = None, 1.0
        if training and self._host._drops:
            generator = self._host._rng if rng is None else as_generator(f"{self._brief()}.forward", rng)
            masks, scale = self._draw_masks(memory, given, generator)
        saved = memory.scratch(self._network.tape_bytes(given.time, given.batch, masks is not None))
        y, ends = self._run(memory, given, masks, scale, saved)
        version = self._parameters.version
        tape = Tape(self, version, given, y[2], y[1], masks, scale, saved, memory)
        return y[0], self._finish_state(memory, ends), tape

    def backward(
        self, tape: Tape, dy: Any, dstate: Any = None, hidden: bool = False, *, stream: Any = None
    ) -> Gradients[S]:
        """Backpropagation through time over one forward call.

        Parameters
        ----------
        tape : Tape
            From `forward` of this layer, its parameters not changed since.
        dy, dstate
            Gradients with respect to y and the final state; None is zeros.
        hidden : bool
            Whether to return dL/dh_t of the last layer for every t as well.
        stream
            As for `forward`, whose stream it is by default.

        Returns
        -------
        Gradients
            As from a layer on the CPU, of the kind of the arrays of the forward call.

        Raises
        ------
        ValueError
            If the tape is another layer's, or from before the parameters were changed through the API.
        ShapeError, TypeError, MemoryError, RuntimeError
            As calling the layer does.
        """
        refuse_foreign(self, tape, Tape)
        memory = tape.memory if stream is None else type(tape.memory)(self.device, arrays.as_stream(stream), self.dtype)
        if memory.stream != tape.memory.stream:
            core().wait_for(self.device, tape.memory.stream, memory.stream)
        given = tape.given
        dy, dstates = arguments.read_gradients(self._host, memory, self._brief, given, tape.y_shape, dy, dstate)
        batched = (given.time, given.batch, self.input_size)
        dx, dx_seen = memory.make((given.time, self.input_size) if given.unbatched else batched, self.dtype)
        made_hidden = memory.make((*given.leading, self._host._width), self.dtype) if hidden else (None, None)
        begins = self._make_states(memory, given)
        gradients = {name: memory.make(p.shape, self.dtype) for name, p in self._parameters.items()}
        self._network.backward(
            stream=memory.stream,
            parameters=list(self._parameters.values()),
            tape=tape.core,
            x=given.x,
            y=tape.y,
            states=given.states,
            starts=None,
            lengths=given.lengths,
            reset=given.reset,
            masks=tape.masks,
            scale=tape.scale,
            dy=dy,
            dstates=dstates,
            dx=dx_seen.reshaped(batched),
            begins=[seen for _, _, seen in begins],
            gradients=[seen for _, seen in gradients.values()],
            hidden=None if made_hidden[1] is None else self._time_first(made_hidden[1], given),
            allocate=memory.scratch,
        )
        if memory.stream != tape.memory.stream:  # in whose order the tape is given back
            core().wait_for(self.device, memory.stream, tape.memory.stream)
        memory.finish()
        if given.batch_first:
            dx, dx_seen = memory.swapped(dx), dx_seen.swapped()
        return Gradients(
            memory.give(dx, dx_seen),
            self._finish_state(memory, begins),
            {name: memory.give(*made) for name, made in gradients.items()},
            memory.give(*made_hidden) if hidden else None,
        )

    # Parameters

    def parameters(self) -> Parameters:
        """Return the live arrays on the GPU by PyTorch's names, which PyTorch, CuPy and JAX can see through DLPack.

        Whoever edits them between forward and backward calls ``parameters().changed()``: the tape is then refused.
        """
        return self._parameters

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters in NumPy's memory by name; of bfloat16 ones in float32."""
        core().synchronize(self.device)  # whoever edits them may do so in any stream
        return {name: arrays.download(p, 0) for name, p in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy parameters in, from NumPy's memory or what converts to it.

        Raises
        ------
        ShapeError, ValueError, TypeError
            With all missing, unexpected and misshapen entries; nothing is changed then.
        """
        self._host.load_state_dict(state_dict)
        core().synchronize(self.device)
        for name, p in self._host.parameters().items():
            as_stored = arrays.as_bfloat16(p) if self.dtype == "bfloat16" else np.ascontiguousarray(p, self.dtype)
            core().copy_in(self._parameters[name], as_stored, 0)
        core().synchronize(self.device)
        self._parameters.changed("load_state_dict")

    def to(self, device: str | int = "cuda", dtype: str | None = None, *, fp32_precision: str | None = None) -> Any:
        """Return this layer on another device, with copies of its parameters.

        Parameters
        ----------
        device : str or int
            "cpu" for a layer as it was made, in its dtype; "cuda", "cuda:1" or a number for one on that GPU.
        dtype, fp32_precision
            As for a layer on the CPU; None keeps this one's.
        """
        host = copy.deepcopy(self._host)
        host.load_state_dict(self.state_dict())
        if device == "cpu":
            return host.to("cpu", dtype, fp32_precision=fp32_precision or "ieee")
        kept = self.fp32_precision if (dtype or self.dtype) == "float32" else "ieee"
        return host.to(device, dtype or self.dtype, fp32_precision=fp32_precision or kept)

    # What the methods above share

    def _given(
        self, x: Any, state: Any, lengths: Any, reset: Any, embedding: Any, stream: Any
    ) -> tuple[Memory, Inputs]:
        """Return the memory of the caller's kind and the checked arguments in it."""
        if embedding is not None:
            raise ValueError(
                f"{self._brief()} got embedding=; token ids are for layers on the CPU: give the rows, embedding[ids]."
            )
        memory = memory_for(x, self.device, stream, self.dtype)
        return memory, arguments.read(self._host, memory, self._brief, x, state, lengths, reset)

    @staticmethod
    def _time_first(array: Any, given: Inputs) -> Any:
        return array.with_batch() if given.unbatched else array.swapped() if given.batch_first else array

    def _make_states(self, memory: Memory, given: Inputs) -> list[tuple[Any, Any, Any]]:
        """Return of each state what the caller gets, the core's view of that and its view with a batch."""
        found = []
        for rows, *batch, size in self._host._state_shapes(None if given.unbatched else given.batch):
            made, seen = memory.make((rows, *batch, size), self.state_dtype)
            found.append((made, seen, seen.reshaped((rows, given.batch, size))))
        return found

    def _finish_state(self, memory: Memory, states: list[tuple[Any, Any, Any]]) -> S:
        return self._host._as_state([memory.give(made, seen) for made, seen, _ in states])

    def _draw_masks(self, memory: Memory, given: Inputs, rng: "np.random.Generator") -> tuple[Any, float]:
        shape = (self.num_layers - 1, given.time, given.batch, self._host._width)
        masks = memory.scratch(math.prod(shape))
        core().draw_masks(masks, self.dropout, int(rng.integers(2**63)), memory.stream)
        return masks.reshaped(shape), self._host._scale

    def _run(self, memory: Memory, given: Inputs, masks: Any, scale: float, tape: Any) -> tuple[Any, Any]:
        """Return y (the caller's, its shape, the core's view of it, time first) and the final states."""
        made, seen = memory.make((*given.leading, self._host._width), self.dtype)
        y = self._time_first(seen, given)
        ends = self._make_states(memory, given)
        self._network.forward(
            stream=memory.stream,
            parameters=list(self._parameters.values()),
            x=given.x,
            y=y,
            states=given.states,
            ends=[seen for _, _, seen in ends],
            starts=None,
            lengths=given.lengths,
            reset=given.reset,
            masks=masks,
            scale=scale,
            tape=tape,
            allocate=memory.scratch,
        )
        memory.finish()
        return (memory.give(made, seen), tuple(seen.shape), y), ends

    def __copy__(self) -> Self:
        return cast(Self, self.to(self.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return cast(Self, self.to(self.device))

    def __reduce__(self) -> Any:
        return _from_host, (self.to("cpu"), self.device, self.dtype, self.fp32_precision)

    def __repr__(self) -> str:
        host, _, count = repr(self._host).partition("  # ")
        how = f', fp32_precision="{self.fp32_precision}"' if self.fp32_precision != "ieee" else ""
        return f'{host}.to("cuda:{self.device}", "{self.dtype}"{how})  # {count}'


def _from_host(layer: Spec[Any], device: int, dtype: str, fp32_precision: str) -> Layer[Any]:
    return Layer(layer, device, dtype, fp32_precision)

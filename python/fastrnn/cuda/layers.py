"""Layers whose parameters live on a GPU: made by ``layer.to("cuda")``."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import arguments
from ..arguments import Inputs
from ..initialise import Seed
from ..parameters import Parameters
from ..results import Gradients, Tape, refuse_foreign
from ..running import Running
from ..spec import S, Spec
from . import arrays
from .arrays import Memory, memory_for
from .devices import core, index_of, make_network

DTYPES = ("float32", "float64", "bfloat16", "float16")


class Layer(Running[S]):
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

    dtype: Any

    def __init__(self, layer: Spec[S], device: str | int, dtype: str | None, fp32_precision: str) -> None:
        name = layer.dtype.name if dtype is None else dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if name not in DTYPES:
            raise ValueError(f"{layer._brief()}.to got dtype={dtype!r}; on a GPU there are {', '.join(DTYPES)}.")
        if fp32_precision not in ("ieee", "tf32"):
            raise ValueError(f'{layer._brief()}.to got fp32_precision={fp32_precision!r}; it must be "ieee" or "tf32".')
        if fp32_precision == "tf32" and name != "float32":
            raise ValueError(f'{layer._brief()}.to got fp32_precision="tf32" for {name}; it is for float32 only.')
        self._host = copy.deepcopy(layer)
        self.__dict__.update(layer._options, _options=layer._options, _states=layer._states, _rng=self._host._rng)
        self.device = index_of(device)
        self.dtype = name
        self.fp32_precision = fp32_precision
        precision = "tf32" if fp32_precision == "tf32" else name
        self._network = make_network(
            self.device, precision, layer.bias, layer, layer._cell(), layer.input_size, layer._general(), layer.heads
        )
        uploaded = {key: arrays.upload(p, name, self.device, 0).lasting() for key, p in layer.parameters().items()}
        core().synchronize(self.device)  # calls in any stream may read them
        self._parameters = Parameters(uploaded)

    def __getattr__(self, name: str) -> Any:
        hint = (
            f': it is for layers on the CPU, .to("cpu").{name}'
            if not name.startswith("_") and hasattr(self.__dict__.get("_host"), name)
            else ""
        )
        raise AttributeError(f"a layer on a GPU has no {name}{hint}")

    def _cell(self) -> str:
        return self._host._cell()

    def _as_state(self, states: Sequence[Any]) -> S:
        return self._host._as_state(states)

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
        return self._run(*self._given(x, state, lengths, reset, embedding, stream))[:2]

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
        return self._train(memory, given, training, rng)

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
        before = cast(Memory, tape.memory)
        memory = before if stream is None else type(before)(self.device, arrays.as_stream(stream), self.dtype)
        if memory.stream != before.stream:
            core().wait_for(self.device, before.stream, memory.stream)
        gradients = self._back(memory, tape, dy, dstate, hidden)
        if memory.stream != before.stream:  # in whose order the tape is given back
            core().wait_for(self.device, memory.stream, before.stream)
        return gradients

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
        return memory, arguments.read(self, memory, self._brief, x, state, lengths, reset)

    def _refuse_too_large(self, given: Inputs, training: bool, random: bool = False) -> None:
        """Leave it to the GPU's allocator."""

    def _told(self, error: MemoryError, given: Inputs, training: bool) -> MemoryError:
        return error

    def _draw_masks(self, memory: Any, given: Inputs, rng: "np.random.Generator") -> Any:
        shape = (self.num_layers - 1, given.time, given.batch, self._width)
        return self._draw(memory, self.dropout, shape, rng)

    def _draw_below(self, memory: Any, rate: float, shape: tuple[int, ...], rng: "np.random.Generator") -> Any:
        return self._draw(memory, 1 - rate, shape, rng)

    def _draw(self, memory: Any, drop: float, shape: tuple[int, ...], rng: "np.random.Generator") -> Any:
        """Return masks that are drawn on the GPU, False with probability `drop`."""
        masks = memory.scratch(math.prod(shape))
        core().draw_masks(masks, drop, int(rng.integers(2**63)), memory.stream)
        return masks.reshaped(shape)

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

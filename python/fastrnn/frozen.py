"""Frozen layers: weights packed once, for serving whole sequences or one time step at a time."""

import operator
from collections.abc import Callable
from typing import Any, Generic

from numpy.typing import ArrayLike, NDArray

from . import _core, arguments, checks
from .arguments import OneHot, StateLike
from .results import LSTMState
from .spec import S, Spec
from .threads import get_num_threads

Array = NDArray[Any]


class Frozen(Generic[S]):
    """An immutable copy of a layer with packed weights, made by ``layer.freeze()``.

    Several threads may call it at once. Two half sequences give the same bits as the whole one, and `step` the same
    as a call with one time step.
    """

    __slots__ = ("_core", "_layer", "_step")

    def __init__(self, layer: Spec[S], core: _core.Frozen) -> None:
        self._layer = layer
        self._core = core
        self._step = core.step  # bound once: a step takes about as long as some attribute look-ups

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights; the last step's working memory, kept for the next one, adds 8 MB at most."""
        return self._core.nbytes

    def __call__(
        self,
        x: ArrayLike,
        state: StateLike = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: ArrayLike | OneHot | None = None,
    ) -> tuple[Array, S]:
        """Run over a sequence; arguments, results and errors are those of calling the layer."""
        layer = self._layer
        given = arguments.read(layer, layer._memory, layer._brief, x, state, lengths, reset, embedding)
        checks.call_size(
            layer._brief, layer._network, given.time, given.batch, False, ids=given.ids, lengths=given.lengths
        )
        try:
            y, ends = self._core.forward(
                given.x,
                given.states,
                given.lengths,
                given.reset,
                given.batch_first,
                get_num_threads(),
                given.embedding,
            )
        except MemoryError as error:
            size = layer._network, given.time, given.batch, False, given.ids, given.lengths
            raise checks.out_of_memory(layer._brief(), *size) from error
        return layer._finish(y, ends, given.unbatched)

    def step(
        self, x: ArrayLike, state: Any = None, *, out: Array | None = None, state_out: Any = None
    ) -> tuple[Array, S]:
        """Run one time step.

        Parameters
        ----------
        x : array_like
            (B,I), or (I,) without a batch. Contiguous arrays (B,I) of the layer's dtype are the fastest.
        state : array, LSTMState or None
            (L,B,P), or (L,P) without a batch; of an LSTM the pair (h, c) with c (L,B,H). None is zeros.
        out : array, optional
            Where y is written: (B,P) or (P,), C-contiguous, of the layer's dtype.
        state_out : array or LSTMState, optional
            Where the new state is written, shaped like the state; it may be `state` itself. An LSTM needs both members.
            Nothing is allocated when both `out` and `state_out` are given.

        Returns
        -------
        y : array
            (B,P) or (P,); `out` if it was given.
        state : array or LSTMState
            The new state, in `state_out` if it was given.

        Raises
        ------
        TypeError, ValueError, ShapeError
            As for a call of the layer; also for a bidirectional layer, which needs the end of a sequence before its
            first output, and for outputs that share memory with x, with each other or with a part of the state.
        """
        result = self._step(x, state, out, state_out, get_num_threads())
        return self._step_slowly(x, state, out, state_out) if result is None else result

    def _step_slowly(self, x: ArrayLike, state: Any, out: Any, state_out: Any) -> tuple[Array, S]:
        """Convert what the core did not take as it came, or say what is wrong with it."""
        layer = self._layer
        if layer.bidirectional:
            raise ValueError(
                f"{layer._brief()} is bidirectional and has no step: its reverse direction starts at the end of the "
                "sequence. Call the frozen layer on the whole sequence, or use a layer with bidirectional=False."
            )
        given = arguments.read_step(layer, layer._memory, x, state, out, state_out)
        several = layer._has_cell_state
        result = self._step(
            given.x,
            given.states if several or given.states is None else given.states[0],
            given.out,
            given.ends if several or given.ends is None else given.ends[0],
            get_num_threads(),
        )
        assert result is not None, "the core refused arrays that were checked"
        y, new = result
        y, end = layer._finish(y[None], new if several else [new], given.unbatched)
        # what the caller gave to be written to comes back as it was given, not as a view of it
        y = y[0] if out is None else out
        return y, end if state_out is None else layer._as_state(state_out if several else [state_out])

    def __copy__(self) -> "Frozen[S]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen[S]":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Spec[S]]]:
        return operator.methodcaller("freeze"), (self._layer,)

    def __repr__(self) -> str:
        return f"{self._layer._brief()}.freeze()"


class FrozenLSTM(Frozen[LSTMState]):
    """A frozen LSTM: its state is a pair (h, c)."""

    __slots__ = ()

    def step(
        self, x: ArrayLike, state: Any = None, *, out: Array | None = None, state_out: Any = None
    ) -> tuple[Array, LSTMState]:
        """Run one time step; see `Frozen.step`."""
        result = self._step(x, state, out, state_out, get_num_threads())
        if result is None:
            return self._step_slowly(x, state, out, state_out)
        y, new = result
        return y, new if type(new) is LSTMState else LSTMState(*new)

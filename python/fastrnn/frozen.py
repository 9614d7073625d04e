"""Frozen layers: weights packed once, for serving whole sequences or one time step at a time."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, arguments, checks
from .arguments import OneHot, StateLike
from .spec import S, Spec
from .threads import get_num_threads

Array = NDArray[Any]

# what freeze keeps the matrices as: None as they are, or a word for all of them, or one each for "ih" and "hh"
Weights: TypeAlias = str | Mapping[str, str] | None
_WORDS = ("bfloat16", "int8")
_MOST_COLUMNS = 131072  # sums of so many products of int8 fit in 32 bits
_BFLOAT16_OVERFLOW = np.float32(3.3961776e38)  # rounds to infinity, as what lies above


def read_weights(layer: Spec[Any], given: Weights) -> tuple[str, str] | None:
    """Return the words for weight_ih and weight_hh; None: the matrices stay as they are.

    Raises
    ------
    ValueError
        For other words, and for layers whose weights cannot be kept so.
    """
    if given is None:
        return None
    problems = checks.Problems(lambda: f"{layer._brief()}.freeze")
    got = f"weights={given!r}"
    pair = (given.get("ih"), given.get("hh")) if isinstance(given, Mapping) else (given, given)
    if (isinstance(given, Mapping) and len(given) != 2) or any(word not in _WORDS for word in pair):
        problems.value(got, 'It must be None, "bfloat16", "int8" or one of these words each for "ih" and "hh".')
        problems.refuse()
    if layer.dtype != np.float32:
        why = f'Only float32 weights are kept in fewer bits, not {layer.dtype}: use to("cpu", "float32").freeze.'
        problems.value(got, why)
    if layer.heads > 1:
        problems.value(got, f"Weights of a layer with heads={layer.heads} are not kept in fewer bits: freeze() it.")
    for name, values in layer.parameters().items():
        if values.ndim != 2 or name.startswith("weight_peephole"):
            continue
        word = pair[0 if name.startswith("weight_ih") else 1]
        below = _BFLOAT16_OVERFLOW if word == "bfloat16" else np.float32(np.inf)
        if not (np.abs(values) < below).all():
            problems.value(f"{name} with numbers that are not finite in {word}", "Freeze it without weights=.")
        if word == "int8" and values.shape[1] > _MOST_COLUMNS:
            why = f'int8 takes at most {_MOST_COLUMNS} columns: use "bfloat16".'
            problems.value(f"{name} with {values.shape[1]} columns", why)
    problems.refuse()
    return str(pair[0]), str(pair[1])


class Frozen(Generic[S]):
    """An immutable copy of a layer with packed weights, made by ``layer.freeze()``.

    Several threads may call it at once. Two half sequences give the same bits as the whole one, and `step` the same
    as a call with one time step.
    """

    __slots__ = ("_core", "_layer", "_step", "_weights")

    def __init__(self, layer: Spec[S], core: _core.Frozen, weights: tuple[str, str] | None = None) -> None:
        self._layer = layer
        self._weights = weights
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
        state : array, LSTMState, sLSTMState or None
            (L,B,P), or (L,P) without a batch; of an LSTM the pair (h, c) with c (L,B,H), of an sLSTM (h, c, n, m). None
            is zeros.
        out : array, optional
            Where y is written: (B,P) or (P,), C-contiguous, of the layer's dtype.
        state_out : array, LSTMState or sLSTMState, optional
            Where the new state is written, shaped like the state; it may be `state` itself. All members are needed.
            Nothing is allocated when both `out` and `state_out` are given.

        Returns
        -------
        y : array
            (B,P) or (P,); `out` if it was given.
        state : array, LSTMState or sLSTMState
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
        return operator.methodcaller("freeze", self._given()), (self._layer,)

    def _given(self) -> Weights:
        """What `freeze` was told to keep the weights as."""
        if self._weights is None:
            return None
        ih, hh = self._weights
        return ih if ih == hh else {"ih": ih, "hh": hh}

    def __repr__(self) -> str:
        given = self._given()
        return f"{self._layer._brief()}.freeze({'' if given is None else f'weights={given!r}'})"


class FrozenLSTM(Frozen[S]):
    """A frozen layer whose state has several members: that of an LSTM is a pair (h, c)."""

    __slots__ = ("_state_type",)

    def __init__(self, layer: Spec[S], core: _core.Frozen, weights: tuple[str, str] | None = None) -> None:
        super().__init__(layer, core, weights)
        self._state_type = layer._state_type

    def step(
        self, x: ArrayLike, state: Any = None, *, out: Array | None = None, state_out: Any = None
    ) -> tuple[Array, S]:
        """Run one time step; see `Frozen.step`."""
        result = self._step(x, state, out, state_out, get_num_threads())
        if result is None:
            return self._step_slowly(x, state, out, state_out)
        y, new = result
        kind = self._state_type
        return y, new if type(new) is kind else kind(*new)

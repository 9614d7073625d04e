"""Frozen layers: weights packed once, for serving whole sequences or one time step at a time."""

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, arguments, checks
from .arguments import OneHot, StateLike
from .running import Running
from .spec import S, Spec
from .threads import get_num_threads

Array = NDArray[Any]

# what freeze keeps the matrices as: None as they are, or a word for all of them, or one each for "ih" and "hh"
Weights: TypeAlias = str | Mapping[str, str] | None
Words: TypeAlias = tuple[str, str]  # the same, of weight_ih and of weight_hh
Scales: TypeAlias = Mapping[str, Array]  # what an integer of each row of a matrix of int8 counts, by the matrix's name
_WORDS = ("bfloat16", "int8")
_MOST_COLUMNS = 131072  # sums of so many products of int8 fit in 32 bits
_BFLOAT16_OVERFLOW = np.float32(3.3961776e38)  # rounds to infinity, as what lies above


def read_words(who: Callable[[], str], given: Weights) -> Words | None:
    """Return the words for weight_ih and weight_hh; None: the matrices stay as they are.

    Raises
    ------
    ValueError
        For other words.
    """
    if given is None:
        return None
    pair = (given.get("ih"), given.get("hh")) if isinstance(given, Mapping) else (given, given)
    if (isinstance(given, Mapping) and len(given) != 2) or any(word not in _WORDS for word in pair):
        problems = checks.Problems(who)
        why = 'It must be None, "bfloat16" or "int8", or {"ih": word, "hh": word} with one of the two words for each.'
        problems.value(f"weights={given!r}", why)
        problems.refuse()
    return str(pair[0]), str(pair[1])


def word_of(name: str, words: Words) -> str | None:
    """Return what a parameter is kept as, by its name; None: it is no matrix, and stays as it is."""
    if name.startswith("weight_ih"):
        return words[0]
    return words[1] if name.startswith(("weight_hh", "weight_hr")) else None


def check_matrices(problems: checks.Problems, parameters: Mapping[str, Array], words: Words, fix: str) -> None:
    """Note what cannot be kept in fewer bits; `fix` is the sentence that says what to do."""
    for name, values in parameters.items():
        word = word_of(name, words)
        if word is None:
            continue
        below = _BFLOAT16_OVERFLOW if word == "bfloat16" else np.float32(np.inf)
        if not (np.abs(values) < below).all():
            problems.value(f"{name} with numbers that are not finite in {word}", fix)
        if word == "int8" and values.shape[1] > _MOST_COLUMNS:
            why = f'int8 takes at most {_MOST_COLUMNS} columns: use "bfloat16".'
            problems.value(f"{name} with {values.shape[1]} columns", why)


def read_weights(layer: Spec[Any], given: Weights) -> Words | None:
    """Return the words for weight_ih and weight_hh; None: the matrices stay as they are.

    Raises
    ------
    ValueError
        For other words, and for layers whose weights cannot be kept so.
    """

    def who() -> str:
        return f"{layer._brief()}.freeze"

    words = read_words(who, given)
    if words is None:
        return None
    problems = checks.Problems(who)
    if layer.dtype != np.float32:
        why = f'Only float32 weights are kept in fewer bits, not {layer.dtype}: use to("cpu", "float32").freeze.'
        problems.value(f"weights={given!r}", why)
    if layer.heads > 1:
        why = f"Weights of a layer with heads={layer.heads} are not kept in fewer bits: freeze() it."
        problems.value(f"weights={given!r}", why)
    check_matrices(problems, layer.parameters(), words, "Freeze it without weights=.")
    problems.refuse()
    return words


def as_given(words: Words | None) -> Weights:
    """Return words as `freeze` takes them."""
    return None if words is None else words[0] if words[0] == words[1] else {"ih": words[0], "hh": words[1]}


class Frozen(Generic[S]):
    """An immutable copy of a layer with packed weights, made by ``layer.freeze()``.

    Several threads may call it at once. Two half sequences give the same bits as the whole one, and `step` the same
    as a call with one time step.
    """

    __slots__ = ("_core", "_layer", "_scales", "_step", "_weights")

    def __init__(
        self, layer: Running[S], core: _core.Frozen, weights: Words | None = None, scales: Scales | None = None
    ) -> None:
        self._layer = layer
        self._weights = weights
        self._scales = scales
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
        return layer._run(layer._memory, given, packed=self._core)[:2]

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
        ends = new if several else [new]
        y, end = (y[0], layer._as_state([s[:, 0] for s in ends])) if given.unbatched else (y, layer._as_state(ends))
        # what the caller gave to be written to comes back as it was given, not as a view of it
        y = y if out is None else out
        return y, end if state_out is None else layer._as_state(state_out if several else [state_out])

    def __copy__(self) -> "Frozen[S]":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen[S]":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._scales is not None:
            return pack, (self._layer, self._weights, self._scales)
        return operator.methodcaller("freeze", as_given(self._weights)), (self._layer,)

    def __repr__(self) -> str:
        given = as_given(self._weights)
        return f"{self._layer._brief()}.freeze({'' if given is None else f'weights={given!r}'})"


class FrozenLSTM(Frozen[S]):
    """A frozen layer whose state has several members: that of an LSTM is a pair (h, c)."""

    __slots__ = ("_state_type",)

    def __init__(
        self, layer: Running[S], core: _core.Frozen, weights: Words | None = None, scales: Scales | None = None
    ) -> None:
        super().__init__(layer, core, weights, scales)
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


def pack(layer: Running[Any], words: Words | None, scales: Scales | None = None) -> Frozen[Any]:
    """Freeze a copy of a layer whose weights are known to fit.

    Parameters
    ----------
    words
        As `read_weights` returns them.
    scales
        Of matrices that are multiples of these already, and stay so: (rows,) float32 each, by the matrix's name. What
        is beyond +-127 of them becomes +-127. Other rows get a scale of their own.
    """
    parameters = layer.parameters()
    given = None if scales is None else [scales.get(name) for name in parameters]
    core = layer._network.freeze(list(parameters.values()), words, None, given)
    kind: type[Frozen[Any]] = FrozenLSTM if layer._has_cell_state else Frozen
    return kind(copy.deepcopy(layer), core, words, scales)


def integers_of(values: Array, scale: Array | None = None) -> tuple[Array, Array]:
    """Return what int8 makes of a matrix (rows,K): integers (rows,K) in +-127, and what one counts, (rows,) float32.

    Bit for bit as the core has it; `scale`: that of each row, where it is given.
    """
    if scale is None:
        largest = np.abs(values).max(axis=1, initial=0)
        scale = largest / np.float32(127)
        span = largest.astype(np.float64)
    else:
        span = scale.astype(np.float64) * 127
    counts = scale >= np.finfo(np.float32).tiny
    steps = values.astype(np.float64) / np.where(counts, span, 1)[:, None] * 127
    rounded = np.rint(np.clip(steps, -127, 127)) * counts[:, None]
    return rounded.astype(np.int8), scale


def bits_of(values: Array) -> Array:
    """Return the nearest bfloat16, ties to even, as uint16; bit for bit as the core has it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def stored(fast: "Frozen[Any]") -> dict[str, Array]:
    """Return what a file holds of a layer with weights in fewer bits, by the parameters' names.

    Matrices of int8 (rows,K) with ``NAME_scale`` (rows,) float32 beside them, bits of bfloat16 as uint16, and float32.
    """
    words, scales = fast._weights, fast._scales or {}
    assert words is not None
    found: dict[str, Array] = {}
    for name, values in fast._layer.parameters().items():
        word = word_of(name, words)
        if word == "int8":
            found[name], found[f"{name}_scale"] = integers_of(values, scales.get(name))
        else:
            found[name] = values if word is None else bits_of(values)
    return found


def keep_integers(integers: Array, scale: Array) -> tuple[Array, Array]:
    """Return a matrix as float32 and the scales by which packing makes the same integers of it again.

    Parameters
    ----------
    integers
        (...,rows,K), less their zero point. Packing has -127..127: -128 becomes -127, and a row that reaches beyond
        +-128 gets a scale of its own, which makes its largest magnitude 127.
    scale
        (...,rows) float32, what one counts: positive, finite and not subnormal.
    """
    values = integers.astype(np.float32) * scale[..., None]
    largest = np.abs(integers).max(-1, initial=0)
    counts = np.where(largest > 128, scale * largest.astype(np.float32) / np.float32(127), scale)
    return values, np.ascontiguousarray(counts)

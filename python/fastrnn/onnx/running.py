"""RNN, GRU and LSTM nodes computed by fastrnn's layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import checks
from ..checks import Problems
from ..convert import ONNX_GATES
from ..initialise import as_generator
from ..memory import in_rows
from ..nodes import (
    INPUTS,
    OPERATORS,
    QUANTIZED,
    QUANTIZED_INPUTS,
    WEIGHTS,
    Node,
    check_weights,
    inputs_of,
    parse,
)
from ..options import read_options
from ..parameters import Parameters
from ..threads import get_num_threads
from . import quantized

Array = NDArray[Any]

_COMPUTED = {"float32": np.float32, "float64": np.float64, "float16": np.float32, "bfloat16": np.float32}
_SMALL = 1 << 22  # numbers in an X for which memory is not asked about first
CHUNK = 4096  # time steps between two reports of progress


def run_node(op_type: str, attributes: Mapping[str, Any], inputs: Sequence[ArrayLike | None]) -> list[Array]:
    """Compute one RNN, GRU or LSTM node as the text of ONNX defines it, from opset 7 to the newest.

    Parameters
    ----------
    op_type : {"RNN", "GRU", "LSTM", "DynamicQuantizeLSTM"}
        The operator, of the domain ai.onnx; the last one of com.microsoft.
    attributes : mapping
        By name: ``hidden_size``, which must be there, ``direction``, ``layout``, ``activations``, ``activation_alpha``,
        ``activation_beta``, ``clip``, of a GRU ``linear_before_reset``, of an LSTM ``input_forget``.
    inputs : sequence of array_like or None
        X (T,B,I), W (D,G*H,I), R (D,G*H,H), B (D,2*G*H), sequence_lens (B,), initial_h (D,B,H) and, of an LSTM,
        initial_c (D,B,H) and P (D,3*H), the gates in the order iofc or zrh. None, or a shorter list, leaves out what
        is optional. With ``layout=1`` X is (B,T,I) and the states are (B,D,H). X, float32, float64, float16 or
        bfloat16 (of ml_dtypes), decides about the type: the 16-bit ones are computed in float32. DynamicQuantizeLSTM
        has W (D,I,4*H) and R (D,H,4*H) of int8 or uint8, everything else float32, and behind P W_scale, W_zero_point,
        R_scale and R_zero_point, each (D,) or (D,4*H).

    Returns
    -------
    list of array
        Y (T,D,B,H), with ``layout=1`` (B,T,D,H), zero past each length; Y_h and, of an LSTM, Y_c, shaped like the
        initial states: the states at the last valid step, and the initial ones where the length is 0.

    Raises
    ------
    ShapeError, ValueError, TypeError
        With everything that does not fit.

    Notes
    -----
    The text is https://onnx.ai/onnx/operators/. ONNX Runtime (1.32, CPU) departs from it: where the length is 0, or
    there is no time step at all, its final states are zero instead of the initial ones (Y_c of an LSTM without time
    steps is not even written to); with ``clip``, an LSTM's cell state is not clipped on its way into the output;
    Affine, ThresholdedRelu and ScaledTanh have other defaults; it has neither float64 nor ``layout=1``, and ends the
    process at an LSTM or GRU with no sequence (B = 0), and at a GRU with no time step.
    `accelerate` stands in for ONNX Runtime, so there the final states of length 0 are zero, and nodes with those
    attributes are left to it.

    The weights of DynamicQuantizeLSTM are multiplied as int8 of -127..127, with the scales that they have: -128 counts
    as -127, and a row that reaches beyond +-128 of its zero point is rounded once more. The other factors, rows of X
    and of h, are rounded to int8 with a scale each; ONNX Runtime rounds them to 8 bits with one scale for all rows of a
    step. So results differ by as much as either is off what float32 makes of these weights. ONNX Runtime refuses zero
    points of columns that are not the middle of the range.
    """
    who = f"run_node({op_type!r})"
    if op_type not in OPERATORS and op_type != QUANTIZED:
        raise ValueError(f'{who}: the operators are "RNN", "GRU", "LSTM" and "{QUANTIZED}".')
    expected = inputs_of(op_type)
    problems = Problems(lambda: who)
    if not isinstance(inputs, (list, tuple)) or len(inputs) > len(expected):
        count = len(inputs) if isinstance(inputs, (list, tuple)) else type(inputs).__name__
        problems.value(f"inputs: {count}", f"They must be a list of at most {len(expected)}: {', '.join(expected)}.")
        problems.refuse()
    given: dict[str, Array | None] = dict.fromkeys(expected)
    for name, value in zip(expected, inputs, strict=False):
        given[name] = None if value is None else _as_array(problems, name, value)
    problems.refuse()
    node = parse(op_type, attributes, given.get("P") is not None, who)
    weights = [given.get(name) for name in (*WEIGHTS, *QUANTIZED_INPUTS[: 4 * node.stored])]
    prepared = Prepared(node, weights, given["X"], who=who, packed=node.stored)
    states = [given[name] for name in INPUTS[5:7] if name in given]
    return prepared(given["X"], given["sequence_lens"], states)


def _as_array(problems: Problems, name: str, value: ArrayLike) -> Array | None:
    try:
        return checks.numbers(value)
    except (TypeError, ValueError, RuntimeError) as error:
        checks.not_an_array(problems, name, value, error)
        return None


def make_layer(node: Node, arrays: Mapping[str, Array], batch_first: bool = False) -> Any:
    """Make the layer of a node from parameters by PyTorch's names, which become its own.

    Nothing is drawn, and nothing copied.
    """
    kind = OPERATORS[node.op_type]
    weight = arrays["weight_ih_l0"]
    given = {
        "input_size": weight.shape[1],
        "hidden_size": node.hidden_size,
        "num_layers": 1,
        **node.options(),
        "bias": "bias_ih_l0" in arrays,
        "batch_first": batch_first,
        "bidirectional": node.directions == 2,
        "dropout": 0.0,
        "dtype": weight.dtype,
    }
    if node.op_type == "LSTM":
        given["proj_size"] = 0
    layer = kind.__new__(kind)
    options = read_options(kind.__name__, given, len(kind._usual))
    layer.__setstate__({"options": options, "parameters": Parameters(arrays), "rng": as_generator(kind.__name__, None)})
    return layer


def _in_our_order(node: Node) -> Callable[[Array], Array]:
    """Return what turns rows in the order of ONNX's gates into a copy in that of PyTorch's."""
    gates = ONNX_GATES[node.op_type]
    order = [gates.index(k) for k in range(len(gates))]  # of PyTorch's gates, the positions in ONNX's

    def reordered(rows: Array) -> Array:
        parts = rows.reshape(len(order), node.hidden_size, *rows.shape[1:])
        return np.ascontiguousarray(parts[order]).reshape(rows.shape)

    return reordered


def as_scales(node: Node, scales: Sequence[Array]) -> dict[str, Array]:
    """Return what the integers of the rows of W and R count, (D,G*H) each, by PyTorch's names of these."""
    reordered, suffixes = _in_our_order(node), ("l0", "l0_reverse")
    pairs = zip(("weight_ih", "weight_hh"), scales, strict=True)
    return {f"{name}_{suffixes[d]}": reordered(rows) for name, one in pairs for d, rows in enumerate(one)}


def as_parameters(node: Node, weights: Sequence[Array | None]) -> dict[str, Array]:
    """Return W, R, B and P by PyTorch's names in its order; always copies."""
    W, R, B, P = weights
    assert W is not None
    assert R is not None
    reordered = _in_our_order(node)
    found = {}
    for d, suffix in enumerate(("l0", "l0_reverse")[: node.directions]):
        found[f"weight_ih_{suffix}"], found[f"weight_hh_{suffix}"] = reordered(W[d]), reordered(R[d])
        if B is not None:
            found[f"bias_ih_{suffix}"], found[f"bias_hh_{suffix}"] = map(reordered, np.split(B[d], 2))
        if P is not None:
            found[f"weight_peephole_{suffix}"] = P[d].reshape(3, -1)[[0, 2, 1]]  # i o f to i f o
    return found


class Prepared:
    """A node with its weights, ready for any number of calls, also from several threads.

    Parameters
    ----------
    node
        What its attributes say.
    weights
        W, R, B and P, as of `run_node`, and of a DynamicQuantizeLSTM its four more.
    X
        Its dtype decides about the type of everything; None: that of W.
    packed
        Whether the weights are packed once, for many calls.
    who
        The subject of errors.
    zero_ends
        Whether the final states of length 0 are zero, as ONNX Runtime has it.

    Attributes
    ----------
    weights
        W, R, B and P, of a DynamicQuantizeLSTM as an LSTM has them.
    scales : dict of str to array
        What the integers of its rows count, by PyTorch's names of the matrices; of other nodes empty.

    Raises
    ------
    ShapeError, TypeError, ValueError
        For weights that do not fit.
    """

    def __init__(
        self,
        node: Node,
        weights: Sequence[Array | None],
        X: Array | None = None,
        *,
        who: str,
        packed: bool,
        zero_ends: bool = False,
    ) -> None:
        self.node, self.who, self.zero_ends = node, who, zero_ends
        problems = Problems(lambda: who)
        self.scales: Mapping[str, Array] = {}
        if node.stored:
            weights, scales = quantized.dequantised(problems, node.directions, node.hidden_size, weights)
            problems.refuse()
            self.scales = as_scales(node, scales)
        self.weights = weights
        self.dtype = _dtype(problems, X if X is not None else weights[0])
        self.computed = np.dtype(_COMPUTED.get(self.dtype.name, np.float32))
        self.input_size = check_weights(problems, node, [None if a is None else a.shape for a in weights])
        for name, array in zip(WEIGHTS, weights, strict=True):
            self._same_dtype(problems, name, array)
        problems.refuse()
        computed = [None if a is None else a.astype(self.computed, copy=False) for a in weights]
        self.layer = _Layer(node, computed, packed, self.scales)
        plain = not node.layout and node.direction != "reverse" and self.dtype == self.computed
        self._simple = self.layer.frozen if plain else None
        self._steps = self._simple.step if self._simple is not None and node.directions == 1 else None

    def __call__(
        self, X: Array | None, lengths: Array | None, states: Sequence[Array | None], progress: Any = None
    ) -> list[Array]:
        """Return Y, Y_h and, of an LSTM, Y_c; arguments, results and errors are those of `run_node`.

        `progress`, if given, is called with the time steps done and all of them.
        """
        if lengths is None and progress is None and self._simple is not None:
            quickly = self._as_it_comes(X, states)
            if quickly is not None:
                return quickly
        node = self.node
        lengths = self._check(X, lengths, states)
        assert X is not None
        x = X if X.dtype == self.computed else X.astype(self.computed)
        x = in_rows(x.swapaxes(0, 1) if node.layout else x)
        starts = [None if s is None else np.asarray(s.swapaxes(0, 1) if node.layout else s) for s in states]
        given = [None if s is None else np.require(s, self.computed, ["C", "A"]) for s in starts]
        results = self.layer(x, lengths, given, self._chunks(len(x), lengths, progress))
        if self.zero_ends and (lengths is not None or not len(x)):
            short = (lengths == 0) if lengths is not None else np.ones(x.shape[1], bool)
            for end in results[1:]:
                end[:, short] = 0
        y, *ends = results  # y (T,B,D,H), or with layout=1 (B,T,D,H)
        if not node.layout:
            y = y.transpose(0, 2, 1, 3)
        else:
            ends = [end.swapaxes(0, 1) for end in ends]
        results = [y, *ends]
        return results if self.dtype == self.computed else [a.astype(self.dtype) for a in results]

    def _as_it_comes(self, X: Array | None, states: Sequence[Array | None]) -> list[Array] | None:
        """Compute where nothing has to be converted or said: a step takes about as long as some checks; else None."""
        computed, group = self.computed, self._simple
        if self._steps is not None and X is not None and X.ndim == 3 and len(X) == 1:
            stepped = self._one_step(self._steps, X, states)
            if stepped is not None:
                return stepped
        if X is None or X.dtype != computed or X.ndim != 3 or not _is_plain(X) or not 0 < X.size <= _SMALL:
            return None
        T, B, I = X.shape
        if self.input_size != I or group is None:
            return None
        starts: Any = None
        for state in states:
            if state is not None:
                wanted = (self.node.directions, B, self.node.hidden_size)
                if state.dtype != computed or state.shape != wanted or not _is_plain(state):
                    return None
                starts = states
        if starts is not None and any(s is None for s in states):
            return None
        y, ends = group.forward(X, starts, None, None, False, get_num_threads(), None)
        if self.node.directions == 1:
            return [y[:, None], *ends]
        return [y.reshape(T, B, 2, self.node.hidden_size).transpose(0, 2, 1, 3), *ends]

    def _one_step(self, step: Any, X: Array, states: Sequence[Array | None]) -> list[Array] | None:
        """Compute one time step, if the core takes all arrays as they are; else None."""
        if len(states) == 1:
            found = step(X[0], states[0], None, None, get_num_threads())
            return None if found is None else [found[0][None, None], found[1]]
        h, c = states
        if (h is None) != (c is None):
            return None
        found = step(X[0], None if h is None else (h, c), None, None, get_num_threads())
        return None if found is None else [found[0][None, None], *found[1]]

    def _chunks(self, T: int, lengths: Array | None, progress: Any) -> Any:
        """Return what to call after each CHUNK of time steps, where that is possible and asked for."""
        one_way = self.node.direction == "forward" and lengths is None
        return progress if progress is not None and one_way and T > CHUNK else None

    def _check(self, X: Array | None, lengths: Array | None, states: Sequence[Array | None]) -> Array | None:
        """Refuse what does not fit; return the lengths as int64, or None."""
        problems = Problems(lambda: self.who)
        _dtype(problems, X)
        self._same_dtype(problems, "X", X)
        if X is None or X.ndim != 3 or X.shape[2] != self.input_size:
            axes = "(batch, time, features)" if self.node.layout else "(time, batch, features)"
            why = f"It must be {axes} with {self.input_size} features, as W has them."
            problems.shape("no X" if X is None else f"X with shape {X.shape}", why)
        problems.refuse()
        assert X is not None
        T, B = X.shape[:2][:: -1 if self.node.layout else 1]
        if lengths is not None:
            lengths = _read_lengths(problems, lengths, T, B)
        rows = (self.node.directions, B)[:: -1 if self.node.layout else 1]
        for name, state in zip(INPUTS[5:7], states, strict=False):
            if state is not None and state.shape != (*rows, self.node.hidden_size):
                axes = "(batch, directions, hidden)" if self.node.layout else "(directions, batch, hidden)"
                why = f"It must have shape {(*rows, self.node.hidden_size)} = {axes}."
                problems.shape(f"{name} with shape {state.shape}", why)
            self._same_dtype(problems, name, state)
        problems.refuse()
        return lengths

    def _same_dtype(self, problems: Problems, name: str, array: Array | None) -> None:
        if array is not None and array.dtype != self.dtype:
            problems.type(
                f"{name} with dtype {array.dtype}", f"All but sequence_lens must have one type: {self.dtype}."
            )


class _Layer:
    """The layer that computes a node; of one that runs in reverse alone, which no layer does, on turned sequences."""

    def __init__(self, node: Node, weights: Sequence[Array | None], packed: bool, scales: Mapping[str, Array]) -> None:
        self.layer = make_layer(node, as_parameters(node, weights), bool(node.layout))
        given = [scales.get(name) for name in self.layer.parameters()]
        freeze = self.layer._network.freeze
        self.frozen = freeze(self.layer._arrays(), node.words, None, given) if packed else None
        self.backwards = node.direction == "reverse"
        self.options = node.directions, node.hidden_size, bool(node.layout)

    def __call__(self, x: Array, lengths: Array | None, states: list[Array | None], chunked: Any) -> list[Array]:
        """Return y (T,B,D,H), or with the batch first (B,T,D,H), and the final states (D,B,H)."""
        directions, H, batch_first = self.options
        flip = _flipped(len(x), lengths) if self.backwards else None
        starts: Any = None
        if any(s is not None for s in states):
            starts = [np.zeros((directions, x.shape[1], H), x.dtype) if s is None else s for s in states]
        if flip is not None:
            x = flip(x)
        T, B = x.shape[:2]
        checks.call_size(self.layer._brief, self.layer._network, T, B, False, lengths=lengths)
        y, ends = self._in_chunks(x, starts, chunked) if chunked else self._run(x, starts, lengths)
        if flip is not None:
            y = flip(y.swapaxes(0, 1)).swapaxes(0, 1) if batch_first else flip(y)
        return [y.reshape(*y.shape[:2], directions, H), *ends]

    def _run(self, x: Array, states: Any, lengths: Array | None) -> tuple[Array, Sequence[Array]]:
        batch_first, n = self.options[2], get_num_threads()
        try:
            if self.frozen is not None:
                found: tuple[Array, Sequence[Array]] = self.frozen.forward(
                    x, states, lengths, None, batch_first, n, None
                )
                return found
            y, ends, _ = self.layer._network.forward(
                self.layer._arrays(), x, states, lengths, None, False, batch_first, n
            )
            return y, ends
        except MemoryError as error:
            T, B = x.shape[:2]
            raise checks.out_of_memory(self.layer._brief(), self.layer._network, T, B, False, None, lengths) from error

    def _in_chunks(self, x: Array, states: Any, progress: Any) -> tuple[Array, Sequence[Array]]:
        """Run over pieces of the time, each from the state of the one before: the same, with news in between."""
        parts = []
        for t in range(0, len(x), CHUNK):
            y, states = self._run(x[t : t + CHUNK], states, None)
            parts.append(y)
            progress(min(t + CHUNK, len(x)), len(x))
        return np.concatenate(parts, axis=1 if self.options[2] else 0), states


def _is_plain(array: Array) -> bool:
    flags = array.flags
    return flags.c_contiguous and flags.aligned


def _flipped(T: int, lengths: Array | None) -> Any:
    """Return what turns arrays (T,B,...) around in time, each sequence within its length."""
    if lengths is None:
        return lambda a: a[::-1]
    t = np.arange(T)[:, None]
    index = np.where(t < lengths, lengths - 1 - t, t)
    columns = np.arange(len(lengths))
    return lambda a: a[index, columns]


def _dtype(problems: Problems, array: Array | None) -> np.dtype[Any]:
    if array is None:
        return np.dtype(np.float32)
    if array.dtype.name not in _COMPUTED:
        problems.type(f"X with dtype {array.dtype}", f"It must be {', '.join(_COMPUTED)}.")
    return array.dtype


def _read_lengths(problems: Problems, lengths: Array, T: int, B: int) -> Array | None:
    if lengths.dtype.kind not in "iu":
        problems.type(f"sequence_lens with dtype {lengths.dtype}", "It must hold integers.")
    elif lengths.shape != (B,):
        problems.shape(
            f"sequence_lens with shape {lengths.shape}", f"It must have one length for each sequence: ({B},)."
        )
    elif lengths.size and not (lengths.min() >= 0 and lengths.max() <= T):
        b = int(np.argmax((lengths < 0) | (lengths > T)))
        problems.value(f"sequence_lens[{b}]={lengths[b]}", f"Each length must be in 0..{T}, the steps of X.")
    else:
        return lengths.astype(np.int64)
    return None

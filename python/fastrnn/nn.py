"""What stands around recurrent layers in training: embedding, read-out, losses, optimizers. Plain NumPy."""

import operator
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _core
from .checks import Problems, parameter_sizes, same_shape, seed_error, swap_hint
from .inputs import as_real
from .optim import SGD, Adam, clip_grad_norm
from .parameters import Parameters
from .recurrent import Seed
from .threads import get_num_threads

__all__ = ["SGD", "Adam", "Embedding", "Linear", "binary_cross_entropy", "clip_grad_norm", "cross_entropy"]

Array = NDArray[Any]
Reduction = Literal["mean", "sum"]


def product(a: Array, a_transposed: bool, b: Array, b_transposed: bool) -> Array:
    """Return a b, or with the transpose of either, by the core: NumPy's would bring a second team of threads."""
    rows, columns = (np.require(m, requirements=["C", "A"]) for m in (a, b))
    return _core.product(rows, a_transposed, columns, b_transposed, get_num_threads())


class PartGradients(NamedTuple):
    """The gradients of one backward call of an `Embedding` or a `Linear`."""

    x: Array | None  # as the input; None for an Embedding, whose input is ids
    parameters: dict[str, Array]  # by name, each as its parameter


class PartTape(NamedTuple):
    """What the forward call of an `Embedding` or a `Linear` keeps for backward: its input, by reference."""

    part: "_Part"
    version: int
    x: Array


class _Part:
    """Sizes, parameters by name, and a tape that knows its layer and the version of the parameters it saw."""

    def __init__(self, sizes: Mapping[str, Any], dtype: DTypeLike, rng: Seed) -> None:
        self._sizes: dict[str, int] = {}
        problems = Problems(lambda: type(self).__name__)
        for name, value in sizes.items():
            if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
                problems.type(f"{name}={value!r}", f"{name} must be an integer.")
            elif operator.index(value) < 1:
                problems.value(f"{name}={value!r}", f"{name} must be at least 1.")
            else:
                self._sizes[name] = operator.index(value)
        if dtype not in (np.float32, np.float64, "float32", "float64"):
            problems.type(f"dtype={dtype!r}", "dtype must be np.float32 or np.float64.")
        problems.refuse()
        self.dtype = np.dtype(dtype)
        try:
            self._rng = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            raise seed_error(repr(self), rng, error) from error

    def _hold(self, arrays: dict[str, Array]) -> None:
        self._parameters = Parameters(arrays)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={size}' for name, size in self._sizes.items())})"

    def parameters(self) -> Parameters:
        """Return the live arrays by name; editing them in place is seen by the next call."""
        return self._parameters

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters by name."""
        return {name: array.copy() for name, array in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy values into the parameters.

        Parameters
        ----------
        state_dict : mapping of str to array
            One array per parameter, under its name and with its shape.

        Raises
        ------
        ShapeError, TypeError, ValueError
            With every name, shape and dtype that does not fit; then nothing is changed.
        """
        self._parameters.load(state_dict, repr(self))

    def _tape(self, x: Array) -> PartTape:
        return PartTape(self, self._parameters.version, x)

    def _check_tape(self, tape: PartTape) -> None:
        if not isinstance(tape, PartTape):
            raise TypeError(f"{self!r}.backward takes the tape that forward returned, got {type(tape).__name__}")
        if tape.part is not self:
            raise ValueError(f"{self!r}.backward got a tape of another layer, {tape.part!r}")
        if tape.version != self._parameters.version:
            raise ValueError(
                f"{self!r}.backward got a tape from before its parameters were changed by "
                f"{self._parameters.last_change}: run forward again first"
            )

    def _check_dy(self, dy: ArrayLike, shape: tuple[int, ...]) -> Array:
        problems = Problems(lambda: f"{self!r}.backward")
        array = as_real(problems, "dy", dy, self.dtype)
        if array is not None:
            same_shape(problems, "dy", array.shape, shape, "y")
        problems.refuse()
        return cast("Array", array)


def _integers(problems: Problems, name: str, value: ArrayLike, what: str, count: int) -> NDArray[np.int64]:
    """Return ids as int64, each in 0..count-1; a problem names the first that is not."""
    array = np.asarray(value)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        problems.type(f"{name} with dtype {array.dtype}", f"They are {what} and must be integers.")
        return np.zeros(array.shape, np.int64)
    if array.size and (array.min() < 0 or array.max() >= count):
        bad = np.argwhere((array < 0) | (array >= count))
        where = ", ".join(map(str, bad[0]))
        more = f" and {len(bad) - 1} more out of range" if len(bad) > 1 else ""
        got = f"{name}[{where}] = {array[tuple(bad[0])]}{more}"
        problems.value(got, f"They are {what} and must be in 0..{count - 1}.")
        return np.zeros(array.shape, np.int64)
    return array.astype(np.int64, copy=False)


class Embedding(_Part):
    """A table of vectors, one per id.

    Parameters
    ----------
    num_embeddings : int
        Number of ids, V.
    embedding_dim : int
        Length of each vector, E.
    dtype : float32 or float64
        Of the table and of y.
    rng : Generator, int or None
        Source of the initial values, drawn from N(0, 1).

    Notes
    -----
    ``parameters()`` holds ``weight`` (V,E).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: DTypeLike = np.float32, rng: Seed = None
    ) -> None:
        super().__init__({"num_embeddings": num_embeddings, "embedding_dim": embedding_dim}, dtype, rng)
        shape = self.num_embeddings, self.embedding_dim
        parameter_sizes(repr(self), [shape], self.dtype)
        self._hold({"weight": self._rng.standard_normal(shape).astype(self.dtype)})

    @property
    def num_embeddings(self) -> int:
        """Number of ids, V."""
        return self._sizes["num_embeddings"]

    @property
    def embedding_dim(self) -> int:
        """Length of each vector, E."""
        return self._sizes["embedding_dim"]

    def __call__(self, ids: ArrayLike) -> Array:
        """Return y (...,E), the vectors of integer ids (...).

        Raises
        ------
        TypeError, ValueError
            If the ids are not integers in 0..V-1.
        """
        return self.forward(ids)[0]

    def forward(self, ids: ArrayLike) -> tuple[Array, PartTape]:
        """Return y (...,E), the vectors of integer ids (...), and the tape for `backward`."""
        problems = Problems(lambda: repr(self))
        checked = _integers(problems, "ids", ids, "rows of the table", self.num_embeddings)
        problems.refuse()
        return self._parameters["weight"][checked], self._tape(checked)

    def backward(self, tape: PartTape, dy: ArrayLike) -> PartGradients:
        """Return the gradient of the table: row v is the sum of dy (...,E) wherever the id was v."""
        self._check_tape(tape)
        dy = self._check_dy(dy, (*tape.x.shape, self.embedding_dim))
        dweight = np.zeros_like(self._parameters["weight"])
        if tape.x.size:
            # Sorted runs of one id are summed in a fixed order; np.add.at takes six times as long.
            order = np.argsort(tape.x, axis=None, kind="stable")
            ids = tape.x.reshape(-1)[order]
            starts = np.flatnonzero(np.diff(ids, prepend=-1))
            dweight[ids[starts]] = np.add.reduceat(dy.reshape(-1, self.embedding_dim)[order], starts, axis=0)
        return PartGradients(None, {"weight": dweight})


class Linear(_Part):
    """The read-out ``y = x W^T + b``.

    Parameters
    ----------
    in_features, out_features : int
        Length of each input and output vector, I and O.
    bias : bool
        Whether there is a b.
    dtype : float32 or float64
        Of the parameters and of y.
    rng : Generator, int or None
        Source of the initial values, drawn from U(-1, 1) / sqrt(I) as in PyTorch.

    Notes
    -----
    ``parameters()`` holds ``weight`` (O,I) and, with a bias, ``bias`` (O,).
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, dtype: DTypeLike = np.float32, rng: Seed = None
    ) -> None:
        super().__init__({"in_features": in_features, "out_features": out_features}, dtype, rng)
        if not isinstance(bias, (bool, np.bool_)):
            raise TypeError(f"{self!r} got bias={bias!r}.\n  bias must be True or False.")
        self.bias = bool(bias)
        shapes = {"weight": (self.out_features, self.in_features), **({"bias": (self.out_features,)} if bias else {})}
        parameter_sizes(repr(self), list(shapes.values()), self.dtype)
        bound = 1.0 / np.sqrt(self.in_features)
        self._hold({name: self._rng.uniform(-bound, bound, s).astype(self.dtype) for name, s in shapes.items()})

    @property
    def in_features(self) -> int:
        """Length of each input vector, I."""
        return self._sizes["in_features"]

    @property
    def out_features(self) -> int:
        """Length of each output vector, O."""
        return self._sizes["out_features"]

    def __call__(self, x: ArrayLike) -> Array:
        """Return y (...,O) of x (...,I).

        Raises
        ------
        ShapeError, TypeError
            If the last axis is not I or the dtype does not convert without loss.
        """
        return self.forward(x)[0]

    def forward(self, x: ArrayLike) -> tuple[Array, PartTape]:
        """Return y (...,O) of x (...,I), and the tape for `backward`, which holds x by reference."""
        problems = Problems(lambda: repr(self))
        array = as_real(problems, "x", x, self.dtype)
        if array is not None and array.shape[-1:] != (self.in_features,):
            why = f"The last axis must be {self.in_features}.{swap_hint('x', array.shape, self.in_features)}"
            problems.shape(f"x with shape {array.shape}", why)
        problems.refuse()
        array = cast("Array", array)
        y = product(array.reshape(-1, self.in_features), False, self._parameters["weight"], True)
        if self.bias:
            y += self._parameters["bias"]
        return y.reshape(*array.shape[:-1], self.out_features), self._tape(array)

    def backward(self, tape: PartTape, dy: ArrayLike) -> PartGradients:
        """Return the gradients of x and of the parameters, given dy (...,O).

        ``dx = dy W``, ``dW = dy^T x`` and ``db = dy`` summed over all rows.
        """
        self._check_tape(tape)
        dy = self._check_dy(dy, (*tape.x.shape[:-1], self.out_features))
        rows, x = dy.reshape(-1, self.out_features), tape.x.reshape(-1, self.in_features)
        gradients = {"weight": product(rows, True, x, False)}
        if self.bias:
            gradients["bias"] = rows.sum(axis=0)
        return PartGradients(product(rows, False, self._parameters["weight"], False).reshape(tape.x.shape), gradients)


def _logits(problems: Problems, value: ArrayLike) -> Array:
    array = np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        fix = "logits.astype(np.float32)" if isinstance(value, np.ndarray) else "np.asarray(logits, dtype=np.float32)"
        problems.type(f"logits with dtype {array.dtype}", f"They must be float32 or float64: use {fix}.")
    return array


def _mask(problems: Problems, value: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype != bool:
        problems.type(f"mask with dtype {array.dtype}", "It must be boolean, True where the target counts.")
    elif array.shape != shape:
        problems.shape(f"mask with shape {array.shape}", f"It must have the shape of the targets: {shape}.")
    else:
        return cast("NDArray[np.bool_]", array)
    return None


def _reduce(losses: Array, dlogits: Array, mask: NDArray[np.bool_] | None, reduction: Reduction) -> tuple[float, Array]:
    """Sum what counts, in float64; a mean divides loss and gradient by how many count."""
    if mask is not None:
        losses = losses[mask]
        dlogits[~mask] = 0.0  # a select, not a product: a NaN that does not count reaches nothing
    total = float(losses.sum(dtype=np.float64))
    if reduction == "mean" and losses.size:
        total /= losses.size
        dlogits /= losses.size
    return total, dlogits


def _check_reduction(problems: Problems, reduction: object) -> None:
    if reduction not in ("mean", "sum"):
        problems.value(f"reduction={reduction!r}", 'It must be "mean" or "sum".')


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, mask: ArrayLike | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Softmax and cross entropy in one: the loss ``-log softmax(logits)[target]`` and its gradient.

    Parameters
    ----------
    logits : array (...,V)
        Unnormalised log probabilities, float32 or float64.
    targets : integer array (...)
        The right class of each row, in 0..V-1.
    mask : bool array (...), optional
        True where a row counts. The target of a row that does not count may be any integer.
    reduction : {"mean", "sum"}
        Over all rows that count; the mean of none is 0.

    Returns
    -------
    loss : float
        In nats, summed in float64.
    dlogits : array (...,V)
        ``(softmax(logits) - onehot(target))``, divided by the number of rows for the mean; zero where the mask is
        False. The dtype is that of the logits.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If shapes, dtypes or a target do not fit.
    """
    problems = Problems(lambda: "cross_entropy")
    logits = _logits(problems, logits)
    classes = logits.shape[-1] if logits.ndim else 0
    shape = logits.shape[:-1]
    if classes == 0:
        problems.shape(f"logits with shape {logits.shape}", "They must have a last axis with at least one class.")
    got = np.asarray(targets)
    counts = _mask(problems, mask, shape)
    if got.shape != shape:
        why = f"There must be one target per row of the logits {logits.shape}: shape {shape}."
        if got.shape == logits.shape:
            why += " They are class numbers, not one-hot vectors: did you mean targets.argmax(-1)?"
        problems.shape(f"targets with shape {got.shape}", why)
    elif classes:
        if counts is not None and got.dtype.kind in "iu":
            targets = np.where(counts, got, 0)  # those that do not count are not looked at
        targets = _integers(problems, "targets", targets, "class numbers", classes)
    _check_reduction(problems, reduction)
    problems.refuse()

    rows = logits.reshape(-1, classes)
    right = np.arange(len(rows)), cast("Array", targets).reshape(-1)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller sees
        dlogits = rows - rows.max(axis=1, keepdims=True)
    chosen = dlogits[right]
    np.exp(dlogits, out=dlogits)
    sums = dlogits.sum(axis=1)
    losses = np.log(sums) - chosen
    dlogits /= sums[:, None]
    dlogits[right] -= 1.0
    return _reduce(losses.reshape(shape), dlogits.reshape(logits.shape), counts, reduction)


def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, *, mask: ArrayLike | None = None, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Sigmoid and cross entropy in one, for yes-or-no targets.

    The loss of an element is ``-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z))``, computed as
    ``max(z, 0) - t z + log(1 + exp(-|z|))``, which neither overflows nor loses small values.

    Parameters
    ----------
    logits : array (...)
        Float32 or float64.
    targets : array (...)
        Booleans or numbers in 0..1.
    mask : bool array (...), optional
        True where an element counts; the target of one that does not may be anything.
    reduction : {"mean", "sum"}
        Over all elements that count; the mean of none is 0.

    Returns
    -------
    loss : float
        In nats, summed in float64.
    dlogits : array (...)
        ``sigmoid(logits) - targets``, divided by the number of elements for the mean; zero where the mask is False.

    Raises
    ------
    ShapeError, TypeError, ValueError
        If shapes, dtypes or a target do not fit.
    """
    problems = Problems(lambda: "binary_cross_entropy")
    z = _logits(problems, logits)
    got = np.asarray(targets)
    counts = _mask(problems, mask, z.shape)
    if got.shape != z.shape:
        problems.shape(f"targets with shape {got.shape}", f"They must have the shape of the logits: {z.shape}.")
    if got.dtype.kind not in "biuf":
        problems.type(f"targets with dtype {got.dtype}", "They must be booleans or numbers in 0..1.")
    else:
        outside = ~((got >= 0) & (got <= 1))
        if counts is not None and counts.shape == got.shape:
            outside &= counts
        if outside.any():
            where = tuple(np.argwhere(outside)[0])
            problems.value(f"targets[{', '.join(map(str, where))}] = {got[where]}", "Each must be in 0..1.")
    _check_reduction(problems, reduction)
    problems.refuse()

    t = got.astype(z.dtype)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which the caller sees
        small = np.exp(-np.abs(z))
        losses = np.maximum(z, 0.0) - t * z + np.log1p(small)
        dlogits = np.where(z >= 0, 1.0, small) / (1.0 + small) - t
    return _reduce(losses, dlogits, counts, reduction)

"""What stands before and after recurrent layers in a model: embedding and read-out."""

import operator
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import _core
from ..checks import Problems, output_array, overlaps, parameter_sizes, same_shape, seed_error, swap_hint
from ..initialise import Seed
from ..memory import as_real, integers
from ..parameters import Parameters, Parametrised
from ..threads import get_num_threads

__all__ = ["Embedding", "Linear"]

Array = NDArray[Any]


def product(
    a: Array, a_transposed: bool, b: Array, b_transposed: bool, out: Array | None = None, add: bool = False
) -> Array:
    """Return a b, or with the transpose of either, by the core: NumPy's would bring a second team of threads."""
    rows, columns = (np.require(m, requirements=["C", "A"]) for m in (a, b))
    return _core.product(rows, a_transposed, columns, b_transposed, get_num_threads(), out, add)


class PartGradients(NamedTuple):
    """The gradients of one backward call of an `Embedding` or a `Linear`."""

    x: Array | None  # as the input; None for an Embedding, whose input is ids
    parameters: dict[str, Array]  # by name, each as its parameter


class PartTape(NamedTuple):
    """What the forward call of an `Embedding` or a `Linear` keeps for backward: its input, by reference."""

    part: "_Part"
    version: int
    x: Array


class _Part(Parametrised):
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

    def _hold(self, arrays: Mapping[str, Array]) -> None:
        self._parameters = Parameters(arrays)

    @staticmethod
    @abstractmethod
    def _shapes(*args: Any, **sizes: Any) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name; the arguments are those of the constructor."""

    @abstractmethod
    def _plain_options(self) -> dict[str, Any]:
        """Return the arguments of the constructor as JSON has them."""

    @classmethod
    @abstractmethod
    def _of_parameters(cls, arrays: Mapping[str, Array], rng: Seed = None) -> Self:
        """Return one whose parameters are these very arrays; nothing is drawn."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={size}' for name, size in self._sizes.items())})"

    def _brief(self) -> str:
        return repr(self)

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
        shapes = self._shapes(self.num_embeddings, self.embedding_dim)
        parameter_sizes(repr(self), list(shapes.values()), self.dtype)
        self._hold({"weight": self._rng.standard_normal(shapes["weight"]).astype(self.dtype)})

    @staticmethod
    def _shapes(num_embeddings: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name."""
        return {"weight": (num_embeddings, embedding_dim)}

    def _plain_options(self) -> dict[str, Any]:
        """Return the arguments of the constructor as JSON has them."""
        return {**self._sizes, "dtype": self.dtype.name}

    @classmethod
    def _of_parameters(cls, arrays: Mapping[str, Array], rng: Seed = None) -> Self:
        """Return one whose parameters are these very arrays; nothing is drawn."""
        part = cls.__new__(cls)
        rows, columns = arrays["weight"].shape
        _Part.__init__(part, {"num_embeddings": rows, "embedding_dim": columns}, arrays["weight"].dtype, rng)
        part._hold(arrays)
        return part

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
        checked = integers(problems, "ids", ids, "rows of the table", self.num_embeddings)
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
        shapes = self._shapes(self.in_features, self.out_features, self.bias)
        parameter_sizes(repr(self), list(shapes.values()), self.dtype)
        bound = 1.0 / np.sqrt(self.in_features)
        self._hold({name: self._rng.uniform(-bound, bound, s).astype(self.dtype) for name, s in shapes.items()})

    @staticmethod
    def _shapes(in_features: int, out_features: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name."""
        return {"weight": (out_features, in_features), **({"bias": (out_features,)} if bias else {})}

    def _plain_options(self) -> dict[str, Any]:
        """Return the arguments of the constructor as JSON has them."""
        return {**self._sizes, "bias": self.bias, "dtype": self.dtype.name}

    @classmethod
    def _of_parameters(cls, arrays: Mapping[str, Array], rng: Seed = None) -> Self:
        """Return one whose parameters are these very arrays; nothing is drawn."""
        part = cls.__new__(cls)
        rows, columns = arrays["weight"].shape
        _Part.__init__(part, {"in_features": columns, "out_features": rows}, arrays["weight"].dtype, rng)
        part.bias = "bias" in arrays
        part._hold(arrays)
        return part

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

    def forward(self, x: ArrayLike, out: Array | None = None) -> tuple[Array, PartTape]:
        """Return y (...,O) of x (...,I), in `out` if it is given, and the tape for `backward`.

        The tape holds x by reference.
        """
        problems = Problems(lambda: repr(self))
        array = as_real(problems, "x", x, self.dtype)
        if array is not None and array.shape[-1:] != (self.in_features,):
            why = f"The last axis must be {self.in_features}.{swap_hint('x', array.shape, self.in_features)}"
            problems.shape(f"x with shape {array.shape}", why)
        elif array is not None and out is not None:
            output_array(problems, "out", out, (*array.shape[:-1], self.out_features), self.dtype)
            overlaps(problems, {"out": out}, {"x": array, **self._parameters})
        problems.refuse()
        array = cast("Array", array)
        flat = None if out is None else out.reshape(-1, self.out_features)
        y = product(array.reshape(-1, self.in_features), False, self._parameters["weight"], True, flat)
        if self.bias:
            y += self._parameters["bias"]
        return y.reshape(*array.shape[:-1], self.out_features) if out is None else out, self._tape(array)

    def backward(self, tape: PartTape, dy: ArrayLike, add_to: dict[str, Array] | None = None) -> PartGradients:
        """Return the gradients of x and of the parameters, given dy (...,O).

        ``dx = dy W``, ``dW = dy^T x`` and ``db = dy`` summed over all rows. Gradients given as `add_to`, shaped like
        the parameters, are added to in place and returned.
        """
        self._check_tape(tape)
        dy = self._check_dy(dy, (*tape.x.shape[:-1], self.out_features))
        rows, x = dy.reshape(-1, self.out_features), tape.x.reshape(-1, self.in_features)
        if add_to is None:
            gradients = {"weight": product(rows, True, x, False)}
            if self.bias:
                gradients["bias"] = rows.sum(axis=0)
        else:
            self._check_sums(add_to, {"dy": dy, "x of the forward call": tape.x})
            gradients = add_to
            product(rows, True, x, False, gradients["weight"], add=True)
            if self.bias:
                gradients["bias"] += rows.sum(axis=0)
        return PartGradients(product(rows, False, self._parameters["weight"], False).reshape(tape.x.shape), gradients)

    def _check_sums(self, sums: dict[str, Array], inputs: Mapping[str, Array]) -> None:
        problems = Problems(lambda: f"{self!r}.backward")
        if not isinstance(sums, dict):
            problems.type(f"add_to of type {type(sums).__name__}", "It must be a dict of arrays by name.")
            problems.refuse()
        if sums.keys() != self._parameters.keys():
            problems.value(f"add_to with {', '.join(sums)}", f"It must hold {', '.join(self._parameters)}.")
        for name in sums.keys() & self._parameters.keys():
            output_array(problems, f"add_to[{name!r}]", sums[name], self._parameters[name].shape, self.dtype)
        overlaps(problems, {f"add_to[{name!r}]": a for name, a in sums.items()}, {**inputs, **self._parameters})
        problems.refuse()

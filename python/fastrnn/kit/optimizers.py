"""Optimizers: they edit live parameters in place, a block at a time, and allocate nothing of their size in a step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import Problems
from ..parameters import Parameters

Array = NDArray[Any]
ArraySet = Mapping[str, Array]

BLOCK = 16384  # elements worked on at a time, so that all operations of a step find them in the cache


def _sets(problems: Problems, name: str, value: object) -> list[ArraySet] | None:
    """Return one mapping or a sequence of them as a list."""
    sets = [value] if isinstance(value, Mapping) else list(value) if isinstance(value, Sequence) else None
    if sets is None or hasattr(value, "parameters") or not all(isinstance(one, Mapping) for one in sets):
        kind = type(value).__name__
        fix = f"{name}.parameters" if name == "grads" else "layer.parameters()"
        why = f"It must be one mapping of names to arrays, or a sequence of them: did you mean {fix}?"
        problems.type(f"{name} of type {kind}", why)
        return None
    return sets


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _number(problems: Problems, name: str, value: float, low: float, below: float) -> None:
    if not low <= value < below:
        problems.value(f"{name}={value!r}", f"{name} must be at least {low:g} and below {below:g}.")


class _Optimizer(ABC):
    """Pairs every parameter with its gradient and its moments, and hands them to `_update` block by block."""

    _moments: tuple[str, ...]

    def __init__(self, parameters: ArraySet | Sequence[ArraySet], lr: float, **rates: tuple[float, float]) -> None:
        problems = Problems(lambda: type(self).__name__)
        self._sets = _sets(problems, "parameters", parameters) or []
        for index, name, array in self._arrays(self._sets):
            flags = array.flags if isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64) else None
            if flags is None or not (flags.c_contiguous and flags.writeable):
                why = "It is edited in place and must be a writeable, C-contiguous array of float32 or float64."
                problems.value(f"parameter {name} (set {index})", why)
        if len({id(array) for _, _, array in self._arrays(self._sets)}) < sum(map(len, self._sets)):
            problems.value("the same array twice", "It would be updated twice in a step: give every parameter once.")
        _number(problems, "lr", lr, 0.0, math.inf)
        for name, (value, below) in rates.items():
            _number(problems, name, value, 0.0, below)
        problems.refuse()
        self.lr = lr
        self.steps = 0
        self._state = {
            f"{moment}.{index}.{name}": np.zeros_like(array)
            for moment in self._moments
            for index, name, array in self._arrays(self._sets)
        }

    @staticmethod
    def _arrays(sets: Sequence[ArraySet]) -> Iterator[tuple[int, str, Array]]:
        return ((index, name, array) for index, one in enumerate(sets) for name, array in one.items())

    def step(self, grads: ArraySet | Sequence[ArraySet]) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : mapping or sequence of mappings
            dL/d(parameter), structured like the parameters given to the optimizer.

        Raises
        ------
        ShapeError, TypeError, ValueError
            With everything that does not fit; then no parameter is changed.
        """
        given = self._check(grads)
        self.steps += 1
        scratch: dict[np.dtype[Any], Array] = {}
        for index, name, parameter in self._arrays(self._sets):
            p, g = parameter.reshape(-1), given[index][name].reshape(-1)
            moments = [self._state[f"{moment}.{index}.{name}"].reshape(-1) for moment in self._moments]
            s = scratch.setdefault(p.dtype, np.empty(BLOCK, p.dtype))
            for block in _blocks(p.size):
                self._update(p[block], g[block], [m[block] for m in moments], s[: block.stop - block.start])
        for one in self._sets:
            if isinstance(one, Parameters):
                one.changed(type(self).__name__)

    @abstractmethod
    def _update(self, p: Array, g: Array, moments: list[Array], s: Array) -> None:
        """Update a block of one parameter and its moments in place; s is scratch."""

    def _check(self, grads: ArraySet | Sequence[ArraySet]) -> list[ArraySet]:
        problems = Problems(lambda: f"{type(self).__name__}.step")
        given = _sets(problems, "grads", grads)
        if given is not None and len(given) != len(self._sets):
            problems.value(f"{len(given)} mappings", f"There must be one per mapping of parameters: {len(self._sets)}.")
        for index, (found, wanted) in enumerate(zip(given or [], self._sets, strict=False)):
            where = f" (set {index})" if len(self._sets) > 1 else ""
            if found.keys() != wanted.keys():
                problems.value(f"the names {', '.join(found)}{where}", f"They must be {', '.join(wanted)}.")
                continue
            for name, parameter in wanted.items():
                g = found[name]
                if not isinstance(g, np.ndarray) or g.dtype != parameter.dtype:
                    kind = f"dtype {g.dtype}" if isinstance(g, np.ndarray) else f"type {type(g).__name__}"
                    problems.type(f"{name} with {kind}{where}", f"It must be an array of {parameter.dtype}.")
                elif g.shape != parameter.shape:
                    problems.shape(f"{name} with shape {g.shape}{where}", f"It must have shape {parameter.shape}.")
                elif isinstance(g, np.ma.MaskedArray):
                    problems.type(f"{name}, a masked array{where}", "Its mask would be ignored: give it .filled(0).")
                if not parameter.flags.writeable:
                    problems.value(
                        f"a read-only parameter {name}{where}", "It is edited in place: give a writable copy."
                    )
        problems.refuse()
        return given or []

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what the optimizer remembers: the number of steps and the moments."""
        return {"steps": self.steps, **{name: array.copy() for name, array in self._state.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy in what `state_dict` of an optimizer of the same kind and the same parameters returned.

        Raises
        ------
        ShapeError, TypeError, ValueError
            With everything that does not fit; then nothing is changed.
        """
        who = type(self).__name__
        if "steps" not in state_dict:
            raise ValueError(f'{who}.load_state_dict got no "steps": it takes what state_dict() returned')
        moments: dict[str, ArrayLike] = {name: value for name, value in state_dict.items() if name != "steps"}
        Parameters(self._state).load(moments, who)
        self.steps = int(state_dict["steps"])


class SGD(_Optimizer):
    """Gradient descent: ``p -= lr * v`` with ``v = momentum * v + g`` (v = g without momentum).

    Parameters
    ----------
    parameters : mapping or sequence of mappings
        What ``layer.parameters()`` returns, of one or several layers.
    lr : float
        Learning rate; may be changed between steps.
    momentum : float
        In [0, 1).

    Notes
    -----
    The update is that of PyTorch's SGD: the learning rate stands outside of the sum (Polyak, 1964, has it inside).
    """

    def __init__(self, parameters: ArraySet | Sequence[ArraySet], lr: float, *, momentum: float = 0.0) -> None:
        self._moments = ("velocity",) if momentum else ()
        super().__init__(parameters, lr, momentum=(momentum, 1.0))
        self.momentum = momentum

    def _update(self, p: Array, g: Array, moments: list[Array], s: Array) -> None:
        if moments:
            (v,) = moments
            v *= self.momentum
            v += g
            g = v
        np.multiply(g, self.lr, out=s)
        p -= s


class Adam(_Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1); with weight decay AdamW (Loshchilov and Hutter 2019).

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``,
    ``p -= lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * p)``.

    Parameters
    ----------
    parameters : mapping or sequence of mappings
        What ``layer.parameters()`` returns, of one or several layers.
    lr : float
        Learning rate; may be changed between steps.
    betas : (float, float)
        Decay of the two moments, each in [0, 1).
    eps : float
        Keeps the denominator away from zero.
    weight_decay : float
        Of all parameters given; those that are not to shrink, such as biases, go to an optimizer of their own.
    """

    _moments = ("first_moment", "second_moment")

    def __init__(
        self,
        parameters: ArraySet | Sequence[ArraySet],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        b1, b2 = betas
        limits = {
            "beta1": (b1, 1.0),
            "beta2": (b2, 1.0),
            "eps": (eps, math.inf),
            "weight_decay": (weight_decay, math.inf),
        }
        super().__init__(parameters, lr, **limits)
        self.betas = b1, b2
        self.eps = eps
        self.weight_decay = weight_decay

    def _update(self, p: Array, g: Array, moments: list[Array], s: Array) -> None:
        (m, v), (b1, b2) = moments, self.betas
        if self.weight_decay:
            p *= 1 - self.lr * self.weight_decay
        m *= b1
        np.multiply(g, 1 - b1, out=s)
        m += s
        v *= b2
        np.multiply(g, g, out=s)
        s *= 1 - b2
        v += s
        np.multiply(v, 1 / (1 - b2**self.steps), out=s)
        np.sqrt(s, out=s)
        s += self.eps
        np.divide(m, s, out=s)
        s *= self.lr / (1 - b1**self.steps)
        p -= s


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    *,
    warmup: int = 0,
    last: float = 0.0,
    shape: Literal["cosine", "linear"] = "cosine",
) -> float:
    """Return the learning rate of one step of a schedule: up in a straight line, then down.

    Parameters
    ----------
    step, steps : int
        The number of steps done, from 0, and of all that are planned; past them the last rate stays.
    peak : float
        The highest rate.
    warmup : int
        Steps of the way up: rate peak * (step + 1) / warmup.
    last : float
        The part of the peak that is left when all steps are done.
    shape : {"cosine", "linear"}
        Of the way down: half a cosine (Loshchilov and Hutter 2017) or a straight line.

    Returns
    -------
    float
        For ``optimizer.lr`` before `step`.

    Raises
    ------
    ValueError
        If a number is out of range or the shape unknown.
    """
    problems = Problems(lambda: "learning_rate")
    for name, value in (("step", step), ("steps", steps), ("peak", peak), ("warmup", warmup)):
        _number(problems, name, value, 0, math.inf)
    if not 0 <= last <= 1:
        problems.value(f"last={last!r}", "It is a part of the peak: from 0 to 1.")
    if shape not in ("cosine", "linear"):
        problems.value(f"shape={shape!r}", 'It must be "cosine" or "linear".')
    problems.refuse()
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if shape == "linear":
        return peak * (1 - (1 - last) * progress)
    return peak * (last + (1 - last) * (1 + math.cos(math.pi * progress)) / 2)


def clip_grad_norm(grads: ArraySet | Sequence[ArraySet], max_norm: float) -> float:
    """Scale all gradients together, in place, so that their common Euclidean norm is at most ``max_norm``.

    Pascanu, Mikolov and Bengio (2013).

    Parameters
    ----------
    grads : mapping or sequence of mappings
        ``backward(...).parameters`` of one or several layers.
    max_norm : float
        Above 0; infinity only measures.

    Returns
    -------
    float
        The norm before. Where it is NaN nothing is scaled, where it is infinite the infinite gradients become NaN:
        neither is hidden.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """
    problems = Problems(lambda: "clip_grad_norm")
    sets = _sets(problems, "grads", grads) or []
    if not max_norm > 0:
        problems.value(f"max_norm={max_norm!r}", "max_norm must be above 0.")
    for index, one in enumerate(sets):
        for name, g in one.items():
            if not isinstance(g, np.ndarray) or g.dtype.kind != "f":
                problems.type(f"{name} (mapping {index}) of type {type(g).__name__}", "It must be an array of floats.")
    problems.refuse()
    total = 0.0
    square = np.empty(BLOCK)  # float64: squares of float32 neither overflow nor vanish
    for one in sets:
        for g in one.values():
            flat = g.reshape(-1)
            for block in _blocks(flat.size):
                s = square[: block.stop - block.start]
                total += float(np.multiply(flat[block], flat[block], out=s, dtype=np.float64).sum())
    norm = math.sqrt(total)
    if norm > max_norm:
        for one in sets:
            for g in one.values():
                g *= max_norm / norm
    return norm

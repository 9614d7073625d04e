"""The live parameters of a layer, by PyTorch's names in PyTorch's order, and how they are copied in."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import Problems, not_an_array, numbers

Array = NDArray[Any]
Shape = tuple[int, ...]


class Parameters(dict[str, Array]):
    """The live arrays of a layer: editing one in place is seen by the next call.

    The entries themselves are fixed: ``parameters[name][...] = value`` writes, ``parameters[name] = value`` is refused.

    Attributes
    ----------
    version : int
        Grows with every change made through the API; a tape of an earlier version is refused.
    last_change : str
        What changed them last.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)
        self.version = 0
        self.last_change = "their creation"

    def changed(self, by: str = "an optimizer or parameters().changed()") -> None:
        """Say that arrays were edited in place: tapes made before are refused from now on."""
        self.version += 1
        self.last_change = by

    def load(self, source: Mapping[str, ArrayLike], who: str) -> None:
        """Copy arrays of the same names and shapes in; nothing is changed when one does not fit.

        Parameters
        ----------
        source
            Anything that NumPy makes real arrays of, PyTorch tensors on the CPU included.
        who
            The subject of the error message.

        Raises
        ------
        TypeError, ValueError
            With every missing, unexpected and unfit entry.
        """
        if not isinstance(source, Mapping):
            raise TypeError(f"{who}.load_state_dict takes a mapping of names to arrays, got {type(source).__name__}.")
        problems = Problems(lambda: f"{who}.load_state_dict")
        missing = [name for name in self if name not in source]
        unexpected = [str(name) for name in source if name not in self]
        if missing or unexpected:
            prefix = _common_prefix(self, source)
            fix = f"All its names start with {prefix!r}: remove it with name.removeprefix({prefix!r})."
            lists = [f"{word}: {', '.join(n)}." for word, n in (("missing", missing), ("unexpected", unexpected)) if n]
            problems.value("other names than the layer has", fix if prefix else "\n  ".join(lists))
        fitting = {}
        for name, target in self.items():
            if name in source:
                array = _as_parameter(problems, name, source[name], target)
                if array is not None:
                    fitting[name] = array
        self.writable(problems)
        problems.refuse()
        for name, array in fitting.items():
            self[name][...] = array
        self.changed("load_state_dict")

    def writable(self, problems: Problems) -> None:
        """Note arrays that cannot be written to, as joblib and object stores hand them out."""
        names = [name for name, array in self.items() if not array.flags.writeable]
        if names:
            why = (
                "They lie in memory that is only read, of a file or an object store: copy.deepcopy makes writable ones."
            )
            problems.value(f"read-only parameters ({', '.join(names)})", why)

    def __reduce__(self) -> tuple[type["Parameters"], tuple[dict[str, Array]]]:
        return Parameters, (dict(self),)

    def _fixed(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "the entries of parameters() cannot be replaced, added or removed: "
            "edit in place with parameters[name][...] = value, or use load_state_dict"
        )

    __setitem__ = _fixed
    __delitem__ = _fixed
    __ior__ = _fixed
    clear = _fixed
    pop = _fixed
    popitem = _fixed
    setdefault = _fixed
    update = _fixed


class Parametrised(ABC):
    """What has live arrays by name and hands out and takes in copies of them."""

    _parameters: Parameters

    @abstractmethod
    def _brief(self) -> str:
        """Return the subject of an error message."""

    def parameters(self) -> Parameters:
        """Return the live arrays, a layer's by PyTorch's names; edited in place, they are seen by the next call.

        Whoever edits them between forward and backward calls ``parameters().changed()``: the tape is then refused.
        """
        return self._parameters

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters by name, a layer's in PyTorch's order and layout."""
        return {name: p.copy() for name, p in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy parameters in, from `state_dict` or from a PyTorch module of the same sizes.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Every parameter by name; anything NumPy can make an array of, in any real dtype.

        Raises
        ------
        ShapeError, ValueError, TypeError
            With all missing, unexpected and misshapen entries; nothing is changed then.
        """
        self._parameters.load(state_dict, self._brief())


def _common_prefix(names: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """What must be removed from every name of source to make it a name of ours; empty when there is no such thing."""
    given = [str(name) for name in source]
    first = next(iter(names))
    for candidate in given:
        if candidate.endswith("." + first):
            prefix = candidate.removesuffix(first)
            if {prefix + name for name in names} == set(given):
                return prefix
    return ""


def _as_parameter(problems: Problems, name: str, value: ArrayLike, target: Array) -> Array | None:
    try:
        array = numbers(value)
    except (TypeError, ValueError, RuntimeError) as error:
        not_an_array(problems, name, value, error)
        return None
    if array.shape != target.shape:
        problems.shape(f"{name} with shape {array.shape}", f"The layer's has shape {target.shape}.")
    elif not np.can_cast(array.dtype, target.dtype, "same_kind"):
        problems.type(f"{name} with dtype {array.dtype}", f"It must hold real numbers that convert to {target.dtype}.")
    else:
        # a copy: the source may hold views of the very arrays that are about to be written
        return array.astype(target.dtype)
    return None

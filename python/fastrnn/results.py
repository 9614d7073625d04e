"""What the layers return beside arrays."""

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol

from numpy.typing import NDArray

from .arguments import Inputs
from .checks import readable
from .memory import Memory
from .parameters import Parameters
from .spec import S, Spec

Array = NDArray[Any]


class LSTMState(NamedTuple):
    """The state of an LSTM, or the gradient with respect to it."""

    h: Array  # (L*D, B, P)
    c: Array  # (L*D, B, H)


class sLSTMState(NamedTuple):
    """The state of an sLSTM, or the gradient with respect to it; (L*D, B, H) each.

    c and n are kept as parts of e^m: those of the equations without a stabiliser are c * e^m and n * e^m.
    """

    h: Array
    c: Array
    n: Array  # what c is divided by; 0 of an empty memory
    m: Array


class Gradients(NamedTuple, Generic[S]):
    """What backward returns: the gradient of the loss with respect to each input of the call.

    Attributes
    ----------
    x : array or None
        Shaped like x; None where the layer read token ids.
    state : array, LSTMState or sLSTMState
        Shaped like the initial state, which need not have been given.
    parameters : dict of str to array
        By PyTorch's names in PyTorch's order.
    hidden : array or None
        With ``hidden=True`` dL/dh_t of the last layer, shaped like y: the gradient that arrives at each output from the
        loss and from all later steps.
    embedding : array or None
        Shaped like the embedding whose rows the token ids named; rows that no token used are zero.
    """

    x: Array | None
    state: S
    parameters: dict[str, Array]
    hidden: Array | None
    embedding: Array | None = None

    def __repr__(self) -> str:
        arrays = {name: getattr(self, name) for name in ("x", "hidden", "embedding")}
        shapes = "".join(f"{name}={array.shape}, " for name, array in arrays.items() if array is not None)
        return f"Gradients({shapes}parameters={{{', '.join(self.parameters)}}})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tape:
    """What forward saved for backward. Read-only: backward may run on it any number of times, with the same bits.

    It belongs to one layer and one version of its parameters, and holds x and y of the forward call by reference.
    """

    layer: Spec[Any]
    version: int
    memory: Memory
    given: Inputs
    core: Any  # the core's own

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of y as it was returned."""
        return (*self.given.leading, self.layer._width)

    @property
    def nbytes(self) -> int:
        """Bytes it keeps in memory, beside x and y."""
        return int(self.core.nbytes)

    def __repr__(self) -> str:
        size = f"T={self.given.time}, B={self.given.batch}, {readable(self.nbytes)}"
        return f"<Tape of {type(self.layer).__name__}{self.memory.where}, {size}>"


class Trained(Protocol):
    """What is asked of a layer that a tape is given to."""

    _parameters: Parameters

    def _brief(self) -> str: ...


def refuse_foreign(layer: Trained, tape: Any, kind: type) -> None:
    """Refuse what is no tape, or not of this layer as it is now.

    Raises
    ------
    TypeError, ValueError
        That says whose it is, or what changed the parameters.
    """
    if not isinstance(tape, kind):
        raise TypeError(f"{layer._brief()}.backward takes the tape that forward returned, got {type(tape).__name__}.")
    found: Any = tape
    if found.layer is not layer:
        raise ValueError(
            f"{layer._brief()}.backward got the tape of another layer, {found.layer._brief()}: "
            "call backward of the layer whose forward made it."
        )
    if found.version != layer._parameters.version:
        raise ValueError(
            f"{layer._brief()}.backward got a tape from before the parameters were changed "
            f"(last by {layer._parameters.last_change}): call forward again."
        )


class MemoryEstimate(NamedTuple):
    """Bytes that one call takes, and those of the parameters."""

    outputs: int
    tape: int
    scratch: int
    parameters: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {readable(n)}" for name, n in zip(self._fields, self, strict=True))
        return f"{readable(self.total)} ({parts})"

"""What a layer is, for those who read its arguments and make its results: options, sizes, and how they are named."""

import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._core import Network
from .memory import Memory
from .options import General, Zoneout, noisy
from .parameters import Parametrised

Array = NDArray[Any]
S = TypeVar("S")  # the state: an array, or LSTMState or the like


class Description(NamedTuple):
    """What the core says of a cell, as `_core.describe` returns it."""

    gates: int
    states: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, tuple[str, ...], bool], ...]

    def shapes(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        bidirectional: bool,
        proj_size: int,
        heads: int = 1,
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter of a layer, by PyTorch's names in PyTorch's order."""
        output = proj_size or hidden_size
        sizes = {"hidden": hidden_size, "output": output, "gates": self.gates * hidden_size, "peepholes": 3}
        sizes["head"] = output // heads
        found = {}
        for layer in range(num_layers):
            sizes["inputs"] = input_size if layer == 0 else output * (1 + bidirectional)
            for suffix in [f"l{layer}", f"l{layer}_reverse"][: 1 + bidirectional]:
                for name, axes, is_bias in self.parameters:
                    if bias or not is_bias:
                        found[f"{name}_{suffix}"] = tuple(sizes[axis] for axis in axes)
        return found


@functools.cache
def describe(cell: str, projection: bool = False, peephole: bool = False) -> Description:
    """Return what a cell has, by its name in the core."""
    gates, states, parameters = _core.describe(cell, projection, peephole)
    return Description(gates, tuple(states), tuple((name, tuple(axes), bias) for name, axes, bias in parameters))


class Spec(Parametrised, Generic[S]):
    """The options of a layer and what follows from them.

    T time, B batch, I input, H hidden, P projection (else H), L layers, D directions.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    dropout: float
    proj_size: int = 0
    heads: int = 1
    layer_norm: bool = False
    peephole: bool = False
    zoneout: Zoneout = 0.0
    recurrent_dropout: float = 0.0
    recurrent_dropout_mode: str = "sequence"
    dtype: np.dtype[Any]

    _states: tuple[tuple[str, str], ...]  # name and axis of each, of the cell's description
    _state_type: Any = None  # the tuple that a state of several members is
    _options: dict[str, Any]
    _network: Network
    _memory: Memory  # where the arrays of its calls are
    _rng: "np.random.Generator"

    @abstractmethod
    def _cell(self) -> str:
        """Return the core's name of the cell."""

    def _as_state(self, states: Sequence[Array]) -> S:
        """Return the state as the user sees it."""
        found: Any = states[0] if self._state_type is None else self._state_type(*states)
        return cast(S, found)

    @abstractmethod
    def to(self, device: str | int, dtype: str | None = None, *, fp32_precision: str = "ieee") -> Any:
        """Return this layer on another device, with copies of its parameters."""

    def _general(self) -> General | None:
        """Return what makes the cell another than the usual one; None: nothing."""
        return None

    @property
    def _has_cell_state(self) -> bool:
        """Whether the state has more members than h."""
        return len(self._states) > 1

    @property
    def _output_size(self) -> int:
        """P: the size of h, and of y in one direction."""
        return self.proj_size or self.hidden_size

    @property
    def _width(self) -> int:
        """D*P: features of y."""
        return self._output_size * (1 + self.bidirectional)

    @property
    def _scale(self) -> float:
        """What dropout multiplies the elements by that it keeps."""
        return 1 / (1 - self.dropout) if self.dropout < 1 else 0.0

    @property
    def _drops(self) -> bool:
        """Whether training drops elements: between layers, so not in a single one."""
        return self.dropout > 0 and self.num_layers > 1

    @property
    def _noisy(self) -> bool:
        """Whether training changes states at random."""
        return noisy(self._options)

    def _brief(self) -> str:
        return f"{type(self).__name__}(input_size={self.input_size}{', batch_first=True' if self.batch_first else ''})"

    def _state_shapes(self, batch: int | None) -> list[tuple[int, ...]]:
        """The shapes of the states; None: without a batch axis."""
        rows = self.num_layers * (1 + self.bidirectional)
        sizes = {"output": self._output_size, "hidden": self.hidden_size}
        return [(rows, sizes[axis]) if batch is None else (rows, batch, sizes[axis]) for _, axis in self._states]

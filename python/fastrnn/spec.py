"""What a layer is, for those who read its arguments and make its results: options, sizes, and how they are named."""

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._core import Network
from .parameters import Parametrised

Array = NDArray[Any]
S = TypeVar("S")  # the state: an array, or LSTMState


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
    dtype: np.dtype[Any]

    _gates: ClassVar[int]
    _has_cell_state: ClassVar[bool] = False
    _options: dict[str, Any]
    _network: Network
    _rng: "np.random.Generator"

    @abstractmethod
    def _cell(self) -> str:
        """Return the core's name of the cell."""

    @abstractmethod
    def _as_state(self, h: Array, c: Array | None) -> S:
        """Return the state as the user sees it."""

    @abstractmethod
    def to(self, device: str | int, dtype: str | None = None, *, fp32_precision: str = "ieee") -> Any:
        """Return this layer on another device, with copies of its parameters."""

    @property
    def _output_size(self) -> int:
        """P: the size of h, and of y in one direction."""
        return self.proj_size or self.hidden_size

    @property
    def _drops(self) -> bool:
        """Whether training drops elements: between layers, so not in a single one."""
        return self.dropout > 0 and self.num_layers > 1

    def _brief(self) -> str:
        return f"{type(self).__name__}(input_size={self.input_size}{', batch_first=True' if self.batch_first else ''})"

    def _finish(self, y: Array, h: Array, c: Array | None, unbatched: bool) -> tuple[Array, S]:
        """Take the batch axis off where x had none, and make h and c the state that the user sees."""
        return y[:, 0] if unbatched else y, self._finish_state(h, c, unbatched)

    def _finish_state(self, h: Array, c: Array | None, unbatched: bool) -> S:
        return self._as_state(h[:, 0], None if c is None else c[:, 0]) if unbatched else self._as_state(h, c)

"""What describes a layer to the operators, beside its tensors."""

from typing import Any, NamedTuple

from .. import _core
from .._info import isa
from ..options import General, of_text, recurrent_dropout_of_text
from ..spec import describe

# Who made the tape, whose size a compiler keeps with the program that it compiled, in a cache that outlives an update.
BUILD = f"{_core.__version__} {isa()}"

_STATES = {c: describe(c).states for c in _core.cells() if "projected" not in c}


class Options(NamedTuple):
    """What an operator must be told beside the tensors."""

    cell: str  # the core's name of it
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    batch_first: bool
    variant: str = ""  # what makes it another than the usual cell, as `fastrnn.options.as_text` writes it
    heads: int = 1
    build: str = BUILD

    @property
    def general(self) -> General | None:
        return of_text(self.variant)

    @property
    def peephole(self) -> bool:
        return self.general is not None and self.general.peephole

    @property
    def zoneout(self) -> tuple[float, float]:
        return (0.0, 0.0) if self.general is None else self.general.zoneout

    @property
    def recurrent_dropout(self) -> tuple[float, bool]:
        """Return the probability to drop, and whether the mask is another at every step."""
        return recurrent_dropout_of_text(self.variant)

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def output_size(self) -> int:
        return self.directions * (self.proj_size or self.hidden_size)

    def has_bias(self, weights: int) -> bool:
        """Whether so many weights hold biases."""
        each = weights // max(self.num_layers * self.directions, 1)
        return each == len(describe(self.cell, self.proj_size > 0, self.peephole).parameters)

    @property
    def states(self) -> int:
        return len(_STATES[self.cell])

    def state_shapes(self, batch: Any) -> list[tuple[Any, ...]]:
        """Return the shapes of the states; of a symbolic batch symbolic ones."""
        rows = self.num_layers * self.directions
        sizes = {"output": self.proj_size or self.hidden_size, "hidden": self.hidden_size}
        return [(rows, batch, sizes[axis]) for _, axis in _STATES[self.cell]]


__all__ = ["Options"]

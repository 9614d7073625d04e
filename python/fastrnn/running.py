"""A layer's calls on any device: what was checked and brought there is run, what it makes is handed over."""

from abc import abstractmethod
from typing import Any, Generic

import numpy as np

from . import arguments
from .arguments import Inputs
from .initialise import Seed, as_generator
from .memory import Memory
from .parameters import Parameters
from .results import Gradients, Tape
from .spec import S, Spec


class Running(Spec[S], Generic[S]):
    """What the layers on all devices share."""

    _parameters: Parameters

    @abstractmethod
    def _refuse_too_large(self, given: Inputs, training: bool, dropout: bool = False) -> None:
        """Refuse a call that cannot fit into memory."""

    @abstractmethod
    def _told(self, error: MemoryError, given: Inputs, training: bool) -> MemoryError:
        """Return what is told of a call that found no memory."""

    @abstractmethod
    def _draw_masks(self, memory: Any, given: Inputs, rng: "np.random.Generator") -> Any:
        """Return dropout masks (L-1,T,B,D*P), True where an element is kept."""

    def _arrays(self) -> list[Any]:
        return list(self._parameters.values())

    def _run(
        self,
        memory: Memory,
        given: Inputs,
        masks: Any = None,
        scale: float = 1.0,
        training: bool = False,
        packed: Any = None,
    ) -> tuple[Any, S, Any]:
        """Run over a sequence, with packed weights or the parameters; return y, the final state and the core's tape."""
        self._refuse_too_large(given, training)
        try:
            y, ends, tape = memory.forward(self, given, masks, scale, training, packed)
        except MemoryError as error:
            raise self._told(error, given, training) from error
        return y, self._as_state(ends), tape

    def _train(self, memory: Memory, given: Inputs, training: bool, rng: Seed) -> tuple[Any, S, Tape]:
        masks, scale = None, 1.0
        if training and self._drops:
            self._refuse_too_large(given, True, True)
            generator = self._rng if rng is None else as_generator(f"{self._brief()}.forward", rng)
            masks, scale = self._draw_masks(memory, given, generator), self._scale
        y, end, core = self._run(memory, given, masks, scale, True)
        return y, end, Tape(self, self._parameters.version, memory, given, core)

    def _back(self, memory: Memory, tape: Tape, dy: Any, dstate: Any, hidden: bool) -> Gradients[S]:
        given = tape.given
        dy, dstates = arguments.read_gradients(self, memory, self._brief, given, tape.y_shape, dy, dstate)
        try:
            dx, begins, gradients, dh = memory.backward(self, tape, dy, dstates, hidden)
        except MemoryError as error:
            raise self._told(error, given, True) from error
        dembedding = None
        if given.ids is not None:
            dx, dembedding = None, dx
        named = dict(zip(self._parameters, gradients, strict=True))
        return Gradients(dx, self._as_state(begins), named, dh, dembedding)

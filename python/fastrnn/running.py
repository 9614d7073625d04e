"""A layer's calls on any device: what was checked and brought there is run, what it makes is handed over."""

import math
from abc import abstractmethod
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .arguments import Inputs
from .initialise import Seed, as_generator
from .memory import Drawn, Memory
from .options import zoneout_of
from .parameters import Parameters
from .results import Gradients, Tape
from .spec import S, Spec


class Running(Spec[S], Generic[S]):
    """What the layers on all devices share."""

    _parameters: Parameters

    @abstractmethod
    def _refuse_too_large(self, given: Inputs, training: bool, random: bool = False) -> None:
        """Refuse a call that cannot fit into memory; `random`: with all masks that training draws."""

    def _mask_bytes(self, time: int, batch: int) -> int:
        """Return the bytes of the masks that training draws."""
        each = self.num_layers * (1 + self.bidirectional)  # a byte for an element
        (h, c), options = zoneout_of(self._options), self._options
        count = (self.num_layers - 1) * time * self._width if self._drops else 0
        if options.get("recurrent_dropout"):
            count += each * (time if options["recurrent_dropout_mode"] == "step" else 1) * self._output_size
        count += each * time * ((h > 0) * self._output_size + (c > 0) * self._has_cell_state * self.hidden_size)
        return count * batch

    @abstractmethod
    def _told(self, error: MemoryError, given: Inputs, training: bool) -> MemoryError:
        """Return what is told of a call that found no memory."""

    @abstractmethod
    def _draw_masks(self, memory: Any, given: Inputs, rng: "np.random.Generator") -> Any:
        """Return dropout masks (L-1,T,B,D*P), True where an element is kept."""

    def _draw_noise(self, memory: Any, given: Inputs, rng: "np.random.Generator") -> Any:
        """Return what the core takes: the mask of recurrent dropout, whether by time, its scale, those of zoneout."""
        p, by_time = self.recurrent_dropout, self.recurrent_dropout_mode == "step"
        h, c = zoneout_of(self._options)
        tokens = given.time, given.batch
        rows = self.num_layers * (1 + self.bidirectional)
        seen = (rows, *(tokens if by_time else tokens[1:]), self._output_size)
        kept = self._draw_below(memory, 1 - p, seen, rng) if p > 0 else None
        zoned = [
            self._draw_below(memory, rate, (rows, *tokens, size), rng) if rate > 0 else None
            for rate, size in ((h, self._output_size), (c if self._has_cell_state else 0, self.hidden_size))
        ]
        return kept, by_time, 1 / (1 - p) if p < 1 else 0.0, *zoned

    def _draw_below(self, memory: Any, rate: float, shape: tuple[int, ...], rng: "np.random.Generator") -> Any:
        """Return flags for every layer and direction, True with this probability."""
        flags: NDArray[np.bool_] = np.empty(math.prod(shape), bool)
        some = 1 << 16  # numbers at a time: all at once take four times the room of their flags
        for part in (flags[first : first + some] for first in range(0, len(flags), some)):
            np.less(rng.random(len(part), dtype=np.float32), rate, out=part)
        return flags.reshape(shape)

    def _arrays(self) -> list[Any]:
        return list(self._parameters.values())

    def _run(
        self,
        memory: Memory,
        given: Inputs,
        training: bool = False,
        packed: Any = None,
        drawn: Drawn | None = None,
    ) -> tuple[Any, S, Any]:
        """Run over a sequence, with packed weights or the parameters; return y, the final state and the core's tape."""
        self._refuse_too_large(given, training)
        try:
            y, ends, tape = memory.forward(self, given, training, packed, drawn)
        except MemoryError as error:
            raise self._told(error, given, training) from error
        return y, self._as_state(ends), tape

    def _train(self, memory: Memory, given: Inputs, training: bool, rng: Seed) -> tuple[Any, S, Tape]:
        drawn = None
        if training and (self._drops or self._noisy):
            self._refuse_too_large(given, True, random=True)
            generator = self._rng if rng is None else as_generator(f"{self._brief()}.forward", rng)
            masks = self._draw_masks(memory, given, generator) if self._drops else None
            noise = self._draw_noise(memory, given, generator) if self._noisy else None
            drawn = Drawn(masks, self._scale if self._drops else 1.0, noise)
        y, end, core = self._run(memory, given, True, drawn=drawn)
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

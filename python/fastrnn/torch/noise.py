"""What training draws at random: masks of dropout between layers, and inside them of zoneout and recurrent dropout.

The operators have one argument for all masks. Where there is noise it is one row of flags: the masks of dropout between
layers, if any, and behind them, for every layer and direction and with time first, those of recurrent dropout
(L*D,T,B,P), of zoneout of h and of c (L*D,T,B,H), each where there is one; (L*D,tokens,P) of packed sequences, and
(L*D,B,P) of a recurrent dropout with one mask for all steps.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .options import Options


class Noise(NamedTuple):
    """What the core takes; see `fastrnn._core.Noise`."""

    kept: Any
    by_time: bool
    scale: float
    zoned_h: Any
    zoned_c: Any

    def of_side(self, i: int) -> "Noise":
        """Return that of one direction of a layer."""
        kept, h, c = (None if mask is None else mask[i] for mask in (self.kept, self.zoned_h, self.zoned_c))
        return self._replace(kept=kept, zoned_h=h, zoned_c=c)

    def seen(self, t: int, h: Tensor) -> Tensor:
        """Return h before step t as the recurrent products see it, of one direction."""
        if self.kept is None:
            return h
        return torch.where(self.kept[t] if self.by_time else self.kept, h * self.scale, 0)


class Rates(NamedTuple):
    """How likely flags are set, and for how many elements. A compiler may look at it, unlike the text in `Options`."""

    dropped: float  # of recurrent dropout, those that are not set
    by_time: bool  # whether they are others at every step
    zoned_h: float
    zoned_c: float
    rows: int  # L*D
    output: int
    hidden: int

    @classmethod
    def of(cls, options: Options) -> "Rates | None":
        """Return those of a layer; None: it has no noise."""
        (p, by_time), (h, c) = options.recurrent_dropout, options.zoneout
        if options.states < 2:
            c = 0.0
        rows, output = options.num_layers * options.directions, options.proj_size or options.hidden_size
        return cls(p, by_time, h, c, rows, output, options.hidden_size) if p or h or c else None

    def shapes(self, tokens: Sequence[Any], batch: Any) -> list[tuple[Any, ...] | None]:
        """Return those of the masks, None where there is none; tokens: (T,B), or (tokens,)."""
        return [
            (self.rows, *(tokens if self.by_time else (batch,)), self.output) if self.dropped > 0 else None,
            (self.rows, *tokens, self.output) if self.zoned_h > 0 else None,
            (self.rows, *tokens, self.hidden) if self.zoned_c > 0 else None,
        ]


def draw(dropout: Tensor | None, rates: Rates, tokens: Sequence[Any], batch: Any, device: torch.device) -> Tensor:
    """Return the masks of dropout and those that are drawn here, as the operators take them."""
    parts = [] if dropout is None else [dropout.flatten()]
    likely = (1 - rates.dropped, rates.zoned_h, rates.zoned_c)
    for rate, shape in zip(likely, rates.shapes(tokens, batch), strict=True):
        if shape is not None:
            parts.append((torch.rand(shape, dtype=torch.float32, device=device) < rate).flatten())
    return torch.cat(parts)


def split(
    masks: Tensor | None, options: Options, tokens: Sequence[int], batch: int
) -> tuple[Tensor | None, Noise | None]:
    """Return the masks of dropout and those of the noise, as tensors, of what an operator was given."""
    rates = None if masks is None else Rates.of(options)
    if masks is None or rates is None:
        return masks, None
    shapes = rates.shapes(tokens, batch)
    sizes = [0 if shape is None else math.prod(shape) for shape in shapes]
    found = masks.split([masks.numel() - sum(sizes), *sizes])
    dropout = None
    if len(found[0]):
        dropout = found[0].reshape(options.num_layers - 1, *tokens, options.output_size)
    kept, h, c = (None if shape is None else f.reshape(shape) for f, shape in zip(found[1:], shapes, strict=True))
    p = rates.dropped
    return dropout, Noise(kept, rates.by_time, 1 / (1 - p) if p < 1 else 0.0, h, c)


class Drawing:
    """What a module draws for a call."""

    training: bool
    dropout: float
    num_layers: int
    proj_size: int
    hidden_size: int
    bidirectional: bool
    _weights: Callable[[], list[Tensor]]
    _rates: Rates | None = None  # of zoneout and recurrent dropout

    def _drops(self) -> bool:
        return self.training and self.dropout > 0 and self.num_layers > 1

    def _draw(self, shape: tuple[int, ...]) -> list[Tensor]:
        """Draw what dropout keeps, layer by layer and from the same numbers as torch.nn."""
        weight = self._weights()[0]
        width = (1 + self.bidirectional) * (self.proj_size or self.hidden_size)
        size, layers = (*shape, width), range(self.num_layers - 1)
        if self.dropout == 1:
            return [torch.zeros(size, dtype=torch.bool, device=weight.device) for _ in layers]
        if torch._C._are_functorch_transforms_active():  # vmap knows no random numbers in place
            return [torch.rand(size, dtype=torch.float32, device=weight.device) >= self.dropout for _ in layers]
        empty = functools.partial(torch.empty, size, dtype=weight.dtype, device=weight.device)
        return [empty().bernoulli_(1 - self.dropout).bool() for _ in layers]

    def _scale(self) -> float:
        return 1 / (1 - self.dropout) if self.dropout < 1 else 0.0

    def _masks(self, shape: tuple[int, int]) -> tuple[Tensor | None, float]:
        return self._all_masks(shape, shape[1])

    def _packed_masks(self, batch_sizes: Tensor) -> tuple[Tensor | None, float]:
        if not self._drops() and self._rates is None:
            return None, 1.0
        return self._all_masks((int(batch_sizes.sum()),), int(batch_sizes[0]))

    def _all_masks(self, tokens: tuple[int, ...], batch: Any) -> tuple[Tensor | None, float]:
        """Return the masks of a call as the operators take them, and the scale of what dropout keeps."""
        masks, scale = (torch.stack(self._draw(tokens)), self._scale()) if self._drops() else (None, 1.0)
        if self.training and self._rates is not None:
            masks = draw(masks, self._rates, tokens, batch, self._weights()[0].device)
        return masks, scale


__all__ = ["Drawing", "Noise", "Rates", "draw", "split"]

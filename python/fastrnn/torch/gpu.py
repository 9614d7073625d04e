"""The operators on CUDA tensors: memory from PyTorch's allocator, everything in its current stream.

Float32 is IEEE float32 unless PyTorch was told otherwise: ``torch.set_float32_matmul_precision("high")`` allows tf32.
Tensors in bfloat16 and float16 are added up in float32; states, which PyTorch wants in the same dtype, are converted.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from ..cuda import devices
from ..memory import Drawn
from .calls import Call, rows
from .noise import Noise, split
from .options import Options

_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and _allows_tf32() else _NAMES[dtype]


def _allows_tf32() -> bool:
    """Whether PyTorch was told so, by its newer setting or the older one; it refuses to answer for both."""
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return True
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        return False


@functools.lru_cache(maxsize=256)
def _make_network(options: Options, weights: int, input_size: int, precision: str, device: int) -> Any:
    bias = options.has_bias(weights)
    how = options.general, options.heads
    return devices.make_network(device, precision, bias, options, options.cell, input_size, *how)


def network(options: Options, weights: int, x: Tensor) -> Any:
    """Return the network that has so many weights, on the GPU of x."""
    return _make_network(options, weights, int(x.shape[-1]), _precision(x.dtype), x.device.index or 0)


def _see(tensor: Tensor | None) -> Any:
    """Lend the core a tensor as it lies."""
    return None if tensor is None else devices.core().Array.from_dlpack(to_dlpack(tensor))


def _rows(tensor: Tensor | None, batch_first: bool) -> Any:
    """Lend a tensor (T,B,n), or packed (tokens,n)."""
    return None if tensor is None else _see(rows(tensor, batch_first))


class _Run:
    """A call as the core takes it."""

    def __init__(self, call: Call) -> None:
        self.call = call
        x, hx, weights, lengths, reset, masks, scale, self.options = call
        options = self.options
        self.network = network(options, len(weights), x)
        self.packed = x.dim() == 2
        self.batch_first = options.batch_first and not self.packed
        self.device = x.device
        self.state_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.stream = torch.cuda.current_stream(x.device).cuda_stream
        starts = None
        if self.packed:
            if lengths is None:
                raise RuntimeError("packed sequences need their lengths")
            on_host = lengths.cpu()
            self.time, self.batch = int(on_host.max()) if len(on_host) else 0, len(on_host)
            self.runs = on_host[None, :] > torch.arange(self.time, device="cpu")[:, None]
            active = self.runs.sum(1)
            starts = (active.cumsum(0) - active).to(x.device, non_blocking=True)
        else:
            self.time, self.batch = (x.shape[1], x.shape[0]) if self.batch_first else (x.shape[0], x.shape[1])
        if lengths is not None:
            lengths = lengths.to(x.device, torch.int64, non_blocking=True).contiguous()
        if reset is not None:
            reset = reset.to(x.device, non_blocking=True)
            reset = reset.t() if self.batch_first else reset
        self.parameters = [_see(w.contiguous()) for w in weights]
        states, packed = [self.state(h) for h in hx], (_see(starts), _see(lengths), _see(reset))
        tokens = (len(x),) if self.packed else (self.time, self.batch)
        dropout, noise = split(masks, options, tokens, self.batch)
        drawn = Drawn(self.masks(dropout), scale, None if noise is None else self.noise(noise))
        self.core = self.network.call(_rows(x, self.batch_first), states, *packed, drawn)

    def state(self, tensor: Tensor | None) -> Any:
        return None if tensor is None else _see(tensor.to(self.state_dtype).contiguous())

    def scratch(self, nbytes: int) -> Any:
        return _see(torch.empty(nbytes, dtype=torch.uint8, device=self.device))

    def new_states(self) -> list[Tensor]:
        shapes = self.options.state_shapes(self.batch)
        return [torch.empty(shape, dtype=self.state_dtype, device=self.device) for shape in shapes]

    def new_tape(self, dropout: bool) -> Tensor:
        """Room for the tape at its largest, by which a compiler knows its size too."""
        each, more = self.network.tape_room(dropout)
        return torch.empty(self.time * self.batch * each + more, dtype=torch.uint8, device=self.device)

    def tape(self, tape: Tensor) -> Any:
        return _see(tape[: self.network.tape_bytes(self.core)])

    def masks(self, masks: Tensor | None) -> Any:
        """Lend the core masks (...,T,B,size), which those of packed sequences are made."""
        if masks is None:
            return None
        if self.packed:
            padded = masks.new_zeros((masks.shape[0], *self.runs.shape, masks.shape[-1]))
            padded[:, self.runs.to(masks.device, non_blocking=True)] = masks
            masks = padded
        return _see(masks.contiguous().view(torch.uint8))

    def noise(self, noise: Noise) -> tuple[Any, ...]:
        kept, by_time, scale, *zoned = noise
        once = kept is not None and not by_time
        kept = _see(kept.contiguous().view(torch.uint8)) if once else self.masks(kept)
        return kept, by_time, scale, *map(self.masks, zoned)

    def forward(self, tape: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x = self.call.x
        y = torch.empty((*x.shape[:-1], self.options.output_size), dtype=x.dtype, device=x.device)
        ends = self.new_states()
        self.network.forward(
            self.stream,
            self.parameters,
            self.core,
            _rows(y, self.batch_first),
            [_see(end) for end in ends],
            None if tape is None else self.tape(tape),
            self.scratch(self.network.forward_bytes(self.parameters, self.core, tape is not None)),
        )
        return y, [end.to(x.dtype) for end in ends]


def infer(*given: Any) -> tuple[Tensor, list[Tensor]]:
    """fastrnn::infer on a GPU."""
    return _Run(Call.read_inference(*given)).forward(None)


def train(*given: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    """fastrnn::train on a GPU."""
    run = _Run(Call.read(*given))
    tape = run.new_tape(run.call.masks is not None)
    return *run.forward(tape), tape


def backward(
    dy: Tensor | None, dends: list[Tensor | None], y: Tensor, tape: Tensor, *given: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """fastrnn::backward on a GPU."""
    run = _Run(Call.read(*given))
    x, hx, weights, *_ = run.call
    if run.batch_first:  # laid out time first, as the core computes it
        dx = x.new_empty((x.shape[1], x.shape[0], x.shape[2])).transpose(0, 1)
    else:
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    begins = run.new_states()
    gradients = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    run.network.backward(
        run.stream,
        run.parameters,
        run.core,
        _rows(y, run.batch_first),
        run.tape(tape),
        _rows(dy, run.batch_first),
        [run.state(d) for d in dends],
        _rows(dx, run.batch_first),
        [_see(begin) for begin in begins],
        [_see(g) for g in gradients],
        None,
        run.scratch(run.network.backward_bytes(run.core)),
    )
    return dx, [begin.to(x.dtype) for begin in begins[: len(hx)]], gradients


__all__ = ["backward", "infer", "network", "train"]

"""Single steps through PyTorch, alone and in the loop of an attention decoder, over many sizes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from .program import Pair, Program, Side, Stopwatch
from .torch_programs import import_torch, pair_of

CELLS = ("LSTMCell", "GRUCell", "RNNCell")
MODULES = ("LSTM", "GRU")
SIZES = (16, 64, 128, 256, 512, 1024)
BATCHES = (1, 8, 64)
DECODERS = ((128, 1), (128, 16), (256, 16), (256, 64), (512, 32), (1024, 32))
STEPS = 20  # of a call: a clock's reading does not count then


def _one_step(kind: str, H: int, B: int, training: bool, threads: int) -> Pair:
    """A cell, or a module with T = 1, from a state of zeros; in training with the gradients of x and all weights."""
    torch, drop_in = import_torch()
    torch.set_num_threads(threads)
    plain, fast = getattr(torch.nn, kind)(H, H), getattr(drop_in, kind)(H, H)
    fast.load_state_dict(plain.state_dict())
    rows = (B, H) if kind.endswith("Cell") else (1, B, H)
    x, zeros = torch.randn(rows, requires_grad=training), torch.zeros(rows)
    state = (zeros, zeros.clone()) if "LSTM" in kind else zeros
    first = _first_of(kind)

    def side(module: Any) -> Side:
        def infer() -> Any:
            for _ in range(STEPS):
                found = module(x, state)
            return first(found)

        def train() -> Any:
            for _ in range(STEPS):
                module.zero_grad()
                x.grad = None
                first(module(x, state)).sum().backward()
            return torch.cat([x.grad.flatten(), *(p.grad.flatten() for p in module.parameters())])

        return Side(train) if training else Side(infer, around=torch.no_grad)

    return Pair(side(plain), side(fast))


def _first_of(kind: str) -> Callable[[Any], Any]:
    return (lambda found: found) if kind in ("GRUCell", "RNNCell") else (lambda found: found[0])


def _decoder(cell: str, H: int, B: int, training: bool, threads: int) -> Pair:
    """Attention over 20 vectors gives a cell's input, 20 times."""
    torch, _ = import_torch()
    model = torch.nn.Module()
    model.query, model.cell = torch.nn.Linear(H, H), getattr(torch.nn, cell)(H, H)
    memory = torch.randn(B, 20, H)

    def output(m: Any, watch: Stopwatch) -> Any:
        h = c = torch.zeros(B, H)
        found = []
        for _ in range(STEPS):
            weights = torch.softmax(torch.bmm(memory, m.query(h)[:, :, None]) * H**-0.5, 1)
            context = (weights * memory).sum(1)
            if not training:  # with gradients the cell's way back is not told from the rest
                watch.start()
            if cell == "LSTMCell":
                h, c = m.cell(context, (h, c))
            else:
                h = m.cell(context, h)
            if not training:
                watch.stop()
            found.append(h)
        return torch.stack(found)

    return pair_of(threads, model, training, output, lambda y: y.square().mean())


def programs() -> Iterator[Program]:
    """One decoder of each cell that is measured always, and what is measured by name."""
    bind = functools.partial
    for training in (False, True):
        mode = "training" if training else "inference"
        for cell in ("LSTMCell", "GRUCell"):
            for H, B in DECODERS:
                name = f"decoder-{cell}-H{H}-B{B}-{mode}"
                yield Program(name, bind(_decoder, cell, H, B, training), always=(H, B) == (256, 16))
        for kind in CELLS + MODULES:
            for H in SIZES:
                for B in BATCHES:
                    name = f"one-step-{kind}-H{H}-B{B}-{mode}"
                    yield Program(name, bind(_one_step, kind, H, B, training), always=False)

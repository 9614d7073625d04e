"""What heads save, and the sLSTM beside the same equations compiled by PyTorch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastrnn

from ..grid.timing import compare
from ..peers.base import Job

I, H, HEADS, TIME = 64, 256, 4, 100


def _runs(layer: Any, x: Any, mode: str) -> Callable[[], Any]:
    """What is timed: a frozen layer over a sequence or one step, or forward and backward."""
    if mode == "training":

        def train() -> Any:
            y, _, tape = layer.forward(x)
            return layer.backward(tape, y)

        return train
    fast = layer.freeze()
    if mode == "inference":
        return lambda: fast(x)
    out, state = np.empty((x.shape[1], layer.hidden_size), np.float32), fast.step(x[0])[1]
    return lambda: fast.step(x[0], state, out=out, state_out=state)


def _heads(kind: str, mode: str, seconds: float) -> float:
    """Time with four heads over that with one, at batch 1."""
    x = np.random.default_rng(0).standard_normal((TIME, 1, I), dtype=np.float32)
    with fastrnn.threads(1):
        jobs = [
            Job(_runs(getattr(fastrnn, kind)(I, 512, heads=heads, rng=0), x, mode), lambda done: {})
            for heads in (1, HEADS)
        ]
        return compare(jobs[0], jobs[1], seconds, True, lambda: None).ratio


def _textbook(torch: Any) -> Callable[..., Any]:
    """The sLSTM in PyTorch's operators, of x (T,B,I) and the parameters; ten steps are compiled at a time."""

    def step(pre: Any, weight_hh: Any, state: Any) -> Any:
        h, c, n, m = state
        heads = h.view(-1, HEADS, H // HEADS)
        z = pre + torch.einsum("bkj,gkij->bgki", heads, weight_hh).reshape(-1, 4 * H)
        z_i, z_f, z_g, z_o = z.view(-1, 4, H).unbind(1)
        kept = torch.nn.functional.logsigmoid(z_f) + m
        top = torch.where(n == 0, z_i, torch.maximum(z_i, kept))
        i, f = torch.exp(z_i - top), torch.exp(torch.clamp(kept - top, max=0))
        c, n = f * c + i * torch.tanh(z_g), f * n + i
        return torch.sigmoid(z_o) * c / n, c, n, top

    @torch.compile  # type: ignore[untyped-decorator]
    def some(pre: Any, weight_hh: Any, state: Any) -> Any:
        outputs = []
        for one in pre:
            state = step(one, weight_hh, state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def run(x: Any, weight_ih: Any, weight_hh: Any, bias: Any) -> Any:
        pre, outputs = x @ weight_ih.T + bias, []
        state = tuple(x.new_zeros(x.shape[1], H) for _ in range(4))
        for first in range(0, len(x), 10):
            y, state = some(pre[first : first + 10], weight_hh, state)
            outputs.append(y)
        return torch.cat(outputs)

    return run


def _against_compiled(batch: int, mode: str, seconds: float) -> float:
    """The time of PyTorch's compiled function over fastrnn's, after both gave the same y."""
    import torch

    torch.set_num_threads(1)
    layer = fastrnn.sLSTM(I, H, heads=HEADS, rng=0)
    p = {name: torch.from_numpy(array) for name, array in layer.state_dict().items()}
    parts = [p["weight_ih_l0"], p["weight_hh_l0"].view(4, HEADS, H // HEADS, H // HEADS)]
    weights = [w.requires_grad_(mode == "training") for w in (*parts, p["bias_ih_l0"] + p["bias_hh_l0"])]
    x = torch.randn(TIME, batch, I, generator=torch.Generator().manual_seed(0))
    given = x.clone().requires_grad_(mode == "training")
    function = _textbook(torch)

    def theirs() -> Any:
        y = function(given, *weights)
        if mode == "training":
            torch.autograd.grad(y, [given, *weights], y.detach())
        return y

    around = torch.enable_grad if mode == "training" else torch.inference_mode
    with around():
        np.testing.assert_allclose(theirs().detach().numpy(), layer(x.numpy())[0], rtol=1e-3, atol=1e-4)
    with fastrnn.threads(1):
        jobs = [Job(run, lambda done: {}, around) for run in (_runs(layer, x.numpy(), mode), theirs)]
        return compare(jobs[0], jobs[1], seconds, True, lambda: None).ratio


def claims() -> Iterator[tuple[str, Callable[[float], float], float, bool, str, str]]:
    """Name, measurement, limit, whether that is an upper one, unit and note of each claim."""
    bind = functools.partial
    for kind in ("LSTM", "GRU", "sLSTM"):
        for mode in ("inference", "training", "step"):
            name = f"{kind} with {HEADS} heads, {mode} I=64 H=512 B=1"
            yield name, bind(_heads, kind, mode), 0.4, True, "x", "four heads : one"
    for batch, mode, least in ((1, "inference", 4), (1, "training", 3), (16, "inference", 2), (16, "training", 2)):
        name = f"sLSTM against torch.compile of ten steps, {mode} T=100 H=256 B={batch}"
        yield name, bind(_against_compiled, batch, mode), least, False, "x", "torch.compile : fastrnn"

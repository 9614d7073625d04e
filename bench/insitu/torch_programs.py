"""PyTorch programs as people write them, with torch.nn's modules and after `accelerate`."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

from ..peers.base import Job
from .program import Pair, Program, Side, Stopwatch

Kind = Literal["LSTM", "GRU"]
VOCABULARY, EMBEDDING, TAGS, RATE = 1000, 128, 12, 1e-3


def import_torch() -> tuple[Any, Any]:
    """Return torch, seeded, and fastrnn.torch."""
    import torch

    import fastrnn.torch

    torch.manual_seed(0)
    return torch, fastrnn.torch


@functools.cache
def _marks() -> tuple[Any, Any]:
    """Functions (tensor, stopwatch) -> tensor at the recurrent part's way in and way out, also of gradients."""
    torch, _ = import_torch()

    def mark(forward: Callable[[Stopwatch], None], backward: Callable[[Stopwatch], None]) -> Any:
        def go(ctx: Any, tensor: Any, watch: Stopwatch) -> Any:
            ctx.watch = watch
            forward(watch)
            return tensor.view_as(tensor)

        def back(ctx: Any, gradient: Any) -> Any:
            backward(ctx.watch)
            return gradient, None

        methods = {"forward": staticmethod(go), "backward": staticmethod(back)}
        return type("Mark", (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]

    return mark(Stopwatch.start, Stopwatch.stop), mark(Stopwatch.stop, Stopwatch.start)


def _trains(model: Any, loss: Callable[[Any], Any]) -> Callable[[], float]:
    """One step of Adam on the loss of the model."""
    torch, _ = import_torch()
    adam = torch.optim.Adam(model.parameters(), lr=RATE)

    def step() -> float:
        adam.zero_grad()
        value = loss(model)
        value.backward()
        adam.step()
        return float(value.detach())

    return step


def pair_of(
    threads: int, model: Any, training: bool, output: Callable[[Any, Stopwatch], Any], loss: Callable[[Any], Any]
) -> Pair:
    """The model as it is and accelerated: `output` of it in inference, or steps on the `loss` of that."""
    torch, drop_in = import_torch()
    torch.set_num_threads(threads)
    models = model, copy.deepcopy(model)
    drop_in.accelerate(models[1])

    def side(which: Any) -> Side:
        watch = Stopwatch()
        if training:
            return Side(_trains(which, lambda m: loss(output(m, watch))), watch)
        return Side(lambda: output(which, watch).numpy(), watch, torch.inference_mode)

    return Pair(side(models[0]), side(models[1]), _layers_alone(*models, training))


def _layers_alone(plain: Any, fast: Any, training: bool) -> tuple[Job, Job] | None:
    """The recurrent layers of both on features of their sizes."""
    torch, _ = import_torch()
    if not hasattr(plain, "features"):
        return None

    def job(model: Any) -> Job:
        def run() -> None:
            x = features.detach().requires_grad_() if training else features
            y = model.rnn(x if lengths is None else pack(x))[0]
            if training:
                model.rnn.zero_grad(set_to_none=True)
                (y if lengths is None else y.data).sum().backward()

        def pack(x: Any) -> Any:
            return torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

        features, lengths = plain.features, getattr(plain, "lengths", None)
        return Job(run, lambda done: {}, torch.enable_grad if training else torch.inference_mode)

    return job(fast), job(plain)


# Sequence models


def _language_model(kind: Kind, H: int, L: int, B: int, T: int, training: bool, threads: int) -> Pair:
    """Embedding, recurrent layers, read-out; cross entropy and Adam."""
    torch, _ = import_torch()
    model = torch.nn.Module()
    model.embedding, model.head = torch.nn.Embedding(VOCABULARY, EMBEDDING), torch.nn.Linear(H, VOCABULARY)
    model.rnn = getattr(torch.nn, kind)(EMBEDDING, H, L)
    ids = torch.randint(0, VOCABULARY, (T + 1, B))
    model.features = torch.randn(T, B, EMBEDDING)

    def output(m: Any, watch: Stopwatch) -> Any:
        enter, leave = _marks()
        y, _ = m.rnn(enter(m.embedding(ids[:-1]), watch))
        return m.head(leave(y, watch))

    def loss(logits: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())

    return pair_of(threads, model, training, output, loss)


def _tagger(long_tail: bool, training: bool, threads: int) -> Pair:
    """The README's: two bidirectional layers over packed sequences, some of them perhaps much longer than most."""
    torch, _ = import_torch()
    rnn = torch.nn.utils.rnn
    model = torch.nn.Module()
    model.embedding, model.head = torch.nn.Embedding(VOCABULARY, 64), torch.nn.Linear(256, TAGS)
    model.rnn = torch.nn.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
    model.lengths = lengths = _log_normal(32) if long_tail else torch.randint(10, 61, (32,))
    B, T = len(lengths), int(lengths.max())
    words, tags = torch.randint(0, VOCABULARY, (B, T)), torch.randint(0, TAGS, (B, T))
    model.features = torch.randn(B, T, 64)

    def output(m: Any, watch: Stopwatch) -> Any:
        enter, leave = _marks()
        packed = rnn.pack_padded_sequence(m.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        y, _ = m.rnn(packed._replace(data=enter(packed.data, watch)))
        return m.head(rnn.pad_packed_sequence(y._replace(data=leave(y.data, watch)), batch_first=True)[0])

    def loss(logits: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tags[:, : logits.shape[1]].flatten())

    return pair_of(threads, model, training, output, loss)


def _log_normal(n: int) -> Any:
    """So many lengths whose logarithms are normal: half below 10, one or two above 100."""
    torch, _ = import_torch()
    return torch.exp(2.3 + 1.1 * torch.randn(n)).long().clamp(1, 300)


# Actors


def _actor_critic(H: int, B: int, T: int, threads: int) -> Pair:
    """An update over a rollout with episodes that begin inside it: torch.nn loops over time, fastrnn takes the mask."""
    torch, drop_in = import_torch()
    torch.set_num_threads(threads)
    nn = torch.nn
    plain = nn.Module()
    plain.body, plain.heads, plain.rnn = nn.Sequential(nn.Linear(32, H), nn.Tanh()), nn.Linear(H, 5), nn.LSTM(H, H)
    fast = copy.deepcopy(plain)
    drop_in.accelerate(fast)
    observations, begins = torch.randn(T, B, 32), torch.rand(T, B) < 0.05
    actions, returns = torch.randint(0, 4, (T * B,)), torch.randn(T * B)
    keeps = (~begins).float()[:, None, :, None]

    def loop(m: Any, x: Any) -> Any:
        state = torch.zeros(1, B, H), torch.zeros(1, B, H)
        rows = []
        for x_t, keep in zip(x, keeps, strict=True):
            y_t, state = m.rnn(x_t[None], (state[0] * keep, state[1] * keep))
            rows.append(y_t)
        return torch.cat(rows)

    def side(m: Any, recur: Callable[[Any, Any], Any]) -> Side:
        watch = Stopwatch()

        def loss(_: Any) -> Any:
            enter, leave = _marks()
            y = leave(recur(m, enter(m.body(observations), watch)), watch)
            out = m.heads(y).flatten(0, 1)
            return nn.functional.cross_entropy(out[:, :4], actions) + (out[:, 4] - returns).square().mean()

        return Side(_trains(m, loss), watch)

    return Pair(side(plain, loop), side(fast, lambda m, x: m.rnn(x, reset=begins)[0]))


def _actor(cell: str, H: int, B: int, threads: int) -> Pair:
    """One environment step after the other: an encoder, a cell, a policy."""
    torch, _ = import_torch()
    nn = torch.nn
    model = nn.Module()
    model.body, model.policy = nn.Sequential(nn.Linear(32, H), nn.Tanh()), nn.Linear(H, 4)
    model.cell = getattr(nn, cell)(H, H)
    observation = torch.randn(B, 32)

    def output(m: Any, watch: Stopwatch) -> Any:
        state = None
        for _ in range(20):
            x = m.body(observation)
            watch.start()
            state = m.cell(x, state)
            watch.stop()
            logits = m.policy(state[0] if cell == "LSTMCell" else state)
        return logits

    return pair_of(threads, model, False, output, lambda logits: logits)


MODELS: list[tuple[Kind, int, int, int, int]] = [
    ("LSTM", 512, 2, 32, 64),
    ("LSTM", 128, 1, 32, 100),
    ("LSTM", 256, 1, 1, 50),
    ("LSTM", 256, 2, 16, 30),
    ("GRU", 128, 1, 16, 100),
]


def programs() -> Iterator[Program]:
    """All of them."""
    bind = functools.partial
    for kind, H, L, B, T in MODELS:
        for training in (True, False):
            name = f"language-model-{kind}-H{H}-L{L}-B{B}-T{T}-{'training' if training else 'inference'}"
            yield Program(name, bind(_language_model, kind, H, L, B, T, training))
    for long_tail in (False, True):
        for training in (True, False):
            lengths, mode = "long-tail" if long_tail else "packed", "training" if training else "inference"
            yield Program(f"tagger-{lengths}-LSTM-H128-{mode}", bind(_tagger, long_tail, training))
    yield Program("actor-critic-resets-LSTM-H128-B8-T128-training", bind(_actor_critic, 128, 8, 128))
    for cell in ("LSTMCell", "GRUCell"):
        yield Program(f"actor-steps-{cell}-H128-B1-inference", bind(_actor, cell, 128, 1))

"""What fastrnn.torch promises, measured like the other claims; importing PyTorch is each measurement's own business."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import fastrnn

from ..grid.timing import compare
from ..peers.base import Job
from .language import Kind, Measure, TorchLanguageModel, same_losses

VOCABULARY, EMBEDDING, HIDDEN, LAYERS, BATCH, TIME = 1000, 128, 512, 2, 32, 64


def _ratio(first: Callable[[], Any], second: Callable[[], Any], seconds: float, inference: bool) -> float:
    """The second's time over the first's."""
    import torch

    around = torch.inference_mode if inference else torch.enable_grad
    jobs = [Job(run, lambda done: {}, around) for run in (first, second)]
    return compare(jobs[0], jobs[1], seconds, True, lambda: None).ratio


def _alone() -> Any:
    """One thread everywhere; returns torch and fastrnn.torch."""
    import torch

    import fastrnn.torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch, fastrnn.torch


def _layers(kind: Kind, H: int) -> tuple[Any, Any, Any]:
    """torch.nn's layer, fastrnn.torch's and fastrnn's, with the same parameters."""
    torch, drop_in = _alone()
    theirs = getattr(torch.nn, kind)(H, H)
    ours, plain = getattr(drop_in, kind)(H, H), getattr(fastrnn, kind)(H, H)
    ours.load_state_dict(theirs.state_dict())
    plain.load_state_dict(theirs.state_dict())
    return theirs, ours, plain


def _overhead(seconds: float) -> float:
    """Microseconds of a forward call beyond those of the NumPy API, where there is next to nothing to compute."""
    torch, _ = _alone()
    _, ours, plain = _layers("LSTM", 8)
    x = torch.zeros(1, 1, 8)
    array = x.numpy()
    with fastrnn.threads(1):
        jobs = [Job(run, lambda done: {}, torch.inference_mode) for run in (lambda: ours(x), lambda: plain(array))]
        found = compare(jobs[0], jobs[1], seconds, True, lambda: None)
    return (found.ours.median - found.peer.median) * 1e6


def _over_numpy(kind: Kind, training: bool, seconds: float) -> float:
    """The drop-in's time over that of the NumPy API."""
    torch, _ = _alone()
    _, ours, plain = _layers(kind, 256)
    x = torch.randn(25, 64, 256)
    dy = torch.randn(25, 64, 256)

    def by_torch() -> None:
        ours.zero_grad(set_to_none=True)
        ours(x.requires_grad_())[0].backward(dy)
        x.grad = None

    def by_numpy() -> None:
        _, _, tape = plain.forward(array)
        plain.backward(tape, dy.numpy())

    array = x.numpy().copy()
    with fastrnn.threads(1):
        if training:
            return _ratio(by_numpy, by_torch, seconds, False)
        return _ratio(lambda: plain(array), lambda: ours(x), seconds, True)


def _one_step(seconds: float) -> float:
    """torch.nn's time over ours for a call with T = 1 and B = 1."""
    torch, _ = _alone()
    theirs, ours, _ = _layers("LSTM", 256)
    x = torch.randn(1, 1, 256)
    with fastrnn.threads(1):
        return _ratio(lambda: ours(x), lambda: theirs(x), seconds, True)


def _resets(H: int, seconds: float) -> float:
    """The time of a loop of one-step calls that zero the state of episodes that begin, over ours; with gradients."""
    torch, _ = _alone()
    theirs, ours, _ = _layers("LSTM", H)
    x = torch.randn(128, 8, H)
    done = torch.rand(128, 8) < 0.05
    keep = (~done).float()[:, None, :, None]

    def loop() -> None:
        state = (torch.zeros(1, 8, H), torch.zeros(1, 8, H))
        rows = []
        for x_t, keep_t in zip(x, keep, strict=True):
            state = (state[0] * keep_t, state[1] * keep_t)
            y_t, state = theirs(x_t[None], state)
            rows.append(y_t)
        theirs.zero_grad(set_to_none=True)
        torch.cat(rows).sum().backward()

    def masked() -> None:
        ours.zero_grad(set_to_none=True)
        ours(x, reset=done)[0].sum().backward()

    with fastrnn.threads(1):
        return _ratio(masked, loop, seconds, False)


def _language_model(kind: Kind, seconds: float) -> float:
    """A training step's time with torch.nn over that with fastrnn, if they learn the same."""
    torch, drop_in = _alone()

    def model(fast: bool) -> TorchLanguageModel:
        torch.manual_seed(0)
        nn = torch.nn
        layers = getattr(nn, kind)(EMBEDDING, HIDDEN, num_layers=LAYERS)
        parts: Any = nn.ModuleList([nn.Embedding(VOCABULARY, EMBEDDING), layers, nn.Linear(HIDDEN, VOCABULARY)])
        if fast:
            drop_in.accelerate(parts)
        return TorchLanguageModel(parts, [torch.randint(0, VOCABULARY, (TIME + 1, BATCH))])

    fast, plain = model(True), model(False)
    with fastrnn.threads(1):
        ratio = _ratio(fast.step, plain.step, seconds, False)
    same_losses(fast.losses, plain.losses, 1e-3)
    return ratio


def _tagger(training: bool, seconds: float) -> float:
    """The README's model, words to tags through packed sequences: its time with torch.nn over that with fastrnn."""
    torch, drop_in = _alone()
    rnn = torch.nn.utils.rnn
    embedding, tags = torch.nn.Embedding(1000, 64), torch.nn.Linear(256, 12)
    plain = torch.nn.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
    fast = drop_in.LSTM(64, 128, num_layers=2, bidirectional=True, batch_first=True)
    fast.load_state_dict(plain.state_dict())
    words, lengths = torch.randint(0, 1000, (32, 60)), torch.randint(10, 61, (32,))

    def run(encoder: Any) -> None:
        packed = rnn.pack_padded_sequence(embedding(words), lengths, batch_first=True, enforce_sorted=False)
        scores = tags(rnn.pad_packed_sequence(encoder(packed)[0], batch_first=True)[0])
        if training:
            scores.square().mean().backward()

    with fastrnn.threads(1):
        return _ratio(lambda: run(fast), lambda: run(plain), seconds, not training)


def claims() -> Iterator[tuple[str, Measure, float, bool, str, str]]:
    """Names, measurements, limits, whether these are upper ones, units and notes, for `claims.Claim`."""
    bind = functools.partial
    note = "fastrnn.torch - fastrnn"
    yield "drop-in, a forward call beyond the NumPy API", _overhead, 15, True, "us", note
    kinds: tuple[Kind, ...] = ("LSTM", "GRU")
    for kind in kinds:
        for training in (False, True):
            mode = "training" if training else "inference"
            name = f"drop-in, {kind} {mode} T=25 B=64 H=256"
            yield name, bind(_over_numpy, kind, training), 1.05, True, "x", "fastrnn.torch : fastrnn"
    yield "drop-in, LSTM T=1 B=1 H=256", _one_step, 4, False, "x", "torch.nn : fastrnn.torch"
    for H, least in ((64, 10.0), (256, 4.0)):
        name = f"drop-in, LSTM with resets T=128 B=8 H={H}"
        yield name, bind(_resets, H), least, False, "x", "a loop that masks the state : fastrnn.torch"
    for training, least in ((False, 1.4), (True, 2.5)):
        name = f"drop-in, {'training' if training else 'inference'} of a tagger with packed sequences"
        yield name, bind(_tagger, training), least, False, "x", "torch.nn : accelerated"
    gains: list[tuple[Kind, float]] = [("LSTM", 1.1), ("GRU", 1.35)]
    for kind, gain in gains:
        name = f"drop-in, training a language model of {kind}s"
        yield name, bind(_language_model, kind), gain, False, "x", "torch.nn : accelerated"

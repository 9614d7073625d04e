"""Training a language model without a framework, against the same model in PyTorch: time of a step, and the losses."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

import fastrnn
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.text import Characters, Window, Words

from ..grid.timing import compare
from ..peers.base import Job

Kind = Literal["LSTM", "GRU"]
Measure = Callable[[float], float]
EMBEDDING, HIDDEN, BATCH, TIME = 128, 512, 32, 64
RATE = 1e-3
SAME_LOSS = 1e-4
WORDS = 10_000


def _tokens(vocabulary: int) -> list[np.ndarray[Any, Any]]:
    """Four batches (T+1,B) of ids as frequent as words are (Zipf)."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, vocabulary + 1)
    return [rng.choice(vocabulary, (TIME + 1, BATCH), p=frequency / frequency.sum()) for _ in range(4)]


def _alphabet(size: int) -> str:
    return "".join(chr(0x100 + i) for i in range(size))


class _Ours:
    def __init__(self, kind: Kind, vocabulary: int) -> None:
        tokens = (
            Words([str(i) for i in range(1, vocabulary)]) if vocabulary == WORDS else Characters(_alphabet(vocabulary))
        )
        self.model = LanguageModel(tokens, kind.lower(), embedding_dim=EMBEDDING, hidden_size=HIDDEN, rng=0)
        self.adam = fastrnn.Adam(self.model.parameters(), lr=RATE)
        self.tokens = _tokens(vocabulary)
        self.losses: list[float] = []

    def step(self) -> None:
        ids = self.tokens[len(self.losses) % 4]
        loss, _, gradients = self.model.loss_and_gradients(Window(ids[:-1], ids[1:]))
        for group in gradients:  # of the mean over time, as PyTorch's loss is
            for gradient in group.values():
                gradient /= TIME
        self.adam.step(gradients)
        self.losses.append(loss / TIME)


class TorchLanguageModel:
    """Modules that embed, recur and read out, and Adam; `step` trains on one batch (T+1,B) after the other."""

    def __init__(self, parts: Any, batches: list[Any]) -> None:
        import torch

        self.torch = torch
        self.embedding, self.layers, self.head = parts
        self.adam = torch.optim.Adam(parts.parameters(), lr=RATE)
        self.batches = batches
        self.losses: list[float] = []

    def step(self) -> None:
        ids = self.batches[len(self.losses) % len(self.batches)]
        self.adam.zero_grad()
        y, _ = self.layers(self.embedding(ids[:-1]))
        loss = self.torch.nn.functional.cross_entropy(self.head(y).flatten(0, 1), ids[1:].flatten())
        loss.backward()
        self.adam.step()
        self.losses.append(loss.item())


def same_losses(ours: list[float], theirs: list[float], most: float) -> None:
    """Refuse a comparison of two that did not learn the same."""
    shared = min(len(ours), len(theirs))
    if not np.allclose(ours[:shared], theirs[:shared], rtol=0, atol=most):
        raise ValueError(f"the losses differ: {ours[:shared]} and {theirs[:shared]}")


def _twin(kind: Kind, ours: LanguageModel, batches: list[np.ndarray[Any, Any]]) -> TorchLanguageModel:
    """The same model in PyTorch, with the same parameters."""
    import torch

    nn, vocabulary = torch.nn, len(ours.vocabulary)
    layers = getattr(nn, kind)(EMBEDDING, HIDDEN)
    parts: Any = nn.ModuleList([nn.Embedding(vocabulary, EMBEDDING), layers, nn.Linear(HIDDEN, vocabulary)])
    for module, part in zip(parts, (ours.embedding, ours.network, ours.head), strict=True):
        module.load_state_dict({name: torch.from_numpy(a) for name, a in part.state_dict().items()})
    return TorchLanguageModel(parts, [torch.from_numpy(ids) for ids in batches])


def _ratio(kind: Kind, vocabulary: int, threads: int, seconds: float) -> float:
    """PyTorch's time for a step over ours, if both learn the same from the same start."""
    import torch

    torch.set_num_threads(threads)
    ours = _Ours(kind, vocabulary)
    theirs = _twin(kind, ours.model, ours.tokens)
    jobs = [Job(model.step, lambda done: {}, lambda: fastrnn.threads(threads)) for model in (ours, theirs)]
    ratio = compare(jobs[0], jobs[1], seconds, threads == 1, lambda: None).ratio
    same_losses(ours.losses, theirs.losses, SAME_LOSS)
    return ratio


def claims() -> Iterator[tuple[str, Measure, float, bool, str, str]]:
    """Names, measurements, limits, whether these are upper ones, units and notes, for `claims.Claim`."""
    goals: list[tuple[Kind, int, float]] = [
        ("LSTM", 100, 2),
        ("GRU", 100, 2.5),
        ("LSTM", WORDS, 1.2),
        ("GRU", WORDS, 1.2),
    ]
    for kind, vocabulary, least in goals:
        for threads in (1, 2):
            level = "word" if vocabulary == WORDS else "character"
            name = f"training, {level} model V={vocabulary} of {kind}s, {threads} thread{'s' if threads > 1 else ''}"
            measure = functools.partial(_ratio, kind, vocabulary, threads)
            yield name, measure, least, False, "x", "PyTorch : fastrnn"

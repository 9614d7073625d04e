"""Training a language model without a framework, against the same model in PyTorch: time of a step, and the losses."""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

import fastrnn
from fastrnn.language import LanguageModel
from fastrnn.text import Characters, Window, Words

from .dropin import Measure
from .peers.base import Job
from .timing import compare

Kind = Literal["LSTM", "GRU"]
EMBEDDING, HIDDEN, BATCH, TIME = 128, 512, 32, 64
RATE = 1e-3
SAME_LOSS = 1e-4
WORDS = 10_000


def _tokens(vocabulary: int) -> list[np.ndarray[Any, Any]]:
    """Four batches (T+1,B) of ids as frequent as words are (Zipf)."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, vocabulary + 1)
    return [rng.choice(vocabulary, (TIME + 1, BATCH), p=frequency / frequency.sum()) for _ in range(4)]


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


def _alphabet(size: int) -> str:
    return "".join(chr(0x100 + i) for i in range(size))


class _Theirs:
    def __init__(self, kind: Kind, vocabulary: int, ours: LanguageModel) -> None:
        import torch

        self.torch = torch
        nn = torch.nn
        self.embedding = nn.Embedding(vocabulary, EMBEDDING)
        self.layers = getattr(nn, kind)(EMBEDDING, HIDDEN)
        self.head = nn.Linear(HIDDEN, vocabulary)
        pairs = (self.embedding, ours.embedding), (self.layers, ours.network), (self.head, ours.head)
        for theirs, part in pairs:
            theirs.load_state_dict({name: torch.from_numpy(a) for name, a in part.state_dict().items()})
        parameters = [p for theirs, _ in pairs for p in theirs.parameters()]
        self.adam = torch.optim.Adam(parameters, lr=RATE)
        self.tokens = [torch.from_numpy(ids) for ids in _tokens(vocabulary)]
        self.losses: list[float] = []

    def step(self) -> None:
        ids = self.tokens[len(self.losses) % 4]
        self.adam.zero_grad()
        y, _ = self.layers(self.embedding(ids[:-1]))
        loss = self.torch.nn.functional.cross_entropy(self.head(y).flatten(0, 1), ids[1:].flatten())
        loss.backward()
        self.adam.step()
        self.losses.append(loss.item())


def _ratio(kind: Kind, vocabulary: int, threads: int, seconds: float) -> float:
    """PyTorch's time for a step over ours, if both learn the same from the same start."""
    import torch

    torch.set_num_threads(threads)
    ours = _Ours(kind, vocabulary)
    theirs = _Theirs(kind, vocabulary, ours.model)
    jobs = [Job(model.step, lambda done: {}, lambda: fastrnn.threads(threads)) for model in (ours, theirs)]
    ratio = compare(jobs[0], jobs[1], seconds, threads == 1, lambda: None).ratio
    shared = min(len(ours.losses), len(theirs.losses))
    if not np.allclose(ours.losses[:shared], theirs.losses[:shared], rtol=0, atol=SAME_LOSS):
        raise ValueError(f"the losses differ: {ours.losses[:shared]} and {theirs.losses[:shared]}")
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

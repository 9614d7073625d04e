"""Does it learn? Small tasks, each with what a model without the property in question is bound to get wrong."""

from collections import Counter, defaultdict
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastrnn
from support import Array, assert_close


class Tagger:
    """Ids -> embedding -> recurrent layers -> read-out -> a class at every step."""

    def __init__(self, recurrent: Any, num_ids: int, num_classes: int, dtype: type = np.float32) -> None:
        D = 2 if recurrent.bidirectional else 1
        self.embedding = fastrnn.Embedding(num_ids, recurrent.input_size, dtype=dtype, rng=1)
        self.recurrent = recurrent
        self.read_out = fastrnn.Linear(D * recurrent.hidden_size, num_classes, dtype=dtype, rng=2)
        self.parts = (self.embedding, self.recurrent, self.read_out)

    def logits(self, ids: Array, lengths: Array | None) -> Array:
        y, _ = self.recurrent(self.embedding(ids), lengths=lengths)
        return self.read_out(y)

    def gradients(
        self, ids: Array, lengths: Array | None, targets: Array, mask: Array, reduction: Any = "mean"
    ) -> tuple[float, list[dict[str, Array]]]:
        """The loss and the gradients of each part's parameters."""
        x, embedding_tape = self.embedding.forward(ids)
        y, _, tape = self.recurrent.forward(x, lengths=lengths, training=True)
        logits, read_out_tape = self.read_out.forward(y)
        loss, dlogits = fastrnn.cross_entropy(logits, targets, mask=mask, reduction=reduction)
        read_out = self.read_out.backward(read_out_tape, dlogits)
        assert read_out.x is not None
        recurrent = self.recurrent.backward(tape, read_out.x)
        embedding = self.embedding.backward(embedding_tape, recurrent.x)
        return loss, [embedding.parameters, recurrent.parameters, read_out.parameters]


class Sentences(NamedTuple):
    """Ids and tags, time first, zero past each length; where: the steps that are judged."""

    ids: Array
    lengths: Array
    tags: Array
    where: Array


def collect(texts: list[list[str]], tags: list[list[int]], judged: list[list[bool]], words: list[str]) -> Sentences:
    lengths = np.array([len(text) for text in texts])
    shape = (lengths.max(), len(texts))
    ids, tag, where = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for b, n in enumerate(lengths):
        ids[:n, b] = [words.index(w) for w in texts[b]]
        tag[:n, b] = tags[b]
        where[:n, b] = judged[b]
    return Sentences(ids, lengths, tag, where)


def train(tagger: Tagger, sentences: Sentences, steps: int, learning_rate: float) -> None:
    """Adam on the whole set at once; the loss counts every step inside the lengths."""
    inside = np.arange(len(sentences.ids))[:, None] < sentences.lengths
    optimizer = fastrnn.Adam([part.parameters() for part in tagger.parts], lr=learning_rate)
    for _ in range(steps):
        _, gradients = tagger.gradients(sentences.ids, sentences.lengths, sentences.tags, inside)
        fastrnn.clip_grad_norm(gradients, 1.0)
        optimizer.step(gradients)


def accuracy(tagger: Tagger, sentences: Sentences) -> float:
    """Of the judged steps."""
    found = tagger.logits(sentences.ids, sentences.lengths).argmax(-1)
    return float((found == sentences.tags)[sentences.where].mean())


# ---- the adding problem ---------------------------------------------------------------------------------------------


def test_an_lstm_learns_to_add_two_marked_numbers() -> None:
    """Hochreiter and Schmidhuber 1997: of T numbers in 0..1 two are marked; their sum is asked for at the end.

    Always answering 1 has a mean squared error of 1/6; so does, nearly, whoever misses one of the two.
    """
    T, B = 30, 50
    rng = np.random.default_rng(3)
    lstm = fastrnn.LSTM(2, 32, rng=1)
    read_out = fastrnn.Linear(32, 1, rng=2)
    optimizer = fastrnn.Adam([lstm.parameters(), read_out.parameters()], lr=1e-2)

    def problems() -> tuple[Array, Array]:
        x = np.zeros((T, B, 2), np.float32)
        x[:, :, 0] = rng.random((T, B))
        rows = np.arange(B)
        first, second = rng.integers(0, T // 2, B), rng.integers(T // 2, T, B)
        x[first, rows, 1] = x[second, rows, 1] = 1
        return x, (x[first, rows, 0] + x[second, rows, 0])[:, None]

    for _ in range(700):
        x, target = problems()
        _, state, tape = lstm.forward(x, training=True)
        answer, read_out_tape = read_out.forward(state.h[0])
        from_read_out = read_out.backward(read_out_tape, (answer - target) * np.float32(2 / B))
        assert from_read_out.x is not None
        from_lstm = lstm.backward(tape, None, (from_read_out.x[None], None))
        gradients = [from_lstm.parameters, from_read_out.parameters]
        fastrnn.clip_grad_norm(gradients, 1.0)
        optimizer.step(gradients)

    errors = []
    for _ in range(10):
        x, target = problems()
        errors.append(np.mean((read_out(lstm(x)[1].h[0]) - target) ** 2))
    assert np.mean(errors) < 0.02


# ---- the same word in two roles -------------------------------------------------------------------------------------

CITIES = ["北京", "上海", "广州", "南京", "天津", "西安", "武汉", "成都"]
SUBJECTS = ["我", "你", "他", "她"]
CHARACTERS = sorted(set("".join(CITIES + SUBJECTS) + "去离开"))
OTHER, ORIGIN, DESTINATION = range(3)


def journeys(pairs: list[tuple[str, str]]) -> Sentences:
    """离开 A 去 B (leaves A, goes to B), also the other way round, and the two halves alone; the cities are tagged."""
    texts, tags, judged = [], [], []
    for subject, (a, b) in product(SUBJECTS, pairs):
        leave = ("离开" + a, [OTHER, OTHER, ORIGIN, ORIGIN])
        go = ("去" + b, [OTHER, DESTINATION, DESTINATION])
        for clauses in ([leave, go], [go, leave], [leave], [go]):
            texts.append(list(subject + "".join(text for text, _ in clauses)))
            tags.append([OTHER, *(tag for _, clause in clauses for tag in clause)])
            judged.append([tag != OTHER and len(clauses) == 2 for tag in tags[-1]])
    return collect(texts, tags, judged, CHARACTERS)


def best_of_any_bag_of_words(sentences: Sentences) -> float:
    """The accuracy of the best function of a character and of the bag of all characters in its sentence."""
    votes: dict[Any, Counter[int]] = defaultdict(Counter)
    for b, n in enumerate(sentences.lengths):
        bag = tuple(sorted(sentences.ids[:n, b]))
        for t in np.flatnonzero(sentences.where[:, b]):
            votes[bag, sentences.ids[t, b]][int(sentences.tags[t, b])] += 1
    right = sum(max(counter.values()) for counter in votes.values())
    return right / sum(counter.total() for counter in votes.values())


@pytest.mark.parametrize("make", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_a_place_is_told_from_where_it_stands(make: Any) -> None:
    """去北京 / 离开北京: the same characters, another role. A bag of words must guess, a recurrent layer need not."""
    pairs = list(permutations(CITIES, 2))
    unseen = [(a, b) for a, b in pairs if (CITIES.index(a) + CITIES.index(b)) % 4 == 1]
    training, held_out = journeys([pair for pair in pairs if pair not in unseen]), journeys(unseen)
    assert best_of_any_bag_of_words(held_out) == 0.5

    tagger = Tagger(make(8, 24, rng=0), len(CHARACTERS), 3)
    train(tagger, training, steps=120, learning_rate=1e-2)
    assert accuracy(tagger, held_out) > 0.98


# ---- what comes after -----------------------------------------------------------------------------------------------

OPENINGS = ["", "he said", "she said", "my friend likes", "we read about", "everyone knows", "they bought", "I saw"]
ENDINGS = {
    "bears": ["bears are soft", "bears sell well", "bears are toys"],
    "Roosevelt": ["Roosevelt was president", "Roosevelt won", "Roosevelt liked parks"],
}
WORDS = sorted({w for text in OPENINGS + ENDINGS["bears"] + ENDINGS["Roosevelt"] for w in text.split()} | {"Teddy"})


def teddies(openings: list[str]) -> Sentences:
    """Tag 1: the Teddy of this sentence is a person. Each opening comes before bears and Roosevelts equally often."""
    texts, tags, judged = [], [], []
    for opening, (kind, endings) in product(openings, ENDINGS.items()):
        for ending in endings:
            text = [*opening.split(), "Teddy", *ending.split()]
            teddy = [w == "Teddy" for w in text]
            texts.append(text)
            tags.append([int(t and kind == "Roosevelt") for t in teddy])
            judged.append(teddy)
    return collect(texts, tags, judged, WORDS)


@pytest.mark.parametrize("make", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_teddy_is_a_person_or_a_bear_by_the_next_word(make: Any) -> None:
    """Teddy bears / Teddy Roosevelt: at Teddy a forward layer knows the opening alone, which says nothing."""
    training, held_out = teddies(OPENINGS[:6]), teddies(OPENINGS[6:])
    both_ways = Tagger(make(8, 16, bidirectional=True, rng=0), len(WORDS), 2)
    train(both_ways, training, steps=150, learning_rate=1e-2)
    assert accuracy(both_ways, training) == 1
    assert accuracy(both_ways, held_out) == 1

    forwards = Tagger(make(8, 16, rng=0), len(WORDS), 2)
    train(forwards, training, steps=150, learning_rate=1e-2)
    assert accuracy(forwards, training) == 0.5
    assert accuracy(forwards, held_out) == 0.5


# ---- back through time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fastrnn.RNN, fastrnn.GRU, fastrnn.LSTM])
def test_the_gradient_is_the_sum_over_the_losses_of_all_steps(make: Any) -> None:
    """L = sum over t of L_t, so dL/dW = sum over t of dL_t/dW, for every W of the model."""
    T, B = 7, 4
    tagger = Tagger(make(5, 9, num_layers=2, dtype=np.float64, rng=0), 11, 3, np.float64)
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 11, (T, B)), rng.integers(0, 3, (T, B))
    lengths = np.array([7, 3, 0, 5])
    inside = np.arange(T)[:, None] < lengths
    loss, gradients = tagger.gradients(ids, lengths, targets, inside, "sum")

    losses, single = [], []
    for t in range(T):
        only_t = inside & (np.arange(T) == t)[:, None]
        loss_t, gradients_t = tagger.gradients(ids, lengths, targets, only_t, "sum")
        losses.append(loss_t)
        single.append(gradients_t)
    assert sum(losses) == pytest.approx(loss, rel=1e-13)
    for part, whole in enumerate(gradients):
        for name, g in whole.items():
            summed = np.sum([gradients_t[part][name] for gradients_t in single], axis=0)
            assert_close(summed, g, "float64", "gradient", name)

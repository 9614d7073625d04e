"""Classifying whole sentences of different lengths: is this praise, a complaint or a question?

"The tea was not bad" is praise, "I do not think that the tea was not bad" is a complaint, and "is it true that the tea
was bad" is a question. The words alone say little: their order and the number of negations decide. An LSTM reads each
sentence to its end, and a read-out classifies its last state. The baseline is a linear classifier of word counts. Both
are tested on pairs of noun and adjective that no training sentence joins.

    python examples/sentences.py [--quick] [--plot FILE.png]
"""

import argparse
import itertools

import numpy as np

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

NOUNS = ["soup", "tea", "bread", "service", "room", "garden", "music", "view"]
GOOD, BAD = ["good", "great", "fresh", "lovely", "pleasant"], ["bad", "stale", "awful", "boring", "terrible"]
DEGREES, NEGATIONS = ["", "really", "very", "quite"], {"": 0, "always": 0, "not": 1}
OPENINGS = {"": 0, "it is true that": 0, "i think that": 0, "they said that": 0}
OPENINGS |= {"i do not think that": 1, "nobody said that": 1}
PRAISE, COMPLAINT, QUESTION = range(3)
KINDS = ["no negation", "one negation", "two negations", "question"]


def sentences():
    """Yield every sentence as a list of words, its class, its place in KINDS, and whether it is kept for the test."""
    adjectives = GOOD + BAD
    for noun, adjective, degree, negation in itertools.product(NOUNS, adjectives, DEGREES, NEGATIONS):
        test = (NOUNS.index(noun) + adjectives.index(adjective)) % 5 == 0  # a fifth of the pairs
        for opening, more in OPENINGS.items():
            count = NEGATIONS[negation] + more
            label = PRAISE if (adjective in GOOD) == (count % 2 == 0) else COMPLAINT
            yield f"{opening} the {noun} was {negation} {degree} {adjective}".split(), label, count, test
        for question in (f"was the {noun} {negation}", f"is it true that the {noun} was {negation}"):
            yield f"{question} {degree} {adjective}".split(), QUESTION, KINDS.index("question"), test


def train_lstm(ids, lengths, labels, words, steps):
    """Return a function from ids (T,B) and lengths (B,) to the class of each sentence (B,)."""
    embedding, lstm = fastrnn.Embedding(words, 16, rng=0), fastrnn.LSTM(16, 32, rng=1)
    read_out, rng = fastrnn.Linear(32, 3, rng=2), np.random.default_rng(3)
    table = embedding.parameters()["weight"]
    adam = fastrnn.Adam([part.parameters() for part in (embedding, lstm, read_out)])
    for step in range(steps):
        some = rng.choice(len(labels), 64, replace=False)
        _, state, tape = lstm.forward(ids[:, some], lengths=lengths[some], embedding=table)
        logits, read_out_tape = read_out.forward(state.h[-1])
        _, dlogits = fastrnn.cross_entropy(logits, labels[some])
        d_read_out = read_out.backward(read_out_tape, dlogits)
        d_lstm = lstm.backward(tape, None, (d_read_out.x[None], None))
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-2)
        adam.step([{"weight": d_lstm.embedding}, d_lstm.parameters, d_read_out.parameters])
    return lambda ids, lengths: read_out(lstm(ids, lengths=lengths, embedding=table)[1].h[-1]).argmax(-1)


def train_counts(counts, labels, steps):
    """Return a linear classifier of how often each word occurs (B,V), trained on all sentences at once."""
    linear = fastrnn.Linear(counts.shape[1], 3, rng=0)
    adam = fastrnn.Adam(linear.parameters())
    for step in range(steps):
        logits, tape = linear.forward(counts)
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-1)
        adam.step(linear.backward(tape, fastrnn.cross_entropy(logits, labels)[1]).parameters)
    return lambda counts: linear(counts).argmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the accuracies (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    texts, labels, kinds, test = (np.array(column, object) for column in zip(*sentences(), strict=True))
    labels, kinds, test = labels.astype(int), kinds.astype(int), test.astype(bool)
    words = sorted({word for text in texts for word in text})
    lengths = np.array([len(text) for text in texts])
    ids, counts = np.zeros((max(lengths), len(texts)), int), np.zeros((len(texts), len(words)), np.float32)
    for b, text in enumerate(texts):
        ids[: len(text), b] = [words.index(word) for word in text]
        np.add.at(counts[b], ids[: len(text), b], 1)

    lstm = train_lstm(ids[:, ~test], lengths[~test], labels[~test], len(words), 300 if arguments.quick else 800)
    bag = train_counts(counts[~test], labels[~test], 100)
    found = {"LSTM": lstm(ids[:, test], lengths[test]), "bag of words": bag(counts[test])}
    print(f"{len(texts):,} sentences of {min(lengths)} to {max(lengths)} words, {test.sum():,} of them for the test")
    right = {name: [(f == labels[test])[kinds[test] == kind].mean() for kind in range(4)] for name, f in found.items()}
    for name, parts in right.items():
        print(f"{name:12}  " + ", ".join(f"{kind} {part:.0%}" for kind, part in zip(KINDS, parts, strict=True)))
    ours, theirs = ((f == labels[test]).mean() for f in found.values())
    print(f"right sentences: LSTM {ours:.1%}, bag of words {theirs:.1%}")
    if arguments.plot:
        draw(arguments.plot, right)
    assert ours > 0.9 > theirs + 0.2


def draw(path, right):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis, at = figure.subplots(), np.arange(len(KINDS))
    for shift, colour, name in ((-0.2, "#0072B2", "LSTM"), (0.2, "#D55E00", "bag of words")):
        axis.bar_label(axis.bar(at + shift, right[name], 0.38, color=colour, label=name), fmt="{:.0%}")
    axis.set(ylabel="right, of new pairs", ylim=(0, 1.3), xticks=at, xticklabels=KINDS, yticks=[0, 0.5, 1])
    axis.legend(ncols=2, loc="upper center")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

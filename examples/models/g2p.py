"""Spelling to sounds, of g2p's shape: a GRU reads the letters, another one writes phonemes until it says stop.

That program runs in NumPy, with GRUs written as loops over the time. Here they are beside layers with the same
weights: the reader in one call with ids, the writer through `step`, as each phoneme depends on the one before. Sizes
are those that are published (29 letters, 74 phonemes, 256 units, at most 20 phonemes), the weights random.

    OMP_NUM_THREADS=1 python examples/models/g2p.py [--quick]
"""

import numpy as np
from comparing import by_turns, quick

import fastrnn

LETTERS, PHONEMES, SIZE, MOST = 29, 74, 256, 20
START, STOP = 2, 3


def weights():
    """Return both embeddings, the weights of both GRUs by PyTorch's names, and the read-out."""
    rng = np.random.default_rng(0)

    def uniform(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32) * SIZE**-0.5

    def gru():
        matrices = {f"weight_{side}_l0": uniform(3 * SIZE, SIZE) for side in ("ih", "hh")}
        return matrices | {f"bias_{side}_l0": uniform(3 * SIZE) for side in ("ih", "hh")}

    return (
        uniform(LETTERS, SIZE) * 16,
        uniform(PHONEMES, SIZE) * 16,
        gru(),
        gru(),
        uniform(SIZE, PHONEMES),
        uniform(PHONEMES),
    )


class Loops:
    """As in g2p: one function for a cell, and loops in Python."""

    def __init__(self, letters, phonemes, encoder, decoder, read_out, bias):
        self.letters, self.phonemes, self.read_out, self.bias = letters, phonemes, read_out, bias
        self.encoder, self.decoder = (
            {name: np.ascontiguousarray(value.T) for name, value in gru.items()} for gru in (encoder, decoder)
        )

    def cell(self, x, h, gru):
        a = np.split(x @ gru["weight_ih_l0"] + gru["bias_ih_l0"], 3, axis=-1)
        b = np.split(h @ gru["weight_hh_l0"] + gru["bias_hh_l0"], 3, axis=-1)
        r, z = (1 / (1 + np.exp(-(one + two))) for one, two in zip(a[:2], b[:2], strict=True))
        return (1 - z) * np.tanh(a[2] + r * b[2]) + z * h

    def read(self, word):
        h = np.zeros((1, SIZE), np.float32)
        for letter in word:
            h = self.cell(self.letters[letter][None], h, self.encoder)
        return h

    def write(self, phoneme, h):
        h = self.cell(self.phonemes[phoneme][None], h, self.decoder)
        return h, h


class Layers:
    """The same with fastrnn."""

    def __init__(self, letters, phonemes, encoder, decoder, read_out, bias):
        self.letters, self.phonemes, self.read_out, self.bias = letters, phonemes, read_out, bias
        self.encoder, self.decoder = (fastrnn.GRU(SIZE, SIZE) for _ in range(2))
        self.encoder.load_state_dict(encoder)
        self.decoder.load_state_dict(decoder)
        self.encoder, self.decoder = self.encoder.freeze(), self.decoder.freeze()

    def read(self, word):
        return self.encoder(self.letters[word][:, None])[1]

    def write(self, phoneme, h):
        return self.decoder.step(self.phonemes[phoneme : phoneme + 1], h)


def sounds(net, words):
    """Return the phonemes of all words, one after the other, and their logits."""
    found, logits = [], []
    for word in words:
        h, phoneme = net.read(word), START
        for _ in range(MOST):
            y, h = net.write(phoneme, h)
            logits.append((y @ net.read_out)[0] + net.bias)
            phoneme = int(logits[-1].argmax())
            found.append(phoneme)
            if phoneme == STOP:
                break
    return [np.array(found), np.array(logits)]


def main():
    few = quick(__doc__)
    rng = np.random.default_rng(1)
    words = [rng.integers(3, LETTERS, size) for size in rng.integers(3, 12, 5 if few else 100)]
    given = weights()
    loops, layers = Loops(*given), Layers(*given)
    found = sounds(layers, words)[0]
    sides = {"NumPy": lambda: sounds(loops, words), "fastrnn": lambda: sounds(layers, words)}
    by_turns(f"{len(words)} words, {len(found)} phonemes", sides, 3 if few else 9)


if __name__ == "__main__":
    main()

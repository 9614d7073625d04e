"""Praise or complaint, a Keras model: an embedding, LSTMs in both directions, a probability.

The LSTMs come from the .keras file, as `fastrnn.load` reads it without Keras; the embedding and the read-out are a
table and a product of NumPy. Sizes are those of Keras' own example for film reviews (20,000 words, 200 of a review, 128
numbers for each, twice 64 units), the weights random. Keras runs on PyTorch here, or on what KERAS_BACKEND says.

    OMP_NUM_THREADS=1 python examples/models/sentiment.py [--quick]
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from comparing import by_turns, quick

import fastrnn

WORDS, SIZE, HIDDEN = 20_000, 128, 64


def network():
    """Return the model of Keras."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    keras.utils.set_random_seed(0)
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(WORDS, SIZE, name="words"),
            layers.Bidirectional(layers.LSTM(HIDDEN, return_sequences=True), name="first"),
            layers.Bidirectional(layers.LSTM(HIDDEN), name="second"),
            layers.Dense(1, activation="sigmoid", name="read_out"),
        ]
    )


def from_file(model):
    """Return the LSTMs of the model's file, frozen."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "sentiment.keras"))
        return [layer.freeze() for layer in fastrnn.load(Path(folder, "sentiment.keras")).values()]


def main():
    few = quick(__doc__)
    model = network()
    first, second = from_file(model)
    (table,), (kernel, bias) = (model.get_layer(name).get_weights() for name in ("words", "read_out"))
    shape = (2, 20) if few else (16, 200)
    ids = np.random.default_rng(0).integers(0, WORDS, shape)

    def ours():
        y, _ = first(ids, embedding=table)
        _, state = second(y)
        return [1 / (1 + np.exp(-(np.concatenate(list(state.h), axis=-1) @ kernel + bias)))]

    sides = {"Keras": lambda: [model.predict_on_batch(ids)], "fastrnn": ours}
    by_turns(f"{shape[0]} reviews of {shape[1]} words", sides, 3 if few else 9)


if __name__ == "__main__":
    main()

"""A voice detector of Silero's shape: an LSTM behind convolutions, one net for each sample rate in a branch of an If.

It hears 16 kHz in pieces of 512 samples, each behind the last 64 of the piece before, and keeps the LSTM's state. Three
ways: ONNX Runtime, piece by piece; `fastrnn.onnx.accelerate`, which stands in for it; and, for a recording that is
there as a whole, the LSTM of the file over all pieces at once, behind the convolutions in NumPy. Sizes are those that
are published, the weights random.

    OMP_NUM_THREADS=1 python examples/models/silero_vad.py [--quick]
"""

import numpy as np
from comparing import Graph, by_turns, median_ms, quick, session
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

import fastrnn.onnx

HIDDEN = 128
CONVOLUTIONS = ((128, 1), (64, 2), (64, 2), (HIDDEN, 1))  # channels and strides
STATE = [2, "batch", HIDDEN]


def branch(rng, rate):
    """Return the net for one rate: frames of 16 ms, their magnitudes, four convolutions, the LSTM, a probability."""
    net, frame = Graph(rng, f"_{rate}"), 256 * rate // 16000
    bins = frame // 2 + 1
    x = net.node("Unsqueeze", ["input", net.constant("channel", np.array([1]))], "samples")
    x = net.node("Pad", [x, net.constant("pads", np.array([0, 0, 0, 0, 0, frame // 4]))], "padded", mode="reflect")
    x = net.node("Conv", [x, net.weight("stft", 2 * bins, 1, frame, fan=frame)], "spectrum", strides=[frame // 2])
    net.node("Split", [x, net.constant("halves", np.array([bins, bins]))], ["real", "imaginary"], axis=1)
    squares = [net.node("Mul", [f"{p}_{rate}"] * 2, f"{p}_squared") for p in ("real", "imaginary")]
    x, channels = net.node("Sqrt", [net.node("Add", squares, "power")], "magnitude"), bins
    for k, (size, stride) in enumerate(CONVOLUTIONS):
        weights = [net.weight(f"conv{k}", size, channels, 3, fan=3 * channels), net.weight(f"bias{k}", size, fan=9)]
        x = net.node("Conv", [x, *weights], f"convolved{k}", strides=[stride], pads=[1, 1])
        x, channels = net.node("Relu", [x], f"features{k}"), size
    x = net.node("Transpose", [x], "steps", perm=[2, 0, 1])
    net.node("Split", ["state", net.constant("ones", np.array([1, 1]))], ["h", "c"], axis=0)
    _, *ends = net.lstm("lstm", x, HIDDEN, HIDDEN, [f"h_{rate}", f"c_{rate}"])
    net.node("Concat", ends, "stateN", axis=0)
    x = net.node("Relu", [net.node("Squeeze", [ends[0], net.constant("layer", np.array([0]))], "last")], "heard")
    x = net.node("Gemm", [x, net.weight("head", HIDDEN, 1, fan=HIDDEN)], "score")
    return net.graph({}, {net.node("Sigmoid", [x], "output"): ["batch", 1], f"stateN_{rate}": STATE})


def detector():
    """Return the whole model."""
    rng = np.random.default_rng(0)
    net = Graph(rng)
    is_wide = net.node("Equal", ["sr", net.constant("sixteen", np.array(16000))], "is_wide")
    branches = {"then_branch": branch(rng, 16000), "else_branch": branch(rng, 8000)}
    net.node("If", [is_wide], ["output", "stateN"], "by_rate", **branches)
    return net.model(
        {"input": ["batch", "window"], "state": STATE, "sr": "int64"}, {"output": ["batch", 1], "stateN": STATE}
    )


def stream(session, pieces):
    """Return the probabilities of all pieces, from a session."""
    state, found, rate = np.zeros((2, 1, HIDDEN), np.float32), [], np.array(16000)
    for piece in pieces:
        probability, state = session.run(None, {"input": piece[None], "state": state, "sr": rate})
        found.append(probability[0, 0])
    return [np.array(found)]


class Detector:
    """The branch for 16 kHz from the weights in the model: convolutions in NumPy, the LSTM in fastrnn."""

    def __init__(self, model):
        branches = {one.name: one.g for one in model.graph.node[-1].attribute}
        stored = {w.name.removesuffix("_16000"): numpy_helper.to_array(w) for w in branches["then_branch"].initializer}
        self.lstm = fastrnn.onnx.load(model, nodes=["lstm_16000"], frozen=True)["lstm_16000"]
        self.stft, self.head = stored["stft"][:, 0].T.copy(), stored["head"]
        self.convolutions = [
            (np.ascontiguousarray(stored[f"conv{k}"].transpose(2, 1, 0)), stored[f"bias{k}"], stride)
            for k, (_, stride) in enumerate(CONVOLUTIONS)
        ]

    def features(self, pieces):
        """Return what the LSTM reads, (N,128), of pieces (N,576)."""
        padded = np.concatenate([pieces, pieces[:, -65:-1][:, ::-1]], 1)
        spectrum = sliding_window_view(padded, 256, axis=1)[:, ::128] @ self.stft
        real, imaginary = np.split(spectrum, 2, axis=2)
        x = np.sqrt(real * real + imaginary * imaginary)
        for weights, bias, stride in self.convolutions:
            N, T, C = x.shape
            padded = np.zeros((N, T + 2, C), np.float32)
            padded[:, 1:-1] = x
            x = sum(padded[:, k : k + T : stride] @ weights[k] for k in range(3)) + bias
            np.maximum(x, 0, out=x)
        return x[:, 0]

    def whole(self, pieces):
        y, _ = self.lstm(self.features(pieces)[:, None])
        return [1 / (1 + np.exp(-(np.maximum(y[:, 0], 0) @ self.head)[:, 0]))]


def main():
    few = quick(__doc__)
    audio = np.random.default_rng(1).standard_normal(16000 * (2 if few else 60) // 512 * 512 + 64).astype(np.float32)
    pieces = sliding_window_view(audio, 576)[::512]
    model = detector()
    theirs, ours, ourselves = session(model), fastrnn.onnx.accelerate(model), Detector(model)
    print(ours.report)
    sides = {
        "ONNX Runtime, piece by piece": lambda: stream(theirs, pieces),
        "accelerate, piece by piece": lambda: stream(ours, pieces),
        "NumPy and the layer, all at once": lambda: ourselves.whole(pieces),
    }
    turns = 3 if few else 15
    by_turns(f"{len(pieces)} pieces", sides, turns)
    x = ourselves.features(pieces)[:, None]
    print(f"  its LSTM alone, all at once: {median_ms(lambda: ourselves.lstm(x), turns):.2f} ms")


if __name__ == "__main__":
    main()

"""A denoiser of DTLN's shape: two nets, each a pair of LSTMs and a mask, whose states are inputs and outputs.

The first masks the spectrum of a frame, the second features of the frame that comes out; frames of 32 ms overlap by
three quarters. Three ways: ONNX Runtime, frame by frame; `fastrnn.onnx.accelerate`, which stands in for it; and, for a
recording that is there as a whole, the files' LSTMs over all frames at once, the rest in NumPy. Sizes are those that
are published, the weights random.

    OMP_NUM_THREADS=1 python examples/models/dtln.py [--quick]
"""

import numpy as np
from comparing import Graph, by_turns, quick, session
from numpy.lib.stride_tricks import sliding_window_view
from onnx import numpy_helper

import fastrnn.onnx

FRAME, HOP, BINS, FEATURES, HIDDEN = 512, 128, 257, 256, 128
STATES = [1, 2, HIDDEN, 2]  # batch, LSTM, unit, h or c


def masked(net, x, size):
    """Add two LSTMs on (1,1,size) and a mask of as many; return the names of the mask and of the new states."""
    one, last = net.constant("one", np.array([1])), net.constant("last", np.array([3]))
    net.node("Split", ["states", net.constant("ones", np.array([1, 1]))], ["h4", "c4"], axis=3)
    for s in "hc":
        net.node("Squeeze", [f"{s}4", last], f"{s}3")
        net.node("Split", [f"{s}3", "ones"], [f"{s}_0", f"{s}_1"], axis=1)
    ends = []
    for k, features in enumerate((size, HIDDEN)):
        y, *end = net.lstm(f"lstm_{k}", x, features, HIDDEN, [f"h_{k}", f"c_{k}"])
        x = net.node("Squeeze", [y, one], f"y_{k}")
        ends.append(end)
    both = [
        net.node("Concat", list(parts), f"{s}_out", axis=1)
        for s, parts in zip("hc", zip(*ends, strict=True), strict=True)
    ]
    out = net.node("Concat", [net.node("Unsqueeze", [b, last], f"{b}4") for b in both], "states_out", axis=3)
    score = net.node("MatMul", [x, net.weight("mask_W", HIDDEN, size, fan=HIDDEN)], "product")
    return net.node("Sigmoid", [net.node("Add", [score, net.weight("mask_b", size, fan=HIDDEN)], "score")], "mask"), out


def models():
    """Return both nets."""
    rng = np.random.default_rng(0)
    first, second = Graph(rng), Graph(rng)
    outputs = dict.fromkeys(masked(first, "magnitude", BINS))
    one = first.model(
        {"magnitude": [1, 1, BINS], "states": STATES}, dict(zip(outputs, ([1, 1, BINS], STATES), strict=True))
    )
    code = second.node("MatMul", ["frame", second.weight("encoder", FRAME, FEATURES, fan=FRAME)], "code")
    scale = [second.constant(name, np.full(FEATURES, v, np.float32)) for name, v in (("gain", 1), ("shift", 0))]
    mask, out = masked(second, second.node("LayerNormalization", [code, *scale], "normal", epsilon=1e-7), FEATURES)
    kept = second.node("Mul", [code, mask], "kept")
    clean = second.node("MatMul", [kept, second.weight("decoder", FEATURES, FRAME, fan=FEATURES)], "clean")
    return one, second.model({"frame": [1, 1, FRAME], "states": STATES}, {clean: [1, 1, FRAME], out: STATES})


def add_up(frames):
    """Return the signal of frames that overlap."""
    signal = np.zeros(len(frames) * HOP + FRAME, np.float32)
    for k, frame in enumerate(frames):
        signal[k * HOP :][:FRAME] += frame
    return [signal]


def frame_by_frame(first, second, frames):
    states, clean = [np.zeros(STATES, np.float32)] * 2, []
    for frame in frames:
        spectrum = np.fft.rfft(frame)[None, None].astype(np.complex64)
        mask, states[0] = first.run(None, {"magnitude": np.abs(spectrum), "states": states[0]})
        heard = np.fft.irfft(spectrum * mask).astype(np.float32)
        out, states[1] = second.run(None, {"frame": heard, "states": states[1]})
        clean.append(out[0, 0])
    return add_up(clean)


class Layers:
    """Both nets from their files: the LSTMs in fastrnn, the rest in NumPy."""

    def __init__(self, *nets):
        self.lstms = [fastrnn.onnx.load(net, frozen=True).values() for net in nets]
        self.weights = [{w.name: numpy_helper.to_array(w) for w in net.graph.initializer} for net in nets]

    def mask(self, k, x):
        for lstm in self.lstms[k]:
            x, _ = lstm(x)
        return 1 / (1 + np.exp(-(x @ self.weights[k]["mask_W"] + self.weights[k]["mask_b"])))

    def __call__(self, frames):
        spectrum = np.fft.rfft(frames)[:, None].astype(np.complex64)
        heard = np.fft.irfft(spectrum * self.mask(0, np.abs(spectrum))).astype(np.float32)
        code = heard @ self.weights[1]["encoder"]
        normal = (code - code.mean(2, keepdims=True)) / np.sqrt(code.var(2, keepdims=True) + 1e-7)
        return add_up((code * self.mask(1, normal) @ self.weights[1]["decoder"])[:, 0])


def main():
    few = quick(__doc__)
    audio = np.random.default_rng(1).standard_normal(16000 * (1 if few else 10), dtype=np.float32)
    frames = sliding_window_view(audio, FRAME)[::HOP]
    nets = models()
    theirs, ours = [session(net) for net in nets], [fastrnn.onnx.accelerate(net) for net in nets]
    layers = Layers(*nets)
    sides = {
        "ONNX Runtime, frame by frame": lambda: frame_by_frame(*theirs, frames),
        "accelerate, frame by frame": lambda: frame_by_frame(*ours, frames),
        "NumPy and the layers, all at once": lambda: layers(frames),
    }
    by_turns(f"{len(frames)} frames", sides, 3 if few else 9)


if __name__ == "__main__":
    main()

"""Parity: is the number of ones so far odd? The answer hangs on every bit, and none may be forgotten or taken twice.

A layer that tracks this state gets sequences right that are longer than those it was trained on. An LSTM and an sLSTM
(Beck et al. 2024), with one head and with four, learn it side by side from sequences of up to 20 bits and are tested on
longer ones; a guess is right in 50%. A layer has learned it after the last training step whose loss is above 0.1.

    python examples/parity.py [--quick] [--plot FILE.png]
"""

import argparse

import numpy as np

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

HIDDEN, BATCH, LONGEST = 32, 64, 20
LAYERS = {
    "LSTM": lambda: fastrnn.LSTM(1, HIDDEN, rng=0),
    "LSTM, 4 heads": lambda: fastrnn.LSTM(1, HIDDEN, heads=4, rng=0),
    "sLSTM": lambda: fastrnn.sLSTM(1, HIDDEN, rng=0),
    "sLSTM, 4 heads": lambda: fastrnn.sLSTM(1, HIDDEN, heads=4, rng=0),
}


def sequences(rng, time, batch):
    """Return x (T,B,1), bits as -1 and 1, and whether the ones so far are odd, (T,B)."""
    bits = rng.integers(0, 2, (time, batch))
    return (2 * bits - 1)[..., None].astype(np.float32), bits.cumsum(0) % 2


def learn(layer, steps):
    """Train a layer and its read-out; return the read-out and the loss of every step."""
    read_out, rng, losses = fastrnn.Linear(HIDDEN, 2, rng=1), np.random.default_rng(2), []
    adam = fastrnn.Adam([layer.parameters(), read_out.parameters()], lr=1e-2)
    for _ in range(steps):
        x, odd = sequences(rng, rng.integers(1, LONGEST + 1), BATCH)
        y, _, tape = layer.forward(x)
        logits, read_out_tape = read_out.forward(y)
        loss, dlogits = fastrnn.cross_entropy(logits, odd)
        d_read_out = read_out.backward(read_out_tape, dlogits)
        grads = [layer.backward(tape, d_read_out.x).parameters, d_read_out.parameters]
        fastrnn.clip_grad_norm(grads, 1.0)
        adam.step(grads)
        losses.append(loss)
    return read_out, losses


def right(layer, read_out, time):
    """Which part of the answers to new sequences is right."""
    x, odd = sequences(np.random.default_rng(3), time, 500)
    return (read_out(layer(x)[0]).argmax(-1) == odd).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for fewer steps")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the loss in training (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    steps, lengths = (200, (20, 40)) if arguments.quick else (600, (20, 40, 100, 300))
    print("Right answers by the length of new sequences; those of training have up to 20 bits\n")
    print(f"{'':16}{'parameters':>11}{'learned after':>20}" + "".join(f"{length:6} bits" for length in lengths))
    curves = {}
    for name, make in LAYERS.items():
        layer = make()
        read_out, curves[name] = learn(layer, steps)
        parts = [right(layer, read_out, length) for length in lengths]
        count = sum(p.size for p in layer.parameters().values())
        learned = 1 + max(step for step, loss in enumerate(curves[name]) if loss > 0.1)
        print(f"{name:16}{count:11,}{learned:14} steps" + "".join(f"{part:11.1%}" for part in parts))
    if arguments.plot:
        picture(curves).savefig(arguments.plot, dpi=70)


def picture(curves):
    """The losses of the first steps, each the mean of five."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, losses in ((name, every[:200]) for name, every in curves.items()):
        axes.plot(5 * np.arange(len(losses) // 5), np.reshape(losses, (-1, 5)).mean(1), label=name)
    axes.set(xlabel="step", ylabel="cross entropy", title="Parity of up to 20 bits")
    axes.legend()
    return figure


if __name__ == "__main__":
    main()

"""How far gradients reach back, and what that means for learning.

The first table has the norm of dL/dh at several distances from a loss at the last step, for RNN, GRU and LSTM as they
start, and with the remedies of the literature. Then each of these layers is trained to name, at the end of a sequence,
the symbol at its start; noise comes between. The second table says how many new sequences it gets right. A layer whose
gradient does not reach the start can only guess, and gets one in four right.

    python examples/vanishing_gradients.py [--quick] [--plot FILE.png]
"""

import argparse

import numpy as np

import fastrnn
from fastrnn.kit import flow
from fastrnn.lm.pictures import require_matplotlib

SYMBOLS, HIDDEN = 4, 32


def sequences(rng, time, batch):
    """Return x (T,B,SYMBOLS + 1), a symbol first and then noise in the last feature, and the symbols (B,)."""
    symbols = rng.integers(0, SYMBOLS, batch)
    x = np.zeros((time, batch, SYMBOLS + 1), np.float32)
    x[0, np.arange(batch), symbols] = 1
    x[1:, :, -1] = rng.standard_normal((time - 1, batch))
    return x, symbols


def learn(start, distance, steps):
    """Train a layer to name the symbol so many steps ago, and return which part of new sequences it gets right."""
    layer = start.cell(SYMBOLS + 1, HIDDEN, rng=0, **start.options)
    layer.initialise(start.recurrent, start.forget_bias, rng=0)
    read_out, rng = fastrnn.Linear(HIDDEN, SYMBOLS, rng=1), np.random.default_rng(2)
    adam = fastrnn.Adam([layer.parameters(), read_out.parameters()], lr=3e-3)
    for _ in range(steps):
        x, symbols = sequences(rng, distance + 1, 64)
        y, _, tape = layer.forward(x)
        logits, read_out_tape = read_out.forward(y[-1])
        _, dlogits = fastrnn.cross_entropy(logits, symbols)
        d_read_out = read_out.backward(read_out_tape, dlogits)
        dy = np.zeros_like(y)
        dy[-1] = d_read_out.x
        grads = [layer.backward(tape, dy).parameters, d_read_out.parameters]
        fastrnn.clip_grad_norm(grads, 1.0)
        adam.step(grads)
    x, symbols = sequences(rng, distance + 1, 1000)
    return (read_out(layer(x)[0][-1]).argmax(-1) == symbols).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="measure less, and train fewer layers")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the norms (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    size, time, batch = (32, 60, 16) if arguments.quick else (64, 101, 32)
    flows = flow.compare(hidden_size=size, time=time, sequences=batch, seed=0)
    print("Norm of dL/dh, 1 at the loss: median over the sequences, and x their 90th over their 10th percentile\n")
    print(flow.table(flows))

    distances, steps = ((5, 50), 150) if arguments.quick else ((5, 20, 50), 400)
    print("\nNew sequences in which the first symbol is named after so many steps; a guess is right in 25%\n")
    print(" " * 20 + "".join(f"{distance:7} steps" for distance in distances))
    for name, start in flow.STARTS.items():
        if arguments.quick and name not in ("RNN", "RNN, ReLU, identity", "LSTM"):
            continue
        right = [learn(start, distance, steps) for distance in distances]
        print(f"{name:20}" + "".join(f"{part:13.0%}" for part in right))
        assert right[0] > 0.9
        if flows[name].median[50] < 1e-9:  # out of reach
            assert right[-1] < 0.4
        if flows[name].median[50] > 1e-2:
            assert right[-1] > 0.9
    if arguments.plot:
        figure = flow.picture(flows)
        figure.set_size_inches(8, 3.5)
        figure.savefig(arguments.plot, dpi=70)


if __name__ == "__main__":
    main()

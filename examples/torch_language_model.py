"""A character language model in PyTorch, trained with torch.nn's layers and after `fastrnn.torch.accelerate`.

Two copies of a model start from the same weights and see the same batches of the text that Python ships. One of them is
accelerated. They take turns, step by step, so that whatever else the machine does slows both down. The program
compares their losses, on the batches and on the last tenth of the text, which neither is trained on, and their speed.

    python examples/torch_language_model.py [--quick] [--threads N] [--plot FILE.png]
"""

import argparse
import copy
import math
import time

import numpy as np
import torch
from torch import nn

import fastrnn.torch
from fastrnn.lm.pictures import require_matplotlib
from fastrnn.lm.text import Characters, builtin_text

T, B, HIDDEN = 64, 32, 128


class LanguageModel(nn.Module):
    def __init__(self, characters, cell):
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.recurrent = getattr(nn, cell)(32, HIDDEN)
        self.read_out = nn.Linear(HIDDEN, characters)

    def loss(self, ids):
        """Return the mean loss for every character of ids (T+1,B) but the first, in nats."""
        logits = self.read_out(self.recurrent(self.embedding(ids[:-1]))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())


def train_step(model, optimizer, ids):
    """Return the loss before the step, and the seconds that it took."""
    begin = time.perf_counter()
    loss = model.loss(ids)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), time.perf_counter() - begin


def compare(cell, ids, characters, steps):
    """Return losses and seconds (2,steps), and the losses on new text (2,): of torch.nn, and of fastrnn."""
    torch.manual_seed(0)
    models = [LanguageModel(characters, cell)]
    models.append(copy.deepcopy(models[0]))
    print(fastrnn.torch.accelerate(models[1]))
    optimizers = [torch.optim.Adam(model.parameters(), lr=5e-3) for model in models]
    known, new = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
    losses, seconds, rng = np.empty((2, steps)), np.empty((2, steps)), np.random.default_rng(0)
    for step in range(steps):
        starts = torch.from_numpy(rng.integers(0, len(known) - T, B))
        batch = known[starts + torch.arange(T + 1)[:, None]]
        for i in (0, 1) if step % 2 else (1, 0):
            losses[i, step], seconds[i, step] = train_step(models[i], optimizers[i], batch)
    with torch.no_grad():
        after = [model.loss(new[: len(new) // B * B].reshape(B, -1).T).item() for model in models]
    return losses, seconds, after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for a few steps")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the losses over time (needs matplotlib)")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of both (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.plot:
        require_matplotlib()
    text, name = builtin_text()
    vocabulary = Characters(text)
    ids = torch.from_numpy(vocabulary.encode(text))
    print(f"{name}: {len(ids):,} characters; {arguments.threads} thread(s)")
    curves = {}
    for cell in ("LSTM", "GRU"):
        losses, seconds, after = compare(cell, ids, len(vocabulary), 10 if arguments.quick else 300)
        speed = T * B / np.median(seconds, axis=1)
        bits = [loss / math.log(2) for loss in after]
        print(f"  bits per character of new text: torch.nn {bits[0]:.4f}, fastrnn {bits[1]:.4f}")
        difference = np.abs(losses[0] - losses[1])
        print(f"  losses differ by at most {difference[:100].max():.1e} in 100 steps, {difference.max():.1e} in all")
        ratio = np.median(seconds[0] / seconds[1])
        print(f"  {cell}: torch.nn {speed[0]:,.0f} tokens/s, fastrnn {speed[1]:,.0f} tokens/s, ratio {ratio:.2f}")
        curves[cell] = losses, np.cumsum(seconds, axis=1)
        assert np.allclose(losses[0, :10], losses[1, :10], rtol=1e-4)  # rounding; training amplifies it later
        assert abs(after[0] - after[1]) < 0.02 * after[0]
        assert losses[1, -1] < losses[1, 0]
    if arguments.plot:
        draw(arguments.plot, curves)


def draw(path, curves):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axis, (cell, (losses, seconds)) in zip(figure.subplots(1, 2, sharey=True), curves.items(), strict=True):
        for i, (name, colour) in enumerate((("torch.nn", "#D55E00"), ("fastrnn", "#0072B2"))):
            axis.plot(seconds[i], losses[i] / math.log(2), color=colour, label=name)
        axis.set(title=cell, xlabel="seconds of training")
        axis.grid(alpha=0.3)
    axis.legend()
    figure.axes[0].set_ylabel("bits per character")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

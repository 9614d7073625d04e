"""DistributedDataParallel in PyTorch: two processes train one model whose LSTM fastrnn computes.

The task is the adding problem (Hochreiter and Schmidhuber 1997): a sequence of numbers from 0 to 1, two of them marked,
and the model is to give the sum of the two. Every process draws sequences of its own. DistributedDataParallel averages
the gradients of all processes, so their parameters stay equal. The baseline always answers 1, the mean of the sums.

    torchrun --nproc-per-node=2 examples/torch_ddp.py [--quick] [--plot FILE.png]
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn

import fastrnn.torch
from fastrnn.lm.pictures import require_matplotlib

T, B, HIDDEN = 20, 64, 64


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(2, HIDDEN)
        self.read_out = nn.Linear(HIDDEN, 1)

    def forward(self, x):
        return self.read_out(self.recurrent(x)[0][-1])[:, 0]


def sequences(generator, batch):
    """Return x (T,B,2), numbers and marks, and the sums (B,) of the marked numbers: one in either half."""
    x = torch.zeros(T, batch, 2)
    x[..., 0] = torch.rand(T, batch, generator=generator)
    for half in (0, T // 2):
        x[half + torch.randint(T // 2, (batch,), generator=generator), torch.arange(batch), 1] = 1
    return x, x.prod(-1).sum(0)


def mean_over_processes(value):
    tensor = torch.tensor(float(value))
    dist.all_reduce(tensor)
    return tensor.item() / dist.get_world_size()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train for fewer steps")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the loss of each process (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    if "RANK" not in os.environ:
        parser.error("start it with: torchrun --nproc-per-node=2 examples/torch_ddp.py")
    torch.set_num_threads(1)  # a process has one of two processors
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)  # different weights: DistributedDataParallel starts from those of process 0
    model = Adder()
    report = fastrnn.torch.accelerate(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=5e-3)
    generator, losses = torch.Generator().manual_seed(1 + rank), []
    for _ in range(400 if arguments.quick else 1000):
        x, sums = sequences(generator, B)
        loss = nn.functional.mse_loss(parallel(x), sums)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parallel.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())

    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyones = [torch.empty_like(mine) for _ in range(processes)]
    dist.all_gather(everyones, mine)
    x, sums = sequences(torch.Generator().manual_seed(1000), 2000)
    with torch.no_grad():
        error = nn.functional.mse_loss(model(x), sums).item()
    baseline = nn.functional.mse_loss(torch.ones_like(sums), sums).item()
    first, last = (mean_over_processes(sum(some) / len(some)) for some in (losses[:20], losses[-20:]))
    curves = [None] * processes
    dist.all_gather_object(curves, losses)
    dist.destroy_process_group()
    if rank == 0:
        equal = all(torch.equal(mine, other) for other in everyones)
        print(report)
        print(f"loss {first:.4f} in the first 20 steps, {last:.4f} in the last 20")
        print(f"squared error for new sequences: {error:.4f}, of always answering 1: {baseline:.4f}")
        print(f"parameters of {processes} processes: {'equal' if equal else 'different'}")
        if arguments.plot:
            draw(arguments.plot, curves, baseline)
        assert equal
        assert last < first
        assert error < 0.1 * baseline


def draw(path, curves, baseline):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    for process, (losses, colour) in enumerate(zip(curves, ("#0072B2", "#D55E00"), strict=False)):
        means = torch.tensor(losses).unfold(0, 10, 10).mean(1)
        axis.plot(torch.arange(len(means)) * 10 + 5, means, color=colour, label=f"process {process}")
    axis.axhline(baseline, color="black", linestyle="--", linewidth=1, label="always 1")
    axis.set(xlabel="step", ylabel="squared error", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

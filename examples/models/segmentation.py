"""Who speaks when, of pyannote's shape: four LSTMs in both directions behind learned filters, in PyTorch.

Ten seconds at 16 kHz become 589 frames of 60 features; four layers with 128 units each way, two products and one of
seven combinations of speakers follow. `fastrnn.torch.accelerate` replaces the LSTMs in a copy of the module, PyTorch
keeps the rest; a third copy has its LSTM from a file of the module's weights, for programs without PyTorch. Sizes are
those that are published, the weights random.

    OMP_NUM_THREADS=1 python examples/models/segmentation.py [--quick]
"""

import copy
import tempfile
from pathlib import Path

import torch
from comparing import by_turns, quick
from torch import nn

import fastrnn
import fastrnn.torch


def filters(before, channels, width, stride=1):
    """A convolution, the greatest of three, and a norm."""
    norm = nn.InstanceNorm1d(channels, affine=True)
    return [nn.Conv1d(before, channels, width, stride), nn.MaxPool1d(3), norm, nn.LeakyReLU()]


class Segmentation(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [*filters(1, 80, 251, 10), *filters(80, 60, 5), *filters(60, 60, 5)]
        self.features = nn.Sequential(nn.InstanceNorm1d(1, affine=True), *layers)
        self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        leaky = nn.LeakyReLU()
        self.read_out = nn.Sequential(nn.Linear(256, 128), leaky, nn.Linear(128, 128), leaky, nn.Linear(128, 7))

    def forward(self, audio):
        y, _ = self.lstm(self.features(audio).transpose(1, 2))
        return self.read_out(y).log_softmax(-1)


@torch.inference_mode()
def main():
    few = quick(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = Segmentation().eval()
    ours = copy.deepcopy(module)
    print(fastrnn.torch.accelerate(ours))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(module.state_dict(), Path(folder, "segmentation.pt"))
        layer = fastrnn.load(Path(folder, "segmentation.pt"), "lstm", {"batch_first": True}).freeze()
    audio = torch.randn(1, 1, 16000 * (2 if few else 10))
    sides = {"torch": lambda: [module(audio).numpy()], "accelerate": lambda: [ours(audio).numpy()]}
    turns = 3 if few else 9
    by_turns("the whole module", sides, turns)
    x = module.features(audio).transpose(1, 2).contiguous()
    alone = {"torch": lambda: [module.lstm(x)[0].numpy()], "fastrnn, from the file": lambda: [layer(x.numpy())[0]]}
    by_turns(f"its LSTM, {x.shape[1]} frames", alone, turns)


if __name__ == "__main__":
    main()

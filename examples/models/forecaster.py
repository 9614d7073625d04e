"""Many series of different lengths, after the model that joined Holt's smoothing and an LSTM (ES-RNN).

Each series has a level and a trend by Holt's two equations. What an LSTM reads at each step are the last values over
the level, in logarithms; what it says, times the last level, is the forecast of the next 14. Series are 30 to 120
values long: PyTorch packs them, fastrnn is told the lengths. Two layers of 40 units, the weights random.

    OMP_NUM_THREADS=1 python examples/models/forecaster.py [--quick]
"""

import numpy as np
import torch
from comparing import by_turns, quick
from torch import nn

import fastrnn

WINDOW, AHEAD, HIDDEN, LAYERS = 14, 14, 40, 2
SHORT, LONG = 30, 120


def holt(values, lengths, level_weight=0.3, trend_weight=0.1):
    """Return the levels (B,T) by Holt's equations, each constant past the end of its series."""
    level, trend = values[:, 0], values[:, 1] - values[:, 0]
    levels = [level]
    for t in range(1, values.shape[1]):
        new = level_weight * values[:, t] + (1 - level_weight) * (level + trend)
        trend = np.where(t < lengths, trend_weight * (new - level) + (1 - trend_weight) * trend, trend)
        level = np.where(t < lengths, new, level)
        levels.append(level)
    return np.stack(levels, 1)


def series(count):
    """Return random series (B,T), 1 past their ends, and their lengths."""
    rng = np.random.default_rng(0)
    steps = 0.01 * rng.standard_normal((count, LONG)) + rng.normal(0, 0.002, (count, 1))
    lengths = rng.integers(SHORT, LONG + 1, count)
    values = 100 * np.exp(np.cumsum(steps, 1))
    return np.where(np.arange(LONG) < lengths[:, None], values, 1), lengths


def main():
    few = quick(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    lstm, read_out = nn.LSTM(WINDOW, HIDDEN, LAYERS, batch_first=True), nn.Linear(HIDDEN, AHEAD)
    layer, ours_out = fastrnn.LSTM(WINDOW, HIDDEN, LAYERS, batch_first=True), fastrnn.Linear(HIDDEN, AHEAD)
    layer.load_state_dict(lstm.state_dict())
    ours_out.load_state_dict(read_out.state_dict())
    layer = layer.freeze()

    values, lengths = series(20 if few else 1000)
    levels = holt(values, lengths)
    windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=1)
    x = np.log(windows / levels[:, WINDOW - 1 :, None]).astype(np.float32)
    steps = lengths - WINDOW + 1
    last = levels[:, -1:].astype(np.float32)

    @torch.inference_mode()
    def theirs():
        packed = nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(steps), True, False)
        return [last * np.exp(read_out(lstm(packed)[1][0][-1]).numpy())]

    def ours():
        return [last * np.exp(ours_out(layer(x, lengths=steps)[1].h[-1]))]

    sides = {"torch, packed": theirs, "fastrnn, lengths": ours}
    by_turns(f"{len(x)} series of {SHORT} to {LONG} values", sides, 3 if few else 9)


if __name__ == "__main__":
    main()

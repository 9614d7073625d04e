"""Forecasting daily sales two weeks ahead, from histories of 8 to 40 weeks.

The program synthesises shops. Each has a level that wanders, a weekly pattern, disturbances that last some days, and
days on which it is closed. A GRU reads a history and predicts, for each of the next 14 days, the difference from the
same weekday of the last week. That weekday's value is itself the first baseline (the seasonal naive forecast); the mean
of this weekday over the last four weeks is the second. The test is on shops that were not trained on.

MASE is the mean error, divided by that of the seasonal naive forecast within the history (Hyndman and Koehler 2006).

    python examples/forecasting.py [--quick] [--plot FILE.png]
"""

import argparse

import numpy as np

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

WEEK, AHEAD, HIDDEN = 7, 14, 48
NEXT = np.arange(1, AHEAD + 1)
SAME_WEEKDAY = NEXT - WEEK * -(-NEXT // WEEK)  # -6, -5, ..., 0 and again: where the naive forecasts are, in the past


def shop(rng):
    """Return the sales of each day: a history and the AHEAD days after it."""
    days = WEEK * rng.integers(8, 41) + AHEAD
    level = np.cumsum(rng.normal(rng.normal(0, 0.002), 0.01, days))
    disturbance = np.zeros(days)
    for day in range(1, days):
        disturbance[day] = 0.8 * disturbance[day - 1] + rng.normal(0, 0.08)
    season, noise = np.tile(rng.normal(0, 0.3, WEEK), days // WEEK), rng.normal(0, 0.05, days)
    return 100 * np.exp(level + season + disturbance + noise) * (rng.random(days) > 0.02)


def padded(shops):
    """Return the sales (T,B), each shop's as parts of its mean in the first four weeks, and the shops' days (B,)."""
    days = np.array([len(sales) for sales in shops])
    series = np.zeros((max(days), len(shops)), np.float32)
    for b, sales in enumerate(shops):
        series[: len(sales), b] = sales / sales[: 4 * WEEK].mean()
    return series, days


def inputs(series):
    """Return x (T,B,2): the sales and their change from the week before."""
    return np.stack([series, series - np.pad(series, ((WEEK, 0), (0, 0)))[:-WEEK]], axis=-1)


def train(shops, steps):
    series, days = padded(shops)
    x, t = inputs(series), np.arange(WEEK, len(series) - AHEAD)
    differences = series[t[:, None] + NEXT] - series[t[:, None] + SAME_WEEKDAY]  # (T,AHEAD,B), known from day 8 on
    targets = np.zeros((*series.shape, AHEAD), np.float32)
    targets[t] = differences.swapaxes(1, 2)
    known = (np.arange(len(series))[:, None] >= WEEK) & (np.arange(len(series))[:, None] + AHEAD < days)
    gru, read_out = fastrnn.GRU(2, HIDDEN, rng=0), fastrnn.Linear(HIDDEN, AHEAD, rng=1)
    adam, rng = fastrnn.Adam([gru.parameters(), read_out.parameters()]), np.random.default_rng(2)
    for step in range(steps):
        some = rng.choice(len(shops), 64, replace=False)
        y, _, tape = gru.forward(x[:, some], lengths=days[some] - AHEAD)
        found, read_out_tape = read_out.forward(y)
        dfound = np.sign(found - targets[:, some]) * known[:, some, None] / known[:, some].sum()  # of the mean error
        d_read_out = read_out.backward(read_out_tape, dfound.astype(np.float32))
        grads = [gru.backward(tape, d_read_out.x).parameters, d_read_out.parameters]
        fastrnn.clip_grad_norm(grads, 1.0)
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-2)
        adam.step(grads)
    return gru, read_out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less and test on less")
    parser.add_argument("--plot", metavar="FILE.png", help="draw two forecasts (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    rng, (known, new, steps) = np.random.default_rng(0), (300, 200, 200) if arguments.quick else (1000, 500, 600)
    gru, read_out = train([shop(rng) for _ in range(known)], steps)

    series, days = padded([shop(rng) for _ in range(new)])
    end, b = days - AHEAD - 1, np.arange(new)  # the last days that are known
    _, state = gru(inputs(series), lengths=end + 1)  # reads no day after them
    past = end[:, None] + SAME_WEEKDAY
    naive = series[past, b[:, None]]
    forecasts = {
        "seasonal naive": naive,
        "mean of four weeks": np.mean([series[past - WEEK * k, b[:, None]] for k in range(4)], axis=0),
        "GRU": naive + read_out(state[0]),
    }
    truth = series[end[:, None] + NEXT, b[:, None]]
    scale = [np.abs(series[WEEK : e + 1, i] - series[: e + 1 - WEEK, i]).mean() for i, e in enumerate(end)]
    mase = {name: np.mean(np.abs(f - truth).mean(1) / scale) for name, f in forecasts.items()}
    print("MASE for new shops: " + ", ".join(f"{name} {value:.3f}" for name, value in mase.items()))
    print(f"mean error of the GRU over that of the seasonal naive forecast: {mase['GRU'] / mase['seasonal naive']:.2f}")
    if arguments.plot:
        draw(arguments.plot, [series[e - 20 : e + 1, i] for i, e in enumerate(end[:2])], truth, forecasts)
    assert mase["GRU"] < min(mase["seasonal naive"], mase["mean of four weeks"])


def draw(path, histories, truth, forecasts):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for i, (axis, history) in enumerate(zip(axes, histories, strict=True)):
        axis.plot(np.arange(1 - len(history), AHEAD + 1), [*history, *truth[i]], ".-", color="black", label="sales")
        for name, colour in (("seasonal naive", "#E69F00"), ("GRU", "#0072B2")):
            axis.plot(NEXT, forecasts[name][i], color=colour, label=name)
        axis.axvspan(0.5, AHEAD + 0.5, color="0.93")
        axis.set(ylabel=f"shop {i + 1}", xlim=(0.5 - len(history), AHEAD + 0.5), xticks=range(-14, 15, 7))
    axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    axes[1].set_xlabel("days after the last one known")
    figure.savefig(path, dpi=75)


if __name__ == "__main__":
    main()

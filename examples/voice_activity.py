"""Streaming voice activity detection: does somebody speak in this frame of 10 ms?

The program synthesises recordings: voiced sounds with pauses, in noise whose level drifts, with knocks that are louder
than the voice. A GRU is trained on whole recordings. It then hears new recordings frame by frame, as in a call. The
baseline compares the energy with its minimum in the last second; its threshold is the best one for the training data.

    python examples/voice_activity.py [--quick] [--plot FILE.png]
"""

import argparse
import time

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

RATE, SECONDS, HOP, WINDOW, BANDS, HIDDEN = 8000, 4, 80, 160, 16, 32


def record(rng):
    """Return frames of audio (T,WINDOW), one every HOP samples, and whether somebody speaks in each (T,)."""
    audio, speaks, at = np.zeros(SECONDS * RATE), np.zeros(SECONDS * RATE, bool), 0
    while (at := at + int(rng.uniform(0.15, 0.7) * RATE)) < len(audio):  # a pause, then a voiced sound
        t = np.arange(min(int(rng.uniform(0.15, 0.8) * RATE), len(audio) - at)) / RATE
        pitch = rng.uniform(90, 240) * np.exp(0.1 * np.sin(2 * np.pi * rng.uniform(1, 4) * t))
        phase, formants = 2 * np.pi * np.cumsum(pitch) / RATE, rng.uniform((300, 1000), (800, 2200))
        for harmonic in range(1, int(3900 / pitch.max())):
            loudness = sum(np.exp(-(((harmonic * pitch - formant) / 300) ** 2)) for formant in formants)
            audio[at : at + len(t)] += (loudness + 0.02) * np.cos(harmonic * phase)
        audio[at : at + len(t)] *= np.minimum(np.minimum(t, t[-1] - t) / 0.02, 1)  # fades in and out
        speaks[at : at + len(t)] = True
        at += len(t)
    noise = np.convolve(rng.standard_normal(len(audio)), rng.standard_normal(4), "same")
    noise *= 10 ** (np.interp(np.arange(len(audio)) / RATE, np.arange(5), rng.normal(0, 5, 5)) / 20)
    noise *= audio.std() / noise.std() * 10 ** (-rng.uniform(0, 10) / 20)  # 0 to 10 dB below the voice
    for start in rng.integers(0, len(audio) - 400, 4):
        noise[start : start + 400] += rng.normal(0, 3 * audio.std(), 400)  # a knock
    frames, spoken = (sliding_window_view(a, WINDOW)[::HOP] for a in (audio + noise, speaks))
    return frames, spoken[:, WINDOW // 2]


def bands(frames):
    """Return the log energies (...,BANDS), mostly between -2 and 2, of frames (...,WINDOW)."""
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))[..., 1:]) ** 2
    return (np.log(power.reshape(*power.shape[:-1], BANDS, -1).sum(-1) + 1e-3) / 4).astype(np.float32)


def above_floor(frames):
    """Return the baseline's energy (T,) in dB, averaged over 5 frames, above its minimum of the last second."""
    energy = np.pad(10 * np.log10((frames**2).mean(-1) + 1e-9), (4, 0), "edge")
    smooth = sliding_window_view(energy, 5).mean(-1)
    return smooth - sliding_window_view(np.pad(smooth, (99, 0), "edge"), 100).min(-1)


def train(x, speaks, steps):
    gru, read_out = fastrnn.GRU(BANDS, HIDDEN, rng=0), fastrnn.Linear(HIDDEN, 1, rng=1)
    adam, rng = fastrnn.Adam([gru.parameters(), read_out.parameters()]), np.random.default_rng(2)
    for step in range(steps):
        some = rng.choice(x.shape[1], 32, replace=False)
        y, _, tape = gru.forward(x[:, some])
        logits, read_out_tape = read_out.forward(y)
        _, dlogits = fastrnn.binary_cross_entropy(logits[..., 0], speaks[:, some])
        d_read_out = read_out.backward(read_out_tape, dlogits[..., None])
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-2)
        adam.step([gru.backward(tape, d_read_out.x).parameters, d_read_out.parameters])
    return gru.freeze(), read_out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less and test on less")
    parser.add_argument("--plot", metavar="FILE.png", help="draw one recording (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    rng, (known, new, steps) = np.random.default_rng(0), (48, 4, 80) if arguments.quick else (240, 24, 400)
    frames, speaks = zip(*(record(rng) for _ in range(known + new)), strict=True)
    x, energy, speaks = np.stack([bands(f) for f in frames], 1), np.stack([*map(above_floor, frames)]), np.stack(speaks)
    fast, read_out = train(x[:, :known], speaks[:known].T, steps)
    threshold = max(np.arange(0, 30, 0.25), key=lambda limit: ((energy[:known] > limit) == speaks[:known]).mean())

    logits, seconds, y = np.empty(speaks[known:].shape), [], np.empty((1, HIDDEN), np.float32)
    for recording, found in zip(frames[known:], logits, strict=True):
        state = np.zeros((1, 1, HIDDEN), np.float32)
        for t, frame in enumerate(recording):
            begin = time.perf_counter()
            x_t = bands(frame)[None]
            before = time.perf_counter()
            fast.step(x_t, state, out=y, state_out=state)  # allocates nothing
            after = time.perf_counter()
            found[t] = read_out(y)[0, 0]
            seconds.append((after - before, time.perf_counter() - begin))
    for name, column in zip(("step of the GRU", "whole frame"), 1e6 * np.array(seconds).T, strict=True):
        print("{:15}  p50 {:.1f} us, p99 {:.1f} us, max {:.1f} us".format(name, *np.percentile(column, (50, 99, 100))))
    ours, theirs = ((found == speaks[known:]).mean() for found in (logits > 0, energy[known:] > threshold))
    print(f"right frames of new recordings: GRU {ours:.1%}, energy threshold {theirs:.1%}")
    if arguments.plot:
        curves = {"loudest sample": np.abs(frames[known]).max(1), "energy, dB": energy[known]}
        curves["GRU: P(voice)"] = 1 / (1 + np.exp(-logits[0]))
        draw(arguments.plot, curves, (np.nan, threshold, 0.5), speaks[known])
    assert ours > theirs + 0.05


def draw(path, curves, limits, speaks):
    from matplotlib.figure import Figure

    figure, t = Figure(figsize=(8, 4.5), layout="constrained"), np.arange(len(speaks)) * HOP / RATE
    for axis, label, limit in zip(figure.subplots(3, 1, sharex=True), curves, limits, strict=True):
        axis.plot(t, curves[label], color="#0072B2", linewidth=1)
        axis.fill_between(t, 0, 1, where=speaks, transform=axis.get_xaxis_transform(), color="#009E73", alpha=0.25)
        axis.axhline(limit, color="black", linestyle="--", linewidth=1)
        axis.set(ylabel=label, xlim=(0, t[-1]))
    axis.set_xlabel("seconds of a new recording; somebody speaks where the background is green")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

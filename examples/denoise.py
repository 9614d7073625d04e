"""Denoising music frame by frame, as a hearing aid has to.

The program synthesises melodies of plucked strings, and noise that comes in gusts. A GRU reads the spectrum of each
frame of 32 ms, one every 16 ms, and gives a gain from 0 to 1 for every frequency. The baseline is a Wiener filter that
is told the average spectrum of the noise in each recording. Both are tested on new melodies.

    python examples/denoise.py [--quick] [--plot FILE.png]
"""

import argparse
import time

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastrnn
from fastrnn.lm.pictures import require_matplotlib

RATE, WINDOW, HOP, BINS, SAMPLES, HIDDEN = 8000, 256, 128, 129, 25600, 96
SHAPE = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)  # the squares of overlapping windows sum to 1


def record(rng):
    """Return a melody and the noise in it, each (SAMPLES,)."""
    t, melody, noise = np.arange(SAMPLES) / RATE, np.zeros(SAMPLES), np.zeros(SAMPLES)
    for start in np.arange(0, t[-1], rng.uniform(0.15, 0.35)):
        since = np.maximum(t - start, 0)
        pitch = 220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12, 14, 16]) / 12)
        for harmonic in range(1, 8):
            decay = np.exp(-since * (3 + harmonic)) * np.minimum(since / 0.005, 1)
            melody += decay * np.sin(2 * np.pi * harmonic * pitch * since) / harmonic
    for _ in range(4):  # gusts
        gust = np.convolve(rng.standard_normal(SAMPLES), rng.standard_normal(6), "same")
        noise += gust * np.exp(-(((t - rng.uniform(0, t[-1])) / rng.uniform(0.1, 0.6)) ** 2))
    noise += 0.1 * noise.std() * rng.standard_normal(SAMPLES)
    return melody / melody.std(), noise / noise.std() * 10 ** (-rng.uniform(-5, 5) / 20)  # -5 to 5 dB


def spectra(audio):
    """Return the spectrum (T,BINS) of every frame."""
    return np.fft.rfft(sliding_window_view(np.pad(audio, HOP), WINDOW)[::HOP] * SHAPE)


def sound(spectrum):
    """Return the audio whose frames have these spectra, by adding the frames up where they overlap."""
    audio = np.zeros((len(spectrum) + 1) * HOP)
    for t, frame in enumerate(np.fft.irfft(spectrum) * SHAPE):
        audio[t * HOP : t * HOP + WINDOW] += frame
    return audio[HOP:-HOP]


def features(spectrum):
    return (np.log(np.abs(spectrum) ** 2 + 1e-3) / 4).astype(np.float32)


def snr(clean, heard):
    """Return the ratio of signal to noise in dB."""
    return 10 * np.log10((clean**2).sum() / ((heard - clean) ** 2).sum())


def train(clean, noisy, steps):
    """Learn gains g that minimise |g noisy - clean|^2 over all frames and frequencies; clean and noisy (T,B,BINS)."""
    gru, read_out = fastrnn.GRU(BINS, HIDDEN, rng=0), fastrnn.Linear(HIDDEN, BINS, rng=1)
    adam, rng, x = fastrnn.Adam([gru.parameters(), read_out.parameters()]), np.random.default_rng(2), features(noisy)
    power, agreement = np.abs(noisy) ** 2, (clean * noisy.conj()).real
    for step in range(steps):
        some = rng.choice(x.shape[1], 16, replace=False)
        y, _, tape = gru.forward(x[:, some])
        logits, read_out_tape = read_out.forward(y)
        gain = 1 / (1 + np.exp(-logits))
        d_gain = 2 * (gain * power[:, some] - agreement[:, some]) / power[:, some].mean() / gain.size
        d_read_out = read_out.backward(read_out_tape, (d_gain * gain * (1 - gain)).astype(np.float32))
        adam.lr = fastrnn.learning_rate(step, steps, peak=5e-3)
        adam.step([gru.backward(tape, d_read_out.x).parameters, d_read_out.parameters])
    return gru.freeze(), read_out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="train less and test on less")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the spectra of one melody (needs matplotlib)")
    arguments = parser.parse_args()
    if arguments.plot:
        require_matplotlib()
    rng, (known, new, steps) = np.random.default_rng(0), (32, 4, 60) if arguments.quick else (160, 16, 400)
    recorded = [(spectra(melody), spectra(melody + noise)) for melody, noise in (record(rng) for _ in range(known))]
    fast, read_out = train(*np.stack(recorded, axis=2), steps)
    found, seconds, y = [], [], np.empty((1, HIDDEN), np.float32)
    for melody, noise in (record(rng) for _ in range(new)):
        heard, state = spectra(melody + noise), np.zeros((1, 1, HIDDEN), np.float32)
        denoised = np.empty_like(heard)
        for t, frame in enumerate(heard):
            begin = time.perf_counter()
            fast.step(features(frame)[None], state, out=y, state_out=state)
            denoised[t] = frame / (1 + np.exp(-read_out(y)[0]))
            seconds.append(time.perf_counter() - begin)
        wiener = heard * np.maximum(1 - (np.abs(spectra(noise)) ** 2).mean(0) / np.abs(heard) ** 2, 0)
        found.append([snr(melody, sound(spectrum)) for spectrum in (heard, wiener, denoised)])
    before, baseline, after = np.mean(found, axis=0)
    print(f"a frame of {1000 * HOP / RATE:.0f} ms takes {1e6 * np.median(seconds):.0f} us (median)")
    print(f"signal to noise of new melodies: raw {before:.1f} dB, Wiener filter {baseline:.1f} dB, GRU {after:.1f} dB")
    if arguments.plot:
        draw(arguments.plot, {"heard": heard, "melody": spectra(melody), "Wiener filter": wiener, "GRU": denoised})
    assert after > baseline + 1


def draw(path, panels):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    for axis, name in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, panels, strict=True):
        level = 20 * np.log10(np.abs(panels[name].T[:64, :125]) + 1e-3)
        axis.pcolormesh(np.linspace(0, 2, 126), np.linspace(0, 2, 65), np.round(level / 5), vmin=-3, vmax=7)
        axis.set(title=name, xlabel="seconds", ylabel="kHz")
        axis.label_outer()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

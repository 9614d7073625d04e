"""Write what the programs in this folder run: models, and sounds to try them on.

    python examples/c/models.py [FOLDER]

`amp.safetensors` is an amplifier of random weights for `guitar.wav`. `voice.safetensors` is trained, for a second, to
tell whether somebody speaks, and `voice.wav` is a recording that it does not know.
"""

import sys
import wave
from pathlib import Path

import numpy as np

import fastrnn

PIECE, FEATURES, RATE = 512, 16, 16000


def write_wav(path, rate, sound):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())


def amplifier(folder):
    layers = [fastrnn.LSTM(1, 16, rng=0), fastrnn.Linear(16, 1, rng=1)]
    fastrnn.save(folder / "amp.safetensors", layers)
    t = np.arange(48000) / 48000
    plucks = [np.sin(2 * np.pi * 110 * k * t) * np.exp(-3 * k * t) / k for k in range(1, 6)]  # one string, one second
    write_wav(folder / "guitar.wav", 48000, 0.4 * sum(plucks))


def record(rng, pieces):
    """Return a sound of so many pieces, and whether somebody speaks in each."""
    speaks = np.repeat(rng.random(pieces // 10 + 1) < 0.5, 10)[:pieces]
    t = np.arange(pieces * PIECE) / RATE
    syllables = np.maximum(np.sin(2 * np.pi * rng.uniform(3, 5) * t), 0) * np.sin(2 * np.pi * rng.uniform(90, 240) * t)
    noise = rng.uniform(0.01, 0.1) * rng.standard_normal(len(t))
    return noise + 0.3 * syllables * np.repeat(speaks, PIECE), speaks


def loudness(sounds):
    """Return the mean magnitudes (T,B,FEATURES) of the parts of each piece of sounds (B,samples)."""
    parts = np.abs(sounds).reshape(len(sounds), -1, FEATURES, PIECE // FEATURES).mean(-1)
    return parts.swapaxes(0, 1).astype(np.float32)


def voice_activity(folder, steps=120):
    rng = np.random.default_rng(0)
    recordings = [record(rng, 50) for _ in range(32)]
    x, speaks = loudness(np.stack([sound for sound, _ in recordings])), np.stack([said for _, said in recordings], 1)
    lstm, read_out = fastrnn.LSTM(FEATURES, 128, rng=0), fastrnn.Linear(128, 1, rng=1)
    adam = fastrnn.Adam([lstm.parameters(), read_out.parameters()])
    for step in range(steps):
        y, _, tape = lstm.forward(x)
        logits, read_out_tape = read_out.forward(y)
        loss, dlogits = fastrnn.binary_cross_entropy(logits[..., 0], speaks)
        d_read_out = read_out.backward(read_out_tape, dlogits[..., None])
        adam.lr = fastrnn.learning_rate(step, steps, peak=1e-2)
        adam.step([lstm.backward(tape, d_read_out.x).parameters, d_read_out.parameters])
    fastrnn.save(folder / "voice.safetensors", {"lstm": lstm, "read_out": read_out})
    sound, said = record(rng, 100)
    write_wav(folder / "voice.wav", RATE, sound)
    right = ((read_out(lstm(loudness(sound[None]))[0])[:, 0, 0] > 0) == said).mean()
    print(f"voice: loss {loss:.3f}, right pieces of a new recording {right:.0%}")


if __name__ == "__main__":
    to = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    amplifier(to)
    voice_activity(to)

"""The programs of examples/c and examples/rust: what they compute is Python's result to the bit."""

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support import compile_program

import fastrnn
from support import assert_same_bits

EXAMPLES = Path(__file__).parents[2] / "examples"
LANES = {"avx512": 16, "avx2": 8, "neon": 4, "scalar": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and sounds, and the sources beside them."""
    if not EXAMPLES.exists():
        pytest.skip("there are no examples beside the tests")
    folder = tmp_path_factory.mktemp("examples")
    for source in (EXAMPLES / "c").glob("*.?pp"):
        (folder / source.name).write_text(source.read_text())
    done = subprocess.run([sys.executable, EXAMPLES / "c" / "models.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "right pieces of a new recording" in done.stdout
    for name in ("amp", "voice_activity"):
        compile_program(folder / f"{name}.cpp", "-std=c++17", "-Wconversion")
    return folder


def play(folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run([folder / name, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def multiply_add(a: Any, b: Any, c: Any, fused: bool) -> Any:
    """a b + c in float32; fused: rounded once (but for a case in 500 million, which the examples do not hold)."""
    if not fused:
        return a * b + c
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def read_out(linear: fastrnn.Linear, h: Any, isa: str) -> Any:
    """Return the only output of a Linear for each row of h as the library adds it up: lane by lane, then by halves."""
    lanes = LANES[isa]
    assert h.shape[-1] % lanes == 0
    weight, bias = linear.parameters()["weight"][0], linear.parameters()["bias"]
    total = np.zeros((len(h), lanes), np.float32)
    for k in range(0, h.shape[-1], lanes):
        total = multiply_add(h[:, k : k + lanes], weight[k : k + lanes], total, fused=lanes > 1)
    while total.shape[1] > 1:
        half = total.shape[1] // 2
        total = total[:, :half] + total[:, half:]
    return bias + total[:, 0]


def sound_of(path: Path) -> Any:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_the_amplifier(folder: Path) -> None:
    assert "s of sound in" in play(folder, "amp", "amp.safetensors", "guitar.wav", "out.wav")
    x = sound_of(folder / "guitar.wav").astype(np.float32) / 32768
    lstm, linear = fastrnn.load(folder / "amp.safetensors").values()
    h, _ = lstm.freeze()(x[:, None, None])
    out = (folder / "out.wav").read_bytes()
    assert out[:4] == b"RIFF"
    assert np.abs(x).max() > 0.1
    assert_same_bits(np.frombuffer(out[44:], np.float32), read_out(linear, h[:, 0], lstm.isa) + x)


def test_voice_activity(folder: Path) -> None:
    lines = play(folder, "voice_activity", "voice.safetensors", "voice.wav").splitlines()
    found = np.array([line.split()[2] for line in lines], np.float32)
    sound = sound_of(folder / "voice.wav").astype(np.int64)
    x = np.abs(sound).reshape(-1, 16, 32).sum(-1).astype(np.float32) / np.float32(32 * 32768)
    parts = fastrnn.load(folder / "voice.safetensors")
    fast, state, h = parts["lstm"].freeze(), None, []
    for x_t in x:
        y, state = fast.step(x_t[None], state)
        h.append(y[0])
    assert_same_bits(found, read_out(parts["read_out"], np.stack(h), parts["lstm"].isa))
    assert [line.endswith("voice") for line in lines] == list(found > 0)
    assert 0.2 < (found > 0).mean() < 0.8


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF0000WAVEfmt \xff\xff\xff\xff", b"RIFF0000WAVEdata\0\0\0\0"])
def test_what_is_no_sound_is_refused(folder: Path, content: bytes) -> None:
    (folder / "bad.wav").write_bytes(content)
    command = [folder / "amp", "amp.safetensors", "bad.wav", "out.wav"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert "bad.wav is" in done.stderr


def test_the_crate_for_rust(folder: Path, tmp_path: Path) -> None:
    """Its own tests, and a program that steps through numbers."""
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo")
    crate = shutil.copytree(EXAMPLES / "rust", tmp_path / "rust", ignore=shutil.ignore_patterns("target"))
    environment = os.environ | {"FASTRNN_LIBRARY": fastrnn.get_library(), "CARGO_TARGET_DIR": str(tmp_path / "target")}
    tests = ["cargo", "test", "--offline", "--quiet"]
    done = subprocess.run(tests, cwd=crate, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test result: ok. 3 passed" in done.stdout
    x = np.random.default_rng(0).standard_normal((50, 1), np.float32)
    step = ["cargo", "run", "--offline", "--quiet", "--example", "step", folder / "amp.safetensors"]
    given = "\n".join(str(value) for value in x[:, 0])
    done = subprocess.run(step, cwd=crate, env=environment, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lstm, linear = fastrnn.load(folder / "amp.safetensors").values()
    h, _ = lstm.freeze()(x[:, None])
    assert_same_bits(np.array(done.stdout.split(), np.float32), read_out(linear, h[:, 0], lstm.isa))

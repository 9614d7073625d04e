"""Every program in examples/, run with --quick: it ends well, prints its result and draws its picture."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

MODELS = sorted(f"models/{path.name}" for path in EXAMPLES.glob("models/*.py") if path.name != "comparing.py")

# What a program imports beside fastrnn and NumPy.
NEEDS = {
    "models/g2p.py": ["onnx"],
    "models/dtln.py": ["onnx", "onnxruntime"],
    "models/forecaster.py": ["onnx", "torch"],
    "models/segmentation.py": ["onnx", "torch"],
    "models/sentiment.py": ["onnx", "torch", "keras"],
    "models/silero_vad.py": ["onnx", "onnxruntime"],
    "onnx_models.py": ["torch", "onnxscript", "onnxruntime"],
    "recurrent_ppo.py": ["torch", "sb3_contrib", "gymnasium"],
    "torch_ddp.py": ["torch"],
    "torch_language_model.py": ["torch"],
    "torchrl_gru.py": ["torch", "torchrl", "tensordict"],
}

# A line that has to be in what it prints; programs that are not here have to print a number.
NUMBER = r"-?\d+\.\d+"
RESULTS = {
    "actor_critic.py": rf"return: {NUMBER} at first, {NUMBER} at last; the best without memory gets 0.25",
    "denoise.py": rf"signal to noise of new melodies: raw {NUMBER} dB, Wiener filter {NUMBER} dB, GRU {NUMBER} dB",
    "forecasting.py": rf"MASE for new shops: seasonal naive {NUMBER}, mean of four weeks {NUMBER}, GRU {NUMBER}",
    "onnx_models.py": rf"  detector: ONNX Runtime {NUMBER} us, fastrnn {NUMBER} us, ratio {NUMBER}",
    "parity.py": r"sLSTM, 4 heads +1,408 +\d+ steps +\d+\.\d% +\d+\.\d%",
    "recurrent_ppo.py": rf"torch.nn's time over fastrnn's: {NUMBER}; acting {NUMBER}, learning {NUMBER}",
    "sentences.py": rf"right sentences: LSTM {NUMBER}%, bag of words {NUMBER}%",
    "tagging.py": rf"bidirectional: before the city {NUMBER}%, after it {NUMBER}%",
    "torch_ddp.py": r"parameters of 2 processes: equal",
    "torch_language_model.py": rf"  GRU: torch.nn [\d,]+ tokens/s, fastrnn [\d,]+ tokens/s, ratio {NUMBER}",
    "torchrl_gru.py": rf"torch.nn's time over fastrnn's: {NUMBER}; acting {NUMBER}, learning {NUMBER}",
    "vanishing_gradients.py": r"RNN, ReLU, identity +\d+% +\d+%",
    "voice_activity.py": rf"right frames of new recordings: GRU {NUMBER}%, energy threshold {NUMBER}%",
}

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
LAUNCHERS = {"torch_ddp.py": TORCHRUN}


def run(name: str, *arguments: object, launcher: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    if missing := [module for module in NEEDS.get(name, []) if find_spec(module) is None]:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return subprocess.run(
        [sys.executable, *launcher, EXAMPLES / name, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "picture.png"
    plot = ["--plot", picture] if find_spec("matplotlib") else []
    done = run(name, "--quick", *plot, launcher=LAUNCHERS.get(name, []))
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^{RESULTS.get(name, f'.*{NUMBER}.*')}$", done.stdout, re.MULTILINE), done.stdout
    if plot:
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_its_own_runtime_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(name, "--quick", launcher=[])
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^  .*: {NUMBER} ms, ratio {NUMBER}, equal to \d\.\de-\d\d$", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_picture_without_matplotlib(name: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')\n")
    done = run(name, "--plot", tmp_path / "picture.png", launcher=[], PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("ImportError: pictures need matplotlib (not here): pip install 'fastrnn[plot]'\n"), (
        done.stderr
    )
    assert not (tmp_path / "picture.png").exists()


def test_torch_ddp_says_how_to_start_it() -> None:
    done = run("torch_ddp.py", launcher=[])
    assert done.returncode == 2
    assert done.stderr.endswith("start it with: torchrun --nproc-per-node=2 examples/torch_ddp.py\n")

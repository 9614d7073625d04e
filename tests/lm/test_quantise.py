"""fastrnn quantise: errors, drift, time and bytes of the layers of a file and of language models."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import quantise
from fastrnn.cli import main
from fastrnn.frozen import Frozen
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.text import Characters
from support import complaint

TEXT = "the cat sat on the mat.\n" * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    layers = {
        "a": fastrnn.LSTM(6, 20, rng=0),
        "b": fastrnn.GRU(20, 9, bidirectional=True, batch_first=True, rng=0),
        "head": fastrnn.Linear(18, 2, rng=0),
    }
    fastrnn.save("two.safetensors", layers)
    fastrnn.LSTM(6, 20, rng=0).save("one.npz")
    np.save("x.npy", np.random.default_rng(0).standard_normal((30, 2, 6)))
    return tmp_path


def test_layers_of_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantise", "two.safetensors", "--check", "x.npy", "--output", "small.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "weights='int8' against float32"
    assert lines[1].startswith("a: LSTM(input_size=6, hidden_size=20")
    assert lines[1].endswith("on 30 steps of x.npy")
    assert lines[2].endswith("on 1,000 steps of noise")  # the data do not fit it
    assert "largest error" in lines[4]
    rows = {line.split()[0]: line for line in lines[5:7]}
    layer = fastrnn.LSTM(6, 20, rng=0)
    x = np.load("x.npy").astype(np.float32)
    error = np.abs(layer.freeze("int8")(x)[0].astype(np.float64) - layer.freeze()(x)[0])
    parts = [error[:3].mean(), error[-3:].mean()]
    shown = [f"{value:.1e}" for value in (error.max(), error.mean(), *parts)]
    assert rows["a"].split()[1:5] == shown
    assert f"{layer.freeze().nbytes:,} -> {layer.freeze('int8').nbytes:,}" in rows["a"]
    small = fastrnn.load("small.safetensors")
    assert isinstance(small["b"], Frozen)
    assert type(small["head"]) is fastrnn.Linear
    assert np.array_equal(small["a"](x)[0], layer.freeze("int8")(x)[0])
    assert lines[-1].startswith("small.safetensors: ")


def test_layers_with_heads_stay(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fastrnn.save("heads.safetensors", {"a": fastrnn.LSTM(6, 20, rng=0), "b": fastrnn.GRU(20, 8, heads=2, rng=0)})
    assert main(["quantise", "heads.safetensors", "--output", "small.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("b: GRU(input_size=20, hidden_size=8")
    assert lines[1].endswith("stays as it is: weights of heads are not kept in fewer bits")
    assert lines[2].startswith("a: LSTM(input_size=6, hidden_size=20")
    assert [line.split()[0] for line in lines[5:]] == ["a", "small.safetensors:"]
    small = fastrnn.load("small.safetensors")
    assert isinstance(small["a"], Frozen)
    assert type(small["b"]) is fastrnn.GRU


def test_two_words_and_a_single_sequence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("one.npy", np.load("x.npy")[:, 0])
    assert main(["quantise", "one.npz", "--weights", "bfloat16,int8", "--check", "one.npy"]) == 0
    printed = capsys.readouterr().out
    assert "weights={'ih': 'bfloat16', 'hh': 'int8'} against float32" in printed
    assert "(the layer): LSTM(input_size=6, hidden_size=20" in printed


def test_a_language_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text(TEXT)
    model = LanguageModel(Characters(TEXT), "gru", embedding_dim=5, hidden_size=24, rng=0)
    model.save("lm.npz")
    assert main(["quantise", "lm.npz", "--check", "text.txt", "--output", "lm.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("on 960 steps of text.txt")
    bits = model.nats_per_token(model.vocabulary.encode(TEXT)) / np.log(2)
    before, after = lines[-2].removeprefix("bits per character: ").split(" -> ")
    assert float(before) == pytest.approx(bits, abs=1e-4)
    assert float(after) == pytest.approx(bits, rel=5e-3)
    assert sorted(fastrnn.load("lm.safetensors")) == ["embedding", "head", "network"]


def test_the_picture(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert main(["quantise", "one.npz", "--plot", "drift.png"]) == 0
    assert Path("drift.png").read_bytes()[:4] == b"\x89PNG"
    findings, _, _ = quantise.of_layers("one.npz", "int8", None)
    axis = quantise.picture(findings, "int8").axes[0]
    assert axis.get_xlabel() == "time step"
    assert len(axis.lines[0].get_xdata()) == 200
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'fastrnn[plot]'" in complaint(capsys, "quantise", "one.npz", "--plot", "drift.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one.npz", "--weights", "int4"], "--weights got weights='int4'"),
        (["one.npz", "--weights", "int8,bfloat16,int8"], "--weights got weights='int8,bfloat16,int8'"),
        (["one.npz", "--check", "narrow.npy"], "its last axis must be the features of a layer: 6"),
        (["one.npz", "--check", "words.npy"], "--check takes numbers (time, batch, features)"),
        (["one.npz", "--check", "nan.npy"], "holds numbers that are not finite"),
        (["one.npz", "--check", "several.npz"], "--check takes one, in an .npy file"),
        (["one.npz", "--check", "one.npz.txt"], "one.npz.txt"),
        (["one.npz", "--output", "small.npz"], "its name must end in .safetensors"),
        (["one.npz", "--plot", "small.npz"], "its name must end in .png or .svg or .pdf"),
        (["heads.npz"], "heads.npz: every recurrent layer of it has heads, and weights of heads are not kept in fewer"),
        (["double.npz"], "Only float32 weights are kept in fewer bits"),
        (["small.safetensors"], "small.safetensors holds weights in fewer bits already; give the model they are of"),
        (["lm.npz", "--check", "other.txt"], "not among the 12 known"),
        (["nothing.npz"], "No such file"),
    ],
)
def test_what_is_refused(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    arrays: dict[str, Any] = {"narrow": np.zeros((4, 5)), "words": np.array(["a"]), "nan": np.full((3, 6), np.nan)}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("several.npz", a=np.zeros((3, 6)))
    fastrnn.LSTM(2, 3, dtype=np.float64).save("double.npz")
    fastrnn.LSTM(2, 4, heads=2).save("heads.npz")
    fastrnn.save("small.safetensors", fastrnn.RNN(2, 3).freeze("int8"))
    LanguageModel(Characters(TEXT), embedding_dim=2, hidden_size=3).save("lm.npz")
    Path("other.txt").write_text("@@@@")
    assert words in complaint(capsys, "quantise", *arguments)

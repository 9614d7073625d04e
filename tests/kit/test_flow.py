"""fastrnn.flow and the command of the same name."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import main
from fastrnn.kit.flow import STARTS, compare
from support import assert_close, complaint

T, B, I, H = 7, 5, 3, 4


def test_of_a_linear_recurrence() -> None:
    """Where relu never cuts, dL/dh_t is W^d u: with W = a I its norm is a^d for any u and any input."""
    layer = fastrnn.RNN(I, H, nonlinearity="relu", dtype=np.float64, rng=0)
    parameters = layer.parameters()
    parameters["weight_hh_l0"][...] = 0.5 * np.eye(H)
    parameters["weight_ih_l0"][...] = 0
    parameters["bias_ih_l0"][...] = 1
    found = fastrnn.flow(layer, np.zeros((T, B, I)))
    assert found.distance.tolist() == list(range(T))
    for values in (found.low, found.median, found.high):
        assert_close(values, 0.5 ** np.arange(T), "float64", "gradient", "norms")


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_against_backward(name: str) -> None:
    layer = getattr(fastrnn, name)(I, H, num_layers=2, dtype=np.float64, rng=0)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    found = fastrnn.flow(layer, x, rng=5)
    u = np.random.default_rng(5).standard_normal((B, H))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    _, _, tape = layer.forward(x, training=False)
    dy = np.zeros((T, B, H))
    dy[-1] = u
    norms = np.linalg.norm(layer.backward(tape, dy, hidden=True).hidden, axis=2)[::-1]
    assert np.array_equal(found.median, np.median(norms, axis=1))
    assert np.all(found.low <= found.median)
    assert np.all(found.median <= found.high)
    assert_close(found.median[:1], np.ones(1), "float64", "gradient", "the norm at the loss")


def test_layouts() -> None:
    x = np.random.default_rng(1).standard_normal((T, B, I)).astype(np.float32)
    layer, other = (fastrnn.GRU(I, H, batch_first=first, rng=0) for first in (False, True))
    wanted = fastrnn.flow(layer, x)
    assert np.array_equal(fastrnn.flow(other, x.swapaxes(0, 1)).median, wanted.median)
    alone = fastrnn.flow(layer, x[:, 0])
    assert np.array_equal(alone.low, alone.high)


@pytest.mark.parametrize(
    ("layer", "shape", "error", "words"),
    [
        (fastrnn.GRU(I, H, bidirectional=True), (T, B, I), ValueError, "two directions have two ends"),
        (fastrnn.GRU(I, H), (0, B, I), ValueError, "x with 0 time steps and 5 sequences"),
        (fastrnn.GRU(I, H), (T, 0, I), ValueError, "x with 7 time steps and 0 sequences"),
        (fastrnn.GRU(I, H), (T, B, H), fastrnn.ShapeError, "features is 4 but must be 3"),
    ],
    ids=str,
)
def test_bad_input(layer: Any, shape: tuple[int, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fastrnn.flow(layer, np.zeros(shape, np.float32))


def test_what_the_literature_says() -> None:
    flows = compare(hidden_size=32, time=60, sequences=16, seed=0)
    assert list(flows) == list(STARTS)
    reach = {name: found.median[50] for name, found in flows.items()}
    assert reach["RNN"] < 1e-6
    assert reach["RNN, orthogonal"] > 1e3 * reach["RNN"]
    assert reach["LSTM, forget bias 1"] > 1e3 * reach["LSTM"] > reach["RNN"]
    assert reach["RNN, ReLU, identity"] > reach["RNN, ReLU"]


class TestCommand:
    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["flow", "--hidden", "4", "--time", "12", "--sequences", "3", "--no-picture"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].split() == ["1", "back", "2", "back", "5", "back", "10", "back"]
        assert [line.split("  ")[0] for line in lines[3:]] == list(STARTS)

    def test_picture(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("matplotlib")
        path = tmp_path / "flow.png"
        assert main(["flow", "--hidden", "4", "--time", "1", "--sequences", "1", "--output", str(path)]) == 0
        assert path.read_bytes().startswith(b"\x89PNG")
        assert capsys.readouterr().out.endswith(f"The picture is in {path}\n")

    def test_bad_input(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "got '0', expected a whole number of at least 1" in complaint(capsys, "flow", "--time", "0")
        assert "this machine has" in complaint(capsys, "flow", "--no-picture", "--time", "1000000000000")
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "pip install 'fastrnn[plot]', or give --no-picture" in complaint(capsys, "flow")

    def test_output_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        monkeypatch.chdir(tmp_path)
        assert "must end in .png, .svg or .pdf" in complaint(capsys, "flow", "--output", "flow.txt")
        assert "no/flow.png: No such file" in complaint(capsys, "flow", "--output", "no/flow.png")

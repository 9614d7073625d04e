"""fastrnn run: what it prints and writes, and that one line says what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_support import by_onnxruntime, close, helper, model, onnx, value

import fastrnn
from fastrnn import run_model
from fastrnn.cli import main
from fastrnn.onnx import save
from support import complaint

pytest.importorskip("onnxruntime")

T, B, I, H = 5, 2, 3, 4


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save({"word": fastrnn.GRU(I, H, rng=0)}, "one.onnx")
    save(fastrnn.LSTM(I, H, rng=0), "several.onnx", states=True)
    np.save("x.npy", np.random.default_rng(0).standard_normal((T, B, I), dtype=np.float32))
    np.save("wide.npy", np.zeros((T, B, I)))
    np.save("h.npy", np.zeros((1, B, H), np.float32))
    np.savez("all.npz", x=np.load("x.npy"), h0=np.load("h.npy"), c0=np.load("h.npy"))
    (tmp_path / "text.npy").write_text("no array")
    np.savez_compressed("damaged.npz", x=np.arange(1000))
    packed = bytearray((tmp_path / "damaged.npz").read_bytes())
    packed[100:120] = b"\xff" * 20
    (tmp_path / "damaged.npz").write_bytes(packed)
    with open("huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (3 * 10**12,)})
    return tmp_path


def test_it_prints_and_writes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "one.onnx", "--input", "x.npy", "--output", "y.npz", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "fastrnn runs 1 of 1 recurrent nodes, ONNX Runtime the rest in 0 pieces",
        "  word  GRU(hidden_size=4, linear_before_reset)",
    ]
    assert lines[2:4] == ["word.y  float32 (5, 2, 4)", "word.hn  float32 (1, 2, 4)"]
    written = np.load("y.npz")
    wanted = by_onnxruntime(onnx.load("one.onnx"), {"word.x": np.load("x.npy")})
    close([written[name] for name in ("word.y", "word.hn")], wanted)


@pytest.mark.parametrize("inputs", [["all.npz"], ["x=x.npy", "h0=h.npy", "c0=h.npy"]], ids=str)
def test_several_inputs(here: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word for one in inputs for word in ("--input", one)]
    assert main(["run", "several.onnx", *arguments]) == 0
    assert "cn  float32 (1, 2, 4)" in capsys.readouterr().out
    assert not (here / "y.npz").exists()


def test_sequences_are_numbered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = model(
        [helper.make_node("SplitToSequence", ["x"], ["q"], keepdims=0)],
        [value("x", shape=[None, B, I])],
        [helper.make_tensor_sequence_value_info("q", 1, None)],
    )
    onnx.save(made, "split.onnx")
    assert main(["run", "split.onnx", "--input", "x.npy", "--output", "y.npz"]) == 0
    written = np.load("y.npz")
    assert written.files == [f"q.{t}" for t in range(T)]
    np.testing.assert_array_equal(written["q.3"], np.load("x.npy")[3])


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = run_model._Bar()
    for done in (4096, 8192, 9000):
        bar.show("my GRU", done, 9000)
    bar.close()
    assert "my GRU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.onnx"], "nothing.onnx: No such file or directory"),
        (["x.npy", "--input", "x.npy"], "x.npy is no ONNX model, or damaged"),
        (["one.onnx"], "run got no input word.x; the model's are word.x."),
        (["one.onnx", "--input", "no.npy"], "no.npy: No such file or directory"),
        (["one.onnx", "--input", "text.npy"], "text.npy holds no array"),
        (["one.onnx", "--input", "damaged.npz"], "damaged.npz holds no array"),
        (["one.onnx", "--input", "huge.npy"], "huge.npy says that it holds more than there is memory for"),
        (["one.onnx", "--input", "wide.npy"], "'word.x' with dtype float64; the model's is float32"),
        (["one.onnx", "--input", "h.npy"], "'word.x' with shape (1, 2, 4)"),
        (["one.onnx", "--input", "z=x.npy"], "run got the input 'z'"),
        (["one.onnx", "--input", "x=all.npz"], "an .npz file has names of its own"),
        (["several.onnx", "--input", "x.npy"], "say of which input it is: x=x.npy, h0=x.npy, c0=x.npy"),
        (["one.onnx", "--input", "x.npy", "--output", "y.npy"], "its name must end in .npz"),
        (["one.onnx", "--input", "x.npy", "--output", "no/y.npz"], "no/y.npz: No such file or directory"),
        (["one.onnx", "--input", "x.npy", "--threads", "0"], "expected a whole number from 1 to"),
    ],
    ids=str,
)
def test_one_line_says_what_is_wrong(here: Path, arguments: list[str], words: str, capsys: Any) -> None:
    assert words in complaint(capsys, "run", *arguments)


def test_names_command_no_terminal(here: Path, capsys: Any) -> None:
    made = onnx.load("one.onnx")
    made.graph.node[0].name = "\x1b[2Jword"
    made.graph.node[-1].output[0] = made.graph.output[0].name = "\x1b[2Jh"
    onnx.save(made, "clear.onnx")
    assert main(["run", "clear.onnx", "--input", "x.npy"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "  \\x1b[2Jword  GRU(" in out
    assert "\n\\x1b[2Jh  float32 (" in out


def test_what_onnxruntime_refuses(here: Path, capsys: Any) -> None:
    made = model([helper.make_node("Nonsense", ["x"], ["y"])], [value("x", shape=[None, B, I])], [value("y")])
    onnx.save(made, "nonsense.onnx")
    assert "Nonsense" in complaint(capsys, "run", "nonsense.onnx", "--input", "x.npy")

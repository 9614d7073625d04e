"""fastrnn bench --c: a program in C, compiled and timed."""

import shutil

import pytest

from fastrnn.bench.api import steps
from fastrnn.cli import main
from support import complaint


def test_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    assert steps.run(["GRU-H4*"], 0.001) == 0
    columns, *rows = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert columns == ["step", "run", "call", "p50", "p99.9", "max"]
    assert [row[0] for row in rows] == ["GRU-H4", "GRU-H40"]
    for _, *words in rows:
        step, run, call, p50, p999, most = (int(word.replace(",", "")) for word in words)
        assert 0 < run < 1e6
        assert abs(step - run - call) <= 1
        assert p50 <= p999 <= most


def test_names_and_refusals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["bench", "--c", "--list", "--filter", "LSTM-H8"]) == 0
    assert capsys.readouterr().out.split() == ["LSTM-H8", "LSTM-H80"]
    for arguments, words in (
        (["--filter", "nothing"], "no point of --c matches 'nothing'"),
        (["--in-situ", "--pin", "--seconds", "1"], "--c knows no --in-situ, --pin, --seconds"),
        (["--device", "cuda"], "--device cuda knows no --c"),
    ):
        assert words in complaint(capsys, "bench", "--c", *arguments)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "finds no compiler" in complaint(capsys, "bench", "--c", "--filter", "LSTM-H8")

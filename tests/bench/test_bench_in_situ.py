"""`fastrnn bench --in-situ`: programs are verified before they are timed, and what was measured is shown and kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrnn.bench.insitu.catalogue import PROGRAMS, select
from fastrnn.bench.insitu.program import RUNS, Pair, Program, Side
from fastrnn.bench.insitu.result import InSituResult
from fastrnn.bench.report import markdown, summary
from fastrnn.bench.report.results import Report
from fastrnn.cli import main
from support import complaint


def program(plain: Any, fast: Any) -> Program:
    return Program("made-up", lambda threads: Pair(Side(lambda: plain), Side(lambda: fast)))


def test_a_program_is_timed_in_runs() -> None:
    result = program(np.ones(3), np.ones(3)).measure(1, 1e-3)
    assert (result.failed, result.skipped) == ("", "")
    assert len(result.whole) == RUNS
    assert result.inside == []
    assert result.ratio == sorted(result.whole)[RUNS // 2]
    assert result.plain > 0
    assert result.fast > 0


def test_a_program_whose_versions_differ_is_not_timed() -> None:
    result = program(np.ones(3), np.array([1, 1, 1.01])).measure(1, 1e-3)
    assert result.whole == []
    assert result.failed == "MismatchError: the two versions differ by 1.0e-02, more than 1e-03"


def test_nan_is_a_difference() -> None:
    assert "MismatchError" in program(np.ones(3), np.full(3, np.nan)).measure(1, 1e-3).failed


def test_a_program_that_needs_what_is_missing_is_skipped() -> None:
    def build(threads: int) -> Pair:
        raise ImportError("there is no such peer")

    result = Program("made-up", build).measure(1, 1e-3)
    assert (result.skipped, result.failed) == ("there is no such peer", "")


def test_numpy_loops_compare_one_thread_with_all() -> None:
    on_one = [name for name, _ in select([1], [])]
    on_two = [name for name, _ in select([2], [])]
    assert not any(name.startswith("numpy-beside") for name in on_one)
    assert on_two == [name for name, p in PROGRAMS.items() if p.always]
    assert select([1, 2], ["*-t2"]) == [(name, 2) for name in PROGRAMS]


def test_tables_name_every_program() -> None:
    report = Report({"cpu": "x"})
    report.in_situ = [
        InSituResult("a", 2, [1.5, 1.25, 1.75], [2.0], 4e-3, 2e-3, alone=2.5),
        InSituResult("b", 2, failed="it broke"),
    ]
    (table,) = summary.in_situ(report)
    assert list(table.rows[0]) == ["a", "4.00", "2.00", "1.50", "1.25-1.75", "2.00", "2.50"]
    assert list(table.rows[1])[:2] == ["b", "it broke"]
    assert markdown._row(table.rows[0]).startswith("| a | 4.00 |")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in PROGRAMS
        if "actor" in n
        or "numpy-beside-product" in n
        or "H16-B1" in n
        or ("-act-" in n and "B8" in n)
        or n in ("onnx-node-GRU-H128-B1-T8-inference", "onnx-tagger-GRU-H128-L2-bi-B4-T100-inference")
    ],
)
def test_programs_that_take_little_time(name: str) -> None:
    if name.startswith("onnx-"):
        pytest.importorskip("onnxruntime")
    elif not name.startswith("numpy"):
        pytest.importorskip("torch")
    if "-act-" in name:
        pytest.importorskip({"sb3": "sb3_contrib", "torchrl": "tensordict"}[name.split("-")[0]])
    result = PROGRAMS[name].measure(2, 1e-3)
    assert (result.failed, result.skipped) == ("", "")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    name = "actor-steps-GRUCell-H128-B1-inference"
    assert main(["bench", "--in-situ", "--filter", f"{name}-t1", "--seconds", "0.001"]) == 0
    assert f"{name}-t1" in capsys.readouterr().out
    (found,) = Report.read(Path("fastrnn-bench/results.json")).in_situ
    assert (found.name, found.threads, len(found.whole), len(found.inside)) == (name, 1, RUNS, RUNS)
    assert f"| {name} |" in Path("fastrnn-bench/results.md").read_text()
    assert json.loads(Path("fastrnn-bench/results.json").read_text())["in_situ"][0]["name"] == name


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--in-situ", "--list", "--filter", "tagger*-t1"]) == 0
    assert capsys.readouterr().out.split() == [
        "tagger-packed-LSTM-H128-training-t1",
        "tagger-packed-LSTM-H128-inference-t1",
        "tagger-long-tail-LSTM-H128-training-t1",
        "tagger-long-tail-LSTM-H128-inference-t1",
    ]


def test_single_steps_are_measured_by_name() -> None:
    assert not any(name.startswith("one-step") for name, _ in select([1], []))
    found = [name for name, _ in select([1], ["one-step-GRUCell-H512"])]
    assert found == [f"one-step-GRUCell-H512-B{B}-{mode}" for mode in ("inference", "training") for B in (1, 8, 64)]


def test_no_such_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no program matches 'H65536': --list --in-situ shows the names" in complaint(
        capsys, "bench", "--in-situ", "--filter", "H65536"
    )

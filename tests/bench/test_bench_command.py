"""`fastrnn bench`: exit codes, files, bad input, lost workers and Ctrl-C."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn.bench.grid.shapes import Point, quick
from fastrnn.bench.report.results import Report
from fastrnn.cli import main
from support import complaint

TINY = Point("RNN", "inference", 4, 1, 3, 3).name
OTHER = Point("GRU", "step", 1, 1, 3, 3).name
RUN = ["bench", "--filter", TINY, "--peers", "numpy", "--seconds", "0.001"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rich() -> None:
    pytest.importorskip("rich")


def use_worker(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let the workers run these lines first."""
    from fastrnn.bench.grid import session

    start = ["from fastrnn.bench import peers", "from fastrnn.bench.grid import worker", *lines, "worker.main()"]
    monkeypatch.setattr(session, "WORKER", [sys.executable, "-c", "\n".join(start)])


@pytest.mark.usefixtures("rich")
class TestRuns:
    def test_files_and_table(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*RUN, "--filter", OTHER, "--pin"]) == 0
        printed = capsys.readouterr().out
        assert "RNN inference, 1 thread" in printed
        assert "T4-B1-H3" in printed
        assert "\x1b" not in printed
        report = Report.read(Path("fastrnn-bench/results.json"))
        assert [result.point.name for result in report.results] == [TINY, OTHER]
        assert all(result.best == "numpy" for result in report.results)
        assert list(report.ceilings) == [1]
        assert not report.interrupted
        assert "T4-B1-H3" in Path("fastrnn-bench/results.md").read_text()
        data = json.loads(Path("fastrnn-bench/results.json").read_text())
        assert json.loads(json.dumps(report.to_json())) == data

    def test_two_workers(self, here: Path) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("one processor")
        two = TINY.replace("-t1", "-t2")
        assert main([*RUN, "--filter", two, "--output", "two/deep"]) == 0
        report = Report.read(Path("two/deep/results.json"))
        assert [result.point.threads for result in report.results] == [1, 2]

    def test_without_peers(self, here: Path) -> None:
        assert main(["bench", "--filter", TINY, "--peers", "none", "--seconds", "0.001"]) == 0
        (result,) = Report.read(Path("fastrnn-bench/results.json")).results
        assert result.ours is not None
        assert result.peers == {}

    def test_a_missing_peer_is_named(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_worker(
            monkeypatch,
            "def missing(self, threads): raise ImportError('No module named numpy')",
            "peers.PEERS['numpy'].__init__ = missing",
        )
        assert main(RUN) == 0
        assert "NumPy is left out (ImportError: No module named numpy): pip install numpy" in capsys.readouterr().out
        assert Report.read(Path("fastrnn-bench/results.json")).missing == {"numpy": "numpy"}

    def test_fewer_bits(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        keys = ["fastrnn-int8", "fastrnn-bfloat16"]
        training = TINY.replace("inference", "training")
        given = ["--bits", "--filter", TINY, "--filter", training, "--filter", OTHER, "--peers", ",".join(keys)]
        assert main(["bench", *given, "--seconds", "0.001"]) == 0
        results = Report.read(Path("fastrnn-bench/results.json")).results
        assert [result.point.name for result in results] == [TINY, OTHER]
        for result in results:
            assert result.best is None
            assert [0 < result.peers[key].error < 0.1 for key in keys] == [True, True]
            assert all((result.peers[key].fraction or 0) > 0 for key in keys)  # how much is a matter of the machine
        text = Path("fastrnn-bench/results.md").read_text()
        assert "(off by " in text
        assert " of its roofline)" in text
        assert "| products, int8 |" in text

    def test_a_mismatch(self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        use_worker(
            monkeypatch,
            "right = peers.PEERS['numpy'].job",
            "def wrong(self, problem):",
            "    job = right(self, problem)",
            "    return job._replace(read=lambda done: {'y': -job.read(done)['y']})",
            "peers.PEERS['numpy'].job = wrong",
        )
        assert main([*RUN, "--filter", OTHER]) == 1
        printed = capsys.readouterr().out
        assert printed.count("wrong result") == 2
        assert "NumPy: y differs by 2.0e+00 of its magnitude" in printed

    def test_a_mismatch_is_red(self) -> None:
        from rich.console import Console

        from fastrnn.bench.grid.timing import Times
        from fastrnn.bench.report.results import Against, Result
        from fastrnn.bench.report.screen import Screen

        console = Console(force_terminal=True, width=150, record=True)
        wrong = {"numpy": Against(failed="y differs", mismatch=True)}
        with console.capture() as captured:
            Screen(console, ["numpy"]).result(Result(Point.parse(TINY), Times(1, 1, 1, 1, 1), 1.0, 1.0, wrong))
        assert re.search(r"\x1b\[1;31m *wrong result", captured.get())

    def test_a_lost_worker(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_worker(
            monkeypatch,
            "import os, sys",
            "def die(self, problem): sys.stderr.write('out of clay\\n'), sys.stderr.flush(), os._exit(3)",
            "peers.PEERS['numpy'].job = die",
        )
        assert main([*RUN, "--filter", OTHER]) == 1
        expected = f"the worker on 1 thread ended with exit code 3 at {TINY}; not measured: {OTHER}"
        assert f"{expected}; its last words: out of clay" in capsys.readouterr().out
        (problem,) = Report.read(Path("fastrnn-bench/results.json")).problems
        assert problem.startswith(expected)

    def test_a_worker_that_cannot_start(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from fastrnn.bench.grid import session

        monkeypatch.setattr(session, "WORKER", [sys.executable, "-c", "raise SystemExit('no clay')"])
        assert main(RUN) == 1
        assert f"ended with exit code 1 at {TINY}; its last words: no clay" in capsys.readouterr().out

    def test_ctrl_c_keeps_what_was_measured(self, here: Path) -> None:
        points = [Point("RNN", "inference", T, 1, 3, 3).name for T in range(2, 200)]
        filters = [part for name in points for part in ("--filter", name)]
        command = [sys.executable, "-u", "-m", "fastrnn", "bench", "--peers", "numpy", "--seconds", "0.2", *filters]
        # A parent started in the background ignores SIGINT, and its children would too.
        ready = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=ready) as process:
            assert process.stdout is not None
            line = b""
            while b"T3-B1-H3" not in line:
                line = process.stdout.readline()
                assert line or process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130, out + err
        assert err == b""
        assert b"interrupted: " in out
        report = Report.read(Path("fastrnn-bench/results.json"))
        assert report.interrupted
        assert [result.point.name for result in report.results][:2] == points[:2]
        assert len(report.results) < len(points)
        assert "interrupted" in Path("fastrnn-bench/results.md").read_text()

    def test_compare(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(RUN) == 0
        old, new = Path("fastrnn-bench/results.json"), Path("new.json")
        assert main(["bench", "--compare", str(old), str(old)]) == 0
        data = json.loads(old.read_text())
        for comparison in data["points"][0]["peers"]["numpy"]["comparisons"]:
            comparison["peer"]["median"] /= 2
        new.write_text(json.dumps(data))
        capsys.readouterr()
        assert main(["bench", "--compare", str(old), str(new)]) == 1
        printed = capsys.readouterr().out
        assert "-50.0 %" in printed
        assert "1 of 1 points got worse by more than 10 %" in printed
        assert main(["bench", "--compare", str(old), str(new), "--threshold", "60"]) == 0


class TestLists:
    def test_list(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--list", "--threads", "1"]) == 0
        assert capsys.readouterr().out.split() == [point.name for point in quick([1])]
        assert os.listdir() == []

    def test_list_of_claims(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "--list", "--claims"]) == 0
        assert "one step, LSTM H=64 B=1\n" in capsys.readouterr().out
        assert main(["bench", "--list", "--claims", "--filter", "one step", "--filter", "memory*"]) == 0
        assert capsys.readouterr().out.splitlines() == [
            "one step, LSTM H=64 B=1",
            "memory of training, LSTM T=1000 B=64 H=512",
        ]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--peers", "tensorflow,jax"], "unknown peer 'tensorflow'; there are torch, torch-cell, onnxruntime,"),
            (["--filter", "H65536"], "no point of the quick grid on 1"),
            (["--claims", "--filter", "H65536"], "no claim matches 'H65536': --list --claims shows the names"),
            (["--threads", "1,many"], "argument --threads: got 'many', expected a whole number from 1 to 1024"),
            (["--threads", "0"], "argument --threads: got '0'"),
            (["--threads", ""], "argument --threads: got '', expected"),
            (["--threads", "1024"], "--threads asks for 1024, but this process may use"),
            (["--seconds", "0"], "argument --seconds: got '0', expected a number above 0"),
            (["--quick", "--full"], "not allowed with argument --quick"),
            (["--compare", "a.json"], "argument --compare: expected 2 arguments"),
            (["--threshold", "-1"], "argument --threshold: got '-1'"),
        ],
    )
    def test_options(self, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
        assert words in complaint(capsys, "bench", *arguments)

    @pytest.mark.usefixtures("rich")
    def test_files_to_compare(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no.json: No such file" in complaint(capsys, "bench", "--compare", "no.json", "no.json")
        for text, words in [
            ("{", "a.json is not JSON"),
            ("[]", "a.json is not a result of this version's fastrnn bench: schema None, expected 2"),
            ('{"schema": 2}', "a.json is not a complete result of fastrnn bench: KeyError('machine')"),
        ]:
            Path("a.json").write_text(text)
            assert words in complaint(capsys, "bench", "--compare", "a.json", "a.json")

    @pytest.mark.usefixtures("rich")
    def test_a_folder_that_cannot_be_made(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("file").write_text("")
        assert "file" in complaint(capsys, "bench", *RUN[1:], "--output", "file")

    def test_without_rich(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "rich", None)
        assert "pip install 'fastrnn[bench]'" in complaint(capsys, "bench", *RUN[1:])

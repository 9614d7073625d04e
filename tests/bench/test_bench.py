"""The benchmark runner: what is measured, that wrong results are caught, the roofline's arithmetic, files and claims.

The command itself is run in test_bench_command.py. Nothing here looks at a time.
"""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrnn.bench.claims.claims import CLAIMS, Claim
from fastrnn.bench.grid.problems import Problem
from fastrnn.bench.grid.shapes import CELLS, MODES, MOST_FLOPS, Cell, Mode, Point, capped, full, quick, select
from fastrnn.bench.grid.timing import MismatchError, Times, compare, verify
from fastrnn.bench.grid.worker import Worker
from fastrnn.bench.machine import roofline
from fastrnn.bench.machine.ceilings import Ceilings
from fastrnn.bench.peers import BITS, PEERS, Job, runtimes
from fastrnn.bench.report import markdown, summary
from fastrnn.bench.report.compare import regressions
from fastrnn.bench.report.results import Against, BadInput, Report, Result

SMALL = Point("LSTM", "inference", 12, 3, 5, 7)
CEILINGS = Ceilings(1, {"float32": 100e9, "float64": 50e9}, {1 << 14: 400e9, 1 << 20: 100e9, 1 << 28: 10e9})


def times(median: float) -> Times:
    return Times(median, 0.9 * median, 1.2 * median, 10, 1.0)


def result(point: Point, ours: float = 1e-3, **ratios: float) -> Result:
    """A made-up result: our seconds, and each peer's ratio."""
    from fastrnn.bench.grid.timing import Comparison

    peers = {
        key: Against([Comparison(times(ours), times(ours * ratio))], 1e-6, PEERS[key].tolerance is None)
        for key, ratio in ratios.items()
    }
    return Result(point, times(ours), 100e9, 0.5 * ours, peers)


def report(*results: Result) -> Report:
    machine = {"cpu": "abacus", "processors": 2, "caches": {}, "date": "today"}
    own = {"version": "1", "isa": "scalar", "numpy": "2", "python": "3"}
    return Report(machine | {"fastrnn": own}, {}, {"torch": "2"}, {}, {1: CEILINGS}, list(results))


class TestPoints:
    def test_names_are_read_back(self) -> None:
        points = full([1, 2]) + quick([1])
        assert [Point.parse(point.name) for point in points] == points
        assert Point.parse("GRU-step-T1-B1-I3-H4-t2") == Point("GRU", "step", 1, 1, 3, 4, threads=2)
        with pytest.raises(ValueError, match="'LSTM-T1' is not the name of a point"):
            Point.parse("LSTM-T1")

    def test_the_full_grid(self) -> None:
        points = full([1, 2])
        assert len(set(points)) == len(points)
        assert {(p.cell, p.mode, p.threads) for p in points} == {
            (c, m, n) for c in CELLS for m in MODES for n in (1, 2)
        }
        assert all(p.flops <= MOST_FLOPS or p.T == 2 for p in points)
        steps = [p for p in points if p.mode == "step"]
        assert len(steps) == 6 * 5 * 3 * 2
        assert all(p.T == 1 for p in steps)
        for kind in ("lengths", "reset", "batch_first"):
            assert any(p.variant == kind for p in points)
        assert any(p.layers == 2 and p.bidirectional for p in points)
        assert any(p.dtype == "float64" for p in points)
        assert {(40, 512), (512, 64)} <= {(p.I, p.H) for p in points}

    def test_the_cap_shortens_and_leaves_two_steps(self) -> None:
        long = Point("LSTM", "training", 500, 128, 1024, 1024)
        short = capped(long)
        assert replace(short, T=500) == long
        assert short.flops <= MOST_FLOPS < replace(short, T=short.T + 1).flops
        assert capped(replace(long, B=10_000)).T == 2
        assert capped(SMALL) == SMALL

    def test_the_quick_grid_is_small(self) -> None:
        points = quick([1, 2])
        assert 20 <= len(points) <= 30
        assert {p.cell for p in points} == set(CELLS)
        assert {p.threads for p in points} == {1, 2}

    def test_filter(self) -> None:
        points = full([1])
        some = select(points, ["GRU-step"])
        assert len(some) == 30
        assert select(points, ["GRU-step*-H64-t1", "no such"]) == [p for p in some if p.H == 64]
        assert select(points, []) == points
        assert select(points, [SMALL.name]) == [SMALL]
        assert select(points, ["no such"]) == []

    def test_operations(self) -> None:
        assert SMALL.flops == 12 * 3 * 2 * 4 * 7 * (5 + 7)
        assert replace(SMALL, mode="training").flops == 3 * SMALL.flops
        both = replace(SMALL, layers=2, bidirectional=True, cell="RNN")
        assert both.flops == 12 * 3 * 2 * 7 * 2 * ((5 + 7) + (14 + 7))
        ragged = replace(SMALL, T=40, B=50, variant="lengths")
        assert ragged.lengths is not None
        assert ragged.rows.sum() == ragged.lengths.sum()
        assert ragged.rows[0] == 50
        assert ragged.flops < replace(ragged, variant="").flops


class TestVerify:
    def test_agreement(self) -> None:
        y = np.array([1.0, -2.0])
        assert verify({"y": y, "h": y}, {"y": y + 2e-6}, 1e-5) == pytest.approx(1e-6)

    @pytest.mark.parametrize(
        ("peer", "words"),
        [
            ({"y": np.array([1.0, -2.1])}, "y differs by 5.0e-02 of its magnitude, more than 1e-04"),
            ({"y": np.array([1.0, np.nan])}, "y differs by nan"),
            ({"y": np.array([1.0])}, r"y has shape \(1,\), fastrnn's \(2,\)"),
            ({"y": np.array([1.0, -2.0]), "dx": np.array([0.1])}, "dx differs"),
        ],
    )
    def test_difference(self, peer: dict[str, Any], words: str) -> None:
        with pytest.raises(MismatchError, match=words):
            verify({"y": np.array([1.0, -2.0]), "dx": np.array([0.2])}, peer, 1e-4)


def points_of(cell: Cell, mode: Mode) -> list[Point]:
    plain = replace(SMALL, cell=cell, mode=mode, T=1 if mode == "step" else SMALL.T)
    if mode == "step":
        return [plain]
    both = replace(plain, layers=2, bidirectional=True)
    variants = [replace(plain, variant=kind) for kind in ("lengths", "reset", "batch_first")]
    return [plain, *variants, both, replace(both, variant="lengths"), replace(plain, dtype="float64")]


def for_peer(key: str, point: Point) -> Point:
    """The point with one sequence for a peer that takes no more."""
    return replace(point, B=1) if key == "ncnn-int8" else point


# In a process of its own: some peers start threads when they are imported, and other tests fork.
AGREE = """
import sys
from fastrnn.bench.peers import PEERS, FastRNN
from fastrnn.bench.grid.problems import Problem
from fastrnn.bench.grid.shapes import Point
from fastrnn.bench.grid.timing import TOLERANCE, verify
key, *names = sys.argv[1:]
peer, ours = PEERS[key](1), FastRNN(1)
for point in map(Point.parse, names):
    problem = Problem(point)
    expected, found = ours.job(problem).results(), peer.job(problem).results()
    print(point.name, verify(expected, found, peer.tolerance or TOLERANCE[point.dtype]), flush=True)
    if point.mode == "training":
        assert expected.keys() == found.keys()
"""


class TestPeers:
    @pytest.mark.parametrize("key", PEERS)
    def test_agrees_with_fastrnn(self, key: str) -> None:
        missing = [module for module in PEERS[key].needs.split() if importlib.util.find_spec(module) is None]
        if missing:
            pytest.skip(f"{' and '.join(missing)} not installed")
        points = [for_peer(key, point) for cell in CELLS for mode in MODES for point in points_of(cell, mode)]
        names = [point.name for point in points if PEERS[key].unsupported(point) is None]
        done = subprocess.run([sys.executable, "-c", AGREE, key, *names], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()] == names

    @pytest.mark.parametrize("key", PEERS)
    def test_takes_every_cell_it_is_meant_for(self, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtimes, "has_bfloat16", lambda: True)
        takes = {
            (cell, mode)
            for cell in CELLS
            for mode in MODES
            if PEERS[key].unsupported(for_peer(key, points_of(cell, mode)[0])) is None
        }
        cells = ["LSTM"] if key in ("onnxruntime-int8", "ncnn-int8") else CELLS
        frozen = ["inference", "step"]
        some = {
            "torch": MODES,
            "jax": MODES,
            "torch-cell": ["step"],
            "fastrnn-int8": frozen,
            "fastrnn-bfloat16": frozen,
        }
        modes = some.get(key, ["inference", "call", "step"])
        assert takes == {(cell, mode) for cell in cells for mode in modes}

    def test_what_this_machine_cannot_do_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtimes, "has_bfloat16", lambda: False)
        assert PEERS["openvino-bfloat16"].unsupported(SMALL) == "this processor has no instructions for bfloat16"
        assert "one sequence" in str(PEERS["ncnn-int8"].unsupported(replace(SMALL, B=2)))

    def test_only_inexact_ones_have_a_tolerance_and_are_never_the_best(self) -> None:
        assert [key for key, kind in PEERS.items() if kind.tolerance is not None] == list(BITS)
        assert result(SMALL, torch=2.0, numpy=3.0, **{"onnxruntime-int8": 0.5}).best == "torch"


class TestWorker:
    def worker(self) -> Worker:
        worker = Worker(lambda event: None, 1, 1e-3)
        worker.import_peers(["numpy"])
        worker.ceilings = CEILINGS

        class Meter:
            def read(self) -> float:
                return 1e11

        worker.meters = {"float32": Meter()}  # type: ignore[dict-item]
        return worker

    def test_a_point(self) -> None:
        found = self.worker().measure(SMALL)
        against = found.peers["numpy"]
        assert found.ours is not None
        assert against.ratio is not None
        assert against.error < 1e-4
        assert len(against.comparisons) in (1, 4)  # once, or again where it fell short
        assert found.peak == 1e11
        assert Result.from_json(found.to_json()) == found

    def test_without_a_peer_for_the_point(self) -> None:
        found = self.worker().measure(replace(SMALL, mode="training"))
        assert found.ours is not None
        assert found.peers["numpy"].skipped == "a plain loop has no gradients"
        assert found.best is None

    def test_a_wrong_peer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        worker = self.worker()
        right = worker.peers["numpy"].job

        def wrong(problem: Problem) -> Job:
            return right(problem)._replace(read=lambda done: {"y": done[0] + 0.1})

        monkeypatch.setattr(worker.peers["numpy"], "job", wrong)
        found = worker.measure(SMALL)
        assert found.mismatched
        assert "y differs" in found.peers["numpy"].failed
        assert found.best is None
        assert found.ours is not None

    def test_a_peer_that_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        worker = self.worker()

        def broken(problem: Problem) -> Job:
            raise RuntimeError("out of\nclay")

        monkeypatch.setattr(worker.peers["numpy"], "job", broken)
        found = worker.measure(SMALL)
        assert found.peers["numpy"].failed == "RuntimeError: out of clay"
        assert not found.mismatched

    def test_turns(self) -> None:
        order: list[str] = []
        jobs = [Job(lambda name=name: order.append(name), lambda done: {}) for name in "ab"]  # type: ignore[misc]
        found = compare(jobs[0], jobs[1], 1e-3, True, lambda: order.append("-"))
        turns = "".join(order).split("-")[1:]
        assert len(turns) >= 2
        assert [turn[0] for turn in turns[:2]] == ["a", "b"]  # neither always comes first
        assert found.ours.low <= found.ours.median <= found.ours.high


class TestRoofline:
    def test_a_step(self) -> None:
        point = Point("LSTM", "step", 1, 1, 256, 256)
        both = 2 * 4 * 256 * 256 * 4  # bytes of the two matrices: read, not computed, bounds it
        expected = both / CEILINGS.read_bandwidth(both) + 2 * roofline.FORWARD["LSTM"] * 256 / 100e9
        assert roofline.bound(point, CEILINGS, 100e9) == pytest.approx(expected)

    def test_many_rows_run_at_the_peak(self) -> None:
        point = Point("GRU", "inference", 10, 100, 64, 64)
        expected = point.flops / 50e9 + 10 * 100 * 2 * roofline.FORWARD["GRU"] * 64 / 50e9
        assert roofline.bound(point, CEILINGS, 50e9) == pytest.approx(expected)

    def test_weights_in_fewer_bits_are_read_and_multiplied_faster(self) -> None:
        ceilings = replace(CEILINGS, peak={**CEILINGS.peak, "int8": 800e9, "bfloat16": 400e9})
        point = Point("LSTM", "step", 1, 1, 256, 256)
        pointwise = 2 * roofline.FORWARD["LSTM"] * 256 / 100e9
        for weights, size in (("int8", 1), ("bfloat16", 2)):
            both = 2 * 4 * 256 * 256 * size
            expected = both / ceilings.read_bandwidth(both) + pointwise
            assert roofline.bound(point, ceilings, 100e9, weights) == pytest.approx(expected)
        many = Point("GRU", "inference", 10, 100, 64, 64)
        expected = many.flops / 400e9 + 10 * 100 * 2 * roofline.FORWARD["GRU"] * 64 / 50e9
        assert roofline.bound(many, ceilings, 50e9, "int8") == pytest.approx(expected)  # at half of the clock

    def test_training_reads_the_recurrent_weights_twice(self) -> None:
        point = Point("RNN", "training", 10, 1, 512, 512)
        weights = 512 * 512 * 4
        products = 4 * 2 * 512 * 512 / 100e9
        step = (
            2 * weights / CEILINGS.read_bandwidth(weights)
            + products
            + 2 * (roofline.FORWARD["RNN"] + roofline.BACKWARD["RNN"]) * 512 / 100e9
        )
        assert roofline.bound(point, CEILINGS, 100e9) == pytest.approx(10 * step)

    def test_threads_share_the_weights(self) -> None:
        one = Point("LSTM", "inference", 10, 1, 512, 512)
        two = replace(one, threads=2)
        assert roofline.bound(two, CEILINGS, 200e9) < 0.5 * roofline.bound(one, CEILINGS, 100e9)

    def test_finished_sequences_cost_nothing(self) -> None:
        ragged = Point("LSTM", "inference", 50, 64, 64, 64, variant="lengths")
        dense = replace(ragged, variant="")
        part = ragged.flops / dense.flops
        found = roofline.bound(ragged, CEILINGS, 1e9) / roofline.bound(dense, CEILINGS, 1e9)
        assert found == pytest.approx(part)

    def test_bandwidth_between_the_measured_sizes(self) -> None:
        assert CEILINGS.read_bandwidth(1) == 400e9
        assert CEILINGS.read_bandwidth(1 << 17) == pytest.approx(250e9)
        assert CEILINGS.read_bandwidth(1 << 40) == 10e9
        assert Ceilings.from_json(CEILINGS.to_json()) == CEILINGS


class TestReports:
    def test_compare(self) -> None:
        before = report(result(SMALL, torch=2.0), result(replace(SMALL, B=9)))
        same, worse = regressions(before, before, 0.1)
        assert worse == 0
        assert len(same.rows) == 2
        slower = report(result(SMALL, torch=1.5), result(replace(SMALL, B=9), ours=2e-3), result(replace(SMALL, B=7)))
        table, worse = regressions(before, slower, 0.1)
        assert worse == 2
        assert [row[1] for row in table.rows] == ["FMA peak", "torch"]
        assert regressions(before, slower, 0.6)[1] == 0
        assert regressions(slower, before, 0.1)[1] == 0

    def test_compare_takes_the_middle_of_the_common_peers(self) -> None:
        before = report(result(SMALL, torch=2.0, jax=2.0, numpy=2.0))
        noisy = report(result(SMALL, torch=2.0, jax=1.0, numpy=2.1))
        assert regressions(before, noisy, 0.1)[1] == 0

    def test_a_point_that_fails_now_is_worse(self) -> None:
        broken = Result(SMALL, failed="RuntimeError: no")
        assert regressions(report(result(SMALL)), report(broken), 0.1)[1] == 1

    def test_nothing_in_common(self) -> None:
        with pytest.raises(BadInput, match="no measured point in common"):
            regressions(report(result(SMALL)), report(result(replace(SMALL, B=9))), 0.1)

    def test_markdown(self) -> None:
        ahead, behind = result(replace(SMALL, I=7), torch=1.5, numpy=2.0), result(SMALL, torch=0.8)
        text = markdown.text(report(ahead, behind, Result(replace(SMALL, B=9), failed="RuntimeError: no")))
        assert "abacus" in text
        assert "| **1.50** | 2.00 |" in text
        assert "RuntimeError: no" in text
        assert "Points where a peer was ahead" in text
        rows = {
            len(line.split(" | ")) for line in text.split("LSTM inference, 1 thread")[1].splitlines() if "|" in line
        }
        assert len(rows) == 1

    def test_summary(self) -> None:
        one = result(replace(SMALL, I=7), 2e-3, torch=2.0)
        two = result(replace(SMALL, I=7, threads=2), 1e-3, torch=8.0, numpy=4.0)
        found = summary.tables(report(one, two))
        assert [row[4:7] for row in found[0].rows] == [["2.00", "2.00", "2.00"], ["4.00", "4.00", "8.00"]]
        assert found[1].rows == [["LSTM", "inference", "2", "1", "2.00", "2.00", "0"]]

    def test_plots(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        from fastrnn.bench.report import plots

        points = [Point("LSTM", "inference", 25, B, H, H) for B in (1, 16) for H in (32, 64)]
        written = plots.write(report(*(result(point, torch=1.5) for point in points)), tmp_path)
        assert [path.name for path in written] == ["speedup.png", "latency-LSTM.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
        assert plots.write(report(Result(SMALL, failed="no")), tmp_path) == []


class TestClaims:
    def claim(self, *figures: float | Exception) -> Claim:
        given = iter(figures)

        def measure(seconds: float) -> float:
            figure = next(given)
            if isinstance(figure, Exception):
                raise figure
            return figure

        return Claim("c", measure, 1.5, True, "x")

    def test_kept_at_once(self) -> None:
        assert self.claim(1.0).check(0.1).verdict == "ok"

    def test_missed_ones_are_measured_again(self) -> None:
        found = self.claim(2.0, 1.0, 1.0, 1.0).check(0.1)
        assert (found.measured, found.verdict) == (1.0, "ok")
        assert self.claim(2.0, 2.0, 2.0, 1.0).check(0.1).verdict == "MISSED"

    def test_without_a_figure(self) -> None:
        assert self.claim(ImportError("no torch")).check(0.1).verdict == "skipped"
        found = self.claim(RuntimeError("no")).check(0.1)
        assert (found.verdict, found.failed) == ("failed", "RuntimeError: no")

    def test_the_callers_floating_point_mode(self) -> None:
        assert CLAIMS["denormals, the caller's results lost"].check(0.1).measured == 0

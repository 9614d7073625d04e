"""fastrnn bench --device cuda: what it would measure, and what it says where it cannot."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import fastrnn
from fastrnn.bench import cuda
from fastrnn.bench.cuda import GpuPoint, GpuResult
from fastrnn.cli import main
from support import complaint


def test_the_grids_hold_what_the_target_names() -> None:
    full = list(cuda.points("full"))
    assert len(set(full)) == len(full)
    for cell in ("LSTM", "GRU", "RNN"):
        for H in (64, 128, 192, 256, 512, 768, 1024, 2048):
            for B in (1, 8, 32, 64, 128):
                assert GpuPoint(cell, "training", "bfloat16", 100, B, H) in full
    assert any(p.packed for p in full)
    assert any(p.layers == 2 for p in full)
    assert {p.name for p in cuda.points("quick")} <= {p.name for p in full}


@pytest.mark.parametrize(
    ("point", "persistent"),
    [
        (GpuPoint("LSTM", "inference", "float16", 100, 8, 128), True),
        (GpuPoint("LSTM", "inference", "bfloat16", 100, 8, 128), False),
        (GpuPoint("GRU", "inference", "float16", 100, 8, 128), False),
        (GpuPoint("LSTM", "inference", "float16", 100, 1, 128), False),
        (GpuPoint("LSTM", "inference", "float16", 100, 8, 192), False),
        (GpuPoint("LSTM", "inference", "float16", 100, 8, 2048), False),
        (GpuPoint("LSTM", "inference", "float16", 100, 8, 128, layers=2), False),
        (GpuPoint("LSTM", "inference", "float16", 100, 8, 128, bidirectional=True), False),
    ],
)
def test_which_points_cudnn_keeps_in_registers(point: GpuPoint, persistent: bool) -> None:
    assert point.persistent == persistent


def test_names_are_listed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--full", "--list", "--filter", "GRU-training-tf32*H64"]) == 0
    assert capsys.readouterr().out.split() == [f"GRU-training-tf32-T100-B{B}-H64" for B in (1, 8, 32, 64, 128)]


def test_means_of_groups() -> None:
    results = [
        GpuResult(GpuPoint("LSTM", "inference", "float16", 100, 8, 128), 1.0, 4.0, 0.0, 5),
        GpuResult(GpuPoint("LSTM", "training", "bfloat16", 100, 8, 128), 2.0, 2.0, 0.0, 5),
        GpuResult(GpuPoint("GRU", "training", "bfloat16", 100, 8, 128), 1.0, 4.0, 0.0, 5),
    ]
    rows = {name: (count, round(mean, 6), least) for name, count, mean, least in cuda.geometric_means(results)}
    assert rows["cuDNN's standard path"] == (2, 2.0, 1.0)
    assert rows["cuDNN's persistent path possible"] == (1, 4.0, 4.0)
    assert rows["bfloat16"] == (2, 2.0, 1.0)
    assert "RNN training" not in rows


def test_complaints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastrnn.cuda, "why_not", lambda: "the cat sat on it")
    assert "--device cuda: the cat sat on it" in complaint(capsys, "bench", "--device", "cuda")
    assert "knows no --claims, --pin" in complaint(capsys, "bench", "--device", "cuda", "--claims", "--pin")
    assert "no point of the quick grid" in complaint(capsys, "bench", "--device", "cuda", "--filter", "nothing")


def test_a_run_verifies_times_and_saves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With PyTorch's CPU in place of a GPU, a clock that ticks by itself, and one point that is wrong."""
    torch: Any = pytest.importorskip("torch")
    ticks = iter(range(10**6))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(ticks)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: "Event") -> float:
            return float(other.at - self.at)

    to, randn = torch.nn.Module.to, torch.randn
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: to(self, *args[1:]))
    monkeypatch.setattr(torch, "randn", lambda *shape, device=None: randn(*shape))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "no GPU")
    monkeypatch.setattr(cuda, "_torch_with_gpu", lambda: torch)
    monkeypatch.setattr(cuda, "points", lambda grid: iter([
        GpuPoint("LSTM", "training", "float32", 3, 2, 4, packed=True),
        GpuPoint("GRU", "inference", "tf32", 3, 2, 4, bidirectional=True),
    ]))  # fmt: skip
    assert cuda.run("quick", [], 1e-4, tmp_path, False) == 0
    saved = json.loads((tmp_path / "cuda.json").read_text())
    assert [r["name"] for r in saved["results"]] == [
        "LSTM-training-float32-T3-B2-H4-packed",
        "GRU-inference-tf32-T3-B2-H4-bi",
    ]
    assert all(r["turns"] >= 5 and r["ours"] > 0 for r in saved["results"])
    assert "cuDNN / fastrnn" in capsys.readouterr().out
    monkeypatch.setattr(cuda, "TOLERANCE", dict.fromkeys(cuda.TOLERANCE, -1.0))
    assert cuda.run("quick", ["GRU"], 1e-4, tmp_path, False) == 1
    told = re.search(r"y differs by (\S+); from float64, fastrnn (\S+), cuDNN (\S+)", capsys.readouterr().out)
    assert told
    assert all(0 <= float(error) < 1e-6 for error in told.groups())
    torch.set_float32_matmul_precision("highest")

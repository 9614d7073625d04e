"""The README's chart: five figures of a run, in colours for a light page and for a dark one."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..peers import PEERS
from .results import Report

# What a reader may want to know first, the least gain included; whole programs are in PyTorch.
ROWS = (
    ("one step of a stream\nLSTM, B=1 H=64", "LSTM-step-T1-B1-H64-t1"),
    ("training, lengths 10 to 100\nLSTM, B=64 H=128", "LSTM-training-T100-B64-H128-lengths-t1"),
    ("training\nGRU, T=25 B=16 H=128", "GRU-training-T25-B16-H128-t1"),
    ("training a tagger, packed, in PyTorch\nLSTM, 2 layers both ways, H=128", "tagger-packed-LSTM-H128-training"),
    ("training a language model in PyTorch\nLSTM, 2 layers, H=512", "language-model-LSTM-H512-L2-B32-T64-training"),
)
PAGES = {"light": ("#1f2328", "#d1d9e0"), "dark": ("#e6edf3", "#3d444d")}  # ink, lines
TORCH, OTHER = "#D55E00", "#56B4E9"

Bars = list[tuple[str, str, float]]  # label, colour, ratio


def write(report: Report, folder: Path) -> list[Path]:
    """Write ``chart-light.svg`` and ``chart-dark.svg`` if the run has all figures; return their paths."""
    rows = [(title, list(_bars(report, name))) for title, name in ROWS]
    if not all(bars for _, bars in rows):
        return []
    paths = []
    for page, (ink, lines) in PAGES.items():
        paths.append(folder / f"chart-{page}.svg")
        with rc_context({"svg.hashsalt": "fastrnn", "font.size": 9}):
            _figure(rows, ink, lines).savefig(paths[-1], transparent=True, metadata={"Date": None})
    return paths


def _bars(report: Report, name: str) -> Iterator[tuple[str, str, float]]:
    """How many times faster than PyTorch, and than the best of the other peers; on one thread."""
    for result in report.results:
        if result.point.name == name:
            exact = {k: a.ratio for k, a in result.peers.items() if a.exact and k != "torch-cell"}
            ratios = {k: ratio for k, ratio in exact.items() if ratio is not None}
            if "torch" in ratios:
                yield "PyTorch", TORCH, ratios.pop("torch")
            if ratios:
                best = min(ratios, key=ratios.__getitem__)
                yield PEERS[best].title, OTHER, ratios[best]
    for program in report.in_situ:
        if (program.name, program.threads) == (name, 1) and program.ratio is not None:
            yield "PyTorch", TORCH, program.ratio


def _figure(rows: list[tuple[str, Bars]], ink: str, lines: str) -> Figure:
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    ax = figure.subplots()
    for row, (_, bars) in enumerate(rows):
        for i, (label, colour, ratio) in enumerate(bars):
            at = row + 0.36 * (i - (len(bars) - 1) / 2)
            ax.barh(at, ratio - 1, height=0.32, left=1, color=colour)
            ax.text(max(ratio, 1) * 1.04, at, f"{ratio:.3g} x {label}", va="center", color=ink)
    ax.set_yticks(range(len(rows)), [title for title, _ in rows])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlim(0.8, 130)
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("times as fast as the peer, on one thread (1: the same speed)", color=ink)
    ax.axvline(1, color=ink, linewidth=1)
    ax.grid(axis="x", color=lines, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(colors=ink, length=0)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(False)
    return figure

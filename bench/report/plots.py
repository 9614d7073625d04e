"""The pictures: speed-up over the best peer as heat maps, and time per step with the roofline drawn in."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ..grid.shapes import CELLS, MODES
from ..machine.machine import sentence
from ..peers import PEERS
from .results import Report, Result
from .summary import geometric, threads_text

# Okabe and Ito's colours, which those who confuse red and green can tell apart; shapes tell them apart in print.
STYLES = {
    "torch": ("#D55E00", "o"),
    "torch-cell": ("#E69F00", "D"),
    "onnxruntime": ("#0072B2", "s"),
    "openvino": ("#009E73", "^"),
    "jax": ("#CC79A7", "v"),
    "numpy": ("#56B4E9", "P"),
    "onnxruntime-int8": ("#999999", "X"),
    "fastrnn-int8": ("#000000", "X"),
    "fastrnn-bfloat16": ("#000000", "d"),
    "torch-bfloat16": ("#D55E00", "d"),
    "ncnn-int8": ("#CC79A7", "X"),
    "openvino-bfloat16": ("#009E73", "d"),
}
WIDEST = 3.0  # the ratio at which the colours end
DPI = 110

Panel = tuple[str, int]  # mode, threads


def write(report: Report, folder: Path) -> list[Path]:
    """Write the pictures that the plain grid's results are enough for; return their paths."""
    results = [r for r in report.results if r.point.regular and r.point.mode != "call" and r.ours is not None]
    figures: dict[str, Figure] = {}
    if any(result.best for result in results):
        figures["speedup.png"] = _speedup([r for r in results if r.best], sentence(report.machine))
    for cell in CELLS:
        figure = _latency(cell, [r for r in results if r.point.cell == cell], sentence(report.machine))
        if figure is not None:
            figures[f"latency-{cell}.png"] = figure
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def _panels(results: Sequence[Result]) -> list[Panel]:
    """The kinds of panels that there are, in order."""
    found = {(r.point.mode, r.point.threads) for r in results}
    return sorted(found, key=lambda panel: (panel[1], MODES.index(panel[0])))


def _mean(results: Sequence[Result], figure: Callable[[Result], float | None]) -> float:
    """Over the sequence lengths of one H and B; NaN of nothing."""
    values = [value for result in results if (value := figure(result)) is not None]
    return geometric(values) if values else float("nan")


def _speedup(results: Sequence[Result], subtitle: str) -> Figure:
    """One heat map per cell, mode and number of threads: H to the right, B upwards."""
    panels = _panels(results)
    cells = [cell for cell in CELLS if any(r.point.cell == cell for r in results)]
    sizes = sorted({r.point.H for r in results}), sorted({r.point.B for r in results})
    width, height = 0.62 * len(sizes[0]) + 0.9, 0.36 * len(sizes[1]) + 0.9
    size = (max(len(cells) * width + 0.8, 7), len(panels) * height + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(cells), squeeze=False, sharex=True, sharey=True)
    norm = LogNorm(1 / WIDEST, WIDEST)
    image = None
    for row, (mode, threads) in zip(axes, panels, strict=True):
        for ax, cell in zip(row, cells, strict=True):
            some = [r for r in results if (r.point.cell, r.point.mode, r.point.threads) == (cell, mode, threads)]
            if not some:
                ax.set_visible(False)
                continue
            image = _heat_map(ax, some, sizes, norm)
            ax.set_title(f"{cell} {mode}, {threads_text(threads)}", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("B", rotation=0, labelpad=10)
    for ax in axes[-1]:
        ax.set_xlabel("H")
    bar = figure.colorbar(
        image, ax=axes, shrink=min(1.0, 3 / size[1]), extend="both", label="times faster than the best peer"
    )
    bar.set_ticks([1 / 3, 1 / 2, 1, 2, 3], labels=["1/3", "1/2", "1", "2", "3"])
    bar.minorticks_off()
    _headline(figure, "fastrnn against the best peer at each size", subtitle, size[0])
    return figure


def _heat_map(ax: Any, results: Sequence[Result], sizes: tuple[list[int], list[int]], norm: LogNorm) -> Any:
    values = np.array(
        [
            [
                _mean([r for r in results if (r.point.H, r.point.B) == (H, B)], lambda r: r.ratio(r.best))
                for H in sizes[0]
            ]
            for B in sizes[1]
        ]
    )
    image = ax.imshow(values, cmap=colormaps["RdBu"], norm=norm, aspect="auto", origin="lower")
    ax.set_facecolor("#eeeeee")
    ax.set_xticks(range(len(sizes[0])), sizes[0], fontsize=8)
    ax.set_yticks(range(len(sizes[1])), sizes[1], fontsize=8)
    ax.tick_params(length=0)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = not 1 / 2 < value < 2
            text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return image


def _latency(cell: str, results: Sequence[Result], subtitle: str) -> Figure | None:
    """Time per step against H: a row per mode and number of threads, a column per B; None without two sizes."""
    groups: dict[tuple[Panel, int], list[Result]] = {}
    for r in results:
        groups.setdefault(((r.point.mode, r.point.threads), r.point.B), []).append(r)
    groups = {key: some for key, some in groups.items() if len({r.point.H for r in some}) > 1}
    if not groups:
        return None
    shown = [r for some in groups.values() for r in some]
    panels, batches = _panels(shown), sorted({r.point.B for r in shown})
    size = (max(2.9 * len(batches) + 0.6, 7), 2.5 * len(panels) + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), len(batches), squeeze=False, sharex=True)
    handles: dict[str, Any] = {}
    for row, panel in zip(axes, panels, strict=True):
        for ax, B in zip(row, batches, strict=True):
            if (panel, B) not in groups:
                ax.set_visible(False)
                continue
            handles |= _lines(ax, groups[panel, B])
            ax.set_title(f"{panel[0]}, {threads_text(panel[1])}, B={B}", fontsize=9)
        row[0].set_ylabel("us a step")
    for ax in axes[-1]:
        ax.set_xlabel("H")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    _headline(figure, f"{cell}: time per step", subtitle, size[0])
    return figure


def _lines(ax: Any, results: Sequence[Result]) -> dict[str, Any]:
    """Draw one panel; return its lines by name."""
    sizes = sorted({r.point.H for r in results})

    def per_step(seconds: Callable[[Result], float | None]) -> list[float]:
        def figure(r: Result) -> float | None:
            found = seconds(r)
            return None if found is None else found / r.point.T * 1e6

        return [_mean([r for r in results if r.point.H == H], figure) for H in sizes]

    def peer_seconds(r: Result, key: str) -> float | None:
        ratio = r.ratio(key)
        return None if ratio is None or r.ours is None else ratio * r.ours.median

    handles = {}
    for key, (colour, marker) in STYLES.items():
        times = per_step(lambda r, key=key: peer_seconds(r, key))  # type: ignore[misc]
        if np.isfinite(times).any():
            title = PEERS[key].title
            (handles[title],) = ax.plot(sizes, times, color=colour, marker=marker, markersize=4, linewidth=1.1)
    ours = per_step(lambda r: r.ours.median if r.ours else None)
    (handles["fastrnn"],) = ax.plot(sizes, ours, color="black", marker="o", markersize=5, linewidth=2.2)
    roof = per_step(lambda r: r.bound)
    (handles["roofline"],) = ax.plot(sizes, roof, color="black", linestyle=(0, (4, 3)), linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sizes, [str(H) for H in sizes], fontsize=8)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.fill_between(sizes, ax.get_ylim()[0], roof, color="#dddddd", linewidth=0)
    ax.margins(y=0)
    ax.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    ax.set_axisbelow(True)
    return handles


def _headline(figure: Figure, title: str, subtitle: str, width: float) -> None:
    """A title, and below it the machine in lines that fit."""
    figure.suptitle("\n".join([title, *textwrap.wrap(subtitle, int(width * 13))]), fontsize=9)

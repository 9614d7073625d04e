"""The figures of a run, as tables that the terminal and the Markdown file both show."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..grid.shapes import CELLS, MODES
from .results import Report, Result

NEAR = 0.97  # a ratio from here to 1 may be noise
PYTORCH = "torch"


@dataclass(frozen=True)
class Table:
    """A heading, the columns' names, rows of text; `left` are the columns of words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0, 1)


def threads_text(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def size_text(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def _mean(values: Iterable[float | None]) -> str:
    """The geometric mean of those that there are."""
    known = [v for v in values if v]
    return f"{statistics.geometric_mean(known):.2f}" if known else "-"


def _least(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    return f"{min(known):.2f}" if known else "-"


def _figures(results: list[Result]) -> list[str]:
    best = [result.ratio(result.best) for result in results]
    return [
        str(len(results)),
        _mean(best),
        _least(best),
        _mean(result.ratio(PYTORCH) for result in results),
        _mean(result.ratio(result.best) for result in results if result.point.B == 1),
        _mean(result.fraction for result in results),
        f"{sum(r is not None and r < 1 for r in best)} ({sum(r is not None and r < NEAR for r in best)})",
    ]


FIGURES = ("points", "best peer", "least", "PyTorch", "best at B=1", "roofline", f"below 1 ({NEAR})")


def ratios(report: Report) -> list[Table]:
    """Geometric means of the ratios: the plain grid, and what stands beside it."""
    rows, others = [], []
    for threads in sorted({result.point.threads for result in report.results}):
        for cell in CELLS:
            for mode in MODES:
                some = [
                    r for r in report.results if (r.point.cell, r.point.mode, r.point.threads) == (cell, mode, threads)
                ]
                some = [r for r in some if r.ours is not None]
                if plain := [r for r in some if r.point.regular]:
                    rows.append([cell, mode, str(threads), *_figures(plain)])
                if special := [r for r in some if not r.point.regular]:
                    others.append([cell, mode, str(threads), *_figures(special)])
    tables = []
    columns = ("cell", "mode", "threads", *FIGURES)
    if rows:
        tables.append(Table("Ratios, peer's time over fastrnn's: geometric means", columns, rows))
    if others:
        title = "The same for several layers, two directions, lengths, resets, float64, batch_first, I other than H"
        tables.append(Table(title, columns, others))
    return tables


def scaling(report: Report) -> list[Table]:
    """What more threads bring to fastrnn, where a point was measured on one and on more."""
    single = {r.point: r.ours.median for r in report.results if r.ours and r.point.threads == 1}
    gains: dict[tuple[str, str, int], list[float]] = {}
    for result in report.results:
        point = result.point
        alone = single.get(replace(point, threads=1))
        if result.ours and point.threads > 1 and alone is not None:
            gains.setdefault((point.cell, point.mode, point.threads), []).append(alone / result.ours.median)
    rows = [
        [cell, mode, str(threads), str(len(some)), _mean(some), _least(some), str(sum(g < 1 for g in some))]
        for (cell, mode, threads), some in gains.items()
    ]
    columns = ("cell", "mode", "threads", "points", "mean gain", "least", "slower")
    return [Table("fastrnn on several threads against one, in different processes", columns, rows)] if rows else []


def shortfalls(report: Report) -> list[Table]:
    """The points where a peer was ahead, the worst first."""
    behind: list[tuple[float, Result]] = []
    for result in report.results:
        ratio = result.ratio(result.best)
        if ratio is not None and ratio < 1:
            behind.append((ratio, result))
    behind.sort(key=lambda pair: pair[0])
    rows = []
    for ratio, result in behind:
        against = result.peers[result.best or ""]
        each = " ".join(f"{c.ratio:.2f}" for c in against.comparisons)
        reached = "-" if result.fraction is None else f"{100 * result.fraction:.0f} %"
        rows.append([result.point.name, result.best or "", f"{ratio:.2f}", each, reached])
    columns = ("point", "peer", "ratio", "measured", "roofline")
    return [Table("Points where a peer was ahead", columns, rows)] if rows else []


def in_situ(report: Report) -> list[Table]:
    """Whole programs without fastrnn over with it, on each number of threads."""
    tables = []
    for threads in dict.fromkeys(program.threads for program in report.in_situ):
        rows = []
        for p in report.in_situ:
            if p.threads != threads:
                continue
            if p.ratio is None:
                rows.append([p.name, p.failed or p.skipped, *[""] * 5])
                continue
            inside = "-" if p.inside_ratio is None else f"{p.inside_ratio:.2f}"
            alone = "-" if p.alone is None else f"{p.alone:.2f}"
            times = [f"{1e3 * t:,.2f}" for t in (p.plain, p.fast)]
            rows.append([p.name, *times, f"{p.ratio:.2f}", f"{min(p.whole):.2f}-{max(p.whole):.2f}", inside, alone])
        title = f"Whole programs without fastrnn over with it, {threads_text(threads)}"
        title += "; of NumPy's, one of our threads over all" if threads > 1 else ""
        tables.append(Table(title, IN_SITU, rows, left=(0,)))
    return tables


IN_SITU = ("program", "without, ms", "with, ms", "ratio", "of five runs", "recurrent part", "the same alone")


def geometric(values: Sequence[float]) -> float:
    """The geometric mean; 1 of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else 1.0


SUMMARY: tuple[Callable[[Report], list[Table]], ...] = (ratios, scaling, shortfalls)


def tables(report: Report) -> list[Table]:
    """All tables of the summary that have something to say."""
    return [table for make in SUMMARY for table in make(report)]

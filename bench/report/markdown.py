"""results.md: the tables of a run, fit for a README."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..grid.shapes import quick
from ..machine.ceilings import WEIGHTS
from ..machine.machine import sentence
from ..peers import PEERS
from . import summary
from .results import Report, Result
from .summary import Table, size_text, threads_text


def write(report: Report, folder: Path) -> list[Path]:
    """Write the file; return its path."""
    path = folder / "results.md"
    path.write_text(text(report), encoding="utf-8")
    return [path]


def text(report: Report) -> str:
    """The whole file."""
    peers = ", ".join(f"{PEERS[key].title} {version}" for key, version in report.versions.items())
    parts = ["# fastrnn bench", sentence(report.machine) + "."]
    if peers:
        parts.append(
            f"Against {peers}: in one process turn by turn, the same number of threads, after verifying that the "
            "results agree. A ratio is the peer's median time over fastrnn's: above 1 fastrnn is faster."
            + "".join(
                f" {PEERS[key].title} rounds on purpose and is never the best."
                for key in report.versions
                if _rounds(key)
            )
        )
    if report.interrupted:
        parts.append("The run was interrupted; this is what had been measured.")
    parts += [_problem(problem) for problem in report.problems]
    parts += [_table(table) for table in (_glance(report), *summary.tables(report)) if table.rows]
    parts += [_table(table) for table in (_claims(report), *summary.in_situ(report), *_ceilings(report)) if table.rows]
    parts += [_table(table) for table in _points(report)]
    return "\n\n".join(parts) + "\n"


def _rounds(key: str) -> bool:
    return PEERS[key].tolerance is not None


def _problem(problem: str) -> str:
    return f"**Lost:** {problem}."


def _table(table: Table) -> str:
    rule = ["---" if i in table.left else "---:" for i in range(len(table.columns))]
    lines = [_row(table.columns), _row(rule), *(_row(row) for row in table.rows)]
    return f"## {table.title}\n\n" + "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _glance(report: Report) -> Table:
    """Those of the quick points that were measured, all threads of a point in one row: the table of the README."""
    counts = sorted({result.point.threads for result in report.results})
    found = {result.point.name: result for result in report.results}
    columns = [""]
    for n in counts:
        columns += [f"us a call, {threads_text(n)}", "PyTorch", "best peer"]
    rows = []
    for point in quick(counts[:1]):
        cells = [cell for n in counts for cell in _glanced(found.get(replace(point, threads=n).name))]
        if any(cells):
            rows.append([f"{point.cell} {point.mode}, {point.sizes.replace('-', ' ')}", *cells])
    return Table("At a glance", columns, rows, left=(0,))


def _glanced(result: Result | None) -> list[str]:
    if result is None or result.ours is None:
        return ["", "", ""]
    torch, best = result.ratio("torch"), result.best
    return [
        f"{result.ours.median * 1e6:,.0f}" if result.ours.median > 1e-4 else f"{result.ours.median * 1e6:.1f}",
        "-" if torch is None else f"{torch:.1f}" if torch >= 2 else f"{torch:.2f}",
        "-" if best is None else f"{PEERS[best].title} {result.ratio(best):.2f}",
    ]


def _claims(report: Report) -> Table:
    rows = []
    for claim in report.claims:
        measured = "" if claim.measured is None else f"{claim.measured:.3g} {claim.unit}"
        limit = f"{'at most' if claim.at_most else 'at least'} {claim.limit:.3g}"
        rows.append([claim.name, measured, limit, f"{claim.verdict} {claim.failed or claim.skipped}".strip()])
    return Table("What fastrnn promises", ("claim", "measured", "limit", ""), rows, left=(0, 3))


def _ceilings(report: Report) -> list[Table]:
    tables = []
    for n, found in report.ceilings.items():
        rows = [
            [f"{'products' if kind in WEIGHTS else 'FMA'}, {kind}", f"{rate / 1e9:.0f} GFLOP/s"]
            for kind, rate in found.peak.items()
        ]
        rows += [[f"read {size_text(s)}", f"{rate / 1e9:.0f} GB/s"] for s, rate in found.bandwidth.items()]
        title = f"Ceilings of {threads_text(n)}: FMA of all together, reads of each"
        tables.append(Table(title, ("what", "rate"), rows, left=(0,)))
    return tables


def _points(report: Report) -> list[Table]:
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for result in report.results:
        groups.setdefault((result.point.cell, result.point.mode, result.point.threads), []).append(result)
    return [_group(*key, results) for key, results in groups.items()]


def _group(cell: str, mode: str, threads: int, results: list[Result]) -> Table:
    keys = [key for key in PEERS if any(result.ratio(key) is not None for result in results)]
    columns = ["point", "us a call", "us a step", "10-90 %", "GFLOP/s", "roofline", *(PEERS[key].title for key in keys)]
    rows = []
    for result in results:
        point, ours = result.point, result.ours
        if ours is None:
            rows.append([point.sizes, result.failed, *[""] * (len(columns) - 2)])
            continue
        spread = f"{ours.low * 1e6:,.1f}-{ours.high * 1e6:,.1f}"
        row = [point.sizes, f"{ours.median * 1e6:,.1f}", f"{ours.median / point.T * 1e6:,.2f}", spread]
        row += [f"{point.flops / ours.median / 1e9:.1f}", f"{result.fraction or 0:.2f}"]
        rows.append(row + [_against(result, key) for key in keys])
    return Table(f"{cell} {mode}, {threads_text(threads)}", columns, rows, left=(0,))


def _against(result: Result, key: str) -> str:
    against = result.peers.get(key)
    if against is None or against.skipped:
        return "-"
    if against.ratio is None:
        return "**wrong result**" if against.mismatch else "error"
    if not against.exact:
        part = "" if against.fraction is None else f", {against.fraction:.2f} of its roofline"
        return f"{against.ratio:.2f} (off by {against.error:.0e}{part})"
    return f"**{against.ratio:.2f}**" if key == result.best else f"{against.ratio:.2f}"

"""The live table: a line per point as it comes, and below it what is measured now."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from ..grid.shapes import Point
from ..insitu.catalogue import title
from ..insitu.result import InSituResult
from ..machine.ceilings import Ceilings
from ..peers import PEERS
from .results import Against, ClaimResult, Result
from .summary import NEAR, Table, size_text, threads_text

NARROW = 60  # columns below which nothing more is left out of the live table
WIDE = 110  # what the tables of the summary take


class Column(NamedTuple):
    """A column of the live table; those of the highest rank are the first to go where the terminal is narrow."""

    title: str
    width: int
    rank: int


FIXED = [
    Column("point", 25, 0),
    Column("us/call", 10, 3),
    Column("us/step", 9, 0),
    Column("10-90 %", 8, 4),
    Column("GFLOP/s", 7, 5),
    Column("roof %", 6, 1),
]
PEER_RANK = 2
BEST = Column("best peer", 12, 0)


def make_console() -> Console:
    """The console of stdout, without guesses about what is a number or a path; a file is as wide as its tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


class Screen:
    """Prints to a rich console; without a terminal the lines come without colour and without what moves."""

    def __init__(self, console: Console, peers: Sequence[str]) -> None:
        self.console, self.peers = console, peers
        self.group: tuple[str, str, int] | None = None
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=None)

    @contextmanager
    def following(self, total: int) -> Iterator[None]:
        """Show the progress of so many points and claims."""
        self.progress.update(self.task, total=total)
        with self.progress:
            yield

    def note(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)

    def warn(self, text: str) -> None:
        self.note(text, "yellow")

    def ceilings(self, found: Ceilings) -> None:
        """Say what the machine can do."""
        peak = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in found.peak.items())
        reads = ", ".join(f"{size_text(size)} {rate / 1e9:.0f}" for size, rate in found.bandwidth.items())
        self.note(f"\nCeilings of {threads_text(found.threads)}: {peak}; each reads, GB/s by working set: {reads}")

    def begin(self, name: str) -> None:
        self.progress.update(self.task, description=name)

    def result(self, result: Result) -> None:
        """Print the point's line, a heading before the first of its kind."""
        point = result.point
        columns = self._columns(point)
        group = (point.cell, point.mode, point.threads)
        if group != self.group:
            self.group = group
            self.note(f"\n{point.cell} {point.mode}, {threads_text(point.threads)}", "bold")
            titles = [c.title.ljust(c.width) if c.title == "point" else c.title.rjust(c.width) for c in columns]
            self.note(" ".join(titles).rstrip(), "dim")
        cells = self._cells(result)
        line = Text(" ").join(_fit(cells[column.title], column) for column in columns)
        line.rstrip()
        self.console.print(line, soft_wrap=True)
        for text in _complaints(result):
            self.note(f"  {text}", "red")
        self.progress.advance(self.task)

    def claim(self, claim: ClaimResult, note: str) -> None:
        """Print one claim's line."""
        measured = "" if claim.measured is None else f"{claim.measured:.3g}"
        sign = "<=" if claim.at_most else ">="
        line = Text(f"{claim.name:<52} {measured:>8} {claim.unit:<7} {sign} {claim.limit:<5.3g} ")
        line.append(claim.verdict, {"ok": "green", "MISSED": "bold red"}.get(claim.verdict, "yellow"))
        line.append(f"  {claim.failed or claim.skipped or note}", "dim")
        self.console.print(line, soft_wrap=True)
        self.progress.advance(self.task)

    def program(self, program: InSituResult) -> None:
        """Print one program's line."""
        line = Text(f"{title(program.name, program.threads):<58} ")
        if program.ratio is None:
            line.append(program.failed or program.skipped, "bold red" if program.failed else "yellow")
        else:
            line.append(f"{1e3 * program.plain:9,.2f} {1e3 * program.fast:9,.2f} ms ")
            line += _coloured(program.ratio)
            parts = [f"  {min(program.whole):.2f}-{max(program.whole):.2f}"]
            parts += [f"inside {program.inside_ratio:.2f}"] if program.inside_ratio is not None else []
            parts += [f"alone {program.alone:.2f}"] if program.alone is not None else []
            line.append(", ".join(parts), "dim")
        self.console.print(line, soft_wrap=True)
        self.progress.advance(self.task)

    def table(self, table: Table) -> None:
        """Print a table of the summary."""
        self.note(f"\n{table.title}", "bold")
        shown = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for i, name in enumerate(table.columns):
            shown.add_column(name, justify="left" if i in table.left else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        self.console.print(shown, width=max(self.console.width, WIDE), crop=False, soft_wrap=True)

    def _columns(self, point: Point) -> list[Column]:
        columns = [*FIXED]
        columns += [
            Column(PEERS[key].short, max(6 if PEERS[key].tolerance is None else 10, len(PEERS[key].short)), PEER_RANK)
            for key in self.peers
            if _ever(key, point)
        ]
        columns.append(BEST)
        while sum(c.width + 1 for c in columns) - 1 > max(self.console.width, NARROW):
            columns.remove(max(reversed(columns), key=lambda column: column.rank))
        return columns

    def _cells(self, result: Result) -> dict[str, Text]:
        point, ours = result.point, result.ours
        cells = {column.title: Text() for column in [*FIXED, BEST]}
        cells["point"] = Text(point.sizes)
        if ours is None:
            cells["best peer"] = Text("error", "bold red")
            return cells | {PEERS[key].short: Text() for key in self.peers}
        spread = f"{100 * (ours.low / ours.median - 1):+.0f} {100 * (ours.high / ours.median - 1):+.0f}"
        cells |= {
            "us/call": Text(f"{ours.median * 1e6:,.1f}"),
            "us/step": Text(f"{ours.median / point.T * 1e6:,.2f}"),
            "10-90 %": Text(spread),
            "GFLOP/s": Text(f"{point.flops / ours.median / 1e9:.1f}"),
            "roof %": Text("" if result.fraction is None else f"{100 * result.fraction:.0f}"),
        }
        for key in self.peers:
            cells[PEERS[key].short] = _ratio(result.peers.get(key))
        best = result.best
        if best is not None:
            ratio = result.ratio(best)
            cells["best peer"] = Text(f"{PEERS[best].short} ") + _coloured(ratio)
        if result.mismatched:
            cells["best peer"] = Text("wrong result", "bold red")
        return cells


def _ever(key: str, point: Point) -> bool:
    """Whether the peer has a column in this point's group: it supports the plain point, or this one."""
    plain = Point(point.cell, point.mode, point.T, point.B, point.H, point.H, threads=point.threads)
    return any(PEERS[key].unsupported(p) is None for p in (plain, point))


def _fit(text: Text, column: Column) -> Text:
    text = text.copy()
    if column.title == "point":
        text.pad_right(column.width - len(text))
    else:
        text.pad_left(column.width - len(text))
    return text


def _coloured(ratio: float | None) -> Text:
    """A ratio; what falls short is marked for those who see no colours, too."""
    if ratio is None:
        return Text("-", "dim")
    if ratio >= 1:
        return Text(f"{ratio:.2f}", "green")
    return Text(f"{ratio:.2f}~", "yellow") if ratio >= NEAR else Text(f"{ratio:.2f}!", "bold red")


def _ratio(against: Against | None) -> Text:
    if against is None or against.skipped:
        return Text("-", "dim")
    if against.failed:
        return Text("wrong" if against.mismatch else "error", "bold red")
    if against.ratio is None:
        return Text("")
    return Text(f"{against.ratio:.2f}") if against.exact else Text(f"{against.ratio:.2f} {against.error:.0e}", "dim")


def _complaints(result: Result) -> list[str]:
    texts = [f"fastrnn: {result.failed}"] if result.failed else []
    return texts + [f"{PEERS[key].title}: {a.failed}" for key, a in result.peers.items() if a.failed]

"""What ``fastrnn bench`` does with its options."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrnn._core import available_threads

from .claims.claims import CLAIMS
from .grid import shapes
from .grid.shapes import Point
from .insitu import catalogue
from .peers import BITS, PEERS, USUAL
from .report import markdown, summary
from .report.compare import regressions
from .report.results import BadInput, Report

DONE, FAILED, INTERRUPTED = 0, 1, 130
SECONDS = {"quick": 0.2, "full": 0.12, "claims": 0.5, "in-situ": 1.0}  # of a pair, so that 90 s and 90 minutes are kept


@dataclass(frozen=True)
class Options:
    """The command line.

    Attributes
    ----------
    grid : {"quick", "full", None}
        Which points; None with `claims` or `in_situ` measures none.
    filters : sequence of str
        Keep the points whose names hold or match one of these; whole names need not be in the grid.
    peers, threads : sequence, optional
        All peers, and one and two threads, for `in_situ` also all that there are, by default.
    seconds : float, optional
        For one pair.
    pin : bool
        Whether a worker on N threads may use N processors only.
    output : Path
        The folder of the results.
    claims : bool
        Whether to check what fastrnn promises about itself.
    in_situ : bool
        Whether to measure whole programs.
    bits : bool
        Whether the peers are, by default, those with fewer bits, at the points where weights may have them.
    """

    grid: str | None = "quick"
    filters: Sequence[str] = ()
    peers: Sequence[str] | None = None
    threads: Sequence[int] | None = None
    seconds: float | None = None
    pin: bool = False
    output: Path = Path("fastrnn-bench")
    claims: bool = False
    in_situ: bool = False
    bits: bool = False

    def points(self) -> list[Point]:
        """The points asked for; BadInput if there are none."""
        if self.grid is None:
            return []
        threads = self._threads([1, 2])
        grid = shapes.full(threads) if self.grid == "full" else shapes.quick(threads)
        found = shapes.select(grid, self.filters)
        if self.bits:
            found = [p for p in found if BITS["fastrnn-int8"].unsupported(p) is None]
        if not found:
            raise BadInput(
                f"no point of the {self.grid} grid on {' or '.join(map(str, threads))} threads matches "
                f"{' or '.join(map(repr, self.filters))}: --list shows the names, --full has more of them"
            )
        return found

    def claim_names(self) -> list[str]:
        """The claims asked for, where no grid takes the filters; BadInput if there are none."""
        if not self.claims:
            return []
        names = [n for n in CLAIMS if self.grid or not self.filters or shapes.matches(n, self.filters)]
        if not names:
            raise BadInput(f"no claim matches {' or '.join(map(repr, self.filters))}: --list --claims shows the names")
        return names

    def programs(self) -> list[tuple[str, int]]:
        """The programs asked for, each with its number of threads; BadInput if there are none."""
        if not self.in_situ:
            return []
        filters = [] if self.grid else self.filters
        found = catalogue.select(self._threads([1, 2, available_threads()]), filters)
        if not found:
            raise BadInput(f"no program matches {' or '.join(map(repr, filters))}: --list --in-situ shows the names")
        return found

    def known_peers(self) -> list[str]:
        """The peers asked for; BadInput for one that is none."""
        if self.peers is None:
            return list(BITS) if self.bits else list(USUAL)
        wrong = [key for key in self.peers if key not in PEERS]
        if wrong:
            raise BadInput(f"unknown peer {', '.join(map(repr, wrong))}; there are {', '.join(PEERS)}, or none")
        return [key for key in PEERS if key in self.peers]

    def _threads(self, default: Sequence[int]) -> list[int]:
        available = available_threads()
        if self.threads is None:
            return sorted({n for n in default if n <= available})
        if max(self.threads) > available:
            raise BadInput(f"--threads asks for {max(self.threads)}, but this process may use {available} processors")
        return sorted(set(self.threads))


def run(options: Options) -> int:
    """Measure, show and save; return the exit code: 0, 1 if something is wrong with the results, 130 after Ctrl-C.

    Raises
    ------
    BadInput
        If the options cannot be followed; nothing was measured then.
    OSError
        If the folder cannot be written to.
    """
    points, claims, programs, peers = options.points(), options.claim_names(), options.programs(), options.known_peers()
    _need_rich()
    from .grid.session import Session, plan, save
    from .report.screen import Screen, make_console

    options.output.mkdir(parents=True, exist_ok=True)
    seconds = options.seconds or SECONDS[options.grid or ("claims" if claims else "in-situ")]
    works = plan(points, claims, programs, peers, seconds, options.pin)
    asked = dataclasses.asdict(options) | {"output": str(options.output), "seconds": seconds, "peers": peers}
    screen = Screen(make_console(), peers)
    session = Session(screen, asked, lambda report: save(report, options.output))
    counts = {"points": len(points), "claims": len(claims), "programs": len(programs)}
    screen.note(f"{', '.join(f'{n} {what}' for what, n in counts.items() if n)}; {session.heading}")
    report = session.run(works)
    for table in summary.tables(report):
        screen.table(table)
    written = [save(report, options.output), *markdown.write(report, options.output)]
    written += _plots(report, options.output, screen.warn)
    screen.note(f"\nWritten: {', '.join(map(str, written))}")
    if report.interrupted:
        screen.warn(f"interrupted: {len(report.results)} of {len(points)} points were measured")
        return INTERRUPTED
    return FAILED if _went_wrong(report) else DONE


def show_names(options: Options) -> int:
    """Print the names of the points that would be measured."""
    for point in options.points():
        print(point.name)
    for name in options.claim_names():
        print(name)
    for name, threads in options.programs():
        print(catalogue.title(name, threads))
    return DONE


def compare_files(old: Path, new: Path, threshold: float) -> int:
    """Print what changed from one results.json to another; 1 if a point got worse by more than the threshold.

    Raises
    ------
    BadInput, OSError
        If one of them cannot be read as such, or they have no point in common.
    """
    _need_rich()
    from .report.screen import Screen, make_console

    table, worse = regressions(Report.read(old), Report.read(new), threshold)
    screen = Screen(make_console(), [])
    screen.table(table)
    screen.note(f"\n{worse} of {len(table.rows)} points got worse by more than {100 * threshold:g} %")
    return FAILED if worse else DONE


def _went_wrong(report: Report) -> bool:
    """Whether a worker was lost, results differed, fastrnn failed or a promise was missed."""
    lost = any(result.mismatched or result.failed for result in report.results)
    lost |= any(program.failed for program in report.in_situ)
    return bool(report.problems) or lost or any(claim.verdict in ("MISSED", "failed") for claim in report.claims)


def _need_rich() -> None:
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise BadInput(f"the tables need rich ({error}): pip install 'fastrnn[bench]'") from error


def _plots(report: Report, folder: Path, warn: Callable[[str], None]) -> list[Path]:
    try:
        from .report import chart, plots
    except ImportError as error:
        warn(f"no plots ({error}): pip install 'fastrnn[plot]'")
        return []
    return plots.write(report, folder) + chart.write(report, folder)

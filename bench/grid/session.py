"""One run: a worker process for every number of threads, whose events become the report."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..claims.claims import CLAIMS
from ..insitu.catalogue import title
from ..insitu.result import InSituResult
from ..machine.ceilings import Ceilings
from ..machine.machine import describe, sentence
from ..peers import PEERS
from ..report.results import ClaimResult, Report, Result
from ..report.screen import Screen
from .shapes import Point

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "FASTRNN_NUM_THREADS",
)
WORKER = [sys.executable, "-m", f"{__package__}.worker"]
IN_SITU_PEERS = ("torch", "onnxruntime")  # whose versions a table of programs has to tell
KEEP_EVERY = 30.0  # seconds between two savings of a long run
LAST_LINES = 5


@dataclass(frozen=True)
class Work:
    """What one worker is to do."""

    threads: int
    points: list[str]
    claims: list[str]
    programs: list[str]
    peers: list[str]
    seconds: float
    pin: bool

    @property
    def names(self) -> list[str]:
        return [*self.points, *self.claims, *(title(name, self.threads) for name in self.programs)]

    def job(self) -> dict[str, Any]:
        processors = sorted(os.sched_getaffinity(0))[: self.threads] if self.pin else []
        parts = {name: getattr(self, name) for name in ("threads", "points", "claims", "programs", "peers", "seconds")}
        return parts | {"processors": processors}


def plan(
    points: Sequence[Point],
    claims: Sequence[str],
    programs: Sequence[tuple[str, int]],
    peers: Sequence[str],
    seconds: float,
    pin: bool,
) -> list[Work]:
    """One worker for each number of threads, in the points' order; one more for the claims, others for programs."""
    counts = dict.fromkeys(point.threads for point in points)
    works = [
        Work(n, [point.name for point in points if point.threads == n], [], [], list(peers), seconds, pin)
        for n in counts
    ]
    if claims:
        works.append(Work(2, [], list(claims), [], [], seconds, pin))
    for n in dict.fromkeys(threads for _, threads in programs):
        names = [name for name, threads in programs if threads == n]
        works.append(Work(n, [], [], names, [key for key in peers if key in IN_SITU_PEERS], seconds, pin))
    return works


class Session:
    """Runs the works one after the other and fills the report.

    Parameters
    ----------
    screen : Screen
        Shows what happens.
    keep : callable
        Called with the report from time to time, so that a long run survives whatever ends it.
    """

    def __init__(self, screen: Screen, options: dict[str, Any], keep: Callable[[Report], object]) -> None:
        self.screen, self.keep = screen, keep
        self.report = Report(describe(), options)
        self.heading = sentence(self.report.machine)
        self.kept = time.monotonic()

    def run(self, works: Sequence[Work]) -> Report:
        """Do all the works; after Ctrl-C return what there is."""
        try:
            with self.screen.following(sum(len(work.names) for work in works)):
                for work in works:
                    self._run(work)
        except KeyboardInterrupt:
            self.report.interrupted = True
        return self.report

    def _run(self, work: Work) -> None:
        left = work.names
        with tempfile.TemporaryFile() as errors, _worker(work, errors) as process:
            assert process.stdout is not None, "the worker's events come through a pipe"
            for line in process.stdout:
                event = json.loads(line)
                self._take(event)
                if event["event"] in ("result", "claim", "program"):
                    left = left[1:]
                if time.monotonic() - self.kept > KEEP_EVERY:
                    self.keep(self.report)
                    self.kept = time.monotonic()
            code = process.wait()
            if code or left:
                self._died(work, code, left, errors)

    def _take(self, event: dict[str, Any]) -> None:
        report, screen = self.report, self.screen
        match event["event"]:
            case "peer":
                if event["peer"] not in report.versions:
                    report.versions[event["peer"]] = event["version"]
                    screen.note(f"{PEERS[event['peer']].title} {event['version']}")
            case "missing":
                if event["peer"] not in report.missing:
                    report.missing[event["peer"]] = event["needs"]
                    title = PEERS[event["peer"]].title
                    screen.warn(f"{title} is left out ({event['why']}): pip install {event['needs']}")
            case "ceilings":
                found = Ceilings.from_json(event["ceilings"])
                report.ceilings[found.threads] = found
                screen.ceilings(found)
            case "begin":
                screen.begin(event["name"])
            case "result":
                result = Result.from_json(event["result"])
                report.results.append(result)
                screen.result(result)
            case "claim":
                claim = ClaimResult.from_json(event["claim"])
                report.claims.append(claim)
                screen.claim(claim, CLAIMS[claim.name].note)
            case "program":
                program = InSituResult.from_json(event["program"])
                report.in_situ.append(program)
                screen.program(program)

    def _died(self, work: Work, code: int, left: list[str], errors: IO[bytes]) -> None:
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        where = f"at {left[0]}" if left else "at its end"
        problem = f"the worker on {work.threads} thread{'s' * (work.threads > 1)} {how} {where}"
        if len(left) > 1:
            problem += f"; not measured: {', '.join(left[1:])}"
        if last:
            problem += f"; its last words: {' | '.join(last)}"
        self.report.problems.append(problem)
        self.screen.warn(problem)


@contextmanager
def _worker(work: Work, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a work; it does not outlive the block."""
    environment = dict.fromkeys(THREAD_VARIABLES, str(work.threads)) | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=os.environ | environment,
        start_new_session=True,  # Ctrl-C is for this process, which decides what to do with the worker
    )
    with process:
        try:
            assert process.stdin is not None, "the job goes through a pipe"
            with suppress(BrokenPipeError):  # it died at once; its exit code is looked at when its events end
                process.stdin.write(json.dumps(work.job()).encode())
                process.stdin.close()
            yield process
        finally:
            process.kill()


def save(report: Report, folder: Path) -> Path:
    """Write results.json; one that is there is replaced when the new one is complete."""
    path = folder / "results.json"
    written = path.with_suffix(".json.new")
    written.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    written.replace(path)
    return path

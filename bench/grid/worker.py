"""Measures in a process of its own: thread counts are settled before anything is imported.

Reads one JSON object from stdin and writes one JSON line per event to stdout; see `session` for both ends.
"""

import gc
import json
import logging
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..claims.claims import CLAIMS
from ..insitu.catalogue import PROGRAMS, title
from ..machine import ceilings, roofline
from ..machine.ceilings import Ceilings, PeakMeter
from ..peers import PEERS, FastRNN, Job, Peer
from ..report.results import Against, Result
from .problems import Problem
from .shapes import Point
from .timing import TOLERANCE, Comparison, MismatchError, Times, compare, verify

AGAIN = 3  # how often a point that falls short is measured again

Send = Callable[[dict[str, Any]], None]


def said(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class Worker:
    """Measures points on one number of threads."""

    def __init__(self, send: Send, threads: int, seconds: float) -> None:
        self.send, self.threads, self.seconds = send, threads, seconds
        self.ours = FastRNN(threads)
        self.peers: dict[str, Peer] = {}
        self.meters: dict[str, PeakMeter] = {}
        self.ceilings: Ceilings

    def import_peers(self, keys: list[str]) -> None:
        """Import what is there, and tell what is not."""
        for key in keys:
            kind = PEERS[key]
            try:
                peer = self.peers[key] = kind(self.threads)
            except ImportError as error:
                self.send({"event": "missing", "peer": key, "needs": kind.needs, "why": said(error)})
            else:
                self.send({"event": "peer", "peer": key, "version": peer.version})

    def measure_ceilings(self) -> None:
        self.ceilings = ceilings.measure(self.threads)
        self.meters = {dtype: PeakMeter(self.threads, dtype, 1e-3) for dtype in ceilings.DTYPES}
        self.send({"event": "ceilings", "ceilings": self.ceilings.to_json()})

    def measure(self, point: Point) -> Result:
        """Verify and time one point against every peer; what fails is named in the result."""
        try:
            problem = Problem(point)
            ours = self.ours.job(problem)
            expected = ours.results()
        except Exception as error:  # of whatever kind: the other points go on
            return Result(point, failed=said(error))
        peaks: list[float] = []
        meter = self.meters[point.dtype]
        peers = {}
        for key, peer in self.peers.items():
            peers[key] = self._against(peer, problem, ours, expected, lambda: peaks.append(meter.read()))
            peer.forget()
        times = [c.ours for against in peers.values() for c in against.comparisons]
        if not times:
            alone = compare(ours, ours, self.seconds, self.threads == 1, lambda: peaks.append(meter.read()))
            times = [alone.ours, alone.peer]
        gc.collect()  # while a pair is measured it is off
        peak = statistics.median(peaks)
        for key, against in peers.items():
            if (weights := PEERS[key].weights) and against.comparisons:
                peers[key] = replace(against, bound=roofline.bound(point, self.ceilings, peak, weights))
        return Result(point, _pooled(times), peak, roofline.bound(point, self.ceilings, peak), peers)

    def _against(
        self, peer: Peer, problem: Problem, ours: Job, expected: dict[str, Any], between: Callable[[], None]
    ) -> Against:
        point, exact = problem.point, peer.tolerance is None
        why = peer.unsupported(point)
        if why is not None:
            return Against(skipped=why, exact=exact)
        try:
            job = peer.job(problem)
            difference = verify(expected, job.results(), peer.tolerance or TOLERANCE[point.dtype])

            def once() -> Comparison:
                return compare(ours, job, self.seconds, self.threads == 1, between)

            comparisons = [once()]
            if exact and comparisons[0].ratio < 1:
                comparisons += [once() for _ in range(AGAIN)]
        except MismatchError as wrong:
            return Against(exact=exact, failed=str(wrong), mismatch=True)
        except Exception as error:  # of whatever kind: the other peers go on
            return Against(exact=exact, failed=said(error))
        return Against(comparisons, difference, exact)


def _pooled(times: list[Times]) -> Times:
    """One of several measurements: the median of each figure."""
    low, median, high, processors = (
        statistics.median(getattr(t, name) for t in times) for name in ("low", "median", "high", "processors")
    )
    return Times(median, low, high, sum(t.samples for t in times), processors)


def serve(job: dict[str, Any], send: Send) -> None:
    """Do what the job asks, event by event."""
    worker = Worker(send, job["threads"], job["seconds"])
    worker.import_peers(job["peers"])
    if job["points"]:
        worker.measure_ceilings()
    for name in job["points"]:
        send({"event": "begin", "name": name})
        send({"event": "result", "result": worker.measure(Point.parse(name)).to_json()})
    for name in job["claims"]:
        send({"event": "begin", "name": name})
        send({"event": "claim", "claim": CLAIMS[name].check(job["seconds"]).to_json()})
    for name in job["programs"]:
        send({"event": "begin", "name": title(name, job["threads"])})
        send({"event": "program", "program": PROGRAMS[name].measure(job["threads"], job["seconds"]).to_json()})


def main() -> None:
    job = json.load(sys.stdin)
    if job["processors"]:
        os.sched_setaffinity(0, job["processors"])
    logging.disable(logging.WARNING)  # advice of the peers to their users
    # Libraries that print shall not disturb the events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    serve(job, send)


if __name__ == "__main__":
    main()

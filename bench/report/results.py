"""What was measured, and its JSON."""

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..grid.shapes import Point
from ..grid.timing import Comparison, Times
from ..insitu.result import InSituResult
from ..machine.ceilings import Ceilings

SCHEMA = 2


class BadInput(ValueError):
    """What the user gave cannot be used; the message is one line."""


@dataclass(frozen=True)
class Against:
    """One peer at one point: measured once, or again where it was ahead; or why not.

    Attributes
    ----------
    comparisons : list of Comparison
        Empty if `failed` or `skipped` says why.
    error : float
        Largest relative difference of the results.
    exact : bool
        Whether it may be the best: False for a side that rounds on purpose.
    failed : str
        An error's text, `mismatch` says whether that of results that differ.
    skipped : str
        Why there is nothing to compare.
    bound : float
        Seconds of a call at the roofline of weights in fewer bits, of a side that has such; else 0.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    error: float = 0.0
    exact: bool = True
    failed: str = ""
    mismatch: bool = False
    skipped: str = ""
    bound: float = 0.0

    @property
    def fraction(self) -> float | None:
        """The part of that roofline that the peer reached."""
        if not self.bound or not self.comparisons:
            return None
        return self.bound / statistics.median(c.peer.median for c in self.comparisons)

    @property
    def ratio(self) -> float | None:
        """The peer's time over ours; the median of all measurements."""
        return statistics.median(c.ratio for c in self.comparisons) if self.comparisons else None


@dataclass(frozen=True)
class Result:
    """One point.

    Attributes
    ----------
    ours : Times or None
        fastrnn's times, over all comparisons; None if it failed, as `failed` says.
    peak : float
        FMA operations per second of all its threads, measured beside this point.
    bound : float
        Seconds of a call at the roofline.
    peers : dict of str to Against
        By the peers' keys.
    """

    point: Point
    ours: Times | None = None
    peak: float = 0.0
    bound: float = 0.0
    peers: dict[str, Against] = field(default_factory=dict)
    failed: str = ""

    @property
    def fraction(self) -> float | None:
        """The part of the roofline that was reached."""
        return self.bound / self.ours.median if self.ours else None

    @property
    def best(self) -> str | None:
        """The fastest exact peer."""
        ratios = {key: a.ratio for key, a in self.peers.items() if a.exact and a.ratio is not None}
        return min(ratios, key=ratios.__getitem__) if ratios else None

    def ratio(self, key: str | None) -> float | None:
        """A peer's time over ours; None if there is none."""
        return self.peers[key].ratio if key in self.peers else None

    @property
    def mismatched(self) -> bool:
        return any(against.mismatch for against in self.peers.values())

    def to_json(self) -> dict[str, Any]:
        return {"name": self.point.name, **dataclasses.asdict(self), "fraction": self.fraction} | {
            "peers": {k: dataclasses.asdict(a) | {"ratio": a.ratio} for k, a in self.peers.items()},
            "best": self.best,
            "flops": self.point.flops,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Result":
        peers = {key: _against(value) for key, value in data["peers"].items()}
        ours = None if data["ours"] is None else Times(**data["ours"])
        return Result(Point(**data["point"]), ours, data["peak"], data["bound"], peers, data["failed"])


def _against(data: dict[str, Any]) -> Against:
    given = {name: value for name, value in data.items() if name != "ratio"}
    comparisons = [Comparison(Times(**c["ours"]), Times(**c["peer"])) for c in data["comparisons"]]
    return Against(**given | {"comparisons": comparisons})


@dataclass(frozen=True)
class ClaimResult:
    """One promise that fastrnn is held to: what was measured, in which unit, and the limit; or why it was not."""

    name: str
    measured: float | None
    limit: float
    at_most: bool
    unit: str
    failed: str = ""
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """ok, MISSED, failed or skipped."""
        if self.measured is None:
            return "failed" if self.failed else "skipped"
        return "ok" if (self.measured <= self.limit if self.at_most else self.measured >= self.limit) else "MISSED"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"verdict": self.verdict}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "ClaimResult":
        return ClaimResult(**{name: value for name, value in data.items() if name != "verdict"})


@dataclass
class Report:
    """One run: where, what against, and everything measured.

    Attributes
    ----------
    machine, options : dict
        What `describe` found, and what the run was asked for.
    versions, missing : dict of str to str
        Of the peers that are there; what to install for the others. By their keys.
    ceilings : dict of int to Ceilings
        By number of threads.
    problems : list of str
        Points that were lost and why.
    """

    machine: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ceilings: dict[int, Ceilings] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    claims: list[ClaimResult] = field(default_factory=list)
    in_situ: list[InSituResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("machine", "options", "versions", "missing")}
        return {
            "schema": SCHEMA,
            **parts,
            "ceilings": {str(n): c.to_json() for n, c in self.ceilings.items()},
            "points": [result.to_json() for result in self.results],
            "claims": [claim.to_json() for claim in self.claims],
            "in_situ": [program.to_json() for program in self.in_situ],
            "problems": self.problems,
            "interrupted": self.interrupted,
        }

    @staticmethod
    def read(path: Path) -> "Report":
        """Read a results.json.

        Raises
        ------
        BadInput
            If it is none.
        OSError
            If it cannot be read.
        """
        try:
            data = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"{path} is not JSON: {error}") from error
        found = data.get("schema") if isinstance(data, dict) else None
        if found != SCHEMA:
            raise BadInput(f"{path} is not a result of this version's fastrnn bench: schema {found}, expected {SCHEMA}")
        try:
            return Report(
                **{name: data[name] for name in ("machine", "options", "versions", "missing")},
                ceilings={int(n): Ceilings.from_json(c) for n, c in data["ceilings"].items()},
                results=[Result.from_json(point) for point in data["points"]],
                claims=[ClaimResult.from_json(claim) for claim in data["claims"]],
                in_situ=[InSituResult.from_json(program) for program in data["in_situ"]],
                problems=data["problems"],
                interrupted=data["interrupted"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{path} is not a complete result of fastrnn bench: {error!r}") from error

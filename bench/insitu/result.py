"""What was measured of a program, and its JSON."""

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class InSituResult:
    """One program on some threads: without fastrnn over with it.

    Attributes
    ----------
    whole : list of float
        Ratios of the time of a whole call, one of each run.
    inside : list of float
        The same of the time inside its recurrent part; empty where that is not told from the rest.
    plain, fast : float
        Seconds of a whole call, without fastrnn and with it.
    alone : float or None
        The ratio of the recurrent part by itself.
    failed, skipped : str
        What went wrong; why there is nothing to compare.
    """

    name: str
    threads: int
    whole: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    plain: float = 0.0
    fast: float = 0.0
    alone: float | None = None
    failed: str = ""
    skipped: str = ""

    @property
    def ratio(self) -> float | None:
        """The median of the runs."""
        return statistics.median(self.whole) if self.whole else None

    @property
    def inside_ratio(self) -> float | None:
        return statistics.median(self.inside) if self.inside else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "InSituResult":
        return InSituResult(**data)

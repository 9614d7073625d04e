"""Two runs side by side: what became slower against the same peers, or against the machine."""

import statistics

from .results import BadInput, Report, Result
from .summary import Table

COLUMNS = ("point", "against", "before", "after", "change")


def change(old: Result, new: Result) -> tuple[str, float, float] | None:
    """Against what both can be compared, and the figure before and after; larger is better. None if there is nothing.

    That is the peer's time over ours; of several peers that both have, the one in the middle of the changes, as a worse
    fastrnn is worse against them all. Without a common peer it is the part of the FMA peak that was reached.
    """
    if old.ours is None or new.ours is None:
        return None
    common = [
        (key, a, b)
        for key in old.peers
        if key in new.peers and (a := old.ratio(key)) is not None and (b := new.ratio(key)) is not None
    ]
    if common:
        middle = statistics.median_high([b / a for _, a, b in common])
        return next((key, a, b) for key, a, b in common if b / a == middle)
    before, after = (r.point.flops / r.ours.median / r.peak for r in (old, new) if r.ours is not None)
    return "FMA peak", before, after


def regressions(old: Report, new: Report, threshold: float) -> tuple[Table, int]:
    """A table of the points that both have, the worst change first, and how many are worse by more than the threshold.

    A point that was measured before and failed now is the worst of all.

    Raises
    ------
    BadInput
        If the two have no point in common.
    """
    before = {result.point: result for result in old.results}
    lines: list[tuple[float, list[str]]] = []
    for result in new.results:
        if result.point not in before:
            continue
        was = before[result.point]
        found = change(was, result)
        if found is not None:
            against, a, b = found
            lines.append(
                (b / a - 1, [result.point.name, against, f"{a:.2f}", f"{b:.2f}", f"{100 * (b / a - 1):+.1f} %"])
            )
        elif was.ours is not None:
            lines.append((-1.0, [result.point.name, "-", "measured", "failed", "-100 %"]))
    if not lines:
        raise BadInput("the two files have no measured point in common")
    lines.sort(key=lambda line: line[0])
    worse = sum(delta < -threshold for delta, _ in lines)
    return Table("fastrnn now against before, larger is better", COLUMNS, [row for _, row in lines]), worse

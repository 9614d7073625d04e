"""What a training prints: lines about the steps since the line before, in a terminal with tqdm a bar below them."""

import math
import sys
import time
from importlib.util import find_spec
from typing import Any

REPORT_SECONDS = 5.0
BITS = 1 / math.log(2)  # in one nat


def figure_of(nats: float, level: str) -> float:
    """Return what a loss is known by: bits per character, or the perplexity of words."""
    return nats * BITS if level == "char" else math.exp(min(nats, 700.0))


class Report:
    """The table of a training's progress."""

    def __init__(self, level: str, done: int, total: int) -> None:
        self.level, self.total = level, total
        self.begin = self.mark = time.monotonic()
        self.nats, self.tokens = 0.0, 0
        self._bar: Any = None
        if sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            self._bar = tqdm(total=total, initial=done, unit=" steps", ncols=78, leave=False)
        figure, speed = ("bits/char", "char/s") if level == "char" else ("perplexity", "words/s")
        self._write(f"{'epoch':>5}  {'step':>15}  {'loss':>7}  {figure:>10}  {speed:>9}  {'time':>8}")

    def add(self, nats: float, tokens: int) -> None:
        """Count one step: the sum of its losses, and its tokens."""
        self.nats += nats
        self.tokens += tokens
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self.mark >= REPORT_SECONDS

    def line(self, epoch: int, step: int) -> None:
        """Write a line about the steps since the last one, if there are any."""
        if not self.tokens:
            return
        now = time.monotonic()
        loss, speed = self.nats / self.tokens, self.tokens / max(now - self.mark, 1e-9)
        self._print(epoch, f"{step:,}/{self.total:,}", loss, f"{speed:,.0f}", f"{now - self.begin:,.0f} s")
        self.nats, self.tokens, self.mark = 0.0, 0, now

    def validation(self, epoch: int, nats: float) -> None:
        """Write the line that ends an epoch."""
        self._print(epoch, "validation", nats, "", "")
        self.mark = time.monotonic()

    def note(self, text: str) -> None:
        """Write a line of text."""
        self._write(text)

    def _print(self, epoch: int, step: str, loss: float, speed: str, seconds: str) -> None:
        figure = figure_of(loss, self.level)
        shown = f"{figure:.3f}" if figure < 100 else f"{figure:,.0f}" if figure < 1e8 else f"{figure:.1e}"
        line = (
            f"{epoch:>5}  {step:>15}  {loss:>7{'.3f' if loss < 1000 else '.1e'}}  {shown:>10}  {speed:>9}  {seconds:>8}"
        )
        self._write(line.rstrip())

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)


def printable(text: str) -> str:
    """Return the text without control characters, which a model may have learned and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

"""What options of the command line are parsed by, and the error about those that cannot be followed."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any


class UsageError(Exception):
    """Options that cannot be followed; the message is one line."""


def whole(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """Parse a whole number in least..most."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            span = f"of at least {least}" if most == sys.maxsize else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number {span}")
        return value

    return parse


def real(low: float, high: float, expected: str) -> Callable[[str], float]:
    """Parse a number in [low, high); NaN is in no interval."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value < high:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


SMALLEST = math.ulp(0.0)
positive = real(SMALLEST, math.inf, "a number above 0")


def comma_separated(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Parse several, with commas between them."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]

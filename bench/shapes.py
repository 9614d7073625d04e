"""What is timed: the points of the speed floor, and the names of their parts."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["forward", "train", "step"]


@dataclass(frozen=True)
class Point:
    """One layer at one size; ``least`` is the ratio of the peer's time to ours that must be reached."""

    cell: Literal["LSTM", "GRU", "RNN"]
    mode: Mode
    T: int
    B: int
    I: int
    H: int
    least: float = 1.0

    def __str__(self) -> str:
        return f"{self.cell} {self.mode} T={self.T} B={self.B} I={self.I} H={self.H}"

    @property
    def flops(self) -> float:
        """Multiplications and additions of the products of one call."""
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.cell]
        return 2.0 * gates * self.H * (self.I + self.H) * self.T * self.B * (3 if self.mode == "train" else 1)


# The least ratios that the core must show against PyTorch on one thread.
FLOOR = [
    Point("LSTM", "forward", 100, 64, 256, 256, 1 / 1.05),
    Point("LSTM", "train", 100, 64, 256, 256, 1 / 1.1),
    Point("LSTM", "forward", 100, 1, 256, 256, 1.0),
    Point("LSTM", "train", 100, 1, 256, 256, 1.2),
    Point("LSTM", "forward", 100, 1, 64, 64, 1.7),
    Point("LSTM", "train", 100, 1, 64, 64, 1.7),
    Point("GRU", "train", 100, 16, 128, 128, 2.0),
]

"""Prints the peak memory in bytes of one training call, above what the process held before."""

import resource

import numpy as np

import fastrnn

from ..grid.shapes import Point

MEMORY_POINT = Point("LSTM", "training", 1000, 64, 512, 512)


def allowed_bytes(point: Point) -> int:
    """What the caller's arrays (x, y, dy, dx) and the five floats per unit that BPTT needs take."""
    return 4 * point.T * point.B * (2 * point.I + 7 * point.H)


def peak_bytes(point: Point) -> int:
    """Peak of one call, the caller's arrays included."""
    layer = fastrnn.LSTM(point.I, point.H)
    with open("/proc/self/statm") as pages:
        before = int(pages.read().split()[1]) * resource.getpagesize()
    rng = np.random.default_rng(0)
    x = rng.random((point.T, point.B, point.I), dtype=np.float32)
    dy = rng.random((point.T, point.B, point.H), dtype=np.float32)
    _, _, tape = layer.forward(x, training=True)
    layer.backward(tape, dy)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


if __name__ == "__main__":
    print(peak_bytes(MEMORY_POINT))

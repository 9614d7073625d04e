"""The speed and memory floor: fastrnn against PyTorch in one run, one thread. Exit code 1 where it is missed.

python bench/floor.py [--seconds S]
"""

import argparse
import platform
import resource
import subprocess
import sys

import numpy as np

import fastrnn
from peers import FastRNN, Problem, PyTorch
from shapes import FLOOR, Point
from timing import alone, compare, verify

# Microseconds of a call through Python that must not be passed, by a stream of such calls and nothing else.
LATENCY = [(Point("LSTM", "step", 1, 1, 64, 64), 4.0), (Point("LSTM", "forward", 1, 1, 256, 256), 80.0)]
MEMORY = Point("LSTM", "train", 1000, 64, 512, 512)
MEMORY_LIMIT = 1.2  # times x + y + dy + dx + 5*T*B*H floats


def cpu() -> str:
    """The processor's name."""
    with open("/proc/cpuinfo") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names)} processors"


def show(point: Point, seconds: float, together: bool) -> tuple[float, float]:
    """Verify and time one point, print its line; our microseconds and the ratio of PyTorch's to them."""
    problem = Problem(point)
    ours, peer = FastRNN.call(problem), PyTorch.call(problem)
    verify(ours, peer)
    a, b = compare(ours, peer, seconds) if together else (alone(ours, seconds / 2), alone(peer, seconds / 2))
    ratio = b.median / a.median
    rate = point.flops / a.median / 1e9
    print(
        f"{point!s:38} {a.median * 1e6:10.1f} {a.low * 1e6:10.1f} {a.high * 1e6:10.1f} {rate:8.1f}"
        f" {b.median * 1e6:10.1f} {ratio:7.2f}",
        end="",
        flush=True,
    )
    return a.median * 1e6, ratio


def peak_bytes() -> int:
    """Peak memory of one training call, arrays of the caller included, above what the process held before."""
    T, B, I, H = MEMORY.T, MEMORY.B, MEMORY.I, MEMORY.H
    layer = fastrnn.LSTM(I, H)
    with open("/proc/self/statm") as pages:
        before = int(pages.read().split()[1]) * resource.getpagesize()
    rng = np.random.default_rng(0)
    x, dy = rng.random((T, B, I), dtype=np.float32), rng.random((T, B, H), dtype=np.float32)
    _, _, tape = layer.forward(x, training=True)
    layer.backward(tape, dy)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each point (default 3)")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_bytes())
        return 0
    for side in (FastRNN, PyTorch):
        side.set_threads(1)
    print(f"{cpu()}; {FastRNN.name} on {fastrnn.info()['isa']}, {PyTorch.name}, NumPy {np.__version__}; 1 thread\n")
    print(f"{'':38} {'us/call':>10} {'10 %':>10} {'90 %':>10} {'GFLOP/s':>8} {'PyTorch us':>10} {'ratio':>7}")
    missed = 0
    for point in FLOOR:
        _, ratio = show(point, options.seconds, together=True)
        missed += ratio < point.least
        print(f"   least {point.least:.2f}{'' if ratio >= point.least else '  MISSED'}")
    for point, limit in LATENCY:
        us, _ = show(point, options.seconds, together=False)
        missed += us > limit
        print(f"   most {limit:.0f} us{'' if us <= limit else '  MISSED'}")
    # In a process of its own: the peak of a process only ever rises.
    peak = int(subprocess.run([sys.executable, __file__, "--peak"], check=True, capture_output=True).stdout)
    T, B, I, H = MEMORY.T, MEMORY.B, MEMORY.I, MEMORY.H
    part = peak / (4 * T * B * (2 * I + 7 * H))
    missed += part > MEMORY_LIMIT
    print(f"\n{MEMORY} peak memory {peak / 1e6:.0f} MB, {part:.2f} of x + y + dy + dx + 5*T*B*H floats", end="")
    print(f"   most {MEMORY_LIMIT}{'' if part <= MEMORY_LIMIT else '  MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

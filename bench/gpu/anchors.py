"""What fastrnn's CUDA layers are measured by: PyTorch's recurrent layers on one GPU, microseconds per time step.

``python bench/gpu/anchors.py --out anchors.json`` measures the whole table in less than five minutes, ``--quick`` a
few points; ``--kernels`` shows which CUDA kernels ran. Every point is timed twice: `device` is the GPU's own time, its
queue filled while it is held back; `called` is a loop of calls, with the host's part where that takes longer.
"""

import argparse
import csv
import itertools
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

Cell = Literal["LSTM", "GRU", "RNN"]
Kind = Literal["fp16", "bf16", "fp32", "tf32"]
Mode = Literal["forward", "training"]

CELLS: tuple[Cell, ...] = get_args(Cell)
KINDS: tuple[Kind, ...] = get_args(Kind)
MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES: dict[Kind, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "tf32": "float32"}
SIZES = (64, 128, 192, 256, 512, 768, 1024, 2048)
BATCHES = (1, 8, 32, 64, 128)
STEPS = 100

DONE, FAILED, NO_CUDA = 0, 1, 2
FEWEST, MOST = 5, 40  # samples
SAMPLE = 2e-3  # seconds of calls that the events resolve well
LONGEST_HOLD = 20e-3
MOST_INPUTS = 16
HOST_BOUND = 1.2


@dataclass(frozen=True)
class Point:
    """A layer of one cell with I = H, one direction, `STEPS` steps; fp32 without, tf32 with the rounding to TF32."""

    cell: Cell
    kind: Kind
    mode: Mode
    H: int
    B: int

    @property
    def name(self) -> str:
        """For example ``LSTM-fp16-training-H512-B32``."""
        return f"{self.cell}-{self.kind}-{self.mode}-H{self.H}-B{self.B}"


@dataclass(frozen=True)
class Times:
    """Microseconds per time step: median, 10th and 90th percentile of `samples`."""

    median: float
    low: float
    high: float
    samples: int

    @staticmethod
    def of(seconds: Sequence[float], steps: int) -> "Times":
        """Sum up the seconds that calls of so many steps took."""
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        low, middle, high = (1e6 * t / steps for t in (tenths[0], statistics.median(seconds), tenths[-1]))
        return Times(middle, low, high, len(seconds))


@dataclass(frozen=True)
class Result:
    """What was found at a point.

    Attributes
    ----------
    device, called : Times, optional
        The GPU's time and that of a loop of calls; None where it failed.
    held : bool
        Whether the GPU had all of a call before it began; if not, `device` holds some of the host's time.
    cudnn : bool
        Whether PyTorch gave it to cuDNN.
    """

    point: Point
    device: Times | None = None
    called: Times | None = None
    held: bool = True
    cudnn: bool = True
    failed: str = ""


def grid() -> list[Point]:
    """Every point, those of one module in a row."""
    every = itertools.product(CELLS, KINDS, SIZES, MODES, BATCHES)
    return [Point(cell, kind, mode, H, B) for cell, kind, H, mode, B in every]


def quick() -> list[Point]:
    """A few points that show every path."""
    few = [Point(cell, kind, "forward", 512, 32) for cell in CELLS for kind in KINDS]
    few += [Point("LSTM", kind, "training", 512, 32) for kind in KINDS]
    return few + [Point("LSTM", "fp16", "forward", H, 8) for H in (64, 192, 1024, 2048)]


def revealing() -> list[Point]:
    """The points whose kernels are listed unless others are asked for."""
    sizes = ((64, 8), (192, 8), (512, 1), (512, 32), (2048, 32))
    points = [Point("LSTM", "fp16", "forward", H, B) for H, B in sizes]
    points += [Point("LSTM", kind, "forward", 512, 32) for kind in KINDS if kind != "fp16"]
    points += [Point(cell, "fp16", "forward", 512, 32) for cell in CELLS if cell != "LSTM"]
    return [*points, Point("LSTM", "fp16", "training", 512, 32)]


def select(points: Sequence[Point], parts: Iterable[str]) -> list[Point]:
    """Keep the points that have, where parts of names such as ``LSTM fp16 H512 H1024`` are given, one of each kind.

    Raises
    ------
    ValueError
        If one of them is part of no point's name.
    """
    asked = set(parts)
    names = [point.name.split("-") for point in points]
    wanted = [asked.intersection(column) for column in zip(*names, strict=True)]
    unknown = asked.difference(*wanted)
    if unknown:
        raise ValueError(f"{' and '.join(sorted(unknown))}: part of no point's name, such as {points[0].name}")
    return [
        point
        for point, name in zip(points, names, strict=True)
        if all(part in some for part, some in zip(name, wanted, strict=True) if some)
    ]


def input_sets(size: int, cache: int) -> int:
    """How many inputs of so many bytes are used in turn: past the cache twice, or one where they would be too many."""
    wanted = -(-2 * cache // size)
    return wanted if wanted <= MOST_INPUTS else 1


def samples(cost: float, seconds: float) -> int:
    """How many samples of such a cost are taken in about that time."""
    return min(max(int(seconds / cost), FEWEST), MOST)


def cell_text(result: Result | None) -> str:
    """Microseconds per step; * where a loop of calls takes much longer, ~ where the GPU could not be held."""
    if result is None:
        return "-"
    if result.device is None or result.called is None:
        return "failed"
    slower = result.called.median > HOST_BOUND * result.device.median
    return f"{result.device.median:.2f}{'~' * (not result.held)}{'*' * slower}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of text, the columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (columns, *rows)
    ]
    return "\n".join([title, *lines])


def tables(results: Iterable[Result]) -> Iterator[str]:
    """One table for each cell and mode: a row for each kind and H, a column for each B."""
    found = {result.point: result for result in results}
    batches = sorted({point.B for point in found})
    for cell, mode in itertools.product(CELLS, MODES):
        rows = []
        for kind, H in sorted({(p.kind, p.H) for p in found if (p.cell, p.mode) == (cell, mode)}, key=_row_order):
            cells = [cell_text(found.get(Point(cell, kind, mode, H, B))) for B in batches]
            rows.append([f"{kind} H={H}", *cells])
        if rows:
            yield table(f"{cell} {mode}, us per step", ("", *(f"B={B}" for B in batches)), rows)


def _row_order(row: tuple[Kind, int]) -> tuple[int, int]:
    return KINDS.index(row[0]), row[1]


def short_name(kernel: str, longest: int = 70) -> str:
    """A kernel's name without return type, namespaces and arguments; of its template's the first that is a name."""
    text = re.sub(r"\(anonymous namespace\)::|^void | ?\(Device\)", "", kernel)
    outer, _, inner = text.partition("<")
    short = outer.partition("(")[0].rpartition("::")[2]
    named = re.match(r"[^(]*?(?:^|[\s,])((?:\w+::)*[A-Za-z_]\w*)", inner)
    if named:
        short += f"<{named[1].rpartition('::')[2]}>"
    return short if len(short) <= longest else f"{short[: longest - 3]}..."


def write(path: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """Write all numbers, as JSON with the machine or as CSV."""
    if path.suffix == ".json":
        whole = {"machine": machine, "steps": STEPS, "results": [asdict(result) for result in results]}
        path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("cell", "kind", "mode", "H", "B", "device_us", "called_us", "low_us", "high_us", "held", "cudnn", "failed")
        )
        for r in results:
            device = (r.device.median, r.device.low, r.device.high) if r.device else ("", "", "")
            called = r.called.median if r.called else ""
            writer.writerow((*asdict(r.point).values(), device[0], called, *device[1:], r.held, r.cudnn, r.failed))


class Bench:
    """Measures points on the current GPU.

    Parameters
    ----------
    torch : module
        PyTorch, with CUDA.
    seconds : float
        About how long to measure a point.
    """

    def __init__(self, torch: Any, seconds: float) -> None:
        self.torch, self.seconds = torch, seconds
        self.properties = torch.cuda.get_device_properties(0)
        self.cycles = self._cycles()
        self._module: tuple[tuple[Cell, Kind, int], Any] | None = None

    def machine(self) -> dict[str, Any]:
        """What there is to know about GPU and libraries."""
        torch = self.torch
        return {
            "gpu": self.properties.name,
            "multiprocessors": self.properties.multi_processor_count,
            "cache_bytes": self.properties.L2_cache_size,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def module(self, cell: Cell, kind: Kind, H: int) -> Any:
        """The layer, its weights laid out as cuDNN wants them; the last one is kept."""
        if self._module is None or self._module[0] != (cell, kind, H):
            self._module = None  # frees its memory
            self._module = (cell, kind, H), self._make(cell, kind, H)
        return self._module[1]

    def _make(self, cell: Cell, kind: Kind, H: int) -> Any:
        torch = self.torch
        # With "ieee" PyTorch keeps bfloat16 too off the tensor cores. The two must not differ, or older switches raise.
        for operation in (torch.backends.cudnn.rnn, torch.backends.cudnn.conv):
            operation.fp32_precision = "ieee" if kind == "fp32" else "tf32"
        module = getattr(torch.nn, cell)(H, H, device="cuda", dtype=getattr(torch, DTYPES[kind]))
        weights = module._flat_weights
        if kind == "bf16" and torch.cudnn_is_acceptable(weights[0]):
            # flatten_parameters() leaves bfloat16 alone, and cuDNN's weights are then put together at every call.
            mode = torch.backends.cudnn.rnn.get_cudnn_mode(module.mode)
            with torch.no_grad():
                torch._cudnn_rnn_flatten_weight(weights, len(weights), H, mode, H, 0, 1, False, False)
        return module

    def job(self, point: Point) -> Callable[[], None]:
        """One call, or one call and the gradients of x and all parameters, on inputs in turn."""
        torch, module = self.torch, self.module(point.cell, point.kind, point.H)
        training = point.mode == "training"
        module.train(training)
        options = {"device": "cuda", "dtype": getattr(torch, DTYPES[point.kind])}
        shape = (STEPS, point.B, point.H)
        dy = torch.randn(shape, **options)
        count = input_sets(dy.numel() * dy.element_size(), self.properties.L2_cache_size)
        inputs = itertools.cycle([torch.randn(shape, **options, requires_grad=training) for _ in range(count)])
        parameters = list(module.parameters())

        def forward() -> None:
            with torch.no_grad():
                module(next(inputs))

        def train() -> None:
            x = next(inputs)
            torch.autograd.grad(module(x)[0], [x, *parameters], dy)

        return train if training else forward

    def measure(self, point: Point) -> Result:
        """Time one point; what fails is named in the result."""
        try:
            run = self.job(point)
            run()
            cost = self._wall(run, 2)
            device, held = self._device(run, cost)
            called = self._called(run, cost)
            weights = self.module(point.cell, point.kind, point.H)._flat_weights
            cudnn = bool(self.torch.cudnn_is_acceptable(weights[0]))
            return Result(point, Times.of(device, STEPS), Times.of(called, STEPS), held, cudnn)
        except Exception as error:  # of whatever kind: the other points go on
            return Result(point, failed=" ".join(f"{type(error).__name__}: {error}".split()))

    def kernels(self, point: Point) -> list[tuple[str, int, float]]:
        """The kernels of one call: short name, launches, microseconds; those that took longest first."""
        from torch.profiler import ProfilerActivity, profile

        run = self.job(point)
        self._wall(run, 2)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            self._wall(run, 1)
        launches: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for event in profiler.events():
            if event.device_type == self.torch.autograd.DeviceType.CUDA:
                name = short_name(event.name)
                launches[name] += 1
                times[name] += event.time_range.elapsed_us()
        return [(name, launches[name], float(us)) for name, us in times.most_common()]

    def _wall(self, run: Callable[[], None], calls: int) -> float:
        """Seconds of a call, the host waiting for the last one."""
        self.torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        self.torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    def _events(self) -> tuple[Any, Any]:
        return self.torch.cuda.Event(enable_timing=True), self.torch.cuda.Event(enable_timing=True)

    def _cycles(self) -> float:
        """The clock cycles that _sleep() counts in a second."""
        begin, end = self._events()
        cycles = 10_000_000
        for _ in range(2):  # the first one wakes the GPU
            begin.record()
            self.torch.cuda._sleep(cycles)
            end.record()
            end.synchronize()
        return cycles / (1e-3 * float(begin.elapsed_time(end)))

    def _device(self, run: Callable[[], None], cost: float) -> tuple[list[float], bool]:
        """Seconds of single calls that the GPU finds complete in its queue when it begins; whether it always did."""
        seen: list[float] = []
        hold, held = min(2 * cost, LONGEST_HOLD), True
        while len(seen) < samples(hold + cost, self.seconds / 2):
            begin, end = self._events()
            self.torch.cuda.synchronize()
            self.torch.cuda._sleep(int(hold * self.cycles))
            begin.record()
            run()
            end.record()
            overtaken = begin.query()  # the GPU began while the host was still filling its queue
            end.synchronize()
            if overtaken and hold < LONGEST_HOLD:
                hold = min(2 * hold, LONGEST_HOLD)
                continue
            held &= not overtaken
            seen.append(1e-3 * float(begin.elapsed_time(end)))
        return seen, held

    def _called(self, run: Callable[[], None], cost: float) -> list[float]:
        """Seconds per call of some in a row."""
        calls = max(1, round(SAMPLE / cost))
        seen: list[float] = []
        for _ in range(samples(calls * cost, self.seconds / 2)):
            begin, end = self._events()
            self.torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            seen.append(1e-3 * float(begin.elapsed_time(end)) / calls)
        return seen


def measure_all(
    bench: Bench, points: Sequence[Point], limit: float, save: Callable[[Sequence[Result]], None]
) -> list[Result]:
    """Measure the points until the time is up; save what there is now and then."""
    results: list[Result] = []
    begin = time.perf_counter()
    for point in points:
        if time.perf_counter() - begin > limit:
            print(f"stopped after {limit:.0f} s: {len(results)} of {len(points)} points measured", file=sys.stderr)
            break
        results.append(bench.measure(point))
        if len(results) % 40 == 0:
            print(f"{time.perf_counter() - begin:4.0f} s  {len(results)} of {len(points)}", file=sys.stderr)
            save(results)
    save(results)
    return results


def show_kernels(bench: Bench, points: Sequence[Point]) -> None:
    """Print which kernels ran, point by point."""
    for point in points:
        rows = [(name, str(launches), f"{us:.1f}") for name, launches, us in bench.kernels(point)]
        columns = ("kernel", "launches", "us")
        print(table(f"\n{point.name}", columns, rows) if rows else f"\n{point.name}: no kernel was seen")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("parts", nargs="*", help="keep the points with these parts of names, such as LSTM fp16 H512 H1024")
    add("--quick", action="store_true", help="a few points instead of the whole table")
    add("--kernels", action="store_true", help="list the CUDA kernels of some points instead of timing them")
    add("--out", type=Path, help="the file for all numbers, .json or .csv")
    add("--seconds", type=float, default=0.15, help="about how long to measure a point (default: %(default)s)")
    add("--limit", type=float, default=280, help="seconds after which no point is begun (default: %(default)s)")
    return parser


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if options.out and options.out.suffix not in (".json", ".csv"):
        parser.error(f"--out {options.out} must end with .json or .csv")
    wanted = quick() if options.quick else revealing() if options.kernels and not options.parts else grid()
    try:
        points = select(wanted, options.parts)
    except ValueError as error:
        parser.error(str(error))
    import torch

    if not torch.cuda.is_available():
        print("anchors.py needs a GPU that PyTorch can use through CUDA, and there is none here.", file=sys.stderr)
        return NO_CUDA
    torch.manual_seed(0)
    bench = Bench(torch, options.seconds)
    machine = bench.machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if options.kernels:
        show_kernels(bench, points)
        return DONE

    def save(results: Sequence[Result]) -> None:
        if options.out:
            write(options.out, machine, results)

    results = measure_all(bench, points, options.limit, save)
    for text in tables(results):
        print(f"\n{text}")
    print("\nThe GPU's own time. * A loop of calls takes over 20 % longer. ~ The host was too slow to hold it back.")
    native = sorted({f"{r.point.cell} {r.point.kind}" for r in results if not r.cudnn})
    if native:
        print(f"Not given to cuDNN: {', '.join(native)}")
    for result in results:
        if result.failed:
            print(f"{result.point.name}: {result.failed}")
    return FAILED if any(result.failed for result in results) else DONE


if __name__ == "__main__":
    sys.exit(main())

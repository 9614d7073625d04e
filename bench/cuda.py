"""``fastrnn bench --device cuda``: fastrnn.torch's modules against torch.nn's, which cuDNN computes, on one GPU.

Both sides are the same module with the same parameters and tensors. Results and gradients are verified, then both are
timed turn by turn with CUDA events, as PyTorch runs them: in eager mode, with its allocator, in its stream.
"""

import copy
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastrnn

from .grid.shapes import matches
from .grid.timing import MismatchError
from .machine import machine
from .report.results import BadInput

CELLS = ("LSTM", "GRU", "RNN")
MODES = ("inference", "training")
PRECISIONS = ("float16", "bfloat16", "float32", "tf32")
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 5e-2}  # relative, Euclidean; both sides round
FEWEST_TURNS = 5


@dataclass(frozen=True)
class GpuPoint:
    """One module at one size: I = H, zeros as the initial state; training is forward, backward and all gradients."""

    cell: str
    mode: str
    precision: str
    T: int
    B: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False

    @property
    def name(self) -> str:
        """For example ``LSTM-training-bfloat16-T100-B64-H256``."""
        parts = [self.cell, self.mode, self.precision, f"T{self.T}", f"B{self.B}", f"H{self.H}"]
        parts += [f"L{self.layers}"] * (self.layers > 1) + ["bi"] * self.bidirectional + ["packed"] * self.packed
        return "-".join(parts)

    @property
    def persistent(self) -> bool:
        """Whether PyTorch may take cuDNN's persistent kernels, which keep the weights in registers."""
        plain = self.layers == 1 and not self.bidirectional and not self.packed
        fits = self.H % 128 == 0 and self.H <= 1024 and self.B % 8 == 0 and self.B <= 128
        return plain and fits and self.precision == "float16" and self.cell != "GRU"


def points(grid: str) -> Iterator[GpuPoint]:
    """The points of the quick or the full grid."""
    quick = grid == "quick"
    for cell in CELLS:
        for mode in MODES:
            for precision in PRECISIONS:
                for H in (256, 1024) if quick else (64, 128, 192, 256, 512, 768, 1024, 2048):
                    for B in (1, 32) if quick else (1, 8, 32, 64, 128):
                        yield GpuPoint(cell, mode, precision, 100, B, H)
                for H in (256,) if quick else (256, 1024):
                    yield GpuPoint(cell, mode, precision, 100, 32, H, layers=2)
                    yield GpuPoint(cell, mode, precision, 100, 32, H, bidirectional=True)
                    yield GpuPoint(cell, mode, precision, 100, 32, H, packed=True)


def select(found: Iterator[GpuPoint], patterns: Sequence[str]) -> list[GpuPoint]:
    """Those whose names hold one of the patterns or match it as in a shell; all where there is none."""
    return [p for p in found if not patterns or matches(p.name, patterns)]


@dataclass(frozen=True)
class GpuResult:
    """Medians in microseconds of a time step, the largest relative error, and how often both sides took turns."""

    point: GpuPoint
    ours: float
    cudnn: float
    error: float
    turns: int

    @property
    def ratio(self) -> float:
        """CuDNN's time over ours."""
        return self.cudnn / self.ours


class Job:
    """Both modules of a point, and what they are given."""

    def __init__(self, point: GpuPoint, torch: Any) -> None:
        import fastrnn.torch

        self.point, self.torch = point, torch
        name = "float32" if point.precision == "tf32" else point.precision
        dtype = getattr(torch, name)
        torch.manual_seed(0)
        options = {"num_layers": point.layers, "bidirectional": point.bidirectional}
        self.cudnn = getattr(torch.nn, point.cell)(point.H, point.H, **options).to("cuda", dtype)
        self.cudnn.train(point.mode == "training")  # cuDNN saves nothing for backward in a module that only infers
        self.ours = fastrnn.torch.accelerate(self.cudnn, inplace=False).model
        self.x = torch.randn(point.T, point.B, point.H, device="cuda").to(dtype)
        self.x.requires_grad_(point.mode == "training")
        lengths = torch.randint(max(1, point.T // 10), point.T + 1, (point.B,))
        self.lengths = lengths.sort(descending=True).values if point.packed else None
        width = point.H * (1 + point.bidirectional)
        rows = (int(lengths.sum()),) if point.packed else (point.T, point.B)
        self.dy = torch.randn(*rows, width, device="cuda").to(dtype)

    def precision(self) -> None:
        """Tell PyTorch, and so both sides, whether float32 products may round their factors."""
        allowed = self.point.precision == "tf32"
        self.torch.backends.cudnn.allow_tf32 = allowed
        self.torch.set_float32_matmul_precision("high" if allowed else "highest")

    def call(self, module: Any) -> dict[str, Any]:
        """Run one side; the results and gradients by name."""
        return self._call(module, self.x, self.dy)

    def exact(self) -> dict[str, Any]:
        """Return what torch.nn computes of the same numbers in float64 on the CPU."""
        x = self.x.detach().cpu().double().requires_grad_(self.x.requires_grad)
        return self._call(copy.deepcopy(self.cudnn).cpu().double(), x, self.dy.cpu().double())

    def _call(self, module: Any, given: Any, dy: Any) -> dict[str, Any]:
        x = given
        if self.lengths is not None:
            x = self.torch.nn.utils.rnn.pack_padded_sequence(x, self.lengths)
        if self.point.mode == "inference":
            with self.torch.no_grad():
                y, _ = module(x)
            return {"y": y.data if self.point.packed else y}
        y, _ = module(x)
        y = y.data if self.point.packed else y
        named = {"x": given, **dict(module.named_parameters())}
        grads = self.torch.autograd.grad(y, list(named.values()), dy)
        return {"y": y.detach(), **dict(zip(named, grads, strict=True))}

    def verify(self) -> float:
        """Return the largest relative difference of both sides.

        Raises
        ------
        MismatchError
            If it passes the tolerance, with how far both are from float64.
        """
        worst = 0.0
        ours, theirs = self.call(self.ours), self.call(self.cudnn)
        for name, value in ours.items():
            error = _distance(value, theirs[name])
            if not error <= TOLERANCE[self.point.precision]:
                exact = self.exact()[name]
                apart = f"{_distance(value, exact):.1e}, cuDNN {_distance(theirs[name], exact):.1e}"
                raise MismatchError(f"{self.point.name}: {name} differs by {error:.1e}; from float64, fastrnn {apart}")
            worst = max(worst, error)
        return worst

    def time(self, module: Any, calls: int) -> float:
        """Milliseconds of a call."""
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            self.call(module)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / calls


def _distance(a: Any, b: Any) -> float:
    a, b = a.detach().double(), b.detach().double().to(a.device)
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def measure(job: Job, seconds: float) -> GpuResult:
    """Verify, then time both sides turn by turn for about so many seconds."""
    job.precision()
    error = job.verify()
    once = max(job.time(side, 2) for side in (job.ours, job.cudnn))  # ms, and a warm-up
    calls = max(1, min(100, int(20 / once)))
    turns = max(FEWEST_TURNS, int(seconds * 1000 / (2 * calls * once)))
    times: dict[str, list[float]] = {"ours": [], "cudnn": []}
    for _ in range(turns):
        times["ours"].append(job.time(job.ours, calls))
        times["cudnn"].append(job.time(job.cudnn, calls))
    per_step = 1000 / job.point.T
    medians = {side: statistics.median(found) * per_step for side, found in times.items()}
    return GpuResult(job.point, medians["ours"], medians["cudnn"], error, turns)


def geometric_means(results: Sequence[GpuResult]) -> list[tuple[str, int, float, float]]:
    """Of groups of points: name, how many, geometric mean of the ratios, and the least.

    The first groups are what cuDNN's persistent kernels do and what they do not.
    """
    groups: list[tuple[str, Callable[[GpuResult], bool]]] = [
        ("cuDNN's standard path", lambda r: not r.point.persistent),
        ("cuDNN's persistent path possible", lambda r: r.point.persistent),
    ]
    for cell in CELLS:
        for mode in MODES:
            groups.append((f"{cell} {mode}", lambda r, c=cell, m=mode: (r.point.cell, r.point.mode) == (c, m)))  # type: ignore[misc]
    for precision in PRECISIONS:
        groups.append((precision, lambda r, p=precision: r.point.precision == p))  # type: ignore[misc]
    rows = []
    for name, belongs in groups:
        ratios = [r.ratio for r in results if belongs(r)]
        if ratios:
            rows.append((name, len(ratios), math.exp(statistics.fmean(map(math.log, ratios))), min(ratios)))
    return rows


def run(grid: str, filters: Sequence[str], seconds: float | None, output: Path, list_only: bool) -> int:
    """Measure, print and save; return the exit code: 0, or 1 if results differed.

    Raises
    ------
    BadInput
        If there is no GPU, or no point to measure.
    """
    chosen = select(points(grid), filters)
    if not chosen:
        raise BadInput(f"no point of the {grid} grid on a GPU matches {' or '.join(map(repr, filters))}")
    if list_only:
        print(*(p.name for p in chosen), sep="\n")
        return 0
    torch = _torch_with_gpu()
    found = machine.describe() | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    found["cudnn"] = torch.backends.cudnn.version()
    print(f"{found['gpu']}; PyTorch {found['torch']}, cuDNN {found['cudnn']}; {machine.sentence(found)}\n")
    print(f"{'us/step':<48} {'fastrnn':>9} {'cuDNN':>9} {'ratio':>7}  error")
    results, wrong = [], []
    for point in chosen:
        try:
            result = measure(Job(point, torch), seconds or (0.4 if grid == "quick" else 0.15))
        except MismatchError as error:
            wrong.append(str(error))
            print(error, flush=True)
            continue
        results.append(result)
        times = f"{result.ours:9.2f} {result.cudnn:9.2f} {result.ratio:7.2f}"
        print(f"{point.name:<48} {times}  {result.error:.0e}", flush=True)
    print(f"\n{'cuDNN / fastrnn':<36} {'points':>6} {'mean':>7} {'least':>7}")
    for name, count, mean, least in geometric_means(results):
        print(f"{name:<36} {count:6} {mean:7.2f} {least:7.2f}")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "cuda.json"
    listed = [{**asdict(r), "name": r.point.name, "ratio": r.ratio} for r in results]
    path.write_text(json.dumps({"machine": found, "results": listed, "wrong": wrong}, indent=1), encoding="utf-8")
    print(f"\nWritten: {path}")
    return 1 if wrong else 0


def _torch_with_gpu() -> Any:
    reason = fastrnn.cuda.why_not()
    if reason is not None:
        raise BadInput(f"--device cuda: {reason}")
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"--device cuda compares with PyTorch ({error}): pip install 'fastrnn[torch]'") from error
    if not torch.cuda.is_available():
        raise BadInput("--device cuda compares with PyTorch's cuDNN, but this PyTorch sees no GPU")
    return torch

"""``fastrnn bench --c``: what a step takes through ``fastrnn.h``, timed by a program in C on one processor of its own.

The models are those of guitar amplifiers and the like: one input, a recurrent layer, a read-out of one output; one
sequence, float32.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fastrnn

from ..grid.shapes import matches
from ..machine import machine
from ..report.results import BadInput

CELLS = ("LSTM", "GRU")
SIZES = (4, 8, 12, 16, 20, 24, 32, 40, 64, 80)
MILLIONS = 1.0
COLUMNS = ("step", "run", "call", "p50", "p99.9", "max")


def names() -> list[str]:
    """All points, such as LSTM-H16."""
    return [f"{cell}-H{size}" for cell in CELLS for size in SIZES]


def select(filters: Sequence[str]) -> list[str]:
    """The points asked for; BadInput if there are none."""
    found = [name for name in names() if not filters or matches(name, filters)]
    if not found:
        raise BadInput(f"no point of --c matches {' or '.join(map(repr, filters))}: --list --c shows the names")
    return found


def run(filters: Sequence[str], millions: float = MILLIONS) -> int:
    """Measure and print; return 0.

    Raises
    ------
    BadInput
        If there is no such point or no compiler.
    """
    points = select(filters)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise BadInput("--c compiles a program in C and finds no compiler: install one, or name it in CC")
    with tempfile.TemporaryDirectory() as folder:
        program = _compile(compiler, Path(folder))
        print(machine.sentence(machine.describe()))
        print(f"One input, one output, one sequence, float32; ns; p50, p99.9 and max of {1e6 * millions:,.0f} steps.")
        print("run: a time step within pieces of 64; call: what a step takes beyond that.\n")
        print(f"{'':10}" + "".join(f"{column:>10}" for column in COLUMNS))
        for name in points:
            found = _measure(program, Path(folder), name, millions)
            found["call"] = found["step"] - found["run"]
            print(f"{name:10}" + "".join(f"{found[column]:10,.0f}" for column in COLUMNS), flush=True)
    return 0


def _compile(compiler: str, folder: Path) -> Path:
    library, program = Path(fastrnn.get_library()), folder / "steps"
    source = Path(__file__).with_suffix(".c")
    linked = [f"-I{fastrnn.get_include()}", str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    done = subprocess.run([compiler, "-O2", str(source), *linked], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"{compiler} does not compile the program of --c:\n{done.stderr}")
    return program


def _measure(program: Path, folder: Path, name: str, millions: float) -> dict[str, float]:
    cell, size = name.split("-H")
    layers = [getattr(fastrnn, cell)(1, int(size), rng=0), fastrnn.Linear(int(size), 1, rng=1)]
    model = folder / f"{name}.safetensors"
    fastrnn.save(model, layers)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # which the program inherits
    try:
        done = subprocess.run([program, model, str(millions)], capture_output=True, text=True, check=True)
    finally:
        os.sched_setaffinity(0, before)
    return {word: float(value) for word, value in (line.split() for line in done.stdout.splitlines())}

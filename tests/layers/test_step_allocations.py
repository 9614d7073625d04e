"""A frozen layer's step with out and state_out asks nothing of the heap."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support import run_python

PROGRAM = """
import ctypes, numpy as np, fastrnn
fastrnn.set_num_threads({threads})
layer = fastrnn.{layer}
rng = np.random.default_rng(0)
x = rng.standard_normal(({B}, 7), dtype=np.float32)
y, state = layer.freeze()(x[None])
y, fast = np.empty_like(y[0]), layer.freeze()
for _ in range(300):
    fast.step(x, state, out=y, state_out=state)
calls = ctypes.c_long.in_dll(ctypes.CDLL(None), "heap_calls")
before = calls.value
for _ in range(100):
    fast.step(x, state, out=y, state_out=state)
print(calls.value - before)
before = calls.value
x.copy()
assert calls.value > before  # they are counted
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to build the counter with")
    path = tmp_path_factory.mktemp("heap") / "libcount.so"
    source = Path(__file__).with_name("count_allocations.cpp")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", source, "-o", path], check=True)
    return path


@pytest.mark.parametrize("B", [1, 6])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "layer", ["LSTM(7, 40, num_layers=2)", "LSTM(7, 40, proj_size=9)", "GRU(7, 600)", "RNN(7, 40)"]
)
def test_a_step_allocates_nothing(layer: str, threads: int, B: int, counter: Path) -> None:
    done = run_python(PROGRAM.format(layer=layer, threads=threads, B=B), LD_PRELOAD=str(counter))
    assert done.stdout == "0\n", done.stderr

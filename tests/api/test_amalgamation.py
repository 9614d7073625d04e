"""The library for C as one source file, compiled by one command: its results are the library's to the bit.

Compiled here: float32 LSTMs for one instruction set. FASTRNN_AMALGAMATION=whole (.ci/long) compiles and compares all of
it, which takes minutes; CXX names the compiler.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support import OK, UNSUPPORTED, WEIGHTS, Library, Model, Options, at, run

import fastrnn
from fastrnn import _core
from support import CELLS, DTYPES, KNOWN_ISAS, assert_same_bits

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "csrc" / "api" / "amalgamate.py"
WHOLE = os.environ.get("FASTRNN_AMALGAMATION") == "whole"
ARM = "neon" in KNOWN_ISAS  # where there is no other instruction set in it
FEW = ("neon",) if ARM else ("avx2",)
HELD: dict[str, tuple[str, ...]] = {
    "isas": KNOWN_ISAS if WHOLE and not ARM else FEW,
    "cells": tuple(CELLS) if WHOLE else ("lstm",),
    "dtypes": DTYPES if WHOLE else ("float32",),
}
KINDS = [*((dtype, None) for dtype in HELD["dtypes"]), *(("float32", weights) for weights in WEIGHTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files, compiled, and linked as a library."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or not SCRIPT.exists():
        pytest.skip("there is no compiler" if compiler is None else "there are no sources beside the tests")
    folder = tmp_path_factory.mktemp("amalgamation")
    options = [] if WHOLE else [word for name, few in HELD.items() for word in (f"--{name}", *few)]
    subprocess.run([sys.executable, SCRIPT, folder, *options], check=True)
    flags = ["-O2", "-std=c++17", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
    for command in ([*flags, "-c", "fastrnn.cpp", "-o", "fastrnn.o"], ["-shared", "fastrnn.o", "-o", "libone.so"]):
        done = subprocess.run([compiler, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def one(folder: Path) -> Library:
    return Library(folder / "libone.so")


@pytest.mark.parametrize(("dtype", "weights"), KINDS)
@pytest.mark.parametrize("name", HELD["cells"])
@pytest.mark.parametrize("isa", HELD["isas"], indirect=True)
def test_results_are_those_of_the_library(
    c: Library,
    one: Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    isa: str,
    name: str,
    dtype: str,
    weights: Any,
) -> None:
    monkeypatch.setenv("FASTRNN_ISA", isa)
    layer = CELLS[name].build(3, 37, num_layers=2, dtype=dtype)
    width = int(layer.freeze()(np.zeros((1, 1, 3), dtype))[0].shape[-1])
    fastrnn.save(tmp_path / "model.safetensors", [layer, fastrnn.Linear(width, 5, rng=0, dtype=dtype)])
    x = np.random.default_rng(0).standard_normal((9, 4, 3)).astype(dtype)
    options, found = Options(*[WEIGHTS[weights]] * 2) if weights else None, []
    for library in (c, one):
        model = Model(library, tmp_path / "model.safetensors", options)
        assert library.model_isa(model.handle).decode() == isa
        runs = [
            run(library, model.stream(batch, 9), x[:, :batch].copy(), np.empty((9, batch, 5), dtype))
            for batch in (4, 1)
        ]
        stream, y = model.stream(1, 1), np.empty((1, 5), dtype)
        for x_t in x[:, :1].copy():
            assert library.step(stream, at(x_t), at(y)) == OK
        found.append(np.concatenate([*(each.ravel() for each in runs), y.ravel()]))
        library.close(model.handle)
    assert np.isfinite(found[0]).all()
    assert_same_bits(found[1], found[0])


@pytest.mark.skipif(FEW[0] not in _core.isas(), reason=f"this machine has no {FEW[0]}")
def test_the_amplifier_compiled_with_it(folder: Path, tmp_path: Path) -> None:
    compiler, library = os.environ.get("CXX", "c++"), Path(fastrnn.get_library())
    for command in (
        [sys.executable, ROOT / "examples" / "c" / "models.py", tmp_path],
        [compiler, "-std=c++17", "-c", ROOT / "examples" / "c" / "amp.cpp", f"-I{folder}", "-o", "amp.o"],
        [compiler, "amp.o", folder / "fastrnn.o", "-o", "one"],
        [compiler, "amp.o", library, f"-Wl,-rpath,{library.parent}", "-o", "two"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    environment = os.environ | {"FASTRNN_ISA": FEW[0]}
    for program in ("one", "two"):
        command = [tmp_path / program, "amp.safetensors", "guitar.wav", f"{program}.wav"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    sound = (tmp_path / "one.wav").read_bytes()
    assert len(sound) > 100_000
    assert sound == (tmp_path / "two.wav").read_bytes()


@pytest.mark.skipif(WHOLE, reason="nothing is left out")
@pytest.mark.skipif(FEW[0] not in _core.isas(), reason=f"this machine has no {FEW[0]}")
@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (fastrnn.GRU(2, 3, rng=0), "GRU has the cell gru in float32"),
        (fastrnn.LSTM(2, 3, rng=0, dtype="float64"), "LSTM has the cell lstm in float64"),
        (fastrnn.LSTM(2, 3, rng=0, clip=2.0), "LSTM has the cell lstm_general in float32"),
    ],
)
def test_what_is_left_out_is_refused(
    one: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: Any, what: str
) -> None:
    fastrnn.save(tmp_path / "model.safetensors", layer)
    status = one.open_file(bytes(tmp_path / "model.safetensors"), None, ctypes.byref(ctypes.c_void_p()))
    assert (status, one.message().decode()) == (UNSUPPORTED, f"{what}, which this build of fastrnn leaves out")
    monkeypatch.setenv("FASTRNN_ISA", "avx512")
    with pytest.raises(AssertionError, match=f"FASTRNN_ISA to 'avx512', but this build on this CPU runs: {FEW[0]}"):
        Model(one, tmp_path / "model.safetensors")


def test_no_symbol_can_be_shared_between_instruction_sets(folder: Path) -> None:
    """As .ci/check_symbols.sh: a weak one exists once in a program, in the version of whichever file came first."""
    if shutil.which("nm") is None:
        pytest.skip("there is no nm")
    symbols = subprocess.run(["nm", "-P", "fastrnn.o"], cwd=folder, check=True, capture_output=True, text=True).stdout
    assert re.search(rf"^_ZN7fastrnn{len(FEW[0])}{FEW[0]}\S* [TR] ", symbols, flags=re.M)
    assert not re.findall(r"^\S*7fastrnn\d+(?:avx|neon|scalar)\S* [wWvVu] .*$", symbols, flags=re.M)
    nm = ["nm", "-D", "-P", "--defined-only", "libone.so"]
    exported = subprocess.run(nm, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert "fastrnn_open " in exported
    assert "7fastrnn" not in exported  # as mangled names have the namespace

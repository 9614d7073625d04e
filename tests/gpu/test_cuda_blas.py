"""cuBLASLt: how fastrnn finds it, and with a stand-in on the CPU that it describes its products rightly."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastrnn
from cuda_support import EMULATED, PRECISIONS, RELATIVE_ERROR, example, needs_gpu, on_gpu, relative_error
from fastrnn.cuda import devices
from support import CELLS, gradients_of, whole

pytestmark = needs_gpu


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to build the stand-in with")
    path = tmp_path_factory.mktemp("blas") / "libfake.so"
    source = Path(__file__).with_name("fake_cublaslt.cpp")
    subprocess.run([compiler, "-O1", "-std=c++17", "-shared", "-fPIC", source, "-o", path], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def fake(library: Any) -> Iterator[Any]:
    if not EMULATED:
        pytest.skip("the stand-in reads the CPU's memory: it is for an emulated GPU")
    assert devices.core().prepare(0, library._name) is None
    yield library
    devices.core().prepare(0, None)


def results(e: Any, precision: str) -> dict[str, Any]:
    layer = on_gpu(e.layer, precision)
    y, _, tape = layer.forward(e.x, whole(e.state), **e.cuts)
    return {"y": y, **gradients_of(layer.backward(tape, e.dy, whole(e.dstate)))}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", ["gru", "gru_original", "lstm_proj"])
def test_products_through_the_library_are_the_same(cell: str, precision: str, fake: Any) -> None:
    e = example(CELLS[cell], precision, 3, 8, 5, 12, lengths=True, num_layers=2, bidirectional=True)
    made = ctypes.c_int.in_dll(fake, "fake_products")
    before = made.value
    through = results(e, precision)
    assert made.value - before >= 2 * 2 * (1 + 3)  # for each layer and direction: the projection; dW_ih, dW_hh, dx
    assert fastrnn.cuda.device_info()[0]["cublaslt"] == 999
    devices.core().prepare(0, None)
    before = made.value
    own = results(e, precision)
    assert made.value == before
    for name, value in own.items():
        assert relative_error(through[name], value) <= RELATIVE_ERROR[precision], name


def test_one_row_and_one_column(fake: Any) -> None:
    e = example(CELLS["lstm"], "float64", 1, 1, 1, 1)
    through = results(e, "float64")
    devices.core().prepare(0, None)
    for name, value in results(e, "float64").items():
        assert relative_error(through[name], value) <= 1e-14, name


def test_a_library_that_is_none_is_said_to_be_none(tmp_path: Path) -> None:
    wrong = devices.core().prepare(0, str(tmp_path / "missing.so"))
    assert wrong is not None
    assert "missing.so" in wrong
    wrong = devices.core().prepare(0, "libm.so.6")
    assert wrong == "cuBLASLt has no cublasLtCreate"
    devices.core().prepare(0, None)


def test_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        emulated = False

        def is_loaded(self, name: str) -> bool:
            return name == "libcublasLt.so.12"

    assert devices._cublaslt(Core()) == ["libcublasLt.so.12"]
    monkeypatch.setattr(Core, "is_loaded", lambda self, name: False)
    assert devices._cublaslt(Core())[-2:] == ["libcublasLt.so.13", "libcublasLt.so.12"]
    monkeypatch.setenv("FASTRNN_CUBLASLT", "/opt/libcublasLt.so")
    assert devices._cublaslt(Core()) == ["/opt/libcublasLt.so"]
    monkeypatch.setenv("FASTRNN_CUBLASLT", "none")
    assert devices._cublaslt(Core()) == []

"""What is said where there is no GPU, no module for it, or one that does not load."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

import fastrnn
import fastrnn.cuda
from fastrnn.cuda import devices


def test_importing_fastrnn_does_not_load_the_gpu_code() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import fastrnn\n"
        "cuda = [m for m in sys.modules if 'cuda' in m and m not in before]; assert not cuda, cuda\n"
        "fastrnn.cuda.why_not()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_said_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the NVIDIA driver is older than the moon"
    monkeypatch.setattr(devices, "_load", lambda: SimpleNamespace(why_not=lambda: reason))
    devices.core.cache_clear()
    try:
        assert fastrnn.cuda.why_not() == reason
        assert not fastrnn.cuda.is_available()
        assert fastrnn.cuda.device_info() == []
        assert fastrnn.info()["cuda"] == reason
        with pytest.raises(RuntimeError, match=f"no GPU can be used: {reason}"):
            fastrnn.LSTM(2, 3).to("cuda")
    finally:
        devices.core.cache_clear()


def test_a_module_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(devices.importlib, "import_module", fail)
    assert devices._load.__wrapped__() == (
        "the GPU module does not load: fastrnn._cuda: cannot open shared object file"
    )


def test_without_the_module_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastrnn._cuda", None)
    devices._load.cache_clear()
    try:
        assert "built without its GPU module" in str(fastrnn.cuda.why_not())
        assert not fastrnn.cuda.is_available()
    finally:
        monkeypatch.undo()
        devices._load.cache_clear()

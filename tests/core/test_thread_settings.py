"""The number of threads a call may use: bad values, and what a block of code does to other threads."""

import importlib
import threading
from typing import Any

import pytest

import fastrnn
from fastrnn import _core

thread_settings = importlib.import_module("fastrnn.threads")  # fastrnn.threads itself is the function


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a new process with none of the variables set."""
    for name, value in (("_process", None), ("_asked", False), ("_default", None)):
        monkeypatch.setattr(thread_settings, name, value)
    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", "99999", "²"])
def test_bad_values_in_the_environment(unset: pytest.MonkeyPatch, value: str) -> None:
    unset.setenv("OMP_NUM_THREADS", value)
    with pytest.warns(RuntimeWarning, match=f"OMP_NUM_THREADS starts with '{value}', not an integer in 1..1024"):
        assert fastrnn.get_num_threads() == _core.available_threads()
    unset.setattr(thread_settings, "_asked", False)
    unset.setenv("FASTRNN_NUM_THREADS", value)
    with pytest.raises(
        ValueError, match=f"FASTRNN_NUM_THREADS is '{value}' but must be an integer in 1..1024: correct or"
    ):
        fastrnn.get_num_threads()


def test_threads_of_a_block_are_those_of_this_thread_only(unset: pytest.MonkeyPatch) -> None:
    fastrnn.set_num_threads(4)
    seen = []
    with fastrnn.threads(2):
        assert fastrnn.get_num_threads() == 2
        with fastrnn.threads(1):
            assert fastrnn.get_num_threads() == 1
        other = threading.Thread(target=lambda: seen.append(fastrnn.get_num_threads()))
        other.start()
        other.join()
        assert fastrnn.get_num_threads() == 2
    assert seen == [4]
    assert fastrnn.get_num_threads() == 4
    with pytest.raises(KeyError), fastrnn.threads(3):
        raise KeyError
    assert fastrnn.get_num_threads() == 4


@pytest.mark.parametrize(
    ("n", "kind", "text"),
    [
        (0, ValueError, "must be in 1..1024, got 0"),
        (10**9, ValueError, "must be in 1..1024, got 1000000000"),
        (2.0, TypeError, "must be an integer, got 2.0"),
        (True, TypeError, "must be an integer, got True"),
    ],
)
def test_bad_numbers_of_threads(n: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        fastrnn.set_num_threads(n)
    with pytest.raises(kind, match=text), fastrnn.threads(n):
        pass

"""Any number of threads gives the same bits; calls from several threads, forks, interrupts and exits do no harm."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import fastrnn
from support import CELLS, DTYPES, Example, assert_same_bits, draw, run_python, whole

COUNTS = (2, 3, 8, 64)

# T, B, I, H and options: hidden units split; batch rows split; directions; layers; all of it with uneven shares.
SHAPES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "few rows": (12, 1, 64, 384, {}),
    "many rows": (6, 96, 32, 96, {}),
    "odd": (7, 13, 33, 129, {}),
    "directions": (10, 4, 64, 128, {"bidirectional": True}),
    "layers": (10, 4, 64, 128, {"num_layers": 3}),
    "all": (9, 21, 40, 100, {"num_layers": 2, "bidirectional": True}),
    "one step": (1, 2, 256, 512, {}),
    "small": (5, 2, 3, 4, {}),
}


def results(e: Example, frozen: Any) -> list[Any]:
    """Everything a user can get out of a layer."""
    y, state, tape = e.layer.forward(e.x, whole(e.state), **e.cuts, training=True)
    grads = e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)
    gradients = (grads.x, *(grads.state if isinstance(grads.state, tuple) else [grads.state]), grads.hidden)
    frozen_y, frozen_state = frozen(e.x, whole(e.state), **e.cuts)
    inferred_y, inferred_state = e.infer()
    return [y, state, gradients, grads.parameters, frozen_y, frozen_state, inferred_y, inferred_state]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CELLS)
def test_any_number_of_threads_gives_the_same_bits(name: str, shape: str) -> None:
    T, B, input_size, hidden_size, options = SHAPES[shape]
    layer = CELLS[name].build(input_size, hidden_size, **options)
    frozen = layer.freeze()
    e = draw(CELLS[name], layer, T, B, lengths=True, reset=True)
    with fastrnn.threads(1):
        expected = results(e, frozen)
    for n in COUNTS:
        with fastrnn.threads(n):
            for found, one in zip(results(e, frozen), expected, strict=True):
                assert_same_bits(found, one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits_on_each_isa(isa: str, dtype: str) -> None:
    layer = CELLS["gru"].build(40, 150, isa=isa, dtype=dtype)
    frozen = layer.freeze()
    e = draw(CELLS["gru"], layer, 8, 9)
    with fastrnn.threads(1):
        expected = results(e, frozen)
    for n in COUNTS:
        with fastrnn.threads(n):
            for found, one in zip(results(e, frozen), expected, strict=True):
                assert_same_bits(found, one)


@pytest.mark.parametrize("n", COUNTS)
def test_steps_with_any_number_of_threads(n: int) -> None:
    layer = CELLS["lstm"].build(256, 512, num_layers=2)
    frozen = layer.freeze()
    e = draw(CELLS["lstm"], layer, 1, 3)
    with fastrnn.threads(1):
        expected = frozen.step(e.x[0], whole(e.state))
    with fastrnn.threads(n):
        y, state = frozen.step(e.x[0], whole(e.state))
    assert_same_bits(y, expected[0])
    assert_same_bits(state, expected[1])


def test_every_run_gives_the_same_bits() -> None:
    layer = CELLS["lstm"].build(40, 100, num_layers=2, bidirectional=True)
    e = draw(CELLS["lstm"], layer, 9, 21)
    with fastrnn.threads(3):
        expected = e.gradients()
        for _ in range(20):
            assert_same_bits(e.gradients(), expected)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_several_python_threads_share_one_frozen_layer(name: str) -> None:
    layer = CELLS[name].build(32, 128)
    frozen = layer.freeze()
    examples = [draw(CELLS[name], layer, 20, 1 + seed % 5, seed=seed) for seed in range(12)]
    expected = [frozen(e.x, whole(e.state)) for e in examples]
    start = threading.Barrier(4)

    def work(worker: int) -> int:
        start.wait()
        for k in range(5 * len(examples)):
            i = (worker + k) % len(examples)
            y, state = frozen(examples[i].x, whole(examples[i].state))
            assert_same_bits(y, expected[i][0])
            assert_same_bits(state, expected[i][1])
        return k + 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 20 * len(examples)


def test_several_python_threads_train_layers_of_their_own() -> None:
    examples = [draw(CELLS["gru"], CELLS["gru"].build(24, 96, seed=k), 15, 6, seed=k) for k in range(4)]
    expected = [e.gradients() for e in examples]

    def work(k: int) -> None:
        for _ in range(10):
            assert_same_bits(examples[k].gradients(), expected[k])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# ---- the number of threads ------------------------------------------------------------------------------------------


def test_a_block_changes_the_number_and_gives_it_back() -> None:
    before = fastrnn.info()["threads"]
    with fastrnn.threads(5):
        assert fastrnn.info()["threads"] == 5
        with fastrnn.threads(2):
            assert fastrnn.info()["threads"] == 2
        assert fastrnn.info()["threads"] == 5
    assert fastrnn.info()["threads"] == before


def test_set_num_threads() -> None:
    before = fastrnn.info()["threads"]
    try:
        fastrnn.set_num_threads(3)
        assert fastrnn.info()["threads"] == 3
    finally:
        fastrnn.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTRNN_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"FASTRNN_NUM_THREADS": "7"}, 7),
        ({"FASTRNN_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({}, fastrnn.info()["available_threads"]),
    ],
    ids=str,
)
def test_the_environment_sets_the_number(environment: dict[str, str], expected: int) -> None:
    done = run_python("import fastrnn; print(fastrnn.info()['threads'])", **environment)
    assert done.stderr == ""
    assert int(done.stdout) == expected


# ---- fork, exit, Ctrl-C ---------------------------------------------------------------------------------------------


def test_a_fork_computes_with_a_team_of_its_own() -> None:
    """Child and parent both, after the parent's team has worked."""
    done = run_python(
        """
        import os, numpy as np, fastrnn
        layer = fastrnn.GRU(64, 256, rng=0)
        x = np.random.default_rng(0).standard_normal((30, 16, 64)).astype(np.float32)
        fastrnn.set_num_threads(3)
        expected = layer(x)[0]
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if all(np.array_equal(layer(x)[0], expected) for _ in range(5)) else 3)
            children.append(pid)
        assert np.array_equal(layer(x)[0], expected)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        """,
        PYTHONWARNINGS="ignore::DeprecationWarning",  # newer Pythons warn of any fork beside threads
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[0, 0, 0]"


@pytest.mark.parametrize("call", ["layer(x)", "frozen(x)", "frozen.step(x[0])", "train()"])
def test_a_daemon_thread_inside_a_call_does_not_abort_the_exit(call: str) -> None:
    """Several threads and several exits, because it takes one that is about to come back just then."""
    code = f"""
        import threading, time, numpy as np, fastrnn
        fastrnn.set_num_threads(2)
        layer = fastrnn.LSTM(64, 256, rng=0)
        frozen = layer.freeze()
        x = np.random.default_rng(0).standard_normal((5, 64, 64)).astype(np.float32)
        dy = np.ones((5, 64, 256), np.float32)

        def train():
            y, state, tape = layer.forward(x, training=True)
            layer.backward(tape, dy)

        inside = threading.Barrier(5)

        def forever():
            inside.wait()
            while True:
                {call}

        for _ in range(4):
            threading.Thread(target=forever, daemon=True).start()
        inside.wait()
        time.sleep(0.1)
        """
    for _ in range(4):
        done = run_python(code)
        assert done.stderr == ""
        assert done.returncode == 0


# What is prepared, and one call that takes seconds: reading large weights at every step needs little memory.
LONG_CALLS = {
    "inference": ("layer = fastrnn.GRU(8, 2048, rng=0); x = np.ones((9000, 1, 8), np.float32)", "layer(x)"),
    "frozen": ("layer = fastrnn.GRU(8, 2048, rng=0).freeze(); x = np.ones((9000, 1, 8), np.float32)", "layer(x)"),
    "training": (
        "layer = fastrnn.LSTM(8, 2048, rng=0); x = np.ones((4000, 1, 8), np.float32)",
        "layer.forward(x, training=True)",
    ),
    "backward": (
        "layer = fastrnn.LSTM(8, 2048, rng=0); x = np.ones((1500, 1, 8), np.float32);"
        "y, _, tape = layer.forward(x, training=True)",
        "layer.backward(tape, y)",
    ),
    "one huge step": ("layer = fastrnn.LSTM(8, 2048, rng=0); x = np.ones((1, 10_000, 8), np.float32)", "layer(x)"),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", LONG_CALLS)
def test_ctrl_c_is_answered_within_half_a_second(call: str, threads: int) -> None:
    """Measured from the signal to KeyboardInterrupt in the child; three times half a second on a machine kept busy.

    Afterwards the same process computes the right bits.
    """
    prepare, work = LONG_CALLS[call]
    code = f"""
    import signal, time, numpy as np, fastrnn
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fastrnn.set_num_threads({threads})
    small = fastrnn.GRU(16, 64, rng=1)
    sample = np.ones((20, 8, 16), np.float32)
    before = small(sample)[0]
    {prepare}
    print("ready", flush=True)
    try:
        {work}
        print("finished", flush=True)
    except KeyboardInterrupt:
        print(time.monotonic(), np.array_equal(small(sample)[0], before), flush=True)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.4)  # well inside the call
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert out != "finished\n", "the call was over before the signal came"
    caught, right = out.split()
    assert float(caught) - sent < 1.5
    assert right == "True"
    assert child.returncode == 0

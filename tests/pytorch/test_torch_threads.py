"""fastrnn.torch on PyTorch's worker threads: how many, the same bits, and every place where they must be left alone."""

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
from support import run_python
from torch_support import ft, torch

workers = ft.workers

pytestmark = pytest.mark.skipif(workers.HOST is None, reason="this PyTorch's threads cannot be borrowed")


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(layer: Any, x: Any) -> list[Any]:
    """Outputs, final state and all gradients of a call."""
    x = x.clone().requires_grad_()
    y, ends = layer(x)
    ends = ends if isinstance(ends, tuple) else (ends,)
    loss = y.square().sum() + sum(e.sum() for e in ends)
    return [y, *ends, *torch.autograd.grad(loss, [x, *layer.parameters()])]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


SHAPES = {  # T, B, I, H and options: hidden units split, rows split, directions side by side
    "units": (12, 1, 64, 384, {}),
    "rows": (6, 96, 32, 96, {}),
    "directions": (10, 4, 64, 128, {"bidirectional": True, "num_layers": 2}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_any_number_of_pytorchs_threads_gives_the_same_bits(kind: str, shape: str) -> None:
    T, B, input_size, hidden_size, options = SHAPES[shape]
    torch.manual_seed(0)
    layer, x = getattr(ft, kind)(input_size, hidden_size, **options), torch.randn(T, B, input_size)
    torch.set_num_threads(1)
    expected = everything(layer, x)
    for n in (2, 3, 8):
        torch.set_num_threads(n)
        assert_same(everything(layer, x), expected)


def test_the_least_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    settings = sys.modules["fastrnn.threads"]
    monkeypatch.setattr(settings, "_process", None)
    monkeypatch.setattr(settings, "_asked", True)
    assert workers.team_size() == 3  # the processors of the machine are no limit that anybody set
    with fastrnn.threads(2):
        assert workers.team_size() == 2
    with fastrnn.threads(8):
        assert workers.team_size() == 3
    monkeypatch.setattr(settings, "_process", 1)
    assert workers.team_size() == 1


def test_the_variable_of_the_environment_is_a_limit() -> None:
    code = """
        import torch, fastrnn.torch
        torch.set_num_threads(4)
        print(fastrnn.torch.workers.team_size())
        """
    assert run_python(code, FASTRNN_NUM_THREADS="2").stdout == "2\n"
    assert run_python(code, OMP_NUM_THREADS="2").stdout == "4\n"  # PyTorch's own number was set after it


def test_other_pools_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool")
    assert workers._find() is None


def test_a_library_without_the_function_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert workers._find() is None


PREPARE = """
    import os, torch, fastrnn, fastrnn.torch as ft
    torch.manual_seed(0)
    layer, x = ft.LSTM(64, 256), torch.randn(40, 16, 64)
    def results():
        layer.zero_grad()
        y, (h, c) = layer(x)
        (y.sum() + c.sum()).backward()
        return [y.detach(), h.detach(), *(p.grad.clone() for p in layer.parameters())]
    def same(a, b):
        return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
    torch.set_num_threads(1)
    expected = results()
    """


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the code after PREPARE in a process of its own, which has to end within two minutes."""
    return run_python(textwrap.dedent(PREPARE) + textwrap.dedent(code), **environment)


def assert_prints(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.stderr == ""
    assert done.stdout.strip() == text


def test_no_threads_beside_pytorchs_are_started() -> None:
    done = run(
        """
        torch.set_num_threads(2)
        big = torch.randn(400, 400)
        for _ in range(3):
            big @ big
            big.exp()
        before = len(os.listdir("/proc/self/task"))
        for _ in range(3):
            assert same(results(), expected)
        after = len(os.listdir("/proc/self/task"))
        print(after - before)
        """
    )
    assert_prints(done, "0")


def test_a_forked_child_leaves_pytorchs_threads_alone() -> None:
    """They are not there, and an OpenMP region would wait for them."""
    done = run(
        """
        torch.set_num_threads(2)
        assert same(results(), expected)
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                # NumPy compares: many of PyTorch's own operators hang in a child of a process whose threads have run
                with torch.inference_mode():
                    right = all((layer(x)[0].numpy() == expected[0].numpy()).all() for _ in range(5))
                os._exit(0 if right else 3)
            children.append(pid)
        assert same(results(), expected)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        """,
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert_prints(done, "[0, 0, 0]")


def test_workers_of_a_data_loader() -> None:
    done = run(
        """
        from torch.utils.data import DataLoader, Dataset

        class Encoded(Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, i):
                with torch.inference_mode():
                    return layer(x)[0].clone()

        torch.set_num_threads(2)
        assert same(results(), expected)
        loader = DataLoader(Encoded(), num_workers=2, batch_size=None)
        print(all(torch.equal(y, expected[0]) for y in loader), same(results(), expected))
        """,
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert_prints(done, "True True")


def test_pytorch_imported_after_fastrnn_has_computed() -> None:
    done = run_python(
        """
        import numpy as np, fastrnn
        fastrnn.set_num_threads(2)
        layer = fastrnn.LSTM(64, 256, rng=0)
        x = np.random.default_rng(0).standard_normal((40, 16, 64), dtype=np.float32)
        expected = layer(x)[0]
        import torch, fastrnn.torch
        torch.set_num_threads(2)
        twin = fastrnn.torch.LSTM(64, 256)
        twin.load_state_dict({k: torch.from_numpy(v) for k, v in layer.state_dict().items()})
        for _ in range(3):
            with torch.inference_mode():
                assert np.array_equal(twin(torch.from_numpy(x))[0].numpy(), expected)
            assert np.array_equal(layer(x)[0], expected)
        print("same")
        """
    )
    assert_prints(done, "same")


@pytest.mark.parametrize(
    "variables",
    [{"OMP_THREAD_LIMIT": "2"}, {"OMP_DYNAMIC": "true"}, {"OMP_WAIT_POLICY": "passive"}, {"OMP_NUM_THREADS": "1"}],
    ids=str,
)
def test_openmp_that_gives_other_teams(variables: dict[str, str]) -> None:
    """Fewer threads than asked for, as many as there are processors, or some that sleep at once."""
    done = run(
        """
        torch.set_num_threads(4)
        print(all(same(results(), expected) for _ in range(5)))
        """,
        **variables,
    )
    assert_prints(done, "True")


def test_a_call_inside_a_parallel_loop_runs_alone() -> None:
    done = run(
        """
        import ctypes
        library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
        body = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        seen = []

        @body
        def inside(first, last, _):
            with torch.inference_mode():
                seen.append(torch.equal(layer(x)[0], expected[0]))

        torch.set_num_threads(2)
        one = ctypes.c_int64(1)
        for _ in range(5):
            assert library.torch_parallel_for(ctypes.c_int64(0), ctypes.c_int64(2), one, inside, None) == 0
        print(len(seen), all(seen), same(results(), expected))
        """
    )
    assert_prints(done, "10 True True")


def test_several_python_threads_at_once() -> None:
    torch.manual_seed(1)
    layers = [ft.GRU(24, 96) for _ in range(4)]
    xs = [torch.randn(15, 6, 24) for _ in layers]
    torch.set_num_threads(1)
    expected = [everything(layer, x) for layer, x in zip(layers, xs, strict=True)]
    torch.set_num_threads(2)
    start = threading.Barrier(4)

    def work(k: int) -> int:
        start.wait()
        for _ in range(10):
            assert_same(everything(layers[k], xs[k]), expected[k])
        return k

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


def test_backward_in_another_thread_than_forward() -> None:
    torch.manual_seed(1)
    layer, x = ft.LSTM(32, 128), torch.randn(20, 8, 32)
    torch.set_num_threads(1)
    expected = everything(layer, x)[3:]
    torch.set_num_threads(2)
    leaf = x.clone().requires_grad_()
    y, (h, c) = layer(leaf)
    loss = y.square().sum() + h.sum() + c.sum()
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.extend(torch.autograd.grad(loss, [leaf, *layer.parameters()])))
    other.start()
    other.join()
    assert_same(found, expected)


def test_checkpointed_layers_run_backward_inside_backward() -> None:
    """A second engine in the same thread, from inside the first one's."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(1)
    layer, x = ft.GRU(32, 128), torch.randn(20, 8, 32)
    torch.set_num_threads(1)
    expected = everything(layer, x)
    torch.set_num_threads(2)
    leaf = x.clone().requires_grad_()
    y, h = checkpoint(layer, leaf, use_reentrant=True)
    (y.square().sum() + h.sum()).backward()
    gradients = [leaf.grad, *(p.grad for p in layer.parameters())]
    assert_same([y, h, *gradients], expected)


def test_the_number_changes_meanwhile() -> None:
    torch.manual_seed(1)
    layer, x = ft.LSTM(32, 128), torch.randn(20, 8, 32)
    torch.set_num_threads(1)
    expected = everything(layer, x)
    done = threading.Event()

    def change() -> None:
        n = 0
        while not done.is_set():
            n += 1
            torch.set_num_threads(1 + n % 4)
            time.sleep(1e-3)

    other = threading.Thread(target=change)
    other.start()
    try:
        for n in range(40):
            torch.set_num_threads(1 + n % 3)
            assert_same(everything(layer, x), expected)
    finally:
        done.set()
        other.join()


def test_a_tape_goes_from_pytorchs_team_to_a_single_thread() -> None:
    torch.manual_seed(1)
    layer, x = ft.LSTM(32, 128), torch.randn(20, 8, 32)
    torch.set_num_threads(1)
    expected = everything(layer, x)
    torch.set_num_threads(4)
    leaf = x.clone().requires_grad_()
    y, (h, c) = layer(leaf)
    torch.set_num_threads(1)
    loss = y.square().sum() + h.sum() + c.sum()
    assert_same([y, h, c, *torch.autograd.grad(loss, [leaf, *layer.parameters()])], expected)


def test_ctrl_c_ends_a_call_on_pytorchs_threads() -> None:
    code = """
        import signal, time, torch, fastrnn.torch as ft
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(2)
        small, sample = ft.GRU(16, 64), torch.ones(20, 8, 16)
        layer, x = ft.LSTM(8, 2048), torch.ones(9000, 1, 8)
        with torch.inference_mode():
            before = small(sample)[0].clone()
            print("ready", flush=True)
            try:
                layer(x)
                print("finished", flush=True)
            except KeyboardInterrupt:
                print(time.monotonic(), torch.equal(small(sample)[0], before), flush=True)
        """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.4)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=60)
        finally:
            child.kill()
    assert out != "finished\n", "the call was over before the signal came"
    caught, right = out.split()
    assert float(caught) - sent < 1.5
    assert right == "True"


def test_daemon_threads_inside_calls_do_not_abort_the_exit() -> None:
    """Of the core on PyTorch's threads: PyTorch itself aborts a process that ends while a tensor is let go of."""
    code = """
        import threading, time
        from fastrnn._core import Network
        from fastrnn.torch.workers import HOST
        network = Network("lstm", "float32", 64, 256, 0, 1, False, True, host=HOST)
        weights, inputs = [p.detach().numpy() for p in layer.parameters()], x.numpy()
        inside = threading.Barrier(4)

        def forever():
            inside.wait()
            while True:
                network.forward(weights, inputs, None, None, None, False, False, 2)

        for _ in range(3):
            threading.Thread(target=forever, daemon=True).start()
        inside.wait()
        time.sleep(0.1)
        """
    for _ in range(4):
        done = run(code)
        assert done.stderr == ""
        assert done.returncode == 0

"""What a layer on a GPU takes, gives and refuses."""

import copy
import pickle
import re
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastrnn
import fastrnn.cuda
from cuda_support import Foreign, from_gpu, needs_gpu, rounded, to_gpu
from fastrnn.cuda import devices
from support import CELLS, assert_same_bits, gradients_of, parts


def drawn(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


# ---- with or without a GPU


def test_to_the_cpu_is_a_copy() -> None:
    layer = fastrnn.GRU(2, 3, reset_after=False)
    other = layer.to("cpu")
    assert other is not layer
    assert_same_bits(dict(other.parameters()), dict(layer.parameters()))
    wide = layer.to("cpu", "float64")
    assert wide.dtype == np.float64
    assert not wide.reset_after
    assert_same_bits(wide.to("cpu", "float32").state_dict(), layer.state_dict())
    with pytest.raises(ValueError, match="the CPU computes in IEEE only"):
        layer.to("cpu", fp32_precision="tf32")
    with pytest.raises(TypeError, match=r"dtype must be np\.float32 or np\.float64"):
        layer.to("cpu", "bfloat16")


# ---- with one


@needs_gpu
def test_device_info_describes_the_gpu() -> None:
    fastrnn.LSTM(1, 1).to("cuda")
    (device, *_) = fastrnn.cuda.device_info()
    assert float(device["compute_capability"]) >= 8
    assert device["memory"] > 0
    assert device["multiprocessors"] > 0
    assert set(device) == {"name", "compute_capability", "multiprocessors", "memory", "cublaslt", "emulated"}


@needs_gpu
@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("gpu",), {}, ValueError, '"cpu", "cuda", "cuda:1"'),
        (("cuda:",), {}, ValueError, "cuda:1"),
        (("cuda:77",), {}, ValueError, "there is no GPU 77"),
        ((-1,), {}, ValueError, "there is no GPU -1"),
        ((True,), {}, TypeError, "True"),
        ((None,), {}, TypeError, "None"),
        (("cuda", "int8"), {}, ValueError, "float32, float64, bfloat16, float16"),
        (("cuda",), {"fp32_precision": "high"}, ValueError, '"ieee" or "tf32"'),
        (("cuda", "bfloat16"), {"fp32_precision": "tf32"}, ValueError, "for float32 only"),
    ],
)
def test_what_to_refuses(arguments: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fastrnn.LSTM(2, 3).to(*arguments, **options)


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_parameters_go_there_and_come_back(dtype: str) -> None:
    layer = CELLS["lstm_proj"].build(3, 5, num_layers=2, bidirectional=True)
    gpu = layer.to("cuda", dtype)
    assert (gpu.dtype, gpu.input_size, gpu.bidirectional, gpu.proj_size) == (dtype, 3, True, layer.proj_size)
    expected = {name: rounded(p, dtype) for name, p in layer.parameters().items()}
    for name, p in gpu.state_dict().items():
        np.testing.assert_array_equal(p, expected[name])
    for other in (gpu.to("cuda"), copy.deepcopy(gpu), pickle.loads(pickle.dumps(gpu))):
        assert (other.dtype, other.device, other.fp32_precision) == (dtype, 0, "ieee")
        assert_same_bits(other.state_dict(), gpu.state_dict())
    back = gpu.to("cpu")
    assert type(back) is fastrnn.LSTM
    assert back.dtype == np.float32
    assert_same_bits(back.state_dict(), {name: p.astype(np.float32) for name, p in expected.items()})
    assert re.search(r'LSTM\(.*proj_size.*\)\.to\("cuda:0", "' + dtype, repr(gpu))


@needs_gpu
def test_dtypes_may_be_numpys() -> None:
    assert fastrnn.LSTM(2, 3).to("cuda", np.float64).dtype == "float64"
    with pytest.raises(ValueError, match="the CPU computes in IEEE only"):
        fastrnn.LSTM(2, 3).to("cuda").to("cpu", fp32_precision="tf32")


@needs_gpu
def test_what_only_the_cpu_does() -> None:
    gpu = fastrnn.LSTM(3, 4).to("cuda")
    with pytest.raises(AttributeError, match=r'a layer on a GPU has no freeze: .* \.to\("cpu"\)\.freeze'):
        gpu.freeze()
    with pytest.raises(AttributeError, match=r"has no nonsense$"):
        _ = gpu.nonsense
    with pytest.raises(ValueError, match=r"token ids are for layers on the CPU: give the rows, embedding\[ids\]"):
        gpu(np.zeros((2, 3), int), embedding=drawn(5, 3))
    with pytest.raises(ValueError, match="token ids"):
        gpu.forward(np.zeros((2, 3), int), embedding="one-hot")
    with pytest.raises(ValueError, match="It is edited in place and must be a writeable"):
        fastrnn.Adam([gpu.parameters()])


@needs_gpu
def test_load_state_dict_is_seen_and_refuses_older_tapes() -> None:
    layer, other = fastrnn.GRU(3, 4, rng=1), fastrnn.GRU(3, 4, rng=2)
    gpu = layer.to("cuda", "float64")
    x = drawn(3, 2, 3).astype(np.float64)
    tape = gpu.forward(x)[2]
    gpu.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(gpu(x)[0], other.to("cuda", "float64")(x)[0])
    with pytest.raises(ValueError, match=r"before the parameters were changed \(last by load_state_dict\)"):
        gpu.backward(tape, None)
    with pytest.raises(ValueError, match="other names"):
        gpu.load_state_dict({})
    with pytest.raises(ValueError, match="of another layer"):
        gpu.backward(other.to("cuda", "float64").forward(x)[2], None)
    with pytest.raises(TypeError, match="takes the tape that forward returned"):
        gpu.backward(x, None)


@needs_gpu
@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_first_and_no_batch(batch_first: bool) -> None:
    layer = CELLS["lstm"].build(3, 5, num_layers=2, bidirectional=True, dtype="float64", batch_first=batch_first)
    gpu = layer.to("cuda")
    for shape, lengths in (((4, 2, 3), [3, 1] if not batch_first else [2, 0, 1, 2]), ((4, 3), 2)):
        x = drawn(*shape).astype(np.float64)
        reset = drawn(*shape[:-1]) > 0.5
        actual, expected = [], []
        for to, layer_ in ((actual, gpu), (expected, layer)):
            y, state, tape = layer_.forward(x, lengths=lengths, reset=reset)
            grads = layer_.backward(tape, np.ones(y.shape), hidden=True)
            to += [y, *parts(state), *gradients_of(grads).values()]
        for a, b in zip(actual, expected, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@needs_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_states_are_float32_in_16_bits(dtype: str) -> None:
    gpu = fastrnn.LSTM(3, 4).to("cuda", dtype)
    y, state, tape = gpu.forward(drawn(2, 3, 3), (drawn(1, 3, 4), drawn(1, 3, 4)))
    assert y.dtype == (np.float32 if dtype == "bfloat16" else np.float16)
    assert {s.dtype for s in state} == {np.dtype(np.float32)}
    grads = gpu.backward(tape, np.ones_like(y), state)
    assert {s.dtype for s in grads.state} == {np.dtype(np.float32)}
    assert grads.x.dtype == y.dtype
    with pytest.raises(
        TypeError, match=rf"(?s){dtype} rounds float32 and shorter; use np.asarray\(x, dtype=np.float32\)"
    ):
        gpu(drawn(2, 3, 3).astype(np.float64))
    with pytest.raises(TypeError, match=r"state\.h with dtype float64"):
        gpu(drawn(2, 3, 3), (drawn(1, 3, 4).astype(np.float64), None))


@needs_gpu
def test_arrays_on_the_gpu_are_used_where_they_lie() -> None:
    layer = CELLS["gru"].build(3, 5)
    gpu = layer.to("cuda")
    x, h = drawn(4, 2, 3), drawn(1, 2, 5)
    lengths, reset = np.array([3, 4]), drawn(4, 2) > 0
    y, state, tape = gpu.forward(x, h, lengths=lengths, reset=reset)
    grads = gpu.backward(tape, np.ones_like(y), h)
    for wrap in (lambda a: a, Foreign):
        there = [wrap(to_gpu(a)) for a in (x, h, lengths, reset)]
        y_there, state_there, tape_there = gpu.forward(there[0], there[1], lengths=there[2], reset=there[3])
        assert isinstance(y_there, fastrnn.cuda.Array)
        assert_same_bits(from_gpu(y_there), y)
        assert_same_bits(from_gpu(state_there), state)
        grads_there = gpu.backward(tape_there, wrap(to_gpu(np.ones_like(y))), wrap(to_gpu(h)))
        expected = gradients_of(grads)
        for name, value in gradients_of(grads_there).items():
            assert_same_bits(from_gpu(value), expected[name])


@needs_gpu
def test_lengths_on_the_gpu_are_not_looked_at() -> None:
    gpu = CELLS["lstm"].build(3, 5, bidirectional=True, num_layers=2).to("cuda")
    x, reset = drawn(4, 4, 3), drawn(4, 4) > 0
    y, _, tape = gpu.forward(x, lengths=np.array([4, 0, 2, 4]), reset=reset)
    wild = to_gpu(np.array([5, -3, 2, 2**62]))
    y_wild, _, tape_wild = gpu.forward(x, lengths=wild, reset=reset)
    assert_same_bits(y_wild, y)
    assert_same_bits(gpu.backward(tape_wild, y).x, gpu.backward(tape, y).x)


@needs_gpu
def test_batch_first_on_the_gpu() -> None:
    layer = CELLS["lstm"].build(3, 5, batch_first=True)
    gpu = layer.to("cuda")
    x = drawn(2, 4, 3)
    y, _, tape = gpu.forward(x)
    y_there, _, tape_there = gpu.forward(to_gpu(x))
    assert_same_bits(from_gpu(y_there), y)
    dx, dx_there = gpu.backward(tape, y).x, gpu.backward(tape_there, to_gpu(y)).x
    assert dx.shape == tuple(dx_there.shape) == (2, 4, 3)
    assert_same_bits(from_gpu(dx_there), dx)


@needs_gpu
def test_the_arrays_speak_both_protocols() -> None:
    a = to_gpu(drawn(2, 3))
    interface = a.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"], interface["strides"]) == ((2, 3), "<f4", (12, 4))
    assert a.__dlpack_device__() == (2, 0)
    again = fastrnn.cuda.Array.from_dlpack(a.__dlpack__(stream=1))
    assert (again.shape, again.strides, again.dtype, again.pointer) == ((2, 3), (3, 1), "float32", a.pointer)
    pointer = a.pointer
    del a, interface
    assert again.pointer == pointer
    assert_same_bits(from_gpu(again), drawn(2, 3))
    with pytest.raises(AttributeError, match="has no bfloat16: use __dlpack__"):
        _ = to_gpu(drawn(2), "bfloat16").__cuda_array_interface__
    with pytest.raises(TypeError, match="complex64"):
        to_gpu(drawn(2).astype(np.complex64))


class FakeArray(Foreign):
    """An array of a library that is not installed."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream != 0  # which the protocol forbids
        return self.array.__dlpack__(stream=stream)

    def swapaxes(self, a: int, b: int) -> "FakeArray":
        assert (a, b) == (0, 1)
        return type(self)(self.array.swapped())


@needs_gpu
@pytest.mark.parametrize("package", ["cupy", "jaxlib"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_are_the_callers_kind(package: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's own allocator and stream are used; JAX takes over what the core made."""
    kind = type("ndarray", (FakeArray,), {"__module__": f"{package}.core"})
    made: list[Any] = []

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        made.append(kind(fastrnn.cuda.Array.empty(shape, dtype, 0, 0)))
        return made[-1]

    stream = SimpleNamespace(ptr=0)
    around = lambda n: nullcontext()  # noqa: E731
    on = SimpleNamespace(Device=around, ExternalStream=around, get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=on, empty=empty))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(dlpack=SimpleNamespace(from_dlpack=kind)))
    layer = CELLS["lstm"].build(3, 5, batch_first=batch_first)
    gpu = layer.to("cuda")
    x = drawn(4, 2, 3)
    y, state, tape = gpu.forward(x)
    grads = gradients_of(gpu.backward(tape, y, state))
    y_there, state_there, tape_there = gpu.forward(kind(to_gpu(x)))
    seeds = kind(to_gpu(y)), tuple(kind(to_gpu(s)) for s in state)
    there = {"y": y_there, "h": state_there.h, **gradients_of(gpu.backward(tape_there, *seeds))}
    for name, value in {"y": y, "h": state.h, **grads}.items():
        assert type(there[name]) is kind, name
        assert_same_bits(from_gpu(there[name].array), value)
    assert bool(made) == (package == "cupy")
    if package == "cupy":
        with pytest.raises(TypeError, match="CuPy has no bfloat16"):
            layer.to("cuda", "bfloat16")(kind(to_gpu(x, "bfloat16")))


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("features", {"x": drawn(4, 2, 5)}, ValueError, "features is 5 but must be 3"),
    ("axes", {"x": drawn(3)}, ValueError, "x must have 3 axes"),
    ("dtype", {"x": drawn(4, 2, 3).astype(np.float64)}, TypeError, "x with dtype float64"),
    ("text", {"x": "x"}, TypeError, "x with dtype"),
    ("state axes", {"state": drawn(4, 5)}, ValueError, "state with shape"),
    ("pair", {"state": (drawn(1, 2, 5), None)}, TypeError, "not a pair"),
    ("lengths", {"lengths": [5, 1]}, ValueError, r"lengths\[0\] = 5"),
    ("lengths count", {"lengths": [1]}, ValueError, "one length per sequence"),
    ("float lengths", {"lengths": [1.0, 2.0]}, TypeError, "must be integers"),
    ("reset", {"reset": drawn(4, 2)}, TypeError, "must be boolean"),
    ("reset axes", {"reset": np.zeros((2, 4), bool)}, ValueError, "reset.T"),
    ("stream", {"stream": "main"}, TypeError, "a stream is an address"),
]


@needs_gpu
@pytest.mark.parametrize("there", [False, True], ids=["host", "gpu"])
@pytest.mark.parametrize(("case", "given", "error", "match"), WRONG, ids=[w[0] for w in WRONG])
def test_wrong_arguments(case: str, given: dict[str, Any], error: type[Exception], match: str, there: bool) -> None:
    given = {"x": drawn(4, 2, 3), **given}
    if there:
        if case in ("text", "float lengths"):
            pytest.skip("there are no such arrays on the GPU")
        if case == "lengths":
            pytest.skip("lengths on the GPU are not looked at")
        given = {
            key: to_gpu(np.asarray(value)) if isinstance(value, (np.ndarray, list)) else value
            for key, value in given.items()
        }
    gpu = fastrnn.GRU(3, 5).to("cuda")
    with pytest.raises(error, match=match):
        gpu(given.pop("x"), given.pop("state", None), **given)


@needs_gpu
def test_wrong_arrays_on_the_gpu() -> None:
    gpu = fastrnn.LSTM(3, 5).to("cuda")
    x = to_gpu(drawn(4, 3, 3))
    with pytest.raises(ValueError, match="x whose last axis is not contiguous"):
        gpu(fastrnn.cuda.Array.from_interface({**x.__cuda_array_interface__, "strides": (36, 12, 8)}, 0, x))
    with pytest.raises(ValueError, match=r"state\.h that is not contiguous"):
        fastrnn.LSTM(3, 5, 2).to("cuda")(x, (to_gpu(drawn(3, 2, 5)).swapped(), None))
    with pytest.raises(TypeError, match=r"(?s)x with dtype float64 on the GPU.*converted only where"):
        gpu(to_gpu(drawn(4, 3, 3).astype(np.float64)))
    with pytest.raises(fastrnn.ShapeError, match=r"dy with shape \(\)"):
        gpu.backward(gpu.forward(x)[2], to_gpu(np.zeros((), np.float32)))
    with pytest.raises(TypeError, match="pair"):
        gpu(x, to_gpu(drawn(1, 3, 5)))
    tape = gpu.forward(x)[2]
    with pytest.raises(ValueError, match="dy with shape"):
        gpu.backward(tape, to_gpu(drawn(4, 3, 4)))
    with pytest.raises(TypeError, match="dy with dtype"):
        gpu.backward(tape, to_gpu(drawn(4, 3, 5).astype(np.float64)))


@needs_gpu
def test_the_core_refuses_what_would_not_be_safe() -> None:
    core = devices.core()
    network = fastrnn.LSTM(3, 5).to("cuda")._network
    parameters = list(fastrnn.LSTM(3, 5).to("cuda").parameters().values())
    asked = {
        "x": to_gpu(drawn(4, 2, 3)), "states": [], "starts": None, "lengths": None, "reset": None, "drawn": None,
    }  # fmt: skip
    call = network.call(**asked)
    wrong_calls = {
        "x": to_gpu(drawn(4, 2, 4)),
        "states": [None],
        "starts": to_gpu(np.zeros(4, np.int64)),
        "lengths": to_gpu(np.zeros(3, np.int64)),
        "reset": to_gpu(np.zeros((4, 3), bool)),
        "drawn": (to_gpu(np.zeros((0, 4, 3, 5), np.uint8)), 1.0, None),
    }
    for name, value in wrong_calls.items():
        with pytest.raises((ValueError, TypeError)):
            network.call(**{**asked, name: value})
    needed = network.forward_bytes(parameters, call, False)
    masked = network.call(**{**asked, "drawn": (to_gpu(np.zeros((0, 4, 2, 5), np.uint8)), 1.0, None)})
    with pytest.raises(ValueError, match="dropout needs a tape"):
        network.forward_bytes(parameters, masked, False)
    made = {
        "stream": 0, "parameters": parameters, "call": call, "y": to_gpu(drawn(4, 2, 5)),
        "ends": [to_gpu(drawn(1, 2, 5)), to_gpu(drawn(1, 2, 5))], "tape": None,
        "scratch": core.Array.empty((needed,), "uint8", 0, 0),
    }  # fmt: skip
    network.forward(**made)
    wrong = {
        "call": fastrnn.LSTM(3, 6).to("cuda")._network.call(**asked),
        "y": to_gpu(drawn(4, 2, 4)),
        "ends": made["ends"][:1],
        "parameters": parameters[:-1],
        "tape": to_gpu(np.zeros(7, np.uint8)),
        "scratch": core.Array.empty((needed - 1,), "uint8", 0, 0),
    }
    for name, value in wrong.items():
        with pytest.raises((ValueError, TypeError)):
            network.forward(**{**made, name: value})
    for ends in ([None, None], [to_gpu(drawn(1, 2, 5).astype(np.float64)), made["ends"][1]]):
        with pytest.raises(TypeError):
            network.forward(**{**made, "ends": ends})
    network.forward(**{**made, "call": network.call(**{**asked, "states": [None, to_gpu(drawn(1, 2, 5))]})})
    with pytest.raises(ValueError, match="must be positive"):
        core.Network("lstm", "float32", 0, 1, 0, 1, False, True, 0)
    with pytest.raises(OverflowError):
        core.Network("lstm", "float32", 2**40, 2**40, 0, 1, False, True, 0)
    with pytest.raises(ValueError, match="prepared"):
        core.Network("lstm", "float32", 1, 1, 0, 1, False, True, 9)
    with pytest.raises(ValueError, match="no precision"):
        core.Network("lstm", "int8", 1, 1, 0, 1, False, True, 0)


@needs_gpu
@pytest.mark.parametrize(
    ("compiled_for", "runs", "not_on"),
    [
        ("90", [(9, 0), (10, 0), (12, 0)], [(8, 0), (8, 9), (7, 5)]),
        ("80-real,86-real,89-real,90-real,100-real,120", [(8, 0), (8, 7), (8, 9), (9, 0), (10, 3), (12, 1)], [(11, 0)]),
        ("90a", [(9, 0)], [(10, 0)]),
        ("80-virtual", [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        ("native", [(8, 0), (12, 0)], [(7, 5)]),
    ],
)  # fmt: skip
def test_which_gpus_the_module_runs_on(compiled_for: str, runs: list[Any], not_on: list[Any]) -> None:
    runs_on = devices.core().runs_on
    assert all(runs_on(compiled_for, *capability) for capability in runs)
    assert not any(runs_on(compiled_for, *capability) for capability in not_on)


@needs_gpu
def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward in one stream, backward in another: each waits for the other's memory."""
    core = devices.core()
    gpu = fastrnn.GRU(3, 4).to("cuda")
    x, dy = to_gpu(drawn(3, 2, 3)), to_gpu(drawn(3, 2, 4))
    tape = gpu.forward(x)[2]
    waits: list[Any] = []
    spy = SimpleNamespace(**{name: getattr(core, name) for name in dir(core) if not name.startswith("__")})
    spy.wait_for = lambda *arguments: waits.append(arguments)
    for module in (fastrnn.cuda.arrays, fastrnn.cuda.layers):
        monkeypatch.setattr(module, "core", lambda: spy)
    gpu.backward(tape, dy)
    assert waits == []
    if devices.device_info()[0]["emulated"]:  # where any number is a stream
        gpu.backward(tape, dy, stream=77)
        assert waits == [(0, 0, 77), (0, 0, 77), (0, 77, 0)]  # the tape's, dy's; and back


@needs_gpu
def test_plans() -> None:
    core = devices.core()
    assert core.step_columns(64, 1, 1, 132) == 8
    assert core.step_columns(1024, 32, 1, 132) == 8
    assert core.step_columns(1024, 128, 1, 132) == 32
    assert core.chunk_steps(100, 8, 4096, 64 << 20) == 100
    assert core.chunk_steps(1000, 256, 2 << 20, 64 << 20) == 1
    assert core.chunk_steps(1000, 64, 16384, 64 << 20) == 64
    assert core.product_shares(4096, 1024, 4096, 4 * 4096 * 4096, 132) == 1
    assert core.product_shares(256, 12800, 64, 4 * 256 * 64, 132) == 25
    with pytest.raises(OverflowError):
        core.chunk_steps(1, 2**40, 2**40, 1)

"""fastrnn.torch on a GPU. With an emulated one, the operators on tensors that lie where its memory is: the CPU's."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra torch is not installed")

import fastrnn  # noqa: E402
import fastrnn.torch  # noqa: E402
from cuda_support import EMULATED, RELATIVE_ERROR, needs_gpu  # noqa: E402
from fastrnn.torch import gpu, ops  # noqa: E402
from fastrnn.torch.noise import Rates, draw  # noqa: E402

pytestmark = needs_gpu
emulated = pytest.mark.skipif(not EMULATED, reason="for an emulated GPU")
real = pytest.mark.skipif(EMULATED or not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
CELLS = {
    "lstm": lambda **o: torch.nn.LSTM(5, 7, **o),
    "lstm_proj": lambda **o: torch.nn.LSTM(5, 7, proj_size=3, **o),
    "gru": lambda **o: torch.nn.GRU(5, 7, **o),
    "rnn_tanh": lambda **o: torch.nn.RNN(5, 7, **o),
    "slstm_heads": lambda **o: fastrnn.torch.sLSTM(5, 7, heads=7, **o),
    "lstm_noise": lambda **o: fastrnn.torch.LSTM(
        5, 7, zoneout=(0.3, 0.2), recurrent_dropout=0.4, recurrent_dropout_mode="step", **o
    ),
    "gru_noise": lambda **o: fastrnn.torch.GRU(5, 7, zoneout=0.3, recurrent_dropout=0.4, **o),
    "lstm_norm": lambda **o: fastrnn.torch.LSTM(5, 7, layer_norm=True, **o),
    "gru_norm": lambda **o: fastrnn.torch.GRU(5, 7, layer_norm=True, **o),
    "gru_heads": lambda **o: fastrnn.torch.GRU(5, 7, heads=7, **o),
    "lstm_peephole": lambda **o: fastrnn.torch.LSTM(
        5, 7, peephole=True, activations=("sigmoid", "softsign", "tanh"), **o
    ),
}


def distance(a: Any, b: Any) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that PyTorch has just allocated holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


# ---- the operators, emulated


@pytest.fixture
def default_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = type("Stream", (), {"cuda_stream": 0})()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)


def call_of(cell: str, dtype: Any, packed: bool, batch_first: bool, dropout: bool) -> tuple[Any, ...]:
    torch.manual_seed(1)
    model = CELLS[cell](num_layers=2, bidirectional=True, batch_first=batch_first)
    ours = fastrnn.torch.accelerate(model).model.to(dtype)
    lengths = torch.tensor([4, 4, 2])
    x = torch.randn((10, 5) if packed else (3, 4, 5) if batch_first else (4, 3, 5), dtype=dtype)
    P = ours.proj_size or 7
    hx = [torch.randn(4, 3, P, dtype=dtype)] + ([torch.randn(4, 3, 7, dtype=dtype)] if "lstm" in cell else [])
    if "slstm" in cell:
        hx += [torch.rand(4, 3, 7, dtype=dtype) + 0.5, torch.randn(4, 3, 7, dtype=dtype)]
    reset = None if packed else torch.rand((3, 4) if batch_first else (4, 3)) < 0.3
    masks = torch.rand(1, *((10,) if packed else (4, 3)), 2 * P) < 0.5 if dropout else None
    options = ours._options()._replace(batch_first=batch_first and not packed)
    if rates := Rates.of(options):
        masks = draw(masks, rates, (10,) if packed else (4, 3), 3, torch.device("cpu"))
    return x, hx, [w.detach() for w in ours._weights()], lengths, reset, masks, 2.0, options


@emulated
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("packed", "batch_first"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("default_stream")
def test_operators_equal_those_of_the_cpu(cell: str, packed: bool, batch_first: bool, dtype: str) -> None:
    *call, options = call_of(cell, DTYPES[dtype], packed, batch_first, dropout=dtype == "float64")
    masks = call[5]
    tolerance = RELATIVE_ERROR[dtype] * (2 if "16" in dtype else 1)  # the CPU's results are rounded to 16 bits too
    if masks is None:
        y, ends = gpu.infer(*call[:5], *options)
        expected, last = ops.infer(*call[:5], *options)
        for a, b in zip((y, *ends), (expected, *last), strict=True):
            assert a.shape == b.shape
            assert distance(a, b) <= tolerance
    y, ends, room = gpu.train(*call, *options)
    expected, last, tape = ops.train(*call, *options)
    for a, b in zip((y, *ends), (expected, *last), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert distance(a, b) <= tolerance
    dy, dends = torch.randn_like(y), [torch.randn_like(end) for end in ends]
    actual = gpu.backward(dy, dends, y, room, *call, *options)
    wanted = ops.backward(dy, dends, expected, tape, *call, *options)
    for a, b in zip((actual[0], *actual[1], *actual[2]), (wanted[0], *wanted[1], *wanted[2]), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert distance(a, b) <= 3 * tolerance


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ("", "float32"),
        ("torch.set_float32_matmul_precision('high')", "tf32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'ieee'", "float32"),
        ("torch.backends.fp32_precision = 'tf32'", "tf32"),
    ],
)
def test_tf32_is_asked_for_as_in_pytorch(settings: str, precision: str) -> None:
    code = f"import torch; {settings}\nfrom fastrnn.torch import gpu; print(gpu._precision(torch.float32))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == precision


def test_stand_ins_lie_as_what_they_stand_in_for() -> None:
    """Under torch.compile dx of a batch_first layer is time first, as a GPU computes it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    options = ops.Options("gru", 7, 0, 1, False, True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, 4, 5, device="cuda")
        weights = [torch.empty(*shape, device="cuda") for shape in ((21, 5), (21, 7), (21,), (21,))]
        tape = torch.empty(8, dtype=torch.uint8, device="cuda")
        y = torch.empty(3, 4, 7, device="cuda")
        dx, _, gradients = torch.ops.fastrnn.backward(y, [], y, tape, x, [], weights, None, None, None, 1.0, *options)
    assert (dx.shape, dx.stride()) == ((3, 4, 5), (5, 15, 1))
    assert [g.shape for g in gradients] == [w.shape for w in weights]


# ---- modules, on a real GPU


def twins(cell: str, dtype: Any, **options: Any) -> tuple[Any, Any]:
    """The same module computed by fastrnn on the GPU and by PyTorch on the CPU in float64."""
    torch.manual_seed(2)
    model = CELLS[cell](**options).to("cuda", dtype)
    exact = CELLS[cell](**options).double()
    exact.load_state_dict({name: p.double().cpu() for name, p in model.state_dict().items()})
    return fastrnn.torch.accelerate(model).model, exact


@real
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", [c for c in CELLS if "noise" not in c])  # each device draws for itself
def test_modules_equal_pytorch(cell: str, batch_first: bool, dtype: str) -> None:
    ours, exact = twins(cell, DTYPES[dtype], num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(6, 4, 5, device="cuda", dtype=DTYPES[dtype], requires_grad=True)
    wide = x.detach().double().cpu().requires_grad_()
    y, _ = ours(x)
    expected, _ = exact(wide)
    assert distance(y, expected) <= RELATIVE_ERROR[dtype]
    y.square().sum().backward()
    expected.square().sum().backward()
    assert distance(x.grad, wide.grad) <= 3 * RELATIVE_ERROR[dtype]
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert distance(p.grad, q.grad) <= 3 * RELATIVE_ERROR[dtype], name


@real
def test_packed_sequences_lengths_and_resets_on_the_gpu() -> None:
    ours, exact = twins("gru", torch.float64, num_layers=2, bidirectional=True)
    x = torch.randn(6, 3, 5, device="cuda", dtype=torch.float64)
    lengths = torch.tensor([6, 2, 4])
    pack = torch.nn.utils.rnn.pack_padded_sequence
    packed, _ = ours(pack(x, lengths, enforce_sorted=False))
    expected, hn = exact(pack(x.cpu(), lengths, enforce_sorted=False))
    assert distance(packed.data, expected.data) <= 1e-12
    for n in (lengths, lengths.cuda()):
        _, ends = ours(x, lengths=n)
        assert distance(ends, hn) <= 1e-12
    y, _ = ours(x, reset=torch.zeros(6, 3, dtype=torch.bool, device="cuda"))
    assert distance(y, exact(x.cpu())[0]) <= 1e-12


@real
def test_autocast_computes_in_its_dtype() -> None:
    ours, exact = twins("lstm", torch.float32)
    x = torch.randn(6, 3, 5, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y, _ = ours(x)
    assert y.dtype == torch.bfloat16
    assert distance(y, exact(x.double().cpu())[0]) <= RELATIVE_ERROR["bfloat16"]


@real
def test_a_captured_graph_sees_changed_inputs() -> None:
    ours, exact = twins("lstm", torch.float32, num_layers=2)
    x = torch.randn(6, 3, 5, device="cuda")
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ours(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = ours(x)
        for _ in range(100):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert distance(y, exact(x.double().cpu())[0]) <= RELATIVE_ERROR["float32"]


@real
def test_two_streams_at_once() -> None:
    ours, exact = twins("gru", torch.float32)
    inputs = [torch.randn(200, 3, 5, device="cuda") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    results = []
    with torch.no_grad():
        for x, stream in zip(inputs, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(ours(x)[0])
    torch.cuda.synchronize()
    for x, y in zip(inputs, results, strict=True):
        assert distance(y, exact(x.double().cpu())[0]) <= RELATIVE_ERROR["float32"]


@real
def test_layers_take_and_give_tensors() -> None:
    layer = fastrnn.LSTM(5, 7, num_layers=2, rng=1)
    there = layer.to("cuda")
    x = torch.randn(6, 3, 5, device="cuda")
    y, state, tape = there.forward(x)
    assert y.is_cuda
    assert state.h.is_cuda
    expected, _, expected_tape = layer.forward(x.cpu().numpy())
    assert distance(y, torch.from_numpy(expected.copy())) <= RELATIVE_ERROR["float32"]
    grads, wanted = there.backward(tape, y), layer.backward(expected_tape, expected)
    assert distance(grads.x, torch.from_numpy(wanted.x)) <= RELATIVE_ERROR["float32"]
    live = torch.from_dlpack(there.parameters()["bias_ih_l0"])
    live += 1
    assert distance(there(x)[0], y) > 1e-3


@real
def test_more_numbers_than_32_bits_count() -> None:
    layer = fastrnn.RNN(8, 64, rng=1)
    there = layer.to("cuda", "bfloat16")
    T, B = 513, 66000  # T*B*H is above 2^31
    x = torch.randn(T, B, 8, device="cuda", dtype=torch.bfloat16)
    y, _ = there(x)
    rows = torch.tensor([0, 31, B // 2, B - 1], device="cuda")
    few, _ = there(x[:, rows].contiguous())
    assert distance(y[:, rows], few) <= 1e-2  # cuBLASLt may add up in another order

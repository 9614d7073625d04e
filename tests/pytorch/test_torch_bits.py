"""accelerate(weights=): modules that compute with weights in fewer bits in inference, and are float32 otherwise."""

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch as ft  # noqa: E402
from torch_support import flat, states_of  # noqa: E402

T, B, I, H = 6, 4, 21, 37
WORDS: list[Any] = ["int8", "bfloat16", {"ih": "int8", "hh": "bfloat16"}]
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 5, "batch_first": True, "bias": False}),
    ("GRU", {"num_layers": 2, "batch_first": True}),
    ("RNN", {"nonlinearity": "relu"}),
]


def made(kind: str, weights: Any = "int8", **options: Any) -> Any:
    torch.manual_seed(1)
    layer = getattr(nn, kind)(I, H, **options).eval()
    ft.accelerate(layer, weights=weights)
    return layer


def frozen(layer: Any, weights: Any) -> Any:
    """fastrnn's own layer with the same weights."""
    kind = layer._original.__name__
    options = {"proj_size": layer.proj_size} if kind == "LSTM" else {}
    if kind == "RNN":
        options["nonlinearity"] = layer.nonlinearity
    own = getattr(fastrnn, kind)(
        I,
        H,
        layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        **options,
    )
    own.load_state_dict(layer.state_dict())
    return own.freeze(weights)


def same(ours: Any, theirs: Any) -> bool:
    def array(value: Any) -> Any:
        return value.detach().numpy() if isinstance(value, torch.Tensor) else value

    return all(np.array_equal(array(a), array(b)) for a, b in zip(flat(ours), flat(theirs), strict=True))


@pytest.mark.parametrize("weights", WORDS)
@pytest.mark.parametrize(("kind", "options"), LAYERS)
def test_inference_is_that_of_the_frozen_layer(kind: str, options: dict[str, Any], weights: Any) -> None:
    layer = made(kind, weights, **options)
    fast = frozen(layer, weights)
    x = torch.randn((B, T, I) if layer.batch_first else (T, B, I))
    hx = states_of(layer, B)
    full = layer(x, hx)  # gradients are wanted: float32
    assert full[0].requires_grad
    with torch.no_grad():
        got = layer(x, hx)
        state = fastrnn.LSTMState(*map(np.asarray, hx)) if kind == "LSTM" else np.asarray(hx)
        y, end = fast(np.asarray(x), state)
        assert same(got, (y, tuple(end) if kind == "LSTM" else end))
        assert not same(got, full)
        assert (got[0] - full[0]).abs().max() < 0.1
        lengths = torch.tensor([3, T, 0, 1])
        assert same(layer(x, hx, lengths=lengths)[0], fast(np.asarray(x), state, lengths=lengths.numpy())[0])
        reset = torch.rand(x.shape[:2]) < 0.3
        assert same(layer(x, hx, reset=reset)[0], fast(np.asarray(x), state, reset=reset.numpy())[0])
        packed = pack_padded_sequence(x, [6, 4, 4, 1], batch_first=layer.batch_first)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(layer(packed, hx)[0], batch_first=layer.batch_first)
        assert same(y, layer(x, hx, lengths=torch.tensor([6, 4, 4, 1]))[0])
        one = x.select(0 if layer.batch_first else 1, 2)
        without = layer(one)[0]
        assert same(without, layer(x)[0].select(0 if layer.batch_first else 1, 2))
    assert same(layer(x, hx), full)


@pytest.mark.parametrize("weights", WORDS)
@pytest.mark.parametrize(("kind", "options"), LAYERS[1:])
def test_single_steps_are_the_sequence(kind: str, options: dict[str, Any], weights: Any) -> None:
    layer = made(kind, weights, **options)
    for batch in (1, B):
        x = torch.randn((batch, T, I) if layer.batch_first else (T, batch, I))
        with torch.inference_mode():
            whole, end = layer(x)
            state, axis = None, 1 if layer.batch_first else 0
            for t in range(T):
                y, state = layer(x.narrow(axis, t, 1).contiguous(), state)
                assert same(y, whole.narrow(axis, t, 1))
            assert type(state) is type(end)
            assert same(state, end)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str) -> None:
    torch.manual_seed(0)
    cell = getattr(nn, kind)(I, H).eval()
    x, h = torch.randn(B, I), torch.randn(B, H)
    hx = (h, torch.randn(B, H)) if kind == "LSTMCell" else h
    right = cell(x, hx)
    ft.accelerate(cell, weights="int8")
    full = cell(x, hx)
    with torch.no_grad():
        quick, slow = cell(x, hx), cell(x.t().contiguous().t(), hx)
        alone = cell(x[0], tuple(s[0] for s in hx) if kind == "LSTMCell" else h[0])
        begun = cell(x)
    for q, s, a, f, r in zip(*map(flat, (quick, slow, alone, full, right)), strict=True):
        assert torch.equal(q, s)
        assert torch.equal(q[0], a)
        torch.testing.assert_close(f, r)
        assert 0 < (q - r).abs().max() < 0.05
    zeros = torch.zeros(B, H)
    with torch.no_grad():
        assert same(begun, cell(x, (zeros, zeros) if kind == "LSTMCell" else zeros))


def test_training_is_float32() -> None:
    x = torch.randn(T, B, I)
    layer = made("LSTM")
    plain = nn.LSTM(I, H)
    plain.load_state_dict(layer.state_dict())
    ft.accelerate(plain)
    with torch.no_grad():
        layer.train()
        assert same(layer(x), plain(x))
        layer.eval()
        assert not same(layer(x), plain(x))
    wanted = x.clone().requires_grad_()
    layer(wanted)[0].sum().backward()
    assert wanted.grad is not None


def test_changed_parameters_are_packed_again() -> None:
    x = torch.randn(T, B, I)
    layer = made("GRU")

    def right() -> Any:
        return frozen(layer, "int8")(x.numpy())[0]

    with torch.no_grad():
        before = layer(x)[0]
        core = layer._bits._packed
        assert same(layer(x)[0], before)
        assert layer._bits._packed is core
        layer.weight_hh_l0.mul_(0.5)
        assert not same(layer(x)[0], before)
        assert same(layer(x)[0], right())
        layer.bias_ih_l0 = nn.Parameter(torch.randn(3 * H))
        assert same(layer(x)[0], right())
        layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.state_dict().items()})
        assert same(layer(x[:1])[0], right()[:1])
        layer.weight_ih_l0.data = torch.randn(3 * H, I)  # another address
        assert same(layer(x)[0], right())
        layer.weight_ih_l0.data.zero_()  # which nothing shows: it has to be said
        assert not same(layer(x)[0], right())
        ft.accelerate(layer, weights="int8")
        assert same(layer(x)[0], right())
    adam = torch.optim.SGD(layer.parameters(), 0.1)
    layer(x)[0].sum().backward()
    adam.step()
    with torch.no_grad():
        assert same(layer(x)[0], right())
    given = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    with torch.no_grad():
        called = torch.func.functional_call(layer, given, (x,))[0]
        layer.load_state_dict(given)
        assert same(called, layer(x)[0])
    with torch.inference_mode():
        made_there = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
        first = torch.func.functional_call(layer, made_there, (x,))[0]
        made_there["weight_hh_l0"].zero_()  # has no version counter
        assert not same(torch.func.functional_call(layer, made_there, (x,))[0], first)


def test_what_is_packed_is_never_saved() -> None:
    x = torch.randn(T, B, I)
    layer = made("LSTM")
    names = set(layer.state_dict())
    with torch.no_grad():
        y = layer(x)[0]
        assert set(layer.state_dict()) == names
        assert len(pickle.dumps(layer)) < 1.1 * sum(p.nbytes for p in layer.parameters()) + 4000
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert twin._bits is not layer._bits
            assert twin._bits._packed is None
            assert same(twin(x)[0], y)
            twin.weight_hh_l0.zero_()
            assert not same(twin(x)[0], y)
        shared = copy.copy(layer)  # the same parameters
        assert same(shared(x)[0], y)
        assert same(layer(x)[0], y)


def test_restore_and_the_end_of_a_block() -> None:
    x = torch.randn(T, B, I)
    model = nn.ModuleDict({"a": nn.LSTM(I, H), "b": ft.GRU(I, H)}).eval()
    with torch.no_grad():
        full = [model[k](x)[0] for k in "ab"]
        with ft.accelerate(model, weights="int8") as report:
            assert list(report.replaced) == ["a"]
            assert "weights='int8' in inference" in str(report)
            inside = [model[k](x)[0] for k in "ab"]
            assert all((i - f).abs().max() > 1e-4 for i, f in zip(inside, full, strict=True))
        assert type(model["a"]) is nn.LSTM
        assert same(model["b"](x)[0], full[1])
        ft.accelerate(model, weights="bfloat16", exclude="b")
        assert same(model["b"](x)[0], full[1])
        ft.accelerate(model)  # without weights: each keeps what it has
        assert not same(model["a"](x)[0], full[0])
        ft.restore(model)
        assert same(model["a"](x)[0], full[0])
        assert "_bits" not in vars(model["a"])


def test_threads_meet_at_the_first_call_and_at_a_change() -> None:
    x = torch.randn(T, B, I)
    layer = made("LSTM")
    wrong = []

    def call() -> None:
        with torch.no_grad():
            wrong.extend(not same(layer(x)[0], right) for _ in range(20))

    with torch.no_grad():
        for _ in range(3):
            layer.weight_ih_l0.add_(0.1)
            right = frozen(layer, "int8")(x.numpy())[0]
            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(wrong) == 3 * 4 * 20
    assert not any(wrong)


def test_compiled_profiled_and_mapped_calls() -> None:
    x = torch.randn(T, B, I)
    layer = made("GRU")
    with torch.no_grad():
        y = layer(x)[0]
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert same(compiled(x)[0], y)
        layer.weight_hh_l0.mul_(0.5)
        changed = layer(x)[0]
        assert same(compiled(x)[0], changed)
        assert not same(changed, y)
        with torch.autograd.profiler.profile():
            assert same(layer(x)[0], changed)
            assert same(layer(x[:1])[0], changed[:1])
        mapped = torch.vmap(lambda one: layer(one)[0])(x[None])
        assert (mapped[0] - changed).abs().max() < 0.05
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)[0]
        assert (low.float() - changed).abs().max() < 0.05
        assert low.dtype == nn.GRU(I, H)(x)[0].dtype or low.dtype == torch.bfloat16
    compiled(x)[0].sum().backward()


def test_exported_programs_are_refused() -> None:
    x = torch.randn(T, B, I)
    layer = made("LSTM")
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(Exception, match="LSTM with weights='int8' cannot be exported"):
            torch.export.export(layer, (x,))


def test_modules_of_other_kinds_keep_their_weights_and_the_report_says_so() -> None:
    model = nn.ModuleDict({"f64": nn.LSTM(3, 4).double(), "bf16": nn.GRU(3, 4).bfloat16(), "normed": nn.RNN(3, 4)})
    nn.utils.parametrizations.weight_norm(model["normed"], "weight_hh_l0")
    report = ft.accelerate(model, weights="int8")
    assert report.full == {
        "f64": "they are torch.float64, and only float32 ones are kept in int8",
        "bf16": "they are torch.bfloat16, and only float32 ones are kept in int8",
        "normed": "a parametrization or FSDP makes them anew in every call",
    }
    assert "weights in full: they are torch.float64" in str(report)
    with torch.no_grad():
        assert model["f64"].eval()(torch.randn(2, 1, 3).double())[0].dtype == torch.float64


def test_a_parametrization_takes_fewer_bits_away() -> None:
    x = torch.randn(T, B, I)
    layer, plain = made("RNN"), made("RNN", None)
    for module in (layer, plain):
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        assert same(layer(x), plain(x))


def test_calls_that_cannot_be_are_sentences() -> None:
    layer = made("LSTM").double()
    with torch.no_grad():
        with pytest.raises(RuntimeError, match=r"LSTM with weights='int8' takes float32, not torch.float64: convert"):
            layer(torch.randn(T, B, I).double())
        layer.float()
        layer.weight_hh_l0[0, 0] = np.inf
        with pytest.raises(
            ValueError, match=r"weight_hh_l0 with numbers that are not finite in int8(.|\n)*Keep them in full"
        ):
            layer(torch.randn(T, B, I))
        layer.to("meta")
        assert layer(torch.randn(T, B, I, device="meta"))[0].shape == (T, B, H)
    with pytest.raises(ValueError, match=r"accelerate got weights='int4'"):
        ft.accelerate(nn.LSTM(2, 3), weights="int4")
    for weights in ({"ih": "int8"}, 8):
        with pytest.raises(ValueError, match="accelerate got weights="):
            ft.accelerate(nn.LSTM(2, 3), weights=weights)  # type: ignore[arg-type]


def test_errors_of_torch_stay_what_they_are() -> None:
    layer, plain = made("LSTM"), nn.LSTM(I, H).eval()
    wrong: list[Any] = [
        (torch.randn(1, B, I + 1),),
        (torch.randn(1, B, I), (torch.randn(1, B + 1, H), torch.randn(1, B, H))),
        (torch.randn(0, B, I),),
        (torch.randn(1, B, I).double(),),
    ]
    with torch.no_grad():
        for arguments in wrong:
            with pytest.raises((RuntimeError, ValueError)) as theirs:
                plain(*arguments)
            with pytest.raises(type(theirs.value)) as ours:
                layer(*arguments)
            assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_after_a_fused_optimizer(kind: str) -> None:
    """It changes parameters without counting that in their version."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(8, 16)
    ft.accelerate(module, weights="int8")
    optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.1, fused=True)
    x = torch.randn(4, 2, 8)

    def infer() -> Any:
        module.eval()
        with torch.no_grad():
            found = module(x)[0]
        module.train()
        return found

    before = infer()
    module(x)[0].sum().backward()
    optimizer.step()
    after = infer()
    assert not torch.equal(before, after)
    layer = fastrnn.LSTM(8, 16)
    layer.load_state_dict({key: value.detach().numpy() for key, value in module.state_dict().items()})
    np.testing.assert_array_equal(after, layer.freeze(weights="int8")(x.numpy())[0])


def test_back_to_float32_where_torch_nn_has_no_such_module() -> None:
    module, x = ft.LSTM(8, 16, peephole=True).eval(), torch.randn(4, 2, 8)
    with torch.no_grad():
        full = module(x)[0]
        ft.accelerate(module, weights="int8")
        assert not torch.equal(module(x)[0], full)
        report = ft.accelerate(module, weights="float32")
        assert torch.equal(module(x)[0], full)
        with report:
            pass
        assert not torch.equal(module(x)[0], full)

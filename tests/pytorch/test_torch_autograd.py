"""fastrnn.torch's operators as PyTorch sees them: first and second derivatives, compile, export, transforms."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402
from fastrnn.torch.ops import Options  # noqa: E402

# What PyTorch says to itself where its own code for forward mode and its compiler are loaded.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

T, B, I, H = 4, 3, 2, 3
KINDS = ("LSTM", "GRU", "RNN")
every_kind = pytest.mark.parametrize("kind", KINDS)
STACKED: dict[str, Any] = {"num_layers": 2, "bidirectional": True}


def make(kind: str, dtype: Any = torch.float64, **options: Any) -> Any:
    torch.manual_seed(1)
    return getattr(ft, kind)(I, H, dtype=dtype, **options)


def states_of(layer: Any, batch: int = B) -> tuple[Any, ...]:
    rows = layer.num_layers * (1 + layer.bidirectional)
    h = torch.randn(rows, batch, layer.proj_size or H, dtype=layer.weight_ih_l0.dtype)
    return (h, torch.randn(rows, batch, H, dtype=h.dtype)) if layer.mode == "LSTM" else (h,)


def wanting(*tensors: Any) -> list[Any]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def as_function(layer: Any, **given: Any) -> Any:
    """The layer as a function of its input, its states and its parameters, which gives one flat tuple."""
    names = [name for name, _ in layer.named_parameters()]
    states = 2 if layer.mode == "LSTM" else 1

    def function(x: Any, *rest: Any) -> Any:
        hx = rest[:states] if states == 2 else rest[0]
        y, end = torch.func.functional_call(layer, dict(zip(names, rest[states:], strict=True)), (x, hx), given)
        return (y, *end) if isinstance(end, tuple) else (y, end)

    return function


def arguments_of(layer: Any) -> list[Any]:
    x = torch.randn(T, B, I, dtype=layer.weight_ih_l0.dtype)
    if layer.batch_first:
        x = x.transpose(0, 1)
    return wanting(x, *states_of(layer), *layer.parameters())


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((kind, STACKED, {}) for kind in KINDS),
    *((kind, {}, {"lengths": [2, 4, 0]}) for kind in KINDS),
    *(
        (
            kind,
            {"bidirectional": True, "batch_first": True},
            {"lengths": [2, 4, 3], "reset": torch.arange(12).reshape(3, 4) % 3 == 1},
        )
        for kind in KINDS
    ),
    ("LSTM", {"proj_size": 2, "num_layers": 2}, {}),
    ("RNN", {"nonlinearity": "relu", "bias": False}, {}),
]


@pytest.mark.parametrize(("kind", "options", "given"), CASES, ids=str)
class TestDerivatives:
    def test_first(self, kind: str, options: dict[str, Any], given: dict[str, Any]) -> None:
        layer = make(kind, **options)
        assert torch.autograd.gradcheck(as_function(layer, **given), arguments_of(layer))

    def test_second(self, kind: str, options: dict[str, Any], given: dict[str, Any]) -> None:
        layer = make(kind, **options)
        assert torch.autograd.gradgradcheck(as_function(layer, **given), arguments_of(layer))


@every_kind
def test_second_derivatives_of_packed_sequences_and_dropout(kind: str) -> None:
    layer = make(kind, num_layers=2, dropout=0.5)
    lengths = [4, 2, 1]

    def function(data: Any, weight: Any) -> Any:
        torch.manual_seed(2)
        packed = pack_sequence([torch.zeros(n, I, dtype=torch.float64) for n in lengths])._replace(data=data)
        return torch.func.functional_call(layer, {"weight_hh_l1": weight}, (packed,))[0].data

    arguments = wanting(torch.randn(sum(lengths), I, dtype=torch.float64), layer.weight_hh_l1)
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


@every_kind
def test_third_derivatives(kind: str) -> None:
    layer = make(kind)
    x = wanting(torch.randn(2, 1, I, dtype=torch.float64))[0]

    def twice(x: Any) -> Any:
        (first,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return second

    assert torch.autograd.gradcheck(twice, [x])


@every_kind
def test_a_penalty_on_the_gradient(kind: str) -> None:
    """As in WGAN-GP; cuDNN cannot."""
    ours, theirs = make(kind), getattr(nn, kind)(I, H, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    for layer in (ours, theirs):
        (point,) = wanting(x)
        (slope,) = torch.autograd.grad(layer(point)[0].sum(), point, create_graph=True)
        (slope.norm() - 1).square().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def operands(kind: str, grad: bool, packed: bool = False) -> tuple[Any, ...]:
    """The arguments of fastrnn::train up to the scale of dropout, and the options."""
    layer = make(kind, torch.float32, num_layers=2)
    x = torch.randn(7, I) if packed else torch.randn(T, B, I)
    lengths = torch.tensor([4, 2, 1]) if packed else None
    weights = [p.detach().clone().requires_grad_(grad) for p in layer.parameters()]
    hx = [s.requires_grad_(grad) for s in states_of(layer)]
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]
    return (x.requires_grad_(grad), hx, weights, lengths, None), Options(cell, H, 0, 2, False, False)


@every_kind
class TestOperators:
    CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

    def test_train(self, kind: str) -> None:
        call, options = operands(kind, True)
        train = torch.ops.fastrnn.train.default
        torch.use_deterministic_algorithms(True)  # fills what is left of the tape
        try:
            torch.library.opcheck(train, (*call, None, 1.0, *options), test_utils=self.CHECKS)
            torch.library.opcheck(train, (*call, torch.rand(1, T, B, H) < 0.5, 2.0, *options), test_utils=self.CHECKS)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_infer(self, kind: str) -> None:
        for packed in (False, True):
            call, options = operands(kind, False, packed)
            torch.library.opcheck(torch.ops.fastrnn.infer.default, (*call, *options), test_utils=self.CHECKS)

    def test_backward(self, kind: str) -> None:
        call, options = operands(kind, False)
        y, ends, tape = torch.ops.fastrnn.train(*call, None, 1.0, *options)
        for dends in (ends, []):
            given = (torch.randn_like(y), dends, y, tape, *call, None, 1.0, *options)
            torch.library.opcheck(torch.ops.fastrnn.backward.default, given, test_utils=self.CHECKS)

    def test_infer_computes_again_what_is_differentiated(self, kind: str) -> None:
        found = []
        for name, more in (("infer", ()), ("train", (None, 1.0))):
            torch.manual_seed(0)
            call, options = operands(kind, True)
            y, ends, *_ = getattr(torch.ops.fastrnn, name)(*call, *more, *options)
            inputs = [call[0], *call[1], *call[2]]
            first = torch.autograd.grad(y.square().sum() + ends[0].sum(), inputs, create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)

    def test_rubbish(self, kind: str) -> None:
        call, options = operands(kind, False)
        x, hx, weights, lengths, reset = call
        infer, train = torch.ops.fastrnn.infer, torch.ops.fastrnn.train
        for bad in (
            (x[..., :1], hx, weights, lengths, reset),
            (x, [h[:, :1] for h in hx], weights, lengths, reset),
            (x, [*hx, *hx, *hx], weights, lengths, reset),
            (x, hx, weights[:-1], lengths, reset),
            (x, hx, weights[::-1], lengths, reset),
            (x, hx, [w.double() for w in weights], lengths, reset),
            (x, hx, weights, torch.tensor([1, 2]), reset),
            (x, hx, weights, torch.tensor([1, 2, 9]), reset),
            (x, hx, weights, torch.tensor([1.0, 2.0, 3.0]), reset),
            (x, hx, weights, lengths, torch.zeros(T, B + 1, dtype=torch.bool)),
            (x, hx, weights, lengths, torch.zeros(T, B)),
            (x[0], hx, weights, lengths, reset),
            (x[0], hx, weights, torch.tensor([1, 2, 4]), reset),
            (x[0, 0], hx, weights, lengths, reset),
        ):
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                infer(*bad, *options)
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                train(*bad, None, 1.0, *options)
        y, ends, tape = train(*call, None, 1.0, *options)
        for y_, tape_ in ((y, tape[:-4096]), (y[1:], tape), (y, tape.float()), (y.double(), tape)):
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                torch.ops.fastrnn.backward(y, [], y_, tape_, *call, None, 1.0, *options)
        with pytest.raises(ValueError, match="states, or none"):
            torch.ops.fastrnn.backward(y, [*ends, *ends, *ends], y, tape, *call, None, 1.0, *options)


@every_kind
class TestCompilers:
    def test_compile(self, kind: str) -> None:
        layer = make(kind, torch.float32, num_layers=2, dropout=0.5).eval()
        model = nn.Sequential(nn.Linear(I, I), layer)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for time in (T, T + 1, T + 3):
            x = torch.randn(time, B, I, requires_grad=True)
            gradients = []
            for run in (model, compiled):
                model.zero_grad()
                y, state = run(x)
                last = state[0] if kind == "LSTM" else state
                (y.square().sum() + last.sum()).backward()
                gradients.append([p.grad.clone() for p in model.parameters()])
            for a, b in zip(*gradients, strict=True):
                torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], model(x)[0])

    def test_compile_with_lengths_and_resets(self, kind: str) -> None:
        layer = make(kind, torch.float32, batch_first=True)

        def function(x: Any, lengths: Any, reset: Any) -> Any:
            return layer(x, lengths=lengths, reset=reset)[0]

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        x, lengths, reset = torch.randn(B, T, I), torch.tensor([1, 4, 2]), torch.rand(B, T) < 0.3
        torch.testing.assert_close(compiled(x, lengths, reset), function(x, lengths, reset))

    def test_export(self, kind: str) -> None:
        layer = make(kind, torch.float32, **STACKED).eval()
        x = torch.randn(T, B, I)
        dynamic = {"input": {0: torch.export.Dim("time", min=2)}}
        program = torch.export.export(layer, (x,), dynamic_shapes=dynamic)
        longer = torch.randn(T + 5, B, I)
        torch.testing.assert_close(program.module()(longer)[0], layer(longer)[0])

    def test_vmap(self, kind: str) -> None:
        layer = make(kind)
        x = torch.randn(5, T, B, I, dtype=torch.float64)
        wanted = torch.stack([layer(one)[0] for one in x])
        torch.testing.assert_close(torch.vmap(lambda one: layer(one)[0])(x), wanted)

    def test_an_ensemble(self, kind: str) -> None:
        layers = [getattr(ft, kind)(I, H) for _ in range(3)]
        parameters, buffers = torch.func.stack_module_state(layers)
        x = torch.randn(T, B, I)

        def call(parameters: Any, buffers: Any, x: Any) -> Any:
            return torch.func.functional_call(layers[0], (parameters, buffers), (x,))[0]

        y = torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
        torch.testing.assert_close(y, torch.stack([layer(x)[0] for layer in layers]))

    def test_gradients_for_each_sample(self, kind: str) -> None:
        layer = make(kind)
        parameters = {n: p.detach() for n, p in layer.named_parameters()}
        x = torch.randn(5, T, I, dtype=torch.float64)

        def loss(parameters: Any, one: Any) -> Any:
            return torch.func.functional_call(layer, parameters, (one,))[0].square().sum()

        found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        for i, one in enumerate(x):
            wanted = torch.func.grad(loss)(parameters, one)
            for name in parameters:
                torch.testing.assert_close(found[name][i], wanted[name])


@every_kind
class TestOtherRoads:
    """What does not go through the operators alone, or not at all."""

    def both(self, kind: str) -> tuple[Any, Any]:
        ours, theirs = make(kind, num_layers=2), getattr(nn, kind)(I, H, num_layers=2, dtype=torch.float64)
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs

    def test_forward_mode(self, kind: str) -> None:
        x, tangent = torch.randn(T, B, I, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
        found = []
        for layer in self.both(kind):
            layer.requires_grad_(False)
            jvp = torch.func.jvp(lambda x, layer=layer: layer(x)[0], (x,), (tangent,))[1]
            with torch.autograd.forward_ad.dual_level(), torch.no_grad():
                dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))[0]
                other = torch.autograd.forward_ad.unpack_dual(dual).tangent
            torch.testing.assert_close(other, jvp)
            found.append(jvp)
        torch.testing.assert_close(*found)

    def test_second_derivatives_by_torch_func(self, kind: str) -> None:
        x = torch.randn(2, I, dtype=torch.float64)
        found = []
        for layer in self.both(kind):
            layer.requires_grad_(False)

            def loss(x: Any, layer: Any = layer) -> Any:
                return layer(x)[0].square().sum()

            found.append((torch.func.hessian(loss)(x), torch.func.jacrev(torch.func.jacrev(loss))(x)))
        torch.testing.assert_close(*found)

    def test_many_seeds_at_once(self, kind: str) -> None:
        x = torch.randn(2, 1, I, dtype=torch.float64)
        found = [
            torch.autograd.functional.jacobian(lambda x, layer=layer: layer(x)[0], x, vectorize=vectorize)
            for layer in self.both(kind)
            for vectorize in (False, True)
        ]
        for other in found[1:]:
            torch.testing.assert_close(other, found[0])

    def test_training_an_ensemble(self, kind: str) -> None:
        layers = [make(kind) for _ in range(3)]
        parameters, buffers = torch.func.stack_module_state(layers)
        x = torch.randn(T, B, I, dtype=torch.float64)

        def call(parameters: Any, buffers: Any, x: Any) -> Any:
            return torch.func.functional_call(layers[0], (parameters, buffers), (x,))[0]

        torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x).square().sum().backward()
        for i, layer in enumerate(layers):
            layer(x)[0].square().sum().backward()
            for name, parameter in layer.named_parameters():
                torch.testing.assert_close(parameters[name].grad[i], parameter.grad)

    def test_vmap_over_lengths_and_dropout(self, kind: str) -> None:
        layer = make(kind, num_layers=2, dropout=0.5).eval()
        x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([[1, 2, 3], [4, 0, 2]])
        found = torch.vmap(lambda n: layer(x, lengths=n)[0])(lengths)
        torch.testing.assert_close(found, torch.stack([layer(x, lengths=n)[0] for n in lengths]))
        layer.train()
        y = torch.vmap(lambda x: layer(x)[0], randomness="different")(torch.stack([x, x]))
        assert not torch.equal(y[0], y[1])

    def test_torchscript_is_refused(self, kind: str) -> None:
        layer = make(kind).requires_grad_(False)
        with pytest.raises(RuntimeError, match="cannot be traced or compiled by TorchScript"):
            torch.jit.trace(layer, torch.randn(T, B, I, dtype=torch.float64))

    def test_compile_with_packed_sequences(self, kind: str) -> None:
        layer = make(kind)

        def function(x: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, [4, 2, 1])
            return nn.utils.rnn.pad_packed_sequence(layer(packed)[0])[0]

        found = []
        for run in (function, torch.compile(function, backend="aot_eager")):
            (x,) = wanting(torch.ones(T, B, I, dtype=torch.float64))
            y = run(x)
            y.square().sum().backward()
            found.append((y, x.grad))
        torch.testing.assert_close(*found)

    def test_lazy_tensors(self, kind: str) -> None:
        layer = make(kind)
        x = torch.randn(T, B, I, dtype=torch.float64)
        torch.testing.assert_close(layer(torch._neg_view(x))[0], layer(-x)[0])
        zeros = torch._efficientzerotensor((T, B, I), dtype=torch.float64)
        torch.testing.assert_close(layer(zeros)[0], layer(torch.zeros_like(x))[0])
        (wanted,) = torch.autograd.grad(layer(x)[0], layer.weight_hh_l0, -torch.ones(T, B, H, dtype=torch.float64))
        lazy = torch._neg_view(torch.ones(T, B, H, dtype=torch.float64))
        (found,) = torch.autograd.grad(layer(x)[0], layer.weight_hh_l0, lazy)
        torch.testing.assert_close(found, wanted)

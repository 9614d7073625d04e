"""Modules with options that torch.nn does not have, against the same layers in NumPy and PyTorch's own derivatives."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch as ft  # noqa: E402
from torch_support import B, H, I, T, flat, states_of  # noqa: E402

SIDES = {"forward": ["sigmoid", "tanh"], "reverse": ["hard_sigmoid", ("elu", 0.5)]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "peephole": ("LSTM", {"peephole": True, "num_layers": 2, "bidirectional": True}),
    "peephole-projection": ("LSTM", {"peephole": True, "proj_size": 3, "bias": False}),
    "coupled": ("LSTM", {"coupled": True, "clip": 0.7}),
    "activations": ("LSTM", {"activations": ("hard_sigmoid", "softsign", ("scaled_tanh", 1.2, 0.7))}),
    "reset-before": ("GRU", {"reset_after": False, "num_layers": 2}),
    "both-sides": ("GRU", {"activations": SIDES, "bidirectional": True}),
    "clip": ("RNN", {"nonlinearity": "relu", "clip": 0.5}),
    "leaky": ("RNN", {"nonlinearity": ("leaky_relu", 0.2)}),
    "thresholded": ("RNN", {"nonlinearity": "thresholded_relu", "bidirectional": True}),
    "softplus": ("RNN", {"nonlinearity": "softplus"}),
    "affine": ("RNN", {"nonlinearity": ("affine", 0.4, 0.1)}),
    "heads": ("LSTM", {"heads": 7, "num_layers": 2, "bidirectional": True}),
    "heads-reset-before": ("GRU", {"heads": 7, "reset_after": False}),
    "heads-relu": ("RNN", {"heads": 7, "nonlinearity": "relu"}),
    "layer-norm": ("LSTM", {"layer_norm": True, "num_layers": 2, "bidirectional": True}),
    "layer-norm-gru": ("GRU", {"layer_norm": True, "num_layers": 2}),
    "layer-norm-gains": ("LSTM", {"layer_norm": True, "bias": False}),
    "sLSTM": ("sLSTM", {"num_layers": 2}),
    "sLSTM-exponential": ("sLSTM", {"heads": 7, "forget_gate": "exponential", "bidirectional": True}),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def module_of(name: str, **more: Any) -> Any:
    kind, options = VARIANTS[name]
    torch.manual_seed(3)
    return getattr(ft, kind)(I, H, **options, **more)


def states_for(module: Any, batch: int) -> Any:
    state = states_of(module, batch)
    if not isinstance(module, ft.sLSTM):
        return state
    return *state, torch.rand_like(state[1]) + 0.5, torch.randn_like(state[1])


def numpy_twin(name: str, module: Any) -> Any:
    kind, options = VARIANTS[name]
    layer = getattr(fastrnn, kind)(I, H, **options, dtype="float32")
    layer.load_state_dict({key: value.numpy() for key, value in module.state_dict().items()})
    return layer


@each_variant
def test_the_same_as_in_numpy(name: str) -> None:
    module, x = module_of(name), torch.randn(T, B, I)
    layer, state = numpy_twin(name, module), states_for(module, B)
    assert list(layer.state_dict()) == list(module.state_dict())
    starts = torch.rand(T, B) < 0.3
    lengths = [T, 2, 0, 4]
    y, end, tape = layer.forward(
        x.numpy(),
        tuple(s.numpy() for s in state) if isinstance(state, tuple) else state.numpy(),
        lengths=lengths,
        reset=starts.numpy(),
    )
    given = x.clone().requires_grad_()
    ours, ends = module(given, state, lengths=lengths, reset=starts)
    np.testing.assert_array_equal(ours.detach(), y)
    for a, b in zip(flat(ends), end if isinstance(end, tuple) else [end], strict=True):
        np.testing.assert_array_equal(a.detach(), b)
    ours.sum().backward()
    gradients = layer.backward(tape, np.ones_like(y))
    np.testing.assert_allclose(given.grad, gradients.x, rtol=1e-5, atol=1e-6)
    for key, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.grad, gradients.parameters[key], rtol=1e-5, atol=1e-5)


@each_variant
def test_derivatives_of_first_and_second_order(name: str) -> None:
    module = module_of(name, dtype=torch.float64)
    names = [key for key, _ in module.named_parameters()]

    def call(x: Any, *weights: Any) -> Any:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    given = (torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True), *module.parameters())
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize(
    "name", ["peephole", "reset-before", "clip", "heads", "layer-norm", "layer-norm-gru", "sLSTM-exponential"]
)
def test_compiled_and_exported(name: str) -> None:
    module, x = module_of(name).eval(), torch.randn(T, B, I)
    wanted = flat(module(x))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    program = torch.export.export(module, (x,)).module()
    for made in (compiled, program):
        for a, b in zip(flat(made(x)), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    state = states_for(module, B)
    if isinstance(module, ft.sLSTM):  # whose n is not looked at then
        torch.testing.assert_close(compiled(x, state)[0], module(x, state)[0], rtol=0, atol=0)
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x)[0], wanted[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "name", [n for n in VARIANTS if not {"projection", "thresholded", "sLSTM", "heads", "norm"} & {*n.split("-")}]
)
def test_written_as_onnx(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x = module_of(name).eval(), torch.randn(T, B, I)
    wanted = flat(module(x))
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    if "clip" in VARIANTS[name][1] and module.mode == "LSTM":  # where ONNX Runtime departs from the text
        import onnx

        import fastrnn.onnx

        evaluator = onnx.reference.ReferenceEvaluator(program.model_proto, new_ops=fastrnn.onnx.operators())
        found = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    else:
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-5, atol=2e-6)


@each_variant
def test_copies_and_files_keep_the_options(name: str) -> None:
    module, x = module_of(name), torch.randn(T, B, I)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for made in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert repr(made) == repr(module)
        torch.testing.assert_close(made(x)[0], module(x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["peephole", "peephole-projection", "reset-before", "softplus"])
def test_weights_in_fewer_bits(name: str) -> None:
    model = torch.nn.ModuleList([module_of(name)]).eval()
    module, x = model[0], torch.randn(T, B, I)
    wanted = numpy_twin(name, module).freeze(weights="bfloat16")(x.numpy())[0]
    ft.accelerate(model, weights="bfloat16")
    with torch.no_grad():
        np.testing.assert_array_equal(module(x)[0], wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["heads", "sLSTM", "layer-norm"])
def test_what_has_no_onnx_node(name: str) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(module_of(name).eval(), (torch.randn(T, B, I),), dynamo=True, verbose=False)
    assert "no ONNX node" in str(caught.value)


def test_heads_stay_in_full() -> None:
    model = torch.nn.ModuleDict({"heads": module_of("heads")}).eval()
    assert "those of heads are not kept" in str(ft.accelerate(model, weights="int8").full["heads"])


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_layer_norm_is_a_composition_of_torch(kind: str) -> None:
    torch.manual_seed(3)
    module = getattr(ft, kind)(I, H, layer_norm=True, dtype=torch.float64)
    assert not module.bias_hh_l0.any()
    assert (module.weight_norm_hh_l0 == 1).all()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    p, norm = dict(module.named_parameters()), torch.nn.functional.layer_norm
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h = c = torch.zeros(B, H, dtype=torch.float64)
    rows = []
    for t in range(T):
        a = norm(x[t] @ p["weight_ih_l0"].T, p["bias_ih_l0"].shape, p["weight_norm_ih_l0"], p["bias_ih_l0"])
        b = norm(h @ p["weight_hh_l0"].T, p["bias_hh_l0"].shape, p["weight_norm_hh_l0"], p["bias_hh_l0"])
        if kind == "GRU":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
            z, n = torch.sigmoid(a_z + b_z), torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = (a + b).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(norm(c, (H,), p["weight_norm_c_l0"], p["bias_norm_c_l0"]))
        rows.append(h)
    expected, given = torch.stack(rows), [x, *p.values()]
    y = module(x)[0]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    dy = torch.randn_like(y)
    for found, wanted in zip(*(torch.autograd.grad(out, given, dy) for out in (y, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    module.reset_parameters()
    assert (module.weight_norm_ih_l0 == 1).all()
    assert not module.bias_ih_l0.any()


@pytest.mark.parametrize("spelled", [("relu",), ["relu"], {"forward": "relu", "reverse": "relu"}], ids=str)
def test_a_nonlinearity_in_another_spelling(spelled: Any) -> None:
    torch.manual_seed(3)
    ours = ft.RNN(I, H, nonlinearity=spelled, bidirectional=True)
    torch.manual_seed(3)
    theirs = torch.nn.RNN(I, H, nonlinearity="relu", bidirectional=True)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_errors_call_an_slstm_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"^sLSTM got lengths \[5\]"):
        ft.sLSTM(2, 3)(torch.zeros(4, 1, 2), lengths=[5])
    with pytest.raises(TypeError, match="heads must be an integer"):
        ft.LSTM(2, 3, heads=True)


def test_what_they_look_like() -> None:
    assert repr(module_of("sLSTM")) == "sLSTM(5, 7, num_layers=2, forget_gate='sigmoid')"
    assert "heads=7" in repr(module_of("heads"))
    assert repr(module_of("peephole")) == "LSTM(5, 7, num_layers=2, bidirectional=True, peephole=True)"
    assert "reset_after=False" in repr(module_of("reset-before"))
    assert repr(ft.LSTM(5, 7, peephole=False, clip=None)) == repr(torch.nn.LSTM(5, 7))
    assert module_of("peephole").weight_peephole_l1_reverse.shape == (3, H)
    assert not hasattr(ft.LSTM(5, 7), "weight_peephole_l0")


def test_half_precision_autocast_and_packed_sequences() -> None:
    module, x = module_of("peephole"), torch.randn(T, B, I)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 5, 3, 1])
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0])
    torch.testing.assert_close(y, module(x, lengths=[6, 5, 3, 1])[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x)[0].dtype == torch.bfloat16
    half = copy.deepcopy(module).to(torch.bfloat16)
    torch.testing.assert_close(half(x.bfloat16())[0].float(), module(x)[0], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ft.LSTM(5, 7, peephole=1), "peephole must be True or False"),
        (lambda: ft.LSTM(5, 7, clip=-1.0), "clip must be a positive number"),
        (lambda: ft.GRU(5, 7, activations=("tanh",)), "must be a sequence of 2"),
        (lambda: ft.RNN(5, 7, nonlinearity="sin"), "Unknown nonlinearity 'sin'"),
        (lambda: ft.RNN(5, 7, nonlinearity=("elu", 1, 2)), "elu takes one number, alpha"),
        (lambda: ft.LSTM(5, 7, activations=SIDES), "of a bidirectional layer"),
        (lambda: ft.GRU(5, 7, heads=2), "heads must divide hidden_size, 7"),
        (lambda: ft.LSTM(5, 7, heads=7, proj_size=2), "A projection mixes the heads"),
        (lambda: ft.LSTM(5, 7, layer_norm=True, proj_size=2), "layer_norm=True with proj_size"),
        (lambda: ft.GRU(5, 7, layer_norm=True, reset_after=False), "layer_norm=True with reset_after=False"),
        (lambda: ft.sLSTM(5, 7, forget_gate="tanh"), 'forget_gate must be "sigmoid" or "exponential"'),
        (lambda: ft.sLSTM(5, 7)(torch.zeros(2, 3, 5), (torch.zeros(1, 3, 7),) * 2), "four hidden states"),
        (lambda: ft.sLSTM(5, 7)(torch.zeros(2, 3, 5), (torch.zeros(1, 3, 7), None) * 2), r"got \(Tensor, NoneType, Te"),
        (lambda: ft.sLSTM(5, 7)(torch.zeros(2, 3, 5), (-torch.ones(1, 3, 7),) * 4), "negative n in hidden.2."),
        (lambda: ft.sLSTM(5, 7)(torch.zeros(2, 3, 5), (torch.zeros(1, 3, 6),) * 4), r"Expected hidden\[0\] size"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=words):
        make()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_nn_cannot_have_them_back() -> None:
    model = torch.nn.ModuleDict({"plain": ft.GRU(5, 7), "peephole": module_of("peephole")})
    with pytest.raises(ValueError, match=r"peephole, which has peephole=True: torch\.nn has no such options"):
        ft.restore(model)
    assert isinstance(model["plain"], ft.GRU)
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"LSTM with peephole=True cannot run here"):
        torch.onnx.export(model["peephole"], (torch.randn(T, B, I),), io.BytesIO(), dynamo=False)


def test_a_compiled_program_names_the_build_that_made_its_tape() -> None:
    """Compilers keep programs, with the size of a tape in them, in caches that outlive an update of fastrnn."""
    module = ft.LSTM(I, H)
    options = module._options()
    assert options.build == f"{fastrnn.__version__} {fastrnn.LSTM(I, H).isa}"
    x = torch.randn(T, B, I)
    program = torch.export.export(module.train(), (x,))
    assert options.build in str(program.graph)
    call = x, [], list(module.parameters()), None, None
    with torch.no_grad():
        y, _ = torch.ops.fastrnn.infer(*call, *options[:-1])  # as programs of before there was a build
    assert torch.equal(y, module(x)[0])

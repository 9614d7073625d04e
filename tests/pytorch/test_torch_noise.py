"""Zoneout and recurrent dropout of the modules: against NumPy's layers, PyTorch's own operations and derivatives."""

import copy
import json
import pickle
import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

import fastrnn  # noqa: E402
import fastrnn.torch as ft  # noqa: E402
from fastrnn.torch import textbook  # noqa: E402
from fastrnn.torch.noise import draw  # noqa: E402
from torch_support import B, H, I, T, flat, states_of  # noqa: E402

STEP = {"recurrent_dropout": 0.4, "recurrent_dropout_mode": "step"}
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "zoneout": ("LSTM", {"zoneout": (0.3, 0.6), "num_layers": 2, "bidirectional": True, "dropout": 0.3}),
    "projection": ("LSTM", {"zoneout": 0.3, "proj_size": 3, "peephole": True, **STEP}),
    "sequence": ("LSTM", {"recurrent_dropout": 0.4, "num_layers": 2}),
    "step": ("GRU", {**STEP, "bidirectional": True, "heads": 7}),
    "reset-before": ("GRU", {"reset_after": False, "zoneout": 0.2, **STEP}),
    "relu": ("RNN", {"nonlinearity": "relu", "zoneout": 0.2, "recurrent_dropout": 0.4}),
}
each_noise = pytest.mark.parametrize("name", NOISY)


def module_of(name: str, **more: Any) -> Any:
    kind, options = NOISY[name]
    torch.manual_seed(3)
    return getattr(ft, kind)(I, H, **options, **more)


@each_noise
def test_eval_mode_takes_the_expectation_as_numpy_does(name: str) -> None:
    module, x = module_of(name).eval(), torch.randn(T, B, I)
    kind, options = NOISY[name]
    layer = getattr(fastrnn, kind)(I, H, **options)
    layer.load_state_dict({key: value.numpy() for key, value in module.state_dict().items()})
    wanted = layer(x.numpy(), lengths=[T, 2, 0, 4])[0]
    np.testing.assert_array_equal(module(x, lengths=[T, 2, 0, 4])[0].detach(), wanted)
    with torch.no_grad():
        np.testing.assert_array_equal(module(x, lengths=[T, 2, 0, 4])[0], wanted)


@pytest.mark.parametrize("packed", [False, True])
@each_noise
def test_training_is_what_pytorch_makes_of_the_same_masks(name: str, packed: bool) -> None:
    module = module_of(name, dtype=torch.float64)
    weights, states = module._weights(), states_of(module, B)
    states = [s.double() for s in (states if isinstance(states, tuple) else [states])]
    lengths, reset = torch.tensor([T, 4, 3, 1]), None if packed else torch.rand(T, B) < 0.3
    x = torch.randn(int(lengths.sum()), I).double() if packed else torch.randn(T, B, I).double()
    masks, scale = module._all_masks(tuple(x.shape[:-1]), B)
    options = module._options()
    ours = torch.ops.fastrnn.train(x, states, weights, lengths, reset, masks, scale, *options)
    theirs = textbook.run(x, states, weights, lengths, reset, masks, scale, options)
    for a, b in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(a, b)


@each_noise
def test_derivatives_of_first_and_second_order(name: str) -> None:
    module = module_of(name, dtype=torch.float64)
    names = [key for key, _ in module.named_parameters()]

    def call(x: Any, *weights: Any) -> Any:
        torch.manual_seed(7)
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    given = (torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True), *module.parameters())
    assert torch.autograd.gradcheck(call, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


def test_the_mode_and_the_seed_decide() -> None:
    module, x = module_of("zoneout"), torch.randn(T, B, I)

    def run(seed: int) -> Any:
        torch.manual_seed(seed)
        return module(x)[0].detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    with torch.no_grad():
        assert torch.equal(run(1), run(1))
        assert not torch.equal(run(1), run(2))
    module.eval()
    assert torch.equal(run(1), run(2))


def test_a_packed_sequence_has_the_masks_of_its_row() -> None:
    module, x = module_of("sequence"), torch.randn(T, B, I)
    lengths = [6, 5, 3, 1]
    torch.manual_seed(1)
    padded = module(x, lengths=lengths)[0]
    torch.manual_seed(1)
    packed = module(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))[0]
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], padded)


def test_how_often_a_state_stays() -> None:
    torch.manual_seed(0)
    y = ft.GRU(2, 64, zoneout=0.2)(torch.randn(20, 50, 2))[0]
    assert (y[1:] == y[:-1]).double().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("name", ["zoneout", "step"])
def test_compiled_and_exported(name: str) -> None:
    module, x = module_of(name), torch.randn(T, B, I)
    torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    module.eval()
    wanted = flat(module(x))
    program = torch.export.export(module, (x,)).module()
    for made in (torch.compile(module, fullgraph=True, backend="aot_eager"), program, copy.deepcopy(module)):
        for a, b in zip(flat(made(x)), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("option", ["zoneout", "recurrent_dropout", "recurrent_dropout_mode", "clip", "heads"])
def test_options_are_fixed_when_a_module_is_made(option: str) -> None:
    module = ft.GRU(I, H)
    with pytest.raises(AttributeError, match=f"{option} of a module is fixed when it is made: make a new GRU"):
        setattr(module, option, 0.5)
    module.dropout = 0.5
    assert module.dropout == 0.5


def test_texts_of_before_there_was_noise_are_read() -> None:
    module, x = ft.LSTM(I, H, peephole=True).eval(), torch.randn(T, B, I)
    wanted = flat(module(x))
    module.__dict__["_variant"] = json.dumps(json.loads(module._variant)[:4])
    assert all(torch.equal(a, b) for a, b in zip(flat(pickle.loads(pickle.dumps(module))(x)), wanted, strict=True))


def test_the_default_dtype_does_not_matter_to_masks() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        rates = ft.GRU(3, 500, zoneout=0.001)._rates
        share = draw(None, rates, (50, 20), 20, torch.device("cpu")).double().mean().item()
    finally:
        torch.set_default_dtype(torch.float32)
    assert share == pytest.approx(0.001, rel=0.2)


def test_what_they_look_like_and_what_is_refused() -> None:
    assert repr(module_of("step")) == (
        "GRU(5, 7, bidirectional=True, heads=7, recurrent_dropout=0.4, recurrent_dropout_mode='step')"
    )
    assert repr(ft.GRU(5, 7, zoneout=0)) == repr(torch.nn.GRU(5, 7))
    with pytest.raises(ValueError, match=re.escape("zoneout must be a number in 0..1")):
        ft.GRU(5, 7, zoneout=(0.1, 0.2))
    with pytest.raises(ValueError, match='must be "sequence" or "step"'):
        ft.RNN(5, 7, recurrent_dropout=0.1, recurrent_dropout_mode="batch")
    with pytest.raises(ValueError, match=r"which has zoneout=0\.1: torch\.nn has no such options"):
        ft.restore(torch.nn.ModuleDict({"one": ft.LSTM(5, 7, zoneout=0.1)}))
    pytest.importorskip("onnx")
    from fastrnn.torch.onnx import write

    module = module_of("zoneout").eval()
    with pytest.raises(NotImplementedError, match="zoneout has no ONNX node"):
        write(torch.zeros(T, B, I), (), module._weights(), None, None, None, module._options())

"""Modules that torch.ao has quantized dynamically, computed with the int8 that they hold."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402
from torch_support import error_of, flat, states_of  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.skipif(
        "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch.ao's int8 needs FBGEMM"
    ),
]
T, B, I, H = 12, 4, 20, 48
# Both are off float32 with the same weights by what the rounding of x and h costs; torch.ao has 7 bits for it.
PEER = 4e-2


def made(kind: str, **options: Any) -> tuple[Any, Any]:
    """A quantized module, and torch.nn's own with what its integers stand for."""
    torch.manual_seed(0)
    full = getattr(nn, kind)(I, H, **options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(nn.ModuleDict({"a": full}), {getattr(nn, kind)}, torch.qint8)
    quantized = model["a"]
    with torch.no_grad():
        for name, weight in quantized.get_weight().items():
            getattr(full, name).copy_(weight.dequantize())
    return quantized, full


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_integers_are_kept(kind: str, options: dict[str, Any]) -> None:
    quantized, full = made(kind, **options)
    x = torch.randn((B, T, I) if full.batch_first else (T, B, I))
    calls: list[tuple[Any, ...]] = [(x,), (x, states_of(full, B))]
    with torch.no_grad():
        theirs = [flat(quantized(*call)) for call in calls]
        exact = [flat(full(*call)) for call in calls]
        report = ft.accelerate(quantized)
        assert report.replaced[""].endswith("of torch.ao, its int8 as it is")
        ours = [flat(quantized(*call)) for call in calls]
    for found, right, peer in zip(ours, exact, theirs, strict=True):
        for a, b, c in zip(found, right, peer, strict=True):
            assert a.shape == b.shape
            assert 0 < (a - b).abs().max() < 2e-2
            assert (a - c).abs().max() < PEER
        assert (found[0] - right[0]).abs().mean() < (peer[0] - right[0]).abs().mean()
    assert ft.accelerate(quantized).already
    ft.restore(quantized)
    assert "_packed" not in vars(quantized)
    with torch.no_grad():
        again = flat(quantized(*calls[1]))
    assert all(torch.equal(a, b) for a, b in zip(again, theirs[1], strict=True))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences_and_wrong_shapes(kind: str) -> None:
    quantized, full = made(kind)
    packed = pack_sequence([torch.randn(n, I) for n in (2, 7, 4)], enforce_sorted=False)
    hx = states_of(full, 3)
    wrong: list[tuple[Any, ...]] = [(torch.randn(T, B, I + 1),), (torch.randn(T, B, I), states_of(full, B + 1))]
    with torch.no_grad():
        y, ends = full(packed, hx)
        texts = []
        for _ in range(2):
            texts.append([error_of(lambda module, call=call: module(*call), quantized) for call in wrong])  # type: ignore[misc]
            ft.accelerate(quantized)
        found, after = quantized(packed, hx)
    assert texts[0] == texts[1]
    assert (pad_packed_sequence(found)[0] - pad_packed_sequence(y)[0]).abs().max() < 2e-2
    assert all((a - b).abs().max() < 2e-2 for a, b in zip(flat(after), flat(ends), strict=True))


def test_per_channel_scales_and_other_weights() -> None:
    quantized, full = made("LSTM")
    ft.accelerate(quantized)
    x = torch.randn(T, B, I)
    given = {}
    for name, weight in full.named_parameters():
        if name.startswith("weight"):
            scale = weight.detach().abs().amax(1).double() / 127
            given[name] = torch.quantize_per_channel(
                weight.detach(), scale, torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8
            )
        else:
            given[name] = weight.detach()
    with torch.no_grad():
        before = quantized(x)[0]
        quantized.set_weight_bias(given)  # seen by the next call
        assert not torch.equal(quantized(x)[0], before)
        for name in given:
            if name.startswith("weight"):
                getattr(full, name).copy_(given[name].dequantize())
        assert (quantized(x)[0] - full(x)[0]).abs().max() < 2e-2


def test_copies_are_accelerated_and_hold_nothing_packed() -> None:
    quantized, _ = made("GRU")
    ft.accelerate(quantized)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        y = quantized(x)[0]
        for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
            assert type(twin) is type(quantized)
            assert twin._packed.core is None
            assert torch.equal(twin(x)[0], y)
    names = set(quantized.state_dict())
    ft.restore(quantized)
    assert set(quantized.state_dict()) == names


def test_what_is_left_says_why() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = torch.ao.quantization.quantize_dynamic(nn.ModuleDict({"a": nn.LSTM(3, 4)}), {nn.LSTM}, torch.float16)
        cell = torch.ao.quantization.quantize_dynamic(
            nn.ModuleDict({"a": nn.LSTMCell(3, 4)}), {nn.LSTMCell}, torch.qint8
        )
    assert ft.accelerate(half).skipped["a"].startswith("its weights are torch.float16")
    assert ft.accelerate(cell).skipped["a"] == "it is quantized: accelerate the model that it was made of, in float32"


def test_gradients_and_other_dtypes_are_torchs_own() -> None:
    quantized, _ = made("LSTM")
    x = torch.randn(T, B, I, dtype=torch.float64)
    error = error_of(lambda module: module(x), quantized)
    ft.accelerate(quantized)
    assert error_of(lambda module: module(x), quantized) == error
    y = quantized(x.float().requires_grad_())[0]
    assert not y.requires_grad
    assert np.isfinite(y.numpy()).all()

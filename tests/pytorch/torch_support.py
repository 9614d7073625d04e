"""What the tests of fastrnn.torch share: pairs of modules from one seed, everything that a call gives, and errors."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence  # noqa: E402

import fastrnn.torch as ft  # noqa: E402

T, B, I, H = 6, 4, 5, 7


def pair(kind: str, **options: Any) -> tuple[Any, Any]:
    """torch.nn's layer and ours, from one seed."""
    sizes = (I, H)
    made = []
    for module in (nn, ft):
        torch.manual_seed(3)
        made.append(getattr(module, kind)(*sizes, **options))
    return made[0], made[1]


def states_of(layer: Any, batch: int, dtype: Any = torch.float32) -> Any:
    rows = layer.num_layers * (1 + layer.bidirectional)
    h = torch.randn(rows, batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    return (h, torch.randn(rows, batch, layer.hidden_size, dtype=dtype)) if layer.mode == "LSTM" else h


def flat(value: Any) -> list[Any]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [t for v in value for t in flat(v)] if isinstance(value, tuple) else [value]


def leaves(value: Any) -> Any:
    """The same, as new leaves that want gradients."""
    if isinstance(value, PackedSequence):
        return value._replace(data=leaves(value.data))
    return tuple(leaves(v) for v in value) if isinstance(value, tuple) else value.clone().requires_grad_()


def results(layer: Any, x: Any, *hx: Any) -> list[Any]:
    """Everything a call gives: outputs, final states, and the gradients of all that goes in."""
    x, hx = leaves(x), leaves(hx)
    torch.manual_seed(5)  # of the dropout
    outputs = flat(layer(x, *hx))
    generator = torch.Generator().manual_seed(7)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs)
    inputs = [*flat(x), *(flat(hx) if hx else []), *layer.parameters()]
    return [*outputs, *torch.autograd.grad(loss, inputs)]


def assert_alike(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def error_of(call: Callable[[Any], Any], layer: Any) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever torch.nn raises
        call(layer)
    return caught.type, str(caught.value)

"""fastrnn.torch's cells against torch.nn's own: values, gradients, parameters, errors."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fastrnn.torch import steps  # noqa: E402
from torch_support import B, H, I, assert_alike, error_of, pair, results  # noqa: E402

CELLS = ("LSTMCell", "GRUCell", "RNNCell")


@pytest.mark.parametrize("kind", CELLS)
class TestCells:
    @pytest.mark.parametrize("bias", [False, True])
    def test_against_torch(self, kind: str, bias: bool) -> None:
        theirs, ours = pair(kind, bias=bias)
        assert repr(ours) == repr(theirs)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b)
        h = torch.randn(B, H)
        hx = (h, torch.randn(B, H)) if kind == "LSTMCell" else h
        x = torch.randn(B, I)
        assert_alike(results(ours, x), results(theirs, x))
        assert_alike(results(ours, x, hx), results(theirs, x, hx))
        row = tuple(s[0] for s in hx) if isinstance(hx, tuple) else hx[0]
        assert_alike(results(ours, x[0], row), results(theirs, x[0], row))

    @pytest.mark.parametrize("shape", [(B, I + 1), (1, B, I), (B + 1, I)], ids=str)
    def test_errors(self, kind: str, shape: tuple[int, ...]) -> None:
        theirs, ours = pair(kind)
        hx = torch.zeros(B, H)
        state = (hx, hx) if kind == "LSTMCell" else hx
        x = torch.zeros(shape)
        assert error_of(lambda cell: cell(x, state), ours) == error_of(lambda cell: cell(x, state), theirs)


def no_operator(*_: object) -> None:
    raise AssertionError("an ordinary step went through the operators")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_ordinary_steps_go_straight_to_the_core(
    kind: str, bias: bool, rows: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = pair(kind, bias=bias)
    monkeypatch.setattr(type(ours), "_run_operators", no_operator)
    monkeypatch.setattr(steps, "_by_operators", no_operator)
    with torch.set_grad_enabled(training):
        x, state = torch.randn(rows, I), None
        for _ in range(3):
            state = ours(x, state)
        h = state[0] if kind == "LSTMCell" else state
        if training:
            h.sum().backward()


def odd_tensors() -> dict[str, Any]:
    x = torch.randn(B, I)
    return {
        "strided": torch.randn(I, B).t(),
        "negative": torch._neg_view(x),
        "zero": torch._efficientzerotensor(B, I),
        "double": x.double(),
        "integer": x.long(),
        "on the meta device": x.to("meta"),
        "three axes": x[None],
        "a subclass": x.as_subclass(type("Tagged", (torch.Tensor,), {})),
        "wide": torch.randn(B, I + 1),
    }


@pytest.mark.parametrize("name", odd_tensors())
@pytest.mark.parametrize("kind", CELLS)
def test_what_is_out_of_the_ordinary(kind: str, name: str) -> None:
    theirs, ours = pair(kind)
    x = odd_tensors()[name]
    if name in ("strided", "negative", "a subclass", "zero"):
        assert_alike(results(ours, x), results(theirs, x))
    elif name != "on the meta device":
        assert error_of(lambda cell: cell(x), ours)[0] is error_of(lambda cell: cell(x), theirs)[0]
    else:
        with pytest.raises(RuntimeError):
            ours(x)


def test_the_nonlinearity_of_a_cell() -> None:
    theirs, ours = pair("RNNCell", nonlinearity="relu")
    assert repr(ours) == repr(theirs)
    x = torch.randn(B, I)
    assert_alike(results(ours, x), results(theirs, x))
    ours.nonlinearity = "sin"
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        ours(x)

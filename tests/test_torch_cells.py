"""fastrnn.torch's cells against torch.nn's own: values, gradients, parameters, errors."""

import pytest

torch = pytest.importorskip("torch")

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


def test_the_nonlinearity_of_a_cell() -> None:
    theirs, ours = pair("RNNCell", nonlinearity="relu")
    assert repr(ours) == repr(theirs)
    x = torch.randn(B, I)
    assert_alike(results(ours, x), results(theirs, x))
    ours.nonlinearity = "sin"
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        ours(x)

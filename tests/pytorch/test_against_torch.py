"""PyTorch as the outside witness: of the reference itself and of the layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import reference
from support import CELLS, assert_close, gradients_of, parts, whole

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing outside this repository to compare with")
rnn_utils = pytest.importorskip("torch.nn.utils.rnn", reason="PyTorch is not installed")

# PyTorch's note on its own slower path.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

T, B, INPUT, HIDDEN = 5, 4, 3, 6
LENGTHS = np.array([2, 5, 1, 4])

MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": 4}),
}
STACKS: dict[str, dict[str, Any]] = {
    "one": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "stacked": {"num_layers": 2},
    "stacked bidirectional": {"num_layers": 3, "bidirectional": True},
}


def as_numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().numpy())


class Witness:
    """A module of torch.nn with random input, run forward and backward with the gradients kept."""

    def __init__(self, name: str, options: dict[str, Any], dtype: type, packed: bool) -> None:
        class_name, own = MODULES[name]
        kind = torch.float64 if dtype is np.float64 else torch.float32
        torch.manual_seed(7)
        self.options = {**own, **options}
        self.module = getattr(torch.nn, class_name)(INPUT, HIDDEN, dtype=kind, **self.options)
        self.lengths = LENGTHS if packed else None
        D = 2 if options.get("bidirectional") else 1
        P = own.get("proj_size") or HIDDEN
        layers = options.get("num_layers", 1) * D
        sizes = [(layers, B, P), (layers, B, HIDDEN)] if class_name == "LSTM" else [(layers, B, P)]
        self.x = torch.randn(T, B, INPUT, dtype=kind, requires_grad=True)
        self.state = [torch.randn(*s, dtype=kind, requires_grad=True) for s in sizes]
        self.dy = torch.randn(T, B, D * P, dtype=kind)
        self.dstate = [torch.randn(*s, dtype=kind) for s in sizes]

        given = tuple(self.state) if class_name == "LSTM" else self.state[0]
        x = rnn_utils.pack_padded_sequence(self.x, LENGTHS, enforce_sorted=False) if packed else self.x
        y, end = self.module(x, given)
        self.y = rnn_utils.pad_packed_sequence(y, total_length=T)[0] if packed else y
        self.end = list(end) if class_name == "LSTM" else [end]
        outputs = zip([self.y, *self.end], [self.dy, *self.dstate], strict=True)
        sum((out * d).sum() for out, d in outputs).backward()

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        named = {k: as_numpy(p.grad) for k, p in self.module.named_parameters()}
        state = {name: as_numpy(s.grad) for name, s in zip(reference.STATE_NAMES, self.state, strict=False)}
        return {"x": as_numpy(self.x.grad), **state, **named}


@pytest.mark.parametrize("packed", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", MODULES)
def test_the_reference_agrees_with_torch(name: str, stack: str, packed: bool) -> None:
    w = Witness(name, STACKS[stack], np.float64, packed)
    problem = reference.Problem(
        cell=name.removesuffix("_proj"),
        parameters={k: as_numpy(p) for k, p in w.module.named_parameters()},
        x=as_numpy(w.x),
        state=tuple(as_numpy(s) for s in w.state),
        lengths=w.lengths,
    )
    y, end = reference.forward(problem)
    np.testing.assert_allclose(y, as_numpy(w.y), rtol=1e-13, atol=1e-14)
    for mine, theirs in zip(end, w.end, strict=True):
        np.testing.assert_allclose(mine, as_numpy(theirs), rtol=1e-13, atol=1e-14)

    dy, dstate = as_numpy(w.dy), tuple(as_numpy(d) for d in w.dstate)
    rng = np.random.default_rng(0)
    for variable, g in w.gradients.items():
        direction = rng.standard_normal(g.shape)
        expected = np.sum(g * direction)
        got = reference.derivative(problem, dy, dstate, variable, direction)
        assert got == pytest.approx(expected, rel=1e-12, abs=1e-13 * np.abs(g * direction).sum()), variable


@pytest.mark.parametrize("packed", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MODULES)
def test_a_layer_agrees_with_torch(name: str, dtype: type, stack: str, packed: bool) -> None:
    """The module's own state_dict loaded; y, the final state and every gradient compared element by element."""
    w = Witness(name, STACKS[stack], dtype, packed)
    layer = CELLS[name].layer(INPUT, HIDDEN, dtype=dtype, **w.options)
    layer.load_state_dict(w.module.state_dict())
    kind = np.dtype(dtype).name

    y, end, tape = layer.forward(as_numpy(w.x), whole(tuple(map(as_numpy, w.state))), lengths=w.lengths, training=True)
    assert_close(y, as_numpy(w.y), kind, "forward", "y")
    for mine, theirs in zip(parts(end), w.end, strict=True):
        assert_close(mine, as_numpy(theirs), kind, "forward", "the final state")
    grads = layer.backward(tape, as_numpy(w.dy), whole(tuple(map(as_numpy, w.dstate))))
    found = gradients_of(grads)
    expected = w.gradients
    assert found.keys() == expected.keys()
    for variable, g in expected.items():
        assert_close(found[variable], g, kind, "gradient", variable)


@pytest.mark.parametrize("name", MODULES)
def test_the_parameters_have_torchs_names_shapes_and_order(name: str) -> None:
    w = Witness(name, STACKS["stacked bidirectional"], np.float32, packed=False)
    layer = CELLS[name].layer(INPUT, HIDDEN, **w.options)
    mine = [(key, p.shape) for key, p in layer.parameters().items()]
    assert mine == [(key, tuple(p.shape)) for key, p in w.module.state_dict().items()]


def test_the_reference_resets_like_sequences_cut_in_two() -> None:
    """A reset at t equals two calls: in the forward direction the second starts at zero, in the other the first."""
    w = Witness("lstm", {"bidirectional": True}, np.float64, packed=False)
    problem = reference.Problem(
        "lstm",
        {k: as_numpy(p) for k, p in w.module.named_parameters()},
        as_numpy(w.x),
        tuple(as_numpy(s) for s in w.state),
        reset=np.zeros((T, B), bool),
    )
    assert problem.reset is not None
    problem.reset[2] = True
    y, end = reference.forward(problem)

    def torch_run(x: Any, h: Any, c: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        with torch.no_grad():
            out, last = w.module(x, (h, c))
        return as_numpy(out), [as_numpy(s) for s in last]

    keep_forward, keep_reverse = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    first, first_end = torch_run(w.x[:2], *(s * keep_forward[:, None, None] for s in w.state))
    second, second_end = torch_run(w.x[2:], *(s * keep_reverse[:, None, None] for s in w.state))
    np.testing.assert_allclose(y, np.concatenate([first, second]), rtol=1e-13, atol=1e-14)
    for mine, a, b in zip(end, first_end, second_end, strict=True):
        np.testing.assert_allclose(mine, np.stack([b[0], a[1]]), rtol=1e-13, atol=1e-14)

    # At t = 0 the initial state of the forward direction is cut off; nothing changes for the other one.
    at_zero = np.zeros((T, B), bool)
    at_zero[0] = True
    y, end = reference.forward(replace(problem, reset=at_zero))
    whole, whole_end = torch_run(w.x, *(s * keep_reverse[:, None, None] for s in w.state))
    np.testing.assert_allclose(y, whole, rtol=1e-13, atol=1e-14)
    for mine, theirs in zip(end, whole_end, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-14)

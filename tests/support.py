"""What the tests share: the cells, how a layer and its input are drawn, how close results have to be, bad commands."""

import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastrnn
import reference
from fastrnn.cli import main
from fastrnn.lm.model import LanguageModel
from fastrnn.options import zoneout_of
from reference import Problem

KNOWN_ISAS = ("scalar", "neon") if platform.machine() == "aarch64" else ("scalar", "avx2", "avx512")
Array = NDArray[Any]

# Largest difference from the reference, as a part of the largest magnitude of the array compared.
# float64: activations of a few ULP (2.2e-16 each) and sums of some hundred terms stay a hundred times below 1e-12.
# float32: the same reasoning with 6e-8 an operation. A gradient passes through every product twice and is summed over
# T*B rounded terms that may cancel, so it is allowed five times as much.
TOLERANCE: dict[tuple[str, str], float] = {
    ("float64", "forward"): 1e-12,
    ("float64", "gradient"): 1e-12,
    ("float32", "forward"): 4e-6,
    ("float32", "gradient"): 2e-5,
}

DTYPES = ("float32", "float64")

# T, B, I, H: ones, one below and above the vector widths and tile heights, and the widths themselves.
SIZES = [
    (1, 1, 1, 1),
    (1, 1, 8, 8),
    (6, 6, 5, 1),
    (7, 5, 1, 3),
    (5, 2, 3, 7),
    (3, 7, 2, 8),
    (4, 5, 9, 9),
    (3, 6, 16, 15),
    (2, 7, 15, 16),
    (3, 13, 7, 17),
    (2, 1, 33, 33),
    (1, 13, 17, 33),
    (3, 2, 64, 64),
]
# Enough rows or steps that the input is worked through in several chunks of time.
LONG_SIZES = [(700, 3, 5, 8), (5, 130, 7, 9), (60, 17, 16, 33)]


def sizes_id(sizes: tuple[int, int, int, int]) -> str:
    return "T{}-B{}-I{}-H{}".format(*sizes)


@dataclass(frozen=True)
class Cell:
    """One kind of layer of the public API and the textbook function it has to equal."""

    layer: type[Any]
    textbook: str
    options: Mapping[str, Any]
    projected: bool = False

    def build(self, input_size: int, hidden_size: int, *, isa: str | None = None, seed: int = 0, **options: Any) -> Any:
        """A layer with every parameter (biases too) drawn between -1 and 1 over the root of hidden_size."""
        if self.projected:
            hidden_size = max(hidden_size, 2)  # a projection is smaller than the hidden state
            options["proj_size"] = hidden_size - hidden_size // 3 - 1
        layer = self.layer(input_size, hidden_size, **{**self.options, **options})
        rng = np.random.default_rng(seed)
        k = 1 / np.sqrt(hidden_size)
        for p in layer.parameters().values():
            p[...] = rng.uniform(-k, k, p.shape)
        if isa is not None:
            layer._use_isa(isa)
        return layer


CELLS: dict[str, Cell] = {
    "rnn_tanh": Cell(fastrnn.RNN, "rnn_tanh", {"nonlinearity": "tanh"}),
    "rnn_relu": Cell(fastrnn.RNN, "rnn_relu", {"nonlinearity": "relu"}),
    "gru": Cell(fastrnn.GRU, "gru", {"reset_after": True}),
    "gru_original": Cell(fastrnn.GRU, "gru_original", {"reset_after": False}),
    "lstm": Cell(fastrnn.LSTM, "lstm", {}),
    "lstm_proj": Cell(fastrnn.LSTM, "lstm", {}, projected=True),
    "rnn_general": Cell(fastrnn.RNN, "rnn_general", {"nonlinearity": ("elu", 0.7), "clip": 2.5}),
    "gru_general": Cell(fastrnn.GRU, "gru_general", {"activations": ["hard_sigmoid", "softsign"], "clip": 2.5}),
    "gru_original_general": Cell(
        fastrnn.GRU,
        "gru_original_general",
        {"reset_after": False, "activations": ["sigmoid", ("scaled_tanh", 1.2, 0.8)], "clip": 2.5},
    ),
    "lstm_general": Cell(
        fastrnn.LSTM,
        "lstm_general",
        {"peephole": True, "coupled": True, "clip": 2.5, "activations": ["hard_sigmoid", "softsign", "tanh"]},
    ),
    "lstm_proj_general": Cell(fastrnn.LSTM, "lstm_general", {"peephole": True}, projected=True),
    "gru_norm": Cell(fastrnn.GRU, "gru_norm", {"layer_norm": True}),
    "lstm_norm": Cell(fastrnn.LSTM, "lstm_norm", {"layer_norm": True}),
    "slstm": Cell(fastrnn.sLSTM, "slstm", {}),
    "slstm_exponential": Cell(fastrnn.sLSTM, "slstm_exponential", {"forget_gate": "exponential"}),
}
# The general ones share all but their equations with these, and so does the other sLSTM with the first.
USUAL = [name for name in CELLS if "general" not in name and name != "slstm_exponential"]


def variants(layer: Any) -> tuple[reference.Variant, ...]:
    """What makes a layer's cell a general one, for the reference; nothing if it is not."""
    general = layer._general()
    if general is None:
        return ()
    clip, coupled, _, sides, _ = general
    return tuple(reference.Variant(tuple(sides[d % len(sides)]), clip, coupled) for d in range(1 + layer.bidirectional))


def parts(state: Any) -> tuple[Array, ...]:
    """A state of the API, an array, LSTMState(h, c) or sLSTMState(h, c, n, m), as the reference has it."""
    return tuple(state) if isinstance(state, tuple) else (state,)


def whole(state: tuple[Array, ...]) -> Any:
    """The other way round."""
    if len(state) == 4:
        return fastrnn.sLSTMState(*state)
    return fastrnn.LSTMState(*state) if len(state) == 2 else state[0]


def largest(a: Array) -> float:
    return float(np.max(np.abs(a), initial=0.0))


def assert_close(actual: Array, expected: Array, dtype: str, kind: str, what: str) -> None:
    assert actual.dtype == np.dtype(dtype), what
    assert actual.shape == expected.shape, what
    error, bound = largest(actual - expected), TOLERANCE[dtype, kind] * largest(expected)
    assert error <= bound, f"{what}: off by {error:.3g}, allowed are {bound:.3g}"


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Equal arrays, states (tuples) or dicts of arrays; NaN equals NaN, 0.0 does not equal -0.0."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        actual, expected = tuple(actual.values()), tuple(expected.values())
    for a, e in zip(parts(actual), parts(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)
        np.testing.assert_array_equal(np.signbit(a), np.signbit(e))


def gradients_of(grads: Any) -> dict[str, Array]:
    """What backward returned, under the reference's names of the variables."""
    found = {"x": grads.x, **dict(zip(reference.STATE_NAMES, parts(grads.state), strict=False)), **grads.parameters}
    return found if grads.hidden is None else {**found, "hidden": grads.hidden}


@dataclass
class Example:
    """A layer, one input for it, gradients of its outputs, and the reference to compare with. Time comes first."""

    cell: Cell
    layer: Any
    x: Array  # (T, B, I)
    state: tuple[Array, ...]
    dy: Array  # (T, B, D*P)
    dstate: tuple[Array, ...]
    lengths: Array | None = None
    reset: Array | None = None

    @property
    def dtype(self) -> str:
        return str(self.layer.dtype)

    @property
    def cuts(self) -> dict[str, Array | None]:
        """The arguments of a call that end or cut sequences."""
        return {"lengths": self.lengths, "reset": self.reset}

    def but(self, **changes: Any) -> "Example":
        return replace(self, **changes)

    def problem(self, **dropout: Any) -> Problem:
        """The same in float64, for the reference; dropout: masks and scale, noise."""
        wide = {name: p.astype(np.float64) for name, p in self.layer.parameters().items()}
        state = tuple(s.astype(np.float64) for s in self.state)
        expectation = reference.Noise(zoneout_of(self.layer._options))
        dropout = {"variants": variants(self.layer), "heads": self.layer.heads, "noise": expectation, **dropout}
        return Problem(self.cell.textbook, wide, self.x.astype(np.float64), state, self.lengths, self.reset, **dropout)

    def infer(self) -> tuple[Array, Any]:
        y, state = self.layer(self.x, whole(self.state), **self.cuts)
        return y, state

    def train(self) -> tuple[Array, Any, Any]:
        y, state, tape = self.layer.forward(self.x, whole(self.state), **self.cuts, training=True)
        return y, state, tape

    def gradients(self) -> dict[str, Array]:
        tape = self.train()[2]
        return gradients_of(self.layer.backward(tape, self.dy, whole(self.dstate), hidden=True))

    def check_forward(self) -> None:
        """The three ways to run a layer forwards against the reference."""
        expected = reference.forward(self.problem())
        self.assert_close_to(self.infer(), expected, "inference")
        self.assert_close_to(self.train()[:2], expected, "training")
        self.assert_close_to(self.layer.freeze()(self.x, whole(self.state), **self.cuts), expected, "frozen")

    def assert_close_to(self, actual: tuple[Array, Any], expected: tuple[Array, tuple[Array, ...]], path: str) -> None:
        assert_close(actual[0], expected[0], self.dtype, "forward", f"y, {path}")
        for name, s, e in zip("hcnm", parts(actual[1]), expected[1], strict=False):
            assert_close(s, e, self.dtype, "forward", f"{name}n, {path}")

    def check_backward(self, problem: Problem | None = None, gradients: dict[str, Array] | None = None) -> None:
        """Every gradient against the reference along one random direction."""
        problem = problem or self.problem()
        gradients = gradients or self.gradients()
        variables = reference.variables(problem)
        assert gradients.keys() == variables.keys()
        rng = np.random.default_rng(99)
        for name, g in gradients.items():
            assert g.dtype == np.dtype(self.dtype), name
            assert g.shape == variables[name].shape, name
            direction = rng.standard_normal(g.shape)
            expected = reference.derivative(problem, self.dy, self.dstate, name, direction)
            # The errors of the elements add up like the steps of a random walk.
            bound = TOLERANCE[self.dtype, "gradient"] * largest(g) * np.sqrt(g.size)
            error = abs(np.sum(g * direction) - expected)
            assert error <= bound, f"dL/d{name}: off by {error:.3g}, allowed are {bound:.3g}"

    def check_backward_element_by_element(self) -> None:
        problem, gradients = self.problem(), self.gradients()
        for name, g in gradients.items():
            expected = reference.gradient(problem, self.dy, self.dstate, name)
            assert_close(g, expected, self.dtype, "gradient", f"dL/d{name}")


def state_shapes(layer: Any, B: int) -> list[tuple[int, int, int]]:
    """Shapes of h and, for an LSTM, c, for an sLSTM c, n, m."""
    LD = layer.num_layers * (2 if layer.bidirectional else 1)
    P = layer.parameters()["weight_hh_l0"].shape[1] * layer.heads
    beside = 1 if isinstance(layer, fastrnn.LSTM) else 3 if isinstance(layer, fastrnn.sLSTM) else 0
    return [(LD, B, P), *[(LD, B, layer.hidden_size)] * beside]


# What training does at random inside a layer.
NOISE: dict[str, dict[str, Any]] = {
    "zoneout": {"zoneout": 0.3},
    "sequence": {"recurrent_dropout": 0.4},
    "step": {"recurrent_dropout": 0.4, "recurrent_dropout_mode": "step"},
    "both": {"zoneout": 0.3, "recurrent_dropout": 0.4, "recurrent_dropout_mode": "step"},
}


def noisy(name: str, noise: str) -> Cell:
    """A cell with such noise; of an LSTM c has another zoneout than h."""
    options = NOISE[noise]
    if "zoneout" in options and CELLS[name].layer is fastrnn.LSTM:
        options = options | {"zoneout": (0.3, 0.6)}
    return Cell(CELLS[name].layer, CELLS[name].textbook, {**CELLS[name].options, **options}, CELLS[name].projected)


def possible(state: tuple[Array, ...]) -> tuple[Array, ...]:
    """A drawn state; of an sLSTM n is positive, or zero, which with a c of zero is an empty memory."""
    if len(state) < 4:
        return state
    h, c, n, m = state
    empty = np.sin(50 * h) > 0.8
    return h, np.where(empty, 0, c).astype(c.dtype), np.where(empty, 0, np.abs(n) + 0.5).astype(c.dtype), m


def draw(
    cell: Cell, layer: Any, T: int, B: int, *, lengths: bool = False, reset: bool = False, seed: int = 1
) -> Example:
    """A random input; lengths hold 0 and T where B allows, reset has about every third step."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(layer.dtype)

    shapes = state_shapes(layer, B)
    D = 2 if layer.bidirectional else 1
    n = None
    if lengths:
        n = rng.integers(0, T + 1, B)
        n[: min(B, 2)] = [0, T][: min(B, 2)]
        rng.shuffle(n)
    return Example(
        cell=cell,
        layer=layer,
        x=normal(T, B, layer.input_size),
        state=possible(tuple(normal(*s) for s in shapes)),
        dy=normal(T, B, D * shapes[0][2]),
        dstate=tuple(normal(*s) for s in shapes),
        lengths=n,
        reset=rng.random((T, B)) < 1 / 3 if reset else None,
    )


def complex_step(f: Callable[[Array], Any], at: Array) -> Array:
    """The gradient of a real function, element by element: Im f(at + 1e-200j e) / 1e-200."""
    gradient = np.empty(at.shape)
    for index in np.ndindex(at.shape):
        z = at.astype(complex)
        z[index] += 1e-200j
        gradient[index] = np.imag(f(z)) / 1e-200
    return gradient


ENGLISH = "the cat sat on the mat. the dog sat on the log.\n" * 40
CHINESE = "我要去北京。我要离开上海。你好，世界！\n" * 60  # noqa: RUF001


def same_models(a: LanguageModel, b: LanguageModel) -> None:
    assert a.vocabulary.tokens == b.vocabulary.tokens
    assert a.config == b.config
    assert_same_bits(a.arrays(), b.arrays())


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a call that must fail with exit code 2 and leave nothing behind."""
    before = sorted(os.listdir())
    try:
        code = main(arguments)
    except SystemExit as leaving:  # argparse leaves in its own way
        code = leaving.code  # type: ignore[assignment]
    assert code == 2
    assert sorted(os.listdir()) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without the numbers of threads of this one's environment."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

"""Bad input: what every error says, that it comes before a kernel runs, and that it lists everything at once."""

import re
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import ShapeError, SizeError
from support import CELLS

T, B, I, H = 5, 3, 4, 6


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def says(text: str) -> str:
    return re.escape(text)


@pytest.fixture
def lstm() -> fastrnn.LSTM:
    return fastrnn.LSTM(I, H, rng=0)


@pytest.fixture
def gru() -> fastrnn.GRU:
    return fastrnn.GRU(I, H, rng=0)


def test_the_example_of_the_design() -> None:
    layer = fastrnn.LSTM(10, 4, batch_first=True)
    with pytest.raises(ShapeError) as error:
        layer(zeros(32, 10, 5))
    assert str(error.value) == (
        "LSTM(input_size=10, batch_first=True) got x with shape (32, 10, 5) = (batch, time, features).\n"
        "  features is 5 but must be 10. Axis 1 is 10: did you mean x.swapaxes(1, 2)?"
    )
    assert issubclass(ShapeError, ValueError)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((T, B, 5), "got x with shape (5, 3, 5) = (time, batch, features).\n  features is 5 but must be 4."),
        ((I, B, 7), "Axis 0 is 4: did you mean x.swapaxes(0, 2)?"),
        ((I, 7), "got x with shape (4, 7) = (time, features).\n  features is 7 but must be 4. Axis 0 is 4"),
        ((I,), "x must have 3 axes (time, batch, features), or 2 axes (time, features) without a batch; it has 1."),
        ((I,), "For a single time step use x[None], or freeze().step(x)."),
        ((), "it has 0."),
        ((T, 1, B, I), "it has 4. Axis 1 is 1: did you mean x.squeeze(1)?"),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_shape_of_x(name: str, shape: tuple[int, ...], text: str) -> None:
    layer = CELLS[name].build(I, H)
    for call in (layer, layer.forward, layer.freeze()):
        with pytest.raises(ShapeError, match=says(text)):
            call(zeros(*shape))


@pytest.mark.parametrize(
    ("dtype", "fix"),
    [
        (np.float64, "use x.astype(np.float32), or make the layer with dtype=np.float64"),
        (np.int64, "use x.astype(np.float32), or make the layer with dtype=np.float64"),
        (np.complex64, "It must hold real numbers that convert safely to float32."),
        (object, "It must hold real numbers that convert safely to float32."),
        ("U3", "It must hold real numbers that convert safely to float32."),
    ],
)
@pytest.mark.parametrize("name", CELLS)
def test_dtype_of_x(name: str, dtype: Any, fix: str) -> None:
    layer = CELLS[name].build(I, H)
    with pytest.raises(TypeError, match=says(f"got x with dtype {np.dtype(dtype)}.\n") + "(.|\n)*" + says(fix)):
        layer(np.zeros((T, B, I), dtype))


def test_the_fix_for_a_list_is_one_that_a_list_has(gru: fastrnn.GRU) -> None:
    with pytest.raises(TypeError, match=says("use np.asarray(x, dtype=np.float32)")):
        gru([[0.0] * I] * T)


def test_what_is_no_array(gru: fastrnn.GRU) -> None:
    with pytest.raises(ValueError, match=r"got x of type list.\n  NumPy cannot make an array of it: setting an array"):
        gru([[0.0] * I, [0.0]])


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (
            (2, B, H),
            "got state with shape (2, 3, 6).\n  It must have shape (1, 3, 6) = (num_layers * directions, batch, ",
        ),
        ((1, B, H + 1), "It must have shape (1, 3, 6) = (num_layers * directions, batch, hidden_size)."),
        ((B, 1, H), "batch_first does not apply to states: did you mean state.swapaxes(0, 1)?"),
        ((B, H), "Did you mean state[None]?"),
        ((1, T, H), "The time axis of x is 5: did you mean x.swapaxes(0, 1), or another batch_first?"),
    ],
)
def test_shape_of_the_state(gru: fastrnn.GRU, shape: tuple[int, ...], text: str) -> None:
    for call in (gru, gru.forward, gru.freeze()):
        with pytest.raises(ShapeError, match=says(text)):
            call(zeros(T, B, I), zeros(*shape))


def test_shape_of_the_state_beside_an_unbatched_x(gru: fastrnn.GRU) -> None:
    with pytest.raises(ShapeError, match=says("x has no batch axis, so the state has none either: state[:, 0]")):
        gru(zeros(T, I), zeros(1, 1, H))
    with pytest.raises(ShapeError, match=says("Did you mean state[:, None]?")):
        fastrnn.GRU(I, H, 2)(zeros(T, 1, I), zeros(2, H))


def test_the_two_members_of_an_lstm_state_have_sizes_of_their_own() -> None:
    layer = fastrnn.LSTM(I, H, proj_size=2)
    with pytest.raises(ShapeError) as error:
        layer(zeros(T, B, I), (zeros(1, B, H), zeros(1, B, 2)))
    assert (
        "state.h with shape (1, 3, 6).\n  It must have shape (1, 3, 2) = (num_layers * directions, batch, proj_size)"
        in (str(error.value))
    )
    assert (
        "state.c with shape (1, 3, 2).\n  It must have shape (1, 3, 6) = (num_layers * directions, batch, hidden_size)"
        in (str(error.value))
    )


def test_kind_of_state(lstm: fastrnn.LSTM, gru: fastrnn.GRU) -> None:
    x, h = zeros(T, B, I), zeros(1, B, H)
    pair = says("The state of an LSTM is a pair (h, c), each an array or None for zeros")
    for call in (lstm, lstm.forward, lstm.freeze()):
        with pytest.raises(TypeError, match=says("got state of type ndarray with shape (1, 3, 6).\n  ") + pair):
            call(x, h)
    with pytest.raises(TypeError, match=pair):
        lstm(x, (h, h, h))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=pair):
        lstm.freeze().step(x[0], h)
    for step in (lambda s: gru(x, s), lambda s: gru.freeze().step(x[0], s)):
        with pytest.raises(TypeError, match=says("Its state is one array, not a pair (h, c) as an LSTM has it")):
            step((h, h))


@pytest.mark.parametrize(
    ("lengths", "kind", "text"),
    [
        ([1, 6, 2], ValueError, "got lengths[1] = 6.\n  Each length must be in 0..5, the number of time steps in x."),
        ([-1, 2, 9], ValueError, "got lengths[0] = -1, lengths[2] = 9.\n"),
        (np.uint64([0, 2**64 - 1, 0]), ValueError, "got lengths[1] = 18446744073709551615.\n"),
        (
            [1.0, 2.0, 3.0],
            TypeError,
            "lengths with dtype float64.\n  They count time steps and must be integers: use np.as",
        ),
        (zeros(B), TypeError, "use lengths.astype(np.int64)."),
        ([True, False, True], TypeError, "got lengths with dtype bool"),
        ([2**70, 0, 0], TypeError, "got lengths with dtype object"),
        ([1, 2], ShapeError, "got lengths with shape (2,).\n  There must be one length per sequence: shape (3,)."),
        (2, ShapeError, "got lengths with shape ()."),
        ([1] * T, ShapeError, "The time axis of x is 5: did you mean x.swapaxes(0, 1), or another batch_first?"),
        ([[1], [1, 2]], ValueError, "got lengths of type list.\n  NumPy cannot make an array of it"),
    ],
)
def test_lengths(gru: fastrnn.GRU, lengths: Any, kind: type[Exception], text: str) -> None:
    for call in (gru, gru.forward, gru.freeze()):
        with pytest.raises(kind, match=says(text)):
            call(zeros(T, B, I), lengths=lengths)


def test_only_the_first_offenders_are_named() -> None:
    with pytest.raises(
        ValueError, match=says("lengths[0] = 9, lengths[1] = 9, lengths[2] = 9 and 7 more out of range")
    ):
        fastrnn.GRU(I, H)(zeros(T, 10, I), lengths=[9] * 10)


@pytest.mark.parametrize(
    ("reset", "kind", "text"),
    [
        (np.zeros((T, B), int), TypeError, "True where a new sequence starts: use reset.astype(bool)."),
        (zeros(T, B), TypeError, "got reset with dtype float32."),
        ([[0] * B] * T, TypeError, "use np.asarray(reset, dtype=bool)."),
        (
            np.zeros((B, T), bool),
            ShapeError,
            "It must have shape (5, 3) = (time, batch), as x has. Did you mean reset.T?",
        ),
        (np.zeros(T, bool), ShapeError, "got reset with shape (5,)."),
    ],
)
def test_reset(gru: fastrnn.GRU, reset: Any, kind: type[Exception], text: str) -> None:
    for call in (gru, gru.forward, gru.freeze()):
        with pytest.raises(kind, match=says(text)):
            call(zeros(T, B, I), reset=reset)


def test_reset_of_other_layouts() -> None:
    layer = fastrnn.GRU(I, H, batch_first=True)
    with pytest.raises(
        ShapeError, match=says("It must have shape (3, 5) = (batch, time), as x has. Did you mean reset.T?")
    ):
        layer(zeros(B, T, I), reset=np.zeros((T, B), bool))
    with pytest.raises(ShapeError, match=says("It must have shape (5,) = (time,), as x has.")):
        layer(zeros(T, I), reset=np.zeros((T, 1), bool))


def test_everything_at_once(lstm: fastrnn.LSTM) -> None:
    with pytest.raises(ShapeError) as error:
        lstm(
            zeros(T, B, I + 1, dtype=np.float64),
            (zeros(1, B, H + 1), np.zeros((1, B, H), complex)),
            lengths=[7, 1, 1],
            reset=np.zeros((T, B), np.int8),
        )
    lines = str(error.value).splitlines()
    assert [line.removeprefix("LSTM(input_size=4) ").removeprefix("It also ") for line in lines[::2]] == [
        "got x with dtype float64.",
        "got x with shape (5, 3, 5) = (time, batch, features).",
        "got state.h with shape (1, 3, 7).",
        "got state.c with dtype complex128.",
        "got lengths[0] = 7.",
        "got reset with dtype int8.",
    ]


@pytest.mark.parametrize("batch_first", [False, True])
def test_shape_and_dtype_of_dy(batch_first: bool) -> None:
    layer = fastrnn.LSTM(I, H, batch_first=batch_first)
    y, _, tape = layer.forward(zeros(T, B, I))
    with pytest.raises(ShapeError) as error:
        layer.backward(tape, y.swapaxes(0, 1), (zeros(1, B + 1, H), None))
    assert (
        "backward got dy with shape (3, 5, 6).\n  It must have the shape of y of the forward call: (5, 3, 6). Did you"
        in (str(error.value))
    )
    assert "It also got dstate.h with shape (1, 4, 6)." in str(error.value)
    with pytest.raises(TypeError, match=says("backward got dy with dtype float64.\n")):
        layer.backward(tape, y.astype(np.float64))


def test_a_tape_must_be_of_this_layer_and_its_parameters(gru: fastrnn.GRU, lstm: fastrnn.LSTM) -> None:
    y, _, tape = gru.forward(zeros(T, B, I))
    with pytest.raises(
        ValueError, match=says("got the tape of another layer, GRU(input_size=4): call backward of the")
    ):
        fastrnn.GRU(I, H).backward(tape, y)
    with pytest.raises(TypeError, match="takes the tape that forward returned, got ndarray"):
        gru.backward(y, y)  # type: ignore[arg-type]
    for change, by in (
        (lambda: gru.load_state_dict(gru.state_dict()), "load_state_dict"),
        (lambda: gru.initialise(), "initialise"),
        (lambda: gru.parameters().changed(), "an optimizer or parameters().changed()"),
    ):
        y, _, tape = gru.forward(zeros(T, B, I))
        change()
        with pytest.raises(
            ValueError, match=says(f"before the parameters were changed (last by {by}): call forward again")
        ):
            gru.backward(tape, y)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"input_size": 0}, ValueError, "LSTM got input_size=0.\n  input_size must be at least 1."),
        ({"hidden_size": -3}, ValueError, "hidden_size must be at least 1."),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1."),
        ({"num_layers": 10**9}, ValueError, "num_layers must be at most 1024."),
        ({"hidden_size": 4.0}, TypeError, "LSTM got hidden_size=4.0.\n  hidden_size must be an integer."),
        ({"num_layers": True}, TypeError, "num_layers must be an integer."),
        ({"bias": 1}, TypeError, "LSTM got bias=1.\n  bias must be True or False."),
        ({"batch_first": None}, TypeError, "batch_first must be True or False."),
        ({"dropout": 1.5}, ValueError, "probability of dropping an element and must be in 0..1."),
        ({"dropout": float("nan")}, ValueError, "must be in 0..1."),
        ({"dropout": True}, TypeError, "dropout must be a number in 0..1"),
        ({"proj_size": -1}, ValueError, "proj_size must be at least 0."),
        ({"proj_size": H}, ValueError, "A projection makes the output smaller: proj_size must be below hidden_size, 6"),
        ({"dtype": np.float16}, TypeError, "dtype must be np.float32 or np.float64."),
        ({"dtype": None}, TypeError, "dtype must be np.float32 or np.float64."),
        ({"dtype": "fast"}, TypeError, "LSTM got dtype='fast'.\n  dtype must be np.float32 or np.float64"),
        (
            {"rng": -1},
            ValueError,
            "LSTM got rng=-1.\n  It must be None, a seed (a non-negative integer) or a numpy.random.",
        ),
        ({"rng": "seed"}, TypeError, "LSTM got rng='seed'."),
    ],
)
def test_options(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=says(text)):
        fastrnn.LSTM(**{"input_size": I, "hidden_size": H, **options})


def test_all_bad_options_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"LSTM got input_size=0(.|\n)*It also got hidden_size='6'(.|\n)*also got dropout=2"
    ):
        fastrnn.LSTM(0, "6", dropout=2)  # type: ignore[arg-type]


def test_options_of_single_cells() -> None:
    with pytest.raises(
        ValueError, match=says("RNN got nonlinearity='step'.\n  An activation is one of sigmoid, tanh, relu,")
    ):
        fastrnn.RNN(I, H, nonlinearity="step")
    with pytest.raises(TypeError, match=r"GRU got reset_after=0.\n  reset_after must be True or False"):
        fastrnn.GRU(I, H, reset_after=0)  # type: ignore[arg-type]


def test_options_are_fixed(gru: fastrnn.GRU) -> None:
    with pytest.raises(AttributeError, match="hidden_size of a layer is fixed when it is made: make a new GRU"):
        gru.hidden_size = 7
    assert gru.hidden_size == H


@pytest.mark.parametrize("name", CELLS)
def test_sizes_beyond_memory_are_named(name: str) -> None:
    with pytest.raises(SizeError, match=r"the parameters would take .* (TiB|PiB|EiB); this machine has"):
        CELLS[name].layer(2**20, 2**22)
    with pytest.raises(SizeError, match=r"the parameters would take .* EiB, more bytes than 64 bits can count"):
        CELLS[name].layer(2**40, 2**40)
    layer = CELLS[name].build(2, 2)
    with pytest.raises(SizeError, match=r"T = 67108864 and B = 1048576 would take .* (TiB|PiB); this machine has"):
        layer(np.broadcast_to(zeros(2), (2**26, 2**20, 2)))
    with pytest.raises(SizeError, match="T = 2147483648 and B = 2147483648 needs more bytes than 64 bits can count"):
        layer.estimate_memory(2**31, 2**31)
    assert issubclass(SizeError, ValueError)
    assert issubclass(SizeError, MemoryError)


def test_sizes_beyond_64_bits_in_an_estimate(gru: fastrnn.GRU) -> None:
    with pytest.raises(SizeError, match="B = 1 needs more bytes than 64 bits can count"):
        gru.estimate_memory(2**70, 1)


class Exhausted:
    """A core that finds no memory for its results."""

    def __init__(self, core: Any) -> None:
        self.memory = core.memory if hasattr(core, "memory") else None

    def forward(self, *_: Any) -> None:
        raise MemoryError

    backward = forward


@pytest.mark.parametrize("name", CELLS)
def test_running_out_of_memory_names_the_size(name: str) -> None:
    layer = CELLS[name].build(I, H)
    fast, x = layer.freeze(), zeros(T, B, I)
    y, _, tape = layer.forward(x)
    layer.__dict__["_network"] = Exhausted(layer._network)
    fast._core = Exhausted(fast._core)
    for call in (lambda: layer(x), lambda: layer.forward(x), lambda: layer.backward(tape, y), lambda: fast(x)):
        with pytest.raises(
            SizeError, match=r"no memory for a call with T = 5 and B = 3, which needs about [\d.]+ \w+\."
        ):
            call()


def test_estimate_memory_refuses_negative_sizes(gru: fastrnn.GRU) -> None:
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        gru.estimate_memory(1.5, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got T=-1 and B=3; both must be at least 0"):
        gru.estimate_memory(-1, 3)


def test_initialise_refuses_what_it_does_not_know(gru: fastrnn.GRU) -> None:
    with pytest.raises(
        ValueError, match=r"got recurrent='eye'(.|\n)*It also got forget_bias=1.0(.|\n)*Only an LSTM or sLSTM with bias"
    ):
        gru.initialise("eye", 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Only an LSTM or sLSTM with bias=True has a forget gate's bias"):
        fastrnn.LSTM(I, H, bias=False).initialise(forget_bias=1.0)

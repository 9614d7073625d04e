"""The Python side of the layers: what may be handed over and how, what comes back, tapes, descriptions."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import _core
from fastrnn.checks import readable
from support import CELLS, assert_same_bits, draw, parts, state_shapes, whole

T, B, I, H = 4, 3, 5, 6

LAYOUTS = {"plain": {}, "stacked bidirectional": {"num_layers": 2, "bidirectional": True}}


def build(name: str, **options: Any) -> Any:
    return CELLS[name].build(I, H, **options)


# What may be handed over


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CELLS)
def test_batch_first_is_the_same_with_axes_swapped(name: str, layout: str) -> None:
    e = draw(CELLS[name], build(name, **LAYOUTS[layout]), T, B, lengths=True, reset=True)
    other = build(name, batch_first=True, **LAYOUTS[layout])
    x, reset, dy = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (e.x, e.reset, e.dy))

    y, state, tape = e.layer.forward(e.x, whole(e.state), **e.cuts)
    grads = e.layer.backward(tape, e.dy, whole(e.dstate), hidden=True)
    y2, state2, tape2 = other.forward(x, whole(e.state), lengths=e.lengths, reset=reset)
    grads2 = other.backward(tape2, dy, whole(e.dstate), hidden=True)
    frozen = e.layer.freeze()(e.x, whole(e.state), **e.cuts)
    frozen2 = other.freeze()(x, whole(e.state), lengths=e.lengths, reset=reset)

    assert y2.flags.c_contiguous
    assert y2.shape == (B, T, y.shape[2])
    assert_same_bits(y2.swapaxes(0, 1), y)
    assert_same_bits(state2, state)
    assert_same_bits(grads2.x.swapaxes(0, 1), grads.x)
    assert_same_bits(grads2.hidden.swapaxes(0, 1), grads.hidden)
    assert_same_bits(grads2.parameters, grads.parameters)
    assert_same_bits(grads2.state, grads.state)
    assert_same_bits(frozen2[0].swapaxes(0, 1), frozen[0])
    assert_same_bits(frozen2[1], frozen[1])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_without_a_batch_axis(name: str, batch_first: bool) -> None:
    layer = build(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    e = draw(CELLS[name], layer, T, 1, reset=True)
    x, reset, dy = e.x[:, 0], e.reset[:, 0], e.dy[:, 0]
    state, dstate = (whole(tuple(s[:, 0] for s in given)) for given in (e.state, e.dstate))
    same = build(name, num_layers=2, bidirectional=True)
    y, end, tape = same.forward(e.x, whole(e.state), lengths=[T - 1], reset=e.reset)
    grads = same.backward(tape, e.dy, whole(e.dstate), hidden=True)

    frozen_y = same.freeze()(e.x, whole(e.state), lengths=[T - 1], reset=e.reset)[0]
    for lengths in (T - 1, [T - 1]):
        y1, end1, tape1 = layer.forward(x, state, lengths=lengths, reset=reset)
        assert_same_bits(y1, y[:, 0])
        assert_same_bits(end1, tuple(s[:, 0] for s in parts(end)))
        assert_same_bits(layer.freeze()(x, state, lengths=lengths, reset=reset)[0], frozen_y[:, 0])
    grads1 = layer.backward(tape1, dy, dstate, hidden=True)
    assert_same_bits(grads1.x, grads.x[:, 0])
    assert_same_bits(grads1.hidden, grads.hidden[:, 0])
    assert_same_bits(grads1.state, tuple(s[:, 0] for s in parts(grads.state)))
    assert_same_bits(grads1.parameters, grads.parameters)


def misaligned(a: np.ndarray) -> np.ndarray:
    room = np.zeros(a.nbytes + 1, np.uint8)
    view = room[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def in_a_record(a: np.ndarray) -> np.ndarray:
    """Rows whose distance is no multiple of the element's size."""
    records = np.zeros(a.shape[:-1], [("tag", "u1"), ("values", a.dtype, a.shape[-1:])])
    records["values"] = a
    return records["values"]


HANDED_OVER = {
    "Fortran order": np.asfortranarray,
    "every second feature": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "turned around twice": lambda a: a[::-1].copy()[::-1],
    "negative unit stride": lambda a: a[..., ::-1].copy()[..., ::-1],
    "swapped axes": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "in a record": in_a_record,
    "a subclass": lambda a: a.view(np.recarray),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("way", HANDED_OVER)
@pytest.mark.parametrize("name", CELLS)
def test_every_way_to_hand_over_an_array(name: str, way: str) -> None:
    turn: Any = HANDED_OVER[way]
    e = draw(CELLS[name], build(name), T, B, reset=True)
    e2 = e.but(
        x=turn(e.x), dy=turn(e.dy), state=tuple(map(turn, e.state)), dstate=tuple(map(turn, e.dstate)), reset=e.reset
    )
    assert_same_bits(e2.infer()[0], e.infer()[0])
    assert_same_bits(e2.train()[1], e.train()[1])
    assert_same_bits(e2.gradients(), e.gradients())
    fast = e.layer.freeze()
    assert_same_bits(fast.step(e2.x[0], whole(e2.state))[0], fast.step(e.x[0], whole(e.state))[0])


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint16, bool])
def test_dtypes_that_convert_safely(dtype: Any) -> None:
    layer = build("gru")
    x = np.random.default_rng(0).integers(0, 2, (T, B, I)).astype(dtype)
    assert_same_bits(layer(x)[0], layer(x.astype(np.float32))[0])
    assert_same_bits(layer.freeze().step(x[0])[0], layer.freeze().step(x[0].astype(np.float32))[0])


def test_a_float64_layer_takes_float32_and_lists() -> None:
    layer = build("lstm", dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    y, state = layer(x)
    assert y.dtype == state.c.dtype == np.float64
    assert_same_bits(layer(x.tolist())[0], y)


@pytest.mark.parametrize("given", [[3, 0, 4], (3, 0, 4), np.int8([3, 0, 4]), np.uint64([3, 0, 4]), range(2, 5)])
def test_kinds_of_lengths(given: Any) -> None:
    e = draw(CELLS["gru"], build("gru"), T, B)
    assert_same_bits(e.layer(e.x, lengths=given)[0], e.layer(e.x, lengths=np.array(given, np.int64))[0])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_no_steps_and_no_sequences(name: str, frozen: bool) -> None:
    layer = build(name)
    e = draw(CELLS[name], layer, T, B)
    run = layer.freeze() if frozen else layer
    y, end = run(e.x[:0], whole(e.state))
    assert y.shape == (0, B, e.dy.shape[2])
    assert_same_bits(end, e.state)
    y, end = run(e.x[:, :0], None, lengths=[])
    assert y.shape == (T, 0, e.dy.shape[2])
    assert [s.shape for s in parts(end)] == [(1, 0, shape[2]) for shape in state_shapes(layer, B)]


# What comes back


@pytest.mark.parametrize("name", CELLS)
def test_y_of_forward_is_read_only_and_the_rest_is_not(name: str) -> None:
    e = draw(CELLS[name], build(name), T, B)
    y, state, tape = e.train()
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0
    for a in (*parts(state), e.infer()[0], *e.gradients().values()):
        a[...] = 0
    unbatched = e.layer.forward(e.x[:, 0])[0]
    assert not unbatched.flags.writeable
    assert tape.nbytes > 0
    assert repr(tape).startswith(f"<Tape of {type(e.layer).__name__}, T=4, B=3, ")
    with pytest.raises(AttributeError):
        tape.version = 7


@pytest.mark.parametrize("name", CELLS)
def test_backward_without_gradients_is_zero_and_names_follow_the_parameters(name: str) -> None:
    e = draw(CELLS[name], build(name), T, B)
    tape = e.train()[2]
    grads = e.layer.backward(tape, None)
    assert list(grads.parameters) == list(e.layer.parameters())
    assert grads.hidden is None
    for g in (grads.x, *parts(grads.state), *grads.parameters.values()):
        np.testing.assert_array_equal(g, 0)
    assert repr(grads).startswith("Gradients(x=(4, 3, 5), parameters={weight_ih_l0, weight_hh_l0, ")


def test_results_of_an_lstm_are_named() -> None:
    layer = build("lstm")
    x = np.zeros((T, B, I), np.float32)
    y, state, tape = layer.forward(x)
    for found in (
        state,
        layer(x)[1],
        layer.freeze()(x)[1],
        layer.freeze().step(x[0])[1],
        layer.backward(tape, y).state,
    ):
        assert type(found) is fastrnn.LSTMState
    assert type(layer.freeze().step(x[0, 0])[1]) is fastrnn.LSTMState


@pytest.mark.parametrize("name", CELLS)
def test_step_writes_where_it_is_told(name: str) -> None:
    e = draw(CELLS[name], build(name), T, B)
    fast = e.layer.freeze()
    y, end = fast.step(e.x[0], whole(e.state))
    out = np.full_like(y, np.nan)
    state_out = whole(tuple(np.full_like(s, np.nan) for s in e.state))
    got, new = fast.step(e.x[0], whole(e.state), out=out, state_out=state_out)
    assert got is out
    assert all(a is b for a, b in zip(parts(new), parts(state_out), strict=True))
    assert_same_bits(out, y)
    assert_same_bits(state_out, end)

    in_place = whole(tuple(s.copy() for s in e.state))
    got, new = fast.step(e.x[0], in_place, state_out=in_place)
    assert_same_bits(got, y)
    assert_same_bits(in_place, end)
    _, fresh = fast.step(e.x[0], in_place)
    assert not any(np.may_share_memory(a, b) for a, b in zip(parts(fresh), parts(in_place), strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_step_without_a_batch_axis(name: str) -> None:
    e = draw(CELLS[name], build(name, num_layers=2), T, 1)
    fast = e.layer.freeze()
    y, end = fast.step(e.x[0], whole(e.state))
    state = whole(tuple(s[:, 0].copy() for s in e.state))
    got, new = fast.step(e.x[0, 0], state)
    assert_same_bits(got, y[0])
    assert_same_bits(new, tuple(s[:, 0] for s in parts(end)))
    out = np.empty_like(got)
    assert fast.step(e.x[0, 0], state, out=out, state_out=state)[0] is out
    assert_same_bits(out, y[0])
    assert_same_bits(state, tuple(s[:, 0] for s in parts(end)))


def test_step_takes_a_plain_pair_or_a_list() -> None:
    e = draw(CELLS["lstm"], build("lstm"), T, B)
    fast = e.layer.freeze()
    expected = fast.step(e.x[0], whole(e.state))
    for pair in (tuple(e.state), list(e.state)):
        y, end = fast.step(e.x[0], pair)
        assert_same_bits(y, expected[0])
        assert_same_bits(end, expected[1])
    fresh = [np.empty_like(s) for s in e.state]
    fast.step(e.x[0], tuple(e.state), state_out=fresh)
    assert_same_bits(tuple(fresh), expected[1])
    zeros = np.zeros_like(e.state[1])
    assert_same_bits(fast.step(e.x[0], (e.state[0], None))[0], fast.step(e.x[0], (e.state[0], zeros))[0])


# Parameters and tapes


@pytest.mark.parametrize("name", CELLS)
def test_parameters_are_live_and_frozen_layers_are_not(name: str) -> None:
    e = draw(CELLS[name], build(name), T, B)
    fast = e.layer.freeze()
    before = e.infer()[0]
    e.layer.parameters()["weight_ih_l0"][...] *= 2
    assert not np.array_equal(e.infer()[0], before)
    np.testing.assert_allclose(fast(e.x, whole(e.state))[0], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.__setitem__("weight_ih_l0", p["weight_ih_l0"] * 2),
        lambda p: p.__delitem__("weight_ih_l0"),
        lambda p: p.update(weight_ih_l0=0),
        lambda p: p.pop("weight_ih_l0"),
        lambda p: p.popitem(),
        lambda p: p.setdefault("more", 0),
        lambda p: p.__ior__({"more": 0}),
        lambda p: p.clear(),
    ],
)
def test_the_entries_of_parameters_are_fixed(change: Any) -> None:
    parameters = build("gru").parameters()
    names = list(parameters)
    with pytest.raises(
        TypeError, match=r"edit in place with parameters\[name\]\[...\] = value, or use load_state_dict"
    ):
        change(parameters)
    assert list(parameters) == names


def test_the_names_and_shapes_of_pytorch() -> None:
    layer = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    assert {name: p.shape for name, p in layer.parameters().items()} == {
        f"{part}_l{k}{suffix}": shape
        for k, size in enumerate((3, 4))
        for suffix in ("", "_reverse")
        for part, shape in {
            "weight_ih": (16, size),
            "weight_hh": (16, 2),
            "bias_ih": (16,),
            "bias_hh": (16,),
            "weight_hr": (2, 4),
        }.items()
    }
    assert list(fastrnn.GRU(3, 4, bias=False).parameters()) == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("name", CELLS)
def test_backward_may_run_again_with_the_same_bits(name: str) -> None:
    e = draw(CELLS[name], build(name), T, B)
    tape = e.train()[2]
    first, second = (e.layer.backward(tape, e.dy, whole(e.dstate)) for _ in range(2))
    assert_same_bits(first.x, second.x)
    assert_same_bits(first.parameters, second.parameters)


# Descriptions


def test_repr_shows_what_is_not_usual_and_counts() -> None:
    assert repr(fastrnn.GRU(3, 4)) == (
        "GRU(input_size=3, hidden_size=4, reset_after=True, dtype='float32')  # 108 parameters"
    )
    layer = fastrnn.LSTM(64, 256, num_layers=2, bidirectional=True, dropout=0.5, proj_size=32, dtype=np.float64)
    text = repr(layer)
    assert text == (
        "LSTM(input_size=64, hidden_size=256, num_layers=2, bidirectional=True, dropout=0.5, proj_size=32, "
        "dtype='float64')  # 434,176 parameters"
    )
    assert repr(eval(text, vars(fastrnn))) == text
    assert repr(fastrnn.RNN(1, 2).freeze()) == "RNN(input_size=1).freeze()"


def test_options_are_attributes() -> None:
    layer = fastrnn.LSTM(np.int64(3), 4, 2, dropout=0, batch_first=True, proj_size=2)
    assert (layer.input_size, layer.hidden_size, layer.num_layers, layer.proj_size) == (3, 4, 2, 2)
    assert (layer.bias, layer.batch_first, layer.bidirectional, layer.dropout) == (True, True, False, 0.0)
    assert layer.dtype == np.float32
    assert fastrnn.GRU(1, 2).reset_after
    assert fastrnn.RNN(1, 2).nonlinearity == "tanh"
    assert fastrnn.RNN(1, 2).proj_size == 0
    assert layer.isa in _core.isas()


def test_estimate_memory() -> None:
    layer = fastrnn.LSTM(8, 16)
    training, inference = layer.estimate_memory(10, 3), layer.estimate_memory(10, 3, training=False)
    assert training.tape > 0
    assert inference.tape == 0
    assert training.outputs >= 10 * 3 * 16 * 4
    assert training.parameters == sum(p.nbytes for p in layer.parameters().values())
    assert training.total == sum(training)
    assert str(training).startswith(f"{readable(training.total)} (outputs ")
    assert [readable(n) for n in (0, 1023, 1536, 5 * 2**30)] == ["0 bytes", "1023 bytes", "1.5 KiB", "5 GiB"]


def test_estimate_memory_of_lengths_counts_tokens() -> None:
    """One long sequence among many short ones takes no more tape and scratch than its tokens."""
    layer = fastrnn.LSTM(8, 16, 2, bidirectional=True)
    lengths = [2000] + [3] * 100
    ragged, full = layer.estimate_memory(2000, 101, lengths=lengths), layer.estimate_memory(2000, 101)
    assert ragged.outputs == full.outputs
    assert 0.9 < ragged.tape / full.tape * (2000 * 101) / sum(lengths) < 1.1
    assert ragged.scratch < full.scratch / 20
    x = np.zeros((2000, 101, 8), np.float32)
    assert layer.forward(x, lengths=lengths)[2].core.nbytes == ragged.tape
    with pytest.raises(ValueError, match=r"estimate_memory got lengths\[1\] = 2001"):
        layer.estimate_memory(2000, 2, lengths=[1, 2001])
    with pytest.raises(fastrnn.ShapeError, match="estimate_memory got lengths"):
        layer.estimate_memory(2000, 2, lengths=[1, 2, 3])


# Importing


def test_importing_loads_nothing_heavy() -> None:
    """numpy.random alone costs about as much as the rest of fastrnn."""
    heavy = ["numpy.random", "json", "zipfile", "argparse", "tempfile", "fastrnn.cli", "torch"]
    code = f"import sys, fastrnn; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_bytes_of_tapes_and_frozen_layers_do_not_depend_on_earlier_calls() -> None:
    small, large = fastrnn.LSTM(2, 2), fastrnn.LSTM(64, 64)

    def sizes() -> tuple[int, int]:
        return small.freeze().nbytes, small.forward(np.zeros((3, 2, 2), np.float32))[2].nbytes

    first = sizes()
    large(np.zeros((100, 64, 64), np.float32))
    assert sizes() == first

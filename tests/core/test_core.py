"""What the core offers to backends beside arrays (T,B,n): packed sequences, room for tapes, memory lent by capsule."""

from typing import Any

import numpy as np
import pytest

import fastrnn
import reference
from fastrnn import _core
from fastrnn.options import General
from fastrnn.spec import describe
from support import CELLS as TESTED
from support import Array, assert_same_bits

I, H, L, THREADS = 5, 9, 2, 2
LENGTHS = np.array([6, 4, 4, 1, 0])
B, T = len(LENGTHS), 6
RUNS = np.arange(T)[:, None] < LENGTHS  # (T,B)
CELLS = {cell: describe(cell).gates for cell in ("rnn_tanh", "gru", "gru_original", "lstm")}
every_cell = pytest.mark.parametrize("cell", CELLS)


def test_every_cell_of_the_core_is_tested() -> None:
    names = {
        cell.textbook.replace("lstm", "lstm_projected") if cell.projected else cell.textbook for cell in TESTED.values()
    }
    assert names == {*_core.cells()}
    assert {cell.textbook for cell in TESTED.values()} == {*reference.CELLS}


class Call:
    """A network of two layers in two directions, and random arguments for it."""

    def __init__(self, cell: str) -> None:
        rng = np.random.default_rng(0)

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32)

        self.network = _core.Network(cell, "float32", I, H, 0, L, True, True)
        rows = CELLS[cell] * H
        self.parameters = [
            normal(*shape) for width in (I, I, 2 * H, 2 * H) for shape in ((rows, width), (rows, H), (rows,), (rows,))
        ]
        self.x, self.dy = normal(T, B, I), normal(T, B, 2 * H)
        self.states = [normal(2 * L, B, H) for _ in describe(cell).states]
        self.masks = rng.random((L - 1, T, B, 2 * H)) < 0.5
        self.packed_masks = np.ascontiguousarray(self.masks[:, RUNS])

    def forward(self, x: Any, room: Any = None, lengths: Any = LENGTHS, training: bool = True) -> Any:
        masks = self.packed_masks if np.ndim(x) == 2 else self.masks
        given = (self.states, lengths, None, training, False, THREADS)
        return self.network.forward(self.parameters, x, *given, drawn=(masks, 2.0, None), room=room)

    def backward(self, tape: _core.Tape, dy: Any) -> Any:
        return self.network.backward(self.parameters, tape, dy, None, True, THREADS)

    def room(self) -> Array:
        each, more = self.network.tape_room(True)
        return np.empty(each * T * B + more, np.uint8)


@every_cell
class TestPackedSequences:
    def test_the_bits_of_padded_ones(self, cell: str) -> None:
        call = Call(cell)
        y, ends, tape = call.forward(call.x)
        py, packed_ends, packed_tape = call.forward(np.ascontiguousarray(call.x[RUNS]))
        assert_same_bits(py, y[RUNS])
        assert_same_bits(packed_ends, ends)
        dx, begins, parameters, hidden = call.backward(tape, call.dy)
        pdx, packed_begins, packed_parameters, packed_hidden = call.backward(packed_tape, call.dy[RUNS])
        assert_same_bits(pdx, dx[RUNS])
        assert_same_bits(packed_hidden, hidden[RUNS])
        for a, b in zip([*packed_begins, *packed_parameters], [*begins, *parameters], strict=True):
            assert_same_bits(a, b)

    def test_rows_of_a_wider_array(self, cell: str) -> None:
        call = Call(cell)
        wide = np.zeros((RUNS.sum(), I + 3), np.float32)
        wide[:, :I] = call.x[RUNS]
        assert_same_bits(call.forward(wide[:, :I])[0], call.forward(call.x)[0][RUNS])

    def test_nothing_at_all(self, cell: str) -> None:
        network = Call(cell).network
        empty = np.zeros((0, I), np.float32)
        given = (None, np.zeros(0, np.int64), None, True, False, 1)
        y, (hn, *_), tape = network.forward(Call(cell).parameters, empty, *given)
        assert y.shape == (0, 2 * H)
        assert hn.shape == (2 * L, 0, H)
        assert network.backward(Call(cell).parameters, tape, None, None, False, 1)[0].shape == (0, I)

    @pytest.mark.parametrize(
        ("rows", "lengths", "words"),
        [
            (15, None, "need their lengths"),
            (15, [6.0, 4, 4, 1, 0], "need their lengths"),
            (15, [1, 4, 4, 6, 0], "falling"),
            (15, [6, 4, 4, 1, -1], "falling"),
            (14, [6, 4, 4, 1, 0], r"shape \(14, 5\) but must have \(15, 5\)"),
            (15, [2**62, 4, 4, 1, 0], "longer than x"),
        ],
        ids=str,
    )
    def test_bad_lengths(self, cell: str, rows: int, lengths: Any, words: str) -> None:
        given = None if lengths is None else np.array(lengths)
        with pytest.raises((ValueError, TypeError), match=words):
            Call(cell).forward(np.zeros((rows, I), np.float32), None, given)


@every_cell
class TestRoomForTapes:
    def test_the_same_bits(self, cell: str) -> None:
        call = Call(cell)
        y, _, own = call.forward(call.x)
        room = call.room()
        again, _, lodged = call.forward(call.x, room)
        assert_same_bits(again, y)
        assert lodged.nbytes == room.nbytes >= own.nbytes
        kept: Any = {"batch_first": False, "room": room, "drawn": (call.masks, 2.0, None)}
        rebuilt = call.network.tape(call.x, y, call.states, LENGTHS, None, **kept)
        wanted = call.backward(own, call.dy)
        for tape in (lodged, rebuilt):
            found = call.backward(tape, call.dy)
            for a, b in zip([found[0], *found[1], *found[2]], [wanted[0], *wanted[1], *wanted[2]], strict=True):
                assert_same_bits(a, b)

    def test_too_little(self, cell: str) -> None:
        call = Call(cell)
        read_only = call.room()
        read_only.setflags(write=False)
        for room in (call.room()[:1000], call.room()[::2], read_only, call.room().astype(np.int8), 7):
            with pytest.raises(ValueError, match="room must be a writable uint8 array of at least"):
                call.forward(call.x, room)

    def test_a_tape_of_other_arrays(self, cell: str) -> None:
        call = Call(cell)
        room = call.room()
        y, _, tape = call.forward(call.x, room)
        kept: Any = {"batch_first": False, "room": room, "drawn": (call.masks, 2.0, None)}
        with pytest.raises(ValueError, match="room must be"):  # without lengths every step counts
            call.network.tape(np.zeros((99, B, I), np.float32), y, call.states, None, None, **kept)
        with pytest.raises(ValueError, match="y has shape"):
            call.backward(call.network.tape(call.x, y[1:], call.states, LENGTHS, None, **kept), call.dy)
        call.x.resize((B, T, I), refcheck=False)
        with pytest.raises(ValueError, match=r"lengths has shape|another shape"):
            call.backward(tape, call.dy)


class TestCapsules:
    def test_memory_of_others(self) -> None:
        call = Call("lstm")
        wanted = call.forward(call.x, None)[0]
        lent = [p.__dlpack__() for p in call.parameters]
        capsules = [a.__dlpack__() for a in (call.x.swapaxes(0, 1).copy().swapaxes(0, 1), *call.states, LENGTHS)]
        x, *states, lengths = capsules
        masks = call.masks.__dlpack__()
        y, _, _ = call.network.forward(lent, x, states, lengths, None, True, False, 1, drawn=(masks, 2.0, None))
        assert_same_bits(y, wanted)

    def test_a_wrong_number_of_states(self) -> None:
        call = Call("lstm")
        call.states = call.states[:1]
        with pytest.raises(ValueError, match="there must be 2 states, or none"):
            call.forward(call.x)

    def test_what_is_no_memory_to_read(self) -> None:
        call = Call("lstm")
        used = call.x.__dlpack__()
        np.from_dlpack(Lender(used))
        with pytest.raises(ValueError, match="PyCapsule_GetPointer called with incorrect name"):
            call.forward(used)
        with pytest.raises(TypeError, match="must hold real numbers that NumPy has, in the CPU's memory"):
            call.forward(np.zeros((T, B, I), complex).__dlpack__())
        with pytest.raises(TypeError, match="x must be an aligned array of float32"):
            call.forward(np.zeros((T, B, I)).__dlpack__())


class Lender:
    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


# ---- what the core must be told


@pytest.mark.parametrize("cell", [name for name in _core.cells() if name.endswith("_general")])
def test_general_cells_are_told_their_activations(cell: str) -> None:
    with pytest.raises(ValueError, match="needs to be told its activations"):
        _core.Network(cell, "float32", 2, 3, 0, 1, False, True)


@pytest.mark.parametrize("cell", [name for name in _core.cells() if "_projected" in name])
def test_projected_cells_are_told_their_size(cell: str) -> None:
    chosen = General(activations=[[("sigmoid", 0, 0), ("tanh", 0, 0), ("tanh", 0, 0)]])
    with pytest.raises(ValueError, match="needs its proj_size"):
        _core.Network(cell, "float32", 2, 3, 0, 1, False, True, general=chosen)


@pytest.mark.parametrize(
    "general",
    [7, (), General(clip=None, activations=[[("tanh", 0, 0)]]), General(activations="ab"), General(zoneout=(0.0,))],  # type: ignore[arg-type]
    ids=str,
)
def test_options_that_are_none(general: Any) -> None:
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        _core.Network("rnn_tanh", "float32", 2, 3, 0, 1, False, True, general=general)


@pytest.mark.parametrize(
    "drawn", [5, (None, None, None), (None, 1.0), (None, 1.0, 7), (None, 1.0, (None, 1, None))], ids=str
)
def test_what_is_no_noise(drawn: Any) -> None:
    layer = fastrnn.GRU(3, 8, recurrent_dropout=0.5)
    given = (None, None, None, True, False, 1)
    with pytest.raises(TypeError, match=r"drawn must be \(masks, scale, noise\)"):
        layer._network.forward(layer._arrays(), np.zeros((2, 1, 3), np.float32), *given, drawn=drawn)


def test_a_tape_holds_the_masks_themselves() -> None:
    layer = fastrnn.GRU(3, 8, recurrent_dropout=0.5)
    x, dy = np.ones((2, 4, 3), np.float32), np.ones((2, 4, 8), np.float32)
    noise = [np.random.default_rng(0).random((1, 4, 8)) < 0.5, False, 2.0, None, None]
    given = (None, None, None, True, False, 1)
    _, _, tape = layer._network.forward(layer._arrays(), x, *given, drawn=(None, 1.0, noise))
    wanted = layer._network.backward(layer._arrays(), tape, dy, None, False, 1)
    noise.clear()
    assert_same_bits(layer._network.backward(layer._arrays(), tape, dy, None, False, 1)[0], wanted[0])

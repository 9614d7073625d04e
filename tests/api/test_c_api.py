"""The C functions of libfastrnn, called as a program in C would: against Python's layers, to the bit."""

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support import BAD_ARGUMENT, BAD_MODEL, NO_FILE, OK, UNSUPPORTED, WEIGHTS, Model, Options, at, run

import fastrnn
from support import CELLS, assert_same_bits

I, H, T, B = 3, 9, 7, 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_runs_and_steps_to_the_bit(c: Any, opened: Any, name: str, dtype: str) -> None:
    layer = CELLS[name].build(I, H, num_layers=2, dtype=dtype)
    model = opened(layer)
    assert c.model_dtype(model.handle) == (dtype == "float64")
    assert (c.input_size(model.handle), c.is_causal(model.handle), c.takes_ids(model.handle)) == (I, 1, 0)
    assert c.model_isa(model.handle).decode() == layer.isa
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(dtype)
    expected, end = layer.freeze()(x)
    assert c.output_size(model.handle) == expected.shape[-1]
    whole, pieces, single = model.stream(B, T), model.stream(B, 3, shift=5), model.stream(B, 1, shift=64)
    assert_same_bits(run(c, whole, x, np.empty_like(expected)), expected)
    found = run(c, pieces, x, np.empty_like(expected))
    np.testing.assert_allclose(found, expected, rtol=2e-5 if dtype == "float32" else 1e-12, atol=1e-7)
    y, state = np.empty_like(expected[0]), None
    frozen = layer.freeze()
    for t in range(T):
        wanted, state = frozen.step(x[t], state)
        assert c.step(single, at(np.ascontiguousarray(x[t])), at(y)) == OK
        assert_same_bits(y, wanted)
    states = np.empty(c.state_size(whole), dtype)
    assert c.get_state(whole, at(states)) == OK
    assert_same_bits(states, np.concatenate([s.reshape(-1) for s in (end if isinstance(end, tuple) else (end,))]))


@pytest.mark.parametrize(
    "layer",
    [
        fastrnn.LSTM(I, H, zoneout=(0.1, 0.4), rng=0),
        fastrnn.LSTM(I, H, zoneout=0.3, proj_size=4, rng=0),
        fastrnn.GRU(I, H, zoneout=0.3, reset_after=False, rng=0),
        fastrnn.RNN(I, H, nonlinearity="relu", recurrent_dropout=0.5, rng=0),
    ],
    ids=repr,
)
def test_zoneout_takes_its_expectation_and_nothing_is_dropped(c: Any, opened: Any, layer: Any) -> None:
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    expected = layer.freeze()(x)[0]
    assert_same_bits(run(c, opened(layer).stream(B, T), x, np.empty_like(expected)), expected)


def test_a_stream_goes_on_is_reset_and_is_set(c: Any, opened: Any) -> None:
    layer = fastrnn.LSTM(I, H, num_layers=2, rng=0)
    stream = opened(layer).stream(B, 2)
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    first = run(c, stream, x, np.empty((T, B, H), np.float32)).copy()
    state = np.empty(c.state_size(stream), np.float32)
    c.get_state(stream, at(state))
    second = run(c, stream, x, np.empty((T, B, H), np.float32)).copy()
    assert not np.array_equal(first, second)
    assert c.reset(stream) == OK
    assert_same_bits(run(c, stream, x, np.empty_like(first)), first)
    assert c.set_state(stream, at(state)) == OK
    assert_same_bits(run(c, stream, x, np.empty_like(first)), second)


def test_both_directions_run_over_whole_sequences(c: Any, opened: Any) -> None:
    layer = fastrnn.GRU(I, H, num_layers=2, bidirectional=True, rng=0)
    model = opened(layer)
    assert not c.is_causal(model.handle)
    stream, x = model.stream(B, T), np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    y = np.empty((T, B, 2 * H), np.float32)
    assert_same_bits(run(c, stream, x, y), layer.freeze()(x)[0])
    c.reset(stream)
    assert_same_bits(run(c, stream, np.ascontiguousarray(x[:3]), y[:3]), layer.freeze()(x[:3])[0])
    assert c.step(stream, at(x), at(y)) == UNSUPPORTED
    assert b"backwards in time" in c.message()
    assert c.run(stream, at(np.concatenate([x, x])), 2 * T, at(np.empty((2 * T, B, 2 * H), np.float32))) == UNSUPPORTED


def test_a_model_of_several_parts(c: Any, opened: Any) -> None:
    parts = {
        "embedding": fastrnn.Embedding(11, 5, rng=0),
        "lstm": fastrnn.LSTM(5, H, rng=1),
        "middle": fastrnn.Linear(H, 6, rng=2),
        "gru": fastrnn.GRU(6, 4, num_layers=2, rng=3),
        "head": fastrnn.Linear(4, 11, bias=False, rng=4),
    }
    model = opened(parts)
    assert (c.takes_ids(model.handle), c.input_size(model.handle), c.output_size(model.handle)) == (1, 11, 11)
    ids = np.random.default_rng(0).integers(0, 11, (T, B))
    x = parts["lstm"](parts["embedding"](ids))[0]
    wanted = parts["head"](parts["gru"](parts["middle"](x))[0])
    stream = model.stream(B, 3)
    y = run(c, stream, ids, np.empty((T, B, 11), np.float32))
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-6)
    c.reset(stream)
    for t in range(T):
        assert c.step(stream, at(np.ascontiguousarray(ids[t])), at(y[t])) == OK
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("ih", "hh"), [("int8", "int8"), ("bfloat16", "bfloat16"), ("int8", "bfloat16")])
@pytest.mark.parametrize("name", CELLS)
def test_weights_in_fewer_bits(c: Any, opened: Any, name: str, ih: str, hh: str) -> None:
    layer = CELLS[name].build(I, H, num_layers=2)
    model = opened(layer, Options(WEIGHTS[ih], WEIGHTS[hh]))
    frozen = layer.freeze(weights={"ih": ih, "hh": hh})
    x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
    expected, _ = frozen(x)
    assert_same_bits(run(c, model.stream(B, T), x, np.empty_like(expected)), expected)
    assert not np.array_equal(expected, layer.freeze()(x)[0])
    single, y, state = model.stream(B, 1), np.empty_like(expected[0]), None
    for t in range(T):
        wanted, state = frozen.step(x[t], state)
        assert c.step(single, at(np.ascontiguousarray(x[t])), at(y)) == OK
        assert_same_bits(y, wanted)


class TestFewerBitsRefused:
    def refusal(self, c: Any, folder: Path, layer: Any, *options: int) -> tuple[int, str]:
        out = ctypes.c_void_p()
        fastrnn.save(folder / "a.safetensors", layer)
        status = c.open_file(bytes(folder / "a.safetensors"), ctypes.byref(Options(*options)), ctypes.byref(out))
        assert not out.value
        return status, c.message().decode()

    def test_words(self, c: Any, tmp_path: Path) -> None:
        for words in ((0, 2), (1, 0), (1, 3), (-1, 1)):
            status, message = self.refusal(c, tmp_path, fastrnn.GRU(I, H), *words)
            assert status == BAD_ARGUMENT
            assert "for both ih and hh" in message

    def test_float64(self, c: Any, tmp_path: Path) -> None:
        status, message = self.refusal(c, tmp_path, fastrnn.GRU(I, H, dtype="float64"), 2, 2)
        assert status == UNSUPPORTED
        assert "the model is of float64" in message

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "int8"), (np.inf, "bfloat16"), (-3.4e38, "bfloat16")])
    def test_numbers_that_are_not_finite(self, c: Any, tmp_path: Path, value: float, word: str) -> None:
        layer = fastrnn.LSTM(I, H)
        layer.parameters()["weight_hh_l0"][3, 2] = value
        status, message = self.refusal(c, tmp_path, layer, WEIGHTS[word], WEIGHTS[word])
        assert status == UNSUPPORTED
        assert message == f"weight_hh_l0 has numbers that are not finite in {word}"

    def test_more_columns_than_int8_takes(self, c: Any, tmp_path: Path) -> None:
        layer = fastrnn.RNN(131073, 1)
        status, message = self.refusal(c, tmp_path, layer, WEIGHTS["int8"], WEIGHTS["bfloat16"])
        assert status == UNSUPPORTED
        assert message == "weight_ih_l0 has 131073 columns, and int8 takes at most 131072"
        c.close(Model(c, tmp_path / "a.safetensors", Options(1, 2)).handle)


class TestRefused:
    def test_null_pointers_and_sizes(self, c: Any, opened: Any) -> None:
        model = opened(fastrnn.GRU(I, H))
        handle, out = model.handle, ctypes.c_void_p()
        assert c.open(None, 3, None, ctypes.byref(out)) == BAD_ARGUMENT
        assert c.open_file(b"/nowhere/at/all", None, ctypes.byref(out)) == NO_FILE
        assert b"/nowhere/at/all" in c.message()
        assert c.open_file(b"/tmp", None, ctypes.byref(out)) == NO_FILE
        assert [c.stream_bytes(handle, *sizes) for sizes in ((0, 1), (1, 0), (-1, 1), (1 << 40, 1 << 40))] == [0] * 4
        assert b"batch and steps must be positive" in c.message()
        block = np.empty(c.stream_bytes(handle, 1, 1), np.uint8)
        assert c.prepare(handle, 1, 1, at(block), len(block) - 1, ctypes.byref(out)) == BAD_ARGUMENT
        assert c.prepare(handle, 1, 1, None, len(block), ctypes.byref(out)) == BAD_ARGUMENT
        stream = model.stream(1, 1)
        assert c.step(stream, None, at(block)) == BAD_ARGUMENT
        assert c.run(stream, at(block), -1, at(block)) == BAD_ARGUMENT
        assert c.run(stream, None, 0, None) == OK
        c.close(None)

    @pytest.mark.parametrize("size", [0, 1, 7, 8, 60, -1])
    def test_files_cut_short(self, c: Any, tmp_path: Path, size: int) -> None:
        path = tmp_path / "a.safetensors"
        fastrnn.save(path, fastrnn.GRU(I, H))
        out = ctypes.c_void_p()
        content = path.read_bytes()[:size]
        assert c.open(content, len(content), None, ctypes.byref(out)) == BAD_MODEL
        assert not out.value

    def test_files_that_lie(self, c: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        fastrnn.save(path, fastrnn.LSTM(I, H, activations=["sigmoid", ("elu", 0.5), "tanh"]))
        content, out = path.read_bytes(), ctypes.c_void_p()
        for old, new, status, words in (
            (b'\\"hidden_size\\":9', b'\\"hidden_size\\":8', BAD_MODEL, "must be F32 of shape (32, 3)"),
            (b'\\"hidden_size\\":9', b'\\"hidden_size\\":0', BAD_MODEL, "impossible sizes"),
            (b'\\"elu\\"', b'\\"elx\\"', BAD_MODEL, "activation 'elx' is not known"),
            (b'\\"format\\":1', b'\\"format\\":2', UNSUPPORTED, "a newer fastrnn"),
            (b'\\"LSTM\\"', b'\\"LSTX\\"', OK, ""),  # the cell decides
            (b'\\"cell\\":\\"lstm\\"', b'\\"cell\\":\\"lstm_projected\\"', UNSUPPORTED, "the cell 'lstm_projected'"),
            (b'\\"cell\\":\\"lstm\\"', b'\\"cell\\":\\"lstm_general\\"', UNSUPPORTED, "the cell 'lstm_general'"),
            (b'"data_offsets":[0,', b'"data_offsets":[8,', BAD_MODEL, "does not lie in it"),
            (b"F32", b"I64", BAD_MODEL, "does not lie in it"),
            (b'"fastrnn"', b'"fastrno"', UNSUPPORTED, "does not say what layers it holds"),
        ):
            assert old in content, old
            changed = content.replace(old, new, 1)
            changed = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + len(new) - len(old)) + changed[8:]
            assert c.open(changed, len(changed), None, ctypes.byref(out)) == status, (old, c.message())
            assert status == OK or words in c.message().decode()
            c.close(out if status == OK else None)

    def test_layers_that_share_an_array_and_arrays_of_no_layer(self, c: Any, tmp_path: Path) -> None:
        path, out = tmp_path / "a.safetensors", ctypes.c_void_p()
        fastrnn.save(path, [fastrnn.Linear(3, 3), fastrnn.Linear(3, 3)])
        content = path.read_bytes()
        twice = content.replace(b'\\"name\\":\\"1\\"', b'\\"name\\":\\"0\\"', 1)
        assert c.open(twice, len(twice), None, ctypes.byref(out)) == BAD_MODEL
        assert b"0.weight is missing, or used twice" in c.message()
        more = content.replace(b'"1.bias"', b'"1.bias_"', 1)
        more = struct.pack("<Q", struct.unpack("<Q", content[:8])[0] + 1) + more[8:]
        assert c.open(more, len(more), None, ctypes.byref(out)) == BAD_MODEL

    def test_headers_of_many_names_take_no_quadratic_time(self, c: Any) -> None:
        header = b"{" + b",".join(b'"%d":[]' % k for k in range(200_000)) + b"}"
        content, out = struct.pack("<Q", len(header)) + header, ctypes.c_void_p()
        assert c.open(content, len(content), None, ctypes.byref(out)) == BAD_MODEL
        header = b'{"a":[' + b"0," * 3_000_000 + b"0]}"
        content = struct.pack("<Q", len(header)) + header
        assert c.open(content, len(content), None, ctypes.byref(out)) == BAD_MODEL
        assert b"too many values" in c.message()

    def test_the_environment_is_not_the_file(self, tmp_path: Path) -> None:
        fastrnn.save(tmp_path / "a.safetensors", fastrnn.GRU(I, H))
        program = (
            f"import ctypes; c = ctypes.CDLL({fastrnn.get_library()!r}); out = ctypes.c_void_p();"
            "c.fastrnn_message.restype = ctypes.c_char_p;"
            "print(c.fastrnn_open_file(b'a.safetensors', None, ctypes.byref(out)), c.fastrnn_message())"
        )
        environment = {**os.environ, "FASTRNN_ISA": "nope"}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True
        )
        assert done.stdout.startswith(f"{BAD_ARGUMENT} b\"the environment sets FASTRNN_ISA to 'nope'"), done

    def test_bytes_changed_at_random(self, c: Any, tmp_path: Path) -> None:
        """Opened or refused, and what is opened runs."""
        path = tmp_path / "a.safetensors"
        fastrnn.save(path, [fastrnn.LSTM(I, 4, peephole=True, clip=2.0, zoneout=(0.1, 0.2)), fastrnn.Linear(4, 2)])
        content, rng = path.read_bytes(), np.random.default_rng(0)
        (header,) = struct.unpack("<Q", content[:8])
        opened = 0
        for _ in range(2000):
            changed = bytearray(content)
            for _ in range(int(rng.integers(1, 4))):
                changed[int(rng.integers(8 + header))] = int(rng.integers(256))
            out = ctypes.c_void_p()
            if c.open(bytes(changed), len(changed), None, ctypes.byref(out)) != OK:
                assert c.message()
                continue
            opened += 1
            width, height = c.input_size(out), c.output_size(out)
            block = np.empty(c.stream_bytes(out, 1, 1), np.uint8)
            stream = ctypes.c_void_p()
            assert c.prepare(out, 1, 1, at(block), len(block), ctypes.byref(stream)) == OK
            assert c.step(stream, at(np.zeros(8 * width)), at(np.zeros(8 * height))) == OK
            c.close(out)
        assert opened < 2000

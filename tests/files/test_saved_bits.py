"""Frozen layers with weights in fewer bits, saved to safetensors and loaded as what they are."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.files import inspecting
from fastrnn.frozen import Frozen, pack
from support import CELLS, assert_same_bits, draw, whole

WORDS: list[Any] = ["int8", "bfloat16", {"ih": "int8", "hh": "bfloat16"}]


def change(path: Path, edit: Any) -> None:
    """Rewrite a file of this format with another header and other numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    edit(header, body)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))


@pytest.mark.parametrize("weights", WORDS)
@pytest.mark.parametrize("name", CELLS)
def test_the_same_bits_come_back(name: str, weights: Any, tmp_path: Path) -> None:
    layer = CELLS[name].build(21, 35, num_layers=2, bidirectional=True)
    layer.parameters()["weight_hh_l0"][3] = 0  # a row whose scale is zero
    layer.parameters()["weight_ih_l1"][2] = 1e-41
    e = draw(CELLS[name], layer, 7, 5, lengths=True)
    fast = layer.freeze(weights)
    fastrnn.save(tmp_path / "a.safetensors", fast)
    again = fastrnn.load(tmp_path / "a.safetensors")
    assert isinstance(again, Frozen)
    assert repr(again) == repr(fast)
    for run in (again, pickle.loads(pickle.dumps(again))):
        y, end = run(e.x, whole(e.state), **e.cuts)
        right, right_end = fast(e.x, whole(e.state), **e.cuts)
        assert_same_bits(y, right)
        assert_same_bits(end, right_end)
    fastrnn.save(tmp_path / "b.safetensors", again)  # and once more
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_file_is_a_quarter_or_a_half(tmp_path: Path) -> None:
    lstm = fastrnn.LSTM(256, 256, rng=0)
    sizes = {}
    for word in (None, "int8", "bfloat16"):
        path = tmp_path / f"{word}.safetensors"
        fastrnn.save(path, lstm.freeze(word))
        sizes[word] = os.path.getsize(path)
    assert sizes["int8"] < 0.265 * sizes[None]
    assert sizes["bfloat16"] < 0.51 * sizes[None]
    assert type(fastrnn.load(tmp_path / "None.safetensors")) is fastrnn.LSTM  # frozen, without weights=


def test_others_read_the_integers_and_their_scales(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    gru = fastrnn.GRU(9, 11, rng=0)
    layers = {"a": gru.freeze("int8"), "b": fastrnn.Linear(11, 3, rng=0), "c": gru}
    fastrnn.save(tmp_path / "all.safetensors", layers)
    found = safetensors.load_file(tmp_path / "all.safetensors")
    assert found["a.weight_ih_l0"].dtype == np.int8
    weights = found["a.weight_ih_l0"] * found["a.weight_ih_l0_scale"][:, None]
    right = gru.parameters()["weight_ih_l0"]
    assert np.abs(weights - right).max() <= np.abs(right).max() / 253
    loaded = fastrnn.load(tmp_path / "all.safetensors")
    x = np.random.default_rng(0).standard_normal((5, 2, 9), dtype=np.float32)
    assert_same_bits(loaded["a"](x)[0], layers["a"](x)[0])
    assert type(loaded["c"]) is fastrnn.GRU
    assert_same_bits(fastrnn.load(tmp_path / "all.safetensors", "a")(x)[0], loaded["a"](x)[0])


def test_scales_that_were_given_are_saved(tmp_path: Path) -> None:
    rnn = fastrnn.RNN(4, 5, rng=0)
    scales = {name: np.full(5, 2.0**-5, np.float32) for name in ("weight_ih_l0", "weight_hh_l0")}
    for name, scale in scales.items():
        rnn.parameters()[name][...] = np.rint(rnn.parameters()[name] / scale[0]) * scale[0]
    fast = pack(rnn, ("int8", "int8"), scales)
    fastrnn.save(tmp_path / "a.safetensors", fast)
    x = np.ones((3, 2, 4), np.float32)
    assert_same_bits(fastrnn.load(tmp_path / "a.safetensors")(x)[0], fast(x)[0])


def test_what_inspect_says(tmp_path: Path) -> None:
    fastrnn.save(tmp_path / "a.safetensors", fastrnn.LSTM(8, 16, rng=0).freeze("int8"))
    facts = inspecting.report(tmp_path / "a.safetensors")
    (layer,) = facts["layers"]
    assert layer["weights"] == "int8"
    assert layer["dtype"] == "float32, int8"
    assert layer["microseconds_per_step"] > 0
    assert "LSTM(input_size=8, hidden_size=16).freeze(weights='int8')" in inspecting.text(facts)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fast = fastrnn.GRU(3, 4, rng=0).freeze("int8")
    with pytest.raises(ValueError, match=r"an .npz file holds one recurrent layer"):
        fastrnn.save(tmp_path / "a.npz", fast)

    def refused(words: str, edit: Any) -> None:
        fastrnn.save(path, fast)
        change(path, edit)
        with pytest.raises(fastrnn.FileError, match=words):
            fastrnn.load(path)

    def description(header: Any, body: Any, **changed: Any) -> None:
        told = json.loads(header["__metadata__"]["fastrnn"])
        told["layers"][0] |= changed
        header["__metadata__"]["fastrnn"] = json.dumps(told)

    def scale(value: float) -> Any:
        def edit(header: Any, body: bytearray) -> None:
            begin = header["weight_hh_l0_scale"]["data_offsets"][0]
            body[begin : begin + 4] = np.float32(value).tobytes()

        return edit

    for words in ("int4", {"ih": "int8"}, None, {"ih": "int8", "hh": 3}):
        refused("is damaged: its description got weights", lambda h, b, w=words: description(h, b, weights=w))
    refused(
        "needs weight_ih_l0 of shape .* and bfloat16, not of",
        lambda h, b: description(h, b, weights={"ih": "bfloat16", "hh": "int8"}),
    )
    for value in (np.nan, np.inf, -1.0):
        refused("a scale of weight_hh_l0 is negative or not finite", scale(value))
    refused("not finite in int8", scale(3e38))
    refused(
        "needs weight_ih_l0_scale, which is missing", lambda h, b: h.__setitem__("other", h.pop("weight_ih_l0_scale"))
    )
    fastrnn.save(path, fast)
    with pytest.raises(ValueError, match="holds weights in fewer bits, which are for float32"):
        fastrnn.load(path, options={"dtype": np.float64})
    assert fastrnn.load(path, options={"batch_first": True})(np.ones((2, 5, 3), np.float32))[0].shape == (2, 5, 4)


def test_integers_without_a_description_make_no_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    fastrnn.save(path, fastrnn.GRU(3, 4, rng=0).freeze("int8"))
    change(path, lambda header, body: header.pop("__metadata__"))
    with pytest.raises(fastrnn.FileError, match="int8"):
        fastrnn.load(path)

"""Flax's and Haiku's parameters, in msgpack and .npz, against their equations as they are documented."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from files_support import B, H, I, refused, sample
from support import Array


def sigma(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def drawn(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape).astype(np.float32)


def dense(rows: int, bias: bool) -> dict[str, Array]:
    return {"kernel": drawn(rows, H)} | ({"bias": drawn(H)} if bias else {})


def run(step: Any, x: Array, states: int) -> Array:
    state, rows = [np.zeros((B, H))] * states, []
    for x_t in x:
        state = step(x_t, *state)
        rows.append(state[0])
    return np.stack(rows)


# Each makes parameters of its cell, and says what a step of it gives.


def flax_lstm() -> tuple[dict[str, Any], Any, int]:
    gates = dict(zip(("i", "f", "g", "o"), range(4), strict=True))
    p = {f"{side}{gate}": dense(I if side == "i" else H, side == "h") for side in "ih" for gate in gates}

    def gate(name: str, x: Array, h: Array) -> Array:
        return x @ p[f"i{name}"]["kernel"] + h @ p[f"h{name}"]["kernel"] + p[f"h{name}"]["bias"]

    def step(x: Array, h: Array, c: Array) -> list[Array]:
        i, f, g, o = (gate(name, x, h) for name in gates)
        c = sigma(f) * c + sigma(i) * np.tanh(g)
        return [sigma(o) * np.tanh(c), c]

    return {"params": {"LSTMCell_0": p}}, step, 2


def flax_gru() -> tuple[dict[str, Any], Any, int]:
    p = {f"i{gate}": dense(I, True) for gate in "rzn"} | {f"h{gate}": dense(H, gate == "n") for gate in "rzn"}

    def side(name: str, a: Array) -> Array:
        return a @ p[name]["kernel"] + p[name].get("bias", 0)

    def step(x: Array, h: Array) -> list[Array]:
        r, z = sigma(side("ir", x) + side("hr", h)), sigma(side("iz", x) + side("hz", h))
        n = np.tanh(side("in", x) + r * side("hn", h))
        return [(1 - z) * n + z * h]

    return {"params": {"GRUCell_0": p}}, step, 1


def flax_simple() -> tuple[dict[str, Any], Any, int]:
    p = {"i": dense(I, True), "h": dense(H, False)}

    def step(x: Array, h: Array) -> list[Array]:
        return [np.tanh(x @ p["i"]["kernel"] + p["i"]["bias"] + h @ p["h"]["kernel"])]

    return {"params": {"SimpleCell_0": p}}, step, 1


def haiku_lstm() -> tuple[dict[str, Any], Any, int]:
    p = {"w": drawn(I + H, 4 * H), "b": drawn(4 * H)}

    def step(x: Array, h: Array, c: Array) -> list[Array]:
        i, g, f, o = np.split(np.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
        c = sigma(f + 1) * c + sigma(i) * np.tanh(g)
        return [sigma(o) * np.tanh(c), c]

    return {"net/lstm/linear": p}, step, 2


def haiku_gru() -> tuple[dict[str, Any], Any, int]:
    p = {"w_i": drawn(I, 3 * H), "w_h": drawn(H, 3 * H), "b": drawn(3 * H)}

    def step(x: Array, h: Array) -> list[Array]:
        zx, rx, ax = np.split(x @ p["w_i"] + p["b"], 3, -1)
        wz, wr, wa = np.split(p["w_h"], 3, -1)
        z, r = sigma(zx + h @ wz), sigma(rx + h @ wr)
        return [(1 - z) * h + z * np.tanh(ax + (r * h) @ wa)]

    return {"net/gru": p}, step, 1


def haiku_rnn() -> tuple[dict[str, Any], Any, int]:
    a, b = {"w": drawn(I, H), "b": drawn(H)}, {"w": drawn(H, H), "b": drawn(H)}

    def step(x: Array, h: Array) -> list[Array]:
        return [np.maximum(x @ a["w"] + a["b"] + h @ b["w"] + b["b"], 0)]

    return {"net/vanilla_rnn/linear": a, "net/vanilla_rnn/linear_1": b}, step, 1


MAKERS = [flax_lstm, flax_gru, flax_simple, haiku_lstm, haiku_gru, haiku_rnn]


NAMES = {
    "flax_lstm": "params/LSTMCell_0",
    "flax_gru": "params/GRUCell_0",
    "flax_simple": "params/SimpleCell_0",
    "haiku_lstm": "net/lstm",
    "haiku_gru": "net/gru",
    "haiku_rnn": "net/vanilla_rnn",
}


def flat(tree: Any, path: str = "") -> dict[str, Array]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{path}/{key}" if path else key).items()}


def packed(tree: Any) -> bytes:
    """As flax.serialization.msgpack_serialize writes it."""
    msgpack = pytest.importorskip("msgpack")

    def extension(a: Any) -> Any:
        dtype = getattr(a, "dtype", None)
        if dtype is None:
            return msgpack.ExtType(2, msgpack.packb((a.real, a.imag)))
        kind = 1 if isinstance(a, np.ndarray) else 3
        return msgpack.ExtType(kind, msgpack.packb((a.shape, dtype.name, a.tobytes()), use_bin_type=True))

    content: bytes = msgpack.packb(tree, default=extension, strict_types=True)
    return content


@pytest.mark.parametrize("kind", ["msgpack", "npz", "npz by dots"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_cells(make: Any, kind: str, tmp_path: Path) -> None:
    tree, step, states = make()
    path = tmp_path / "params"
    if kind == "msgpack":
        path.write_bytes(packed({**tree, "step": np.int32(3), "z": [1j, None, True, -1, 2.5, b"x", "y" * 300]}))
    else:
        with open(path, "wb") as file:
            np.savez(file, **{name.replace("/", "." if "dots" in kind else "/"): a for name, a in flat(tree).items()})
    options = {"nonlinearity": "tanh"} if make is flax_simple else None
    if options:
        with pytest.raises(ValueError, match=r"\(Flax\) does not say what it computes: give options={'nonlinearity'"):
            fastrnn.load(path)
    ((name, layer),) = fastrnn.load(path, options=options).items()
    assert name == NAMES[make.__name__]
    x = sample()
    np.testing.assert_allclose(layer(x)[0], run(step, x, states), rtol=1e-4, atol=1e-5)


def test_flax_itself(tmp_path: Path) -> None:
    """Where Flax is installed, which takes much, its own files and results."""
    linen = pytest.importorskip("flax.linen")
    import flax.serialization
    import jax

    for cell, options in (
        (linen.OptimizedLSTMCell(H), {}),
        (linen.GRUCell(H), {}),
        (linen.SimpleCell(H), {"nonlinearity": "tanh"}),
    ):
        rnn, x = linen.RNN(cell), sample().swapaxes(0, 1)
        variables = rnn.init(jax.random.PRNGKey(0), x)
        (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes(variables))
        layer = fastrnn.load(tmp_path / "a.msgpack", "params/cell", {"batch_first": True, **options})
        np.testing.assert_allclose(layer(x)[0], rnn.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_haiku_itself(tmp_path: Path) -> None:
    """As above; `.ci/long` installs both."""
    hk = pytest.importorskip("haiku")
    import jax

    for kind in (hk.LSTM, hk.GRU, hk.VanillaRNN):

        def unroll(x: Any, kind: Any = kind) -> Any:
            core = kind(H)
            return hk.dynamic_unroll(core, x, core.initial_state(B))[0]

        network, x = hk.transform(unroll), sample()
        weights = network.init(jax.random.PRNGKey(0), x)
        np.savez(tmp_path / "a.npz", **flat({name: dict(arrays) for name, arrays in weights.items()}))
        ((_, layer),) = fastrnn.load(tmp_path / "a.npz").items()
        expected = network.apply(weights, jax.random.PRNGKey(0), x)
        np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-4, atol=1e-5)


def array(shape: list[int], dtype: str, data: bytes) -> bytes:
    """An array by hand: a fixed array of shape, dtype and bytes in an extension."""
    axes = b"\xdc" + struct.pack(">H", len(shape)) + b"".join(b"\xcf" + struct.pack(">Q", n) for n in shape)
    inner = b"\x93" + axes + bytes([0xA0 + len(dtype)]) + dtype.encode() + b"\xc4" + bytes([len(data)]) + data
    return b"\xc8" + struct.pack(">H", len(inner)) + b"\x01" + inner


# one name of 4,000 characters before each of 3,000 arrays
MANY = b"\x81\xda\x0f\xa0" + b"a" * 4000 + b"\xdc\x0b\xb8" + array([1], "float32", b"1234") * 3000
LIES = [
    (b"\x81\xa1a", "is cut off or damaged"),
    (b"\x81\xa1a\xdb\xff\xff\xff\xff", "is cut off or damaged: it has no 4,294,967,295 bytes"),
    (b"\xdf\xff\xff\xff\xff\xa1a\x01", "is cut off or damaged"),
    (b"\x82\xa1a\x01\x01\x01", "holds 0 arrays and no recurrent layer"),
    (b"\x82\xa1a\x01\xc0\x01", "has a key that is no text"),
    (b"\x81\xa1a\xc1", "0xc1 starts no value"),
    (b"\x81\xa1a\x01\x01", "it goes on after its last value"),
    (b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01", "is nested deeper than 64"),
    (b"\x81\xa1a" + b"\xdd\xff\xff\xff\xff" * 60, "is cut off or damaged"),
    (b"\x81\xa1a" + array([2], "float32", b"1234"), "its entry 'a' says float32 of shape (2,) in 4 bytes"),
    (b"\x81\xa1a" + array([2**63, 2], "float32", b""), "has no shape that an array can have"),
    (b"\x81\xa1a" + array([2**40, 2**40], "float32", b""), "says float32 of shape"),
    (b"\x81\xa1a\xc7\x02\x01\x91\x01", "its entry 'a' is no array of shape, dtype and bytes"),
    (b"\x81\xda\x13\x88" + b"a" * 5000 + b"\x01", "the names on the way to 'aaaa"),
    (b"\x81\xda\x0f\xff" + b"a" * 4095 + b"\x81\xa1b\x01", "are longer than 4096"),
    (MANY, "are longer than 4096 characters, or too many such"),
    (b"\x81\xa1a" + array([1] * 200, "float32", b""), "is no array of shape, dtype and bytes"),
    (b"\x81\xbd__msgpack_chunked_array__\xc3" + b"", "holds an array in several chunks"),
]


@pytest.mark.parametrize(("content", "words"), LIES, ids=[words for _, words in LIES])
def test_msgpack_that_lies(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    path.write_bytes(content.replace(b"\xbd__msgpack", bytes([0xA0 + 25]) + b"__msgpack"))
    refused(path, words)


def test_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    mgu = {f"{gate}/kernel": drawn(H, H) for gate in ("if", "in", "hf", "hn")}
    lstm = flat(flax_lstm()[0]["params"])
    haiku = flat(haiku_lstm()[0])
    for arrays, words in (
        (mgu, "minimal gated unit"),
        ({**lstm, "LSTMCell_0/ig/kernel": drawn(I + 1, H)}, "its kernels of ih differ in shape"),
        ({**lstm, "LSTMCell_0/hg/bias": drawn(H + 1)}, f"its biases of hh do not have {H} elements"),
        ({**haiku, "net/lstm/linear/b": drawn(3)}, "do not fit together"),
        ({"w_i": drawn(I, 9), "w_h": drawn(3, 9), "b": drawn(8)}, "do not fit together"),
        ({"w_i": drawn(I, 9), "w_h": drawn(2, 9), "b": drawn(9)}, "weight_hh_l0"),
    ):
        np.savez(path, **arrays)
        refused(path, "fits no layer here", words)

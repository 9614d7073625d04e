"""Keras' files, written by Keras 3 with PyTorch as its backend, against what Keras computes."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from files_support import I, T, is_mapped, refused
from support import Array

pytestmark = pytest.mark.filterwarnings("ignore")  # Keras' own
H = 4


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("torch")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    module = pytest.importorskip("keras")
    if module.backend.backend() != "torch":
        pytest.skip("Keras has another backend already")
    return module


def model_of(keras: Any, **layers: Any) -> Any:
    """A model that gives the output of each layer, all biases drawn too."""
    keras.utils.set_random_seed(0)
    x = keras.Input((T, I))
    model = keras.Model(x, {name: layer(x) for name, layer in layers.items()})
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


def every_kind(keras: Any) -> dict[str, Any]:
    L = keras.layers
    every = {"return_sequences": True}
    stack = [L.LSTMCell(H) for _ in range(12)]  # a twelfth comes after a second by its number only
    return {
        "lstm": L.LSTM(H, **every, name="lstm"),
        "no_bias": L.LSTM(H, **every, use_bias=False, name="no_bias"),
        "gru": L.GRU(H, **every, name="gru"),
        "original": L.GRU(H, **every, reset_after=False, name="original"),
        "relu": L.SimpleRNN(H, **every, activation="relu", name="relu"),
        "both": L.Bidirectional(L.GRU(H, **every), name="both"),
        "stack": L.RNN(L.StackedRNNCells(stack), **every, name="stack"),
        "cell": L.RNN(L.GRUCell(H, reset_after=False), **every, name="cell"),
    }


def sample() -> Array:
    return np.random.default_rng(1).standard_normal((2, T, I)).astype(np.float32)


def assert_as_keras(layers: dict[str, Any], model: Any, names: Any) -> None:
    expected = model(sample())
    for name in names:
        y = expected[name].detach().cpu().numpy()
        np.testing.assert_allclose(layers[name](sample())[0], y, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_models(keras: Any, ending: str, tmp_path: Path) -> None:
    model = model_of(keras, **every_kind(keras))
    path = tmp_path / f"m{ending}"
    model.save(path)
    layers = fastrnn.load(path)
    assert sorted(layers) == sorted(every_kind(keras))
    assert_as_keras(layers, model, layers)
    assert layers["stack"].num_layers == 12
    assert not layers["no_bias"].bias
    assert layers["both"].bidirectional
    time_first = fastrnn.load(path, "gru", {"batch_first": False})
    np.testing.assert_array_equal(time_first(sample().swapaxes(0, 1))[0].swapaxes(0, 1), layers["gru"](sample())[0])
    with pytest.raises(ValueError, match="has reset_after=True; options= says reset_after=False"):
        fastrnn.load(path, "gru", {"reset_after": False})


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_activations_and_backward_layers(keras: Any, ending: str, tmp_path: Path) -> None:
    """A backward layer of its own, whose name in .h5 does not say that it is one, and other activations."""
    L = keras.layers
    every: dict[str, Any] = {"return_sequences": True}
    model = model_of(
        keras,
        relu=L.LSTM(H, **every, activation="relu", name="relu"),
        gates=L.GRU(H, **every, recurrent_activation="softsign", activation="linear", name="gates"),
        linear=L.SimpleRNN(H, **every, activation=None, name="linear"),
        lstm=L.Bidirectional(
            L.LSTM(H, **every),
            backward_layer=L.LSTM(H, **every, go_backwards=True, activation="relu", name="own"),
            name="lstm",
        ),
        rnn=L.Bidirectional(
            L.SimpleRNN(H, **every, activation="elu"),
            backward_layer=L.SimpleRNN(H, **every, go_backwards=True, name="backward_other"),
            name="rnn",
        ),
        same=L.Bidirectional(
            L.GRU(H, **every), backward_layer=L.GRU(H, **every, go_backwards=True, name="gru_9"), name="same"
        ),
    )
    model.save(tmp_path / f"m{ending}")
    layers = fastrnn.load(tmp_path / f"m{ending}")
    assert sorted(layers) == ["gates", "linear", "lstm", "relu", "rnn", "same"]
    assert_as_keras(layers, model, layers)
    with pytest.raises(ValueError, match=r"its layer 'same' has activations=None; options= says activations=\('sig"):
        fastrnn.load(tmp_path / f"m{ending}", "same", {"activations": ("sigmoid", "relu")})


def save_weights(model: Any, path: Path) -> None:
    """Write weights without a configuration; to .h5 as Keras 2 did, which wrote the same with other names."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
        return
    import h5py

    model.save(path.with_name("whole.h5"))
    with h5py.File(path.with_name("whole.h5")) as whole, h5py.File(path, "w") as alone:

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                alone[f"{name}:0"] = item[()]

        whole["model_weights"].visititems(copy)


@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_weights_alone(keras: Any, ending: str, tmp_path: Path) -> None:
    """Without the model's configuration biases tell the two kinds of GRU, and an RNN has to be told."""
    model = model_of(keras, **every_kind(keras))
    path = tmp_path / f"m{ending}"
    save_weights(model, path)
    with pytest.raises(ValueError, match=r"its layer 'relu' \(Keras\) does not say what it computes: give options="):
        fastrnn.load(path)
    layers = fastrnn.load(path, options={"nonlinearity": "relu"})
    assert_as_keras(layers, model, layers)
    told = fastrnn.load(path, "lstm", {"activations": ("sigmoid", "relu", "relu")})
    assert told.activations == ("sigmoid", "relu", "relu")
    gru = model_of(keras, gru=keras.layers.GRU(H, use_bias=False, name="gru"))
    save_weights(gru, tmp_path / f"g{ending}")
    with pytest.raises(ValueError, match=r"give options={'reset_after': True} or options={'reset_after': False}"):
        fastrnn.load(tmp_path / f"g{ending}")


def test_nested_and_sequential_models(keras: Any, tmp_path: Path) -> None:
    L = keras.layers
    inner = keras.Sequential([keras.Input((T, I)), L.LSTM(H, return_sequences=True, name="same"), L.Dense(3)])
    model = keras.Sequential([keras.Input((T, I)), inner, L.GRU(2, name="after"), L.Dense(1)])
    for ending in (".keras", ".h5", ".weights.h5"):
        path = tmp_path / f"m{ending}"
        model.save_weights(path) if "weights" in ending else model.save(path)
        assert {name: type(layer) for name, layer in fastrnn.load(path).items()} == {
            "same": fastrnn.LSTM,
            "after": fastrnn.GRU,
        }


def test_weights_without_names(keras: Any, tmp_path: Path) -> None:
    """As older versions of Keras 3 write them: a layer's configuration is found by its place."""
    h5py = pytest.importorskip("h5py")
    L = keras.layers
    every = {"return_sequences": True}
    inner = keras.Sequential([keras.Input((T, 2)), L.SimpleRNN(3, activation="tanh", **every, name="simple_rnn")])
    model = keras.Sequential(
        [
            keras.Input((T, I)),
            L.SimpleRNN(2, activation="relu", **every, name="simple_rnn_1"),
            inner,
            L.Bidirectional(L.SimpleRNN(2, activation="relu"), name="x"),
        ]
    )
    model.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        old.writestr("config.json", new.read("config.json"))
        (tmp_path / "m.h5").write_bytes(new.read("model.weights.h5"))
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
        old.writestr("model.weights.h5", (tmp_path / "m.h5").read_bytes())
    found = {name: layer.nonlinearity for name, layer in fastrnn.load(tmp_path / "old.keras").items()}
    assert found == {
        "bidirectional": "relu",
        "simple_rnn": "tanh",
        "layers/simple_rnn": "relu",
    }


def backward(L: Any, activation: str) -> Any:
    return L.GRU(H, go_backwards=True, activation=activation, name="own")


UNFIT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda L: L.LSTM(H, activation="selu", name="a"), "its activations are 'sigmoid' and 'selu'; those of Keras that"),
    (lambda L: L.GRU(H, recurrent_activation="hard_sigmoid", name="a"), "'hard_sigmoid' and 'tanh'"),
    (lambda L: L.SimpleRNN(H, activation="leaky_relu", name="a"), "its activations are 'leaky_relu'"),
    (lambda L: L.Bidirectional(L.GRU(H), backward_layer=backward(L, "gelu"), name="a"), "are 'sigmoid' and 'gelu'"),
    (
        lambda L: L.RNN(L.StackedRNNCells([L.LSTMCell(H), L.LSTMCell(H, activation="relu")]), name="a"),
        "its cells have different activations",
    ),
    (lambda L: L.LSTM(H, go_backwards=True, name="a"), "go_backwards=True"),
    (lambda L: L.Bidirectional(L.LSTM(H), merge_mode="sum", name="a"), "its directions are merged by 'sum'"),
    (lambda L: L.RNN(L.StackedRNNCells([L.LSTMCell(H), L.GRUCell(H)]), name="a"), "of different cells: gru_cell, lst"),
    (lambda L: L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.LSTMCell(H)]), name="a"), "weight_ih_l1 has shape (16, 3)"),
    (
        lambda L: L.Bidirectional(L.RNN(L.StackedRNNCells([L.GRUCell(H), L.GRUCell(H)])), name="a"),
        "its stacks run through in one direction each",
    ),
]


@pytest.mark.parametrize(("make", "words"), UNFIT, ids=[words for _, words in UNFIT])
def test_layers_that_fit_none(keras: Any, make: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    model = model_of(keras, a=make(keras.layers), b=keras.layers.LSTM(H, name="b"))
    for ending in (".keras", ".h5"):
        model.save(tmp_path / f"m{ending}")
        assert isinstance(fastrnn.load(tmp_path / f"m{ending}", "b"), fastrnn.LSTM)
        refused(tmp_path / f"m{ending}", "its layer 'a' (Keras) fits no layer here", words)


def test_arrays_in_our_order_are_mapped(keras: Any, tmp_path: Path) -> None:
    """Nothing is: Keras' matrices are the transposed ones. What is not asked for is not read."""
    model_of(keras, a=keras.layers.LSTM(H, name="a")).save(tmp_path / "m.keras")
    layer = fastrnn.load(tmp_path / "m.keras", "a")
    assert not any(is_mapped(p) for p in layer.parameters().values())
    assert all(p.flags.c_contiguous for p in layer.parameters().values())


def test_keras_archives_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    for config, words in (
        (b"{", "its config.json is no JSON"),
        (b'{"a":' * 100_000, "its config.json is nested too deeply"),
        (b"{}", "its entry 'model.weights.h5' is no HDF5 file"),
    ):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", config)
            file.writestr("model.weights.h5", b"")
        refused(path, words)


def test_configurations_that_lie(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    lstm: dict[str, Any] = {"class_name": "LSTM", "config": {"name": "x"}}
    for change, words in (
        ({}, "its configuration has two directions"),
        ({"merge_mode": ["x"]}, "merged by ['x']"),
        ({"class_name": "LSTM", "activation": ["x"]}, "are 'sigmoid' and ['x']"),
    ):
        own = {"name": "a", "merge_mode": "concat", "layer": lstm, **change}
        layer = {"class_name": own.pop("class_name", "Bidirectional"), "config": own}
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps({"config": {"layers": [layer]}})
            for i, shape in enumerate([(I, 4 * H), (H, 4 * H), (4 * H,)]):
                file[f"layers/a/cell/vars/{i}"] = np.zeros(shape, np.float32)
        refused(path, "its layer 'a' (Keras) fits no layer here", words)


def test_more_of_hdf5_than_keras_writes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    base = "layers/lstm/cell/vars"

    def written(libver: str = "earliest", **options: Any) -> Path:
        with h5py.File(path, "w", libver=libver) as file:
            for i, shape in enumerate([(I, 4 * H), (H, 4 * H), (4 * H,)]):
                file.create_dataset(f"{base}/{i}", data=np.zeros(shape, np.float32), **options)
            file.attrs["numbers"] = np.arange(3)
        return path

    assert list(fastrnn.load(written())) == ["lstm"]
    refused(written(chunks=True), f"its dataset '{base}/", "in chunks or compressed")
    refused(written(compression="gzip"), "in chunks or compressed")
    refused(written("latest"), "is an HDF5 file of a newer kind")
    for link in (h5py.SoftLink("/layers"), h5py.ExternalLink("../../etc/passwd", "/")):
        with h5py.File(written(), "r+") as file:
            file[f"{base}/3"] = link
        refused(path, "")
    with h5py.File(path, "w") as file:
        file.create_dataset(f"{base}/1", (4,), "f4", external=[("../secret", 0, 16)])
    refused(path, "has its numbers in another file, which is not opened")
    for kind in ("f2", ">f4", "f8", "i4"):
        with h5py.File(path, "w") as file:
            for i, shape in enumerate([(I, 4 * H), (H, 4 * H), (4 * H,)]):
                file[f"{base}/{i}"] = np.ones(shape, kind)
        if kind == "i4":
            refused(path, "holds other")
        else:
            layer = fastrnn.load(path, "lstm")
            assert layer.dtype == ("float64" if kind == "f8" else "float32")
            assert (layer.parameters()["weight_ih_l0"] == 1).all()


def test_hdf5_of_many_groups(tmp_path: Path) -> None:
    """Trees of several levels, and a text too long for a header."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    config = {"class_name": "Sequential", "config": {"layers": [], "name": "x" * 100_000}}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        for k in range(300):
            for i, shape in enumerate([(I, 4 * H), (H, 4 * H), (4 * H,)]):
                file[f"layers/lstm_{k}/cell/vars/{i}"] = np.full(shape, k, np.float32)
    layers = fastrnn.load(path)
    assert len(layers) == 300
    assert all((layer.parameters()["weight_hh_l0"] == int(name[5:])).all() for name, layer in layers.items())


def test_hdf5_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    for content, words in (
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file of a newer kind"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "its addresses do not have 8 bytes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08" + bytes(100), "has no object header of version 1"),
        (b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08" + b"\xff" * 100, "is damaged: it has no"),
        (b"\x89HDF\r\n\x1a\n" + bytes(5) + b"\x08\x08", "is damaged: it has no 8 bytes at 64"),
    ):
        path.write_bytes(content)
        refused(path, words)

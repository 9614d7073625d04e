"""`fastrnn inspect` of ONNX files: what it says is what `fastrnn.onnx.load` makes, without the weights being read."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import main
from fastrnn.files import inspecting
from fastrnn.files.opening import opened
from files_support import at_most
from test_mutations import MUTATIONS, mutated

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import fastrnn.onnx  # noqa: E402

I, H = 3, 4
USUAL, RELU = ("sigmoid", "tanh", "tanh"), ("sigmoid", "tanh", "relu")


def floats(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def tensor(name: str, *shape: int, values: Any = None) -> Any:
    array = np.zeros(shape, np.float32) if values is None else np.array(values)
    return numpy_helper.from_array(array, name)


def written(
    path: Path, nodes: list[Any], initializers: list[Any], inputs: Sequence[Any] = (), opset: int = 17, **more: Any
) -> Path:
    graph = helper.make_graph(nodes, "graph", [floats("X", None, None, I), *inputs], [floats("Y")], initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **more), path)
    return path


def gru(name: str = "gru", inputs: Sequence[str] = ("X", "W", "R"), **more: Any) -> Any:
    return helper.make_node("GRU", inputs, ["Y"], name=name, **{"hidden_size": H, **more})


WEIGHTS = [tensor("W", 1, 3 * H, I), tensor("R", 1, 3 * H, H)]


def layers_of(path: Path) -> list[Any]:
    return list(inspecting.report(path)["layers"])


@pytest.mark.parametrize(
    "layer",
    [
        fastrnn.LSTM(I, H, 2, bidirectional=True),
        fastrnn.LSTM(I, H, peephole=True, coupled=True, clip=1.5),
        fastrnn.LSTM(I, H, bias=False, dtype=np.float64),
        fastrnn.LSTM(
            I,
            H,
            bidirectional=True,
            activations={"forward": RELU, "reverse": USUAL},
        ),
        fastrnn.GRU(I, H),
        fastrnn.GRU(I, H, reset_after=False),
        fastrnn.RNN(I, H, nonlinearity="relu"),
        fastrnn.RNN(I, H, nonlinearity=("leaky_relu", 0.25), bidirectional=True),
    ],
    ids=repr,
)
def test_it_says_what_load_makes(layer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    fastrnn.onnx.save(layer, path)
    loaded = fastrnn.onnx.load(path)
    described = layers_of(path)
    assert [one["name"] for one in described] == list(loaded)
    for one, made in zip(described, loaded.values(), strict=True):
        assert one["type"] == type(made).__name__
        assert one["parameters"] == sum(p.size for p in made.parameters().values())
        for name, value in {**one["sizes"], **one["options"]}.items():
            if name != "proj_size" or isinstance(made, fastrnn.LSTM):
                assert getattr(made, name) == value, name
        assert one["dtype"] == str(made.dtype)
        assert one["open"] == {}
        assert one["microseconds_per_step"] > 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fastrnn.onnx.save({"word": fastrnn.GRU(I, H), "tag": fastrnn.RNN(I, H)}, "a.onnx")
    assert main(["inspect", "a.onnx"]) == 0
    first, word, tag = capsys.readouterr().out.splitlines()
    assert first.startswith("a.onnx: ONNX, opset 17, ")
    assert "word  GRU(input_size=3, hidden_size=4, reset_after=True)" in word
    assert "108 parameters, float32, as in ONNX, about" in word
    assert "tag   RNN(input_size=3, hidden_size=4, nonlinearity='tanh')" in tag
    assert main(["inspect", "--json", "a.onnx"]) == 0
    assert json.loads(capsys.readouterr().out)["arrays"] == len(onnx.load("a.onnx").graph.initializer)


def test_weights_behind_other_nodes(tmp_path: Path) -> None:
    def constant(name: str, value: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))

    nodes = [
        constant("kernel", np.zeros((I, 3 * H), np.float32)),
        helper.make_node("Transpose", ["kernel"], ["turned"]),
        constant("first", np.array([0])),
        helper.make_node("Unsqueeze", ["turned", "first"], ["W"]),
        helper.make_node("Concat", ["half", "half"], ["joined"], axis=1),
        helper.make_node("Squeeze", ["joined", "first"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["cast", "zero"], ["B"]),
        gru(inputs=["X", "W", "R", "B"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])  # in int64_data, not in raw_data
    path = written(tmp_path / "a.onnx", nodes, [WEIGHTS[1], tensor("half", 1, 3 * H), zero])
    (one,) = layers_of(path)
    (made,) = fastrnn.onnx.load(path).values()
    assert one["sizes"] == {
        "input_size": I,
        "hidden_size": H,
        "num_layers": 1,
        "bias": True,
        "bidirectional": False,
        "proj_size": 0,
        "heads": 1,
    }
    assert one["parameters"] == sum(p.size for p in made.parameters().values())


def test_nodes_inside_graphs(tmp_path: Path) -> None:
    branches = {
        name: helper.make_graph([gru("twin")], name, [], [floats("Y")], [tensor("W", 1, 3 * H, size)])
        for name, size in (("then_branch", 2), ("else_branch", 5))
    }
    path = written(tmp_path / "a.onnx", [helper.make_node("If", ["flag"], ["Y"], **branches)], WEIGHTS)
    described, loaded = layers_of(path), fastrnn.onnx.load(path)
    assert [one["name"] for one in described] == list(loaded) == ["twin", "twin (2)"]
    assert [one["sizes"]["input_size"] for one in described] == [layer.input_size for layer in loaded.values()]
    assert {layer.input_size for layer in loaded.values()} == {2, 5}


REASONS = {
    "direction": (gru(direction="reverse"), "its attribute direction=reverse is of no layer"),
    "late": (gru(inputs=["X", "late", "R"]), "its weights late are not known before the model runs"),
    "replaceable": (gru(inputs=["X", "W", "spare"]), "its weights spare are not known before the model runs"),
    "attribute": (gru(colour=3), "the attribute colour"),
    "shape": (gru(hidden_size=5), "W with shape (1, 12, 3). With direction=forward and hidden_size=5 it must be"),
    "activation": (gru(activations=["Sigmoid", "Sine"]), "Sine"),
    "no size": (gru(hidden_size=None), "no attribute hidden_size"),
    "sliced": (gru(inputs=["X", "W", "sliced"]), "the sizes of its R are not worked out here; fastrnn.onnx.load makes"),
    "inputs": (gru(inputs=["X", "W"]), "it has 2 inputs instead of 3 to 6"),
}


@pytest.mark.parametrize(("node", "reason"), REASONS.values(), ids=REASONS.keys())
def test_what_does_not_fit(node: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flatten = helper.make_node("Flatten", ["R"], ["sliced"])
    spare = tensor("spare", 1, 3 * H, H)
    path = written(tmp_path / "a.onnx", [flatten, node], [*WEIGHTS, spare], [floats("late"), floats("spare")])
    (one,) = layers_of(path)
    assert reason in one["unfit"], one
    assert main(["inspect", str(path)]) == 0
    assert "gru  does not fit: " in capsys.readouterr().out
    with pytest.raises(fastrnn.FileError):
        fastrnn.onnx.load(path)


def test_old_operators_and_functions(tmp_path: Path) -> None:
    (one,) = layers_of(written(tmp_path / "old.onnx", [gru()], WEIGHTS, opset=6))
    assert one["unfit"] == "opset 6; the operators are as they are since opset 7"
    opsets = [helper.make_opsetid("", 17)]
    body = helper.make_function("mine", "Reader", ["X", "W", "R"], ["Y"], [gru("inner")], opsets)
    call = helper.make_node("Reader", ["X", "W", "R"], ["Y"], domain="mine")
    (one,) = layers_of(written(tmp_path / "new.onnx", [call], WEIGHTS, functions=[body]))
    assert one["name"] == "Reader/inner"
    assert one["unfit"] == "it stands in the function Reader: fastrnn.onnx.load makes layers where that is called"


def test_no_weights_are_read(tmp_path: Path) -> None:
    """A file of 600 MB, most of it holes."""
    rows, size = 3 * 4000, 4 * 3 * 4000 * 4000
    path = tmp_path / "big.onnx"

    def message(*fields: tuple[int, Any]) -> bytes:
        return b"".join(varint(n << 3 | 2) + varint(len(v)) + v for n, v in fields)

    def varint(number: int) -> bytes:
        low = number & 127
        return bytes([low]) if number < 128 else bytes([low | 128]) + varint(number >> 7)

    def head(name: str) -> bytes:
        dims = message((1, varint(1) + varint(rows) + varint(4000)), (8, name.encode()))
        return dims + varint(2 << 3) + varint(1) + varint(9 << 3 | 2) + varint(size)

    node = gru(hidden_size=4000).SerializeToString()
    heads = {name: head(name) for name in "WRS"}
    initializers = {n: varint(5 << 3 | 2) + varint(len(one) + size) + one for n, one in heads.items()}
    graph = message((1, node))
    total = len(graph) + sum(len(one) + size for one in initializers.values())
    with open(path, "wb") as file:
        file.write(
            message((8, message((1, b"")) + varint(2 << 3) + varint(17))) + varint(7 << 3 | 2) + varint(total) + graph
        )
        for one in initializers.values():
            file.write(one)
            file.seek(size, 1)
        file.truncate()
    assert path.stat().st_size > 500_000_000
    with at_most(2**24):
        (layer,) = layers_of(path)
    assert layer["sizes"]["input_size"] == 4000
    assert layer["microseconds_per_step"] > 100


def test_it_needs_no_onnx(tmp_path: Path) -> None:
    fastrnn.onnx.save(fastrnn.GRU(I, H), tmp_path / "a.onnx")
    program = "import sys; sys.modules['onnx'] = None; from fastrnn.cli import main; main(['inspect', 'a.onnx'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "GRU(input_size=3, hidden_size=4" in done.stdout


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for content, reason in {
        b"": "it has no graph with nodes",
        b"\x3a": "it ends inside a number",
        b"\x3a\x05": "a field of 5 bytes has 0 left",
        b"\x3f": "it has a field of the unknown kind 7",
        b"\xff" * 12: "a number in it has no end",
        b"\x38\x05": "it has a number in the place of a message",
        b"\x3a\x04\x0a\x02\x20\x01": "it has a number in the place of text",
        b"\x3a\x05\x0a\x03\x22\x01\xff": "it holds text that is not UTF-8",
    }.items():
        path.write_bytes(content)
        with pytest.raises(fastrnn.FileError) as caught:
            inspecting.report(path)
        assert str(caught.value).startswith(f"{path} is no ONNX model"), content
        assert reason in str(caught.value), content
    inner = b""
    for _ in range(150):  # an If in an If in an If ...
        size = len(inner)
        one = b"\x32" + bytes([size & 127 | 128, size >> 7]) + inner
        node = b"\x2a" + bytes([len(one) & 127 | 128, len(one) >> 7]) + one
        inner = b"\x0a" + bytes([len(node) & 127 | 128, len(node) >> 7]) + node
    path.write_bytes(b"\x3a" + bytes([len(inner) & 127 | 128, len(inner) >> 7]) + inner)
    with pytest.raises(fastrnn.FileError, match="its graphs stand inside each other more than 100 deep"):
        inspecting.report(path)


def test_mutations(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    fastrnn.onnx.save({"a": fastrnn.LSTM(2, 3, 2, bidirectional=True, activations=RELU)}, path, states=True)
    content, kinds = path.read_bytes(), set()
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(content, seed))
        with at_most(2**23):
            outcome = layers_or_error(path)
        kinds.add(type(outcome))
        if isinstance(outcome, Exception):
            assert type(outcome) is fastrnn.FileError, (seed, outcome)
            assert str(path) in str(outcome), (seed, outcome)
    assert len(kinds) > 1


def layers_or_error(path: Path) -> Any:
    try:
        with opened(path) as contents:
            return contents.layers
    except Exception as error:
        return error

"""Layers from and to ONNX files, the onnx package's own tests of the three operators, and files that lie."""

import contextlib
import io
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_support import by_onnxruntime, close, draw, helper, model, node, numpy_helper, onnx, single, stored, value

import fastrnn
from fastrnn import FileError
from fastrnn.onnx import Backend, accelerate, load, run_node, save

T, B, I, H = 6, 3, 4, 5
AXIS = stored(one=np.array([1]))


def x_of(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def flat(result: tuple[Any, Any]) -> list[Any]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else [state])]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the samples that the package draws for other operators
def test_the_node_tests_of_the_onnx_package() -> None:
    import onnx.backend.test

    runner = onnx.backend.test.BackendTest(Backend, __name__)
    runner.include(r"^test_(lstm|gru|rnn|simple_rnn)_.*_cpu$")
    suite = unittest.TestSuite()
    for case in runner.test_cases.values():
        suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    result = unittest.TestResult()
    suite.run(result)
    ran = result.testsRun - len(result.skipped)
    assert not result.errors, result.errors[0][1]
    assert not result.failures, result.failures[0][1]
    assert ran >= 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 3, "bidirectional": True},
        {"batch_first": True, "bidirectional": True},
        {"num_layers": 2, "batch_first": True},
        {"variant": True},
        {"general": True, "bidirectional": True, "num_layers": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
class TestRoundTrip:
    def layer(self, kind: str, options: dict[str, Any], dtype: Any = np.float32) -> Any:
        given = dict(options)
        if given.pop("variant", False):
            given |= {"GRU": {"reset_after": False}, "RNN": {"nonlinearity": "relu"}}.get(kind, {"dropout": 0.3})
        if given.pop("general", False):
            cells = {
                "LSTM": {"peephole": True, "coupled": True, "activations": ["sigmoid", ("elu", 0.5), "softsign"]},
                "GRU": {"activations": [("hard_sigmoid", 0.3, 0.4), "softplus"], "clip": 0.7},
                "RNN": {"nonlinearity": {"forward": ("leaky_relu", 0.3), "reverse": "tanh"}, "clip": 0.7},
            }
            given |= cells[kind]
        return getattr(fastrnn, kind)(I, H, rng=0, dtype=dtype, **given)

    def test_onnxruntime_runs_it(self, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
        layer = self.layer(kind, options)
        rows = layer.num_layers * (1 + layer.bidirectional)
        x = x_of(*((B, T, I) if layer.batch_first else (T, B, I)))
        save(layer.freeze() if layer.num_layers == 1 else layer, tmp_path / "plain.onnx")
        close(by_onnxruntime(onnx.load(tmp_path / "plain.onnx"), {"x": x}), flat(layer(x)), 1e-6)
        save(layer, tmp_path / "whole.onnx", states=True, lengths=True)
        starts = [x_of(rows, B, H) / (k + 1) for k in range(1 + (kind == "LSTM"))]
        feeds = {"x": x, "lengths": np.array([T, 2, 4], np.int32), **dict(zip(("h0", "c0"), starts, strict=False))}
        state = tuple(starts) if kind == "LSTM" else starts[0]
        wanted = flat(layer(x, state, lengths=feeds["lengths"]))
        proto = onnx.load(tmp_path / "whole.onnx")
        close(by_onnxruntime(proto, feeds), wanted, 1e-6)
        session = accelerate(tmp_path / "whole.onnx")
        assert len(session.report.taken) == layer.num_layers
        close(session.run(None, feeds), wanted, 1e-6)

    def test_the_same_parameters_come_back(self, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
        layer = self.layer(kind, options, np.float64)
        save({"mine": layer}, tmp_path / "file.onnx")
        found = load(tmp_path / "file.onnx")
        names = ["mine"] if layer.num_layers == 1 else [f"mine_l{k}" for k in range(layer.num_layers)]
        assert list(found) == names
        for k, one in enumerate(found.values()):
            assert one.dtype == np.float64
            assert one._cell() == layer._cell()
            for name, array in one.parameters().items():
                np.testing.assert_array_equal(array, layer.parameters()[name.replace("_l0", f"_l{k}")])
        again = load(tmp_path / "file.onnx", frozen=True)
        assert all(isinstance(one, fastrnn.Frozen) for one in again.values())


class TestLoad:
    def test_an_embedding_in_front(self, tmp_path: Path) -> None:
        layer, rows = fastrnn.GRU(I, H, rng=0), x_of(7, I)
        other = fastrnn.LSTM(I, H, bidirectional=True, rng=1)
        save({"words": layer, "sound": other}, tmp_path / "file.onnx", embeddings={"words": rows})
        found = load(tmp_path / "file.onnx")
        assert list(found) == ["words", "sound"]
        assert list(found.embeddings) == ["words"]
        ids = np.random.default_rng(1).integers(0, 7, (T, B))
        y, state = found["words"](ids, embedding=found.embeddings["words"])
        feeds = {"words.ids": ids, "sound.x": x_of(T, B, I)}
        theirs = by_onnxruntime(onnx.load(tmp_path / "file.onnx"), feeds)
        close([y, state], theirs[:2], 1e-6)
        close(flat(found["sound"](feeds["sound.x"])), theirs[2:], 1e-6)

    def test_it_can_be_trained(self, tmp_path: Path) -> None:
        save(fastrnn.GRU(I, H, rng=0), tmp_path / "file.onnx")
        layer = load(tmp_path / "file.onnx")["rnn"]
        y, _, tape = layer.forward(x_of(T, B, I))
        layer.parameters()["weight_ih_l0"][...] -= 0.1 * layer.backward(tape, y).parameters["weight_ih_l0"]
        assert not np.array_equal(layer(x_of(T, B, I))[0], y)

    def test_layout_1_and_inner_graphs_and_nodes_by_name(self) -> None:
        rng = np.random.default_rng(2)
        inside = draw("LSTM", rng, (T, B, I, H), layout=1)
        reverse = draw("GRU", rng, (T, B, I, H), direction="reverse")
        weights = stored(**dict(zip("WRB", inside.inputs[1:4], strict=True)))
        then = helper.make_graph([node(inside, ["a", "", ""], X="x")], "then", [], [value("a")], weights)
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "else", [], [value("b")])
        back = stored(W2=reverse.inputs[1], R2=reverse.inputs[2], B2=reverse.inputs[3])
        nodes = [
            helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
            node(reverse, ["z", ""], "backwards", X="x", W="W2", R="R2", B="B2"),
        ]
        inputs = [value("x", shape=[B, T, I]), value("yes", bool, [])]
        proto = model(nodes, inputs, [value("y"), value("z")], back)
        with pytest.raises(FileError, match=r"the model: the node backwards \(GRU\): its attribute direction=reverse"):
            load(proto)
        (layer,) = load(proto, nodes=["my LSTM"]).values()
        assert layer.batch_first
        wanted = run_node("LSTM", inside.attributes, inside.inputs)
        y, _ = layer(inside.inputs[0])
        close([y.reshape(B, T, 1, H)], wanted[:1], 1e-6)
        with pytest.raises(ValueError, match="'nobody'; the recurrent nodes of the model are my LSTM, backwards"):
            load(proto, nodes=["nobody"])

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"clip": -1.0}, "clip=-1"),
            ({"activations": ["Gelu"]}, "the activation 'Gelu'"),
            ({"hidden_size": 7}, "hidden_size=7"),
        ],
    )
    def test_what_no_layer_is_equal_to(self, more: dict[str, Any], words: str) -> None:
        drawn = draw("RNN", np.random.default_rng(3), **more)
        drawn.attributes |= more
        with pytest.raises(FileError, match=rf"(?s)the node my RNN \(RNN\).*{words}"):
            load(single(drawn)[0])

    def test_weights_that_come_later(self) -> None:
        with pytest.raises(FileError, match="its weights W, R, B are not known before the model runs"):
            load(single(draw("RNN", np.random.default_rng(3)), constant=False)[0])

    def test_old_opsets(self) -> None:
        with pytest.raises(FileError, match="is of opset 6"):
            load(single(draw("GRU", np.random.default_rng(3)), opset=6)[0])


class TestSave:
    @pytest.mark.parametrize(
        ("layers", "options", "kind", "words"),
        [
            (fastrnn.LSTM(I, H, proj_size=2), {}, ValueError, "'rnn' with proj_size=2"),
            (fastrnn.GRU(I, H, zoneout=0.1), {}, ValueError, r"'rnn' with zoneout=0\.1.*\n.*no zoneout"),
            (fastrnn.GRU(I, H, layer_norm=True), {}, ValueError, "'rnn' with layer_norm=True"),
            ({}, {}, ValueError, "no layer"),
            ({"a": 3}, {}, TypeError, "'a' of type int"),
            ({"a": fastrnn.GRU(I, H)}, {"embeddings": {"b": x_of(3, I)}}, ValueError, "an embedding for 'b'"),
            ({"a": fastrnn.GRU(I, H)}, {"embeddings": {"a": x_of(3, I + 1)}}, ValueError, r"must be \(ids, 4\)"),
        ],
        ids=str,
    )
    def test_refused(self, layers: Any, options: Any, kind: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(kind, match=words):
            save(layers, tmp_path / "file.onnx", **options)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"no/file\.onnx"):
            save(fastrnn.RNN(I, H), tmp_path / "no" / "file.onnx")


READERS = [load, accelerate, Backend.prepare]


def plain() -> Any:
    return single(draw("GRU", np.random.default_rng(4), (T, B, I, H)))[0]


class TestFilesThatLie:
    @pytest.mark.parametrize("reader", READERS[:2])
    def test_truncated(self, reader: Any, tmp_path: Path) -> None:
        data = plain().SerializeToString()
        path = tmp_path / "model.onnx"
        for length in range(0, len(data), 7):
            path.write_bytes(data[:length])
            with pytest.raises(FileError, match=r"model\.onnx"):
                reader(path)

    @pytest.mark.parametrize("reader", READERS[:2])
    def test_damaged(self, reader: Any, tmp_path: Path) -> None:
        """Whatever one byte does, it is an error of ours or of ONNX Runtime's, or a model."""
        data, rng = plain().SerializeToString(), np.random.default_rng(5)
        for _ in range(400):
            changed = bytearray(data)
            changed[rng.integers(len(data))] = rng.integers(256)
            with contextlib.suppress(FileError):
                try:
                    reader(bytes(changed))
                except Exception as error:
                    if type(error).__module__.partition(".")[0] != "onnxruntime":
                        raise

    @pytest.mark.parametrize("reader", READERS[:2])
    @pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"not a model at all", b"\x80\x04N."])
    def test_other_files(self, reader: Any, data: bytes) -> None:
        with pytest.raises(FileError, match="no ONNX model"):
            reader(data)

    @pytest.mark.parametrize("reader", READERS[:2])
    def test_no_such_file_and_no_path(self, reader: Any, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"not here\.onnx"):
            reader(tmp_path / "not here.onnx")
        with pytest.raises(TypeError, match="takes a ModelProto"):
            reader(3)

    @pytest.mark.parametrize("reader", READERS[:2])
    def test_cycles(self, reader: Any) -> None:
        proto = plain()
        proto.graph.node.append(helper.make_node("Add", ["a", "Y"], ["b"], name="first"))
        proto.graph.node.append(helper.make_node("Neg", ["b"], ["a"], name="second"))
        with pytest.raises(FileError, match="the node first waits for its own output: the graph has a cycle"):
            reader(proto)
        proto.graph.node[-1].output[0] = "Y"
        with pytest.raises(FileError, match="the nodes my GRU and second write 'Y'"):
            reader(proto)

    @pytest.mark.parametrize("reader", READERS[:2])
    @pytest.mark.parametrize("dims", [[1, 15, 5], [1, -15, 4], [2**40, 2**40, 4], [0]], ids=str)
    def test_sizes(self, reader: Any, dims: list[int]) -> None:
        proto = plain()
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)
        if dims == [0]:
            proto.graph.initializer[0].ClearField("raw_data")
            if reader is load:
                with pytest.raises(FileError, match=r"W with shape \(0,\)"):
                    reader(proto)
            else:  # left to ONNX Runtime
                assert "W with shape (0,)" in reader(proto).report.left["my GRU"]
        else:
            with pytest.raises(FileError, match="the initializer 'W' contradicts itself"):
                reader(proto)

    def outside(self, tmp_path: Path, **entries: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        proto = plain()
        tensor = proto.graph.initializer[0]
        data = tensor.raw_data
        (tmp_path / "secret").write_bytes(data)
        (folder / "data").write_bytes(b"\x00" * 8 + data)
        (folder / "link").symlink_to(tmp_path / "secret")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in {"location": "data", "offset": "8", **entries}.items():
            tensor.external_data.add(key=key, value=str(text))
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        return folder / "model.onnx"

    def test_data_in_another_file(self, tmp_path: Path) -> None:
        path = self.outside(tmp_path)
        wanted = load(plain())["my GRU"].state_dict()
        for name, array in load(path)["my GRU"].state_dict().items():
            np.testing.assert_array_equal(array, wanted[name])
        assert len(accelerate(path).report.taken) == 1
        with pytest.raises(FileError, match="are in another file, 'data': give the path"):
            load(path.read_bytes())

    @pytest.mark.parametrize("reader", READERS[:2])
    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            ({"location": "../secret", "offset": 0}, "outside the model's folder"),
            ({"location": "link", "offset": 0}, "outside the model's folder"),
            ({"location": "/etc/passwd", "offset": 0}, "outside the model's folder"),
            ({"location": "nothing"}, "no such file"),
            ({"location": "."}, "no such file"),
            ({"offset": 9}, "need 240 bytes"),
            ({"offset": -8}, "need 240 bytes"),
            ({"offset": "x"}, "cannot be read"),
            ({"length": 2**62}, "need 240 bytes"),
            ({"location": "a\0b"}, "no name of a file"),
            ({"location": "model.onnx", "offset": 0}, "the model itself"),
        ],
        ids=str,
    )
    def test_data_where_they_must_not_be(self, reader: Any, entries: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=rf"model\.onnx: the data of 'W'.*{words}"):
            reader(self.outside(tmp_path, **entries))

    def test_data_that_many_tensors_share(self, tmp_path: Path) -> None:
        path = self.outside(tmp_path)
        proto = onnx.load(path, load_external_data=False)
        for k in range(5):
            if k == 4:
                with pytest.raises(FileError, match="'W3': with them the model's tensors take 1,200 bytes of 'data'"):
                    load(path)
                break
            load(path)
            proto.graph.initializer.append(proto.graph.initializer[0])
            proto.graph.initializer[-1].name = f"W{k}"
            path.write_bytes(proto.SerializeToString())

    @pytest.mark.parametrize("reader", READERS[:2])
    @pytest.mark.parametrize("inside", ["tensor", "sequence"])
    def test_sizes_by_no_name(self, reader: Any, inside: str) -> None:
        proto = plain()
        kind = helper.make_tensor_type_proto(1, ["bad", 2, 3])
        if inside == "sequence":
            kind = helper.make_sequence_type_proto(kind)
        proto.graph.output.append(helper.make_value_info("Y", kind))
        with pytest.raises(FileError, match=r"a name that is not UTF-8, b'b\\xffd'"):
            reader(proto.SerializeToString().replace(b"bad", b"b\xffd"))

    @pytest.mark.parametrize("reader", READERS[:2])
    def test_deep_nesting(self, reader: Any) -> None:
        leaf = graph = helper.make_graph([helper.make_node("Identity", ["X"], ["y"])], "g", [], [value("y")])
        for _ in range(25):
            branch = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=leaf)
            graph = helper.make_graph([branch], "g", [], [value("y")])
        proto = plain()
        proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=graph, else_branch=graph))
        proto.graph.input.append(value("yes", bool, []))
        reader(proto)

    def test_deeper_than_protobuf_reads(self) -> None:
        def field(number: int, data: bytes) -> bytes:
            size, length = len(data), b""
            while size >= 128:
                length, size = length + bytes([size % 128 + 128]), size // 128
            return bytes([number << 3 | 2]) + length + bytes([size]) + data

        graph = b""
        for _ in range(200):
            graph = field(1, field(5, field(6, graph)))  # GraphProto.node, NodeProto.attribute, AttributeProto.g
        with pytest.raises(FileError, match="no ONNX model"):
            load(field(7, graph))

    @pytest.mark.parametrize("reader", READERS[:2])
    def test_functions(self, reader: Any) -> None:
        def function(name: str, calls: list[str]) -> Any:
            body = [helper.make_node(call, ["a"], [f"y{k}"], domain="mine") for k, call in enumerate(calls)]
            body.append(helper.make_node("Identity", ["a"], ["y"]))
            opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
            return helper.make_function("mine", name, ["a"], ["y"], body, opsets)

        proto = plain()
        proto.graph.node.append(helper.make_node("f0", ["Y"], ["z"], domain="mine"))
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        proto.functions.extend([function("f0", ["f1"]), function("f1", ["f0"])])
        with pytest.raises(FileError, match="the function f0 calls itself"):
            reader(proto)
        del proto.functions[:]
        proto.functions.extend(function(f"f{k}", [f"f{k + 1}"] * 2) for k in range(40))
        proto.functions.append(function("f40", []))
        with pytest.raises(FileError, match="more than 1,000,000 nodes"):
            reader(proto)
        del proto.functions[:]
        proto.functions.extend(function(f"f{k}", [f"f{k + 1}"]) for k in range(3000))
        with pytest.raises(FileError, match="stand inside each other more than 200 deep"):
            reader(proto)
        del proto.functions[1:]
        proto.functions[0].CopyFrom(function("f0", []))
        reader(proto)
        large = helper.make_node("Constant", [], ["c"], value=stored(c=np.zeros(2**18, np.float32))[0])
        proto.functions[0].node.insert(0, large)
        proto.graph.node.extend(helper.make_node("f0", ["Y"], [f"z{k}"], domain="mine") for k in range(300))
        with pytest.raises(FileError, match="larger by more than 256 MiB"):
            reader(proto)

    def test_a_constant_that_cannot_be_computed(self) -> None:
        proto = plain()
        W = numpy_helper.to_array(proto.graph.initializer[0])
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(W[0], "W2"))
        wrong = helper.make_node("Transpose", ["W2"], ["W"], name="turn", perm=[5, 6])
        proto.graph.node.insert(0, wrong)
        with pytest.raises(FileError, match=r"the node turn \(Transpose\) fails"):
            load(proto)


def test_constants_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each doubles the one before: no memory holds the last."""
    monkeypatch.setattr("fastrnn.onnx.constants.machine_memory", lambda: 2**28)
    proto = plain()
    proto.graph.initializer[0].name = "W0"
    doubling = [helper.make_node("Concat", [f"W{k}", f"W{k}"], [f"W{k + 1}"], axis=0) for k in range(60)]
    outer = helper.make_node("Mul", ["tall", "wide"], ["W"], name="outer")
    proto.graph.initializer.extend(stored(tall=np.ones((10**5, 1)), wide=np.ones((1, 10**5))))
    proto.graph.node.insert(0, outer)
    with pytest.raises(FileError, match=r"the node outer \(Mul\) may make a constant of .*; this machine has"):
        load(proto)
    del proto.graph.node[0]
    for one in [helper.make_node("Identity", ["W60"], ["W"]), *doubling[::-1]]:
        proto.graph.node.insert(0, one)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend([2**20])
    proto.graph.initializer[0].raw_data = bytes(2**22)
    with pytest.raises(FileError, match=r"the node W\d+ \(Concat\) may make a constant of"):
        load(proto)


def test_bytes_and_file_objects_are_read_alike(tmp_path: Path) -> None:
    data = io.BytesIO(plain().SerializeToString()).getvalue()
    (tmp_path / "m.onnx").write_bytes(data)
    a, b = load(data)["my GRU"], load(str(tmp_path / "m.onnx"))["my GRU"]
    close(flat(a(x_of(T, B, I))), flat(b(x_of(T, B, I))), 0)

"""Whole models: what PyTorch exports and graphs written by hand, through accelerate and through ONNX Runtime."""

import io
import threading
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    TensorProto,
    by_onnxruntime,
    close,
    draw,
    helper,
    model,
    node,
    numpy_helper,
    onnx,
    single,
    stored,
    value,
)

import fastrnn
from fastrnn.onnx import accelerate
from fastrnn.onnx.reading import serialised

onnxruntime = pytest.importorskip("onnxruntime")
from google.protobuf.message import EncodeError  # noqa: E402

T, B, I, H = 6, 3, 4, 5
AXIS = stored(one=np.array([1]))
WEIGHTS = ("W", "R", "B")


def x_of(seed: int = 0, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape or (T, B, I), dtype=np.float32)


def weights(drawn: Any, prefix: str = "") -> list[Any]:
    return stored(**{prefix + name: a for name, a in zip(WEIGHTS, drawn.inputs[1:4], strict=True) if a is not None})


def both(proto: Any, feeds: dict[str, Any], taken: int, sessions: int | None = None) -> Any:
    """Check a model and that accelerate gives what ONNX Runtime gives; return the session."""
    session = accelerate(proto)
    assert len(session.report.taken) == taken, session.report
    if sessions is not None:
        assert session.report.sessions == sessions
    theirs = by_onnxruntime(proto, feeds)
    for _ in range(2):
        close(session.run(None, feeds), theirs)
    return session


def between(drawn: Any, x: str = "h", y: str = "s", **names: str) -> list[Any]:
    """Nodes from x over the recurrent one to y, its direction squeezed out."""
    return [node(drawn, ["Y", "Y_h", "Y_c"], X=x, **names), helper.make_node("Squeeze", ["Y", "one"], [y])]


RELU = helper.make_node("Relu", ["x"], ["h"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
class TestPyTorch:
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("dynamo", [True, False])
    @pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}], ids=str)
    @pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
    def test_exported_models(self, kind: str, options: dict[str, Any], dynamo: bool) -> None:
        torch = pytest.importorskip("torch")
        pytest.importorskip("onnxscript")

        class Model(torch.nn.Module):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.embed = torch.nn.Linear(I, 7)
                self.rnn = getattr(torch.nn, kind)(7, H, **options)
                self.out = torch.nn.Linear(H * (1 + self.rnn.bidirectional), 2)

            def forward(self, x: Any) -> Any:
                y, end = self.rnn(torch.relu(self.embed(x)))
                return self.out(y), end[0] if kind == "LSTM" else end

        torch.manual_seed(0)
        net = Model().eval()
        x = x_of()
        layers = options.get("num_layers", 1)
        if dynamo:
            proto = torch.onnx.export(net, (torch.from_numpy(x),), dynamo=True, verbose=False).model_proto
            # of nn.RNN this exporter makes single operators
            assert (len(accelerate(proto).report.taken) == layers) is (kind != "RNN")
        else:
            file = io.BytesIO()
            axes = {"x": [0, 1]}
            torch.onnx.export(net, (torch.from_numpy(x),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
            proto = onnx.load_from_string(file.getvalue())
            x = x_of(1, 9, 2, I)
        feeds = {proto.graph.input[0].name: x}
        session = both(proto, feeds, layers if not dynamo or kind != "RNN" else 0)
        wanted = net(torch.from_numpy(x))
        close(session.run(None, feeds), [a.detach().numpy() for a in wanted])


class TestCutting:
    def test_pieces_and_views(self) -> None:
        """Two layers with nothing between them but moved axes are between two pieces of ONNX Runtime."""
        rng = np.random.default_rng(0)
        first, second = draw("GRU", rng, (T, B, I, H), direction="bidirectional"), draw("LSTM", rng, (T, B, 2 * H, H))
        nodes = [
            RELU,
            node(first, ["Y1", "", ""], X="h", W="W1", R="R1", B="B1"),
            helper.make_node("Transpose", ["Y1"], ["Y2"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["Y2", "sizes"], ["y"]),
            *between(second, "y"),
            helper.make_node("Tanh", ["s"], ["out"]),
        ]
        initializers = [
            *stored(W1=first.inputs[1], R1=first.inputs[2], B1=first.inputs[3], sizes=np.array([0, 0, -1])),
            *weights(second),
            *AXIS,
        ]
        outputs = [value("out"), value("Y_c")]
        proto = model(nodes, [value("x", shape=["t", "b", I])], outputs, initializers)
        session = both(proto, {"x": x_of()}, 2, 2)
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("x", "tensor(float)", ["t", "b", I])]
        assert [o.name for o in session.get_outputs()] == ["out", "Y_c"]
        assert str(session.report) == (
            "fastrnn runs 2 of 2 recurrent nodes, ONNX Runtime the rest in 2 pieces\n"
            "  my GRU   GRU(hidden_size=5, bidirectional)\n"
            "  my LSTM  LSTM(hidden_size=5)"
        )
        (only,) = session.run(["Y_c"], {"x": x_of()})
        close([only], [by_onnxruntime(proto, {"x": x_of()})[1]])

    def test_nodes_out_of_order_and_shared_weights(self) -> None:
        drawn = draw("RNN", np.random.default_rng(1), (T, B, H, H))
        add = helper.make_node("Add", ["s", "Bx"], ["out"])
        nodes = [*between(drawn), RELU, add]
        initializers = [*weights(drawn), *AXIS, *stored(Bx=np.ones(H, np.float32))]
        proto = model(nodes, [value("x", shape=[T, B, H])], [value("out"), value("Bx")], initializers)
        session = accelerate(proto)
        ordered = model([nodes[2], *nodes[:2], add], [value("x", shape=[T, B, H])], [value("out"), value("Bx")])
        ordered.graph.initializer.extend(initializers)
        feeds = {"x": x_of(0, T, B, H)}
        close(session.run(None, feeds), by_onnxruntime(ordered, feeds))

    def test_skip_connections_and_side_outputs(self) -> None:
        """Values from before the first node are read after the last, and lengths come from the graph."""
        drawn = draw("LSTM", np.random.default_rng(2), (T, B, H, H), lengths=[0] * B, states=2)
        nodes = [
            RELU,
            helper.make_node("Add", ["n", "two"], ["sequence_lens"]),
            *between(drawn, initial_h="h0", initial_c="h0"),
            helper.make_node("Add", ["s", "h"], ["out"]),
            helper.make_node("SequenceConstruct", ["h", "s"], ["q"]),
            helper.make_node("SequenceAt", ["q", "one"], ["again"]),
        ]
        inputs = [value("x", shape=["t", "b", H]), value("n", np.int32, ["b"]), value("h0", shape=[1, "b", H])]
        initializers = [*weights(drawn), *AXIS, *stored(two=np.array([2], np.int32))]
        proto = model(nodes, inputs, [value("out"), value("again"), value("Y_h"), value("Y_c")], initializers)
        feeds = {"x": x_of(0, T, B, H), "n": np.array([4, -2, 0], np.int32), "h0": x_of(3, 1, B, H)}
        both(proto, feeds, 1, 2)

    def test_a_sequence_across_the_cut(self) -> None:
        drawn = draw("GRU", np.random.default_rng(2), (T, B, I, I))
        nodes = [
            RELU,
            helper.make_node("SequenceConstruct", ["h", "x"], ["q"]),
            *between(drawn),
            helper.make_node("SequenceInsert", ["q", "s"], ["longer"]),
            helper.make_node("ConcatFromSequence", ["longer"], ["out"], axis=0),
        ]
        proto = model(nodes, [value("x", shape=[T, B, I])], [value("out")], [*weights(drawn), *AXIS])
        both(proto, {"x": x_of()}, 1, 2)

    def test_constants_of_constants(self) -> None:
        """Weights transposed, joined and given one more axis, as converters write them."""
        drawn = draw("GRU", np.random.default_rng(3), (T, B, I, H))
        W, R, bias = (a[0] for a in drawn.inputs[1:4])
        halves = np.split(bias, 2)
        nodes = [
            helper.make_node("Constant", [], ["kernel"], value=numpy_helper.from_array(np.ascontiguousarray(W.T))),
            helper.make_node("Transpose", ["kernel"], ["W2"], perm=[1, 0]),
            helper.make_node("Unsqueeze", ["W2", "zero"], ["W"]),
            helper.make_node("Concat", ["b1", "b2"], ["b12"], axis=0),
            helper.make_node("Unsqueeze", ["b12", "zero"], ["B"]),
            helper.make_node("Mul", ["R2", "half"], ["R"]),
            RELU,
            *between(drawn),
            helper.make_node("MatMul", ["s", "back"], ["out"]),
            helper.make_node("Transpose", ["R2"], ["never read"]),
            helper.make_node("Identity", ["out"], ["out2"]),
        ]
        initializers = stored(R2=2 * R[None], b1=halves[0], b2=halves[1], half=np.float32(0.5), zero=np.array([0]))
        initializers += stored(back=np.eye(H, dtype=np.float32))
        proto = model(nodes, [value("x", shape=[T, B, I])], [value("out2"), value("W")], [*initializers, *AXIS])
        both(proto, {"x": x_of()}, 1, 2)

    def test_weights_at_run_time(self) -> None:
        drawn = draw("LSTM", np.random.default_rng(4), (T, B, I, H))
        shapes = [value(name, shape=[None] * a.ndim) for name, a in zip(WEIGHTS, drawn.inputs[1:4], strict=True)]
        proto = model([RELU, *between(drawn)], [value("x", shape=[T, B, I]), *shapes], [value("s")], AXIS)
        feeds = {"x": x_of(), **dict(zip(WEIGHTS, drawn.inputs[1:4], strict=True))}
        session = both(proto, feeds, 1)
        feeds["W"][:] *= 0.5  # in place: nothing of the call before may be kept
        close(session.run(None, feeds), by_onnxruntime(proto, feeds))
        with pytest.raises(ValueError, match=r"the node my LSTM \(LSTM\) got R with shape"):
            session.run(None, {**feeds, "R": feeds["R"][:, :-1]})

    def test_initializers_that_callers_may_replace(self) -> None:
        drawn = draw("RNN", np.random.default_rng(5), (T, B, I, H))
        inputs = [
            value("x", shape=[T, B, I]),
            *(value(n, shape=a.shape) for n, a in zip("WR", drawn.inputs[1:3], strict=True)),
        ]
        proto = model([RELU, *between(drawn)], inputs, [value("s")], [*weights(drawn), *AXIS])
        session = both(proto, {"x": x_of()}, 1)
        assert [i.name for i in session.get_inputs()] == ["x"]
        for factor in (1, -1, 2):
            feeds = {"x": x_of(), "W": drawn.inputs[1] * np.float32(factor)}
            close(session.run(None, feeds), by_onnxruntime(proto, feeds))
        close(session.run(None, {"x": x_of()}), by_onnxruntime(proto, {"x": x_of()}))

    def test_functions_of_the_model(self) -> None:
        drawn = draw("GRU", np.random.default_rng(6), (T, B, I, H))
        body = [
            helper.make_node("GRU", ["a", "w", "r", "b"], ["Y"], hidden_size=H),
            helper.make_node("Relu", ["Y"], ["y"]),
        ]
        opsets = [helper.make_opsetid("", 17)]
        function = helper.make_function("mine", "Layer", ["a", "w", "r", "b"], ["y"], body, opsets)
        call = helper.make_node("Layer", ["x", "W", "R", "B"], ["out"], domain="mine")
        proto = model([call], [value("x", shape=[T, B, I])], [value("out")], weights(drawn), functions=[function])
        proto.opset_import.append(helper.make_opsetid("mine", 1))
        both(proto, {"x": x_of()}, 1)

    def test_what_is_left(self) -> None:
        rng = np.random.default_rng(7)
        more = {"activations": ["Affine", "Tanh"]}
        plain, clipped = draw("GRU", rng, (T, B, I, H)), draw("GRU", rng, (T, B, H, H), **more)
        names = {"W": "W2", "R": "R2", "B": "B2"}
        nodes = [*between(plain, "x"), node(clipped, ["out", ""], "clipped", X="s", **names)]
        initializers = [
            *weights(plain),
            *AXIS,
            *stored(W2=clipped.inputs[1], R2=clipped.inputs[2], B2=clipped.inputs[3]),
        ]
        session = both(model(nodes, [value("x", shape=[T, B, I])], [value("out")], initializers), {"x": x_of()}, 1, 1)
        assert session.report.left == {"clipped": "ONNX Runtime has other defaults of Affine than the text"}
        assert "  clipped  left to ONNX Runtime: ONNX Runtime has other defaults" in str(session.report)

    def test_a_graph_that_cannot_be_cut(self) -> None:
        """An optional value made before the node and read after it: all is left, and the report says why."""
        drawn = draw("GRU", np.random.default_rng(7), (T, B, I, H))
        branches = [
            inner([helper.make_node("OptionalGetElement", ["maybe"], [name])], [], [value(name)]) for name in "ab"
        ]
        nodes = [
            RELU,
            helper.make_node("Optional", ["h"], ["maybe"]),
            *between(drawn),
            helper.make_node("ReduceSum", ["s"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "sum"], ["less"]),
            helper.make_node("If", ["less"], ["out"], then_branch=branches[0], else_branch=branches[1]),
        ]
        proto = model(nodes, [value("x", shape=[T, B, I])], [value("out")], [*weights(drawn), *AXIS])
        session = both(proto, {"x": x_of()}, 0, 1)
        assert session.report.left == {"my GRU": "the type of 'maybe' is not known where the graph would be cut"}

    def test_initializers_of_old_files_are_constants(self) -> None:
        drawn = draw("RNN", np.random.default_rng(7), (T, B, I, H))
        named = zip(WEIGHTS, drawn.inputs[1:4], strict=True)
        inputs = [value("x", shape=[T, B, I]), *(value(name, shape=a.shape) for name, a in named)]
        proto = model(
            [RELU, *between(drawn)], [*inputs, value("one", np.int64, [1])], [value("s")], [*weights(drawn), *AXIS]
        )
        proto.ir_version = 3
        session = both(proto, {"x": x_of()}, 1)
        with pytest.raises(ValueError, match="run got the input 'W'; the model's are x"):
            session.run(None, {"x": x_of(), "W": drawn.inputs[1]})

    def test_nothing_to_take(self) -> None:
        session = both(model([RELU], [value("x", shape=[T, B, I])], [value("h")]), {"x": x_of()}, 0, 1)
        assert str(session.report) == "fastrnn runs 0 of 0 recurrent nodes, ONNX Runtime the rest in 1 piece"
        assert session.get_outputs()[0].type == "tensor(float)"

    def test_every_option_of_an_lstm(self) -> None:
        more = {"activations": ["HardSigmoid", "Softsign", "Elu"], "input_forget": 1}
        for constant in (True, False):  # weights of the model, or fed to it
            drawn = draw("LSTM", np.random.default_rng(7), (T, B, I, H), lengths=[1, T, 2], peepholes=True, **more)
            both(*single(drawn, constant), 1)


def inner(nodes: Any, inputs: Any, outputs: Any, initializers: Any = ()) -> Any:
    return helper.make_graph(nodes, "inner", inputs, outputs, list(initializers))


class TestGraphsInside:
    def test_if(self) -> None:
        """An LSTM by the sample rate, as voice detectors have it; in the other branch weights from outside."""
        rng = np.random.default_rng(8)
        drawn, other = draw("LSTM", rng, (T, B, I, H)), draw("GRU", rng, (T, B, I, H))
        then = inner([*between(drawn, "h", "a")], [], [value("a")], weights(drawn))
        names = {"W": "W2", "R": "R2", "B": "B2"}
        otherwise = inner([*between(other, "h", "b", **names)], [], [value("b")])
        initializers = [
            *AXIS,
            *stored(W2=other.inputs[1], R2=other.inputs[2], B2=other.inputs[3], rate=np.array(16000)),
        ]
        nodes = [
            RELU,
            helper.make_node("Equal", ["sr", "rate"], ["fast"]),
            helper.make_node("If", ["fast"], ["y"], name="by rate", then_branch=then, else_branch=otherwise),
            helper.make_node("Neg", ["y"], ["out"]),
        ]
        proto = model(nodes, [value("x", shape=["t", "b", I]), value("sr", np.int64, [])], [value("out")], initializers)
        for rate in (16000, 8000):
            session = both(proto, {"x": x_of(), "sr": np.array(rate)}, 2)
        assert set(session.report.taken) == {"by rate/my LSTM", "by rate/my GRU"}

    @pytest.mark.parametrize("trips", [0, 1, 4])
    @pytest.mark.parametrize("ranks", [0, 1])
    def test_loop(self, trips: int, ranks: int) -> None:
        """A body that feeds a GRU's output back to it, stops early, and stacks what it made on the way."""
        drawn = draw("GRU", np.random.default_rng(9), (T, B, I, I), states=1)
        body = inner(
            [
                helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
                helper.make_node("Add", ["v", "kf"], ["shifted"]),
                *between(drawn, "shifted", "next", initial_h="start"),
                helper.make_node("ReduceMean", ["next"], ["mean"], keepdims=0),
                helper.make_node("Less", ["k", "most"], ["go on"]),
                helper.make_node("Identity", ["next"], ["scanned"]),
            ],
            [value("k", np.int64, [1] * ranks), value("go", bool, [1] * ranks), value("v", shape=[T, B, I])],
            [
                value("go on", bool, [1] * ranks),
                value("next"),
                value("scanned", shape=[T, B, I]),
                value("mean", shape=[]),
            ],
        )
        nodes = [RELU, helper.make_node("Loop", ["n", "", "h"], ["last", "all", "means"], body=body)]
        initializers = [*weights(drawn), *AXIS, *stored(most=np.full([1] * ranks, 2))]
        inputs = [value("x", shape=[T, B, I]), value("n", np.int64, []), value("start", shape=[1, B, I])]
        proto = model(nodes, inputs, [value("last"), value("all"), value("means")], initializers)
        both(proto, {"x": x_of(), "n": np.array(trips), "start": x_of(1, 1, B, I)}, 1)

    @pytest.mark.parametrize("backwards", [0, 1])
    def test_scan(self, backwards: int) -> None:
        """A step of an LSTM at each slice, as converters write a loop over time, along axis 1."""
        drawn = draw("LSTM", np.random.default_rng(10), (1, B, I, H), states=2)
        body = inner(
            [
                helper.make_node("Unsqueeze", ["x_t", "zero"], ["x1"]),
                node(drawn, ["Y", "h1", "c1"], X="x1", initial_h="h", initial_c="c"),
                helper.make_node("Squeeze", ["h1", "zero"], ["y_t"]),
            ],
            [value("h", shape=[1, B, H]), value("c", shape=[1, B, H]), value("x_t", shape=[B, I])],
            [value("h1", shape=[1, B, H]), value("c1", shape=[1, B, H]), value("y_t", shape=[B, H])],
        )
        axes = {"scan_input_axes": [1], "scan_output_axes": [-1]}
        ways = {"scan_input_directions": [backwards], "scan_output_directions": [backwards]}
        scan = helper.make_node(
            "Scan", ["h0", "c0", "x"], ["hn", "cn", "y"], body=body, num_scan_inputs=1, **axes, **ways
        )
        states = [value("h0", shape=[1, B, H]), value("c0", shape=[1, B, H])]
        outputs = [value("hn"), value("cn"), value("y")]
        zero = stored(zero=np.array([0]))
        proto = model([scan], [*states, value("x", shape=[B, T, I])], outputs, [*weights(drawn), *zero])
        feeds = {"h0": x_of(1, 1, B, H), "c0": x_of(2, 1, B, H), "x": x_of(3, B, T, I)}
        both(proto, feeds, 1)

    def test_constants_that_decide(self) -> None:
        drawn = draw("LSTM", np.random.default_rng(8), (T, B, I, H))
        then = inner([*between(drawn, "h", "a")], [], [value("a")])
        otherwise = inner([helper.make_node("Identity", ["h"], ["b"])], [], [value("b")])
        nodes = [RELU, helper.make_node("Less", ["few", "many"], ["yes"])]
        nodes.append(helper.make_node("If", ["yes"], ["out"], then_branch=then, else_branch=otherwise))
        numbers = [numpy_helper.from_array(np.array(k), name) for k, name in enumerate(("few", "many"))]
        given = [*weights(drawn), *AXIS, *numbers]
        both(model(nodes, [value("x", shape=[T, B, I])], [value("out")], given), {"x": x_of()}, 1)

    def test_a_loop_in_a_branch(self) -> None:
        drawn = draw("RNN", np.random.default_rng(11), (T, B, I, I))
        body = inner(
            [*between(drawn, "v", "next"), helper.make_node("Identity", ["go"], ["go on"])],
            [value("k", np.int64, []), value("go", bool, []), value("v", shape=[T, B, I])],
            [value("go on", bool, []), value("next", shape=[T, B, I])],
        )
        loop = helper.make_node("Loop", ["n", "yes", "h"], ["a"], name="loop", body=body)
        then = inner([loop], [], [value("a")], stored(n=np.array(3)))
        otherwise = inner([helper.make_node("Identity", ["h"], ["b"])], [], [value("b")])
        branch = helper.make_node("If", ["yes"], ["out"], name="if", then_branch=then, else_branch=otherwise)
        inputs = [value("x", shape=[T, B, I]), value("yes", bool, [])]
        proto = model([RELU, branch], inputs, [value("out")], [*weights(drawn), *AXIS])
        for yes in (True, False):
            session = both(proto, {"x": x_of(), "yes": np.array(yes)}, 1)
        assert list(session.report.taken) == ["if/loop/my RNN"]


class TooLarge:
    """A model of more than 2 GB."""

    def SerializeToString(self) -> bytes:
        raise EncodeError("Failed to serialize proto")


class TestCalls:
    def test_outputs_are_the_callers(self) -> None:
        """No two outputs share memory, nor with an input or a constant."""
        drawn = draw("RNN", np.random.default_rng(12), (T, B, I, H))
        nodes = [*between(drawn, "x"), helper.make_node("Identity", ["Y"], ["again"])]
        outputs = [value(name) for name in ("s", "Y", "again", "x", "W")]
        proto = model(nodes, [value("x", shape=[T, B, I])], outputs, [*weights(drawn), *AXIS])
        x = x_of()
        found = accelerate(proto).run(None, {"x": x})
        close(found, by_onnxruntime(proto, {"x": x}))
        for k, array in enumerate(found):
            assert array.flags.writeable
            assert not any(np.shares_memory(array, other) for other in [x, *found[:k]])

    @pytest.fixture
    def session(self) -> Any:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        return accelerate(
            model([RELU, *between(drawn)], [value("x", shape=["t", "b", I])], [value("s")], [*weights(drawn), *AXIS])
        )

    @pytest.mark.parametrize(
        ("outputs", "feeds", "kind", "words"),
        [
            (["nothing"], {"x": x_of()}, ValueError, "the output 'nothing'; the model's are s"),
            (None, {}, ValueError, "no input x"),
            (None, {"x": x_of(), "z": x_of()}, ValueError, "the input 'z'; the model's are x"),
            (None, {"x": x_of().astype(np.float64)}, TypeError, "'x' with dtype float64; the model's is float32"),
            (None, {"x": x_of(0, T, B, I + 1)}, ValueError, r"'x' with shape \(6, 3, 5\); the model's is"),
            (None, {"x": x_of(0, B, I)}, ValueError, r"'x' with shape \(3, 4\)"),
        ],
    )
    def test_what_does_not_fit(self, session: Any, outputs: Any, feeds: Any, kind: Any, words: str) -> None:
        with pytest.raises(kind, match=words):
            session.run(outputs, feeds)

    def test_no_names_are_all(self, session: Any) -> None:
        assert len(session.run([], {"x": x_of()})) == 1

    def test_negative_sizes_are_unknown_ones(self) -> None:
        proto, feeds = single(draw("GRU", np.random.default_rng(12), (T, B, I, H)))
        proto.graph.input[0].CopyFrom(value("X", shape=[-1, -1, I]))
        session = both(proto, feeds, 1)
        assert session.get_inputs()[0].shape == [None, None, I]

    def test_weights_that_look_as_if_they_could_not_change(self) -> None:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto, feeds = single(drawn, constant=False)
        W = feeds["W"]
        session = accelerate(proto)
        for one in feeds.values():
            one.setflags(write=False)
        session.run(None, feeds)
        W.setflags(write=True)
        W += 1
        W.setflags(write=False)
        close(session.run(None, feeds), by_onnxruntime(proto, feeds))

    def test_defaults_are_packed_once(self) -> None:
        """They are the session's own, so they cannot change; those of the call replace them for the call."""
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto, feeds = single(drawn, constant=False)
        proto.graph.initializer.extend(weights(drawn))
        session = accelerate(proto)
        alone = {"X": feeds["X"]}
        wanted = by_onnxruntime(proto, alone)
        close(session.run(None, alone), wanted)
        step = session._plan.steps[0]
        kept = step._kept
        assert kept is not None
        other = {**alone, "W": feeds["W"] + 1}
        close(session.run(None, other), by_onnxruntime(proto, other))
        close(session.run(None, alone), wanted)
        assert step._kept is kept

    @pytest.mark.parametrize("before", [True, False])
    def test_bfloat16_is_not_handed_over(self, before: bool) -> None:
        """ONNX Runtime takes and gives none from Python; neither has it an LSTM of that type."""
        small = draw("LSTM", np.random.default_rng(12), (T, B, I, H), dtype=pytest.importorskip("ml_dtypes").bfloat16)
        cast = helper.make_node("Cast", ["x"], ["X"], to=TensorProto.BFLOAT16)
        back = helper.make_node("Cast", ["Y"], ["y"], to=TensorProto.FLOAT)
        x = value("x", shape=[T, B, I]) if before else value("X", small.inputs[0].dtype, [T, B, I])
        y = value("Y", small.inputs[0].dtype) if before else value("y")
        proto = model([cast, node(small)] if before else [node(small), back], [x], [y], weights(small))
        with pytest.raises(fastrnn.FileError, match="neither takes nor gives values of type bfloat16") as caught:
            accelerate(proto)
        assert type(caught.value.__cause__).__module__.startswith("onnxruntime")

    def test_models_with_bfloat16_inside_stay_whole(self) -> None:
        """An If with a layer in it reads a value of that type."""
        drawn = draw("GRU", np.random.default_rng(8), (T, B, I, H))
        then = inner([*between(drawn, "x", "a")], [], [value("a")])
        otherwise = inner([helper.make_node("Cast", ["small"], ["b"], to=TensorProto.FLOAT)], [], [value("b")])
        nodes = [helper.make_node("Cast", ["x"], ["small"], to=TensorProto.BFLOAT16)]
        nodes.append(helper.make_node("If", ["yes"], ["out"], then_branch=then, else_branch=otherwise))
        inputs = [value("x", shape=[T, B, I]), value("yes", bool, [])]
        proto = model(nodes, inputs, [value("out")], [*weights(drawn), *AXIS])
        for yes in (True, False):
            session = both(proto, {"x": x_of(), "yes": np.array(yes)}, 0, 1)
        (why,) = session.report.left.values()
        assert "values of type bfloat16 from Python, as 'small' would be" in why

    def test_what_is_too_large_for_protobuf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        given = [value("x", shape=[T, B, I])], [value("s")], [*weights(drawn), *AXIS]
        proto = model([RELU, *between(drawn)], *given)
        with monkeypatch.context() as patched:
            patched.setattr("onnx.helper.make_model", lambda *_, **__: TooLarge())
            session = accelerate(proto)
        (why,) = session.report.left.values()
        assert "a piece of the cut graph is too large for protobuf, which writes no more than 2 GB" in why
        close(session.run(None, {"x": x_of()}), by_onnxruntime(proto, {"x": x_of()}))
        with pytest.raises(fastrnn.FileError, match="big is too large for protobuf"):
            serialised(TooLarge(), "big")

    def test_what_onnxruntime_refuses(self) -> None:
        proto = model([helper.make_node("Nonsense", ["x"], ["y"])], [value("x", shape=[1])], [value("y")])
        with pytest.raises(fastrnn.FileError, match=r"the model: ONNX Runtime refuses it: .*Nonsense") as caught:
            accelerate(proto)
        assert type(caught.value.__cause__).__module__.startswith("onnxruntime")

    def test_several_threads_at_once(self, session: Any) -> None:
        wanted = [session.run(None, {"x": x_of(k)})[0] for k in range(4)]
        wrong: list[int] = []

        def work(k: int) -> None:
            for _ in range(20):
                if not np.array_equal(session.run(None, {"x": x_of(k)})[0], wanted[k]):
                    wrong.append(k)

        workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong

    def test_progress(self, session: Any) -> None:
        seen: list[tuple[str, int, int]] = []
        x = x_of(0, 9000, 1, I)
        (found,) = session.run(None, {"x": x}, progress=lambda *news: seen.append(news))
        assert [done for _, done, _ in seen] == [4096, 8192, 9000, 9000]
        assert {(name, steps) for name, _, steps in seen} == {("my GRU", 9000)}
        assert np.array_equal(found, session.run(None, {"x": x})[0])  # the pieces change no bit

    def test_options_of_the_sessions(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto = model(
            [RELU, *between(drawn)], [value("x", shape=["t", "b", I])], [value("s")], [*weights(drawn), *AXIS]
        )
        session = accelerate(proto.SerializeToString(), session_options=options, providers=["CPUExecutionProvider"])
        with fastrnn.threads(1):
            close(session.run(None, {"x": x_of()}, onnxruntime.RunOptions()), by_onnxruntime(proto, {"x": x_of()}))

"""Whole models: what PyTorch exports and graphs written by hand, through accelerate and through ONNX Runtime."""

import io
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    AXIS,
    RELU,
    WEIGHTS,
    B,
    H,
    I,
    T,
    between,
    both,
    by_onnxruntime,
    close,
    draw,
    helper,
    inner,
    model,
    node,
    numpy_helper,
    onnx,
    single,
    stored,
    value,
    weights,
    x_of,
)

from fastrnn.onnx import accelerate

onnxruntime = pytest.importorskip("onnxruntime")


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

"""Recurrent nodes in the graphs of If, Loop and Scan, through accelerate and through ONNX Runtime."""

import numpy as np
import pytest
from onnx_support import (
    AXIS,
    RELU,
    B,
    H,
    I,
    T,
    TensorProto,
    between,
    both,
    draw,
    helper,
    inner,
    model,
    node,
    numpy_helper,
    stored,
    value,
    weights,
    x_of,
)

onnxruntime = pytest.importorskip("onnxruntime")


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

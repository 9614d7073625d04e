"""Graphs as Keras' exporter and tf2onnx write them, through accelerate and through ONNX Runtime: kernels (I,G*H) that
nodes turn into W and R, batch first, states made at run time, lengths of a mask, single steps inside Loop and Scan."""

from typing import Any

import numpy as np
import pytest
from onnx_support import B, H, I, T, TensorProto, both, helper, inner, model, stored, value, x_of

onnxruntime = pytest.importorskip("onnxruntime")

# Of Keras' gates, i f c o and z r h, those of ONNX in order: i o f c and z r h.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2)}


def keras(op_type: str, end: str = "", seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Kernels and bias as Keras holds them, and the nodes that make W, R and B of them; all names end in `end`."""
    rng, order = np.random.default_rng(seed), GATES[op_type]
    G, both_biases = len(order), op_type == "GRU"  # a GRU with reset_after has a bias for each product

    def uniform(*shape: int) -> Any:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    given = {"kernel": uniform(I, G * H), "recurrent": uniform(H, G * H), "bias": uniform(1 + both_biases, G * H)}
    kept = stored(**{name + end: a for name, a in given.items()})
    kept += stored(**{f"zero{end}": np.array([0]), f"flat{end}": np.array([1, -1]), f"no{end}": uniform(1, G * H) * 0})

    def reordered(source: str, target: str, axis: int) -> list[Any]:
        parts = [f"{source}_{k}" for k in range(G)]
        split = helper.make_node("Split", [source], parts, axis=axis)
        return [split, helper.make_node("Concat", [parts[k] for k in order], [target], axis=axis)]

    nodes = []
    for source, target in (("kernel", "W"), ("recurrent", "R")):
        nodes.append(helper.make_node("Transpose", [source + end], [f"{source}_t{end}"], perm=[1, 0]))
        nodes += reordered(f"{source}_t{end}", f"{target}2{end}", 0)
        nodes.append(helper.make_node("Unsqueeze", [f"{target}2{end}", f"zero{end}"], [target + end]))
    nodes += reordered(f"bias{end}", f"sorted{end}", 1)
    if both_biases:
        nodes.append(helper.make_node("Reshape", [f"sorted{end}", f"flat{end}"], [f"B{end}"]))
    else:
        nodes.append(helper.make_node("Concat", [f"sorted{end}", f"no{end}"], [f"B{end}"], axis=1))
    return nodes, kept


def opset_13(nodes: list[Any], inputs: Any, outputs: Any, kept: list[Any]) -> Any:
    """A model of the opset at which these converters stop: Split without num_outputs, axes of Squeeze as inputs."""
    return model(nodes, inputs, outputs, kept, opset=13)


def batch_first(x: str = "x") -> Any:
    return helper.make_node("Transpose", [x], ["time_first"], perm=[1, 0, 2])


@pytest.mark.parametrize("sequences", [True, False])
def test_lstm_with_states_made_at_run_time(sequences: bool) -> None:
    """The zeros of the batch's size come from Shape, Concat and Expand."""
    nodes, kept = keras("LSTM")
    states = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "units"], ["sizes"], axis=0),
        helper.make_node("Expand", ["nothing", "sizes"], ["state"]),
    ]
    lstm = helper.make_node(
        "LSTM", ["time_first", "W", "R", "B", "", "state", "state"], ["Y", "Y_h", "Y_c"], hidden_size=H
    )
    rest = [helper.make_node("Squeeze", ["Y_h", "zero"], ["out"])]
    if sequences:
        rest = [
            helper.make_node("Squeeze", ["Y", "one"], ["y"]),
            helper.make_node("Transpose", ["y"], ["out"], perm=[1, 0, 2]),
        ]
    kept += stored(one=np.array([1]), units=np.array([H]), nothing=np.zeros((1, 1, 1), np.float32))
    proto = opset_13(
        [batch_first(), *nodes, *states, lstm, *rest], [value("x", shape=["b", "t", I])], [value("out")], kept
    )
    both(proto, {"x": x_of(1, B, T, I)}, 1)


def test_bidirectional_gru_with_reset_after_and_a_mask() -> None:
    """Two nodes, the second one reversed; the lengths are counted from the values that are not all zero."""
    forwards, kept = keras("GRU", "_f", 1)
    backwards, more = keras("GRU", "_b", 2)
    mask = [
        helper.make_node("Equal", ["x", "nothing"], ["is zero"]),
        helper.make_node("Not", ["is zero"], ["is value"]),
        helper.make_node("Cast", ["is value"], ["ones"], to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["ones"], ["valid"], axes=[2], keepdims=0),
        helper.make_node("ReduceSum", ["valid", "one"], ["lengths"], keepdims=0),
    ]
    sides = [
        helper.make_node(
            "GRU",
            ["time_first", f"W{end}", f"R{end}", f"B{end}", "lengths"],
            [f"Y{end}", f"h{end}"],
            name=name,
            hidden_size=H,
            linear_before_reset=1,
            direction=name,
        )
        for end, name in (("_f", "forward"), ("_b", "reverse"))
    ]
    joined = [helper.make_node("Squeeze", [f"Y{end}", "one"], [f"y{end}"]) for end in ("_f", "_b")]
    joined.append(helper.make_node("Concat", ["y_f", "y_b"], ["both"], axis=2))
    joined.append(helper.make_node("Transpose", ["both"], ["out"], perm=[1, 0, 2]))
    nodes = [batch_first(), *forwards, *backwards, *mask, *sides, *joined]
    kept = [*kept, *more, *stored(one=np.array([1]), nothing=np.float32(0))]
    proto = opset_13(nodes, [value("x", shape=["b", "t", I])], [value("out"), value("h_b")], kept)
    x = x_of(3, B, T, I)
    for b, length in enumerate((T, 2, 4)):
        x[b, length:] = 0
    session = both(proto, {"x": x}, 2)
    assert set(session.report.taken) == {"forward", "reverse"}


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_while_loop_of_single_steps(op_type: str) -> None:
    """A Loop that gathers the slice of each step and carries the states on; W, R and B are made outside of it."""
    nodes, kept = keras(op_type, seed=4)
    states = ["h", "c"][: 1 + (op_type == "LSTM")]
    after = [f"{s}_next" for s in states]
    options = {"linear_before_reset": 1} if op_type == "GRU" else {}
    body = inner(
        [
            helper.make_node("Gather", ["time_first", "k"], ["x_t"], axis=0),
            helper.make_node("Unsqueeze", ["x_t", "zero"], ["x_1"]),
            helper.make_node(
                op_type, ["x_1", "W", "R", "B", "", *states], ["", *after], name="step", hidden_size=H, **options
            ),
            helper.make_node("Squeeze", ["h_next", "zero"], ["y_t"]),
            helper.make_node("Add", ["k", "step"], ["following"]),
            helper.make_node("Less", ["following", "count"], ["go on"]),
        ],
        [value("k", np.int64, []), value("go", bool, []), *(value(s, shape=[1, "b", H]) for s in states)],
        [value("go on", bool, []), *(value(s, shape=[1, "b", H]) for s in after), value("y_t", shape=["b", H])],
        stored(step=np.array(1)),
    )
    starts, ends = [f"{s}0" for s in states], [f"{s}n" for s in states]
    around = [
        batch_first(),
        helper.make_node("Shape", ["time_first"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"]),
        helper.make_node("Loop", ["count", "", *starts], [*ends, "y"], name="while", body=body),
        helper.make_node("Transpose", ["y"], ["out"], perm=[1, 0, 2]),
    ]
    inputs = [value("x", shape=["b", "t", I]), *(value(s, shape=[1, "b", H]) for s in starts)]
    outputs = [value("out"), *map(value, ends)]
    proto = opset_13([*nodes, *around], inputs, outputs, [*kept, *stored(first=np.array(0))])
    feeds = {"x": x_of(5, B, T, I)} | {s: x_of(6 + k, 1, B, H) for k, s in enumerate(starts)}
    session = both(proto, feeds, 1)
    assert list(session.report.taken) == ["while/step"]


def test_scan_whose_body_turns_its_own_kernels() -> None:
    nodes, kept = keras("GRU", seed=7)
    step = [
        helper.make_node("Unsqueeze", ["x_t", "zero"], ["x_1"]),
        helper.make_node("GRU", ["x_1", "W", "R", "B", "", "h"], ["Y", "h_next"], hidden_size=H, linear_before_reset=1),
        helper.make_node("Squeeze", ["h_next", "zero"], ["y_t"]),
    ]
    ins, outs = [value("h", shape=[1, B, H]), value("x_t", shape=[B, I])], ["h_next", "y_t"]
    body = inner([*nodes, *step], ins, [value("h_next", shape=[1, B, H]), value("y_t", shape=[B, H])], kept)
    scan = helper.make_node("Scan", ["h0", "time_first"], outs, body=body, num_scan_inputs=1)
    inputs = [value("x", shape=[B, T, I]), value("h0", shape=[1, B, H])]
    proto = opset_13([batch_first(), scan], inputs, [value(name) for name in outs], [])
    both(proto, {"x": x_of(8, B, T, I), "h0": x_of(9, 1, B, H)}, 1)

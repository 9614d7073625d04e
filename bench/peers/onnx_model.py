"""A point as an ONNX model: LSTM, GRU or RNN nodes with constant weights, so that a runtime may prepack them."""

from typing import Any

import numpy as np

from fastrnn.convert import ONNX_GATES

from ..grid.problems import Problem
from .base import Array

OPSET = 17


def reorder(cell: str, weight: Array) -> Array:
    """Rows by gate in ONNX's order."""
    gates = np.split(weight, len(ONNX_GATES[cell]))
    return np.concatenate([gates[i] for i in ONNX_GATES[cell]])


def build(problem: Problem) -> Any:
    """The model: x, and of a step h0 and c0, to y and of one layer the final h and c.

    x and y are laid out as the point has them; with the batch first the model transposes, as PyTorch's exporter does.
    """
    return _Builder(problem).model()


class _Builder:
    def __init__(self, problem: Problem) -> None:
        import onnx

        self.onnx = onnx
        self.problem, self.point = problem, problem.point
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, **options))

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def layer(self, k: int, x: str, lengths: str) -> str:
        """Add one layer; return the name of its output (T,B,D*H)."""
        point, cell, weights = self.point, self.point.cell, self.problem.weights
        ends = self.problem.suffixes()[k]
        w, r = (
            self.constant(f"{name}{k}", np.stack([reorder(cell, weights[f"weight_{name}{end}"]) for end in ends]))
            for name in ("ih", "hh")
        )
        biases = [[reorder(cell, weights[f"bias_{name}{end}"]) for name in ("ih", "hh")] for end in ends]
        b = self.constant(f"b{k}", np.stack([np.concatenate(pair) for pair in biases]))
        starts = (["h0", "c0"] if cell == "LSTM" else ["h0"]) if point.mode == "step" else []
        finals = (["h", "c"] if cell == "LSTM" else ["h"]) if point.layers == 1 else []
        options = {"linear_before_reset": 1} if cell == "GRU" else {}
        direction = "bidirectional" if point.bidirectional else "forward"
        all_y = f"all{k}"
        self.node(
            cell, [x, w, r, b, lengths, *starts], [all_y, *finals], hidden_size=point.H, direction=direction, **options
        )
        y = f"y{k}"
        if point.bidirectional:
            self.node("Transpose", [all_y], [f"side{k}"], perm=[0, 2, 1, 3])
            self.node("Reshape", [f"side{k}", "joined"], [y])
        else:
            self.node("Squeeze", [all_y, "direction_axis"], [y])
        return y

    def model(self) -> Any:
        helper, point = self.onnx.helper, self.point
        real = helper.np_dtype_to_tensor_dtype(np.dtype(point.dtype))
        batch_first = point.variant == "batch_first"
        self.constant("joined", np.array([0, 0, -1]))
        self.constant("direction_axis", np.array([1]))
        lengths = ""
        if point.lengths is not None:
            lengths = self.constant("lengths", point.lengths.astype(np.int32))
        last = "x"
        if batch_first:
            self.node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2])
            last = "time_first"
        for k in range(point.layers):
            last = self.layer(k, last, lengths)
        if batch_first:
            self.node("Transpose", [last], ["y"], perm=[1, 0, 2])
        else:
            self.node("Identity", [last], ["y"])

        def value(name: str, shape: tuple[int, ...]) -> Any:
            return helper.make_tensor_value_info(name, real, shape)

        states = ["h", "c"] if point.cell == "LSTM" else ["h"]
        state = (point.directions, point.B, point.H)
        inputs = [value("x", self.problem.x.shape)]
        inputs += [value(f"{name}0", state) for name in states if point.mode == "step"]
        outputs = [value("y", self.problem.dy.shape)]
        outputs += [value(name, state) for name in states if point.layers == 1]
        graph = helper.make_graph(self.nodes, "point", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        self.onnx.checker.check_model(model)
        return model

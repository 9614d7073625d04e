"""What the tests of fastrnn.onnx share: nodes drawn from a seed, models of them, and what ONNX Runtime makes of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastrnn.onnx import accelerate  # noqa: E402

Array = NDArray[Any]
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
OPSET = 17


@dataclass
class Drawn:
    """A node: its operator, attributes and inputs, None for what is left out."""

    op_type: str
    attributes: dict[str, Any]
    inputs: list[Array | None]

    @property
    def states(self) -> list[Array | None]:
        return self.inputs[5:7]

    @property
    def lengths(self) -> Array | None:
        return self.inputs[4]


def draw(
    op_type: str,
    rng: np.random.Generator,
    sizes: tuple[int, int, int, int] = (5, 3, 4, 6),
    *,
    bias: bool = True,
    lengths: Any = None,
    states: int = 0,
    dtype: Any = np.float32,
    peepholes: bool = False,
    **attributes: Any,
) -> Drawn:
    """A node of sizes T, B, I, H; `states`: how many of initial_h and initial_c it has."""
    T, B, I, H = sizes
    D, G = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op_type]

    def uniform(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype(dtype)

    swap = slice(None, None, -1 if attributes.get("layout") else 1)
    X = uniform(*(T, B)[swap], I)
    inputs: list[Array | None] = [X, uniform(D, G * H, I), uniform(D, G * H, H)]
    inputs.append(uniform(D, 2 * G * H) if bias else None)
    inputs.append(None if lengths is None else np.asarray(lengths, np.int32))
    count = 2 if op_type == "LSTM" else 1
    inputs += [uniform(*(D, B)[swap], H) if k < states else None for k in range(count)]
    inputs += [uniform(D, 3 * H)] if peepholes else []
    return Drawn(op_type, {"hidden_size": H, **attributes}, inputs)


def value(name: str, dtype: Any = np.float32, shape: Sequence[Any] | None = None) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def stored(**arrays: Any) -> list[Any]:
    return [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()]


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    initializers: Sequence[Any] = (),
    opset: int = OPSET,
    **more: Any,
) -> Any:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more)


def node(drawn: Drawn, outputs: Sequence[str] = ("Y", "Y_h", "Y_c"), name: str | None = None, **names: str) -> Any:
    """The node itself; `names` says what its inputs are called, if not as in ONNX's text."""
    given = ["" if a is None else names.get(name, name) for name, a in zip(INPUTS, drawn.inputs, strict=False)]
    while not given[-1]:
        given.pop()
    count = 3 if drawn.op_type == "LSTM" else 2
    name = name or f"my {drawn.op_type}"
    return helper.make_node(drawn.op_type, given, list(outputs)[:count], name=name, **drawn.attributes)


def single(drawn: Drawn, constant: bool = True, opset: int = OPSET) -> tuple[Any, dict[str, Array]]:
    """A model of that node alone, its weights constant or inputs as the rest is, and what to feed it."""
    named = {name: a for name, a in zip(INPUTS, drawn.inputs, strict=False) if a is not None}
    weights = {name: named.pop(name) for name in ("W", "R", "B", "P") if constant and name in named}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if drawn.op_type == "LSTM" else 2]
    kind = named["X"].dtype
    inputs = [value(name, a.dtype, [None] * a.ndim) for name, a in named.items()]
    made = model([node(drawn)], inputs, [value(name, kind) for name in outputs], stored(**weights), opset)
    return made, named


def by_onnxruntime(proto: Any, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime makes of it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return list(onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds))


def close(found: Sequence[Any], wanted: Sequence[Any], within: float = 1e-5) -> None:
    """As ONNX Runtime's results: to 1e-5."""
    assert len(found) == len(wanted)
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape, f"output {k}"
        assert a.dtype == b.dtype, f"output {k}"
        np.testing.assert_allclose(a, b, rtol=within, atol=within, err_msg=f"output {k}")


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


def inner(nodes: Any, inputs: Any, outputs: Any, initializers: Any = ()) -> Any:
    return helper.make_graph(nodes, "inner", inputs, outputs, list(initializers))


__all__ = [
    "AXIS",
    "RELU",
    "WEIGHTS",
    "B",
    "Drawn",
    "H",
    "I",
    "T",
    "TensorProto",
    "between",
    "both",
    "by_onnxruntime",
    "close",
    "draw",
    "helper",
    "inner",
    "model",
    "node",
    "numpy_helper",
    "onnx",
    "single",
    "stored",
    "value",
    "weights",
    "x_of",
]

"""Pieces of a cut graph that NumPy computes where arrays are small: equal to ONNX Runtime, which is asked otherwise."""

import warnings
from typing import Any

import numpy as np
import pytest
from onnx_support import (
    H,
    I,
    both,
    by_onnxruntime,
    close,
    draw,
    helper,
    model,
    node,
    numpy_helper,
    stored,
    value,
    weights,
    x_of,
)

from fastrnn.onnx import accelerate

onnxruntime = pytest.importorskip("onnxruntime")

AXES = stored(zero=np.array([0]), one=np.array([1]), three=np.array([3, 2]), narrow=np.array([0, -1]))
SCALES = stored(
    A=x_of(1, I, I),
    Z=x_of(2, H, H),
    bias=x_of(3, H),
    left=x_of(4, H, 2 * H),
    wide=x_of(5, H, 3000),
    turned=x_of(6, 3, H),
)


class Counted:
    """Sessions that count their calls."""

    def __init__(self, session: Any) -> None:
        self.session, self.calls = session, 0

    def run(self, *given: Any) -> Any:
        self.calls += 1
        return self.session.run(*given)


def counted(plan: Any) -> list[Counted]:
    """Have all sessions of a plan count."""
    found = []
    for step in plan.steps:
        if hasattr(step, "session"):
            step.session = Counted(step.session)
            found.append(step.session)
    return found


def net(behind: list[Any], out: str = "out", before: str = "Relu", more: Any = ()) -> Any:
    """A product, an activation, an LSTM, and behind its last state (1,B,H), called hn, what is given."""
    drawn = draw("LSTM", np.random.default_rng(0), (1, 1, I, H), states=2)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["multiplied"]),
        helper.make_node(before, ["multiplied"], ["features"]),
        helper.make_node("Unsqueeze", ["features", "zero"], ["steps"]),
        node(drawn, ["Y", "hn", "cn"], X="steps", initial_h="h", initial_c="c"),
        *behind,
    ]
    inputs = [value("x", shape=["b", I]), value("h", shape=[1, "b", H]), value("c", shape=[1, "b", H])]
    kept = [*weights(drawn), *AXES, *SCALES, *more]
    return model(nodes, inputs, [value(out), value("hn"), value("cn")], kept)


def feeds(batch: int = 1) -> dict[str, Any]:
    return {"x": x_of(7, batch, I), "h": x_of(8, 1, batch, H), "c": x_of(9, 1, batch, H)}


def make(kind: str, *inputs: str, outputs: Any = ("out",), **options: Any) -> list[Any]:
    return [helper.make_node(kind, list(inputs), list(outputs), **options)]


FLAT = make("Squeeze", "hn", "zero", outputs=["flat"])
BEHIND = {
    "MatMul": make("MatMul", "hn", "Z"),
    "MatMul in pieces": make("MatMul", "hn", "wide"),
    "Gemm": [*FLAT, *make("Gemm", "flat", "Z", "bias")],
    "Gemm of a turned matrix without bias": [*FLAT, *make("Gemm", "flat", "turned", transB=1)],
    "Add, Mul, Sub": [
        *make("Add", "hn", "bias", outputs=["a"]),
        *make("Mul", "a", "cn", outputs=["b"]),
        *make("Sub", "bias", "b"),
    ],
    "a Constant": [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(x_of(1, H, 2), "k")),
        *make("MatMul", "hn", "k"),
    ],
    "Tanh and Sigmoid": [*make("Tanh", "cn", outputs=["a"]), *make("Sigmoid", "a")],
    "Concat of both states": make("Concat", "hn", "cn", axis=-1),
    "Split": [*make("Split", "hn", "three", outputs=["a", "b"], axis=2), *make("Concat", "b", "a", axis=2)],
    "LayerNormalization": make("LayerNormalization", "hn", "bias", "bias", epsilon=1e-3),
    "LayerNormalization without bias": make("LayerNormalization", "hn", "bias"),
    "views": [
        *make("Transpose", "cn", outputs=["a"], perm=[2, 0, 1]),
        *make("Reshape", "a", "narrow", outputs=["b"]),
        *make("Relu", "b"),
    ],
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("batch", [1, 2])
def test_what_numpy_computes(name: str, batch: int) -> None:
    """Equal to ONNX Runtime, which is not called."""
    proto = net(BEHIND[name])
    session = both(proto, feeds(batch), 1)
    sessions = counted(session._plan)
    close(session.run(None, feeds(batch)), by_onnxruntime(proto, feeds(batch)))
    assert len(sessions) == 2
    assert not any(one.calls for one in sessions)


OTHERS = {
    "an operator that is not known": make("Softplus", "hn"),
    "a product of two values": [*make("Transpose", "cn", outputs=["a"], perm=[0, 2, 1]), *make("MatMul", "hn", "a")],
    "Gemm with alpha": [*FLAT, *make("Gemm", "flat", "Z", "bias", alpha=0.5)],
    "Split in equal parts": [*make("Split", "left", outputs=["a", "b"], axis=1), *make("MatMul", "hn", "b")],
    "LayerNormalization over more axes": make("LayerNormalization", "hn", "one_by_H", axis=1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_onnxruntime_computes(name: str) -> None:
    proto = net(OTHERS[name], more=stored(one_by_H=x_of(5, 1, H)))
    session = both(proto, feeds(), 1)
    sessions = counted(session._plan)
    session.run(None, feeds())
    known = name == "Split in equal parts"  # of a constant, so that the product's matrix is known
    assert [one.calls for one in sessions] == [not known] * 2  # all pieces or none


def test_large_arrays_go_to_onnxruntime() -> None:
    proto = net(BEHIND["MatMul"])
    session = both(proto, feeds(2000), 1)
    sessions = counted(session._plan)
    close(session.run(None, feeds(2000)), by_onnxruntime(proto, feeds(2000)))
    assert all(one.calls == 1 for one in sessions)


def test_no_warnings_of_infinities() -> None:
    """As in ONNX Runtime; NaN goes on, and a sigmoid is 0 or 1 far out."""
    proto = net([*make("Sub", "hn", "hn", outputs=["a"]), *make("Sigmoid", "cn")], before="Identity")
    given = feeds(3)
    given["c"][:] = np.array([np.inf, -np.inf, 1e30], np.float32)[None, :, None]
    session = accelerate(proto)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(session.run(None, given), by_onnxruntime(proto, given))


def test_what_does_not_fit_is_onnxruntimes_error() -> None:
    proto = net([*FLAT, *make("Add", "flat", "pair")], more=stored(pair=x_of(3, 4, 1)))
    session = accelerate(proto)
    assert session.run(None, feeds(4))[0].shape == (4, H)
    with pytest.raises(Exception, match="axis == 1") as caught:
        session.run(None, feeds(3))
    assert type(caught.value).__module__.startswith("onnxruntime")


def test_results_share_no_memory() -> None:
    proto = net(make("Identity", "hn"))
    given = feeds()
    kept = {name: array.copy() for name, array in given.items()}
    session = accelerate(proto)
    first = session.run(None, given)
    copies = [array.copy() for array in first]
    for array in first:
        array += 1
    for one, two in zip(session.run(None, given), copies, strict=True):
        np.testing.assert_array_equal(one, two)
    for name, array in given.items():
        np.testing.assert_array_equal(array, kept[name])

"""Weights in fewer bits in ONNX models: accelerate(weights=), and nodes that hold int8 already."""

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_support import by_onnxruntime, draw, single  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.onnx import accelerate, load  # noqa: E402

SIZES = (7, 3, 20, 33)
WORDS: list[Any] = ["int8", "bfloat16", {"ih": "bfloat16", "hh": "int8"}]


def small(drawn: Any) -> Any:
    """Weights of PyTorch's scale."""
    for k in (1, 2, 3):
        drawn.inputs[k] = drawn.inputs[k] / np.float32(33**0.5)
    return drawn


@pytest.mark.parametrize("weights", WORDS)
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("GRU", {}), ("RNN", {"direction": "bidirectional"})],
)
def test_sessions_compute_what_the_frozen_layer_does(kind: str, attributes: dict[str, Any], weights: Any) -> None:
    drawn = small(draw(kind, np.random.default_rng(0), SIZES, states=2, **attributes))
    proto, feeds = single(drawn)
    session = accelerate(proto, weights=weights)
    (said,) = session.report.taken.values()
    assert said.endswith(f"), weights={weights!r}")
    found = session.run(None, feeds)
    (layer,) = load(proto).values()
    state = fastrnn.LSTMState(*drawn.inputs[5:7]) if kind == "LSTM" else drawn.inputs[5]
    y, _ = layer.freeze(weights)(feeds["X"], state)
    assert np.array_equal(found[0].transpose(0, 2, 1, 3).reshape(y.shape), y)
    exact = by_onnxruntime(proto, feeds)
    worst = max(np.abs(a - b).max() for a, b in zip(found, exact, strict=True))
    assert 0 < worst < 0.03
    assert not np.array_equal(found[0], accelerate(proto).run(None, feeds)[0])
    one = {**feeds, "X": feeds["X"][:1]}
    assert np.array_equal(session.run(None, one)[0][0, 0], found[0][0, 0])  # one step, straight to the frozen layer


def test_what_stays_in_full_says_so() -> None:
    rng = np.random.default_rng(0)
    proto, feeds = single(draw("LSTM", rng, SIZES), constant=False)
    session = accelerate(proto, weights="int8")
    assert list(session.report.taken.values()) == ["LSTM(hidden_size=33), weights in full: they come with the call"]
    assert np.array_equal(session.run(None, feeds)[0], accelerate(proto).run(None, feeds)[0])
    proto, _ = single(draw("LSTM", rng, SIZES, dtype=np.float16))
    (said,) = accelerate(proto, weights="int8").report.taken.values()
    assert said.endswith("weights in full: they are float16")
    drawn = draw("GRU", rng, SIZES)
    drawn.inputs[2][0, 1, 2] = np.inf
    (said,) = accelerate(single(drawn)[0], weights="int8").report.taken.values()
    assert "weight_hh_l0 with numbers that are not finite in int8" in said
    with pytest.raises(ValueError, match="accelerate got weights='int4'"):
        accelerate(proto, weights="int4")

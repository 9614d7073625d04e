"""Weights in fewer bits in ONNX models: accelerate(weights=), and nodes that hold int8 already."""

import copy
import tempfile
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
pytest.importorskip("onnxruntime")

from onnx_support import by_onnxruntime, draw, single, value  # noqa: E402
from onnx_support import stored as initializers  # noqa: E402

import fastrnn  # noqa: E402
from fastrnn.checks import Problems  # noqa: E402
from fastrnn.onnx import accelerate, load, operators, run_node  # noqa: E402
from fastrnn.onnx.quantized import dequantised  # noqa: E402

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


# ---- DynamicQuantizeLSTM ---------------------------------------------------------------------------------------------

# Largest difference from ONNX Runtime's own DynamicQuantizeLSTM on weights of PyTorch's scale: each rounds x and h in
# its own way, to 8 bits, so that each is off the same model in float32 by about 1e-2 (docs/fewer_bits.md).
PEER = 3e-2


def integers(drawn: Any, rng: np.random.Generator, kind: str, per_channel: bool, zero: int) -> dict[str, Any]:
    """W, R and what counts them, of a model whose weights are an LSTM's, rounded."""
    found = {}
    for name, array in zip("WR", drawn.inputs[1:3], strict=True):
        rows = array.swapaxes(1, 2)  # (D,K,4H)
        axis = 1 if per_channel else (1, 2)
        scale = (np.abs(rows).max(axis) / np.float32(100)).astype(np.float32)
        per = scale[:, None] if per_channel else scale[:, None, None]
        found[name] = (np.rint(rows / per) + zero).astype(kind)
        found[f"{name}_scale"] = scale
        found[f"{name}_zero_point"] = np.full(scale.shape, zero, kind)
    return found


def stored(drawn: Any, more: dict[str, Any], **left_out: Any) -> tuple[Any, dict[str, Any]]:
    """A model of that node alone, its weights constant."""
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P", *[k for k in more if k[1:2] == "_"])
    named = {name: a for name, a in zip(names, drawn.inputs, strict=False) if a is not None} | more
    constants = {k: named.pop(k) for k in list(named) if k in ("B", "P") or k in more}
    node = onnx.helper.make_node(
        "DynamicQuantizeLSTM",
        [name if name in named or name in constants else "" for name in names],
        ["Y", "Y_h", "Y_c"],
        domain="com.microsoft",
        name="quick",
        **drawn.attributes,
    )
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [value(name, a.dtype, [None] * a.ndim) for name, a in named.items()],
        [value(name) for name in node.output],
        initializers(**constants),
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), named


def in_float32(drawn: Any, more: dict[str, Any]) -> Any:
    """The LSTM node with what the integers stand for."""
    copied = copy.deepcopy(drawn)
    for k, name in ((1, "W"), (2, "R")):
        scale, zero = more[f"{name}_scale"], more[f"{name}_zero_point"].astype(np.float32)
        D = len(scale)
        per, shift = scale.reshape(D, 1, -1), zero.reshape(D, 1, -1)
        copied.inputs[k] = np.ascontiguousarray(((more[name] - shift) * per).swapaxes(1, 2).astype(np.float32))
    return copied


@pytest.mark.parametrize(("kind", "zero"), [("int8", 0), ("uint8", 128), ("uint8", 119), ("int8", -20)])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_stored_int8_is_computed_as_it_is(direction: str, per_channel: bool, kind: str, zero: int) -> None:
    rng = np.random.default_rng(0)
    drawn = small(draw("LSTM", rng, (9, 4, 20, 33), states=2, lengths=[9, 5, 1, 9], direction=direction))
    more = integers(drawn, rng, kind, per_channel, zero)
    proto, feeds = stored(drawn, more)
    session = accelerate(proto)
    assert list(session.report.taken) == ["quick"]
    assert session.report.taken["quick"].startswith("DynamicQuantizeLSTM(hidden_size=33")
    found = session.run(None, feeds)
    exact = by_onnxruntime(*single(in_float32(drawn, more)))
    for a, b in zip(found, exact, strict=True):
        assert 0 < np.abs(a - b).max() < 1.5e-2
    if zero in (0, 128) or not per_channel:  # ONNX Runtime refuses others, although its text has them
        theirs = by_onnxruntime(proto, feeds)
        assert all(np.abs(a - c).max() < PEER for a, c in zip(found, theirs, strict=True))
        assert np.abs(found[0] - exact[0]).mean() <= 1.05 * np.abs(theirs[0] - exact[0]).mean()
    inputs = [feeds["X"], more["W"], more["R"], drawn.inputs[3], drawn.inputs[4], *drawn.inputs[5:7], None]
    inputs += [more[k] for k in ("W_scale", "W_zero_point", "R_scale", "R_zero_point")]
    alone = run_node("DynamicQuantizeLSTM", drawn.attributes, inputs)
    assert all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))
    if direction != "reverse":
        (fast,), (layer,) = load(proto, frozen=True).values(), load(proto).values()
        state = fastrnn.LSTMState(*drawn.inputs[5:7])
        y, _ = fast(feeds["X"], state, lengths=drawn.inputs[4])
        assert np.array_equal(y.reshape(9, 4, -1, 33), found[0].transpose(0, 2, 1, 3))
        full, _ = layer(feeds["X"], state, lengths=drawn.inputs[4])
        assert np.abs(full.reshape(9, 4, -1, 33) - exact[0].transpose(0, 2, 1, 3)).max() < 1e-5
        assert repr(fast).endswith(".freeze(weights='int8')")
        if zero in (0, 128):  # with the scales that they have
            scale = more["W_scale"]
            per = np.broadcast_to(scale.reshape(len(scale), -1), (len(scale), 4 * 33))[0]
            assert set(fast._scales["weight_ih_l0"].tolist()) == set(per.tolist())


def test_scales_are_kept_where_rows_fit_and_the_others_are_rounded_once_more() -> None:
    problems = Problems(lambda: "it")
    W = np.zeros((1, 2, 4), np.uint8)
    W[0, :, :] = [[255, 128, 10, 1], [3, 0, 5, 1]]
    R = np.zeros((1, 1, 4), np.uint8)
    scale, zero = np.full(1, 0.5, np.float32), np.array([127], np.uint8)
    weights, (counts, of_r) = dequantised(problems, 1, 1, [W, R, None, None, scale, zero, scale, None])
    assert not problems.text()
    assert np.array_equal(weights[0][0], (W[0].T.astype(np.float32) - 127) * np.float32(0.5))
    assert counts.tolist() == [[0.5, 0.5, 0.5, 0.5]]  # the first reaches 128, which counts as 127
    assert of_r.tolist() == [[0.5] * 4]
    zero[0] = 100
    _, (counts, _) = dequantised(problems, 1, 1, [W, R, None, None, scale, zero, scale, None])
    assert counts[0, 0] == np.float32(0.5) * 155 / np.float32(127)
    assert counts[0, 1:].tolist() == [0.5] * 3


def test_models_that_onnxruntime_quantised() -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    drawn = small(draw("LSTM", np.random.default_rng(3), (30, 2, 24, 64)))
    proto, feeds = single(drawn)
    exact = by_onnxruntime(proto, feeds)
    for kind in (quantization.QuantType.QInt8, quantization.QuantType.QUInt8):
        for per_channel in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                onnx.save(proto, f"{folder}/full.onnx")
                quantization.quantize_dynamic(
                    f"{folder}/full.onnx", f"{folder}/q.onnx", weight_type=kind, per_channel=per_channel
                )
                quantised = onnx.load(f"{folder}/q.onnx")
            if not any(node.op_type == "DynamicQuantizeLSTM" for node in quantised.graph.node):
                continue
            session = accelerate(quantised)
            assert len(session.report.taken) == 1
            found, theirs = session.run(None, feeds), by_onnxruntime(quantised, feeds)
            for a, b, c in zip(found, exact, theirs, strict=True):
                assert np.abs(a - c).max() < PEER
                assert np.abs(a - b).max() < 1.5e-2
            evaluator = onnx.reference.ReferenceEvaluator(quantised, new_ops=operators())
            assert np.array_equal(evaluator.run(None, feeds)[0], found[0])


def test_nodes_that_contradict_themselves() -> None:
    rng = np.random.default_rng(0)
    drawn = small(draw("LSTM", rng, SIZES))
    right = integers(drawn, rng, "int8", True, 0)

    def run(attributes: Any = None, **changed: Any) -> Any:
        more = {**right, **changed}
        inputs = [drawn.inputs[0], more["W"], more["R"], None, None, None, None, None]
        inputs += [more[k] for k in ("W_scale", "W_zero_point", "R_scale", "R_zero_point")]
        return run_node("DynamicQuantizeLSTM", {**drawn.attributes, **(attributes or {})}, inputs)

    y = run()[0]
    assert np.array_equal(run(W_zero_point=None, R_zero_point=None)[0], y)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"W": right["W"].swapaxes(1, 2)}, r"W with shape \(1, 132, 20\).*\n.*\(1, inputs, 132\)"),
        ({"W": right["W"].astype(np.float32)}, "W of float32"),
        ({"R": None}, "no R"),
        ({"R_scale": None}, "no R_scale"),
        ({"R_scale": right["R_scale"][:, :3]}, "R_scale"),
        ({"W_scale": right["W_scale"] * 0}, "W_scale with 0.0"),
        ({"W_scale": right["W_scale"] * np.float32(np.nan)}, "W_scale with nan"),
        ({"W_zero_point": right["W_zero_point"].astype(np.uint8)}, "W_zero_point"),
        ({"R": right["R"][:, :5]}, "R with shape"),
        ({"attributes": {"layout": 1}}, "the attribute layout"),
    ]
    for changed, words in wrong:
        with pytest.raises((ValueError, TypeError), match=words):
            run(**changed)
    proto, _ = stored(drawn, {**right, "W_scale": right["W_scale"] * 0})
    from fastrnn.onnx.choosing import choose

    _, report = choose(proto, "m")
    assert "W_scale with 0.0" in report.left["quick"]
    del proto.graph.initializer[:]
    _, report = choose(proto, "m")
    assert report.left["quick"] == "its weights come with the call"

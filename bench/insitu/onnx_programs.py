"""ONNX models in ONNX Runtime, and in a session of fastrnn.onnx.accelerate."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import fastrnn

from .program import Pair, Program, Side, Stopwatch

FEATURES = 40


def _sessions(model: Any, threads: int) -> tuple[Any, Any]:
    import onnxruntime

    from fastrnn.onnx import accelerate

    fastrnn.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads disturb the other side's turn
    return onnxruntime.InferenceSession(model.SerializeToString(), options), accelerate(model)


def _saved(layer: Any) -> Any:
    """A model of that layer alone."""
    import tempfile
    from pathlib import Path

    import onnx

    from fastrnn.onnx import save

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        save(layer, path)
        return onnx.load(path)


def _tagger(H: int) -> Any:
    """Two layers in both directions between two products: a graph that is cut in two."""
    from onnx import TensorProto, compose, helper, numpy_helper

    rng = np.random.default_rng(0)

    def product(name: str, x: str, y: str, rows: int, columns: int) -> Any:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(rows**0.5)
        nodes = [helper.make_node("MatMul", [x, name], [f"{y}_"]), helper.make_node("Relu", [f"{y}_"], [y])]
        given, found = (
            helper.make_tensor_value_info(one, TensorProto.FLOAT, ["time", "batch", size])
            for one, size in ((x, rows), (y, columns))
        )
        graph = helper.make_graph(nodes, name, [given], [found], [numpy_helper.from_array(weights, name)])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    recurrent = _saved(fastrnn.GRU(H, H, num_layers=2, bidirectional=True, rng=0))
    model = compose.merge_models(product("read_in", "samples", "features", FEATURES, H), recurrent, [("features", "x")])
    return compose.merge_models(model, product("read_out", "all", "tags", 2 * H, 10), [("y", "all")], outputs=["tags"])


def _pair(model: Any, shape: tuple[int, int, int], threads: int) -> Pair:
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)

    def side(session: Any) -> Side:
        feeds = {session.get_inputs()[0].name: x}
        watch = Stopwatch()
        return Side(lambda: session.run(None, feeds)[0], watch)

    theirs, ours = _sessions(model, threads)
    return Pair(side(theirs), side(ours))


def _build_tagger(H: int, T: int, B: int, threads: int) -> Pair:
    return _pair(_tagger(H), (T, B, FEATURES), threads)


def _build_node(kind: str, H: int, T: int, threads: int) -> Pair:
    return _pair(_saved(getattr(fastrnn, kind)(H, H, rng=0)), (T, 1, H), threads)


def programs() -> Iterator[Program]:
    """All of them."""
    bind = functools.partial
    yield Program("onnx-tagger-GRU-H128-L2-bi-B4-T100-inference", bind(_build_tagger, 128, 100, 4))
    for kind in ("LSTM", "GRU"):
        for T in (1, 8, 32, 512):
            yield Program(f"onnx-node-{kind}-H128-B1-T{T}-inference", bind(_build_node, kind, 128, T), always=T == 32)

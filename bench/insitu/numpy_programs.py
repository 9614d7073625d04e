"""Loops of NumPy programs in which other libraries' threads are at work: our calls on one thread and on all of them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastrnn

from .program import Pair, Program, Side, Stopwatch

STEPS = 30  # of a stream, in a call of the whole


def _sides(threads: int, body: Callable[[Stopwatch], Any]) -> Pair:
    def side(n: int) -> Side:
        watch = Stopwatch()
        return Side(lambda: body(watch), watch, functools.partial(fastrnn.threads, n))

    return Pair(side(1), side(threads))


def _draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _product() -> Callable[[], Any]:
    """A product that NumPy's BLAS shares out, and whose workers spin afterwards."""
    a, b = _draw(256, 512), _draw(512, 512)
    return lambda: a @ b


def _session() -> Callable[[], Any]:
    """A small network in ONNX Runtime, whose workers spin, too."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Tanh", ["p"], ["y"])]
    shape = [256, 512]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(_draw(512, 512) / 16, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = fastrnn.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), threads, providers=["CPUExecutionProvider"])
    x = _draw(*shape)
    return lambda: session.run(None, {"x": x})[0]


NEIGHBOURS: dict[str, Callable[[], Callable[[], Any]]] = {"product": _product, "onnxruntime": _session}


def _stream(neighbour: str, H: int, threads: int) -> Pair:
    """Steps of a frozen layer, and the neighbour's work between two of them."""
    other = NEIGHBOURS[neighbour]()
    frozen = fastrnn.LSTM(64, H, rng=0).freeze()
    x = _draw(STEPS, 1, 64)

    def body(watch: Stopwatch) -> Any:
        state = None
        for x_t in x:
            other()
            watch.start()
            y, state = frozen.step(x_t, state)
            watch.stop()
        return y

    return _sides(threads, body)


def _training(neighbour: str, H: int, B: int, T: int, threads: int) -> Pair:
    """Forward and backward, and the neighbour's work before and between them."""
    other = NEIGHBOURS[neighbour]()
    layer = fastrnn.LSTM(64, H, rng=0)
    x, dy = _draw(T, B, 64), _draw(T, B, H)

    def body(watch: Stopwatch) -> Any:
        other()
        watch.start()
        _, _, tape = layer.forward(x, training=True)
        watch.stop()
        other()
        watch.start()
        grads = layer.backward(tape, dy)
        watch.stop()
        return grads.x

    return _sides(threads, body)


def _against_onnxruntime(H: int, B: int, T: int, threads: int) -> Pair:
    """An ONNX Runtime program whose LSTM is ONNX Runtime's, or a frozen layer of ours."""
    from ..grid.problems import Problem
    from ..grid.shapes import Point
    from ..peers.runtimes import ONNXRuntime

    other = _session()
    problem = Problem(Point("LSTM", "inference", T, B, H, H, threads=threads))
    theirs, frozen = ONNXRuntime(threads).job(problem), problem.layer.freeze()

    def side(recur: Callable[[], Any]) -> Side:
        watch = Stopwatch()

        def run() -> Any:
            other()
            watch.start()
            y = recur()
            watch.stop()
            return y

        return Side(run, watch)

    return Pair(side(lambda: theirs.read(theirs.run())["y"]), side(lambda: frozen(problem.x)[0]))


def programs() -> Iterator[Program]:
    """All of them."""
    bind = functools.partial
    for neighbour in NEIGHBOURS:
        name = f"numpy-beside-{neighbour}"
        for H in (256, 512):
            yield Program(f"{name}-steps-LSTM-H{H}-B1", bind(_stream, neighbour, H), 2)
        for H, B, T in ((256, 16, 50), (256, 32, 64)):
            yield Program(f"{name}-training-LSTM-H{H}-B{B}-T{T}", bind(_training, neighbour, H, B, T), 2)
    yield Program("onnxruntime-LSTM-H256-B1-T50-inference", bind(_against_onnxruntime, 256, 1, 50))

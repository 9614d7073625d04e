"""Calls of a session: what belongs to whom, what is refused, what goes to ONNX Runtime, threads."""

import threading
from typing import Any

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
    by_onnxruntime,
    close,
    draw,
    helper,
    inner,
    model,
    node,
    single,
    value,
    weights,
    x_of,
)

import fastrnn
from fastrnn.onnx import accelerate
from fastrnn.onnx.reading import serialised

onnxruntime = pytest.importorskip("onnxruntime")
from google.protobuf.message import EncodeError  # noqa: E402


class TooLarge:
    """A model of more than 2 GB."""

    def SerializeToString(self) -> bytes:
        raise EncodeError("Failed to serialize proto")


class TestCalls:
    def test_outputs_are_the_callers(self) -> None:
        """No two outputs share memory, nor with an input or a constant."""
        drawn = draw("RNN", np.random.default_rng(12), (T, B, I, H))
        nodes = [*between(drawn, "x"), helper.make_node("Identity", ["Y"], ["again"])]
        outputs = [value(name) for name in ("s", "Y", "again", "x", "W")]
        proto = model(nodes, [value("x", shape=[T, B, I])], outputs, [*weights(drawn), *AXIS])
        x = x_of()
        found = accelerate(proto).run(None, {"x": x})
        close(found, by_onnxruntime(proto, {"x": x}))
        for k, array in enumerate(found):
            assert array.flags.writeable
            assert not any(np.shares_memory(array, other) for other in [x, *found[:k]])

    @pytest.fixture
    def session(self) -> Any:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        return accelerate(
            model([RELU, *between(drawn)], [value("x", shape=["t", "b", I])], [value("s")], [*weights(drawn), *AXIS])
        )

    @pytest.mark.parametrize(
        ("outputs", "feeds", "kind", "words"),
        [
            (["nothing"], {"x": x_of()}, ValueError, "the output 'nothing'; the model's are s"),
            (None, {}, ValueError, "no input x"),
            (None, {"x": x_of(), "z": x_of()}, ValueError, "the input 'z'; the model's are x"),
            (None, {"x": x_of().astype(np.float64)}, TypeError, "'x' with dtype float64; the model's is float32"),
            (None, {"x": x_of(0, T, B, I + 1)}, ValueError, r"'x' with shape \(6, 3, 5\); the model's is"),
            (None, {"x": x_of(0, B, I)}, ValueError, r"'x' with shape \(3, 4\)"),
        ],
    )
    def test_what_does_not_fit(self, session: Any, outputs: Any, feeds: Any, kind: Any, words: str) -> None:
        with pytest.raises(kind, match=words):
            session.run(outputs, feeds)

    def test_no_names_are_all(self, session: Any) -> None:
        assert len(session.run([], {"x": x_of()})) == 1

    def test_negative_sizes_are_unknown_ones(self) -> None:
        proto, feeds = single(draw("GRU", np.random.default_rng(12), (T, B, I, H)))
        proto.graph.input[0].CopyFrom(value("X", shape=[-1, -1, I]))
        session = both(proto, feeds, 1)
        assert session.get_inputs()[0].shape == [None, None, I]

    def test_weights_that_look_as_if_they_could_not_change(self) -> None:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto, feeds = single(drawn, constant=False)
        W = feeds["W"]
        session = accelerate(proto)
        for one in feeds.values():
            one.setflags(write=False)
        session.run(None, feeds)
        W.setflags(write=True)
        W += 1
        W.setflags(write=False)
        close(session.run(None, feeds), by_onnxruntime(proto, feeds))

    def test_defaults_are_packed_once(self) -> None:
        """They are the session's own, so they cannot change; those of the call replace them for the call."""
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto, feeds = single(drawn, constant=False)
        proto.graph.initializer.extend(weights(drawn))
        session = accelerate(proto)
        alone = {"X": feeds["X"]}
        wanted = by_onnxruntime(proto, alone)
        close(session.run(None, alone), wanted)
        step = session._plan.steps[0]
        kept = step._kept
        assert kept is not None
        other = {**alone, "W": feeds["W"] + 1}
        close(session.run(None, other), by_onnxruntime(proto, other))
        close(session.run(None, alone), wanted)
        assert step._kept is kept

    @pytest.mark.parametrize("before", [True, False])
    def test_bfloat16_is_not_handed_over(self, before: bool) -> None:
        """ONNX Runtime takes and gives none from Python; neither has it an LSTM of that type."""
        small = draw("LSTM", np.random.default_rng(12), (T, B, I, H), dtype=pytest.importorskip("ml_dtypes").bfloat16)
        cast = helper.make_node("Cast", ["x"], ["X"], to=TensorProto.BFLOAT16)
        back = helper.make_node("Cast", ["Y"], ["y"], to=TensorProto.FLOAT)
        x = value("x", shape=[T, B, I]) if before else value("X", small.inputs[0].dtype, [T, B, I])
        y = value("Y", small.inputs[0].dtype) if before else value("y")
        proto = model([cast, node(small)] if before else [node(small), back], [x], [y], weights(small))
        with pytest.raises(fastrnn.FileError, match="neither takes nor gives values of type bfloat16") as caught:
            accelerate(proto)
        assert type(caught.value.__cause__).__module__.startswith("onnxruntime")

    def test_models_with_bfloat16_inside_stay_whole(self) -> None:
        """An If with a layer in it reads a value of that type."""
        drawn = draw("GRU", np.random.default_rng(8), (T, B, I, H))
        then = inner([*between(drawn, "x", "a")], [], [value("a")])
        otherwise = inner([helper.make_node("Cast", ["small"], ["b"], to=TensorProto.FLOAT)], [], [value("b")])
        nodes = [helper.make_node("Cast", ["x"], ["small"], to=TensorProto.BFLOAT16)]
        nodes.append(helper.make_node("If", ["yes"], ["out"], then_branch=then, else_branch=otherwise))
        inputs = [value("x", shape=[T, B, I]), value("yes", bool, [])]
        proto = model(nodes, inputs, [value("out")], [*weights(drawn), *AXIS])
        for yes in (True, False):
            session = both(proto, {"x": x_of(), "yes": np.array(yes)}, 0, 1)
        (why,) = session.report.left.values()
        assert "values of type bfloat16 from Python, as 'small' would be" in why

    def test_what_is_too_large_for_protobuf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        given = [value("x", shape=[T, B, I])], [value("s")], [*weights(drawn), *AXIS]
        proto = model([RELU, *between(drawn)], *given)
        with monkeypatch.context() as patched:
            patched.setattr("onnx.helper.make_model", lambda *_, **__: TooLarge())
            session = accelerate(proto)
        (why,) = session.report.left.values()
        assert "a piece of the cut graph is too large for protobuf, which writes no more than 2 GB" in why
        close(session.run(None, {"x": x_of()}), by_onnxruntime(proto, {"x": x_of()}))
        with pytest.raises(fastrnn.FileError, match="big is too large for protobuf"):
            serialised(TooLarge(), "big")

    def test_what_onnxruntime_refuses(self) -> None:
        proto = model([helper.make_node("Nonsense", ["x"], ["y"])], [value("x", shape=[1])], [value("y")])
        with pytest.raises(fastrnn.FileError, match=r"the model: ONNX Runtime refuses it: .*Nonsense") as caught:
            accelerate(proto)
        assert type(caught.value.__cause__).__module__.startswith("onnxruntime")

    def test_several_threads_at_once(self, session: Any) -> None:
        wanted = [session.run(None, {"x": x_of(k)})[0] for k in range(4)]
        wrong: list[int] = []

        def work(k: int) -> None:
            for _ in range(20):
                if not np.array_equal(session.run(None, {"x": x_of(k)})[0], wanted[k]):
                    wrong.append(k)

        workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong

    def test_progress(self, session: Any) -> None:
        seen: list[tuple[str, int, int]] = []
        x = x_of(0, 9000, 1, I)
        (found,) = session.run(None, {"x": x}, progress=lambda *news: seen.append(news))
        assert [done for _, done, _ in seen] == [4096, 8192, 9000, 9000]
        assert {(name, steps) for name, _, steps in seen} == {("my GRU", 9000)}
        assert np.array_equal(found, session.run(None, {"x": x})[0])  # the pieces change no bit

    def test_options_of_the_sessions(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        drawn = draw("GRU", np.random.default_rng(12), (T, B, I, H))
        proto = model(
            [RELU, *between(drawn)], [value("x", shape=["t", "b", I])], [value("s")], [*weights(drawn), *AXIS]
        )
        session = accelerate(proto.SerializeToString(), session_options=options, providers=["CPUExecutionProvider"])
        with fastrnn.threads(1):
            close(session.run(None, {"x": x_of()}, onnxruntime.RunOptions()), by_onnxruntime(proto, {"x": x_of()}))

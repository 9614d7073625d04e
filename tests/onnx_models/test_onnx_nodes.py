"""One node at a time: a grid over all attributes against the text of ONNX and ONNX Runtime, and what is refused."""

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx_support import Drawn, by_onnxruntime, close, draw, helper, model, node, onnx, single, value

import fastrnn.onnx
import reference_onnx
from fastrnn import ShapeError
from fastrnn.nodes import departure, parse
from fastrnn.onnx import accelerate, run_node
from support import assert_close

DIRECTIONS = ("forward", "reverse", "bidirectional")
SIZES = ((5, 3, 4, 6), (1, 1, 3, 8), (4, 2, 3, 17))
LENGTHS = (None, "ragged", "zeros", "all")
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "RNN": [
        {},
        {"activations": ["Relu"]},
        {"activations": ["tanh"]},
        {"activations": ["Relu", "Tanh"]},
        {"activations": ["Elu"], "activation_alpha": [0.7], "clip": 0.5},
    ],
    "GRU": [
        {},
        {"linear_before_reset": 1},
        {"activations": ["Sigmoid", "Tanh"]},
        {"activations": ["HardSigmoid", "Softsign"], "clip": 0.5},
        {"linear_before_reset": 1, "activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.2, 0.3]},
    ],
    "LSTM": [
        {},
        {"input_forget": 0},
        {"activations": ["Sigmoid", "Tanh", "Tanh"]},
        {"peepholes": True, "input_forget": 1},
        {
            "peepholes": True,
            "activations": ["HardSigmoid", "ScaledTanh", "Affine"],
            "activation_alpha": [0.3, 1.2, 0.8],
        },
        {"clip": 0.5, "activations": ["Sigmoid", "Softplus", "Softsign"]},
    ],
}


def lengths_of(word: str | None, T: int, B: int, rng: np.random.Generator) -> Any:
    if word is None:
        return None
    return {"ragged": rng.integers(0, T + 1, B), "zeros": np.zeros(B, int), "all": np.full(B, T)}[word]


def grid(op_type: str) -> Iterator[Drawn]:
    for direction, sizes, word, layout, states, bias, dtype, variant in itertools.product(
        DIRECTIONS, SIZES, LENGTHS, (0, 1), (0, 1), (True, False), (np.float32, np.float64), VARIANTS[op_type]
    ):
        D, names = 1 + (direction == "bidirectional"), variant.get("activations", [])
        each = {"RNN": 1, "GRU": 2, "LSTM": 3}[op_type]
        attributes = {"direction": direction, "layout": layout, **variant}
        if names and len(names) != each * D:
            if len(names) > each:  # a variant of both directions
                continue
            attributes["activations"] = names * D
        seed = zlib.crc32(repr((op_type, direction, sizes, word, layout, states, bias, variant)).encode())
        rng = np.random.default_rng(seed)
        lengths = lengths_of(word, *sizes[:2], rng)
        count = states * (1 + (op_type == "LSTM"))
        yield draw(op_type, rng, sizes, bias=bias, lengths=lengths, states=count, dtype=dtype, **attributes)


def textbook(drawn: Drawn) -> list[Any]:
    X, W, R, B, lengths, *more = (None if a is None else a.astype(np.float64) for a in drawn.inputs)
    assert X is not None
    assert W is not None
    assert R is not None
    return reference_onnx.node(drawn.op_type, drawn.attributes, X, W, R, B, lengths, *more)


@pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])
def test_the_text_over_every_attribute(op_type: str) -> None:
    count = 0
    for drawn in grid(op_type):
        found = run_node(op_type, drawn.attributes, drawn.inputs)
        kind = str(drawn.inputs[0].dtype)
        for name, a, b in zip(("Y", "Y_h", "Y_c"), found, textbook(drawn), strict=False):
            assert_close(a, b, kind, "forward", f"{name} of {op_type} {drawn.attributes} {drawn.lengths}")
        count += 1
    assert count > 1000


@pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])
def test_onnxruntime_where_it_follows_the_text(op_type: str) -> None:
    pytest.importorskip("onnxruntime")
    count = 0
    for drawn in grid(op_type):
        lengths = drawn.lengths
        if drawn.attributes["layout"] or drawn.inputs[0].dtype != np.float32 or len(drawn.inputs[0]) == 1:
            continue
        if lengths is not None and not lengths.all():
            continue
        if drawn.op_type == "RNN" and "tanh" in drawn.attributes.get("activations", []):
            continue  # it wants the names of an RNN's as the text spells them
        if departure(parse(op_type, drawn.attributes, len(drawn.inputs) > 7, "test")):
            continue
        proto, feeds = single(drawn)
        close(run_node(op_type, drawn.attributes, drawn.inputs), by_onnxruntime(proto, feeds), 4e-6)
        count += 1
    assert count > 70


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])
def test_opsets(op_type: str, opset: int) -> None:
    drawn = draw(op_type, np.random.default_rng(1), lengths=[2, 5, 1], states=2)
    proto, feeds = single(drawn, opset=opset)
    session = accelerate(proto)
    assert len(session.report.taken) == 1
    close(session.run(None, feeds), by_onnxruntime(proto, feeds))


class TestDepartures:
    """Where ONNX Runtime departs from the text: both are stated, and accelerate answers as it does."""

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])
    def test_the_final_states_of_length_0(self, op_type: str, direction: str) -> None:
        rng = np.random.default_rng(2)
        drawn = draw(op_type, rng, lengths=[3, 0, 5], states=2, direction=direction)
        by_text = run_node(op_type, drawn.attributes, drawn.inputs)
        proto, feeds = single(drawn)
        theirs = by_onnxruntime(proto, feeds)
        for end, start, other in zip(by_text[1:], drawn.states, theirs[1:], strict=False):
            np.testing.assert_array_equal(end[:, 1], start[:, 1])  # the text's: the initial ones
            assert not other[:, 1].any()  # theirs: zero
        close(accelerate(proto).run(None, feeds), theirs)

    @pytest.mark.parametrize("op_type", ["RNN", "LSTM"])  # at a GRU, ONNX Runtime 1.32 ends the process
    def test_no_time_step(self, op_type: str) -> None:
        drawn = draw(op_type, np.random.default_rng(2), (0, 2, 3, 4), states=2)
        by_text = run_node(op_type, drawn.attributes, drawn.inputs)
        np.testing.assert_array_equal(by_text[1], drawn.states[0])
        proto, feeds = single(drawn)
        found, theirs = accelerate(proto).run(None, feeds), by_onnxruntime(proto, feeds)
        close(found[:2], theirs[:2])
        assert not found[-1].any()  # theirs, Y_c of an LSTM, is memory that nobody wrote to

    @pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])  # at two of them ONNX Runtime ends the process
    @pytest.mark.parametrize("sizes", [(3, 0, 4, 5), (0, 0, 4, 5)])
    def test_no_sequence(self, op_type: str, sizes: tuple[int, int, int, int]) -> None:
        drawn = draw(op_type, np.random.default_rng(2), sizes, states=2, direction="bidirectional")
        shapes = [(sizes[0], 2, 0, 5), (2, 0, 5), (2, 0, 5)][: 3 if op_type == "LSTM" else 2]
        assert [a.shape for a in run_node(op_type, drawn.attributes, drawn.inputs)] == shapes
        proto, feeds = single(drawn)
        assert [a.shape for a in accelerate(proto).run(None, feeds)] == shapes

    @pytest.mark.parametrize(
        ("op_type", "attributes", "words"),
        [
            ("LSTM", {"clip": 0.3}, "with clip=0.3 ONNX Runtime does not clip the cell state"),
            ("RNN", {"activations": ["Affine"]}, "other defaults of Affine"),
            ("GRU", {"activations": ["Sigmoid", "ThresholdedRelu"]}, "other defaults of ThresholdedRelu"),
            ("RNN", {"activations": ["ScaledTanh"]}, "other defaults of ScaledTanh"),
        ],
    )
    def test_attributes_that_it_reads_in_another_way(
        self, op_type: str, attributes: dict[str, Any], words: str
    ) -> None:
        drawn = draw(op_type, np.random.default_rng(2), **attributes)
        by_text = run_node(op_type, drawn.attributes, drawn.inputs)
        for a, b in zip(by_text, textbook(drawn), strict=True):
            assert_close(a, b, "float32", "forward", op_type)
        proto, feeds = single(drawn)
        theirs = by_onnxruntime(proto, feeds)
        assert not np.allclose(by_text[0], theirs[0], 1e-3)
        session = accelerate(proto)
        assert words in session.report.left[f"my {op_type}"]
        close(session.run(None, feeds), theirs)

    def test_what_it_refuses_runs_here(self) -> None:
        for more in ({"layout": 1}, {"dtype": np.float64}):
            drawn = draw("LSTM", np.random.default_rng(2), **more)
            proto, feeds = single(drawn)
            with pytest.raises(Exception, match=r"not supported|does not support double"):
                by_onnxruntime(proto, feeds)
            close(accelerate(proto).run(None, feeds), run_node("LSTM", drawn.attributes, drawn.inputs), 1e-12)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_are_computed_in_float32(name: str) -> None:
    kind = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    drawn = draw("GRU", np.random.default_rng(3), lengths=[5, 0, 2], states=1)
    small = [None if a is None or a.dtype.kind == "i" else a.astype(kind) for a in drawn.inputs]
    small[4] = drawn.inputs[4]
    wide = [None if a is None or a.dtype.kind == "i" else a.astype(np.float32) for a in small]
    wide[4] = drawn.inputs[4]
    for a, b in zip(run_node("GRU", drawn.attributes, small), run_node("GRU", drawn.attributes, wide), strict=True):
        assert a.dtype == kind
        np.testing.assert_array_equal(a, b.astype(kind))


def test_what_lies_past_a_length_does_not_matter() -> None:
    drawn = draw("LSTM", np.random.default_rng(4), lengths=[2, 5, 0], direction="bidirectional")
    X = drawn.inputs[0].copy()
    for b, n in enumerate(drawn.lengths):
        X[n:, b] = np.nan
    for a, b in zip(
        run_node("LSTM", drawn.attributes, [X, *drawn.inputs[1:]]),
        run_node("LSTM", drawn.attributes, drawn.inputs),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


class TestRefused:
    @pytest.mark.parametrize(
        ("attributes", "words"),
        [
            ({"activations": ["Sigmoid", "Gelu", "Tanh"]}, "the activation 'Gelu'"),
            ({"activations": ["Sigmoid"]}, "1 activations.\n  LSTM with 1 direction has 3"),
            ({"activations": "Sigmoid"}, "It must be a list of words"),
            ({"clip": -1.0}, "clip=-1.0.\n  It must be above 0"),
            ({"clip": float("nan")}, "clip=nan"),
            ({"direction": "up"}, "direction='up'"),
            ({"direction": 3}, "direction=3.\n  It must be a string"),
            ({"layout": 2}, "layout=2"),
            ({"hidden_size": None}, "no attribute hidden_size"),
            ({"hidden_size": 0}, "hidden_size=0"),
            ({"hidden_size": 2.5}, "hidden_size=2.5.\n  It must be an integer"),
            ({"linear_before_reset": 1}, "the attribute linear_before_reset.\n  The attributes of LSTM"),
            ({"output_sequence": 1}, "the attribute output_sequence"),
        ],
        ids=str,
    )
    def test_attributes(self, attributes: dict[str, Any], words: str) -> None:
        drawn = draw("LSTM", np.random.default_rng(5))
        with pytest.raises((ValueError, TypeError), match=words):
            run_node("LSTM", {**drawn.attributes, **attributes}, drawn.inputs)

    @pytest.mark.parametrize(
        ("place", "array", "kind", "words"),
        [
            (0, np.zeros((5, 3), np.float32), ShapeError, r"X with shape \(5, 3\)"),
            (0, np.zeros((5, 3, 7), np.float32), ShapeError, "with 4 features, as W has them"),
            (0, np.zeros((5, 3, 4), np.int64), TypeError, "X with dtype int64"),
            (0, None, ShapeError, "no X"),
            (1, np.zeros((24, 4), np.float32), ShapeError, r"W with shape \(24, 4\)"),
            (1, None, ValueError, "no W"),
            (1, np.zeros((1, 24, 0), np.float32), ShapeError, "features at least 1"),
            (2, np.zeros((1, 24, 5), np.float32), ShapeError, r"R with shape \(1, 24, 5\).*\n.*\(1, 24, 6\)"),
            (2, np.zeros((1, 24, 6), np.float64), TypeError, "R with dtype float64"),
            (3, np.zeros((1, 24), np.float32), ShapeError, r"B with shape \(1, 24\)"),
            (4, np.array([1, 2]), ShapeError, r"sequence_lens with shape \(2,\)"),
            (4, np.array([1, 2, 6]), ValueError, r"sequence_lens\[2\]=6.\n  Each length must be in 0..5"),
            (4, np.array([1, -2, 6]), ValueError, r"sequence_lens\[1\]=-2"),
            (4, np.array([1.0, 2, 3]), TypeError, "sequence_lens with dtype float64"),
            (5, np.zeros((3, 1, 6), np.float32), ShapeError, r"initial_h with shape \(3, 1, 6\)"),
            (6, np.zeros((1, 3, 6), np.float64), TypeError, "initial_c with dtype float64"),
            (7, np.zeros((1, 24), np.float32), ShapeError, r"P with shape \(1, 24\).*\n.*\(1, 18\)"),
            (7, np.zeros((1, 18), np.float64), TypeError, "P with dtype float64"),
        ],
        ids=str,
    )
    def test_inputs(self, place: int, array: Any, kind: type[Exception], words: str) -> None:
        drawn = draw("LSTM", np.random.default_rng(5))
        inputs = [*drawn.inputs, None]
        inputs[place] = array
        with pytest.raises(kind, match=words):
            run_node("LSTM", drawn.attributes, inputs)

    def test_other_operators(self) -> None:
        with pytest.raises(ValueError, match="the operators are"):
            run_node("Gemm", {}, [])

    def test_too_many_inputs(self) -> None:
        with pytest.raises(ValueError, match="at most 6: X, W, R, B, sequence_lens, initial_h"):
            run_node("GRU", {"hidden_size": 3}, [None] * 7)

    def test_masked_arrays(self) -> None:
        drawn = draw("RNN", np.random.default_rng(5))
        with pytest.raises(TypeError, match="Its mask would be ignored"):
            run_node("RNN", drawn.attributes, [np.ma.masked_array(drawn.inputs[0]), *drawn.inputs[1:]])


def test_alphas_and_betas_go_to_the_functions_that_have_them() -> None:
    given = {"activations": ["LeakyRelu", "Tanh", "Affine"], "activation_alpha": [0.3, 2.0], "hidden_size": 2}
    parsed = parse("LSTM", given, False, "test")
    assert [str(one) for one in parsed.activations[0]] == ["LeakyRelu(alpha=0.3)", "Tanh", "Affine(alpha=2, beta=0)"]
    assert parsed.options()["activations"] == (("leaky_relu", 0.3), "tanh", ("affine", 2.0, 0.0))


class TestOtherTools:
    def test_the_reference_evaluator(self) -> None:
        drawn = draw("GRU", np.random.default_rng(6), lengths=[1, 5, 0], states=1, linear_before_reset=1)
        proto, feeds = single(drawn)
        evaluator = onnx.reference.ReferenceEvaluator(proto, new_ops=fastrnn.onnx.operators())
        for a, b in zip(evaluator.run(None, feeds), textbook(drawn), strict=True):
            assert_close(a, b, "float32", "forward", "GRU")

    def test_what_nobody_wants_is_not_what_is_left_out(self) -> None:
        drawn = draw("LSTM", np.random.default_rng(6))
        nodes = [node(drawn, ["", "h1", "c1"]), node(drawn, ["y", "h", "c"])]
        nodes[1].input.extend(["", "h1", "c1"])
        given = dict(zip(("X", "W", "R", "B"), drawn.inputs, strict=False))
        inputs = [value(name, shape=[None] * 3) for name in "XWR"] + [value("B")]
        found = fastrnn.onnx.Backend.run_model(model(nodes, inputs, [value("y")]), given)
        first = run_node("LSTM", drawn.attributes, drawn.inputs)
        again = run_node("LSTM", drawn.attributes, [*drawn.inputs[:5], *first[1:]])
        close(found, again[:1], 0)

    def test_outputs_that_nobody_wants(self) -> None:
        drawn = draw("LSTM", np.random.default_rng(6))
        wanted = run_node("LSTM", drawn.attributes, drawn.inputs)
        for names, places in ((["", "h"], [1]), (["", "", "c"], [2]), (["y"], [0])):
            one = node(drawn, names)
            backend = fastrnn.onnx.Backend
            close(backend.run_node(one, [a for a in drawn.inputs if a is not None]), [wanted[k] for k in places], 0)
            outputs = [value(name) for name in names if name]
            proto = model([one], [value(name, shape=[None] * 3) for name in "XWR"] + [value("B")], outputs)
            given = dict(zip(("X", "W", "R", "B"), drawn.inputs, strict=False))
            close(accelerate(proto).run(None, given), [wanted[k] for k in places])
            close(backend.run_model(proto, given), [wanted[k] for k in places], 0)

    def test_other_nodes_and_devices(self) -> None:
        backend = fastrnn.onnx.Backend
        (found,) = backend.run_node(helper.make_node("Neg", ["a"], ["b"]), [np.ones(2)])
        np.testing.assert_array_equal(found, [-1, -1])
        assert backend.supports_device("CPU")
        assert not backend.supports_device("CUDA:1")
        with pytest.raises(ValueError, match="it runs on the CPU"):
            backend.prepare(single(draw("RNN", np.random.default_rng(6)))[0], "CUDA")

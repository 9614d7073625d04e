"""Accelerated models in ONNX: standard nodes, and what ONNX Runtime makes of them."""

import collections
import io
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402

import fastrnn.torch as ft  # noqa: E402

T, B, I, H = 5, 3, 4, 6

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def exported(model: Any, *inputs: Any, **options: Any) -> Any:
    return torch.onnx.export(model, inputs, dynamo=True, verbose=False, **options)


def run(program: Any, *inputs: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    return list(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}))


def nodes(program: Any) -> collections.Counter[str]:
    return collections.Counter(n.op_type for n in program.model.graph)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bidirectional": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_standard_nodes(kind: str, options: dict[str, Any]) -> None:
    layer = getattr(nn, kind)(I, H, **options).eval()
    x = torch.randn(T, B, I)
    rows = layer.num_layers * (1 + layer.bidirectional)
    h = torch.randn(rows, x.shape[0 if layer.batch_first else 1], H)
    hx = (h, torch.randn_like(h)) if kind == "LSTM" else h
    wanted = layer(x, hx)
    flat = [wanted[0], *(wanted[1] if kind == "LSTM" else [wanted[1]])]
    ft.accelerate(layer)
    program = exported(layer, x, hx)
    assert nodes(program)[kind] == layer.num_layers
    assert {node.domain for node in program.model.graph} == {""}
    states = hx if kind == "LSTM" else (hx,)
    for found, value in zip(run(program, x, *states), flat, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), value, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_older_exporter(kind: str, states: bool) -> None:
    layer = getattr(nn, kind)(I, H, 2, bidirectional=True).eval()
    x, h = torch.randn(T, B, I), torch.randn(4, B, H)
    given = (x, (h, -h) if kind == "LSTM" else h) if states else (x,)
    wanted = layer(*given)[0]
    file = io.BytesIO()
    torch.onnx.export(ft.accelerate(layer).model, given, file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    flat = [x, h, -h][: len(session.get_inputs())]
    (found, *_) = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), flat, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_programs_that_were_exported_before(training: bool) -> None:
    layer = ft.GRU(I, H, batch_first=True).train(training)
    x = torch.randn(B, T, I)
    exported = torch.export.export(layer, (x,)).run_decompositions(ft.onnx_decompositions())
    program = torch.onnx.export(exported, dynamo=True, verbose=False)
    assert nodes(program)["GRU"] == 1
    torch.testing.assert_close(torch.from_numpy(run(program, x)[0]), layer(x)[0], rtol=1e-5, atol=1e-5)


def test_a_model_with_lengths_and_dynamic_sizes() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = ft.RNN(I, H, nonlinearity="relu", bidirectional=True)
            self.out = nn.Linear(2 * H, 2)

        def forward(self, x: Any, lengths: Any) -> Any:
            return self.out(self.rnn(x, lengths=lengths)[0])

    model = Model().eval()
    time, batch = torch.export.Dim("time", min=2), torch.export.Dim("batch", min=2)
    program = exported(
        model,
        torch.randn(T, B, I),
        torch.tensor([5, 2, 4]),
        dynamic_shapes={"x": {0: time, 1: batch}, "lengths": {0: batch}},
    )
    x, lengths = torch.randn(9, 2, I), torch.tensor([3, 9])
    found = run(program, x, lengths)[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x, lengths), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"proj_size": 2}, {}, "proj_size has no ONNX node"),
        ({}, {"reset": torch.zeros(T, B, dtype=torch.bool)}, "reset has no ONNX node"),
    ],
    ids=str,
)
def test_what_onnx_cannot_express(options: dict[str, Any], given: dict[str, Any], words: str) -> None:
    layer = ft.LSTM(I, H, **options).eval()
    assert words in refusal(lambda: exported(layer, torch.randn(T, B, I), kwargs=given))


def test_programs_that_were_exported_before_name_what_they_need() -> None:
    program = torch.export.export(ft.LSTM(I, H).eval(), (torch.randn(T, B, I),))
    assert "onnx_decompositions()" in refusal(lambda: torch.onnx.export(program, dynamo=True, verbose=False))


def refusal(export: Callable[[], Any]) -> str:
    """What an export fails with, and all its causes."""
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        export()
    words, error = [], caught.value
    while error is not None:
        words.append(str(error))
        error = error.__cause__
    return " ".join(words)

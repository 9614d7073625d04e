"""How torch.onnx writes the operators: as the standard nodes LSTM, GRU and RNN."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .ops import Options

# ONNX's order of the gates, as positions in PyTorch's.
_GATES = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn_tanh": [0], "rnn_relu": [0]}


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` with which torch.onnx.export writes accelerated models.

    ``torch.onnx.export(model, inputs, path, dynamo=True, custom_translation_table=fastrnn.torch.onnx_translations())``
    gives one standard LSTM, GRU or RNN node for each layer. Lengths become their ``sequence_lens``.

    Raises
    ------
    ImportError
        If onnxscript, which torch.onnx needs too, is missing.
    NotImplementedError
        While exporting, for what the nodes cannot express: resets, projections and dropout.
    """
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError(f"torch.onnx.export needs onnxscript ({error}): pip install 'fastrnn[torch]'") from error
    op: Any = onnxscript.opset18

    def infer(x: Any, hx: Any, weights: Any, lengths: Any, reset: Any, *given: Any) -> tuple[Any, Any, Any]:
        return _Translation(op, Options(*given)).stack(x, hx, weights, lengths, reset)

    def train(
        x: Any, hx: Any, weights: Any, lengths: Any, reset: Any, masks: Any, scale: float, *given: Any
    ) -> tuple[Any, Any, Any, Any]:
        if masks is not None:
            raise NotImplementedError("dropout between layers has no ONNX node: call model.eval() before exporting it")
        nothing = op.Constant(value_ints=[])
        return *_Translation(op, Options(*given)).stack(x, hx, weights, lengths, reset), nothing

    return {torch.ops.fastrnn.infer.default: infer, torch.ops.fastrnn.train.default: train}


class _Translation:
    """A stack of layers, written with the operations ``op``."""

    def __init__(self, op: Any, options: Options) -> None:
        self.op, self.options = op, options

    def stack(self, x: Any, hx: Any, weights: Sequence[Any], lengths: Any, reset: Any) -> tuple[Any, Any, Any]:
        op, options = self.op, self.options
        if reset is not None:
            raise NotImplementedError("reset has no ONNX node: export a model that is called without it")
        if options.proj_size:
            raise NotImplementedError("proj_size has no ONNX node: the LSTM of ONNX knows no projection")
        if options.batch_first:
            x = op.Transpose(x, perm=[1, 0, 2])
        if lengths is not None:
            lengths = op.Cast(lengths, to=6)  # int32
        each, D = len(weights) // (options.num_layers * options.directions), options.directions
        ends: list[list[Any]] = []
        for layer in range(options.num_layers):
            sides = [weights[i * each : (i + 1) * each] for i in range(layer * D, (layer + 1) * D)]
            start = [op.Slice(s, [layer * D], [(layer + 1) * D], [0]) for s in hx or []]
            x, *end = self.layer(x, start, sides, lengths)
            ends.append(end)
        states = [op.Concat(*of_layers, axis=0) for of_layers in zip(*ends, strict=True)]
        if options.batch_first:
            x = op.Transpose(x, perm=[1, 0, 2])
        return x, states[0], states[1] if options.has_c else op.Constant(value_floats=[])

    def layer(self, x: Any, start: list[Any], sides: list[Sequence[Any]], lengths: Any) -> list[Any]:
        """Write one node; x (T,B,I) in, y (T,B,D*H) and the final states (D,B,H) out."""
        op, options = self.op, self.options
        w, r = (self.joined([side[i] for side in sides]) for i in (0, 1))
        b = None
        if len(sides[0]) > 2:
            halves = [self.joined([side[i] for side in sides]) for i in (2, 3)]
            b = op.Concat(*halves, axis=1)
        common = {
            "hidden_size": options.hidden_size,
            "direction": "bidirectional" if options.bidirectional else "forward",
        }
        h, c = (*start, None, None)[:2]
        if options.cell == "lstm":
            y, *ends = op.LSTM(x, w, r, b, lengths, h, c, **common)
        elif options.cell == "gru":
            y, *ends = op.GRU(x, w, r, b, lengths, h, linear_before_reset=1, **common)
        else:
            kind = {"rnn_tanh": "Tanh", "rnn_relu": "Relu"}[options.cell]
            y, *ends = op.RNN(x, w, r, b, lengths, h, activations=[kind] * options.directions, **common)
        y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
        return [y, *ends]

    def joined(self, of_sides: list[Any]) -> Any:
        """Stack a parameter of both directions, its gates in ONNX's order."""
        op, H = self.op, self.options.hidden_size
        order = _GATES[self.options.cell]
        ordered = [
            op.Concat(*(op.Slice(p, [g * H], [(g + 1) * H], [0]) for g in order), axis=0) if len(order) > 1 else p
            for p in of_sides
        ]
        return op.Concat(*(op.Unsqueeze(p, [0]) for p in ordered), axis=0)


__all__ = ["onnx_translations"]

"""How torch.onnx writes calls: as the standard nodes LSTM, GRU and RNN."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..convert import ONNX_GATES
from ..nodes import general_attributes
from .options import Options

_OPSET = 14  # of the three nodes' definition


def onnx_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what makes a program of `torch.export`, exported before, one that torch.onnx.export writes.

    ``torch.onnx.export(program.run_decompositions(fastrnn.torch.onnx_decompositions()), dynamo=True)``. A model needs
    none of this.
    """

    def infer(x: Tensor, hx: Any, weights: Any, lengths: Any, reset: Any, *given: Any) -> tuple[Tensor, list[Tensor]]:
        return write(x, hx or [], weights, lengths, reset, None, Options(*given))

    def train(
        x: Tensor, hx: Any, weights: Any, lengths: Any, reset: Any, masks: Any, scale: float, *given: Any
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        found = write(x, hx or [], weights, lengths, reset, masks, Options(*given))
        return *found, x.new_empty(0, dtype=torch.uint8)

    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    table[torch.ops.fastrnn.infer.default], table[torch.ops.fastrnn.train.default] = infer, train
    return table


def refuse(x: Tensor, reset: Any, masks: Any, options: Options) -> None:
    """Raise what keeps torch.onnx.export from writing a call; it met one of the operators."""
    raise NotImplementedError(
        _obstacle(x, reset, masks, options)
        or "torch.onnx.export knows no operator of fastrnn: give it the model, or of a program that was exported "
        "before program.run_decompositions(fastrnn.torch.onnx_decompositions())"
    )


def _obstacle(x: Tensor, reset: Any, masks: Any, options: Options) -> str | None:
    if masks is not None:
        return "dropout between layers has no ONNX node: call model.eval() before exporting it"
    if reset is not None:
        return "reset has no ONNX node: export a model that is called without it"
    if any(options.zoneout):
        return "zoneout has no ONNX node: in inference a part of each state is that of the step before"
    if options.cell.startswith("slstm") or options.heads > 1:
        return "sLSTM and heads have no ONNX node: their recurrent weights are block diagonal, their gates exponential"
    if options.cell.endswith("_norm"):
        return "layer_norm has no ONNX node: those of GRU and LSTM normalise nothing"
    if options.proj_size:
        return "proj_size has no ONNX node: the LSTM of ONNX knows no projection"
    if x.dim() == 2:
        return "packed sequences have no ONNX node: export a model that is called with lengths="
    return None


def write(
    x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], lengths: Any, reset: Any, masks: Any, options: Options
) -> tuple[Tensor, list[Tensor]]:
    """Write one node for each layer; return y and the final states.

    Raises
    ------
    NotImplementedError
        For what the nodes cannot express: dropout, resets, zoneout, sLSTM, heads, layer normalisation, projections and
        packed sequences.
    """
    why = _obstacle(x, reset, masks, options)
    if why:
        raise NotImplementedError(why)
    if options.batch_first:
        x = x.transpose(0, 1)
    if lengths is not None:
        lengths = lengths.to(torch.int32)
    each, D = len(weights) // (options.num_layers * options.directions), options.directions
    ends: list[list[Tensor]] = []
    for layer in range(options.num_layers):
        sides = [weights[i * each : (i + 1) * each] for i in range(layer * D, (layer + 1) * D)]
        x, *end = _node(options, x, [s.narrow(0, layer * D, D) for s in hx], sides, lengths)
        ends.append(end)
    states = [torch.cat(of_layers) for of_layers in zip(*ends, strict=True)]
    if options.batch_first:
        x = x.transpose(0, 1)
    return x, states


def _node(
    options: Options, x: Tensor, start: list[Tensor], sides: list[Sequence[Tensor]], lengths: Any
) -> list[Tensor]:
    """One layer: x (T,B,I) in, y (T,B,D*H) and the final states (D,B,H) out."""
    from torch.onnx.ops import symbolic_multi_out

    w, r = (_joined(options, [side[i] for side in sides]) for i in (0, 1))
    b = None
    if len(sides[0]) - options.peephole > 2:
        b = torch.cat([_joined(options, [side[i] for side in sides]) for i in (2, 3)], 1)
    attributes: dict[str, Any] = {
        "hidden_size": options.hidden_size,
        "direction": "bidirectional" if options.bidirectional else "forward",
    }
    if options.cell == "gru":
        attributes["linear_before_reset"] = 1
    if options.general is not None:
        attributes.update(general_attributes(options.general, options.bidirectional))
    elif options.cell.startswith("rnn"):
        attributes["activations"] = [options.cell.removeprefix("rnn_").capitalize()] * options.directions
    p = [torch.stack([side[-1][[0, 2, 1]].reshape(-1) for side in sides])] if options.peephole else []
    (T, B, _), D, H = x.shape, options.directions, options.hidden_size
    ends = [(D, B, H)] * options.states
    y, *states = symbolic_multi_out(
        _operator(options),
        (x, w, r, b, lengths, *(start or [None] * (options.states if p else 0)), *p),
        attributes,
        dtypes=[x.dtype] * (1 + len(ends)),
        shapes=[(T, D, B, H), *ends],
        version=_OPSET,
    )
    return [y.transpose(1, 2).reshape(T, B, D * H), *states]


def _operator(options: Options) -> str:
    return options.cell.split("_")[0].upper()


def _joined(options: Options, of_sides: list[Tensor]) -> Tensor:
    """Stack a parameter of both directions, its gates in ONNX's order."""
    order, H = ONNX_GATES[_operator(options)], options.hidden_size
    return torch.stack([torch.cat([p.narrow(0, g * H, H) for g in order]) for p in of_sides])


__all__ = ["onnx_decompositions", "refuse", "write"]

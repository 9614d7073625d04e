"""fastrnn for the tools of the onnx package: its interface of backends, and operators for its reference evaluator."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.backend.base import Backend as _Backend
from onnx.backend.base import BackendRep, namedtupledict
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ..nodes import QUANTIZED_DOMAIN, operator_of
from .reading import attributes, read_model
from .running import run_node


class _Recurrent(OpRun):  # type: ignore[misc,unused-ignore]
    op_domain = ""

    def _run(self, *inputs: Any, **given: Any) -> tuple[Any, ...]:
        # the evaluator keeps outputs that nobody wants under the name "", and hands them out for what is left out
        given_by_name = [a if name else None for name, a in zip(self.onnx_node.input, inputs, strict=True)]
        found = run_node(type(self).__name__, attributes(self.onnx_node), given_by_name)
        return tuple(found[: max(len(self.onnx_node.output), 1)])


class RNN(_Recurrent):
    """RNN, computed by `run_node`."""


class GRU(_Recurrent):
    """GRU, computed by `run_node`."""


class LSTM(_Recurrent):
    """LSTM, computed by `run_node`."""


class DynamicQuantizeLSTM(_Recurrent):
    """DynamicQuantizeLSTM, computed by `run_node`."""

    op_domain = QUANTIZED_DOMAIN


def operators() -> list[type[Any]]:
    """Return RNN, GRU, LSTM and DynamicQuantizeLSTM for the reference evaluator of onnx.

    ``onnx.reference.ReferenceEvaluator(model, new_ops=fastrnn.onnx.operators())``. Its own ones ignore sequence_lens,
    activations, clip and input_forget; these follow the text.
    """
    return [RNN, GRU, LSTM, DynamicQuantizeLSTM]


class _Prepared(BackendRep):  # type: ignore[misc,unused-ignore]
    """A model ready to run."""

    def __init__(self, model: Any) -> None:
        proto, _ = read_model(model, "Backend.prepare")
        stored = {tensor.name for tensor in proto.graph.initializer}
        self._inputs = [value.name for value in proto.graph.input if value.name not in stored]
        self._evaluator = ReferenceEvaluator(proto, new_ops=operators())
        self._named = namedtupledict("Outputs", [value.name for value in proto.graph.output])

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Compute all outputs from the inputs, a list in the model's order or a dict by name."""
        feeds = inputs if isinstance(inputs, dict) else dict(zip(self._inputs, inputs, strict=True))
        found: tuple[Any, ...] = self._named(*self._evaluator.run(None, feeds))
        return found


class Backend(_Backend):  # type: ignore[misc,unused-ignore]
    """onnx.backend.base.Backend: recurrent nodes by `run_node`, all others by the reference evaluator of onnx.

    For speed take `accelerate`; this follows the text of ONNX, and needs no ONNX Runtime.
    """

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> BackendRep:
        """Return a BackendRep, whose ``run(inputs)`` computes all outputs.

        Parameters
        ----------
        model : ModelProto
            The model.
        device : str
            "CPU".

        Raises
        ------
        ValueError
            For another device.
        FileError
            If the model contradicts itself.
        """
        if not cls.supports_device(device):
            raise ValueError(f"Backend.prepare got device={device!r}; it runs on the CPU.")
        return _Prepared(model)

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Prepare a model and run it once."""
        found: tuple[Any, ...] = cls.prepare(model, device, **kwargs).run(inputs)
        return found

    @classmethod
    def run_node(
        cls, node: Any, inputs: Sequence[Any], device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run one node; an RNN, GRU or LSTM node by `fastrnn.onnx.run_node`.

        `inputs` are those that the node names, in its order.
        """
        given = iter(inputs)
        arrays = [np.asarray(next(given)) if name else None for name in node.input]
        names = [name for name in node.output if name]
        if operator_of(node.domain, node.op_type):
            found = run_node(node.op_type, attributes(node), arrays)
            chosen = [value for name, value in zip(node.output, found, strict=False) if name]
        else:
            feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
            chosen = ReferenceEvaluator(node).run(None, feeds)
        result: tuple[Any, ...] = namedtupledict("Outputs", names)(*chosen)
        return result

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is the CPU."""
        return device.split(":")[0] == "CPU"

"""ONNX Runtime and OpenVINO, also in fewer bits: all run the same ONNX model."""

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..grid.problems import Problem
from ..grid.shapes import Point
from ..machine.machine import has_bfloat16, has_vnni
from .base import Array, Job, Peer
from .onnx_model import build


def _inputs(problem: Problem) -> dict[str, Array]:
    if problem.point.mode != "step":
        return {"x": problem.x}
    given = {"x": problem.x, "h0": problem.h0}
    return given | {"c0": problem.c0} if problem.point.cell == "LSTM" else given


def _no_model(point: Point) -> str | None:
    if point.mode == "training":
        return "it runs inference only"
    if point.variant == "reset":
        return "ONNX's operators have no reset mask"
    if point.dtype != "float32":
        return "its recurrent kernels are float32"
    return None


class ONNXRuntime(Peer):
    """The CPU provider; inputs and outputs are bound once, which spares a copy."""

    key, title, short, needs = "onnxruntime", "ONNX Runtime", "ORT", "onnx onnxruntime"

    def __init__(self, threads: int) -> None:
        import onnx  # noqa: F401  so that it is missed here and not at the first point
        import onnxruntime

        self.runtime: Any = onnxruntime
        self.threads = threads
        self.version = onnxruntime.__version__

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        return _no_model(point)

    def _model(self, problem: Problem) -> bytes:
        data: bytes = build(problem).SerializeToString()
        return data

    def job(self, problem: Problem) -> Job:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        session = self.runtime.InferenceSession(self._model(problem), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in _inputs(problem).items():
            binding.bind_cpu_input(name, array)
        outputs = {}
        for out in session.get_outputs():
            outputs[out.name] = value = self.runtime.OrtValue.ortvalue_from_numpy(np.empty(out.shape, np.float32))
            binding.bind_ortvalue_output(out.name, value)
        return Job(
            lambda: session.run_with_iobinding(binding),
            lambda _: {name: value.numpy().copy() for name, value in outputs.items()},
        )


class ONNXRuntimeInt8(ONNXRuntime):
    """LSTM weights in 8 bits by quantize_dynamic: less exact, and shown beside the others only.

    In 7 bits where the processor has no VNNI: sums of two products of 8 bits saturate there.
    """

    key, title, short, needs = "onnxruntime-int8", "ONNX Runtime int8", "int8", "onnx onnxruntime"
    tolerance, weights = 5e-2, "int8"

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        return "only its LSTM is quantised" if point.cell != "LSTM" else _no_model(point)

    def _model(self, problem: Problem) -> bytes:
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "quantised.onnx")
            quantize_dynamic(
                build(problem), path, op_types_to_quantize=["LSTM"], per_channel=True, reduce_range=not has_vnni()
            )
            return path.read_bytes()


class OpenVINO(Peer):
    """The CPU plugin in float32 (by itself it takes bfloat16 where the processor has it), tuned for latency."""

    key, title, short, needs = "openvino", "OpenVINO", "OV", "onnx openvino"
    precision: ClassVar[str] = "f32"

    def __init__(self, threads: int) -> None:
        import onnx  # noqa: F401  so that it is missed here and not at the first point
        import openvino

        self.openvino: Any = openvino
        self.core = openvino.Core()
        self.options = {
            "INFERENCE_NUM_THREADS": str(threads),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        self.version = openvino.__version__.partition("-")[0]

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        return _no_model(point)

    def job(self, problem: Problem) -> Job:
        model = self.core.read_model(build(problem).SerializeToString())
        request = self.core.compile_model(model, "CPU", self.options).create_infer_request()
        for name, array in _inputs(problem).items():
            request.set_tensor(name, self.openvino.Tensor(array, shared_memory=True))
        names = [output.get_any_name() for output in model.outputs]
        return Job(request.infer, lambda _: {name: request.get_tensor(name).data.copy() for name in names})


class OpenVINOBFloat16(OpenVINO):
    """The CPU plugin in bfloat16, which it takes by itself where the processor has instructions for it."""

    key, title, short, needs = "openvino-bfloat16", "OpenVINO bfloat16", "OV bf", "onnx openvino"
    tolerance, weights = 5e-2, "bfloat16"
    precision = "bf16"

    @classmethod
    def unsupported(cls, point: Point) -> str | None:
        return _no_model(point) if has_bfloat16() else "this processor has no instructions for bfloat16"

"""The sides of a comparison, by the names that ``--peers`` takes."""

from .base import Job, Peer
from .bits import FastRNNBFloat16, FastRNNInt8, PyTorchBFloat16
from .jax_scan import JAX
from .ncnn_model import NcnnInt8
from .numpy_loop import NumPyLoop
from .ours import FastRNN
from .pytorch import PyTorch, PyTorchCell
from .runtimes import ONNXRuntime, ONNXRuntimeInt8, OpenVINO, OpenVINOBFloat16

__all__ = ["BITS", "PEERS", "USUAL", "FastRNN", "Job", "Peer"]

# Those of BITS, which --bits compares, round on purpose.
_BITS: list[type[Peer]] = [
    FastRNNInt8,
    ONNXRuntimeInt8,
    NcnnInt8,
    FastRNNBFloat16,
    PyTorchBFloat16,
    OpenVINOBFloat16,
]
_EXACT: list[type[Peer]] = [PyTorch, PyTorchCell, ONNXRuntime, OpenVINO, JAX, NumPyLoop]
BITS = {peer.key: peer for peer in _BITS}
PEERS = {peer.key: peer for peer in _EXACT} | BITS
# what is compared where --peers names none
USUAL = [key for key in PEERS if key not in BITS or key == "onnxruntime-int8"]

"""The sides of a comparison, by the names that ``--peers`` takes."""

from .base import Job, Peer
from .jax_scan import JAX
from .numpy_loop import NumPyLoop
from .ours import FastRNN
from .pytorch import PyTorch, PyTorchCell
from .runtimes import ONNXRuntime, ONNXRuntimeInt8, OpenVINO

__all__ = ["PEERS", "FastRNN", "Job", "Peer"]

PEERS: dict[str, type[Peer]] = {
    peer.key: peer for peer in (PyTorch, PyTorchCell, ONNXRuntime, OpenVINO, JAX, NumPyLoop, ONNXRuntimeInt8)
}

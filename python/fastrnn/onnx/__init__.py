"""ONNX: its recurrent operators computed by fastrnn, in sessions, layers from and to files, and nodes by themselves.

`accelerate` stands in for onnxruntime.InferenceSession, `load` makes layers of a model's nodes, `save` writes layers,
`run_node` computes one node; `Backend` and `operators` serve the tools of the onnx package. Needs the extra ``onnx``.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise ImportError(f"fastrnn.onnx needs onnx ({error}): pip install 'fastrnn[onnx]'") from error

from .backend import Backend, operators
from .choosing import Report
from .files import Layers, load, save
from .running import run_node
from .session import Session, accelerate

__all__ = ["Backend", "Layers", "Report", "Session", "accelerate", "load", "operators", "run_node", "save"]

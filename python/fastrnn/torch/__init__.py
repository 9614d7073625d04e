"""Drop-in replacements for torch.nn's recurrent modules, computed by fastrnn, on the CPU and on
NVIDIA GPUs.

One line for a model that exists: ``fastrnn.torch.accelerate(model)``. Or build with `LSTM`, `GRU`, `RNN`, `LSTMCell`,
`GRUCell` and `RNNCell` of this module as with those of torch.nn. Needs the extra ``torch``.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(f"fastrnn.torch needs PyTorch ({error}): pip install 'fastrnn[torch]'") from error

if tuple(int(part) for part in _torch.__version__.split(".")[:2]) < (2, 11):
    raise ImportError(f"fastrnn.torch needs PyTorch 2.11 or newer, found {_torch.__version__}")

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN
from .onnx import onnx_decompositions
from .replace import Report, accelerate, restore
from .slstm import sLSTM

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "accelerate",
    "onnx_decompositions",
    "restore",
    "sLSTM",
]

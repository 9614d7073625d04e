"""Fast recurrent layers: RNN, GRU, LSTM and sLSTM, for inference and training, over NumPy arrays; on GPUs too."""

from typing import Any as _Any

from . import convert
from ._core import __version__
from ._info import info
from ._library import get_include, get_library
from .checks import ShapeError, SizeError
from .files.errors import FileError
from .files.loading import load
from .files.saving import save
from .frozen import Frozen
from .kit.flow import Flow, flow
from .kit.losses import binary_cross_entropy, cross_entropy
from .kit.optimizers import SGD, Adam, clip_grad_norm, learning_rate
from .kit.parts import Embedding, Linear
from .layers import GRU, LSTM, RNN, sLSTM
from .parameters import Parameters
from .results import Gradients, LSTMState, MemoryEstimate, Tape, sLSTMState
from .threads import get_num_threads, set_num_threads, threads

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "Embedding",
    "FileError",
    "Flow",
    "Frozen",
    "Gradients",
    "LSTMState",
    "Linear",
    "MemoryEstimate",
    "Parameters",
    "ShapeError",
    "SizeError",
    "Tape",
    "__version__",
    "binary_cross_entropy",
    "clip_grad_norm",
    "convert",
    "cross_entropy",
    "flow",
    "get_include",
    "get_library",
    "get_num_threads",
    "info",
    "learning_rate",
    "load",
    "sLSTM",
    "sLSTMState",
    "save",
    "set_num_threads",
    "threads",
]


def __getattr__(name: str) -> _Any:
    if name == "cuda":  # loaded when it is first asked for
        import importlib

        return importlib.import_module(".cuda", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

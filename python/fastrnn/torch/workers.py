"""PyTorch's worker threads, on which the calls of `fastrnn.torch` run: a team beside them would meet them spinning."""

import ctypes
import os

import torch

from .._core import HostThreads
from ..threads import limit


def _find() -> HostThreads | None:
    """Return what lends PyTorch's threads; None where a team may not meet on them, and the core's own threads run.

    ``torch_parallel_for`` is a plain C function of the library that is loaded already (torch/csrc/stable/c/shim.h).
    Only an OpenMP region runs all parts of a loop at once; ATen's native pool may run one after the other.
    """
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    try:
        # RTLD_NOLOAD: the library of this process or none
        function = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return HostThreads(ctypes.cast(function, ctypes.c_void_p).value or 0)


HOST = _find()


def team_size() -> int:
    """How many threads a call may use: as many as PyTorch's own operators, less if fastrnn was told so."""
    theirs, most = torch.get_num_threads(), limit()
    return theirs if most is None else min(theirs, most)


__all__ = ["HOST", "team_size"]

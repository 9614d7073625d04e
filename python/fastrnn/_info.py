"""What this installation is and what it found: the first thing to put into a bug report."""

import platform
from typing import Any

import numpy as np

from . import _core
from .threads import get_num_threads


def info() -> dict[str, Any]:
    """Describe the installation; this looks for GPUs.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set that is used, and ``isas``, those this CPU can run, best first;
        ``threads``, how many a call may use, and ``available_threads``, the processors this process may use;
        ``cuda``, the GPUs as `fastrnn.cuda.device_info` describes them, or why there are none; ``numpy``, ``python``
        and ``platform``. All values can be written as JSON.
    """
    from . import cuda

    return {
        "version": _core.__version__,
        "isa": _core.Network("lstm", "float32", 1, 1, 0, 1, False, True).isa,
        "isas": _core.isas(),
        "threads": get_num_threads(),
        "available_threads": _core.available_threads(),
        "cuda": cuda.device_info() or cuda.why_not(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }

"""What this installation is and what it found: the first thing to put into a bug report."""

import platform
from typing import Any

import numpy as np

from . import _core
from .threads import get_num_threads


def isa() -> str:
    """Return the instruction set that kernels are taken of."""
    return _core.Network("lstm", "float32", 1, 1, 0, 1, False, True).isa


def info() -> dict[str, Any]:
    """Describe the installation; this looks for GPUs.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set that is used, and ``isas``, those this CPU can run, best first;
        ``fewer_bits``, what multiplies weights of int8 and bfloat16, and where that is not faster than float32;
        ``threads``, how many a call may use, and ``available_threads``, the processors this process may use;
        ``cuda``, the GPUs as `fastrnn.cuda.device_info` describes them, or why there are none; ``numpy``, ``python``
        and ``platform``. All values can be written as JSON.
    """
    from . import cuda

    chosen = isa()
    return {
        "version": _core.__version__,
        "isa": chosen,
        "isas": _core.isas(),
        "fewer_bits": _fewer_bits(chosen),
        "threads": get_num_threads(),
        "available_threads": _core.available_threads(),
        "cuda": cuda.device_info() or cuda.why_not(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _fewer_bits(isa: str) -> str:
    best = _core.products(isa)[0]
    if best == "scalar":
        return f"{best}: int8 saves memory, not time"
    if best.endswith("amx"):
        return best
    both = "int8 and bfloat16 are" if best == "avx512" else "bfloat16 is"
    return f"{best}: {both} faster than float32 with few rows only"

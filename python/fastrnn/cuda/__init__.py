"""Recurrent layers on NVIDIA GPUs: ``layer.to("cuda")``, and whether that is possible here.

``import fastrnn`` does not touch CUDA; this module loads the GPU code when it is first asked for.
"""

from typing import Any

from .devices import device_info, is_available, why_not
from .layers import Layer

__all__ = ["Array", "Layer", "device_info", "is_available", "why_not"]


def __getattr__(name: str) -> Any:
    if name == "Array":  # the GPU code's own class: importing this module must not load it
        from .devices import core

        return core().Array
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

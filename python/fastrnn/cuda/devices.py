"""The GPUs of this machine, and the module that knows them, loaded when it is first needed."""

import functools
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from ..options import General

_prepared: dict[int, str | None] = {}  # of each device that was prepared, what is wrong with its cuBLASLt
_lock = threading.Lock()


@functools.cache
def _load() -> ModuleType | str:
    """Return the GPU module, or why there is none."""
    try:
        return importlib.import_module("fastrnn._cuda")
    except ModuleNotFoundError:
        return (
            "this fastrnn was built without its GPU module: install a CUDA toolkit with nvcc 12.3 or newer "
            "and build it from source"
        )
    except ImportError as error:
        return f"the GPU module does not load: {error}"


def why_not() -> str | None:
    """Say why no GPU can be used here; None where one can."""
    module = _load()
    if isinstance(module, str):
        return module
    reason: str | None = module.why_not()
    return reason


def is_available() -> bool:
    """Tell whether layers can be moved to a GPU here."""
    return why_not() is None


@functools.cache  # once a GPU was found: asking the driver takes longer than a call may
def core() -> Any:
    """Return the GPU module.

    Raises
    ------
    RuntimeError
        That says why no GPU can be used.
    """
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"fastrnn.cuda: no GPU can be used: {reason}")
    return _load()


def device_info() -> list[dict[str, Any]]:
    """Describe the GPUs: an empty list where none can be used.

    Returns
    -------
    list of dict
        For each ``name``, ``compute_capability``, ``multiprocessors``, ``memory`` in bytes, ``emulated``, which is True
        in a test build that computes on the CPU, and ``cublaslt``: the version of the library that does large products,
        or None where fastrnn's own kernels do; it is looked for when a layer first comes to the device.
    """
    if not is_available():
        return []
    module = core()
    listed = [{**device, "emulated": module.emulated} for device in module.devices()]
    for device in listed:
        del device["prepared"]
    return listed


def index_of(device: str | int) -> int:
    """Return the number of a device that is written "cuda", "cuda:1" or 1.

    Raises
    ------
    TypeError, ValueError
        If it is written in another way.
    """
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise TypeError(f'a device is "cuda", "cuda:1" or the like, got {device!r}')
    if isinstance(device, int):
        number = device
    else:
        name, colon, digits = device.partition(":")
        if name != "cuda" or (colon and not digits.isdecimal()):
            raise ValueError(f'a device is "cpu", "cuda", "cuda:1" or the like, got {device!r}')
        number = int(digits) if colon else 0
    count = len(core().devices())
    if not 0 <= number < count:
        raise ValueError(f"there is no GPU {number}: this machine has {count}")
    return number


def make_network(
    device: int,
    precision: str,
    bias: bool,
    options: Any,
    cell: str,
    input_size: int,
    general: General | None = None,
    heads: int = 1,
) -> Any:
    """Return the core's network on a device, which is made ready for it.

    Parameters
    ----------
    options
        What has ``hidden_size``, ``proj_size``, ``num_layers`` and ``bidirectional``.
    """
    prepare(device)
    return core().Network(
        cell,
        precision,
        input_size,
        options.hidden_size,
        options.proj_size,
        options.num_layers,
        options.bidirectional,
        bias,
        device,
        general=general,
        heads=heads,
    )


def prepare(device: int) -> None:
    """Make a device ready for networks: read its properties, find cuBLASLt. Once for each device."""
    with _lock:
        if device not in _prepared:
            _prepared[device] = _prepare(device)


def _prepare(device: int) -> str | None:
    wrong: str | None = None
    for path in _cublaslt(core()):
        wrong = core().prepare(device, path)
        if wrong is None:
            return None
    core().prepare(device, None)
    return wrong


def _cublaslt(module: Any) -> list[str]:
    """Where cuBLASLt may be: in the process already, in NVIDIA's wheels, on the system, or as FASTRNN_CUBLASLT says."""
    chosen = os.environ.get("FASTRNN_CUBLASLT")
    if chosen is not None:
        return [] if chosen in ("", "none") else [chosen]
    if module.emulated:
        return []
    names = ["libcublasLt.so.13", "libcublasLt.so.12"]
    loaded = [name for name in names if module.is_loaded(name)]
    if loaded:
        return loaded[:1]
    wheels = []
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec else []:
        for folder in ("cu13", "cublas"):
            wheels += [str(path) for name in names for path in Path(root, folder, "lib").glob(name)]
    return [*wheels, *names]

"""The machine a run was made on, in words."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastrnn

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, Any]:
    """What there is to know about processor, memory, system and this package."""
    model = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    memory = [line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")]
    return {
        "cpu": model[0].partition(":")[2].strip() if model else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "memory_bytes": int(memory[0].split()[1]) << 10 if memory else 0,
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "fastrnn": fastrnn.info(),
    }


def sentence(machine: dict[str, Any]) -> str:
    """One line for a heading."""
    n = machine["processors"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    own = machine["fastrnn"]
    return (
        f"{machine['cpu']}, {n} processor{'s' * (n > 1)}{f' ({caches})' if caches else ''}; "
        f"fastrnn {own['version']} on {own['isa']}, NumPy {own['numpy']}, Python {own['python']}; {machine['date']}"
    )


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit integers without saturating; true where one cannot ask."""
    flags = _flags()
    return not flags or any("vnni" in flag for flag in flags)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; true where one cannot ask."""
    flags = _flags()
    return not flags or any("bf16" in flag for flag in flags)


def _flags() -> list[str]:
    """What the first processor can do, in the system's words for it."""
    lines = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith(("flags", "Features"))]
    return lines[0].split()[2:] if lines else []


def _caches() -> dict[str, str]:
    found = {}
    for cache in sorted(CACHES.glob("index*")):
        level, kind, size = (" ".join(_lines(cache / name)) for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a file that some systems lack."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

"""Check a wheel file, and the import time of the fastrnn that this interpreter has installed.

check_wheel.py WHEEL
"""

import statistics
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

MOST_BYTES, MOST_BYTES_WITH_CUDA = 8_000_000, 17_000_000
IMPORT_MS = 30.0
NOISE = 3  # a shared machine may be this much slower than the limit that is meant
HEADERS = ("fastrnn/include/fastrnn.h", "fastrnn/include/fastrnn.hpp")
ISAS = ("avx512", "avx2", "scalar")

IMPORT = """
import time, numpy
begin = time.perf_counter()
import fastrnn
print(1e3 * (time.perf_counter() - begin))
"""


def check_contents(path: Path) -> list[str]:
    """Return what is wrong with the wheel's size, files and requirements."""
    problems = []
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        most = MOST_BYTES_WITH_CUDA if any(name.startswith("fastrnn/_cuda.") for name in names) else MOST_BYTES
        if path.stat().st_size > most:
            problems.append(f"it has {path.stat().st_size:,} bytes, more than {most:,}")
        cores = [name for name in names if name.startswith("fastrnn/_core.") and name.endswith(".so")]
        if len(cores) != 1:
            problems.append(f"it holds {cores or 'no compiled core'}, not one compiled core")
        library = next((name for name in names if "/libfastrnn" in name), "")
        code = wheel.read(library) if library else b""
        problems += [f"{library or 'libfastrnn.so'} lacks {isa}" for isa in ISAS if isa.encode() + b"\0" not in code]
        for needed in (
            "fastrnn/libfastrnn.so",
            *HEADERS,
            "fastrnn/_core.pyi",
            "fastrnn/py.typed",
            "fastrnn/__init__.py",
        ):
            if needed not in names:
                problems.append(f"{needed} is missing")
        strange = [name for name in names if not name.startswith("fastrnn/") and ".dist-info/" not in name]
        strange += [name for name in names if name.endswith((".cpp", ".hpp", ".cu", ".o")) and name not in HEADERS]
        problems += [f"{name} does not belong into it" for name in strange]
        metadata = Parser().parsestr(
            wheel.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        )
    required = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    if required != ["numpy>=2"]:
        problems.append(f"it requires {required}, not NumPy alone")
    return problems


def import_milliseconds(times: int = 21) -> float:
    """Return the median time of `import fastrnn` after `import numpy`, each in a process of its own."""
    run = [sys.executable, "-c", IMPORT]
    subprocess.run(run, check=True, capture_output=True)  # compiles the bytecode
    return statistics.median(
        float(subprocess.run(run, check=True, capture_output=True, text=True).stdout) for _ in range(times)
    )


def main() -> int:
    """Print the figures and the problems; 1 if there are any."""
    wheel = Path(sys.argv[1])
    problems = check_contents(wheel)
    took = import_milliseconds()
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; import fastrnn takes {took:.1f} ms on top of NumPy")
    if took > IMPORT_MS:
        print(f"that is more than the {IMPORT_MS:.0f} ms that are meant")
    if took > NOISE * IMPORT_MS:
        problems.append(f"the import takes {took:.0f} ms, more than {NOISE} times the limit")
    for problem in problems:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

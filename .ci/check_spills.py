"""Read what ptxas -v said of the GPU's kernels, and fail where one keeps registers in memory.

check_spills.py LOG
"""

import re
import sys
from pathlib import Path

KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def main() -> int:
    """Print a line for each target; 1 if a kernel spills, or there is none."""
    kernels: dict[str, int] = {}
    most: dict[str, int] = {}
    spilling = []
    name = target = ""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        if found := KERNEL.search(line):
            name, target = found.groups()
            kernels[target] = kernels.get(target, 0) + 1
        elif (found := SPILLS.search(line)) and found.groups() != ("0", "0"):
            spilling.append(f"{target}: {name} spills {found[1]} and {found[2]} bytes")
        elif found := REGISTERS.search(line):
            most[target] = max(most.get(target, 0), int(found[1]))
    for one in sorted(kernels):
        print(f"{one}: {kernels[one]} kernels of at most {most[one]} registers")
    print(*spilling, sep="\n")
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())

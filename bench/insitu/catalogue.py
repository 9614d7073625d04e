"""All programs, by name."""

from collections.abc import Sequence

from ..grid.shapes import matches
from . import numpy_programs, onnx_programs, reinforcement_programs, step_programs, torch_programs
from .program import Program

_FAMILIES = (torch_programs, step_programs, reinforcement_programs, numpy_programs, onnx_programs)
PROGRAMS: dict[str, Program] = {p.name: p for family in _FAMILIES for p in family.programs()}


def select(threads: Sequence[int], filters: Sequence[str]) -> list[tuple[str, int]]:
    """Names, and numbers of threads, of the programs that the filters keep; a program may need more than one thread.

    Without filters only those that are measured always.
    """
    return [
        (name, n)
        for n in threads
        for name, program in PROGRAMS.items()
        if n >= program.threads_from and (matches(title(name, n), filters) if filters else program.always)
    ]


def title(name: str, threads: int) -> str:
    """How the command line names a program on so many threads."""
    return f"{name}-t{threads}"

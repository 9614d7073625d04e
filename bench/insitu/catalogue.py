"""All programs, by name."""

from collections.abc import Sequence

from ..shapes import matches
from . import numpy_programs, torch_programs
from .program import Program

PROGRAMS: dict[str, Program] = {p.name: p for p in (*torch_programs.programs(), *numpy_programs.programs())}


def select(threads: Sequence[int], filters: Sequence[str]) -> list[tuple[str, int]]:
    """Names, and numbers of threads, of the programs that the filters keep; a program may need more than one thread."""
    return [
        (name, n)
        for n in threads
        for name, program in PROGRAMS.items()
        if n >= program.threads_from and (not filters or matches(title(name, n), filters))
    ]


def title(name: str, threads: int) -> str:
    """How the command line names a program on so many threads."""
    return f"{name}-t{threads}"

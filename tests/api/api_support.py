"""What the tests of the library for C share: its functions with their types, and a compiler for programs."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn

OK, BAD_ARGUMENT, BAD_MODEL, UNSUPPORTED, NO_MEMORY, NO_FILE = range(6)


class Options(ctypes.Structure):
    """fastrnn_options: FASTRNN_AS_SAVED, FASTRNN_BFLOAT16 or FASTRNN_INT8 each."""

    _fields_ = (("ih", ctypes.c_int), ("hh", ctypes.c_int))


WEIGHTS = {"bfloat16": 1, "int8": 2}


class Library:
    """The functions, with their types, of the library or of what was compiled in its place."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.c = ctypes.CDLL(str(path or fastrnn.get_library()))
        pointer, size, int64 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        for name, result, *arguments in (
            ("abi_version", ctypes.c_int),
            ("version", ctypes.c_char_p),
            ("message", ctypes.c_char_p),
            ("open_file", ctypes.c_int, ctypes.c_char_p, pointer, pointer),
            ("open", ctypes.c_int, ctypes.c_char_p, size, pointer, pointer),
            ("close", None, pointer),
            ("model_dtype", ctypes.c_int, pointer),
            ("input_size", int64, pointer),
            ("output_size", int64, pointer),
            ("takes_ids", ctypes.c_int, pointer),
            ("is_causal", ctypes.c_int, pointer),
            ("model_isa", ctypes.c_char_p, pointer),
            ("stream_bytes", size, pointer, int64, int64),
            ("prepare", ctypes.c_int, pointer, int64, int64, pointer, size, pointer),
            ("step", ctypes.c_int, pointer, pointer, pointer),
            ("run", ctypes.c_int, pointer, pointer, int64, pointer),
            ("reset", ctypes.c_int, pointer),
            ("state_size", int64, pointer),
            ("get_state", ctypes.c_int, pointer, pointer),
            ("set_state", ctypes.c_int, pointer, pointer),
        ):
            function = getattr(self.c, f"fastrnn_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def at(array: Any) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


class Model:
    """An opened model and its streams."""

    def __init__(self, c: Any, source: Path | bytes, options: Options | None = None) -> None:
        self.c, self.handle, self._blocks = c, ctypes.c_void_p(), []
        where, given = ctypes.byref(self.handle), options and ctypes.byref(options)
        if isinstance(source, bytes):
            status = c.open(source, len(source), given, where)
        else:
            status = c.open_file(bytes(source), given, where)
        assert status == OK, c.message()

    def stream(self, batch: int, steps: int, shift: int = 0) -> Any:
        size = self.c.stream_bytes(self.handle, batch, steps)
        assert size > 0
        block = np.full(size + shift, 0xFF, np.uint8)  # what nobody writes shows
        self._blocks.append(block)
        stream = ctypes.c_void_p()
        place = ctypes.c_void_p(block.ctypes.data + shift)
        assert self.c.prepare(self.handle, batch, steps, place, size, ctypes.byref(stream)) == OK, self.c.message()
        return stream


def run(c: Any, stream: Any, x: Any, y: Any) -> Any:
    assert c.run(stream, at(x), len(x), at(y)) == OK, c.message()
    return y


def compile_program(source: Path, *options: str) -> Path:
    """Compile a program in C or C++ against the installed library, beside its source; skip without a compiler."""
    compiler = shutil.which("cc" if source.suffix == ".c" else "c++")
    if compiler is None:
        pytest.skip("there is no compiler")
    library, program = Path(fastrnn.get_library()), source.with_suffix("")
    warnings = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
    linked = [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    subprocess.run([compiler, *options, *warnings, str(source), f"-I{fastrnn.get_include()}", *linked], check=True)
    return program

"""``fastrnn run``: a model in an ONNX file on arrays in NumPy's files."""

import argparse
import lzma
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import printable
from .option_types import whole
from .storage import FileError, replacing, try_folder
from .threads import MOST, threads

Array = NDArray[Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's options."""
    parser.add_argument("model", metavar="MODEL.onnx", help="data in other files have to lie beside it")
    text = ".npy, for the input of that name, or for the only one; or .npz with arrays by the inputs' names"
    parser.add_argument("--input", metavar="[NAME=]FILE", action="append", default=[], help=text)
    parser.add_argument("--output", metavar="FILE.npz", help="where the outputs are written, by their names")
    parser.add_argument("--threads", metavar="N", type=whole(1, MOST), help="default: all processors")


def run(arguments: argparse.Namespace) -> int:
    """Run it, print what was computed where and what came out, and write it.

    Raises
    ------
    FileError
        For files that hold something else.
    ImportError
        Without onnx and onnxruntime.
    ValueError, TypeError
        For arrays that the model does not take.
    OSError
        If a file cannot be read or written.
    """
    from .onnx import accelerate

    if arguments.output is not None:
        if Path(arguments.output).suffix != ".npz":
            raise ValueError(f"got --output {arguments.output}; its name must end in .npz")
        try_folder(arguments.output)
    if arguments.threads is None:
        return _run(arguments, accelerate)
    with threads(arguments.threads):
        return _run(arguments, accelerate)


def _run(arguments: argparse.Namespace, accelerate: Callable[[str], Any]) -> int:
    session = accelerate(arguments.model)
    feeds = _feeds(arguments.input, [one.name for one in session.get_inputs()])
    bar = _Bar()
    begin = time.perf_counter()
    try:
        found = session.run(None, feeds, progress=bar.show)
    finally:
        bar.close()
    seconds = time.perf_counter() - begin
    named = _named([one.name for one in session.get_outputs()], found)
    print(session.report)
    for name, array in named.items():
        print(f"{printable(name)}  {array.dtype} {array.shape}")
    print(f"{seconds:.3f} s")
    if arguments.output is not None:
        with replacing(arguments.output) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in named.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    return 0


def _named(names: list[str], values: list[Any]) -> dict[str, Array]:
    """The outputs by name; the members of a sequence are numbered."""
    found: dict[str, Array] = {}
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list):
            found |= {f"{name}.{k}": np.asarray(one) for k, one in enumerate(value)}
        else:
            found[name] = np.asarray(value)
    return found


def _feeds(given: list[str], names: list[str]) -> dict[str, Array]:
    """Read the inputs."""
    feeds: dict[str, Array] = {}
    for one in given:
        name, found, path = one.rpartition("=")
        loaded = read_arrays(path)
        if isinstance(loaded, dict):
            if found:
                raise ValueError(f"got --input {one}; an .npz file has names of its own")
            feeds |= loaded
        elif found or len(names) == 1:
            feeds[name if found else names[0]] = loaded
        else:
            raise ValueError(f"got --input {one}; say of which input it is: {', '.join(f'{n}={path}' for n in names)}")
    return feeds


def read_arrays(path: str) -> Array | dict[str, Array]:
    """Return the array of an .npy file, or those of an .npz file by name.

    Raises
    ------
    FileError
        For files that hold something else.
    """
    with open(path, "rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
        except MemoryError as error:
            raise FileError(f"{path} says that it holds more than there is memory for: {error}") from error
        except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise FileError(f"{path} holds no array: {error}") from error


class _Bar:
    """Time steps of the recurrent node at work, in a terminal with tqdm."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty() and find_spec("tqdm") is not None
        self._bar: Any = None
        self._name = ""

    def show(self, name: str, done: int, steps: int) -> None:
        """Tell of one node how many of its steps are done."""
        if not self._shown:
            return
        if self._bar is None or self._name != name:
            self.close()
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            self._bar, self._name = tqdm(total=steps, desc=printable(name), unit=" steps", ncols=78, leave=False), name
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

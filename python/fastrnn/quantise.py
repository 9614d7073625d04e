"""``fastrnn quantise``: what weights in fewer bits cost and gain with the layers of a file or a language model."""

import argparse
import copy
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import printable
from .frozen import Frozen, Weights, as_given, read_words
from .run_model import read_arrays
from .storage import FileError, description_in, try_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .lm.model import LanguageModel

Array = NDArray[Any]

STEPS = 1000  # of noise, where no data are given
CHARACTERS = 50_000  # of a text that are read at most
PARTS = 10  # of the time, whose errors are told apart
THE_LAYER = "(the layer)"  # of a file of one without a name
WHY_FULL = "weights of heads are not kept in fewer bits"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")


@dataclass
class Finding:
    """What fewer bits change about one layer.

    Attributes
    ----------
    name, layer : str
        Its name in the file, and what it is.
    data : str
        What it was run on.
    largest, mean : float
        Error of y against the layer itself, in float32.
    drift : array
        (T,) mean error at each time step.
    microseconds : pair of float
        A time step of one sequence, before and after.
    nbytes : pair of int
        The packed weights, before and after.
    """

    name: str
    layer: str
    data: str
    largest: float
    mean: float
    drift: Array
    microseconds: tuple[float, float]
    nbytes: tuple[int, int]

    def parts(self) -> Array:
        """Return the mean error in each of `PARTS` parts of the time, or in each step where these are fewer."""
        return np.array([part.mean() for part in np.array_split(self.drift, min(PARTS, len(self.drift)))])


def measure(name: str, layer: Any, weights: Weights, run: Any, data: str) -> tuple[Finding, Frozen[Any]]:
    """Freeze a layer and compare; `run` calls what it is given and returns y (T,B,P)."""
    from .files.inspecting import pace

    full, fast = layer.freeze(), layer.freeze(weights)
    error = np.abs(run(fast).astype(np.float64) - run(full))
    drift = error.mean(axis=(1, 2))
    finding = Finding(
        name,
        _in_words(layer),
        data,
        float(error.max()),
        float(error.mean()),
        drift,
        (pace(full, layer) * 1e6, pace(fast, layer) * 1e6),
        (full.nbytes, fast.nbytes),
    )
    return finding, fast


# ---- layers and language models ------------------------------------------------------------------------------------


def of_layers(path: str, weights: Weights, check: str | None) -> tuple[list[Finding], dict[str, Any], list[str]]:
    """Compare the recurrent layers of a file.

    Returns
    -------
    findings : list of Finding
        One for each layer whose weights may be in fewer bits.
    layers : dict of str to layer
        All layers of the file, those frozen.
    told : list of str
        A line on each recurrent layer that stays as it is.

    Raises
    ------
    FileError, OSError
        As `fastrnn.load`.
    ValueError
        For data that fit no layer, layers whose weights cannot be kept so, files where all of them have heads, and
        options of the file that are open.
    """
    from . import load

    loaded = load(path)
    layers: dict[str, Any] = loaded if isinstance(loaded, dict) else {"": loaded}
    if frozen := [name for name, layer in layers.items() if isinstance(layer, Frozen)]:
        raise ValueError(f"{path} holds weights in fewer bits already{_called(frozen[0])}; give the model they are of")
    recurrent = {name: layer for name, layer in layers.items() if hasattr(layer, "freeze")}
    full = [name for name, layer in recurrent.items() if layer.heads > 1]
    told = [f"{name or THE_LAYER}: {_in_words(recurrent[name])} stays as it is: {WHY_FULL}" for name in full]
    if recurrent and len(full) == len(recurrent):
        raise ValueError(f"{path}: every recurrent layer of it has heads, and {WHY_FULL}")
    recurrent = {name: layer for name, layer in recurrent.items() if name not in full}
    data = None if check is None else _read_data(check)
    sizes = {layer.input_size for layer in recurrent.values()}
    if data is not None and data.shape[-1] not in sizes:
        wanted = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"{check} has shape {data.shape}; its last axis must be the features of a layer: {wanted}")
    findings, after = [], dict(layers)
    for name, layer in recurrent.items():
        x, source = data, str(check)
        if x is None or x.shape[-1] != layer.input_size:
            x, source = np.random.default_rng(0).standard_normal((STEPS, 1, layer.input_size), np.float32), "noise"
        elif layer.batch_first and x.ndim == 3:
            x = x.swapaxes(0, 1)
        x = x[:, None] if x.ndim == 2 else x
        given = x.swapaxes(0, 1) if layer.batch_first else x

        def run(one: Any, given: Array = given, layer: Any = layer) -> Array:
            y: Array = one(given)[0]
            return y.swapaxes(0, 1) if layer.batch_first else y

        finding, after[name] = measure(name or THE_LAYER, layer, weights, run, source)
        findings.append(finding)
    return findings, after, told


def _in_words(layer: Any) -> str:
    return repr(layer).partition("  #")[0]


def _called(name: str) -> str:
    return f", in {name!r}" if name else ""


def _read_data(path: str) -> Array:
    """Return (T,B,I) or (T,I) as float32."""
    found = read_arrays(path)
    if isinstance(found, dict):
        raise ValueError(f"{path} holds several arrays; --check takes one, in an .npy file")
    if found.ndim not in (2, 3) or found.dtype.kind not in "fiu" or not found.size:
        what = f"{found.dtype} of shape {found.shape}"
        raise ValueError(f"{path} holds {what}; --check takes numbers (time, batch, features) or (time, features)")
    with np.errstate(over="ignore"):
        data = found.astype(np.float32)
    if not np.isfinite(data).all():
        raise ValueError(f"{path} holds numbers that are not finite in float32")
    return data


def of_language_model(
    model: "LanguageModel", weights: Weights, check: str | None
) -> tuple[list[Finding], dict[str, Any], tuple[str, float, float]]:
    """Compare a language model on a text; return also its parts, and the name of its figure before and after.

    Raises
    ------
    TextError
        If it cannot read the text.
    """
    from .lm.report import figure_of
    from .lm.text import builtin_text, read_text

    text, told = (read_text(check), check) if check is not None else builtin_text()
    ids = model.vocabulary.encode(text[-CHARACTERS:])
    one = ids[: min(len(ids), 10 * STEPS), None]

    def run(network: Any) -> Array:
        y: Array = network(one, embedding=model.table)[0]
        return y

    finding, fast = measure("network", model.network, weights, run, told)
    after = copy.copy(model)
    after.network = fast  # type: ignore[assignment]
    level = model.vocabulary.level
    before, now = (figure_of(each.nats_per_token(ids), level) for each in (model, after))
    figure = "bits per character" if level == "char" else "perplexity per word"
    return [finding], {"embedding": model.embedding, "network": fast, "head": model.head}, (figure, before, now)


def is_language_model(path: str) -> bool:
    """Tell whether a file is one that `fastrnn train` saved."""
    from .files.archive import Archive

    if not zipfile.is_zipfile(path):
        return False
    with Archive(path) as archive:
        try:
            return "model" in description_in(archive)
        except FileError:
            return False


# ---- what is shown -------------------------------------------------------------------------------------------------


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines."""
    head = ("", "largest error", "mean", "first part", "last part", "us a step", "bytes")
    rows: list[tuple[str, ...]] = [head]
    for one in findings:
        parts, (slow, fast), (large, small) = one.parts(), one.microseconds, one.nbytes
        errors = [f"{value:.1e}" for value in (one.largest, one.mean, parts[0], parts[-1])]
        rows.append((one.name, *errors, f"{slow:.1f} -> {fast:.1f}", f"{large:,} -> {small:,}"))
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}" for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    told = [f"{one.name}: {one.layer} on {len(one.drift):,} steps of {one.data}" for one in findings]
    return "\n".join(printable(line) for line in (*told, "", *lines))


def picture(findings: Sequence[Finding], weights: Weights) -> "Figure":
    """Return the mean error over the time steps, smoothed, of each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axis = figure.subplots()
    for k, one in enumerate(findings):
        width = max(1, len(one.drift) // 200)
        smooth = one.drift[: len(one.drift) // width * width].reshape(-1, width).mean(axis=1)
        steps = (np.arange(len(smooth)) + 0.5) * width
        name = printable(one.name).replace("$", r"\$")
        axis.plot(steps, np.maximum(smooth, 1e-12), color=COLOURS[k % len(COLOURS)], label=name)
    axis.set(yscale="log", xlabel="time step", ylabel="mean error of y", title=f"weights={weights!r} against float32")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


# ---- the command ---------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="MODEL", help="a file that fastrnn.load reads, or what fastrnn train saved")
    words = "int8 or bfloat16 (%(default)s), or two of them: those of the input and those of the hidden state, as A,B"
    parser.add_argument("--weights", metavar="WORD", default="int8", help=words)
    data = ".npy with numbers (time, batch, features) or (time, features), as layers with batch_first take them; "
    data += "of a language model a text (noise; the help texts in Python itself)"
    parser.add_argument("--check", metavar="DATA", help=data)
    parser.add_argument("--plot", metavar="FILE", help="draw the error over the time steps (.png, .svg, .pdf)")
    parser.add_argument("--output", metavar="FILE.safetensors", help="write the layers with weights in fewer bits")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, draw and write.

    Raises
    ------
    FileError, TextError, OSError
        For files that cannot be read or written.
    ValueError, TypeError
        For options and data that do not fit.
    ImportError
        If a picture is wanted, and matplotlib is not there.
    """
    from . import save

    weights = _weights(arguments.weights)
    _check_paths(arguments)
    figures = None
    kept: list[str] = []
    if is_language_model(arguments.model):
        from .lm.model import LanguageModel

        model = LanguageModel.load(arguments.model)
        findings, layers, figures = of_language_model(model, weights, arguments.check)
    else:
        findings, layers, kept = of_layers(arguments.model, weights, arguments.check)
    print(f"weights={weights!r} against float32")
    for line in kept:
        print(printable(line))
    print(table(findings))
    if figures is not None:
        print(f"{figures[0]}: {figures[1]:.4f} -> {figures[2]:.4f}")
    if arguments.plot is not None:
        picture(findings, weights).savefig(arguments.plot, dpi=110)
        print(f"The picture is in {arguments.plot}")
    if arguments.output is not None:
        save(arguments.output, layers[""] if list(layers) == [""] else layers)
        print(
            f"{arguments.output}: {os.path.getsize(arguments.output):,} bytes; {arguments.model} has "
            f"{os.path.getsize(arguments.model):,}"
        )
    return 0


def _weights(text: str) -> Weights:
    words: Any = text.split(",")
    given = words[0] if len(words) == 1 else dict(zip(("ih", "hh"), words, strict=False)) if len(words) == 2 else text
    return as_given(read_words(lambda: "--weights", given))


def _check_paths(arguments: argparse.Namespace) -> None:
    """Refuse, before the work, what cannot be written."""
    endings: Mapping[str, tuple[str, ...]] = {"plot": (".png", ".svg", ".pdf"), "output": (".safetensors",)}
    for option, allowed in endings.items():
        path = getattr(arguments, option)
        if path is None:
            continue
        if Path(path).suffix.lower() not in allowed:
            raise ValueError(f"got --{option} {path}; its name must end in {' or '.join(allowed)}")
        if option == "plot":
            try:
                import matplotlib  # noqa: F401
            except ImportError as error:
                raise ImportError(f"the picture needs matplotlib ({error}): pip install 'fastrnn[plot]'") from error
        try_folder(path)

"""Pictures of a training, by matplotlib (the extra ``plot``): the loss curve, and the embedding in a plane."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Progress
from .model import LanguageModel
from .neighbours import directions, frequent, plane
from .report import figure_of
from .text import Ids, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

SHOWN = 90  # tokens in the plane
COLOUR, SECOND = "#0072B2", "#D55E00"


def require_matplotlib() -> None:
    """Raise an ImportError that names the extra if matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib ({error}): pip install 'fastrnn[plot]'") from error


def draw(progress: Progress, ids: Ids, output: str) -> dict[str, str]:
    """Write the pictures beside a model's file: what they show, and where they are."""
    figures = {"loss": loss_curve(progress), "embedding": embedding_map(progress.model, ids)}
    paths = paths_beside(output)
    for kind, figure in figures.items():
        figure.savefig(paths[kind], dpi=110)
    return paths


def paths_beside(output: str) -> dict[str, str]:
    """Return where `draw` puts the pictures."""
    stem = os.path.splitext(output)[0]
    return {kind: f"{stem}.{kind}.png" for kind in ("loss", "embedding")}


def loss_curve(progress: Progress) -> "Figure":
    """Return the loss of the steps, smoothed, and on the validation text, as bits per character or perplexity."""
    from matplotlib.figure import Figure

    level = progress.model.vocabulary.level
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    losses = np.array(progress.losses)
    width = max(1, len(losses) // 200)
    smooth = losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)
    steps = (np.arange(len(smooth)) + 0.5) * width
    axis.plot(steps, [figure_of(x, level) for x in smooth], color=COLOUR, label="training")
    at, values = zip(*progress.validations, strict=True)
    axis.plot(at, [figure_of(x, level) for x in values], "o-", color=SECOND, label="validation")
    name = "perplexity per word" if level == Words.level else "bits per character"
    axis.set(xlabel="step", ylabel=name, yscale="log" if level == Words.level else "linear")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def embedding_map(model: LanguageModel, ids: Ids) -> "Figure":
    """Return the most frequent tokens of a text at the first two principal components of their output vectors."""
    from matplotlib.figure import Figure

    known = frequent(model, ids, SHOWN)
    tokens = model.vocabulary.tokens
    font, has = _font_for("".join(tokens[i] for i in known))
    shown = [i for i in known if all(map(has, tokens[i]))]
    figure = Figure(figsize=(8, 7), layout="constrained")
    axis = figure.subplots()
    points = plane(directions(model)[shown]) if shown else np.empty((0, 2))
    axis.scatter(points[:, 0], points[:, 1], s=6, color=COLOUR, alpha=0.5)
    for i, (x, y) in zip(shown, points, strict=True):
        label = tokens[i].replace("$", r"\$")
        axis.annotate(label, (x, y), (2, 2), textcoords="offset points", fontsize=9, fontproperties=font)
    kind = model.vocabulary.token
    missing = f"; {len(known) - len(shown)} are in no font of this machine" if len(shown) < len(known) else ""
    axis.set(
        xticks=[], yticks=[], title=f"The {len(known)} most frequent {kind}s in the plane of most variance{missing}"
    )
    return figure


def _font_for(text: str) -> "tuple[FontProperties, Callable[[str], bool]]":
    """Return the installed font that has the most of these characters, and what tells whether it has one."""
    from matplotlib import font_manager

    wanted = {ord(c) for c in text}

    def characters(path: str) -> set[int]:
        return set(font_manager.get_font(path).get_charmap())

    best = font_manager.findfont(font_manager.FontProperties())
    found = characters(best)
    if not wanted <= found:
        for path in _candidates(font_manager.fontManager.ttflist):
            other = characters(path)
            if len(wanted & other) > len(wanted & found):
                best, found = path, other
    return font_manager.FontProperties(fname=best), lambda c: ord(c) in found


def _candidates(fonts: Iterable[Any]) -> list[str]:
    # matplotlib's font of last resort has a box for every character
    return sorted({font.fname for font in fonts if font.style == "normal" and "LastResort" not in font.fname})

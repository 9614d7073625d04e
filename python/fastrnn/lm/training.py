"""The main job: train a language model on the characters or words of a text, watch it learn, save it, go on later."""

import contextlib
import dataclasses
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from .. import storage
from .._info import info
from ..kit.optimizers import SGD, Adam, clip_grad_norm, learning_rate
from ..storage import FileError
from ..threads import get_num_threads, threads
from . import checkpoint, pictures
from .checkpoint import Progress
from .model import CELLS, LanguageModel, check_output
from .neighbours import table_of_neighbours
from .report import Report, figure_of, printable
from .text import Characters, TextError, Vocabulary, Words, builtin_text, count_windows, read_text, windows

OPTIMIZERS: dict[str, tuple[type[SGD] | type[Adam], float]] = {"adam": (Adam, 5e-3), "sgd": (SGD, 0.05)}
LAST_RATE = 0.1  # part of the learning rate that is left at the last step; it falls in a straight line
DIVERGED = "{what} at step {step:,}: the training has diverged; try a smaller --lr or --clip"


class DivergedError(ArithmeticError):
    """The loss is no number any more; saved is at most the model of an epoch before."""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value >= least


def _between(above: float, below: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and above < value < below


# What the options may be; the command words its own errors, but a checkpoint may hold anything.
_KNOWN: dict[str, Callable[[Any], bool]] = {
    **{name: _whole(1) for name in ("vocabulary", "min_count", "hidden", "layers", "embedding", "seq_len", "batch")},
    **{name: _whole(1) for name in ("epochs", "steps", "threads")},
    **{name: _whole(0) for name in ("patience", "seed", "sample")},
    **{name: _between(0, math.inf) for name in ("lr", "clip", "save_every", "temperature")},
    "validation": _between(0, 1),
    "dropout": lambda value: _between(-1, 1)(value) and value >= 0,
    **{name: (lambda value: isinstance(value, str)) for name in ("text", "prompt", "output")},
    "level": (Characters.level, Words.level).__contains__,
    "cell": lambda value: value in tuple(CELLS),
    "optimizer": lambda value: value in tuple(OPTIMIZERS),
}
_OPTIONAL = {"text", "prompt", "steps", "threads", "sample", "lr"}  # may be None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `train` needs to know: the options of the command, with their defaults."""

    text: str | None = None
    level: str = "char"
    vocabulary: int = 10_000
    min_count: int = 2
    reset_on_newline: bool = False
    validation: float = 0.1
    cell: str = "lstm"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    dropout: float = 0.0
    seq_len: int = 64
    batch: int = 32
    epochs: int = 10
    steps: int | None = None
    patience: int = 3
    optimizer: str = "adam"
    lr: float | None = None
    clip: float = 20.0
    seed: int = 0
    threads: int | None = None
    output: str = "model.npz"
    save_every: float = 120.0
    plots: bool = False
    sample: int | None = None
    prompt: str | None = None
    temperature: float = 0.7

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value!r}"
            for name, value in vars(self).items()
            if name in _KNOWN and not (value is None and name in _OPTIONAL) and not _KNOWN[name](value)
        ]
        if wrong:
            raise ValueError(f"options that cannot be: {', '.join(wrong)}")

    @property
    def first_rate(self) -> float:
        """The learning rate at the start."""
        return OPTIMIZERS[self.optimizer][1] if self.lr is None else self.lr


@dataclass(frozen=True)
class Outcome:
    """What `train` returns.

    Attributes
    ----------
    model : LanguageModel
        With the lowest loss on the validation text.
    loss : float
        That loss, in nats per token; infinite if the training was stopped before the first validation.
    progress : Progress
        The steps' losses and all validations.
    stopped : str or None
        What ended the training before its time: "interrupted", "no better".
    """

    model: LanguageModel
    loss: float
    progress: Progress
    stopped: str | None


class _Corpus:
    """The text as ids, split into what is trained on and what is not."""

    def __init__(self, options: Options, vocabulary: Vocabulary | None) -> None:
        text, self.name = (read_text(options.text), options.text) if options.text is not None else builtin_text()
        self.characters = len(text)
        if vocabulary is None:
            words = options.level == Words.level
            vocabulary = Words.of(text, options.vocabulary, options.min_count) if words else Characters(text)
        self.vocabulary = vocabulary
        ids = vocabulary.encode(text)
        self.start = (text.split(maxsplit=1) or [text])[0][:20]  # what a sample goes on from
        size = max(2, int(len(ids) * options.validation))
        self.training, self.validation = ids[: max(len(ids) - size, 0)], ids[-size:]
        needed = options.batch * options.seq_len + 1
        if len(self.training) < needed:
            raise TextError(
                f"{self.name} is too short: {len(self.training):,} of its {len(ids):,} {vocabulary.token}s are there "
                f"to train on, and one window of --batch {options.batch} x --seq-len {options.seq_len} needs "
                f"{needed:,}; make one of the two smaller"
            )

    @property
    def fingerprint(self) -> str:
        return checkpoint.fingerprint(self.training, self.validation)

    def describe(self) -> str:
        """Return a line about the text."""
        first = f"{printable(self.name)}: {self.characters:,} characters"
        if self.vocabulary.unknown is None:
            return f"{first}, {len(self.vocabulary):,} distinct"
        ids = np.concatenate([self.training, self.validation])
        unknown = np.count_nonzero(ids == self.vocabulary.unknown) / len(ids)
        return f"{first}, {len(ids):,} words, {len(self.vocabulary):,} distinct, {unknown:.1%} unknown"


class _Stop:
    """While it lasts, the first Ctrl-C or SIGTERM asks for a stop between two steps; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and shells in the background want it
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def train(options: Options) -> Outcome:
    """Train a model as the options say, print the progress and a sample, and save the model.

    Everything that can be wrong with the text, the options and the output path is found before the training starts.
    Ctrl-C or SIGTERM ends the training early; a checkpoint beside the model, which may also be loaded as one, then
    lets `resume` go on. A model that was there before is replaced only by a finished one.

    Raises
    ------
    TextError, FileError, SizeError
        If the text, the output path or the sizes will not do.
    ImportError
        If pictures are wanted and the extra ``plot`` is missing.
    OSError
        If the text cannot be read or the model cannot be written.
    DivergedError
        If the loss is no number any more. The model of the lowest validation loss before, if any, is saved then.
    """
    _check(options, None)
    corpus = _Corpus(options, None)
    prompt = _prompt(options, corpus)
    model = LanguageModel(
        corpus.vocabulary,
        options.cell,
        embedding_dim=options.embedding,
        hidden_size=options.hidden,
        num_layers=options.layers,
        dropout=options.dropout,
        line_by_line=options.reset_on_newline,
        rng=options.seed,
    )
    return _run(options, corpus, prompt, Progress(model, _optimizer(options, model)))


def resume(path: str, **changes: Any) -> Outcome:
    """Go on with a training from its checkpoint: to the same bits, with the same options, as if it had never stopped.

    Parameters
    ----------
    path : str
        The checkpoint.
    **changes
        Options that are to be different from now on, such as ``epochs``.

    Raises
    ------
    TextError, FileError, SizeError, ImportError, OSError, DivergedError
        As from `train`; also if the checkpoint is damaged, or its text has changed.
    """
    description, arrays = checkpoint.read(path)
    try:
        kept = Options(**description["checkpoint"]["options"])
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} is of a training with other options than this version knows: {error}") from error
    options = dataclasses.replace(kept, **changes)
    _check(options, path)
    model = LanguageModel.from_description(path, description, arrays)
    try:
        corpus = _Corpus(options, model.vocabulary)
    except TextError as error:
        raise FileError(f"{path} was made with another text: {error}") from error
    progress = checkpoint.restore(path, description, arrays, model, _optimizer(options, model), corpus.fingerprint)
    if not 0 <= progress.window <= count_windows(len(corpus.training), options.batch, options.seq_len):
        raise FileError(f"{path} does not fit together: window {progress.window:,} is not in the text")
    return _run(options, corpus, _prompt(options, corpus), progress)


def _optimizer(options: Options, model: LanguageModel) -> SGD | Adam:
    return OPTIMIZERS[options.optimizer][0](model.parameters(), lr=options.first_rate)


def _check(options: Options, resumed: str | None) -> None:
    """Find out whether what is to be written can be, and replaces nothing but a model and the checkpoint resumed."""
    check_output(options.output)
    beside = checkpoint.path_beside(options.output)
    if os.path.lexists(beside) and not (resumed is not None and os.path.samefile(beside, resumed)):
        try:
            checkpoint.read(beside)
        except FileError as error:
            raise FileError(f"{beside} exists and is no checkpoint; choose another --output") from error
        raise FileError(
            f"{beside} is of an unfinished training: go on with fastrnn train --resume {beside}, or delete it"
        )
    storage.try_folder(beside)
    if options.plots:
        pictures.require_matplotlib()
        for picture in pictures.paths_beside(options.output).values():
            if os.path.lexists(picture) and not os.path.isfile(picture):
                raise FileError(f"{picture} exists and is not a regular file; choose another --output")


def _prompt(options: Options, corpus: _Corpus) -> str:
    prompt = corpus.start if options.prompt is None else options.prompt
    corpus.vocabulary.encode_prompt(prompt)
    return prompt


def _run(options: Options, corpus: _Corpus, prompt: str, progress: Progress) -> Outcome:
    model = progress.model
    with threads(options.threads or get_num_threads()):
        size = sum(array.size for part in model.parameters() for array in part.values())
        print(f"text    {corpus.describe()}")
        print(f"model   {options.cell}, {options.layers} x {options.hidden} units, {size:,} parameters")
        facts = info()
        print(f"runs    fastrnn {facts['version']} on {facts['isa']}, {facts['threads']} threads\n")
        beside = checkpoint.path_beside(options.output)
        try:
            stopped = _Training(options, corpus, progress).run()
        except DivergedError:
            if progress.best is not None:
                _save_best(options, progress, ", the model of the lowest validation loss before")
            raise
        if stopped == "interrupted":
            print(f"\nstopped after {progress.steps:,} steps; go on with fastrnn train --resume {printable(beside)}")
        else:
            early = f", stopped after {progress.steps:,} steps" if stopped else ""
            _save_best(options, progress, early)
            if os.path.lexists(beside):
                os.unlink(beside)
            _show(options, corpus, prompt, progress)
    return Outcome(model, progress.lowest, progress, stopped)


def _save_best(options: Options, progress: Progress, note: str) -> None:
    assert progress.best is not None, "nothing was validated"
    progress.model.load_arrays(progress.best)
    progress.model.save(options.output)
    print(f"\nsaved   {printable(options.output)}{note}")


def _show(options: Options, corpus: _Corpus, prompt: str, progress: Progress) -> None:
    """Print what came of it, and draw it."""
    model, token = progress.model, corpus.vocabulary.token
    words = corpus.vocabulary.level == Words.level
    figure = figure_of(progress.lowest, corpus.vocabulary.level)
    result = f"perplexity {figure:,.1f} per word" if words else f"{figure:.3f} bits per character"
    print(f"result  {result} on the last {len(corpus.validation):,} {token}s, not trained on")
    if options.plots:
        for kind, path in pictures.draw(progress, corpus.training, options.output).items():
            print(f"plot    {kind} in {printable(path)}")
    if words:
        print("near    words that come in the same places, by the cosine of their output vectors:\n")
        print(printable(table_of_neighbours(model, corpus.training)) + "\n")
    length = (80 if words else 400) if options.sample is None else options.sample
    if length:
        written = model.sample(length, prompt, temperature=options.temperature, rng=options.seed)
        print(f"sample  at temperature {options.temperature:g}:\n\n{printable(prompt + written).strip()}")


class _Training:
    """Steps, validations and checkpoints."""

    def __init__(self, options: Options, corpus: _Corpus, progress: Progress) -> None:
        self.options, self.corpus, self.progress = options, corpus, progress
        self.per_epoch = count_windows(len(corpus.training), options.batch, options.seq_len)
        self.total = min(self.per_epoch * options.epochs, options.steps or sys.maxsize)
        self.report = Report(corpus.vocabulary.level, progress.steps, self.total)
        self.path = checkpoint.path_beside(options.output)
        self.saved = time.monotonic()

    def run(self) -> str | None:
        """Train to the end; return what stopped it before."""
        p = self.progress
        try:
            with _Stop() as stop, np.errstate(over="ignore", invalid="ignore"):
                while p.steps < self.total and not self.gives_up():
                    if not self.epoch(stop):
                        checkpoint.save(self.path, p, self.options, self.corpus.fingerprint)
                        return "interrupted"
                if not p.validations:  # resumed with fewer steps than were done
                    p.validated(self.validate())
        except OSError:  # nobody reads what is printed, between two steps
            self.save()
            raise
        finally:
            self.report.close()
        return "no better" if p.steps < self.total else None

    def gives_up(self) -> bool:
        """Whether the loss on the validation text has not fallen for too long."""
        return 0 < self.options.patience <= self.progress.validations_since_lowest

    def epoch(self, stop: _Stop) -> bool:
        """Finish the epoch, and validate; False if asked to stop."""
        p, o = self.progress, self.options
        left = windows(self.corpus.training, o.batch, o.seq_len, p.model.newline)
        for window in itertools.islice(left, p.window, None):
            if stop.asked:
                return False
            self.step(window)
            if p.steps == self.total:
                break
            if self.report.due():
                self.report.line(p.epoch, p.steps)
            if time.monotonic() - self.saved > o.save_every:
                self.save()
        self.report.line(p.epoch, p.steps)
        p.validated(self.validate())
        if not math.isfinite(p.validations[-1][1]):
            raise DivergedError(DIVERGED.format(what="the validation loss is no number", step=p.steps))
        self.report.validation(p.epoch, p.validations[-1][1])
        if p.window == self.per_epoch:
            p.epoch, p.window, p.state = p.epoch + 1, 0, None
        return True

    def step(self, window: Any) -> None:
        p, o = self.progress, self.options
        loss, p.state, gradients = p.model.loss_and_gradients(window, p.state)
        if not math.isfinite(loss):
            raise DivergedError(DIVERGED.format(what=f"the loss is {loss}", step=p.steps + 1))
        clip_grad_norm(gradients, o.clip)
        p.optimizer.lr = learning_rate(p.steps, self.total, o.first_rate, last=LAST_RATE, shape="linear")
        p.optimizer.step(gradients)
        p.losses.append(loss / len(window.ids))
        p.window += 1
        self.report.add(loss * window.ids.shape[1], window.ids.size)

    def save(self) -> None:
        """Write a checkpoint; that it cannot be written does not end the training."""
        try:
            checkpoint.save(self.path, self.progress, self.options, self.corpus.fingerprint)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.report.note(f"note: no checkpoint was written: {error.strerror or error}")
        self.saved = time.monotonic()

    def validate(self) -> float:
        # a stream starts without context, so each gets some hundred tokens at least
        ids, most = self.corpus.validation, self.options.batch
        return self.progress.model.nats_per_token(ids, batch=max(1, min(most, len(ids) // 500)))

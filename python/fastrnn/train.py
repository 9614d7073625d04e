"""The main job: train a character language model on a text, watch it learn, save it."""

import math
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ._info import info
from .optim import SGD, Adam, clip_grad_norm, learning_rate
from .text import (
    CharacterModel,
    Ids,
    TextError,
    Vocabulary,
    builtin_text,
    check_output,
    count_windows,
    read_text,
    windows,
)
from .threads import get_num_threads, threads

LEARNING_RATES = {"adam": 5e-3, "sgd": 0.05}
LAST_RATE = 0.1  # part of the learning rate that is left at the last step; it falls in a straight line
HELD_OUT = 0.1  # last part of the text, which only the validation figure sees
REPORT_SECONDS = 5.0
DIVERGED = "{what} at step {step:,}: the training has diverged, nothing was saved; try a smaller --lr or --clip"
BITS = 1 / math.log(2)  # in one nat


class DivergedError(ArithmeticError):
    """The loss is no number any more; nothing was saved."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `train` needs to know: the options of the command, with their defaults."""

    text: str | None = None
    cell: str = "lstm"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    dropout: float = 0.0
    seq_len: int = 64
    batch: int = 32
    epochs: int = 10
    steps: int | None = None
    optimizer: str = "adam"
    lr: float | None = None
    clip: float = 20.0
    seed: int = 0
    threads: int | None = None
    output: str = "model.npz"
    sample: int = 400
    prompt: str | None = None
    temperature: float = 0.7


@dataclass(frozen=True)
class Outcome:
    """What `train` returns."""

    model: CharacterModel
    bits_per_character: float  # on the held-out text
    steps: int
    interrupted: bool


class _Report:
    """Lines of progress, each about the steps since the one before; in a terminal with tqdm a bar below them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.begin = self.mark = time.monotonic()
        self.nats, self.characters = 0.0, 0
        self._bar: Any = None
        if sys.stderr.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            self._bar = tqdm(total=total, unit=" steps", ncols=78, leave=False)
        self._write(f"{'epoch':>5}  {'step':>15}  {'loss':>7}  {'bits/char':>9}  {'char/s':>9}  {'time':>8}")

    def add(self, nats: float, characters: int) -> None:
        self.nats += nats
        self.characters += characters
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def due(self) -> bool:
        return time.monotonic() - self.mark >= REPORT_SECONDS

    def line(self, epoch: int, step: int) -> None:
        now = time.monotonic()
        loss, speed = self.nats / self.characters, self.characters / max(now - self.mark, 1e-9)
        self._print(epoch, f"{step:,}/{self.total:,}", loss, f"{speed:,.0f}", f"{now - self.begin:,.0f} s")
        self.nats, self.characters, self.mark = 0.0, 0, now

    def held_out(self, epoch: int, bits: float) -> None:
        self._print(epoch, "held-out text", bits / BITS, "", "")
        self.mark = time.monotonic()

    def _print(self, epoch: int, step: str, loss: float, speed: str, seconds: str) -> None:
        figure = ".3f" if loss < 1000 else ".1e"
        line = f"{epoch:>5}  {step:>15}  {loss:>7{figure}}  {loss * BITS:>9{figure}}  {speed:>9}  {seconds:>8}"
        self._write(line.rstrip())

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)


def train(options: Options) -> Outcome:
    """Train a model as the options say, print the progress and a sample, and save the model.

    Everything that can be wrong with the text, the options and the output path is found before the training starts.
    Ctrl-C ends the training early; what was learned until then is saved.

    Raises
    ------
    TextError, FileError, SizeError
        If the text, the output path or the sizes will not do.
    OSError
        If the text cannot be read or the model cannot be written.
    DivergedError
        If the loss is no number any more. Nothing is saved then.
    """
    text, name = (read_text(options.text), options.text) if options.text is not None else builtin_text()
    vocabulary = Vocabulary(text)
    training, held_out = _split(vocabulary.encode(text), options, name)
    first_word = (text.split(maxsplit=1) or [text])[0][:20]
    prompt = first_word if options.prompt is None else options.prompt
    if vocabulary.encode(prompt).size == 0:
        raise TextError("the prompt is empty; give at least one character to start from")
    check_output(options.output)
    model = CharacterModel(
        vocabulary,
        options.cell,
        embedding_dim=options.embedding,
        hidden_size=options.hidden,
        num_layers=options.layers,
        dropout=options.dropout,
        rng=options.seed,
    )

    with threads(options.threads or get_num_threads()):
        size = sum(array.size for part in model.parameters() for array in part.values())
        print(f"text    {printable(name)}: {len(text):,} characters, {len(vocabulary):,} distinct")
        print(f"model   {options.cell}, {options.layers} x {options.hidden} units, {size:,} parameters")
        facts = info()
        print(f"runs    fastrnn {facts['version']} on {facts['isa']}, {facts['threads']} threads\n")
        steps, interrupted = _fit(model, training, held_out, options)
        if not all(np.isfinite(array).all() for part in model.parameters() for array in part.values()):
            raise DivergedError(DIVERGED.format(what="a parameter is infinite or NaN", step=steps))
        model.save(options.output)
        print(f"\nsaved   {printable(options.output)}" + (f", stopped after {steps:,} steps" if interrupted else ""))
        bits = _validate(model, held_out, options)
        print(f"result  {bits:.3f} bits per character on the last {len(held_out):,} characters, not trained on")
        if options.sample and not interrupted:
            written = model.sample(options.sample, prompt, temperature=options.temperature, rng=options.seed)
            print(f"sample  at temperature {options.temperature:g}:\n\n{printable(prompt + written).strip()}")
    return Outcome(model, bits, steps, interrupted)


def _split(ids: Ids, options: Options, name: str) -> tuple[Ids, Ids]:
    """Return the training and the held-out part, or say that the text is too short."""
    held_out = max(2, int(len(ids) * HELD_OUT))
    training = max(len(ids) - held_out, 0)
    needed = options.batch * options.seq_len + 1
    if training < needed:
        raise TextError(
            f"{name} is too short: {training:,} of its {len(ids):,} characters are there to train on, and one window "
            f"of --batch {options.batch} x --seq-len {options.seq_len} needs {needed:,}; make one of the two smaller"
        )
    return ids[:training], ids[training:]


def _fit(model: CharacterModel, training: Ids, held_out: Ids, options: Options) -> tuple[int, bool]:
    """Train; return the number of steps taken and whether Ctrl-C ended it."""
    first_rate = LEARNING_RATES[options.optimizer] if options.lr is None else options.lr
    optimizer = (Adam if options.optimizer == "adam" else SGD)(model.parameters(), lr=first_rate)
    per_epoch = count_windows(len(training), options.batch, options.seq_len)
    total = min(per_epoch * options.epochs, options.steps or sys.maxsize)
    report, step, epoch = _Report(total), 0, 0
    try:
        while step < total:
            epoch += 1
            state = None
            for window in windows(training, options.batch, options.seq_len):
                loss, state, gradients = model.loss_and_gradients(window, state)
                step += 1
                if not math.isfinite(loss):
                    raise DivergedError(DIVERGED.format(what=f"the loss is {loss}", step=step))
                clip_grad_norm(gradients, options.clip)
                optimizer.lr = learning_rate(step - 1, total, first_rate, last=LAST_RATE, shape="linear")
                optimizer.step(gradients)
                report.add(loss * window.ids.shape[1], window.ids.size)
                if step == total:
                    break
                if report.due():
                    report.line(epoch, step)
            if report.characters:
                report.line(epoch, step)
            if step < total:
                report.held_out(epoch, _validate(model, held_out, options))
    except KeyboardInterrupt:
        return step, True
    finally:
        report.close()
    return step, False


def _validate(model: CharacterModel, held_out: Ids, options: Options) -> float:
    # a stream starts without context, so each gets some hundred characters at least
    return model.bits_per_character(held_out, batch=max(1, min(options.batch, len(held_out) // 500)))


def printable(text: str) -> str:
    """Return the text without control characters, which the model may have learned and a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

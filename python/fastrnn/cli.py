"""The command ``fastrnn``: one function that adds the options and one that runs, per subcommand."""

import argparse
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import FileError, SizeError, __version__, quantise, run_bench, run_model
from .checks import MAX_LAYERS, printable
from .lm.text import TextError
from .option_types import SMALLEST, UsageError, positive, real, whole
from .threads import MOST, get_num_threads

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO}  # not the caller's mistake


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is a ``--help`` away."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (try {self.prog} --help)\n")


def _add_train(parser: argparse.ArgumentParser) -> None:
    from .lm.training import OPTIMIZERS, Options

    def add(group: argparse._ArgumentGroup, name: str, metavar: str, kind: Callable[[str], object], text: str) -> None:
        default = getattr(Options, name.replace("-", "_"))
        shown = "" if default is None else f" ({default})"
        group.add_argument(f"--{name}", metavar=metavar, type=kind, default=argparse.SUPPRESS, help=text + shown)

    def choose(group: argparse._ArgumentGroup, name: str, choices: Sequence[str]) -> None:
        text = f"({getattr(Options, name)})"
        group.add_argument(f"--{name}", choices=choices, default=argparse.SUPPRESS, help=text)

    def switch(group: argparse._ArgumentGroup, name: str, text: str) -> None:
        group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)

    default_text = "UTF-8 file (default: the help texts in Python itself)"
    parser.add_argument("text", nargs="?", metavar="TEXT", default=argparse.SUPPRESS, help=default_text)

    text = parser.add_argument_group("text")
    choose(text, "level", ("char", "word"))
    add(text, "vocabulary", "N", whole(1), "words, the most frequent; all others are one unknown word")
    add(text, "min-count", "N", whole(1), "how often a word has to come")
    switch(text, "reset-on-newline", "start anew behind every line end")
    add(text, "validation", "PART", real(SMALLEST, 1, "a number above 0 and below 1"), "of the text, its end")

    model = parser.add_argument_group("model")
    choose(model, "cell", ("rnn", "gru", "lstm"))
    add(model, "hidden", "H", whole(1), "hidden units of a layer")
    add(model, "layers", "L", whole(1, MAX_LAYERS), "stacked layers")
    add(model, "embedding", "E", whole(1), "size of a character's or word's vector")
    add(model, "dropout", "P", real(0, 1, "a number from 0 to below 1"), "dropout between stacked layers")

    training = parser.add_argument_group("training")
    add(training, "seq-len", "T", whole(1), "characters or words per window")
    add(training, "batch", "B", whole(1), "windows read at once")
    add(training, "epochs", "N", whole(1), "passes over the text")
    add(training, "steps", "N", whole(1), "stop after so many windows")
    add(training, "patience", "N", whole(0), "stop when so many epochs brought no lower validation loss; 0: never")
    choose(training, "optimizer", tuple(OPTIMIZERS))
    rates = ", ".join(f"{name} {rate}" for name, (_, rate) in OPTIMIZERS.items())
    add(training, "lr", "RATE", positive, f"learning rate at the start ({rates})")
    add(training, "clip", "NORM", positive, "longest gradient")
    add(training, "seed", "N", whole(0), "of the weights and the sample")
    add(training, "threads", "N", whole(1, MOST), "default: all processors")
    resumed = "go on from a checkpoint, with its options but for those given now"
    training.add_argument("--resume", metavar="FILE", help=resumed)

    result = parser.add_argument_group("result")
    add(result, "output", "FILE", str, "where the model is saved; until then a checkpoint is beside it")
    add(result, "save-every", "SECONDS", positive, "from one checkpoint to the next")
    switch(result, "plots", "draw the loss curve and the embedding beside the model")
    add(result, "sample", "N", whole(0), "characters or words to show at the end (400 or 80)")
    add(result, "prompt", "TEXT", str, "what the sample continues (the first word)")
    add(result, "temperature", "X", positive, "of the sample; lower is more cautious")


# What a checkpoint was made with and cannot be changed: the text, how it is read, and the model.
_FIXED = {"text", "level", "vocabulary", "min_count", "reset_on_newline", "validation"} | {
    *("cell", "hidden", "layers", "embedding", "dropout", "seq_len", "batch", "optimizer", "seed")
}


def _run_train(arguments: argparse.Namespace) -> int:
    from .lm.training import Options, resume, train

    given = {key: value for key, value in vars(arguments).items() if key in Options.__dataclass_fields__}
    try:
        if arguments.resume is None:
            outcome = train(Options(**given))
        elif fixed := sorted(_FIXED & given.keys()):
            names = ", ".join("TEXT" if name == "text" else f"--{name.replace('_', '-')}" for name in fixed)
            raise UsageError(f"--resume goes on with what the checkpoint was made with: leave out {names}")
        else:
            outcome = resume(arguments.resume, **given)
    except ImportError as error:
        raise UsageError(str(error)) from error
    return INTERRUPTED if outcome.stopped == "interrupted" else 0


def _add_sample(parser: argparse.ArgumentParser) -> None:
    def add(name: str, metavar: str, kind: Callable[[str], object], default: object, text: str) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, type=kind, default=default, help=text)

    parser.add_argument("model", metavar="MODEL", help="what fastrnn train saved")
    add("prompt", "TEXT", str, None, "what the sample continues (a line end)")
    add("length", "N", whole(0), 400, "characters or words; 0: until Ctrl-C (%(default)s)")
    add("temperature", "X", positive, 0.7, "lower is more cautious (%(default)s)")
    add("seed", "N", whole(0), None, "for the same sample again")


def _run_sample(arguments: argparse.Namespace) -> int:
    from itertools import islice

    from .lm.model import LanguageModel
    from .lm.report import printable

    model = LanguageModel.load(arguments.model)
    pieces = model.stream(arguments.prompt, temperature=arguments.temperature, rng=arguments.seed)
    print(printable(arguments.prompt or "").lstrip("\n"), end="", flush=True)
    for piece in islice(pieces, arguments.length or None):
        print(printable(piece), end="", flush=True)
    print()
    return 0


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _described(item: Any) -> str:
    return f"{item['name']} (compute capability {item['compute_capability']})" if isinstance(item, dict) else str(item)


def _run_info(arguments: argparse.Namespace) -> int:
    from ._info import info

    facts = info()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        listed = ", ".join(map(_described, value)) if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):<18} {listed}")
    return 0


def _add_flow(parser: argparse.ArgumentParser) -> None:
    def add(name: str, metavar: str, default: int, text: str) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, type=whole(1), default=default, help=f"{text} (%(default)s)")

    add("hidden", "H", 64, "hidden units, and features of the input")
    add("time", "T", 200, "time steps")
    add("sequences", "B", 64, "sequences of white noise")
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="(%(default)s)")
    parser.add_argument("--output", metavar="FILE", default="flow.png", help="the picture (%(default)s)")
    parser.add_argument("--no-picture", action="store_true", help="print the table only; needs no matplotlib")


def _run_flow(arguments: argparse.Namespace) -> int:
    from . import storage
    from .kit import flow

    if not arguments.no_picture:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            text = f"the picture needs matplotlib ({error}): pip install 'fastrnn[plot]', or give --no-picture"
            raise UsageError(text) from error
        if Path(arguments.output).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError(f"got --output {arguments.output}; its name must end in .png, .svg or .pdf")
        storage.try_folder(arguments.output)
    flows = flow.compare(arguments.hidden, arguments.time, arguments.sequences, arguments.seed)
    print("Norm of dL/dh, 1 at the loss: median over the sequences, and x their 90th over their 10th percentile\n")
    print(flow.table(flows))
    if not arguments.no_picture:
        flow.picture(flows).savefig(arguments.output, dpi=110)
        print(f"\nThe picture is in {arguments.output}")
    return 0


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="safetensors, npz, .pt, TorchScript, .keras, .h5, msgpack, .onnx")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run_inspect(arguments: argparse.Namespace) -> int:
    from .files import inspecting

    facts = inspecting.report(arguments.file)
    print(json.dumps(facts, indent=2) if arguments.json else inspecting.text(facts))
    return 0


def _plainly(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command whose errors about what it was given are one line."""

    def call(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except (FileError, SizeError, TextError):
            raise
        except (ImportError, ValueError, TypeError) as error:
            raise UsageError(str(error)) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "onnxruntime":
                raise
            raise UsageError(str(error)) from error

    return call


class Command(NamedTuple):
    """A subcommand; imports what it needs when it runs."""

    name: str
    summary: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command(
        "train",
        "train a language model",
        "Train a language model on the characters or words of a text, show a sample of what it writes, and save it. "
        "Ctrl-C stops early and leaves a checkpoint for --resume.",
        _add_train,
        _run_train,
    ),
    Command(
        "sample",
        "let a language model write",
        "Continue a prompt with a model that fastrnn train saved, token by token as they are drawn.",
        _add_sample,
        _run_sample,
    ),
    Command(
        "bench",
        "measure fastrnn and its peers on this machine",
        "Verify that fastrnn and the peers that are installed compute the same, time them turn by turn, and show how "
        "far fastrnn is from what the machine can do. Ctrl-C keeps what was measured.",
        run_bench.add_arguments,
        run_bench.run,
    ),
    Command(
        "flow",
        "show how far gradients reach back",
        "Compare how the gradient of a loss at the last step fades on its way back through RNN, GRU and LSTM, with "
        "plain starts and with the remedies of the literature, in a table and a picture.",
        _add_flow,
        _run_flow,
    ),
    Command(
        "inspect",
        "show the recurrent layers of a file",
        "Show the recurrent layers that a file of PyTorch, Keras, Flax, NumPy, safetensors or ONNX holds, what fits "
        "and what not, and about how fast each would run here. Nothing in the file is run, and no weights are read.",
        _add_inspect,
        _run_inspect,
    ),
    Command(
        "run",
        "run an ONNX model",
        "Run a model on arrays from NumPy's files: its recurrent nodes in fastrnn, the rest in ONNX Runtime (the extra "
        "onnx). Prints what ran where, and the outputs' types and shapes.",
        run_model.add_arguments,
        _plainly(run_model.run),
    ),
    Command(
        "quantise",
        "show what weights in fewer bits cost and gain",
        "Run the recurrent layers of a file, or a language model, with weights of int8 or bfloat16 and in float32, and "
        "show the errors, how they change over time, the time of a step and the bytes of the weights.",
        quantise.add_arguments,
        _plainly(quantise.run),
    ),
    Command("info", "show version, instruction set and threads", "Show what fastrnn runs on.", _add_info, _run_info),
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastrnn", description="Fast recurrent layers: RNN, GRU, LSTM.")
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.summary, description=command.description)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, prog=sub.prog)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, without the program's name. Default: those of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a sample may hold characters the terminal's encoding lacks
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        get_num_threads()
    except ValueError as error:
        parser.error(str(error))  # of the environment

    def complain(what: object) -> None:
        print(f"{arguments.prog}: error: {printable(' '.join(str(what).split()))}", file=sys.stderr)

    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{arguments.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # nobody reads on (`| head`); keep Python from complaining once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename is not None else error)
        return FAILED if error.errno in FULL else BAD_INPUT
    except (TextError, FileError, SizeError, UsageError) as error:
        complain(error)
        return BAD_INPUT
    except ArithmeticError as error:
        complain(error)
        return FAILED

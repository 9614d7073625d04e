"""``fastrnn bench``: the subcommand that runs the benchmarks."""

import argparse
from pathlib import Path
from typing import Any

from .option_types import UsageError, comma_separated, positive, whole
from .threads import MOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's options."""
    what = parser.add_argument_group("what to measure")
    grid = what.add_mutually_exclusive_group()
    grid.add_argument("--quick", dest="grid", action="store_const", const="quick", help="some points (the default)")
    grid.add_argument("--full", dest="grid", action="store_const", const="full", help="all points, within 90 minutes")
    device = (
        "cpu, or cuda: fastrnn.torch against PyTorch's cuDNN on a GPU; then of these options only --quick, --full, "
    )
    device += "--filter, --list, --seconds and --output count"
    what.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help=device)
    c = "steps of small models through fastrnn.h, timed by a program in C; then only --filter and --list count"
    what.add_argument("--c", action="store_true", help=c)
    what.add_argument("--claims", action="store_true", help="check what fastrnn promises about itself")
    bits = (
        "compare with weights of int8 and bfloat16: fastrnn's, ONNX Runtime's, ncnn's, PyTorch's and OpenVINO's, with "
    )
    bits += "their errors"
    what.add_argument("--bits", action="store_true", help=bits)
    what.add_argument(
        "--in-situ", action="store_true", help="measure whole programs, with fastrnn and without, on one to all threads"
    )
    what.add_argument(
        "--filter",
        metavar="PATTERN",
        action="append",
        default=[],
        help="only points, or of --claims or --in-situ alone only those, whose names hold this or match it as in a "
        "shell; the whole name of a point need not be in the grid; may be repeated",
    )
    peers = "of torch, torch-cell, onnxruntime, openvino, jax, numpy, onnxruntime-int8; of --bits fastrnn-int8, "
    peers += "onnxruntime-int8, ncnn-int8, fastrnn-bfloat16, torch-bfloat16, openvino-bfloat16; or none (all)"
    what.add_argument("--peers", metavar="A,B", type=comma_separated(str), help=peers)
    how_many = "(1,2; --in-situ: and all)"
    what.add_argument("--threads", metavar="N,M", type=comma_separated(whole(1, MOST)), help=how_many)
    what.add_argument("--list", action="store_true", help="print the names of the points and measure nothing")

    how = parser.add_argument_group("how")
    how.add_argument("--seconds", metavar="S", type=positive, help="for a pair of fastrnn and a peer, about")
    how.add_argument("--pin", action="store_true", help="keep N threads on N processors")
    how.add_argument("--output", metavar="DIR", default="fastrnn-bench", help="where results go (%(default)s)")

    runs = parser.add_argument_group("two runs")
    runs.add_argument("--compare", metavar=("OLD", "NEW"), nargs=2, help="two results.json instead of measuring")
    text = "what counts as worse, in percent (%(default)s)"
    runs.add_argument("--threshold", metavar="PERCENT", type=positive, default=10.0, help=text)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    from .bench import command
    from .bench.report.results import BadInput

    if arguments.device == "cuda":
        return _on_gpu(arguments)
    if arguments.c:
        return _in_c(arguments)
    options = command.Options(
        grid=arguments.grid or (None if arguments.claims or arguments.in_situ else "quick"),
        filters=arguments.filter,
        peers=[] if arguments.peers == ["none"] else arguments.peers,
        threads=arguments.threads,
        seconds=arguments.seconds,
        pin=arguments.pin,
        output=Path(arguments.output),
        claims=arguments.claims,
        in_situ=arguments.in_situ,
        bits=arguments.bits,
    )
    try:
        code: int
        if arguments.compare:
            old, new = map(Path, arguments.compare)
            code = command.compare_files(old, new, arguments.threshold / 100)
        elif arguments.list:
            code = command.show_names(options)
        else:
            code = command.run(options)
        return code
    except BadInput as error:
        raise UsageError(str(error)) from error


# what most kinds of measurement know nothing of
_ON_CPU = {"claims": False, "in_situ": False, "peers": None, "threads": None, "pin": False, "compare": None}


def _refuse_options(who: str, arguments: argparse.Namespace, ignored: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, default in ignored.items() if getattr(arguments, name) != default]
    if given:
        raise UsageError(f"{who} knows no {', '.join(given)}")


def _in_c(arguments: argparse.Namespace) -> int:
    from .bench.api import steps
    from .bench.report.results import BadInput

    more = {"grid": None, "bits": False, "seconds": None, "output": "fastrnn-bench"}
    _refuse_options("--c", arguments, _ON_CPU | more)
    try:
        if arguments.list:
            print("\n".join(steps.select(arguments.filter)))
            return 0
        code: int = steps.run(arguments.filter)
        return code
    except BadInput as error:
        raise UsageError(str(error)) from error


def _on_gpu(arguments: argparse.Namespace) -> int:
    from .bench import cuda
    from .bench.report.results import BadInput

    _refuse_options("--device cuda", arguments, _ON_CPU | {"c": False})
    try:
        code: int = cuda.run(
            arguments.grid or "quick", arguments.filter, arguments.seconds, Path(arguments.output), arguments.list
        )
        return code
    except BadInput as error:
        raise UsageError(str(error)) from error

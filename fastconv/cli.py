"""The command line: ``fastconv COMMAND ...``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import fastconv


class Command(NamedTuple):
    """A subcommand; its module in fastconv.commands is imported only when it is called."""

    name: str
    help: str


COMMANDS = (
    Command("train", "train a network; without arguments, on handwritten digits"),
    Command("predict", "classify images with a trained network"),
    Command("verify", "hold every kernel against the plain-loop reference"),
    Command("bench", "compare the speed with other libraries, each in a process of its own"),
    Command("info", "versions, CPU, threads, cache, and what is switched off and why"),
    Command("explain", "which algorithm a convolution runs, and why not the others"),
    Command("warmup", "compile the kernels that a model needs"),
)
FAILURES = (ValueError, TypeError, OSError, ImportError, ArithmeticError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, 1 for a failure, 2 for wrong usage, 128 + n after signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="fastconv",
        description="Train convolutional networks on the CPU, fast, from pure Python.",
        epilog="fastconv COMMAND --help says what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"fastconv {fastconv.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        chosen = subparsers.add_parser(
            command.name, help=command.help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if command.name == wanted:
            module = importlib.import_module(f"fastconv.commands.{command.name}")
            chosen.description = module.__doc__
            module.add_arguments(chosen)
            chosen.set_defaults(run=module.run)
    return _guarded(parser.parse_args(arguments))


def _guarded(parsed: argparse.Namespace) -> int:
    """Failures become one line; FASTCONV_TRACEBACK=1 shows where they came from."""
    try:
        return parsed.run(parsed)
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except FAILURES as error:
        if os.environ.get("FASTCONV_TRACEBACK") == "1":
            raise
        print(f"fastconv: error: {error}", file=sys.stderr)
        return 1


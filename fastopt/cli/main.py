"""The command `fastopt`: its parser, and its exit status.

Exit status: 0 for success; 1 if `warmup` could not keep its kernels, or a benchmark of `bench` failed; 2 for
arguments, data and files that cannot be used, with a line `fastopt: error: ...` on stderr; 130 after an interrupt
(Ctrl-C), and 143 if SIGTERM has ended a training.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import fastopt

log = logging.getLogger("fastopt")


class Parser(argparse.ArgumentParser):
    """Reports errors in one form for all commands. Options cannot be abbreviated: that would forbid new ones later."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastopt: error: {message}\nSee '{self.prog} --help'.\n")


class Version(argparse.Action):
    """Print the version, looking it up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"fastopt {fastopt.__version__}")
        parser.exit()


def parser() -> Parser:
    """Return the parser of the command line; the arguments that it returns hold the command's function as `run`."""
    from . import bench, evaluate, export, info, predict, profile, report, search, study, summary, train, warmup

    root = Parser(prog="fastopt", description="Train dense networks on compiled kernels.")
    root.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (train, search, study, predict, evaluate, summary, export, profile, bench, report, info, warmup):
        command.add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's) and return its exit status.

    >>> main(["train", "digit"])  # writes to stderr: unknown data set 'digit'; known: digits, ...
    2
    """
    try:
        args = parser().parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()  # here, so that a closed pipe ends quietly
        return status
    except KeyboardInterrupt:
        print("fastopt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fastopt info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError, ImportError) as error:  # ImportError: an optional package is missing
        log.debug("where it came from:", exc_info=True)
        print(f"fastopt: error: {error}", file=sys.stderr)
        return 2

"""`fastopt profile`: train as `fastopt train` does, and show how much time each kernel takes."""

from __future__ import annotations

import argparse
from typing import Any

from .._files import check_writable
from . import train


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "profile",
        help="train a network and show where the time goes, kernel by kernel",
        description="Train as `fastopt train` does, on the compiled kernels of the CPU or of a GPU, and print for each "
        "kernel its calls, time, bytes and operations, rates, the share of the machine's measured limit, and the share "
        "of the step.",
    )
    train.add_arguments(parser)
    parser.add_argument_group("profile").add_argument(
        "--trace", metavar="FILE", help="write the first steps as a trace for ui.perfetto.dev or chrome://tracing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train as `args` say, and print the results and the profile, also after an interrupt."""
    from ..profiling import PROFILED, profile

    if args.backend not in PROFILED:
        raise ValueError(f"only the backends {' and '.join(PROFILED)} can be profiled, not {args.backend}")
    if args.compare:
        raise ValueError("--compare trains the reference as well, which cannot be profiled: use fastopt train")
    if args.trace is not None:
        check_writable("--trace", args.trace)
    args.compare = False
    recorded = profile()
    status = train.run(args, recorded)
    print(f"\n{recorded.table()}")
    if args.trace is not None:
        recorded.save_trace(args.trace)
        if not args.quiet:
            print(f"\nThe trace is in {args.trace}; ui.perfetto.dev shows it.")
    return status

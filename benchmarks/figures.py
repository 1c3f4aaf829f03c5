"""The figures of the README, contestants interleaved in one process: `python -m fastopt.benchmarks.figures [NAME ...]`.

Every figure is a median over rounds in which each contestant has its turn, so that all see the machine in the same
state. What counts is the ratio, the time of fastopt over the time of the other: below 1, fastopt takes less. Libraries
that are not installed are left out, with a line that says so. It ends with a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import fastopt as fo
from fastopt.benchmarks import figures_epochs, figures_program, figures_updates
from fastopt.benchmarks.workloads import WORKLOADS, Absent

Row = tuple[str, str, str, str]  # work, fastopt, the other, ratio

FIGURES: dict[str, Callable[[], Iterator[Row]]] = {
    **{name: partial(figures_epochs.epochs, name) for name in WORKLOADS},
    "memory": figures_epochs.memory,
    "accuracy": figures_epochs.accuracy,
    "updates": figures_updates.updates,
    "large-updates": figures_updates.large_updates,
    "steps": figures_updates.steps,
    "imports": figures_program.imports,
    "train": figures_program.train,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="of fastopt, torch and scikit-learn (default: all)")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    if args.threads is not None:
        fo.set_num_threads(args.threads)
    rows: list[Row] = [("work", "fastopt", "against", "ratio"), ("---", "---", "---", "---")]
    for name in args.names or FIGURES:
        print(name, flush=True)
        try:
            for row in FIGURES[name]():
                rows.append(row)
                print("  " + " | ".join(cell for cell in row if cell), flush=True)
        except Absent as reason:
            print(f"  left out: {reason}", flush=True)
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()

"""`fastopt report`: tables and plots of the measurements of `fastopt bench`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from .. import _files
from .._files import check_writable

MISSING = "plots need matplotlib: pip install 'fastopt[plot]'"


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "report",
        help="make tables and plots of what `bench` has measured",
        description="Make Markdown tables, an HTML page and plots of files that `fastopt bench --json` or `pytest "
        "benchmarks --benchmark-json` has written. Of several files, each is compared with the one before it, or those "
        "of several machines stand side by side. Without options the tables are printed.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON files of pytest-benchmark, the oldest first")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables")
    parser.add_argument("--html", metavar="FILE", help="write a page with tables and plots, all in this one file")
    parser.add_argument("--images", metavar="DIR", help="write the plots as SVG files, made with matplotlib")
    parser.add_argument(
        "--side-by-side", action="store_true", help="one summary and one picture, with a column for each file's machine"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the tables, the page and the plots that `args` name."""
    from ..reports.page import html, markdown
    from ..reports.read import read
    from ..reports.sections import sections, side_by_side

    for option, path in (("--markdown", args.markdown), ("--html", args.html)):
        if path is not None:
            check_writable(option, path)
    plotting = importlib.util.find_spec("matplotlib") is not None
    if args.images is not None and not plotting:
        raise ValueError(f"--images: {MISSING}")
    runs = [read(path) for path in args.files]
    parts = side_by_side(runs) if args.side_by_side else sections(runs)
    plots: dict[str, bytes] = {}
    if args.html is not None or args.images is not None:
        if plotting:
            from ..reports import plots as drawn

            plots = drawn.side_by_side(runs) if args.side_by_side else drawn.plot(runs)
        else:
            print(f"fastopt: the page has tables only: {MISSING}", file=sys.stderr)
    if args.html is not None:
        _files.write(args.html, html(runs, parts, plots).encode())
    if args.images is not None:
        _write_images(Path(args.images), plots)
    if args.markdown is not None:
        _files.write(args.markdown, markdown(runs, parts).encode())
    elif args.html is None and args.images is None:
        print(markdown(runs, parts), end="")
    return 0


def _write_images(folder: Path, plots: dict[str, bytes]) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--images {folder} must be a folder; got a file")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in plots.items():
        _files.write(folder / f"{name}.svg", content)

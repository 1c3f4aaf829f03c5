"""Options for reading tables, of `train`, `predict` and `evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import datasets
from ..datasets._open import KINDS
from ..datasets._text_files import TextOptions
from ..datasets.preparation import MISSING

TABLES = f"or the path of a table or of arrays: {KINDS}"


def add_text_arguments(group: Any) -> None:
    """Add the options for the dialect of a text file."""
    group.add_argument("--sep", metavar="CHARACTER", help="delimiter of a text file; also tab, space (default: found)")
    group.add_argument(
        "--decimal", choices=(".", ","), metavar="MARK", help="decimal mark of a text file, . or , (default: found)"
    )
    group.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="the first row holds names, or is data (default: found)"
    )
    group.add_argument("--encoding", metavar="NAME", help="encoding of a text file (default: UTF-8)")


def add_missing_argument(group: Any, default: str) -> None:
    """Add the option for missing cells."""
    group.add_argument(
        "--missing",
        choices=MISSING,
        help="missing cells of a table: an error, rows to leave out, or filled by the column's mean (of text: the most "
        f"frequent) over the training rows (default: {default})",
    )


def text_options(args: argparse.Namespace) -> TextOptions:
    """Return the dialect of a text file, as far as the arguments give it."""
    return TextOptions(args.sep, args.decimal, args.header, args.encoding)


def check_file_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError if DATA is neither a known data set nor a file, and for --folder with a file."""
    path = Path(args.data)
    if not path.suffix and not path.exists():
        raise ValueError(f"unknown data set {args.data!r}; known: {', '.join(datasets.NAMES)}, {TABLES}")
    if args.folder is not None:
        raise ValueError("--folder is for mnist and fashion-mnist: give the path of the file itself")


def refuse_table_arguments(args: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Raise ValueError if options for tables are given with a data set that is not a table."""
    for name in ("sep", "decimal", "header", "encoding", "missing", *names):
        if getattr(args, name) not in (None, []):
            raise ValueError(f"--{name} is for tables, not for the data set {args.data}")

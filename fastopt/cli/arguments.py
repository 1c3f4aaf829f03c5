"""Types of command-line arguments, whose errors argparse prints with the option's name, and a check of output files."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def integer(minimum: int) -> Callable[[str], int]:
    """Return the type of whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise ArgumentTypeError(f"must be a whole number of at least {minimum}; got {text!r}")
        return number

    return parse


def batch_size(text: str) -> int | str:
    """Return a batch size of `fit`: a whole number, "full" or "auto".

    >>> batch_size("full"), batch_size("64")
    ('full', 64)
    """
    if text in ("full", "auto"):
        return text
    try:
        return integer(1)(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"must be a whole number of at least 1, full or auto; got {text!r}") from None


def widths(text: str) -> tuple[int, ...]:
    """Return the widths of hidden layers.

    >>> widths("128,64"), widths("none")
    ((128, 64), ())
    """
    if text == "none":
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise ArgumentTypeError(f"must be widths of hidden layers, such as 128,64, or none; got {text!r}")
    return found


def check_writable(option: str, path: str) -> None:
    """Raise an OSError if the file that `option` names cannot be written: called before the work that it is to hold.

    A link is followed. A pipe or a device needs no writable folder.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{option} {path} must be the name of a file; got a folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{option} {path}: the file cannot be written to")
    if (target.is_file() or not target.exists()) and not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{option} {path}: the folder {target.parent} cannot be written to")

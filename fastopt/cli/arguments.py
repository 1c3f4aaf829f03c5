"""Types of command-line arguments; what is wrong with a value is said by argparse, with the option's name.

And a check of files to be written, which comes before the work that they are to hold.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def whole(least: int) -> Callable[[str], int]:
    """Return the type of whole numbers of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise ArgumentTypeError(f"must be a whole number of at least {least}; got {text!r}")
        return number

    return parse


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
    """Raise where the file that `option` names cannot be written: it is a folder or read-only, or its folder is.

    A link counts as what it points to. What exists and is no regular file, such as a pipe, needs no folder.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {place.parent}")
    if place.is_dir():
        raise IsADirectoryError(f"{option} {path} must be the name of a file; got a folder")
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(f"{option} {path}: the file cannot be written to")
    if (place.is_file() or not place.exists()) and not os.access(place.parent, os.W_OK):
        raise PermissionError(f"{option} {path}: the folder {place.parent} cannot be written to")

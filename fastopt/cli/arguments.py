"""Types of command-line arguments, whose errors argparse prints with the option's name."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable


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


def share(text: str) -> float:
    """Return a share of weights, in [0, 1).

    >>> share("0.9")
    0.9
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise ArgumentTypeError(f"must be at least 0 and less than 1; got {text!r}")
    return number


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

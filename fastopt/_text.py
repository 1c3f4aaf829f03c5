"""Text tables in aligned columns, and numbers in a readable form."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], gap: int = 3) -> str:
    """Return rows as lines: the first column to the left, the others to the right.

    >>> print(aligned([("", "time"), ("Adam", "8 ms"), ("SGD", "12 ms")]))
            time
    Adam    8 ms
    SGD    12 ms
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append((" " * gap).join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, or all digits before the point, with commas.

    >>> rounded(1234567.0), rounded(12.345), rounded(0.04567), rounded(0.0), rounded(float("nan"))
    ('1,230,000', '12.3', '0.0457', '0', 'nan')
    """
    if value != value or abs(value) == float("inf"):
        return str(value)
    value = float(f"{value:.{digits}g}")
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def in_one_unit(seconds: Sequence[float]) -> list[str]:
    """Return durations in one unit, the largest that the shortest duration reaches.

    >>> in_one_unit([0.00123, 0.0456])
    ['1.23 ms', '45.6 ms']
    """
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, size = next((entry for entry in units if min(seconds) >= entry[1]), units[-1])
    return [f"{rounded(value / size)} {unit}" for value in seconds]


def in_bytes(count: int) -> str:
    """Return a number of bytes in a unit that fits.

    >>> in_bytes(640), in_bytes(2_340_000)
    ('640 B', '2.34 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{rounded(count / size)} {unit}"
    return f"{count} B"

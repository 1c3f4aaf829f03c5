"""Models of the textbooks, beside the closed form or the plain NumPy loop: `python -m fastopt.examples.NAME`."""

from __future__ import annotations

import numpy as np


def compare(what: str, ours: object, theirs: object, rounding: float = 1e-10) -> None:
    """Print both, and their largest difference; ValueError if that is more than rounding, relative to the largest.

    >>> compare("slope", [0.5], [0.5])
    slope: [0.5], textbook [0.5], difference 0
    """
    a, b = (np.asarray(values, np.float64).ravel() for values in (ours, theirs))
    difference, shown = float(np.abs(a - b).max()), [np.array2string(v[:4], precision=6) for v in (a, b)]
    print(f"{what}: {shown[0]}, textbook {shown[1]}, difference {difference:.1g}")
    if not difference <= rounding * max(1.0, float(np.abs(b).max())):
        raise ValueError(f"{what} must be those of the textbook; got a difference of {difference:g}")

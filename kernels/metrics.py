"""From the sums that passes leave to the metrics that are shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def metric_values(sums: Mapping[str, float], y: np.ndarray, order: np.ndarray | None, outputs: int) -> dict[str, float]:
    """The metrics over rows `order` of the targets y, or all of them; NaN where there are none.

    sums: of rows that are right for accuracy, else of squared or absolute errors over rows and outputs.

    >>> metric_values({"accuracy": 3.0}, np.zeros(4, int), None, 2)
    {'accuracy': 0.75}
    """
    rows = len(y if order is None else order)
    if not rows:
        return dict.fromkeys(sums, float("nan"))
    values = {}
    for name, total in sums.items():
        if name == "accuracy":
            values[name] = total / rows
        elif name == "r2":
            targets = y if order is None else y[order]
            around = targets - targets.mean(axis=0, dtype=np.float64)
            spread = float(np.square(around).sum(dtype=np.float64))
            values[name] = 1 - total / spread if spread else float("nan")
        else:
            values[name] = total / (rows * outputs)
    return values

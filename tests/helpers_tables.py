"""Small tables for tests."""

from pathlib import Path

import numpy as np


def write(folder: Path, text: str, name: str = "table.csv", **how) -> Path:
    """Write a table and return its path."""
    path = folder / name
    path.write_text(text, newline="", **how)
    return path


def joined(data) -> tuple[np.ndarray, np.ndarray]:
    """Return features and targets of both parts, sorted by the features so that the order of rows does not count."""
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    order = np.lexsort(x.T[::-1])
    return x[order], y[order]


def labels_of(data) -> list:
    """Return the labels of all rows, in the order of `joined`."""
    return data.labels[joined(data)[1]].tolist()


def count_rows(first: str, rows: int = 20) -> str:
    """Return a table of three columns, i, i / 4 and i % 3, under a first line."""
    return first + "".join(f"{i},{i / 4},{i % 3}\n" for i in range(rows))

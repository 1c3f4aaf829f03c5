"""Tables for tests of the command line, and a model that learns them."""

import numpy as np

FRUIT = ("apple", "lemon", "orange")
TRAIN = ("--backend", "numpy", "--quiet", "--layers", "8")


def write_classes(path, rows=40):
    """Write a .npz file of three classes."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    np.savez(path, x=rng.normal(size=(rows, 5)) + y[:, None], y=y)
    return path


def write_fruit(path, rows=60, seed=0, gaps=()):
    """Write a table with ; and decimal commas: a number, text, a bool with `gaps`, the fruit that they determine."""
    rng = np.random.default_rng(seed)
    lines = ["weight;colour;ripe;fruit"]
    for i in range(rows):
        colour = (("red", "green"), ("yellow", "green"), ("orange", "red"))[i % 3][int(rng.integers(2))]
        weight = f"{(0.15, 0.1, 0.2)[i % 3] + rng.uniform(0, 0.01):.4f}".replace(".", ",")
        ripe = "" if i in gaps else str(bool(rng.integers(2)))
        lines.append(f"{weight};{colour};{ripe};{FRUIT[i % 3]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_prices(path, rows=60):
    """Write a table of whole-number prices, linear in rooms and area."""
    lines = ["rooms,area,price"]
    lines += [f"{i % 5 + 1},{40 + 7 * i % 60},{50_000 * (i % 5 + 1) + 1000 * (40 + 7 * i % 60)}" for i in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path

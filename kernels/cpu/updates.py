"""In-place optimizer updates: one loop for each number of state arrays, whatever the rule.

A float32 Adam step moves 28 bytes a parameter (p, m, v read and written, g read) and is bound by memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ..formulas import HYPER, OPTIMIZERS
from ..formulas.optimizers import Column
from .compile import Kernel
from .layout import UPDATE, UPDATES, offset, read
from .primitives import call_update, view

TILE = 1_024  # elements of one piece of work; a rank does all its pieces of an array at a stretch
MAX_STATES = 3
NAMES = {np.dtype(name): name for name in ("float32", "float64")}  # dtype.name takes 4 us to find its name
TINY = {dtype: float(np.finfo(dtype).tiny) for dtype in NAMES}

# (p, g, addresses of the states, scalars, start, rows, columns, stride): p and the states from element `start` on, rows
# of `columns` elements `stride` apart; g has the same rows without gaps.


@register_jitable
def hyper(scalars, real):
    """The scalars of a step as a tuple, which a write to p cannot change, and the smallest normal number."""
    H = view(scalars, HYPER + 1, real)
    return (H[0], H[1], H[2], H[3], H[4], H[5], H[6], H[7], H[8], H[9], H[10], H[11], H[12]), H[HYPER]


def _loop0(rule, real, width):
    def update(p, g, states, scalars, start, rows, columns, stride):
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            P = view(p + (start + row * stride) * width, columns, real)
            G = view(g + row * columns * width, columns, real)
            for i in range(columns):
                P[i], _ = rule(P[i], G[i], (), h, tiny)

    return update


def _loop1(rule, real, width):
    def update(p, g, states, scalars, start, rows, columns, stride):
        S = view(states, 1, np.int64)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            skip = (start + row * stride) * width
            P, G = view(p + skip, columns, real), view(g + row * columns * width, columns, real)
            A = view(S[0] + skip, columns, real)
            for i in range(columns):
                P[i], s = rule(P[i], G[i], (A[i],), h, tiny)
                A[i] = s[0]

    return update


def _loop2(rule, real, width):
    def update(p, g, states, scalars, start, rows, columns, stride):
        S = view(states, 2, np.int64)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            skip = (start + row * stride) * width
            P, G = view(p + skip, columns, real), view(g + row * columns * width, columns, real)
            A, B = view(S[0] + skip, columns, real), view(S[1] + skip, columns, real)
            for i in range(columns):
                P[i], s = rule(P[i], G[i], (A[i], B[i]), h, tiny)
                A[i], B[i] = s

    return update


def _loop3(rule, real, width):
    def update(p, g, states, scalars, start, rows, columns, stride):
        S = view(states, 3, np.int64)
        h, tiny = hyper(scalars, real)
        for row in range(rows):
            skip = (start + row * stride) * width
            P, G = view(p + skip, columns, real), view(g + row * columns * width, columns, real)
            A, B = view(S[0] + skip, columns, real), view(S[1] + skip, columns, real)
            C = view(S[2] + skip, columns, real)
            for i in range(columns):
                P[i], s = rule(P[i], G[i], (A[i], B[i], C[i]), h, tiny)
                A[i], B[i], C[i] = s

    return update


LOOPS: tuple[Callable[..., Any], ...] = (_loop0, _loop1, _loop2, _loop3)


@cache
def update_kernel(rule: Callable[..., Any], states: int, dtype: str) -> Kernel:
    """The loop of a scalar rule; rows of OPTIMIZERS with the same rule share it."""
    real = getattr(np, dtype)
    return Kernel(LOOPS[states](rule, real, np.dtype(dtype).itemsize), f"update_{rule.__name__}_{dtype}")


def update_code(name: str, dtype: str) -> int:
    row = OPTIMIZERS[name]
    return update_kernel(row.rule, len(row.states), dtype).address


def fill_scalars(
    table: np.ndarray, name: str, steps: Sequence[int], options: Mapping[str, Any], rates: Any = None
) -> None:
    """Write each step's scalars, computed in float64, and the dtype's smallest normal number: (steps, HYPER + 1)."""
    rates = [options["lr"]] * len(steps) if rates is None else np.asarray(rates).tolist()
    for i, column in enumerate(_columns(name, steps, rates, options)):
        table[:, i] = column
    table[:, HYPER] = TINY[table.dtype]


def fill_row(row: np.ndarray, name: str, step: int, options: Mapping[str, Any], scale: float = 1.0) -> None:
    """Write the scalars of one step: (HYPER + 1,). Gradients are to be taken times `scale`.

    For itself, because it is the half of what a step of a small array costs.
    """
    columns = _columns(name, [step], [options["lr"]], options)
    values = [column[0] if isinstance(column, list) else column for column in columns]
    values[0] *= scale  # 1 or -1
    row[: len(values)] = values
    row[HYPER] = TINY[row.dtype]


def _columns(name: str, steps: Sequence[int], rates: list[float], options: Mapping[str, Any]) -> tuple[Column, ...]:
    row = OPTIMIZERS[name]
    return row.scalars(steps, rates, **{key: options[key] for key in row.options if key != "lr"})


def _update_all(work, step, rank, ranks):
    # Rank r does tiles r T / ranks to (r + 1) T / ranks of all arrays laid end to end.
    all_ = read(work, UPDATES)
    first, last = rank * all_.tiles // ranks, (rank + 1) * all_.tiles // ranks
    for i in range(all_.count):
        at = all_.table + i * RECORD
        one = read(at, UPDATE)
        start = max(first - one.first_tile, 0) * TILE
        end = min((last - one.first_tile) * TILE, one.elements)
        if start < end:
            g = one.g + start * one.width
            h = all_.scalars if all_.scalars else one.scalars
            call_update(one.update, one.p, g, at + STATES, h, start, 1, end - start, 0)


RECORD, STATES = UPDATE.itemsize, offset(UPDATE, "state0")
UPDATE_ALL = Kernel(_update_all, "update_all")

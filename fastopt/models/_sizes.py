"""Sizes of the batches of an epoch: what `batch_size` and `drop_last` of `fit` come to."""

from __future__ import annotations

from ..batches import BatchSize, Growing, Random
from ..kernels.formulas import METRICS
from ..kernels.spec import Batches

GRAPHS = 64  # sizes of batches that "cuda" makes graphs for: each takes some milliseconds, and memory of its own


def check_backend(size: Random, accumulate: int, backend: str) -> None:
    """Raise ValueError for sizes that a backend cannot train on."""
    if backend != "cuda":
        return
    if size.high - size.low >= GRAPHS:
        raise ValueError(
            f"batch_size={size} must have at most {GRAPHS} sizes on the backend 'cuda', which has a graph for each; got"
            f" {size.high - size.low + 1}: take a narrower range, or a backend without graphs"
        )
    if accumulate > 1:
        raise ValueError(
            f"batch_size={size} must come with accumulate=1 on the backend 'cuda', whose graphs are for a size and its"
            f" share of a step; got {accumulate}: take larger sizes, or another backend"
        )


def sized(batches: Batches, size: BatchSize, drop_last: bool, seed: int, epoch: int) -> Batches:
    """Return the same batches with the sizes of an epoch, counted from 0 over the model's life.

    size: a number of rows, or one of `fastopt.batches`. drop_last: a last batch with fewer rows than the others is left
    out, unless it is the only one.
    """
    rows = len(batches.order)
    if isinstance(size, Random):
        sizes = size.sizes(rows, seed, epoch, drop_last)
        return batches._replace(batch_size=min(size.high, rows), sizes=sizes)
    most = min(size.at(epoch) if isinstance(size, Growing) else int(size), rows)
    left = rows % most if drop_last else 0
    return batches._replace(batch_size=most, used=rows - left if left else None)


def varies(metrics: tuple[str, ...]) -> bool:
    """True if a metric depends on which rows an epoch leaves out beyond their sums: r2, by the variation of targets."""
    return any(METRICS[name].of_variation for name in metrics)

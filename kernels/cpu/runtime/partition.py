"""Division of work into pieces, by its shape alone, and of the pieces among the ranks."""

from __future__ import annotations

import numpy as np

from .frontend import register_jitable
from .primitives import view
from .records import RUN, read


@register_jitable
def num_pieces(total, size):
    """The pieces of at most `size` that `total` is cut into."""
    return (total + size - 1) // size


@register_jitable
def equal_size(total, most, unit):
    """The size of the pieces that `total` is cut into: as equal as whole units allow, none larger than `most`."""
    num_units = num_pieces(total, unit)
    return max(1, num_pieces(num_units, max(1, num_pieces(total, most)))) * unit


@register_jitable
def pieces_of_rank(total, rank, num_ranks):
    """The pieces of a rank: neighbours, and the same ones in every step, so that its data stay in its core's cache."""
    return range(rank * total // num_ranks, (rank + 1) * total // num_ranks)


@register_jitable
def batch_of_epoch(r, step):
    """The number of batch `step` in its epoch, from 0; r: the record RUN. The first epoch needs no division."""
    return step if step < r.epoch_stride or r.epoch_stride == 0 else step % r.epoch_stride


@register_jitable
def epoch_of_batch(r, step):
    """The number of the epoch of batch `step`, from 0; r: the record RUN."""
    return 0 if step < r.epoch_stride or r.epoch_stride == 0 else step // r.epoch_stride


@register_jitable
def batch_start(r, step):
    """The first row of batch `step` in the order of its epoch; r: the record RUN."""
    batch = batch_of_epoch(r, step)
    return view(r.starts, batch + 1, np.int64)[batch] if r.starts else batch * r.batch_size


@register_jitable
def draws_of_batch(r, step):
    """The number of the batch, or of the step, by which its random numbers are drawn, and its first row in that.

    r: the record RUN.
    """
    return (r.first_batch, r.first_in_step + batch_start(r, step)) if r.in_step else (r.first_batch + step, 0)


@register_jitable
def batch_rows(run, step):
    """The rows of batch `step`: the last one of an epoch may be shorter, or each may have a size of its own."""
    r = read(run, RUN)
    batch = batch_of_epoch(r, step)
    if r.starts:
        starts = view(r.starts, batch + 2, np.int64)
        return starts[batch + 1] - starts[batch]
    return min(r.batch_size, r.num_rows - batch * r.batch_size)

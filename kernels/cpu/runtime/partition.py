"""Division of work into pieces, by its shape alone, and of the pieces among the ranks."""

from __future__ import annotations

from .frontend import register_jitable
from .records import RUN, read


@register_jitable
def num_pieces(total, size):
    """The pieces of at most `size` that `total` is cut into."""
    return (total + size - 1) // size


@register_jitable
def pieces_of_rank(total, rank, num_ranks):
    """The pieces of a rank: neighbours, and the same ones in every step, so that its data stay in its core's cache."""
    return range(rank * total // num_ranks, (rank + 1) * total // num_ranks)


@register_jitable
def batch_rows(run, step):
    """The rows of batch `step`: the last one may be shorter."""
    r = read(run, RUN)
    return min(r.batch_size, r.num_rows - step * r.batch_size)

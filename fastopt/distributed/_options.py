"""Options of `fit` for training on several ranks."""

from __future__ import annotations

from typing import Any

from .._validation import check_name

ENGINES = ("mpi",)
REDUCTIONS = ("fixed", "fast")


def check_options(options: Any) -> None:
    """Check distributed and reduction of a `fit`; ValueError for what they do not go with."""
    check_name("reduction", options.reduction, REDUCTIONS)
    if options.distributed is None:
        if options.reduction != "fixed":
            raise ValueError(f'reduction={options.reduction!r} is for distributed="mpi"')
        return
    check_name("distributed", options.distributed, ENGINES)
    if options.augment is not None:
        raise ValueError(
            'distributed="mpi" takes rows that all ranks know, and augment makes new ones: transform them beforehand'
        )
    if options.batch_size == "auto":
        raise ValueError('distributed="mpi" needs a batch_size that all ranks share, not "auto", which is measured')

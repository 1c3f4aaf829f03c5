"""Options of `fit` for training on several ranks."""

from __future__ import annotations

from typing import Any

from .._validation import check_flag, check_name

ENGINES = ("mpi",)
REDUCTIONS = ("fixed", "fast")
WIRE = ("bfloat16",)


def check_options(options: Any) -> None:
    """Check distributed and what goes with it of a `fit`; ValueError for what it does not go with."""
    check_name("reduction", options.reduction, REDUCTIONS)
    check_flag("shard_states", options.shard_states)
    if options.wire_dtype is not None:
        check_name("wire_dtype", options.wire_dtype, WIRE)
    if options.distributed is None:
        for name, default in (("reduction", "fixed"), ("shard_states", False), ("wire_dtype", None)):
            if getattr(options, name) != default:
                raise ValueError(f'{name}={getattr(options, name)!r} is for distributed="mpi"')
        return
    check_name("distributed", options.distributed, ENGINES)
    if options.augment is not None:
        raise ValueError(
            'distributed="mpi" takes rows that all ranks know, and augment makes new ones: transform them beforehand'
        )
    if options.batch_size == "auto":
        raise ValueError('distributed="mpi" needs a batch_size that all ranks share, not "auto", which is measured')

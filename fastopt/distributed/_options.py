"""Options of `fit` for training on several ranks."""

from __future__ import annotations

from typing import Any

from .._validation import check_flag, check_name

ENGINES = ("mpi",)
REDUCTIONS = ("fixed", "fast")
WIRE = ("bfloat16",)
ROWS = ("global", "local")
DEFAULTS = {"reduction": "fixed", "shard_states": False, "wire_dtype": None, "rows": "global"}
OPTIONS = tuple(DEFAULTS)


def check_options(options: Any) -> None:
    """Check distributed and what goes with it of a `fit`; ValueError for what it does not go with."""
    check_name("reduction", options.reduction, REDUCTIONS)
    check_name("rows", options.rows, ROWS)
    check_flag("shard_states", options.shard_states)
    if options.wire_dtype is not None:
        check_name("wire_dtype", options.wire_dtype, WIRE)
    if options.distributed is None:
        for name, default in DEFAULTS.items():
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
    if options.reduction == "fast" and options.wire_dtype is not None:
        raise ValueError(
            f'wire_dtype={options.wire_dtype!r} goes with reduction="fixed": MPI itself adds up no numbers of it'
        )
    if options.rows == "local":
        _check_local(options)


def _check_local(options: Any) -> None:
    """Raise ValueError for options that go by rows which all ranks know."""
    for name, default, instead in (
        ("checkpoint", None, "a callback such as ModelCheckpoint"), ("resume", None, "load_model"),
        ("validation_split", 0.0, "validation_data, the same on all ranks"), ("accumulate", 1, "a larger batch_size"),
        ("drop_last", False, "the default"), ("steps_per_epoch", None, "the default"),
    ):  # fmt: skip
        if getattr(options, name) != default:
            raise ValueError(f'{name} goes by rows that all ranks know, and rows="local" has none: use {instead}')
    if not isinstance(options.batch_size, int):
        raise ValueError(f'rows="local" needs a batch_size in rows, of all ranks together; got {options.batch_size!r}')
    if options.class_weight == "balanced":
        raise ValueError('class_weight="balanced" goes by rows that all ranks know: give weights by label')

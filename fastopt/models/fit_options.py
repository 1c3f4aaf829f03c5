"""Options of a training, checked: the arguments of `Sequential.fit` beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._validation import check_count, check_flag, check_name, check_number, describe
from ..callbacks import Callback
from .progress import wants_bar

NAN = ("raise", "skip")


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`, with its names and defaults; TypeError or ValueError for an impossible one."""

    epochs: int = 1
    batch_size: int = 32
    validation_split: float = 0.0
    validation_data: Any = None
    shuffle: bool = True
    callbacks: Sequence[Callback] = ()
    verbose: int | str = "auto"
    initial_epoch: int = 0
    nan: str = "raise"
    accumulate: int = 1
    standardize_targets: bool = False

    def __post_init__(self) -> None:
        check_count("initial_epoch", self.initial_epoch, least=0)
        check_count("epochs", self.epochs)
        if self.initial_epoch > self.epochs:
            raise ValueError(f"initial_epoch must be at most epochs={self.epochs}; got {self.initial_epoch}")
        check_count("batch_size", self.batch_size)
        check_count("accumulate", self.accumulate)
        check_number("validation_split", self.validation_split, 0.0, 1.0)
        check_flag("shuffle", self.shuffle)
        check_verbose(self.verbose)
        check_callbacks(self.callbacks)
        check_flag("standardize_targets", self.standardize_targets)
        check_name("nan", self.nan, NAN)
        if self.validation_data is not None:
            if self.validation_split:
                raise ValueError("give validation_split or validation_data, not both")
            if not isinstance(self.validation_data, tuple | list) or len(self.validation_data) != 2:
                raise TypeError(f"validation_data must be a tuple (x, y); got {describe(self.validation_data)}")

    @property
    def epoch_numbers(self) -> range:
        """Numbers of the epochs to run, from 1."""
        return range(int(self.initial_epoch) + 1, int(self.epochs) + 1)

    @property
    def shows_bar(self) -> bool:
        """True if there is to be a progress bar."""
        return bool(self.verbose) and wants_bar(self.verbose)


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError for anything but a sequence of callbacks."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a list of Callback; got {describe(callbacks)}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"every callback must be a Callback; got {describe(callback)}")


def check_verbose(verbose: Any) -> None:
    """Raise unless `verbose` is "auto", 0 or 1."""
    if not isinstance(verbose, int | str):
        raise TypeError(f'verbose must be "auto", 0 or 1; got {verbose!r}')
    if verbose not in ("auto", 0, 1):
        raise ValueError(f'verbose must be "auto", 0 or 1; got {verbose!r}')

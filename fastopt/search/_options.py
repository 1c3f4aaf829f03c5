"""Options of a search, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._validation import check_count, check_name, check_number, describe
from ..models.sequential import Sequential
from ..models.training import check_verbose

SAMPLERS = ("tpe", "random", "grid")
TRIALS = 20  # of a search that is no grid


class Options(NamedTuple):
    """Options of `search`, with its names and defaults, but for those of the task."""

    trials: int | None = None
    sampler: str = "tpe"
    cv: Any = 3
    epochs: int = 20
    monitor: str | None = None
    patience: int | None = None
    prune: bool = True
    build: Callable[[dict[str, Any]], Sequential] | None = None
    jobs: int = 1
    storage: Any = None
    name: str = "fastopt"
    resume: bool = False
    timeout: float | None = None
    verbose: int | str = "auto"

    def check(self) -> None:
        """Raise TypeError or ValueError for impossible options."""
        check_name("sampler", self.sampler, SAMPLERS)
        if self.trials is not None:
            check_count("trials", self.trials)
            if self.sampler == "grid":
                raise ValueError("a grid has as many trials as points: leave out trials, or take another sampler")
        for name in ("epochs", "jobs"):
            check_count(name, getattr(self, name))
        if self.patience is not None:
            check_count("patience", self.patience, least=0)
        if self.timeout is not None and not check_number("timeout", self.timeout, 0.0):
            raise ValueError("timeout must be above 0; got 0")
        if self.resume and self.storage is None:
            raise ValueError("resume goes on with a study of a storage, which must be given")
        if self.build is not None and not callable(self.build):
            raise TypeError(f"build must be a function of the settings; got {describe(self.build)}")
        check_verbose(self.verbose)

"""The progress bar of `fit`, drawn by tqdm, which is imported only when a bar is to be seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

TEXT_BAR = "{bar:20}"
HIDDEN = ("lr", "seconds", "samples_per_second")  # known beforehand, or the bar has its own form of it


def wants_bar(verbose: int | str) -> bool:
    """Return True if `verbose` ("auto", 0 or 1) asks for a bar: "auto" does on a terminal and in a notebook."""
    if verbose == "auto":
        return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    return bool(verbose)


def in_notebook() -> bool:
    """Return True if this process is a kernel of Jupyter's, which shows its output in a notebook."""
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = ask() if ask is not None else None  # None outside IPython
    return (
        getattr(shell, "kernel", None) is not None
        or type(shell).__name__ == "ZMQInteractiveShell"
        or "IPKernelApp" in (getattr(shell, "config", None) or ())
    )


def tqdm_class() -> tuple[Any, str]:
    """Return tqdm's class of bars for a terminal or a notebook, and the field of the bar in its `bar_format`.

    In a notebook the class is tqdm.auto's: a widget if ipywidgets is installed.
    """
    if in_notebook():
        from tqdm.auto import tqdm as automatic

        widget = any(base.__module__ == "tqdm.notebook" for base in automatic.__mro__)
        return automatic, "{bar}" if widget else TEXT_BAR
    from tqdm import tqdm

    return tqdm, TEXT_BAR


class Bar:
    """A line for an epoch: a bar over its samples, the time, all figures, and the samples per second."""

    def __init__(self, epoch: int, epochs: int | None, samples: int | None, batch_size: int) -> None:
        tqdm, bar = tqdm_class()
        self._samples, self._batch_size = samples, batch_size
        self._rows_after: Callable[[int], int] | None = None
        self._title = f"Epoch {epoch}" if epochs is None else f"Epoch {epoch}/{epochs}"
        self._bar = tqdm(
            total=samples,
            desc=self._title,
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|" + bar + "| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._start = time.perf_counter()

    def follow(self, rows_after: Callable[[int], int], samples: int | None = None) -> None:
        """Ask for the rows that a number of steps comes to; samples: of the epoch, if they are not those known."""
        self._rows_after = rows_after
        if samples is not None:
            self._samples = self._bar.total = samples

    def compiling(self, name: str) -> None:
        """Show that kernel `name` is being compiled, for which the first epoch may stand still."""
        self._bar.set_description_str(f"{self._title} (compiling {name})")

    def advance(self, steps: int, loss: float) -> None:
        """Show that `steps` batches are done, with mean loss `loss`."""
        if self._rows_after is not None:
            samples = self._rows_after(steps)
        else:
            samples = min(steps * self._batch_size, self._samples or 0)
        self._show(samples, {"loss": loss}, samples / max(time.perf_counter() - self._start, 1e-9))

    def finish(self, logs: Mapping[str, float]) -> None:
        """Show the whole epoch with its figures and leave the line standing."""
        figures = {name: value for name, value in logs.items() if name not in HIDDEN}
        if self._samples is None and self._rows_after is not None:
            self._samples = self._bar.total = self._rows_after(0)
        self._show(self._samples or 0, figures, logs["samples_per_second"])
        self.close()

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()

    def _show(self, samples: int, figures: Mapping[str, float], rate: float) -> None:
        parts = [f"{name}={value:.4g}" for name, value in figures.items()]
        self._bar.set_description_str(self._title, refresh=False)
        self._bar.set_postfix_str(", ".join([*parts, f"{self._bar.format_sizeof(rate)} samples/s"]), refresh=False)
        self._bar.n = samples
        self._bar.refresh()


class ModelBar:
    """A line for many models: a bar over those that are trained, and the time; a context that closes it."""

    def __init__(self, models: int) -> None:
        tqdm, bar = tqdm_class()
        self._bar = tqdm(
            total=models,
            desc="Models",
            dynamic_ncols=True,
            file=sys.stderr,
            bar_format="{desc}: {percentage:3.0f}%|" + bar + "| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
        )

    def __enter__(self) -> ModelBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def compiling(self, name: str) -> None:
        """Show that kernel `name` is being compiled."""
        self._bar.set_description_str(f"Models (compiling {name})")

    def show(self, models: int) -> None:
        """Show that so many models are trained."""
        self._bar.set_description_str("Models", refresh=False)
        self._bar.n = models
        self._bar.refresh()

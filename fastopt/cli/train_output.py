"""Output of `fastopt train`: the lines before the training, progress bars, and the table of results."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from .. import _backends
from .._text import aligned, in_one_unit, rounded
from ..datasets import Dataset
from ..models.progress import tqdm_class, wants_bar
from ..optim import get_optimizer
from . import compression
from .experiment import Contestant, Experiment, disagreement

COMPILING = "compiling kernels (first time only)"
ROUNDING = 1e-5  # relative difference of float32 losses beyond which the output explains it
KINKED = ("relu", "leaky_relu")


def headline(data: Dataset, contestants: Sequence[Contestant]) -> str:
    """Return lines on the data, the network, the training and the machine."""
    plan, model = contestants[0].experiment, contestants[0].model
    shape = "-".join(str(width) for width in (plan.x.shape[1], *plan.hidden, plan.outputs))
    size = sum(p.size for p in model.parameters)
    options = {"lr": get_optimizer(plan.optimizer, **plan.hyper).lr, **plan.hyper}
    options |= {"schedule": plan.schedule} if plan.schedule != "constant" else {}
    options |= {"warmup": plan.warmup} if plan.warmup else {}
    hyper = ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in options.items()
    )
    network = [shape, plan.activation] if plan.hidden else [shape]
    network += [f"dropout {plan.dropout:g}"] if plan.dropout else []
    together = f", {plan.accumulate} a step" if plan.accumulate > 1 else ""
    training = [f"{plan.optimizer} ({hyper})", plan.loss, f"batches of {plan.batch_size}{together}"]
    training += [f"{plan.pruning.share:.4g} of the weights pruned"] if plan.pruning else []
    training += [f"rounded for {plan.quantize}"] if plan.quantize else []
    inside = f" computed in {plan.compute_dtype}" if plan.compute_dtype else ""
    limits = [f"at most {plan.max_steps} steps"] * (plan.max_steps is not None)
    limits += [f"at most {plan.max_seconds or 0:g} s"] * (plan.max_seconds is not None)
    training += [f"{plan.epochs} epochs", *limits, plan.dtype + inside, f"seed {plan.seed}"]
    held_out = f", {plan.validation_split:.0%} of them held out" if plan.validation_split else ""
    rows = [
        ("data", f"{data.name}: {len(data.x_train):,} rows to train on{held_out}, {len(data.x_test):,} to test on"),
        *_data_rows(data, plan),
        ("network", f"{', '.join(network)}: {size:,} parameters"),
        ("training", ", ".join(training)),
        *([("batch size", plan.batch_size_reason.partition(": ")[2])] if plan.batch_size_reason else []),
        *((contestant.title, _machinery(contestant.backend, plan.compute_dtype)) for contestant in contestants),
    ]
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:<{width}}   {text}" for title, text in rows)


def _data_rows(data: Dataset, plan: Experiment) -> list[tuple[str, str]]:
    """Lines on a table: its target, its features and notes."""
    rows = [("target", data.targets + ", standardized" * plan.standardize_targets)] if data.targets else []
    features = []
    if data.preparation is not None and data.preparation.features > len(data.preparation.columns):
        features.append(f"{plan.x.shape[1]} from {len(data.preparation.columns)} columns, text one-hot encoded")
    if plan.standardize:
        features.append("standardized")
    rows += [("features", ", ".join(features))] if features else []
    return rows + [("note", note) for note in data.notes]


def _machinery(backend: str, compute: str | None) -> str:
    if backend == "numpy":
        return f"NumPy {np.__version__}, with its own BLAS and threads"
    if backend == _backends.DEVICE:
        return str(_backends.get(backend).gpu_of(()).name)
    from ..kernels.cpu.dense.blas import products
    from ..kernels.cpu.runtime.launch import get_num_threads

    threads, library = get_num_threads(), products(compute or "float32")
    named = "plain loops instead of a BLAS" if library.name == "none" else f"{library.name} {library.version}"
    return f"Numba, {named}, {threads} thread{'s' * (threads > 1)}"


class Progress:
    """A bar for each contestant on a terminal or in a notebook; elsewhere one line, if kernels must be compiled."""

    def __init__(self, contestants: Sequence[Contestant], quiet: bool) -> None:
        self._quiet, self._compiled = quiet, 0
        self._titles = {id(contestant): contestant.title for contestant in contestants}
        self._bars: dict[int, Any] = {}
        if quiet or not wants_bar("auto"):
            return
        tqdm, bar = tqdm_class()
        width = max(map(len, self._titles.values()))
        for position, contestant in enumerate(contestants):
            self._bars[id(contestant)] = tqdm(
                total=contestant.experiment.epochs,
                desc=contestant.title.ljust(width),
                position=position,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|" + bar + "| epoch {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )

    def compiling(self, name: str) -> None:
        """Show that the kernel `name` is being compiled."""
        self._compiled += 1
        for bar in list(self._bars.values())[:1]:
            bar.set_postfix_str(f"{COMPILING}: {self._compiled}", refresh=True)
        if not self._bars and not self._quiet and self._compiled == 1:
            print(f"{COMPILING} ...", file=sys.stderr, flush=True)

    def show(self, contestant: Contestant, figures: dict[str, float]) -> None:
        """Advance the bar of `contestant` by an epoch, with its loss and metrics."""
        if bar := self._bars.get(id(contestant)):
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            bar.update(contestant.epochs - bar.n)

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in self._bars.values():
            bar.refresh()
            bar.close()
        self._bars = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def result(contestants: Sequence[Contestant]) -> str:
    """Return the table of results and notes on how to read it."""
    times = in_one_unit([contestant.median_seconds for contestant in contestants])
    slowest = contestants[-1].median_seconds
    compared = len(contestants) > 1
    rows = [["", "time per epoch", "samples/s", "train loss", "test loss", *_test_names(contestants[0].test)]]
    rows[0] += ["speed-up"] * compared
    for contestant, time in zip(contestants, times, strict=True):
        row = [contestant.title, time, rounded(statistics.median(contestant.rates))]
        row += [f"{contestant.loss:.4g}", f"{contestant.test['loss']:.4g}", *_test_figures(contestant.test)]
        rows.append(row + [f"{rounded(slowest / contestant.median_seconds, 2)} x"] * compared)
    return "\n".join(["", aligned(rows), "", *_notes(contestants)])


def _test_names(test: dict[str, float]) -> list[str]:
    return ["test accuracy"] if "accuracy" in test else ["test RMSE", "test R2"]


def _test_figures(test: dict[str, float]) -> list[str]:
    if "accuracy" in test:
        return [f"{100 * test['accuracy']:.1f} %"]
    return [f"{math.sqrt(test['mean_squared_error']):.4g}", f"{test['r2']:.4g}"]


def _notes(contestants: Sequence[Contestant]) -> list[str]:
    notes = []
    first = contestants[0]
    if len(contestants) > 1:
        losses = [contestant.step_losses for contestant in contestants[:2]]
        steps = min(map(len, losses))
        difference = disagreement(*(series[:steps] for series in losses))
        notes.append(
            "Both started from the same weights and saw the same batches, taking turns; in their first "
            f"{steps} steps\nthe losses differ by at most {difference:.1e} of their size."
        )
        is_float32 = first.experiment.dtype == "float32" and not first.experiment.compute_dtype
        if difference > ROUNDING and is_float32 and first.experiment.activation in KINKED:
            notes.append(
                "(More than rounding: where the input of a relu is 0 but for rounding, the two may take different "
                "sides\nof the kink, and go slightly different ways from there. --dtype float64 makes that rare.)"
            )
    notes.append(
        f"Times are medians over {first.epochs} epoch{'s' * (first.epochs > 1)}, of the training pass alone; "
        "everything was compiled and\nwarmed up on a throw-away model before."
    )
    notes += compression.notes(first.model, first.product(), first.experiment.pruning)
    for contestant in contestants:
        if contestant.stopper and contestant.stopper.stopped_epoch:
            notes.append(
                f"The {contestant.title} stopped early, after {contestant.epochs} epochs; "
                f"the weights are those of epoch {contestant.stopper.best_epoch}."
            )
    if first.experiment.standardize_targets:
        notes.append("Losses are those of standardized targets; RMSE and R2 are in the targets' own units.")
    if not math.isfinite(first.loss):
        advice = "" if first.experiment.standardize else ", or --standardize"
        notes.append(f"The training diverged: a smaller --lr may help{advice}.")
    return notes

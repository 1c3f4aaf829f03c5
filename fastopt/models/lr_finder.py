"""The learning-rate range test: losses of a short training whose rate grows from step to step."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_count, check_number, describe
from ..callbacks import Callback
from .sequential import Sequential
from .training import DIVERGED


@dataclass(frozen=True, eq=False)
class RangeTest:
    """Result of `fastopt.lr_finder`; n steps, fewer than were asked for where the loss diverged.

    rates       (n,) float64, rising
    losses      (n,) float64: the loss of each step's batch, before its update
    smoothed    (n,) float64: the losses without their noise, cut at the limit of divergence
    suggestion  the rate at which the smoothed loss falls fastest; None: it does not fall
    diverged    True if the loss grew beyond that limit, which ended the test
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None
    diverged: bool

    def __str__(self) -> str:
        best = int(np.argmin(self.smoothed))
        end = ", where the loss diverged" if self.diverged else ""
        found = "none: the loss does not fall"
        if self.suggestion is not None:
            found = f"{self.suggestion:.2g}, where the loss falls fastest"
        rows = [
            ("rates", f"{self.rates[0]:.2g} to {self.rates[-1]:.2g}, {len(self.rates)} steps{end}"),
            ("loss", f"{self.smoothed[0]:.4g} at first, {self.smoothed[best]:.4g} at best, at {self.rates[best]:.2g}"),
            ("suggestion", found),
        ]
        return "\n".join(f"{title:<10}   {text}" for title, text in rows)

    def __repr__(self) -> str:
        found = "none" if self.suggestion is None else f"{self.suggestion:.2g}"
        return f"RangeTest({len(self.rates)} steps, {self.rates[0]:.2g} to {self.rates[-1]:.2g}, suggestion {found})"

    def plot(self, ax: Any = None) -> Any:
        """Draw losses over rates into a Matplotlib `Axes`, by default of a new figure; return it.

        ImportError without Matplotlib (extra `plot`). `plot().figure.savefig("rates.png")` makes a file of it.
        """
        if ax is not None and not hasattr(ax, "plot"):
            raise TypeError(f"ax must be Axes of Matplotlib; got {describe(ax)}")
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install 'fastopt[plot]'") from error
        if ax is None:
            ax = pyplot.subplots()[1]
        ax.plot(self.rates, np.minimum(self.losses, self.smoothed.max() * 1.1), color="0.8", label="batches")
        ax.plot(self.rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            ax.axvline(self.suggestion, color="0.4", linestyle="--", label=f"suggestion: {self.suggestion:.2g}")
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss")
        ax.legend()
        return ax


def lr_finder(
    model: Sequential,
    x: ArrayLike,
    y: ArrayLike,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    steps: int = 200,
    batch_size: int = 32,
    smoothing: float = 0.9,
    diverge: float = 4.0,
    standardize_targets: bool = False,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[Any, float] | str | None = None,
) -> RangeTest:
    """Find a learning rate by the range test: train a copy of the model with a rate that grows exponentially.

    Step i of `steps`, from 0, has the rate min_lr (max_lr / min_lr)^(i / (steps - 1)). The copy starts from the model's
    weights and optimizer states; the model itself, its optimizer and its random numbers stay as they are. Batches are
    whole: the rows follow one another without end, each time through in a new order. A schedule that the optimizer has
    is put aside.

    model         a compiled `Sequential`, built or not
    x, y          as in `fit`, and so are `standardize_targets`, `sample_weight` and `class_weight`
    batch_size    rows of a step; all of them, where there are fewer
    smoothing     b in [0, 1): smoothed loss i is sum_j b^|i - j| l_j / sum_j b^|i - j|, which, unlike an average over
                  the steps before alone, does not lag behind the rate
    diverge       above 1. The test ends as soon as the average of the losses so far, of weights b^(i - j), is above the
                  limit of `diverge` times the first loss, or a loss is not finite. Losses above the limit count as it
                  in `smoothed`

    The suggestion is the rate of the least d smoothed / d log(rate), among those up to the smallest smoothed loss.
    Raises TypeError and ValueError as `fit` does, before anything is trained.

    Source: Smith 2017, "Cyclical learning rates for training neural networks"; suggestion of fast.ai's `steep`.

    >>> import numpy as np, fastopt as fo
    >>> x = np.linspace(-1, 1, 256).reshape(-1, 1)
    >>> model = fo.Sequential([fo.Dense(16, "tanh"), fo.Dense(1)], seed=1, backend="numpy")
    >>> model.compile("adam", "mean_squared_error")
    >>> test = fo.lr_finder(model, x, x**2)
    >>> 1e-4 < test.suggestion < 0.1 and model.optimizer.steps == 0
    True
    >>> model.optimizer.lr = test.suggestion
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential; got {describe(model)}")
    low, high = check_number("min_lr", min_lr, 0.0), check_number("max_lr", max_lr, 0.0)
    if not 0 < low < high:
        raise ValueError(f"min_lr must be above 0, and max_lr above min_lr; got {low:g} and {high:g}")
    steps, batch_size = check_count("steps", steps, least=2), check_count("batch_size", batch_size)
    check_number("smoothing", smoothing, 0.0, 1.0)
    if not check_number("diverge", diverge, 1.0) > 1:
        raise ValueError("diverge must be above 1; got 1")
    with model._use.shared("lr_finder"):
        tried = copy.deepcopy(model)
    tried._trainable_loss()  # raises for models that fit cannot train
    assert tried.optimizer is not None
    rates = _Rates(low, high, steps, tried.optimizer.steps)
    tried.optimizer.lr = rates
    watch = _Watch(float(smoothing), float(diverge))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DIVERGED)  # the end that a range test is to reach
        history = tried.fit(
            x, y, batch_size=batch_size, steps_per_epoch=steps, callbacks=[watch], verbose=0,
            standardize_targets=standardize_targets, sample_weight=sample_weight, class_weight=class_weight,
        )  # fmt: skip
    losses = history.step_losses
    done = np.array([rates(rates.first + i) for i in range(len(losses))])
    smoothed = smooth(losses, float(smoothing), watch.limit)
    return RangeTest(done, losses, smoothed, steepest(done, smoothed), watch.diverged)


@dataclass(frozen=True)
class _Rates:
    """Rate of each step, by the number of steps that the optimizer has done; `first`: at the begin of the test."""

    low: float
    high: float
    steps: int
    first: int

    def __call__(self, step: int) -> float:
        return self.low * (self.high / self.low) ** ((step - self.first) / (self.steps - 1))


class _Watch(Callback):
    """End of the training with the step at which the average of the losses so far is above the limit."""

    reads_weights = False
    every_steps = 1

    def __init__(self, smoothing: float, diverge: float) -> None:
        self._smoothing, self._diverge = smoothing, diverge
        self._sum = self._weight = 0.0
        self.limit, self.diverged = math.inf, False

    def on_step_end(self, model: Any, step: int, logs: Mapping[str, float]) -> None:
        loss = logs["loss"]
        if self._weight == 0.0 and math.isfinite(loss):
            self.limit = loss + (self._diverge - 1) * abs(loss)
        self._sum = self._smoothing * self._sum + loss
        self._weight = self._smoothing * self._weight + 1.0
        average = self._sum / self._weight
        if not math.isfinite(average) or average > self.limit:
            self.diverged = model.stop_training = True


def smooth(losses: NDArray[np.float64], smoothing: float, limit: float = math.inf) -> NDArray[np.float64]:
    """Averages (n,) of losses (n,) with weights smoothing^|i - j|; those above `limit`, or not finite, count as it.

    >>> smooth(np.array([1.0, 3.0, 1.0]), 0.5).tolist()
    [1.5714285714285714, 2.0, 1.5714285714285714]
    """
    cut = np.minimum(np.where(np.isnan(losses), limit, losses), limit)
    n = len(cut)
    weights = np.power(smoothing, np.abs(np.arange(1 - n, n)))  # (2n - 1,); 0^0 is 1: losses as they are
    sums, totals = (np.convolve(values, weights)[n - 1 : 2 * n - 1] for values in (cut, np.ones(n)))
    return np.asarray(sums / totals)


def steepest(rates: NDArray[np.float64], smoothed: NDArray[np.float64]) -> float | None:
    """The rate at which a loss falls fastest over the logarithm of the rate, up to its minimum; None: it never falls.

    >>> steepest(np.array([0.1, 1.0, 10.0, 100.0]), np.array([4.0, 3.5, 1.0, 9.0]))
    1.0
    """
    last = int(np.argmin(smoothed))
    if last == 0:
        return None
    slopes = np.gradient(smoothed, np.log(rates))[: last + 1]
    return float(rates[int(np.argmin(slopes))])

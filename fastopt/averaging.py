"""Averages of a model's weights over the steps of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._validation import check_count, check_flag, check_number

__all__ = ["EMA"]


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights: `model.compile("adam", loss, ema=fo.EMA(0.999))`.

        average = average + share (weights - average)    after every step of the optimizer, behind constraints

    decay   in [0, 1]: how slowly the average follows; of the last 1 / (1 - decay) steps most remains. 1 is the plain
            mean of all steps, as that of torch's `get_swa_multi_avg_fn`
    debias  True: share = (1 - decay) / (1 - decay^k) at the k-th step, as the bias correction of Adam: the average is
            the mean of the weights of steps 1 ... k, each weighing `decay` times the one after it, so that it is of use
            after a few steps, too. False: share = 1 - decay, and 1 at the first step: the `ema_momentum` of Keras and
            `get_ema_multi_avg_fn` of torch, where the weights of the first step weigh decay^(k - 1) for long
    start   steps of the optimizer before the first that counts, k = 1; until then the average is the weights

    `predict`, `predict_classes`, `evaluate` and the validation of `fit` use the average in the place of the weights.
    The loss and the metrics of the training rows are those of the weights, which `parameters`, `get_weights` and
    `set_weights` are about. `model.averages` are the averages themselves, and `model.use_averages()` copies them into
    the weights.

    The moving mean and variance of a BatchNorm are averages already, of the rows that the weights themselves have seen.

    The average is a part of the model's files, pickles and copies, and further calls of `fit` go on with it, bit for
    bit. It costs a read and a write of an array of the weights' size a step, within the update.

    Polyak & Juditsky 1992; Izmailov et al. 2018 (decay=1).

    >>> EMA()
    EMA(decay=0.999, debias=True, start=0)
    >>> EMA(0.5).shares(0, 3).round(6).tolist(), EMA(1.0, start=1).shares(0, 4).round(6).tolist()
    ([1.0, 0.666667, 0.571429], [1.0, 1.0, 0.5, 0.333333])
    """

    decay: float = 0.999
    debias: bool = True
    start: int = 0

    def __post_init__(self) -> None:
        decay = check_number("decay", self.decay, 0.0)
        if decay > 1:
            raise ValueError(f"decay must be in [0, 1]; got {self.decay}")
        object.__setattr__(self, "decay", decay)
        object.__setattr__(self, "debias", check_flag("debias", self.debias))
        object.__setattr__(self, "start", check_count("start", self.start, least=0))
        if decay == 1 and not self.debias:
            raise ValueError("decay=1 needs debias=True: else the average would stay at the first step's weights")

    def shares(self, done: int, n: int) -> np.ndarray:
        """Return the share of the weights in the average at each of n steps after `done` ones: (n,) float64."""
        k = np.maximum(np.arange(done + 1, done + 1 + n, dtype=np.float64) - self.start, 1.0)
        if not self.debias:
            return np.where(k == 1, 1.0, 1.0 - self.decay)
        if self.decay == 1:
            return 1.0 / k
        with np.errstate(divide="ignore"):  # decay = 0
            shares: np.ndarray = (1.0 - self.decay) / -np.expm1(k * np.log(self.decay))
        return np.where(k == 1, 1.0, shares)

    def config(self) -> dict[str, Any]:
        """Return the settings as plain values, of which `EMA(**config)` is made again."""
        return {"decay": self.decay, "debias": self.debias, "start": self.start}

"""Power laws with a floor: error = floor + the sum of a_i x_i^-b_i, by least squares, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._estimate import LEVEL, Estimate
from ._scipy import least_squares

DRAWS, QUICKLY = 200, 40  # of the bootstrap, each fitted in so many evaluations at most
STARTS = [(share, exponent) for share in (0.0, 0.5, 0.9) for exponent in (0.2, 0.5, 1.0)]
STEEPEST = 4.0  # exponent
LEAST_POINTS = 3  # different values of a variable
NONE = 1e-6  # of the least error: a floor below it is none
LEAST_FALL = 0.05  # of the error, below which a law is said not to fall


class PowerLaw:
    """error = floor + the sum of scale_i x_i^-exponent_i, with all of them at least 0 (Hestness et al. 2017; of two
    variables Hoffmann et al. 2022).

    names      of the variables
    floor      the error that is left for ever, with its interval
    scales     a_i of each variable in its order, for x_i as it is
    exponents  b_i, with their intervals
    r2         share of the variance of the logarithms of the errors that is explained

    Relative errors are minimized, by `scipy.optimize.least_squares` from several starts. Intervals of 95 % are
    percentiles of laws that were fitted to the law's own values times residuals drawn from all of them, `draws` times
    (200).
    """

    def __init__(self, names: Sequence[str], x: np.ndarray, errors: np.ndarray, draws: int | None = None) -> None:
        draws = DRAWS if draws is None else draws
        x, y = np.asarray(x, np.float64).reshape(len(errors), -1), np.asarray(errors, np.float64)
        for name, column in zip(names, x.T, strict=True):
            if len(np.unique(column)) < LEAST_POINTS:
                raise ValueError(f"a law of {name} needs {LEAST_POINTS} different ones; got {len(np.unique(column))}")
        self.names = tuple(names)
        self._unit = np.exp(np.log(x).mean(axis=0))  # of x, which the fit is free of
        scaled = x / self._unit
        self._ends = scaled.min(axis=0, keepdims=True), scaled.max(axis=0, keepdims=True)
        starts = [_start(y, len(names), share, exponent) for share, exponent in STARTS]
        self._best = min((_fitted(scaled, y, start) for start in starts), key=lambda fit: fit.cost).x
        values = _values(self._best, scaled)
        logs = np.log(y / values)
        total = float(((np.log(y) - np.log(y).mean()) ** 2).sum())
        self.r2 = 1 - float(logs @ logs) / total if total else 1.0
        # residuals are smaller than the deviations, by the numbers that were fitted to them
        inflated = logs * np.sqrt(len(y) / max(1, len(y) - len(self._best)))
        rng = np.random.default_rng(0)
        drawn = [values * np.exp(rng.choice(inflated, len(y))) for _ in range(draws)]
        self._draws = np.array([_fitted(scaled, sample, self._best, QUICKLY).x for sample in drawn])
        floor = self._estimate(self._best[0], self._draws[:, 0])
        self.floor = Estimate(*(value if value > NONE * y.min() else 0.0 for value in floor))
        own, drawn_pairs = self._best[1:].reshape(-1, 2), self._draws[:, 1:].reshape(draws, -1, 2)
        self.scales = [float(np.exp(log) * unit**b) for (log, b), unit in zip(own, self._unit, strict=True)]
        self.exponents = [self._estimate(own[i, 1], drawn_pairs[:, i, 1]) for i in range(len(names))]

    @staticmethod
    def _estimate(value: float, draws: np.ndarray) -> Estimate:
        low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        return Estimate(float(value), float(min(low, value)), float(max(high, value)))

    def error(self, *x: float) -> Estimate:
        """The error that the law predicts, one number for each variable; the interval is that of the curve."""
        row = np.array([x], np.float64) / self._unit
        return self._estimate(_values(self._best, row)[0], np.array([_values(draw, row)[0] for draw in self._draws]))

    def ratio(self, before: Sequence[float], after: Sequence[float]) -> Estimate:
        """The error after / the error before."""
        rows = np.array([before, after], np.float64) / self._unit
        found = [_values(params, rows) for params in [self._best, *self._draws]]
        ratios = np.array([after / before for before, after in found])
        return self._estimate(ratios[0], ratios[1:])

    @property
    def falls(self) -> list[bool]:
        """True for each variable with which the error falls, by 5 % at least from the least x to the most."""
        low, high = (_powers(self._best, ends)[0] for ends in self._ends)
        return [bool(drop > LEAST_FALL * (self._best[0] + low.sum())) for drop in low - high]

    def __str__(self) -> str:
        pieces = [f"{self.floor.value:.3g}"]
        pieces += [
            f"{scale:.3g} {name}^-{exponent.value:.2g}"
            for name, scale, exponent in zip(self.names, self.scales, self.exponents, strict=True)
        ]
        return " + ".join(pieces)


# Parameters of a fit are floor, then log(scale) and exponent of each variable.


def _powers(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    """scale_i x_i^-exponent_i of each row and variable, (n, variables)."""
    pairs = params[1:].reshape(-1, 2)
    return np.exp(pairs[:, 0] - pairs[:, 1] * np.log(x))


def _values(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    return params[0] + _powers(params, x).sum(axis=1)


def _derivatives(params: np.ndarray, x: np.ndarray) -> np.ndarray:
    powers = _powers(params, x)
    found = np.ones((len(x), len(params)))
    found[:, 1::2], found[:, 2::2] = powers, -powers * np.log(x)
    return found


def _start(y: np.ndarray, variables: int, share: float, exponent: float) -> np.ndarray:
    floor = share * y.min()
    rest = max(y.mean() - floor, 1e-3 * y.mean()) / variables
    return np.array([floor, *[np.log(rest), exponent] * variables])


def _fitted(x: np.ndarray, y: np.ndarray, start: np.ndarray, most: int = 200) -> Any:
    variables, middle = x.shape[1], np.log(y.mean())
    low = np.array([0.0, *[middle - 14, 0.0] * variables])
    high = np.array([y.max(), *[middle + 14, STEEPEST] * variables])
    return least_squares(
        lambda params: _values(params, x) / y - 1, np.clip(start, low, high),
        lambda params: _derivatives(params, x) / y[:, None], bounds=(low, high), max_nfev=most,
    )  # fmt: skip

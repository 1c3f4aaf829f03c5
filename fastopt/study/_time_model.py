"""Linear regression of the time of a training on its work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ._estimate import LEVEL, Estimate
from ._records import Work
from ._scipy import student_t

# Terms that every regression has: a and b of time = a + b x parameters x rows x epochs.
BASE = ("fit", "parameters x rows x epochs")
# Terms, of which the residuals decide that a regression needs them.
TERMS: dict[str, Callable[[Work], float]] = {
    "fit": lambda work: 1.0,
    "parameters x rows x epochs": lambda work: float(work.parameters) * work.rows * work.epochs,
    "parameters x steps": lambda work: float(work.parameters) * work.steps,  # the updates
    "units x rows x epochs": lambda work: float(work.units) * work.rows * work.epochs,  # activations
    "layers x steps": lambda work: float(work.layers) * work.steps,
    "steps": lambda work: float(work.steps),
    "rows x epochs": lambda work: float(work.rows) * work.epochs,
    "rows": lambda work: float(work.rows),  # looked at once by `fit`
}
LEAST_LARGE = 3  # sizes
LARGE = 50_000  # parameters from which on times are predicted well
BETTER = 0.95  # a term must bring the error of sizes held out down to this share of it
ROUNDING = 1e-9  # errors that are no more than this are left as they are
LEAST_SIZES = 4  # from which on sizes are held out to choose terms; of fewer, single times are
COLLINEAR = 0.02  # a term that others explain but for this share of its norm is left out


class Term(NamedTuple):
    """A term of the regression with its coefficient, in seconds."""

    name: str
    coefficient: Estimate


class TimeModel:
    """Time of a training as a sum of terms, by least squares of relative errors: seconds span decades.

    The first two terms are time = a + b x parameters x rows x epochs. Others come in one at a time, the one that brings
    the error of sizes held out down most, by 5 % of it at least; their coefficients must be positive. The residuals of
    a size are alike, for they say how well its products suit the processor. So sizes are held out whole, and the
    deviations of coefficients are those of clusters (Liang and Zeger 1986), with as many degrees of freedom.

    terms     coefficients with intervals of 95 %, by Student's t
    r2        share of the variance of the times that is explained
    errors    relative errors of the times that were measured, predicted / measured - 1
    held_out  for each number of parameters the relative errors of its times, by a regression on the other sizes alone
    """

    def __init__(self, works: Sequence[Work], seconds: Sequence[float]) -> None:
        y = np.asarray(seconds, np.float64)
        if len(works) < 4:
            raise ValueError(f"a regression of times needs 4 of them at least; got {len(works)}")
        self._fit = _chosen(works, y)
        predicted = self._fit.predict(works)
        self.errors = predicted / y - 1
        total = float(((y - y.mean()) ** 2).sum())
        self.r2 = 1 - float(((y - predicted) ** 2).sum()) / total if total else 1.0
        self.terms = [Term(*term) for term in self._fit.terms()]
        self.held_out = _held_out(works, y)

    def seconds(self, work: Work) -> Estimate:
        """The predicted time of a training, with the interval that a measurement falls into."""
        value, deviation = self._fit.predict_one(work, self._spread(work))
        width = self._fit.quantile * deviation
        return Estimate(value, max(0.0, value - width), value + width)

    def _spread(self, work: Work) -> float:
        """Root of the mean squared relative error of sizes held out; of large ones alone for another, if there are 3.

        It is that of the residuals where none can be held out.

        Small models of the same work differ by half of their time, as their products suit the processor or do not.
        """
        large = {size: errors for size, errors in self.held_out.items() if size >= LARGE}
        chosen = large if work.parameters >= LARGE and len(large) >= LEAST_LARGE else self.held_out
        unseen = [error for errors in chosen.values() for error in errors]
        return float(np.sqrt(np.mean(np.square(unseen)))) if unseen else self._fit.spread

    def worst_held_out(self, least: int = LARGE) -> float | None:
        """The largest relative error of times of sizes held out, of so many parameters at least; None: there are none.

        Sizes are held out one at a time, all their rows and epochs together.
        """
        errors = [abs(error) for count, of_size in self.held_out.items() if count >= least for error in of_size]
        return max(errors, default=None)


class _Fit:
    """Least squares of relative errors on some terms."""

    def __init__(self, names: tuple[str, ...], works: Sequence[Work], y: np.ndarray) -> None:
        self.names = names
        weighted = _columns(names, works) / y[:, None]
        scale = np.linalg.norm(weighted, axis=0)
        q, r = np.linalg.qr(weighted / scale)
        self.values = np.linalg.solve(r, q.T @ np.ones(len(y))) / scale
        residuals = 1 - weighted @ self.values
        self.spread = float(np.sqrt(residuals @ residuals / max(1, len(y) - len(names))))
        sizes = _sizes(works)
        scores = np.array([(residuals * (sizes == size)) @ weighted for size in np.unique(sizes)])
        inverse = np.linalg.inv(r) / scale[:, None]
        bread, clusters = inverse @ inverse.T, len(scores)
        self.covariance = bread @ scores.T @ scores @ bread * (clusters / max(1, clusters - 1))
        self.quantile = float(student_t.ppf(0.5 + LEVEL / 2, max(1, clusters - 1)))

    def terms(self) -> list[tuple[str, Estimate]]:
        """The coefficients with their intervals."""
        width = self.quantile * np.sqrt(np.diag(self.covariance))
        return [
            (name, Estimate(float(value), float(value - w), float(value + w)))
            for name, value, w in zip(self.names, self.values, width, strict=True)
        ]

    def predict(self, works: Sequence[Work]) -> np.ndarray:
        """Seconds of trainings, (n,)."""
        return _columns(self.names, works) @ self.values

    def predict_one(self, work: Work, spread: float) -> tuple[float, float]:
        """Seconds of a training and the standard deviation of a measurement."""
        row = _columns(self.names, [work])[0]
        value = float(row @ self.values)
        return value, float(np.sqrt((spread * value) ** 2 + row @ self.covariance @ row))


def _columns(names: Sequence[str], works: Sequence[Work]) -> np.ndarray:
    return np.array([[TERMS[name](work) for name in names] for work in works])


def _sizes(works: Sequence[Work]) -> np.ndarray:
    return np.array([work.parameters for work in works])


def _chosen(works: Sequence[Work], y: np.ndarray) -> _Fit:
    """The regression whose terms the residuals ask for."""
    sizes = _sizes(works)
    groups = sizes if len(np.unique(sizes)) >= LEAST_SIZES else np.arange(len(y))
    names: tuple[str, ...] = BASE
    least = _error_held_out(BASE, works, y, groups)
    while len(y) > len(names) + 2:
        found = {
            name: _error_held_out((*names, name), works, y, groups)
            for name in TERMS
            if name not in names and _is_new(name, names, works, y)
        }
        better = min(found, key=lambda name: found[name], default=None)
        if better is None or least < ROUNDING or found[better] > BETTER * least:
            break
        names, least = (*names, better), found[better]
    return _Fit(names, works, y)


def _error_held_out(names: tuple[str, ...], works: Sequence[Work], y: np.ndarray, groups: np.ndarray) -> float:
    """Root of the mean squared relative error of groups held out; infinite for a cost that comes out negative."""
    weighted, squares = _columns(names, works) / y[:, None], 0.0
    for group in (None, *np.unique(groups)):
        kept = groups != group if group is not None else np.ones(len(y), bool)
        some = weighted[kept]
        scale = np.linalg.norm(some, axis=0)
        values = np.linalg.lstsq(some / scale, np.ones(len(some)), rcond=None)[0] / scale
        # that of the call itself, which is the least of all, may come out so
        if group is None and (values[1:] <= 0).any():
            return float("inf")
        squares += float(np.square(weighted[~kept] @ values - 1).sum())
    return float(np.sqrt(squares / len(y)))


def _is_new(name: str, others: Sequence[str], works: Sequence[Work], y: np.ndarray) -> bool:
    """False for a term that the others explain, such as the steps where there is one batch size."""
    column, known = _columns([name], works)[:, 0] / y, _columns(others, works) / y[:, None]
    scaled = known / np.linalg.norm(known, axis=0)
    rest = column - scaled @ np.linalg.lstsq(scaled, column, rcond=None)[0]
    return bool(np.linalg.norm(rest) > COLLINEAR * np.linalg.norm(column))


def _held_out(works: Sequence[Work], y: np.ndarray) -> dict[int, list[float]]:
    """Relative errors of the times of each size, by its number of parameters, predicted by those of the others."""
    sizes, found = _sizes(works), {}
    for size in np.unique(sizes).tolist():
        own = sizes == size
        if len(np.unique(sizes[~own])) < 2:
            continue
        fit = _chosen([work for work, is_own in zip(works, own, strict=True) if not is_own], y[~own])
        mine = [work for work, is_own in zip(works, own, strict=True) if is_own]
        found[size] = (fit.predict(mine) / y[own] - 1).tolist()
    return found

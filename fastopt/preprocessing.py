"""Layers that prepare data: first layers of a model, with the names, formulas and meaning of Keras'.

They work in float64, on the rows of the user, as a batch is gathered, and give the model's dtype. So every backend gets
the same bits, and large offsets cost no digits. Nothing in them is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _frames
from ._frozen import Frozen
from ._validation import check_finite, check_matrix, check_real, describe, own, plain
from .kernels.sources import Source, SparseRows, Stage, through

EPSILON = 1e-7  # the smallest divisor, as in Keras


class Statistics(NamedTuple):
    """Mean and variance of every feature, float64 (inputs,)."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Normalization(Frozen):
    """Features of mean 0 and deviation 1: (x - mean) / max(sqrt(variance), 1e-7). Constant features become 0.

    axis            -1 (or 1): mean and variance of every feature, images flattened; None: of all numbers together
    mean, variance  numbers, or arrays (inputs,), to use instead of the data's; both or neither
    name            its name in `summary` and error messages; by default normalization_1, ... in a model

    Without `mean` and `variance` the model learns them at its first `fit`, from the rows that it trains on and not from
    those held out, or by `model.adapt(x)`, and keeps them. `layer.adapt(x)` does so beforehand, for every model that
    is built with the layer afterwards; a model that has numbers already keeps them. A model's numbers are in
    `model.statistics`, beside `parameters`, and in its file. Sparse rows are prepared as dense ones: their batches are
    dense, so that the mean is taken off zeros, too (scikit-learn's with_mean=True, which it refuses for them).

    Must come before all layers of other kinds. Raises TypeError or ValueError for other arguments.

    >>> import numpy as np
    >>> layer = Normalization().adapt([[0.0, 5.0], [2.0, 5.0]])
    >>> layer.mean.tolist(), layer.variance.tolist()
    ([1.0, 5.0], [1.0, 0.0])
    >>> Normalization(mean=0.5, variance=4.0)
    Normalization(mean=0.5, variance=4)
    """

    axis: int | None = -1
    mean: ArrayLike | None = None
    variance: ArrayLike | None = None
    name: str | None = None
    _given: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.axis not in (-1, 1, None) or isinstance(self.axis, bool):
            raise ValueError(f"axis must be -1 (feature by feature) or None (all together); got {self.axis!r}")
        check_label(self.name)
        if (self.mean is None) != (self.variance is None):
            raise ValueError("give mean and variance both, or neither")
        object.__setattr__(self, "_given", self.mean is not None)  # not learnt by `adapt`
        if self.mean is None:
            return
        mean, variance = _vector("mean", self.mean), _vector("variance", self.variance)
        if (variance < 0).any():
            raise ValueError(f"variance must not be negative; got {variance.min():g}")
        if mean.ndim and variance.ndim and mean.shape != variance.shape:
            raise ValueError(f"mean and variance must have one shape; got {mean.shape} and {variance.shape}")
        self._set(mean, variance)

    def __repr__(self) -> str:
        parts = [] if self.axis == -1 else [f"axis={self.axis}"]
        if self._given:
            parts += [f"mean={_brief(self.mean)}", f"variance={_brief(self.variance)}"]
        return f"Normalization({', '.join(parts + _named(self))})"

    def adapt(self, data: Any) -> Normalization:
        """Learn mean and variance from rows of features, instead of earlier ones, and return the layer itself.

        data  (n, inputs), a table, an array or a sparse matrix as `fit` takes them; finite

        Raises ValueError for a layer that was made with mean and variance, and for NaN or infinity.
        """
        if self._given:
            raise ValueError("adapt would replace the mean and variance that the layer was made with")
        values, names = _frames.features("data", data)
        _frames.check_cells("data", check_matrix("data", values), names)
        self._set(*moments(lambda: _blocks(values, None), self.axis is None))
        return self

    def statistics(self, inputs: int) -> Statistics | None:
        """Return mean and variance of `inputs` features, as given or adapted; None if there are none yet."""
        if self.mean is None:
            return None
        return Statistics(_spread(self.mean, inputs), _spread(self.variance, inputs))

    def check(self, inputs: int) -> None:
        """Raise ValueError if mean and variance are of another number of features."""
        for what in ("mean", "variance"):
            _check_length(what, getattr(self, what), inputs)

    def formula(self) -> str:
        """Return the formula for `summary`."""
        return "(x - mean) / deviation"

    def config(self) -> dict[str, Any]:
        """Return the arguments as plain values, without learnt statistics."""
        given = {"mean": _listed(self.mean), "variance": _listed(self.variance)} if self._given else {}
        return {"axis": self.axis, "mean": None, "variance": None, "name": self.name, **given}

    def _set(self, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> None:
        for what, array in (("mean", mean), ("variance", variance)):
            array.flags.writeable = False
            object.__setattr__(self, what, array)


@dataclass(frozen=True, eq=False)
class Rescaling(Frozen):
    """Features times `scale`, plus `offset`: Rescaling(1 / 255) brings bytes of images into [0, 1].

    scale, offset  numbers, or arrays (inputs,)
    name           its name in `summary` and error messages; by default rescaling_1, ... in a model

    Must come before all layers of other kinds. Raises TypeError or ValueError for other arguments.

    >>> Rescaling(2, offset=-1)
    Rescaling(2, offset=-1)
    """

    scale: ArrayLike
    offset: ArrayLike = 0.0
    name: str | None = None

    def __post_init__(self) -> None:
        check_label(self.name)
        scale, offset = _vector("scale", self.scale), _vector("offset", self.offset)
        if scale.ndim and offset.ndim and scale.shape != offset.shape:
            raise ValueError(f"scale and offset must have one shape; got {scale.shape} and {offset.shape}")
        for what, array in (("scale", scale), ("offset", offset)):
            array.flags.writeable = False
            object.__setattr__(self, what, array)

    def __repr__(self) -> str:
        offset = [] if np.ndim(self.offset) == 0 and self.offset == 0 else [f"offset={_brief(self.offset)}"]
        return f"Rescaling({', '.join([_brief(self.scale), *offset, *_named(self)])})"

    def check(self, inputs: int) -> None:
        """Raise ValueError if scale or offset are of another number of features."""
        for what in ("scale", "offset"):
            _check_length(what, getattr(self, what), inputs)

    def formula(self) -> str:
        """Return the formula for `summary`, with its numbers if they are single."""
        scale, offset = np.asarray(self.scale), np.asarray(self.offset)
        shift = "" if offset.ndim == 0 and offset == 0 else " + offset" if offset.ndim else f" {offset:+.6g}"
        return f"x * {'scale' if scale.ndim else f'{scale:.6g}'}{shift}"

    def config(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return {"scale": _listed(self.scale), "offset": _listed(self.offset), "name": self.name}


Preprocessing = Normalization | Rescaling
Known = Sequence[Statistics | None]  # for each layer; None for Rescaling, and for what has not learnt yet


def known_statistics(layers: Sequence[Preprocessing], own: Known, inputs: int) -> list[Statistics | None]:
    """Return the statistics of layers: a model's `own`, else those that the layers bring."""
    return [
        mine if mine is not None or not isinstance(layer, Normalization) else layer.statistics(inputs)
        for layer, mine in zip(layers, own, strict=True)
    ]


def learn(
    layers: Sequence[Preprocessing], known: Known, matrix: np.ndarray | SparseRows, rows: np.ndarray | None
) -> list[Statistics | None]:
    """Return the statistics of all layers; unknown ones are computed from `rows` of a finite matrix (None: all rows).

    A layer learns from the outputs of those before it. Raises ValueError for a variance that is too large.
    """
    found = list(known)
    for i, layer in enumerate(layers):
        if isinstance(layer, Normalization) and found[i] is None:
            before = stages_of(layers[:i], found[:i], matrix.shape[1])

            def blocks(before: tuple[Stage, ...] = before) -> Iterator[np.ndarray]:
                return (through(before, block) for block in _blocks(matrix, rows))

            mean, variance = moments(blocks, layer.axis is None)
            found[i] = Statistics(_spread(mean, matrix.shape[1]), _spread(variance, matrix.shape[1]))
    return found


def stages_of(layers: Sequence[Preprocessing], numbers: Known, inputs: int) -> tuple[Stage, ...]:
    """Return what the layers, with their statistics, do to rows of `inputs` features on their way to a batch."""
    return tuple(_stage(layer, known, inputs) for layer, known in zip(layers, numbers, strict=True))


def _stage(layer: Preprocessing, known: Statistics | None, inputs: int) -> Stage:
    if isinstance(layer, Rescaling):
        return Stage(False, _spread(layer.scale, inputs), _spread(layer.offset, inputs))
    assert known is not None
    return Stage(True, np.maximum(np.sqrt(known.variance), EPSILON), known.mean)


def moments(blocks: Callable[[], Iterator[np.ndarray]], together: bool = False) -> Statistics:
    """Return mean and variance (over n) of the columns of float64 blocks of rows; `together`: of all numbers, ().

    Deviations are taken from the first row, then from the mean. So offsets cost no digits, and the variance of a
    constant is exactly 0.
    """

    def read() -> Iterator[np.ndarray]:
        return (block.reshape(-1, 1) if together else block for block in blocks())

    first = next(read())[0].copy()
    rows, total = 0, np.zeros_like(first)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in read():
            total += (block - first).sum(axis=0)
            rows += len(block)
        shift = total / rows
        squares = np.zeros_like(first)
        for block in read():
            deviation = (block - first) - shift
            squares += (deviation * deviation).sum(axis=0)
        mean, variance = first + shift, squares / rows
    for what, array in (("mean", mean), ("variance", variance)):
        if not np.isfinite(array).all():
            raise ValueError(f"the {what} of feature {int(np.argmin(np.isfinite(array)))} is too large for float64")
    return Statistics(mean.reshape(()), variance.reshape(())) if together else Statistics(mean, variance)


def check_label(name: str | None) -> None:
    """Raise TypeError or ValueError for a layer's name that is not None, nor a string that is not empty."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string; got {describe(name)}")
    if name == "":
        raise ValueError("name must not be empty")


def _blocks(matrix: np.ndarray | SparseRows, rows: np.ndarray | None) -> Iterator[np.ndarray]:
    """Rows of a matrix in float64, a block at a time; C-contiguous, as memory order decides the bits of a sum."""
    return (np.ascontiguousarray(block, np.float64) for _, block in Source(matrix).blocks(rows))


def _vector(what: str, value: Any) -> NDArray[np.float64]:
    """A copy of a number or a vector of numbers, which must be finite."""
    array = plain(what, value)
    check_real(what, array, value)
    array = check_finite(what, own(array, np.float64))
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"{what} must be a number, or an array (inputs,); got shape {array.shape}")
    return array


def _spread(value: Any, inputs: int) -> NDArray[np.float64]:
    return np.array(np.broadcast_to(value, (inputs,)))


def _check_length(what: str, value: Any, inputs: int) -> None:
    if value is not None and np.ndim(value) and len(value) != inputs:
        raise ValueError(f"its {what} is of {len(value)} features, but {inputs} come in")


def _listed(value: Any) -> Any:
    return np.asarray(value).tolist()


def _brief(value: Any) -> str:
    return f"{value:g}" if np.ndim(value) == 0 else f"<array {np.shape(value)}>"


def _named(layer: Preprocessing) -> list[str]:
    return [] if layer.name is None else [f"name={layer.name!r}"]

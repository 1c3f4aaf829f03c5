"""Memory that a model has of its data: names, labels, and the statistics that prepare features and targets."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .._validation import check_count, describe
from ..layers import Layer
from ..preprocessing import Normalization, Preprocessing, Statistics, known_statistics, learn
from . import _features, _intake, _labels, _targets
from ._intake import Learnt
from ._layer_stack import LayerStack
from ._targets import TargetScale

Tensors = dict[str, np.ndarray]


class DataMemory(LayerStack):
    """A stack of layers that knows the meaning of its data: the middle of `Sequential`."""

    def __init__(
        self, layers: Sequence[Layer], seed: int, backend: str, dtype: DTypeLike, compute_dtype: str | None
    ) -> None:
        super().__init__(layers, seed, backend, dtype, compute_dtype)
        self._learnt = Learnt(statistics=(None,) * len(self.preprocessing))
        self._preparation: dict[str, Any] | None = None

    def _adopt(self, inputs: int, parameters: list[np.ndarray]) -> None:
        super()._adopt(inputs, parameters)
        self.learnt = self.learnt  # the numbers that layers bring are the model's from now on

    @property
    def learnt(self) -> Learnt:
        """All that the model has learnt of its data; once built, also the statistics that its layers bring.

        Setting it checks nothing.
        """
        return self._learnt if self.inputs is None else self.learnt_for(self.inputs)

    @learnt.setter
    def learnt(self, value: Learnt) -> None:
        self._learnt = value

    def learnt_for(self, inputs: int) -> Learnt:
        """Return `learnt` for rows of `inputs` features."""
        if None not in self._learnt.statistics:
            return self._learnt
        for layer, name in zip(self.preprocessing, self.names, strict=False):
            try:
                layer.check(inputs)  # a layer may have been adapted after the model was built
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from None
        statistics = known_statistics(self.preprocessing, self._learnt.statistics, inputs)
        return self._learnt._replace(statistics=tuple(statistics))

    @property
    def classes(self) -> np.ndarray | None:
        """Labels of the classes, as in the data, in the order of the outputs; with one output the negative one first.
        None: not known yet.

        The first `fit` of a classification loss sets them. They may be set before, to a list of as many labels as the
        outputs tell apart (two for one output): for labels that the first data may lack, or for another order.

        >>> from fastopt import Dense, Sequential
        >>> model = Sequential([Dense(3, "softmax")])
        >>> model.classes = ["low", "middle", "high"]
        >>> model.classes.tolist()
        ['low', 'middle', 'high']
        """
        return None if self._learnt.classes is None else _locked(self._learnt.classes)

    @classes.setter
    def classes(self, labels: Any) -> None:
        if labels is not None:
            labels = _labels.check_classes(labels, _targets.count_of_classes(self.outputs))
        self._learnt = self._learnt._replace(classes=labels)

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns that the model was first fitted on; None: they had none.

        Tables with other columns, or with these in another order, are refused.
        """
        return self._learnt.feature_names

    @feature_names.setter
    def feature_names(self, names: Any) -> None:
        if names is not None:
            several = isinstance(names, Iterable) and not isinstance(names, str)
            if not several or not all(isinstance(name, str) for name in names):
                raise TypeError(f"feature_names must be a list of strings, or None; got {describe(names)}")
            names = tuple(map(str, names))
            if self.inputs not in (None, len(names)):
                raise ValueError(f"feature_names must be {self.inputs} names, one a feature; got {len(names)}")
        self._learnt = self._learnt._replace(feature_names=names)

    @property
    def target_scale(self) -> TargetScale | None:
        """Mean and deviation of every output's targets, by which `predict` scales outputs back; None: no scaling.

        A `fit` with standardize_targets=True learns them. They may be set to (mean, deviation), or to None.
        """
        scale = self._learnt.target_scale
        return None if scale is None else TargetScale(*map(_locked, scale))

    @target_scale.setter
    def target_scale(self, scale: Any) -> None:
        if scale is not None:
            scale = _targets.check_scale(scale, self.outputs)
        self._learnt = self._learnt._replace(target_scale=scale)

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Mean and variance of every Normalization that has them, by the layer's name.

        >>> from fastopt import Dense, Normalization, Sequential
        >>> model = Sequential([Normalization(), Dense(1)])
        >>> model.adapt([[1.0, 2.0], [3.0, 2.0]])
        >>> model.statistics
        {'normalization_1': Statistics(mean=array([2., 2.]), variance=array([1., 0.]))}
        """
        pairs = zip(self.names, self.learnt.statistics, strict=False)
        return {name: Statistics(*(part.copy() for part in numbers)) for name, numbers in pairs if numbers is not None}

    @property
    def preparation(self) -> dict[str, Any] | None:
        """A mapping of the user's own notes on the data, which goes into the model's file; None: there is none.

        It may hold values of JSON: strings, numbers, True, False, None, lists, and mappings with strings for keys.
        Setting and reading it make copies.
        """
        return copy.deepcopy(self._preparation)

    @preparation.setter
    def preparation(self, value: Mapping[str, Any] | None) -> None:
        self._preparation = None if value is None else _check_preparation(value)

    def adapt(self, x: Any) -> None:
        """Learn the mean and variance of every Normalization from rows x (n, inputs), instead of any known before.

        `fit` does so by itself where they are not known; layers that were made with mean and variance keep them.
        Weights stay as they are. Raises ValueError for a model that has nothing to learn, and for x not finite.
        """
        if not any(isinstance(layer, Normalization) and not layer._given for layer in self.preprocessing):
            raise ValueError("adapt is for models that have a Normalization without mean and variance of its own")
        features = _intake.read_x(self, "x", x)
        inputs = features.values.shape[1]
        self.specs(inputs)
        _features.check("x", features)
        own = [
            layer.statistics(inputs) if isinstance(layer, Normalization) and layer._given else None
            for layer in self.preprocessing
        ]
        statistics = tuple(learn(self.preprocessing, own, features.values, None))
        with self._use.exclusive("adapt"):
            self.build(inputs)
            names = self._learnt.feature_names or features.names
            self._learnt = self._learnt._replace(statistics=statistics, feature_names=names)


# ---------------------------------------------------------------- files


def to_config(model: DataMemory) -> dict[str, Any]:
    """Return the entries of a file's description; empty if there is nothing to remember."""
    learnt = model.learnt
    config = {
        "feature_names": learnt.feature_names,
        "classes": None if learnt.classes is None else learnt.classes.tolist(),
        "preparation": model.preparation,
    }
    return {name: value for name, value in config.items() if value is not None}


def to_tensors(model: DataMemory) -> Tensors:
    """Return the tensors of a file beside the weights: "layers.<i>.mean", "layers.<i>.variance", "targets.<...>"."""
    learnt = model.learnt
    known = {f"layers.{i}": numbers for i, numbers in enumerate(learnt.statistics) if numbers is not None}
    tensors = {f"{key}.{what}": array for key, some in known.items() for what, array in some._asdict().items()}
    if learnt.target_scale is not None:
        tensors |= {f"targets.{what}": array for what, array in learnt.target_scale._asdict().items()}
    return tensors


def restore(model: DataMemory, inputs: Any, config: Mapping[str, Any], tensors: Tensors) -> None:
    """Give a new model the memory of a file, and remove its tensors from `tensors`; ValueError for damaged ones."""
    inputs = check_count("inputs", inputs)
    statistics: list[Statistics | None] = []
    for i, layer in enumerate(model.preprocessing):
        learns = isinstance(layer, Normalization)
        found = _pair(tensors, f"layers.{i}", ("mean", "variance"), inputs) if learns else None
        if found is not None and (found[1] < 0).any():
            raise ValueError(f"layers.{i}.variance must not be negative")
        statistics.append(None if found is None else Statistics(*found))
    model.learnt = Learnt(statistics=tuple(statistics))
    model.target_scale = _pair(tensors, "targets", ("mean", "deviation"), model.outputs)
    model.classes = config.get("classes")
    names = config.get("feature_names")
    if names is not None and (not isinstance(names, list) or len(names) != inputs):
        raise ValueError(f"feature_names must be {inputs} names")
    model.feature_names = names
    model.preparation = config.get("preparation")


def know_old_labels(model: DataMemory) -> None:
    """Give a model from an old file, which was trained on class numbers, these as its classes."""
    loss = model.loss
    if model.classes is None and model.epochs_done and loss is not None and _targets.takes_numbers(loss.spec):
        model.classes = range(model.outputs)


def take_over(model: DataMemory, saved: DataMemory) -> None:
    """Give a model that has taken the weights of another the memory that goes with them."""
    mine, theirs = model.learnt, saved.learnt
    pairs = zip(theirs.statistics, mine.statistics, strict=True)
    model.learnt = Learnt(
        theirs.feature_names or mine.feature_names,
        tuple(mine if found is None else found for found, mine in pairs),
        theirs.target_scale,
        mine.classes if theirs.classes is None else theirs.classes,
    )
    if saved.preparation is not None:
        model.preparation = saved.preparation


def differences(saved: Sequence[Preprocessing], ours: Sequence[Preprocessing]) -> list[str]:
    """Return in words the differences between layers that prepare data; learnt statistics do not count."""
    if [_identity(layer) for layer in saved] == [_identity(layer) for layer in ours]:
        return []
    theirs, own = (", ".join(map(repr, some)) or "nothing" for some in (saved, ours))
    return [f"the file's data go through {theirs}, the model's through {own}"]


def _locked(array: np.ndarray) -> np.ndarray:
    """A read-only view of our own array."""
    view = array.view()
    view.flags.writeable = False
    return view


def _identity(layer: Preprocessing) -> tuple[str, dict[str, Any]]:
    return type(layer).__name__, {name: value for name, value in layer.config().items() if name != "name"}


def _pair(tensors: Tensors, prefix: str, names: tuple[str, str], length: int) -> tuple[np.ndarray, ...] | None:
    """Two vectors of float64 that belong together, removed from `tensors`; None if neither is there."""
    names = (f"{prefix}.{names[0]}", f"{prefix}.{names[1]}")
    if not any(name in tensors for name in names):
        return None
    found = tuple(tensors.pop(name) for name in names)
    for name, array in zip(names, found, strict=True):
        if array.shape != (length,) or array.dtype != np.float64 or not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be finite float64 of shape ({length},); got {array.dtype} of shape {array.shape}"
            )
    return found


def _check_preparation(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"preparation must be a mapping, or None; got {describe(value)}")
    _check_keys(value)
    return dict(json.loads(json.dumps(value, allow_nan=False, default=_mapping)))


def _check_keys(value: Any, depth: int = 0) -> None:
    """Raise TypeError for keys of mappings that are not strings, which JSON would turn into strings."""
    if depth > 100:
        raise ValueError("preparation must not be deeper than 100 levels, nor hold itself")
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"the keys of preparation must be strings; got {describe(wrong[0])}")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for item in value:
        _check_keys(item, depth + 1)


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"preparation must hold what JSON can; got {describe(value)}")

"""The checks of a `fit` whose batches come one by one, before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _backends
from ..losses import Loss
from . import _checkpoints, _intake, _targets, training
from ._augment import AugmentedSource
from ._intake import Learnt
from ._labels import Labels
from ._streams import Items, ItemSource, Reader
from .training import FitOptions

# Options of `fit` that have no meaning where x gives the batches, with the values that say nothing, and what to do.
MEANINGLESS = {
    "batch_size": (32, "each item of x is a batch: let x give items of another size"),
    "validation_split": (0.0, "rows of an iterable cannot be held out: give validation_data"),
    "drop_last": (False, "each item of x is a batch: let x leave it out"),
    "standardize_targets": (False, "the mean of all targets is not known before they have come: scale them in x"),
    "sample_weight": (None, "give items (x, y, weights)"),
    "class_weight": (None, "give items (x, y, weights)"),
    "augment": (None, "let x give items that are changed already"),
}
FIRST = "the first item of x (an order that is drawn at random needs a seed)"


def plan(model: Any, make: Any, x: Any, loss: Loss, options: FitOptions) -> training.Plan:
    """Return the plan of a training on the items (x, y) of an iterable; the model is built by the first of them.

    make: the model's class.
    """
    for name, (value, advice) in MEANINGLESS.items():
        given = getattr(options, name)
        if given != value if value is not None else given is not None and given is not False:
            raise ValueError(f"{name} is for arrays x and y, and y is left out; {advice}")
    items = Items(x)
    first = items.first()
    called = ("x of batch 1", "y of batch 1")
    raw = _intake.read(model, called, first[0], first[1], loss, options.nan)
    inputs = raw.x.values.shape[1]
    if model.inputs is None:
        model.specs(inputs)  # raises, before anything is made, where layers clash
    known: Learnt = model.learnt_for(inputs)
    classes = known.classes
    if raw.labels is not None and classes is None:
        classes = _targets.learn_classes(called[1], raw.labels, loss.spec, model.outputs)
    learnt = known._replace(feature_names=known.feature_names or raw.x.names, classes=classes)
    reader = Reader(model, loss, options.nan, inputs, learnt)
    data = reader.read(1, *first)  # raises for a layer that has not learnt its statistics
    has_validation = options.validation_data is not None
    validation = model._validation_of(options, loss, inputs, learnt) if has_validation else None
    names = training.figure_names(model.metrics, validation is not None, model.metric_functions)
    for callback in options.callbacks:
        callback.check(names)
    empty = _intake.Data(np.empty((0, inputs)), np.empty(0))
    begun = training.Plan(None, empty, np.arange(0), validation, options, source=ItemSource(items, reader))
    if options.checkpoint is not None or options.resume not in (None, False):
        begun = _with_checkpoints(model, make, begun, data, learnt, names)
    if model.inputs is None:
        _backends.network(model.backend)  # raises, before anything is made, where it cannot run
        model.build(inputs)
    network = model._network_for(training=True)
    model.learnt = learnt
    return begun._replace(network=network, evaluator=model._evaluator(network))


def _with_checkpoints(
    model: Any, make: Any, begun: training.Plan, first: _intake.Data, learnt: Learnt, names: Sequence[str]
) -> training.Plan:
    """The plan with the checkpoint to go on from, if there is one, and the items before that passed over.

    first: the first item, by which other items are told; names: of the figures of an epoch.
    """
    items: Items = begun.source.items
    told = {
        "items": "those of an iterator" if items.once else "those of an iterable, anew in every epoch",
        FIRST: [first.features, first.y, first.weights],
        "learnt": [learnt.statistics, learnt.target_scale],
    }
    begun = _checkpoints.plan(model, make, begun, _checkpoints.call_of(model, begun.options, told, names))
    if begun.saved and not begun.saved[0].stopped:
        saved = begun.saved[0]
        items.go_on(saved.items, saved.partial is not None, begun.options.steps_per_epoch is not None)
    return begun


def augmented(
    model: Any, x: Any, raw: _intake.Raw, weights: np.ndarray | None, loss: Loss, learnt: Learnt, options: FitOptions
) -> AugmentedSource:
    """Return the source of a training whose batches `options.augment` changes; x: as the user gave it.

    weights: of the rows, in the model's dtype.
    """
    values, y = raw.x.values, raw.y.values if isinstance(raw.y, Labels) else raw.y
    shape = x.shape[1:] if isinstance(x, np.ndarray) and x.ndim > 2 else values.shape[1:]
    reader = Reader(model, loss, options.nan, values.shape[1], learnt._replace(feature_names=None))
    return AugmentedSource(options.augment, values, raw.of_all(y), weights, shape, reader, training.next_batches)

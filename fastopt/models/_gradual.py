"""Gradual pruning during a training: weights are pruned between two steps, wherever its schedule says so."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from .._pruning import Pruning
from ..batches import Growing, Random
from . import _magnitudes
from ._masks import Masks
from ._parts import NEVER, Part, PartialEpoch, Party


class Pruner(Party):
    """Prunes a model by a schedule that has an end; first_step: steps that the optimizer had done before the fit."""

    def __init__(self, schedule: Pruning, first_step: int) -> None:
        self._schedule, self._first = schedule, first_step

    def steps_until(self, step: int, left: int) -> int:
        count = self._schedule.steps_until_change(step - self._first)
        return NEVER if count is None else count

    def begin(self, model: Any) -> None:
        """Make the masks, which parts of the training that has begun then change in place."""
        kernels = _magnitudes.chosen_layers(model, self._schedule.layers, self._schedule.share)
        if model._masks is None:
            model._masks = Masks([None] * len(model._parameters))
        masks = model._masks
        masks.prune({i: np.ones_like(model._parameters[i], np.uint8) for i in kernels.values()})
        if self._schedule.changes_at(0):
            self._prune(model, 0)

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        """Prune, if the schedule says so after this step."""
        if self._schedule.changes_at(part.step - self._first):
            self._prune(model, part.step - self._first)

    def _prune(self, model: Any, step: int) -> None:
        schedule = self._schedule
        model._bring_back()
        kernels = _magnitudes.chosen_layers(model, schedule.layers, schedule.share)
        masks = _magnitudes.masks_by_share(model, kernels, schedule.share_at(step), schedule.scope)
        _magnitudes.apply_masks(model, masks)


def resolved(options: Any, rows: int | None) -> Any:
    """The options of a `fit` to so many rows, with an end for their pruning; ValueError if it has none.

    rows: None for an iterable of batches.
    """
    if options.pruning is None:
        return options
    return replace(options, pruning=options.pruning.ending(steps_of(options, rows)))


def going_on(options: Any, call: Any) -> Any:
    """The options of a `fit` that goes on from a checkpoint, with the end of pruning that its training began with.

    call: that of the checkpoint, which has the words of its schedule.
    """
    found = re.search(r"\bend=(\d+)", str(call.get("pruning")))
    if options.pruning is None or found is None:
        return options
    return replace(options, pruning=options.pruning.going_on(int(found[1])))


def steps_of(options: Any, rows: int | None) -> int | None:
    """Number of steps of a `fit` to so many rows; None: it is not known before, as that of batches of any size.

    rows: None for an iterable of batches. Epochs tell it, and `max_steps` where there are none: with both, the training
    may be one that goes on later, from a checkpoint.
    """
    size, epochs, steps = options.batch_size, options.last_epoch, options.steps_per_epoch
    if epochs is None:
        return None if options.max_steps is None else int(options.max_steps)
    if steps is None:
        if rows is None or isinstance(size, Random | Growing) or size == "auto":
            return None
        of_step = (rows if size == "full" else int(size)) * int(options.accumulate)
        batches = rows // min(int(size), rows) if options.drop_last and size != "full" else None
        steps = -(-rows // of_step) if batches is None else -(-batches // int(options.accumulate))
    return int(steps) * (epochs - int(options.initial_epoch))

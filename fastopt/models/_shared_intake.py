"""Reading of data once for many models: those that read alike share what is checked and converted."""

from __future__ import annotations

from typing import Any

from ..losses import Loss
from ..preprocessing import stages_of
from . import _intake
from ._intake import Data, Learnt, Names, Raw


class SharedIntake:
    """`read` and `converted` of `_intake`, which return what they have returned before to a model of the same kind.

    It is for one x and y, and validation data, which stay as they are meanwhile.
    """

    def __init__(self) -> None:
        self._raws: dict[Any, Raw] = {}
        self._data: dict[Any, Data] = {}

    def read(self, model: Any, names: Names, x: Any, y: Any, loss: Loss, nan: str, *known: Any) -> Raw:
        """Return rows of x with their targets, as `_intake.read`."""
        of_model = str(model.dtype), model.inputs, model.outputs, model.feature_names, bool(model.preprocessing)
        key = names, nan, known, of_model, _key_of_loss(loss)
        if key not in self._raws:
            self._raws[key] = _intake.read(model, names, x, y, loss, nan, *known)
        return self._raws[key]

    def converted(self, model: Any, names: Names, raw: Raw, loss: Loss, learnt: Learnt) -> Data:
        """Return checked rows, as `_intake.converted`."""
        stages = stages_of(model.preprocessing, learnt.statistics, raw.x.values.shape[1])
        numbers = [(stage.divides, stage.factor.tobytes(), stage.term.tobytes()) for stage in stages]
        scale = None if learnt.target_scale is None else [own.tobytes() for own in learnt.target_scale]
        classes = None if learnt.classes is None else learnt.classes.tolist()
        # a raw that is kept here keeps its id
        key = id(raw), repr((names, str(model.dtype), model.outputs, numbers, scale, classes, _key_of_loss(loss)))
        if key not in self._data:
            self._data[key] = _intake.converted(model, names, raw, loss, learnt)
        return self._data[key]


def _key_of_loss(loss: Loss) -> tuple[Any, ...]:
    return loss.spec.name, tuple(sorted(loss.spec.params.items()))

"""Course of a training: the epochs to run, its limits, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _checkpoints
from ._checkpoints import Saved
from ._gradual import Pruner
from ._limits import Agree, Clock, Every, MaxSeconds, MaxSteps, every
from ._parts import NEVER, Listener, Part, PartialEpoch, Party, listeners
from .history import History
from .training import FitOptions


class Course:
    """Epochs of a `fit` whose steps somebody may look at: what each begins and ends with.

    model, options, callbacks: those of the `fit`; history: its figures; call: all that must be the same where a
    checkpoint of it goes on (None without checkpoints); saved: the checkpoint that it goes on from. world: processes
    that train together, of which one writes files; None: there is one. source: of batches that come one by one.
    """

    def __init__(
        self, model: Any, options: FitOptions, history: History, call: dict[str, Any] | None, saved: Saved | None,
        world: Any = None, source: Any = None,
    ) -> None:  # fmt: skip
        self._world, self.writes, self._source = world, world is None or world.is_first, source
        self.agree: Agree = (lambda value: value) if world is None else world.agree
        self._model, self._options, self._history, self._call, self._saved = model, options, history, call, saved
        self._first_step = model.optimizer.steps if saved is None else saved.first_step
        before = 0.0 if saved is None else saved.seconds
        self._start = time.monotonic() - before
        self.epoch = options.epoch_numbers.start if saved is None else saved.epoch  # that runs, or comes next
        self._limits: list[Party] = []
        if options.max_steps is not None:
            self._limits.append(MaxSteps(self._first_step + int(options.max_steps)))
        if options.max_seconds is not None:
            self._limits.append(MaxSeconds(float(options.max_seconds), before, self.agree))
        self._pruner = None if options.pruning is None else Pruner(options.pruning, self._first_step)
        self._writer = None if options.checkpoint is None else _Writer(self)
        self._partial: PartialEpoch | None = None  # the epoch that runs
        self._listeners: list[Listener] = []

    # -- epochs

    def prepare(self) -> None:
        """Called before `on_train_begin` of the callbacks, which see the weights that the training goes on with."""
        if self._saved is not None:
            _checkpoints.take_model(self._model, self._saved)

    def begin(self) -> None:
        """Called after `on_train_begin` of the callbacks."""
        if self._saved is None:
            if self._pruner:
                self._pruner.begin(self._model)
            if self._writer:
                _checkpoints.states_of(self._options.callbacks, {})  # TypeError for what files cannot hold
            return
        _checkpoints.fill_history(self._history, self._saved.history)
        if self._saved.partial is None:
            self._take_up()
        for limit in self._limits:
            limit.look(self._model.optimizer.steps)

    def epochs(self) -> Iterator[int]:
        """Numbers of the epochs to run."""
        for epoch in range(self.epoch, self._options.epoch_numbers.stop):
            goes_on = self._saved is not None and self._saved.partial is not None
            if not goes_on and (self._model.stop_training or self.is_over):
                return
            self.epoch = epoch
            yield epoch

    def begin_epoch(self, epoch: PartialEpoch) -> PartialEpoch:
        """Called after `on_epoch_begin` of the callbacks; return the epoch, to be trained on from where it stands."""
        self._partial, self._listeners = epoch, listeners(self._options.callbacks)
        if self._saved is not None and self._saved.partial is not None:
            self._partial.restore(self._saved.partial)
            if len(self._saved.heard) == len(self._listeners):
                for listener, totals in zip(self._listeners, self._saved.heard, strict=True):
                    listener.total, listener.rows = totals
            self._take_up()
        return self._partial

    @property
    def parties(self) -> list[Party]:
        """All that are heard within the epoch: who prunes first, then callbacks, limits, and who writes checkpoints."""
        first: list[Party] = [self._pruner] if self._pruner else []
        stop = [_StopTogether(self)] if self._world and self._listeners else []
        return [*first, *self._listeners, *stop, *self._limits, *([self._writer] if self._writer else [])]

    def stop_together(self) -> None:
        """Let all processes that train together end where a callback has stopped one of them."""
        if self._world is not None:
            self._model.stop_training = bool(self._world.largest(int(self._model.stop_training)))

    def end_epoch(self) -> None:
        """Called after `on_epoch_end` of the callbacks."""
        was_over, ended_within = self.is_over, self._partial is not None and not self._partial.complete
        self._partial, self._listeners = None, []
        self.epoch += 1
        for limit in self._limits:
            limit.look(self._model.optimizer.steps)
        # where a limit has cut the epoch short, the checkpoint is that within it: with a later limit it goes on there
        if self._writer and not (was_over and ended_within and not self._model.stop_training):
            last = self._model.stop_training or self.is_over or self.epoch == self._options.epoch_numbers.stop
            self._writer.end_epoch(self.epoch - 1, last)

    @property
    def is_over(self) -> bool:
        """True if a limit has been reached."""
        return any(limit.ends_training for limit in self._limits)

    # -- checkpoints

    def _take_up(self) -> None:
        """Restore what the checkpoint has of model and callbacks, once."""
        saved, self._saved = self._saved, None
        assert saved is not None
        _checkpoints.take_model(self._model, saved)
        self._model.stop_training = saved.stopped
        stateful = _checkpoints.stateful(self._options.callbacks)
        for callback, (_, state) in zip(stateful, saved.callbacks, strict=True):
            callback.load_state_dict(state)

    def write(self, path: str, keeps: bool) -> None:
        """Write a checkpoint of where the training is now; keeps: the one before it stays, under another name.

        Of processes that train together one writes.
        """
        if not self.writes:
            return
        partial = self._partial
        state: dict[str, Any] = {
            "call": self._call,
            "position": {
                "epoch": self.epoch, "first_step": self._first_step, "seconds": time.monotonic() - self._start,
                "stopped": bool(self._model.stop_training), "backend": self._model.backend,
            },
            "partial": None if partial is None else partial.to_state(),
            "heard": [[listener.total, listener.rows] for listener in self._listeners],
            "history": _checkpoints.history_state(self._history),
        }  # fmt: skip
        if self._source is not None and (taken := self._source.taken) is not None:
            state["items"] = np.array(taken, np.int64)
        _checkpoints.write(path, self._model, state, self._options.callbacks, keeps)


class _StopTogether(Party):
    """Heard after the callbacks, one of which may have stopped the training of its process."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        self._course.stop_together()


class _Writer(Clock):
    """Writes checkpoints of a course: within epochs, and at their ends."""

    def __init__(self, course: Course) -> None:
        super().__init__(agree=course.agree)
        self._course, options = course, course._options
        self._path = _checkpoints.target(options)
        self._every = Every(epochs=1) if options.checkpoint_every is None else every(options.checkpoint_every)
        self._written_at = self.seconds
        self._keeps = False  # the file that is there is known to be whole
        self._missed = False  # a checkpoint is due that waits for the end of the epoch

    @property
    def seconds_left(self) -> float:
        assert self._every.seconds is not None
        return self._every.seconds - (self.seconds - self._written_at)

    def steps_until(self, step: int, left: int) -> int:
        if self._every.seconds is not None:
            return super().steps_until(step, left)
        if self._every.steps is None:
            return NEVER
        return self._every.steps - (step - self._course._first_step) % self._every.steps

    def _is_due(self, step: int) -> bool:
        if self._every.seconds is not None:
            return self.has_come
        return self._every.steps is not None and (step - self._course._first_step) % self._every.steps == 0

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        super().hear(model, epoch, part)
        if epoch.complete or model.stop_training:  # the end of the epoch is part of the state
            self._missed |= self._is_due(part.step)
        elif self._is_due(part.step) or self._course.is_over:
            self._write()

    def end_epoch(self, epoch: int, last: bool) -> None:
        """Called after an epoch; last: the training ends with it."""
        of_epochs = self._every.epochs is not None and epoch % self._every.epochs == 0
        if last or of_epochs or self._missed or (self._every.seconds is not None and self.has_come):
            self._write()

    def _write(self) -> None:
        # a damaged file, which another training may have left, must not take the place of a good one
        self._keeps = self._keeps or (self._course.writes and _checkpoints.is_whole(self._path))
        self._course.write(self._path, self._keeps)
        self._written_at, self._missed, self._keeps = self.seconds, False, True

"""Callbacks that hear of an epoch after the compiled call that it is a part of, because the call ends by their rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..callbacks import Callback, Trainable
from ..kernels.interrupts import interrupts_held
from ..kernels.loss_rule import LossRule
from .history import History


def rule_of(callbacks: Sequence[Callback]) -> LossRule | None:
    """The rule of the only callback, as it is now; None: there is none, or it is to hear of each epoch at once."""
    return callbacks[0]._loss_rule() if len(callbacks) == 1 else None


@contextmanager
def telling(callbacks: Sequence[Callback], model: Trainable, history: History) -> Iterator[Callable[[], None]]:
    """While open, a training of callbacks with a rule; the value is a function that tells them of finished epochs.

    They are told the same, and in the same order, as if each epoch were a call.
    """
    told = 0

    def tell() -> None:
        nonlocal told
        first, told = told, len(history.epochs)
        for callback in callbacks if first < told else ():
            logs = {name: values[first:] for name, values in history.history.items()}
            callback._on_epochs_end(model, history.epochs[first:], logs)

    try:
        for callback in callbacks:
            callback.on_train_begin(model)
        yield tell
        for callback in callbacks:
            callback.on_train_end(model)
    except KeyboardInterrupt:
        with interrupts_held():
            for callback in callbacks:
                callback.on_interrupt(model)
        raise

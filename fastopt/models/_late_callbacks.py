"""Callbacks that hear of an epoch after the compiled call that it is a part of, because the call ends by their rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..callbacks import Callback, Trainable
from ..kernels.loss_rule import LossRule
from .history import History


def rule_of(callbacks: Sequence[Callback]) -> LossRule | None:
    """The rule of the only callback, as it is now; None: there is none, or it is to hear of each epoch at once."""
    return callbacks[0]._loss_rule() if len(callbacks) == 1 else None


def teller(callbacks: Sequence[Callback], model: Trainable, history: History) -> Callable[[], None]:
    """Return a function that tells callbacks with a rule of the epochs finished since it was last called.

    They are told the same, and in the same order, as if each epoch were a call.
    """
    told = 0

    def tell() -> None:
        nonlocal told
        first, told = told, len(history.epochs)
        for callback in callbacks if first < told else ():
            logs = {name: values[first:] for name, values in history.history.items()}
            callback._on_epochs_end(model, history.epochs[first:], logs)

    return tell

"""The base of callbacks, and functions as callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from numpy.typing import ArrayLike, NDArray

from .._validation import check_count, check_flag, describe
from ..kernels.loss_rule import LossRule


class Trainable(Protocol):
    """The part of a model that callbacks may rely on: `Sequential` has it, and more."""

    stop_training: bool
    optimizer: Any  # the compiled `Optimizer`

    def get_weights(self) -> list[NDArray[Any]]:
        """Copies of the weights."""

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Copy weights into the model."""

    def save(self, path: Any) -> None:
        """Write the model to a file."""


class Callback:
    """Base class: override what you need.

    `model` is the `Sequential` in training; `epoch` counts from 1; `logs` are the epoch's figures, as in `History`.
    `on_epoch_end` may set `model.stop_training = True` to end the training after this epoch, or change
    `model.optimizer.lr` for the next one; `on_step_end`, with this step. Logs of an epoch have "val_..." only where it
    was validated (`validation_freq`). An exception from any method ends `fit`, with model and optimizer as they
    were at that moment; only after Ctrl-C (a KeyboardInterrupt) `on_interrupt` is called.

    Three attributes, of the class or of an object, say what a callback needs:

    reads_weights  False: weights and the optimizer's states are read and changed by methods of the model alone, such as
                   `get_weights`, `predict` and `save`, or not at all. Where no callback needs more, a training on a GPU
                   leaves them there, and such a method brings them back
    every_steps    `on_step_end` is called after every so many steps of the optimizer; None: never. The compiled call of
                   an epoch ends at each of these steps, which changes no bit of weights and figures
    writes_files   True: of processes that train one model together (`fit(distributed=...)`) the first alone calls it;
                   others are called in each of them

    >>> class Decay(Callback):
    ...     reads_weights = False
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         model.optimizer.lr *= 0.9

    A callback that remembers something from epoch to epoch gives it to checkpoints of `fit` by `state_dict`, and takes
    it back by `load_state_dict`:

    >>> class Counter(Callback):
    ...     def on_train_begin(self, model):
    ...         self.epochs = 0
    ...     def on_epoch_end(self, model, epoch, logs):
    ...         self.epochs += 1
    ...     def state_dict(self):
    ...         return {"epochs": self.epochs}
    ...     def load_state_dict(self, state):
    ...         self.epochs = state["epochs"]
    """

    reads_weights: bool = True
    every_steps: int | None = None
    writes_files: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Called before anything else, with the names of the figures in the logs; raise ValueError to refuse."""

    def on_train_begin(self, model: Any) -> None:
        """Called once, before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Called before every epoch."""

    def on_step_end(self, model: Any, step: int, logs: Mapping[str, float]) -> None:
        """Called after every step of the optimizer whose number `every_steps` divides.

        step: the number of steps that the optimizer has done, `model.optimizer.steps`, those of earlier trainings
        included. logs: "loss", the mean over the rows since the call before or the epoch's begin, and "lr", the last
        step's learning rate. A change of `model.optimizer.lr` holds from the next step on; `stop_training` ends the
        epoch, and with it the training, after this step: validation and `on_epoch_end` follow, as in Keras.
        """

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        """Called after every epoch, its validation included."""

    def on_train_end(self, model: Any) -> None:
        """Called once, after the last epoch, also if a callback stopped the training early."""

    def on_interrupt(self, model: Any) -> None:
        """Called once if Ctrl-C ends the training within an epoch, before `fit` raises KeyboardInterrupt.

        A further Ctrl-C waits until this returns.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the callback, if its class defines this; after a step or an epoch.

        A mapping with strings for keys, of numbers, strings, bools, None, NumPy arrays, and lists and mappings of them.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of `state_dict`, where tuples have become lists.

        Called by a `fit` that goes on from a checkpoint: after `on_train_begin`, and within an epoch also after its
        `on_epoch_begin`, so that it undoes what these have set.
        """

    def _loss_rule(self) -> LossRule | None:
        """Rule by which the callback, as it is now, ends a training or changes something; None: by none.

        With a rule, `_on_epochs_end` is called after the compiled call that the rule may end.
        """
        return None

    def _on_epochs_end(self, model: Any, epochs: Sequence[int], logs: Mapping[str, Sequence[float]]) -> None:
        """Called instead of `on_epoch_end`, with the numbers of several epochs and the figures of each."""
        for i, epoch in enumerate(epochs):
            self.on_epoch_end(model, epoch, {name: values[i] for name, values in logs.items()})

    def used(self) -> AbstractContextManager[None]:
        """Called by `fit`, and open until its end, also by an error; raise RuntimeError to refuse a second training."""
        return nullcontext()


class LambdaCallback(Callback):
    """Functions as a callback: each is called as the method of its name in `Callback` is, the model first.

    every_steps    of `on_step_end`; 1 if that is given
    reads_weights  False: the functions read weights and states by methods of the model alone

    >>> losses = []
    >>> callback = LambdaCallback(on_epoch_end=lambda model, epoch, logs: losses.append(logs["loss"]))
    >>> callback.every_steps, callback.reads_weights
    (None, True)
    """

    def __init__(
        self,
        on_epoch_begin: Callable[[Any, int], object] | None = None,
        on_epoch_end: Callable[[Any, int, Mapping[str, float]], object] | None = None,
        on_train_begin: Callable[[Any], object] | None = None,
        on_train_end: Callable[[Any], object] | None = None,
        on_step_end: Callable[[Any, int, Mapping[str, float]], object] | None = None,
        on_interrupt: Callable[[Any], object] | None = None,
        *,
        every_steps: int | None = None,
        reads_weights: bool = True,
    ) -> None:
        functions = {
            "on_epoch_begin": on_epoch_begin, "on_epoch_end": on_epoch_end, "on_train_begin": on_train_begin,
            "on_train_end": on_train_end, "on_step_end": on_step_end, "on_interrupt": on_interrupt,
        }  # fmt: skip
        for name, function in functions.items():
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name} must be a function; got {describe(function)}")
            _check_arguments(name, function)
            setattr(self, name, function)
        if every_steps is not None:
            check_count("every_steps", every_steps)
            if on_step_end is None:
                raise ValueError(f"every_steps is for on_step_end, which must be given; got every_steps={every_steps}")
        self.every_steps = 1 if every_steps is None and on_step_end is not None else every_steps
        self.reads_weights = check_flag("reads_weights", reads_weights)


ARGUMENTS = {"on_epoch_begin": ("epoch",), "on_epoch_end": ("epoch", "logs"), "on_step_end": ("step", "logs")}


def _check_arguments(name: str, function: Callable[..., object]) -> None:
    """TypeError, before anything is trained, for a function that takes other arguments, such as Keras's."""
    expected = ("model", *ARGUMENTS.get(name, ()))
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C do not tell
        return
    try:
        signature.bind(*expected)
    except TypeError:
        raise TypeError(f"{name} must take ({', '.join(expected)}); got a function of {signature}") from None

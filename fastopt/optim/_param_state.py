"""One array that an optimizer updates, with its states; and a group of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._dlpack import speaks_dlpack
from .._validation import describe
from ..kernels.formulas import OPTIMIZERS, dropout_stream
from ..kernels.reference.bits16 import widened
from ..kernels.spec import MASTER, SAME, STOCHASTIC, ArrayUpdate
from ._hyperparameters import as_plain, rate
from ._parameters import Parameter

Hyper = dict[str, Any]
COPY = "master"  # the name of the master copy among the states


class Slot:
    """One parameter array with its states and its number of steps."""

    __slots__ = ("form", "named", "number", "numbers", "parameter", "path", "shape", "states", "states_as_given")

    def __init__(
        self, path: str, parameter: Parameter, foreign: bool, number: int, numbers: np.ndarray, master: bool
    ) -> None:
        self.path = path
        self.parameter = parameter
        self.form = SAME if not parameter.sixteen else MASTER if master else STOCHASTIC
        # Gradients of this shape, contiguous and with memory of their own, need no further check; others take
        # `Optimizer._check`, as all do where the parameter is turned or not NumPy's.
        quick = parameter.direct and parameter.lender is None and not foreign
        self.shape = parameter.array.shape if quick else None
        self.named: dict[str, np.ndarray] = {}
        self.states: tuple[np.ndarray, ...] = ()  # for kernels, in the order of the rule's row
        self.states_as_given: tuple[np.ndarray, ...] = ()  # the same in the shape of the array; no copies
        self.number = number  # of all arrays of the optimizer
        self.numbers = numbers  # (2,) int64, the optimizer's memory: `steps` and `origin`

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.numbers[0])

    @property
    def origin(self) -> int:
        """The step after which the rule's states were made: see `use`."""
        return int(self.numbers[1])

    @property
    def given(self) -> Any:
        """The array that the optimizer was given, or a view of all of it."""
        return self.parameter.given

    def follow(self, other: Slot) -> None:
        """Takes the states and numbers of a slot of the same array, in whose place it comes."""
        self.numbers[:] = other.numbers
        self.named = other.named

    def stream(self, seed: int) -> int:
        """Of the random numbers that the array is rounded by."""
        return dropout_stream(seed, self.number) if self.form == STOCHASTIC else 0

    def planned(self, rule: str, group: int, seed: int) -> ArrayUpdate:
        p, stream = self.parameter, self.stream(seed)
        return ArrayUpdate(rule, p.work, self.states, p.expected, p.array.size, self.shape, group, self.form, stream)

    def use(self, rule: str, fill: float) -> None:
        """Takes the states of the rule, making those that are not there yet."""
        for name in OPTIMIZERS[rule].states:
            if name not in self.named:
                self.named[name] = self.parameter.new_state(fill)
                if rule == "momentum":  # as torch: the first buffer is the gradient, whenever momentum is turned on
                    self.numbers[1] = self.steps
        names = OPTIMIZERS[rule].states
        if self.form == MASTER:
            if COPY not in self.named:
                self.named[COPY] = self.parameter.new_copy()
            names = (*names, COPY)
        self.states = tuple(self.named[name] for name in names)
        self.states_as_given = tuple(self.parameter.outward(state) for state in self.states)

    def saved(self) -> dict[str, Any]:
        """Copies of the states in the array's own shape; without a momentum buffer that no step has filled yet."""
        unused = "momentum_buffer" if 0 < self.origin == self.steps else None
        states = {name: s for name, s in self.named.items() if name != unused}
        return {"step": self.steps, **{name: self._copy(state) for name, state in states.items()}}

    def _copy(self, state: Any) -> np.ndarray:
        return self.parameter.outward(state).copy(order="C")

    def _copy_into(self, kept: Any, state: np.ndarray) -> None:
        kept[...] = state

    def _own(self, state: np.ndarray) -> Any:
        """A state of the slot's own memory, with these values."""
        return state.copy()

    def checked(self, saved: Any, rule: str, known: frozenset[str]) -> tuple[int, dict[str, np.ndarray]]:
        """Steps and states of an entry of a state_dict, as `restore` takes them."""
        where = f"the state of {self.parameter.name}"
        if not isinstance(saved, Mapping):
            raise TypeError(f"{where} must be a mapping; got {describe(saved)}")
        present = {name: value for name, value in saved.items() if name != "step" and value is not None}
        if COPY in present and self.form == STOCHASTIC:
            raise ValueError(f"{where} has a master copy, which is of no use with master_weights=False: take it out")
        unknown = [name for name in present if name not in known and not (name == COPY and self.form == MASTER)]
        if unknown:
            raise ValueError(f"{where} has the unknown entries {unknown}; known: {', '.join(sorted(known))}")
        # torch's SGD counts no steps: a buffer tells that there was one.
        step = np.asarray(as_plain(saved.get("step", 1 if present else 0)))  # torch's is a 0-d tensor
        if step.ndim or step.dtype.kind not in "iuf":
            raise TypeError(f"the step of {where} must be a number; got {describe(saved['step'])}")
        if not (0 <= step < 2**63 and float(step).is_integer()):
            raise ValueError(f"the step of {where} must be a whole number of at least 0; got {step}")
        lacking = [name for name in OPTIMIZERS[rule].states if name not in present]
        if step and lacking and rule != "momentum":  # a first buffer may still be to come
            raise ValueError(f"{where} lacks {', '.join(lacking)}, which the rule {rule!r} has after {int(step)} steps")
        states = {}
        for name, value in present.items():
            array = value if speaks_dlpack(value) else np.asarray(value)
            states[name] = self._state(f"{name} of {where}", array)
        return int(step), states

    def _state(self, name: str, value: Any) -> np.ndarray:
        p = self.parameter
        array = p.check_like(name, value, state=True)
        if p.sixteen and array.dtype.itemsize == 2:  # as torch keeps them
            return widened(p.inward(array))
        return p.inward(array, p.real)

    def restore(self, steps: int, states: dict[str, np.ndarray]) -> None:
        """Copies the states into the present ones where there are any (others may hold them); drops the rest."""
        self.numbers[:] = steps, 0
        kept = {name: self.named.get(name, state) for name, state in states.items()}
        for name, state in states.items():
            if kept[name] is state:
                kept[name] = self._own(state)
            else:
                self._copy_into(kept[name], state)
        self.named = kept


class Group:
    """Arrays that share hyper-parameters. `public` is the dictionary that users read and change."""

    def __init__(self, public: Hyper, slots: list[Slot], decoupled: bool) -> None:
        self.public = public
        self.slots = slots
        self.decoupled = decoupled  # of rules that take weight decay in both ways
        self.values: tuple[Any, ...] = ()  # the hyper-parameters that `rule` and `options` were made from
        self.rule = ""
        self.options: dict[str, Any] = {}  # of the rule; lr may be a schedule
        self.scheduled = False
        self.clip_each: float | None = None

    def take(self, rule: str, hyper: Hyper) -> None:
        """Takes over checked hyper-parameters, and gives the arrays the states that they need now."""
        self.public.update(hyper)
        named = {**hyper, "decoupled": self.decoupled}
        if "betas" in named:
            named["beta1"], named["beta2"] = named.pop("betas")
        self.options = {name: named[name] for name in OPTIMIZERS[rule].options}
        self.scheduled = callable(hyper["lr"])
        self.clip_each = hyper["clip_each"]
        self.rule = rule
        self.values = tuple(hyper.values())
        for slot in self.slots:
            slot.use(rule, hyper.get("initial_accumulator_value", 0.0))

    def at(self, step: int) -> dict[str, Any]:
        """The options for a step, counted from 0: with the learning rate that a schedule gives for it."""
        return {**self.options, "lr": rate(self.options["lr"], step)} if self.scheduled else self.options

"""One array that an optimizer updates, with its states; and a group of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._dlpack import has_dlpack
from .._validation import describe
from ..kernels.formulas import OPTIMIZERS, dropout_stream
from ..kernels.spec import BLOCKWISE_RANDOM, MASTER, SAME, STOCHASTIC, WHOLE, ArrayUpdate
from . import _coded_state
from ._bits16 import to_float32
from ._coded_state import MIN_ELEMENTS, ORDER, CodedState, SavedState
from ._hyperparameters import as_plain, rate
from ._parameters import Parameter

Hyper = dict[str, Any]
COPY = "master"  # the name of the master copy among the states


class ParamState:
    """One parameter array with its states and its number of steps."""

    __slots__ = (
        "counts", "form", "frozen", "number", "parameter", "path", "quick_shape", "rule", "states", "states_by_name",
        "storage", "user_views",
    )  # fmt: skip

    def __init__(
        self, path: str, parameter: Parameter, has_foreign: bool, number: int, counts: np.ndarray, master: bool
    ) -> None:
        self.path = path  # in the user's structure, such as "[0]['w']"
        self.parameter = parameter
        self.form = SAME if not parameter.is_16bit else MASTER if master else STOCHASTIC
        # C-contiguous NumPy gradients of this shape, with memory of their own, need no check in Python if the parameter
        # is such an array, too, and no parameter's memory belongs to another library.
        is_quick = parameter.usable_as_is and parameter.foreign is None and not has_foreign
        self.quick_shape = parameter.array.shape if is_quick else None
        self.storage = WHOLE  # of the states: codes of 8 bits if it is another
        self.rule = ""  # that the states are for
        self.states_by_name: dict[str, Any] = {}  # arrays, or CodedState
        self.states: tuple[np.ndarray, ...] = ()  # for kernels, in the order of the rule's row
        self.user_views: tuple[np.ndarray, ...] = ()  # the same memory in the shape of the array
        self.number = number  # among all arrays of the optimizer
        self.counts = counts  # (2,) int64, a view of the engine's: `steps` and `origin`
        self.frozen = False  # True: no step changes the array, and it has no states

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.counts[0])

    @property
    def origin(self) -> int:
        """The step after which the rule's states were made; see `ensure_states`."""
        return int(self.counts[1])

    @property
    def user_array(self) -> Any:
        """The array that the optimizer was given, or a view of all of it."""
        return self.parameter.user_array

    def inherit(self, other: ParamState) -> None:
        """Adopts the states and step numbers of another record of the same array."""
        self.counts[:] = other.counts
        self.states_by_name, self.frozen = other.states_by_name, other.frozen

    def random_stream(self, seed: int) -> int:
        """Random-stream id for stochastic rounding; 0 if unused."""
        is_random = self.form == STOCHASTIC or self.storage == BLOCKWISE_RANDOM
        return dropout_stream(seed, self.number) if is_random else 0

    def array_update(self, rule: str, group: int, seed: int) -> ArrayUpdate:
        """Row of a backend's plan."""
        p = self.parameter
        return ArrayUpdate(
            rule, p.kernel_view, self.states, p.gradient_dtype, p.array.size, self.quick_shape, group, self.form,
            self.random_stream(seed), self.storage,
        )  # fmt: skip

    def ensure_states(self, rule: str, fill: float, storage: str = WHOLE) -> None:
        """Selects the states of the rule, and makes those that are missing; a frozen array has none.

        storage: of states that are large enough to be kept as codes; present ones are converted to it.
        """
        self.rule = rule
        if self.frozen:
            self.states_by_name, self.states, self.user_views, self.storage = {}, (), (), WHOLE
            return
        names = OPTIMIZERS[rule].states
        self.storage = storage if self.num_elements >= MIN_ELEMENTS and names else WHOLE
        for name in names:
            if name in self.states_by_name:
                self.states_by_name[name] = self._in_storage(name, self.states_by_name[name])
            else:
                self.states_by_name[name] = self._fresh_state(name, fill)
                if rule == "momentum":  # as torch: the first buffer is the gradient, whenever momentum is turned on
                    self.counts[1] = self.steps
        if self.form == MASTER:
            if COPY not in self.states_by_name:
                self.states_by_name[COPY] = self.parameter.new_copy()
            names = (*names, COPY)
        self.states = tuple(part for name in names for part in _parts(self.states_by_name[name]))
        views = (self._user_parts(self.states_by_name[name]) for name in names)
        self.user_views = tuple(part for parts in views for part in parts)

    @property
    def num_elements(self) -> int:
        """Elements of the array."""
        return int(self.parameter.array.size)

    def _fresh_state(self, name: str, fill: float) -> Any:
        """A state before the first step."""
        if self.storage == WHOLE:
            return self.parameter.new_state(fill)
        return self._new_coded(name, fill)

    def _new_coded(self, name: str, fill: float) -> Any:
        """A state as codes, of one number everywhere."""
        array = self.parameter.array
        return _coded_state.new_coded([array.shape[axis] for axis in self.parameter.axes], name, fill)

    def _in_storage(self, name: str, state: Any) -> Any:
        """A state as `storage` says: the same object, or a new one."""
        return state if (self.storage == WHOLE) != isinstance(state, CodedState) else self._converted(name, state)

    def _converted(self, name: str, state: Any) -> Any:
        """A whole state from codes, or codes from a whole state."""
        if self.storage == WHOLE:
            return _coded_state.decode(state, name, self.parameter.state_dtype)
        return _coded_state.encode(state, name)

    def _user_parts(self, state: Any) -> tuple[Any, ...]:
        """The arrays of a state, in the shape of the array; magnitudes are as they are."""
        first, *rest = _parts(state)
        return self.parameter.to_user_layout(first), *rest

    def to_coded_entry(self) -> dict[str, Any]:
        """`to_entry` with bitsandbytes' names."""
        whole, axes = self.to_entry(), self.parameter.axes
        entry: dict[str, Any] = {"step": whole.pop("step")}
        for k, name in enumerate(OPTIMIZERS[self.rule].states, 1):
            state = self.states_by_name[name]
            if name not in whole:
                continue
            value = whole.pop(name)
            if self.storage == WHOLE:
                entry[f"state{k}"] = value
            else:
                entry |= _coded_state.to_entry(k, name, self._magnitudes(state), value)
        if self.storage != WHOLE and axes != tuple(range(len(axes))):
            entry[ORDER] = np.array(axes)
        return entry | {name: value for name, value in whole.items() if name == COPY}

    def to_entry(self) -> dict[str, Any]:
        """Entry of a state_dict: copies in the array's own shape, without a momentum buffer that no step has filled."""
        unused = "momentum_buffer" if 0 < self.origin == self.steps else None
        states = {name: state for name, state in self.states_by_name.items() if name != unused}
        return {"step": self.steps, **{name: self._copy(state) for name, state in states.items()}}

    def _copy(self, state: Any) -> np.ndarray:
        return self.parameter.to_user_layout(_parts(state)[0]).copy(order="C")

    def _magnitudes(self, state: CodedState) -> np.ndarray:
        """A copy of the largest magnitudes of a state's blocks."""
        return state.largest.copy()

    def _copy_into(self, kept: Any, state: Any) -> None:
        for into, part in zip(_parts(kept), _parts(state), strict=True):
            into[...] = part

    def _new_state(self, state: Any) -> Any:
        """A state in memory of the optimizer's own, with these values."""
        return state.copy()

    def check_entry(self, saved: Any, rule: str, known: frozenset[str]) -> tuple[int, dict[str, np.ndarray]]:
        """Steps and states of an entry of a state_dict, for `restore`; none for a frozen array."""
        if self.frozen:
            return 0, {}
        where = f"the state of {self.parameter.name}"
        if not isinstance(saved, Mapping):
            raise TypeError(f"{where} must be a mapping; got {describe(saved)}")
        coded: dict[str, SavedState] = {}
        if _coded_state.is_coded(saved := _coded_state.unwrapped(saved)):
            coded = _coded_state.saved_states(saved, OPTIMIZERS[rule].states, where, self.num_elements)
            codes = {name: one.state for name, one in coded.items()}
            saved = {name: saved[name] for name in ("step", COPY, ORDER) if name in saved} | codes
        order = saved.pop(ORDER, None)
        present = {name: value for name, value in saved.items() if name != "step" and value is not None}
        if COPY in present and self.form == STOCHASTIC:
            raise ValueError(f"{where} has a master copy, which is of no use with master_weights=False: take it out")
        unknown = [name for name in present if name not in known and not (name == COPY and self.form == MASTER)]
        if unknown:
            raise ValueError(f"{where} has the unknown entries {unknown}; known: {', '.join(sorted(known))}")
        # torch's SGD counts no steps: a buffer shows that there was one.
        step = np.asarray(as_plain(saved.get("step", 1 if present else 0)))  # torch's is a 0-d tensor
        if step.ndim or step.dtype.kind not in "iuf":
            raise TypeError(f"the step of {where} must be a number; got {describe(saved['step'])}")
        if not (0 <= step < 2**63 and float(step).is_integer()):
            raise ValueError(f"the step of {where} must be a whole number of at least 0; got {step}")
        lacking = [name for name in OPTIMIZERS[rule].states if name not in present]
        if step and lacking and rule != "momentum":  # the next step may make the first buffer
            raise ValueError(f"{where} lacks {', '.join(lacking)}, which the rule {rule!r} has after {int(step)} steps")
        states = {}
        for name, value in present.items():
            if name in coded and coded[name].values is not None:
                states[name] = self._check_codes(f"{name} of {where}", name, coded[name], order)
                continue
            array = value if has_dlpack(value) else np.asarray(value)
            states[name] = self._check_state(f"{name} of {where}", array)
        return int(step), states

    def _check_codes(self, where: str, name: str, saved: SavedState, order: Any) -> Any:
        """A state from saved codes: CodedState if they are as here, else whole."""
        p, codes = self.parameter, saved.state
        if codes.shape != p.array.shape:
            raise ValueError(f"{where} must have the shape {p.array.shape} of {p.name}; got {codes.shape}")
        axes = tuple(range(codes.ndim)) if order is None else tuple(int(axis) for axis in np.asarray(order))
        if sorted(axes) != list(range(codes.ndim)):
            raise ValueError(f"{ORDER} of {where} must be an order of its {codes.ndim} axes; got {axes}")
        state = _coded_state.loaded(saved, codes.transpose(axes), name)
        if isinstance(state, CodedState) and axes == p.axes:
            return state
        numbers = state if isinstance(state, np.ndarray) else _coded_state.decode(state, name, p.state_dtype)
        numbers = numbers.transpose([axes.index(axis) for axis in range(codes.ndim)])
        return p.to_kernel_layout(numbers, p.state_dtype)

    def _check_state(self, name: str, value: Any) -> np.ndarray:
        p = self.parameter
        array = p.check_like(name, value, state=True)
        if p.is_16bit and array.dtype.itemsize == 2:  # as torch keeps them
            return to_float32(p.to_kernel_layout(array))
        return p.to_kernel_layout(array, p.state_dtype)

    def restore(self, steps: int, states: dict[str, Any]) -> None:
        """Copies the states into the present ones if there are any (others may hold them); drops the rest."""
        self.counts[:] = steps, 0
        kept = {name: self.states_by_name.get(name, state) for name, state in states.items()}
        fits = {name: isinstance(old, CodedState) == isinstance(states[name], CodedState) for name, old in kept.items()}
        kept = {name: old if fits[name] else states[name] for name, old in kept.items()}
        for name, state in states.items():
            if kept[name] is state:
                kept[name] = self._new_state(state)
            else:
                self._copy_into(kept[name], state)
        self.states_by_name = kept


def _parts(state: Any) -> tuple[Any, ...]:
    """The arrays of a state."""
    return tuple(state) if isinstance(state, CodedState) else (state,)


class ParamGroup:
    """Arrays that share hyper-parameters; `user_options` is the entry of `param_groups` that users read and change."""

    def __init__(
        self, user_options: Hyper, param_states: list[ParamState], decoupled: bool, rounding: str = "nearest"
    ) -> None:
        self.user_options, self.rounding = user_options, rounding
        self.param_states = param_states
        self.decoupled = decoupled  # for rules with weight decay of both kinds
        self.values: tuple[Any, ...] = ()  # the hyper-parameters that `rule` and `options` were made from
        self.rule = ""
        self.options: dict[str, Any] = {}  # of the rule; lr may be a schedule
        self.has_schedule = False
        self.clip_each: float | None = None
        self.state_bits = 32

    def apply(self, rule: str, hyper: Hyper) -> None:
        """Adopts checked hyper-parameters, and gives the arrays the states that they need now."""
        self.user_options.update(hyper)
        named = {**hyper, "decoupled": self.decoupled}
        if "betas" in named:
            named["beta1"], named["beta2"] = named.pop("betas")
        self.options = {name: named[name] for name in OPTIMIZERS[rule].options}
        self.has_schedule = callable(hyper["lr"])
        self.clip_each, self.state_bits = hyper["clip_each"], hyper["state_bits"]
        self.rule = rule
        self.values = tuple(hyper.values())
        self.ensure_states()

    def ensure_states(self) -> None:
        """Gives every array the states that it needs now."""
        storage = _coded_state.ROUNDINGS[self.rounding] if self.state_bits == 8 else WHOLE
        for state in self.param_states:
            state.ensure_states(self.rule, self.user_options.get("initial_accumulator_value", 0.0), storage)

    def options_at_step(self, step: int) -> dict[str, Any]:
        """The options for a step, counted from 0: with the learning rate that a schedule has for it."""
        return {**self.options, "lr": rate(self.options["lr"], step)} if self.has_schedule else self.options

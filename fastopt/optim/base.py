"""Base class of all optimizers: groups of parameters, states, the step, and state_dict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from .. import _backends
from .._exclusive import add_step_lock
from .._validation import check_count, check_flag, check_in_domain, check_name, describe
from ..kernels.formulas import BOUND
from ..kernels.spec import STOCHASTIC
from ._coded_state import FOREIGN_HYPER, ROUNDINGS
from ._engine import Leaves, UpdateEngine
from ._engine_cpu import CpuEngine
from ._engine_cuda import CudaEngine
from ._engine_cuda_graphs import CapturableEngine, check_counted
from ._epoch_steps import EpochSteps
from ._hyperparameters import COMMON, SCHEDULERS, TORCH_ONLY, as_plain, check_clipping, common
from ._param_names import KEY, in_order, names_of
from ._param_state import Hyper, ParamGroup
from ._tree import Template, flatten, match


class Optimizer(EpochSteps):
    """Base of the optimizers: updates arrays in place, one backend call a step."""

    _states: ClassVar[frozenset[str]]  # the names of all states that a rule of this class may have
    _decoupled: ClassVar[bool | None] = None  # `decoupled_weight_decay` of torch's state_dict: AdamW, not Adam
    _engine: UpdateEngine
    _step_lock: Any  # held by a thread during a step, and while states are read or replaced

    def __init__(self, params: Any, backend: str, hyper: Hyper, **settings: Any) -> None:
        self.backend = _backends.known(backend)
        add_step_lock(self)
        super().__init__(hyper, **settings)
        if self._capturable and self.backend != _backends.DEVICE:
            raise ValueError(f"capturable=True is for GPUs: the backend must be 'cuda'; got {backend!r}")
        self._set_groups([], [(self.defaults, [])])
        if params is not None:
            self._attach(params)

    # -- parameters and states

    def _attach(self, params: Any, frozen: Sequence[bool] = ()) -> None:
        """Checks and adopts all arrays, or none."""
        tree = list(params) if isinstance(params, Iterator) else params
        grouped = isinstance(tree, list | tuple) and any(isinstance(g, Mapping) and "params" in g for g in tree)
        if grouped and not all(isinstance(g, Mapping) and "params" in g for g in tree):
            raise ValueError("where one entry of params is a group, all must be: mappings with the key 'params'")
        leaves: Leaves = []
        templates, groups = [], []
        for i, entry in enumerate(tree if grouped else [{"params": tree}]):
            first = len(leaves)
            templates.append(flatten(entry["params"], f"[{i}]" if grouped else "", leaves))
            own = {name: value for name, value in entry.items() if name != "params"}
            groups.append((self._checked({**self.defaults, **own}), leaves[first:]))
        if not leaves:
            raise ValueError("params holds no array")
        self._set_groups(templates if grouped else templates[0], groups, grouped, frozen=frozen)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Adds arrays with hyper-parameters of their own: `{"params": ..., "lr": 1e-4}`, as torch's.

        Hyper-parameters that the group does not name are those given to the constructor. The new arrays start afresh,
        the others keep states and steps. From now on `step` takes one entry of gradients a group, even if there were no
        groups before.

        Raises:
            TypeError, ValueError: as from the constructor, also for arrays that share memory with those it has. All is
                checked before anything changes.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> w, b, more = np.zeros(2), np.zeros(1), np.zeros(1)
            >>> opt = fo.SGD([w, b], lr=0.5, backend="numpy")
            >>> opt.add_param_group({"params": more, "lr": 2.0})
            >>> opt.step([[np.ones(2), None], np.ones(1)]), w.tolist(), more.tolist()
            (True, [-0.5, -0.5], [-2.0])
        """
        with self._step_lock:
            self._add(group)

    def _add(self, group: Mapping[str, Any]) -> None:
        if not self._param_states:
            raise ValueError(f"this {type(self).__name__} has no arrays yet: give it params, or call bind")
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"a group must be a mapping with the key 'params'; got {describe(group)}")
        before = self._refreshed_groups()
        for _, foreign in self._engine.foreign_arrays:
            foreign.check_unmoved()
        leaves = [(s.path if self._grouped else f"[0]{s.path}", s.user_array) for s in self._param_states]
        template = flatten(group["params"], f"[{len(before)}]", leaves)
        if len(leaves) == len(self._param_states):
            raise ValueError("params of the group holds no array")
        own = {name: value for name, value in group.items() if name != "params"}
        rest = iter(leaves)
        hypers = [{name: g.user_options[name] for name in self._hyper} for g in before]
        groups = [(h, [next(rest) for _ in g.param_states]) for h, g in zip(hypers, before, strict=True)]
        groups.append((self._checked({**self.defaults, **own}), list(rest)))
        templates = self._template if self._grouped and isinstance(self._template, list) else [self._template]
        self._set_groups([*templates, template], groups, True, before)

    def _set_groups(
        self,
        template: Template,
        groups: list[tuple[Hyper, Leaves]],
        grouped: bool = False,
        before: Sequence[ParamGroup] = (),
        frozen: Sequence[bool] = (),
    ) -> None:
        """Adopts groups of checked hyper-parameters and (path, array) pairs; the first ones are those `before`.

        frozen: for each array, True if it is; (): none is.
        """
        check_clipping(self._clip_norm, [hyper for hyper, _ in groups], self.backend)
        rules = [self._rule(hyper) for hyper, _ in groups]
        if self._capturable:
            for rule in rules:
                check_counted(rule)
        engine_class: type[UpdateEngine] = CpuEngine
        if self.backend == _backends.DEVICE:
            engine_class = CapturableEngine if self._capturable and any(leaves for _, leaves in groups) else CudaEngine
        engine = engine_class([leaves for _, leaves in groups], self._master_weights)
        if before:  # after all checks, before the step numbers of these groups are copied
            engine.inherit(self._engine)
        if frozen:
            engine.freeze(frozen)
        made: list[ParamGroup] = []
        for i, (rule, (hyper, leaves)) in enumerate(zip(rules, groups, strict=True)):
            user_options: Hyper = {"params": [array for _, array in leaves]}
            if i < len(before):
                user_options = before[i].user_options
                for state, old in zip(engine.groups[i], before[i].param_states, strict=True):
                    state.inherit(old)
                    engine.has_frozen |= old.frozen
            group = ParamGroup(user_options, engine.groups[i], self._convention.decoupled, self._state_rounding)
            made.append(group)
            made[-1].apply(rule, hyper)
        self._groups, self._engine, self._param_states = made, engine, engine.param_states
        self._template, self._grouped, self._step_record = template, grouped, None
        self._is_flat = template == list(range(len(self._param_states)))
        self._names = [names_of(of_group) for of_group in (template if grouped else [template])]  # type: ignore[union-attr]
        self.param_groups = [group.user_options for group in made]

    def bind(self, params: Sequence[Any], frozen: Sequence[bool] = ()) -> None:
        """Adopts the arrays to update and makes their states; for an optimizer that was made without arrays.

        frozen: for each of a flat list of arrays, True if no step is to change it; (): none is.
        """
        if self.bound:
            raise ValueError(f"this {type(self).__name__} already has its arrays; make another one")
        self._refreshed_groups()  # applies what was set in the meantime
        self.defaults = {name: self.param_groups[0][name] for name in self._hyper}
        self._attach(params, frozen)

    @property
    def bound(self) -> bool:
        """True if the optimizer has its arrays."""
        return bool(self._param_states)

    @property
    def states(self) -> list[tuple[np.ndarray, ...]]:
        """The states of every array in the order of the rule's row, and after them its master copy, if it has one.

        They are the optimizer's own memory, not copies. Frozen arrays have none.
        """
        self._refreshed_groups()
        return [state.user_views for state in self._param_states]

    # -- the step

    def step(self, grads: Any, grad_scale: Any = None, found_inf: Any = None, skip_nonfinite: bool = False) -> bool:
        """Updates every array in place from its gradient.

        Args:
            grads: gradients in the structure of `params`, each an array of its parameter's shape and dtype, in any
                layout: NumPy's, or one with `__dlpack__` on the CPU, whatever the parameter is. None skips an array,
                or a whole branch. With groups: a sequence with one entry a group. Gradients are not changed.
                The tuple (indices, values) is the gradient of some rows of an array of n (SGD, Lion, Adagrad,
                Adam): integers in 0 ... n - 1, of shape (k,), and an array of shape (k, *shape of a row). Other rows,
                with their states, stay as they are; see `fastopt.optim`.
            grad_scale: the factor of the loss, by which gradients are divided: a number above 0, or an array of one. A
                GradScaler's scale, as for torch's fused optimizers. Costs nothing.
            found_inf: if true (or an array of a number other than 0), the step is skipped, as in torch's.
            skip_nonfinite: look through all gradients first, and skip the step if one has inf or NaN.

        Returns:
            True if the step was done. If not, nothing has changed and no step is counted.

        Threads may share an optimizer: their steps are done one after the other.

        With `clip_norm` or `skip_nonfinite` the gradients are read once more, beforehand, and `grad_norm` becomes
        their Euclidean norm after the division by `grad_scale` and before any clipping: inf or NaN where one of them
        is. A norm is the same bits for any number of threads.

        Raises:
            TypeError: a gradient is not an array, of another dtype, or not on the CPU; rows are given to an
                optimizer that takes none.
            ValueError: another structure or shape, a row that is not there, a gradient that shares memory with a
                parameter, a parameter of another library that was moved to other memory, or a hyper-parameter out of
                its domain. All is checked before anything changes.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> w = np.zeros(2)
            >>> opt = fo.SGD(w, lr=1.0, clip_norm=1.0, backend="numpy")
            >>> opt.step(np.array([30.0, -40.0]), grad_scale=2.0), opt.grad_norm, w.round(6).tolist()
            (True, 25.0, [-0.6, 0.8])
            >>> opt.step(np.array([np.inf, 0.0]), skip_nonfinite=True), w.round(6).tolist()
            (False, [-0.6, 0.8])
            >>> table = np.zeros((4, 2))
            >>> opt = fo.SGD(table, lr=1.0, backend="numpy")
            >>> opt.step((np.array([3, 1, 3]), np.array([[1.0, 2.0], [5.0, 6.0], [10.0, 20.0]])))
            True
            >>> print(table)
            [[  0.   0.]
             [ -5.  -6.]
             [  0.   0.]
             [-11. -22.]]
        """
        if skip_nonfinite is not False:
            check_flag("skip_nonfinite", skip_nonfinite)
        if not self._param_states:
            raise ValueError(f"this {type(self).__name__} has no arrays yet: give it params, or call bind")
        gradients = self._leaves(grads)
        if self._engine.has_frozen:
            pairs = zip(self._param_states, gradients, strict=True)
            gradients = tuple(None if state.frozen else gradient for state, gradient in pairs)
        with self._step_lock:
            done = self._engine.step(self._step_settings(), gradients, grad_scale, found_inf, skip_nonfinite)
            if done:
                self._count += 1
        return done

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradients of the last step with `clip_norm` or `skip_nonfinite`; see `step`."""
        return self._engine.grad_norm

    def settle(self) -> list[int]:
        """Waits for all steps and returns the number done for each array; `steps` and `grad_norm` are then exact.

        Only arrays in a GPU's memory (`backend="cuda"`) need it: the device alone knows which steps it skipped, and the
        norm of the last one's gradients. An array without elements counts as having done all steps.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> opt = fo.SGD(np.zeros(2), lr=0.5, backend="numpy")
            >>> opt.step(np.ones(2)), opt.step(np.array([np.inf, 1.0]), skip_nonfinite=True), opt.settle()
            (True, False, [1])
        """
        self._engine.settle()
        return [state.steps for state in self._param_states]

    def _drop_plan(self) -> None:
        self._engine.drop_plan()

    def _leaves(self, grads: Any) -> tuple[Any, ...]:
        """The gradients, or None, in the order of the arrays; `grads` has the structure of the parameters."""
        if self._template == 0:  # one array, and not a sequence of one
            return (grads,)
        if self._is_flat and isinstance(grads, list | tuple) and len(grads) == len(self._param_states):
            return tuple(grads)
        out: list[Any] = [None] * len(self._param_states)
        match(self._template, grads, "grads", out)
        return tuple(out)

    # -- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue later, in torch's layout; the arrays are copies.

        `{"state": {index: {"step": int, state name: array, ...}}, "param_groups": [{..., "params": [indices]}]}`, with
        the arrays numbered in the order of the groups, and states in the shape of their array; frozen arrays have no
        states. Groups whose arrays were given in mappings have "param_names", too: their keys, with points between
        those of nested ones. The torch optimizer of the same name loads it (in torch's convention) when its arrays,
        which are NumPy's, have become tensors.
        """
        with self._step_lock:
            return self._saved()

    def _saved(self) -> dict[str, Any]:
        self.settle()
        groups, numbers = [], iter(range(len(self._param_states)))
        shared = {"clip_norm": self._clip_norm, "convention": self.convention, "lr_step": self._count}
        stochastic = self._state_rounding != "nearest"
        if stochastic or any(state.form == STOCHASTIC for state in self._param_states):
            shared["seed"] = self._seed
        if stochastic:
            shared["state_rounding"] = self._state_rounding
        refreshed = self._refreshed_groups()
        # our older versions, and torch's optimizers, know no bits
        coded = any(options["state_bits"] == 8 for options in (self.defaults, *self.param_groups))
        for group, names in zip(refreshed, self._names, strict=True):
            hyper = {name: group.user_options[name] for name in self._hyper if coded or name != "state_bits"} | shared
            if self._decoupled is not None:
                hyper["decoupled_weight_decay"] = self._decoupled
            if names is not None:
                hyper[KEY] = list(names)
            groups.append({**hyper, "params": [next(numbers) for _ in group.param_states]})
        states = [(state, group) for group in self._groups for state in group.param_states]
        of_groups = {
            i: (state.to_coded_entry() if group.state_bits == 8 else state.to_entry(), group)
            for i, (state, group) in enumerate(states)
            if not state.frozen
        }
        for entry, group in of_groups.values():
            derived = {name: value(entry["step"], group.user_options) for name, value in self._derived.items()}
            entry |= {name: np.array(number) for name, number in derived.items()}
        return {"state": {i: entry for i, (entry, _) in of_groups.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copies hyper-parameters, steps and states from a `state_dict`; the parameters are not changed.

        If arrays have names here and in the state_dict ("param_names", which torch's has after `named_parameters()`),
        each gets the states of its name, and a group the hyper-parameters of the group with the same names, in whatever
        order they are; else positions decide.

        A state_dict of the torch optimizer of the same name is read too. States are arrays on the CPU: NumPy's, others
        with `__dlpack__` such as tensors, or lists; those of a 16-bit array may have its dtype, as torch's do. An array
        without an entry starts afresh, and a missing master copy is made from its array; options that torch does not
        have get their defaults. Numbers may be tensors of one. Entries that torch's schedulers keep in groups, such as
        "initial_lr", are ignored: the learning rate is the one that they have set.

        Raises:
            TypeError, ValueError: not a state_dict, or not one of this optimizer's: other hyper-parameters, groups,
                names, states, shapes or dtypes. All is checked before anything changes.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> a, b = np.zeros(2), np.ones(2)
            >>> opt = fo.Adam({"a": a, "b": b}, backend="numpy")
            >>> opt.step({"a": np.ones(2), "b": np.zeros(2)})
            True
            >>> other = fo.Adam({"b": b, "a": a}, backend="numpy")
            >>> other.load_state_dict(opt.state_dict())
            >>> [state["exp_avg"].round(6).tolist() for state in other.state_dict()["state"].values()]
            [[0.0, 0.0], [0.1, 0.1]]
        """
        if not isinstance(state_dict, Mapping) or not all(
            isinstance(state_dict.get(key), kind) for key, kind in (("state", Mapping), ("param_groups", Sequence))
        ):
            raise TypeError("a state_dict must be a mapping with a mapping 'state' and a sequence 'param_groups'")
        state, groups = state_dict["state"], state_dict["param_groups"]
        if not all(isinstance(group, Mapping) and isinstance(group.get("params"), Sequence) for group in groups):
            raise TypeError("every group of a state_dict must be a mapping with a sequence 'params'")
        groups = in_order(groups, self._names)
        if [len(group["params"]) for group in groups] != [len(group.param_states) for group in self._groups]:
            raise ValueError(
                f"the state_dict has groups of {[len(group['params']) for group in groups]} arrays,"
                f" this optimizer of {[len(group.param_states) for group in self._groups]}"
            )
        convention = common(groups, "convention", self._default_convention())
        if convention != self.convention:
            raise ValueError(
                f"the state_dict is one of the convention {convention!r}, this {type(self).__name__} is of"
                f" {self.convention!r}: states and hyper-parameters do not mean the same in both"
            )
        present = [group.user_options for group in self._groups]
        hypers = [self._loaded_hyper(group, own) for group, own in zip(groups, present, strict=True)]
        clip_norm = check_in_domain("clip_norm", common(groups, "clip_norm", None), BOUND)
        check_clipping(clip_norm, hypers, self.backend)
        rules = [self._rule(hyper) for hyper in hypers]
        numbers = [number for group in groups for number in group["params"]]
        unknown = [number for number in state if number not in numbers]
        if unknown:
            raise ValueError(f"the state_dict has states of arrays that are in none of its groups: {unknown}")
        of_groups = zip(rules, hypers, groups, strict=True)
        required = [(rule, hyper) for rule, hyper, group in of_groups for _ in group["params"]]
        loaded = [
            param_state.check_entry(self._without_derived(state.get(number, {}), hyper), rule, self._states)
            for param_state, number, (rule, hyper) in zip(self._param_states, numbers, required, strict=True)
        ]
        seed = check_count("seed", common(groups, "seed", self._seed), least=0)
        rounding = check_name("state_rounding", common(groups, "state_rounding", self._state_rounding), ROUNDINGS)
        latest = max((steps for steps, _ in loaded), default=0)
        count = check_count("lr_step", common(groups, "lr_step", latest), least=0)
        with self._step_lock:
            self._count, self._clip_norm, self._seed, self._step_record = count, clip_norm, seed, None
            self._state_rounding = rounding
            self._drop_plan()
            for param_state, (steps, states) in zip(self._param_states, loaded, strict=True):
                param_state.restore(steps, states)
            for group, rule, hyper in zip(self._groups, rules, hypers, strict=True):
                group.rounding = rounding
                group.apply(rule, hyper)

    def _without_derived(self, entry: Any, hyper: Hyper) -> Any:
        """The entry of an array without the numbers that follow from its steps; ValueError if they do not."""
        if not isinstance(entry, Mapping) or not self._derived:
            return entry
        for name, value in self._derived.items():
            expected = value(int(as_plain(entry.get("step", 0))), hyper)
            if name in entry and not math.isclose(float(as_plain(entry[name])), expected, rel_tol=1e-3, abs_tol=1e-6):
                raise ValueError(
                    f"{name} of the state_dict must be {expected:g}, as these hyper-parameters make it in each step;"
                    f" got {as_plain(entry[name]):g}: they have changed between steps"
                )
        return {k: v for k, v in entry.items() if k not in self._derived}

    def _loaded_hyper(self, group: Mapping[str, Any], present: Hyper) -> Hyper:
        """The hyper-parameters of a group of a state_dict; bits of states that it does not name are the present ones.

        A group of bitsandbytes has those that its optimizers have; the others are the present ones, too.
        """
        if "t_alpha" in group:
            own = {name: value for name, value in present.items() if name != "params"}
            group = {**own, **{name: value for name, value in group.items() if name not in FOREIGN_HYPER}}
        decoupled = group.get("decoupled_weight_decay", self._decoupled)
        if "decoupled_weight_decay" not in self._hyper and decoupled != self._decoupled:
            raise ValueError(f"the state_dict has decoupled_weight_decay={decoupled}, unlike {type(self).__name__}")
        optional = {name: value for name, value in self._optional_defaults.items() if name in self._hyper}
        optional["state_bits"] = present["state_bits"]
        others = {"params", *COMMON, *TORCH_ONLY, *SCHEDULERS}.difference(self._hyper)
        return self._checked({k: as_plain(v) for k, v in {**optional, **group}.items() if k not in others})

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and copy, without views of the arrays: copies of views would have memory of their own."""
        return {
            "defaults": self.defaults,
            "backend": self.backend,
            "convention": self.convention,
            "sixteen": (self._master_weights, self._seed),
            "state_rounding": self._state_rounding,
            "capturable": self._capturable,
            "template": self._template,
            "grouped": self._grouped,
            "paths": [state.path for state in self._param_states],
            "arrays": [group["params"] for group in self.param_groups],
            "saved": self.state_dict(),
            "grad_norm": self.grad_norm,
            "frozen": [state.frozen for state in self._param_states],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the optimizer from pickle or copy, over the same arrays; read-only ones are replaced by copies.

        Out-of-band buffers of a pickle, and joblib's memory maps, may be read-only.
        """
        self.defaults, self.backend = {**state["defaults"]}, state["backend"]
        self.defaults.setdefault("state_bits", 32)  # pickles of older versions
        add_step_lock(self)
        self._convention = self._conventions[state["convention"]]
        self._master_weights, self._seed = state["sixteen"]
        self._state_rounding = state.get("state_rounding", "nearest")
        self._capturable = state.get("capturable", False)
        self._clip_norm = None
        self._values = itemgetter(*self._hyper)
        self._count = 0
        paths = iter(state["paths"])
        groups = [(self.defaults, [(next(paths), _writable(array)) for array in arrays]) for arrays in state["arrays"]]
        self._set_groups(state["template"], groups, state["grouped"], frozen=state.get("frozen", ()))
        self.load_state_dict(state["saved"])
        self._engine.grad_norm = state.get("grad_norm")

    def move(self, arrays: Sequence[Any]) -> None:
        """Replaces the arrays by others of the same shapes and dtypes, and keeps states and steps."""
        state, rest = self.__getstate__(), iter(arrays)
        self.__setstate__({**state, "arrays": [[next(rest) for _ in group] for group in state["arrays"]]})


def _writable(array: Any) -> Any:
    return array.copy("K") if isinstance(array, np.ndarray) and not array.flags.writeable else array

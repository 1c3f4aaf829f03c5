"""What all optimizers share: groups of parameters, checked hyper-parameters, states, the step, and its state_dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from .. import _backends, conventions
from .._exclusive import give_turn
from .._validation import check_count, check_flag, check_in_domain, describe
from ..kernels.formulas import BOUND
from ..kernels.spec import STOCHASTIC, OptimizerSteps
from ._engine import Leaves, Place
from ._engine_cpu import OnHost
from ._engine_cuda import OnDevice
from ._engine_cuda_graphs import Counting
from ._hyperparameters import COMMON, SCHEDULERS, TORCH_ONLY, as_plain, check_clipping, common, rate
from ._param_names import KEY, in_order, names_of
from ._param_state import Group, Hyper
from ._settings import Settings
from ._tree import Template, flatten, match


class Optimizer(Settings):
    """Base of the optimizers: updates arrays in place, one backend call a step."""

    _states: ClassVar[frozenset[str]]  # the names of all states that a rule of this class may have
    _decoupled: ClassVar[bool | None] = None  # what torch's state_dict tells Adam from AdamW by
    _place: Place
    _turn: Any  # a lock: steps of threads come one after the other, and no states are read in the midst of one

    def __init__(self, params: Any, backend: str, hyper: Hyper, **settings: Any) -> None:
        self.backend = _backends.known(backend)
        give_turn(self)
        super().__init__(hyper, **settings)
        if self._capturable and self.backend != _backends.DEVICE:
            raise ValueError(f"capturable=True is for GPUs: the backend must be 'cuda'; got {backend!r}")
        self._take([], [(self.defaults, [])])
        if params is not None:
            self._attach(params)

    # -- parameters and states

    def _attach(self, params: Any) -> None:
        """Checks and takes all arrays, or none."""
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
        self._take(templates if grouped else templates[0], groups, grouped)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Takes more arrays, with hyper-parameters of their own: `{"params": ..., "lr": 1e-4}`, as torch's.

        What the group does not name is as given to the constructor. The arrays start afresh, the others keep states and
        steps. From now on `step` takes one entry of gradients a group, also where there were no groups before.

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
        with self._turn:
            self._add(group)

    def _add(self, group: Mapping[str, Any]) -> None:
        if not self._slots:
            raise ValueError(f"this {type(self).__name__} has no arrays yet: give it params, or call bind")
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"a group must be a mapping with the key 'params'; got {describe(group)}")
        before = self._refreshed_groups()
        for _, lender in self._place.lenders:
            lender.check_place()
        leaves = [(slot.path if self._grouped else f"[0]{slot.path}", slot.given) for slot in self._slots]
        template = flatten(group["params"], f"[{len(before)}]", leaves)
        if len(leaves) == len(self._slots):
            raise ValueError("params of the group holds no array")
        own = {name: value for name, value in group.items() if name != "params"}
        rest = iter(leaves)
        groups = [({name: g.public[name] for name in self._hyper}, [next(rest) for _ in g.slots]) for g in before]
        groups.append((self._checked({**self.defaults, **own}), list(rest)))
        there = self._template if self._grouped and isinstance(self._template, list) else [self._template]
        self._take([*there, template], groups, True, before)

    def _take(
        self,
        template: Template,
        groups: list[tuple[Hyper, Leaves]],
        grouped: bool = False,
        before: Sequence[Group] = (),
    ) -> None:
        """The groups, each of checked hyper-parameters and (path, array) pairs; the first ones are those `before`."""
        check_clipping(self._clip_norm, [hyper for hyper, _ in groups], self.backend)
        rules = [self._rule(hyper) for hyper, _ in groups]
        where: type[Place] = OnHost
        if self.backend == _backends.DEVICE:
            where = Counting if self._capturable and any(leaves for _, leaves in groups) else OnDevice
        place = where([leaves for _, leaves in groups], self._master_weights)
        if before:  # after all checks, before the numbers of these groups are taken over
            place.replace(self._place)
        made: list[Group] = []
        for rule, (hyper, leaves), slots in zip(rules, groups, place.groups, strict=True):
            public: Hyper = {"params": [array for _, array in leaves]}
            if len(made) < len(before):
                old = before[len(made)]
                public = old.public
                for slot, same in zip(slots, old.slots, strict=True):
                    slot.follow(same)
            made.append(Group(public, slots, self._convention.decoupled))
            made[-1].take(rule, hyper)
        self._groups, self._place, self._slots = made, place, place.slots
        self._template, self._grouped = template, grouped
        self._flat = template == list(range(len(self._slots)))
        self._names = [names_of(of_group) for of_group in (template if grouped else [template])]  # type: ignore[union-attr]
        self.param_groups = [group.public for group in made]

    def bind(self, params: Sequence[Any]) -> None:
        """Takes the arrays to update, and makes their states, where the optimizer was made without arrays."""
        if self.bound:
            raise ValueError(f"this {type(self).__name__} already has its arrays; make another one")
        self._refreshed_groups()  # takes over what was set in the meantime
        self.defaults = {name: self.param_groups[0][name] for name in self._hyper}
        self._attach(params)

    @property
    def bound(self) -> bool:
        """Whether the optimizer has its arrays."""
        return bool(self._slots)

    @property
    def states(self) -> list[tuple[np.ndarray, ...]]:
        """The states of every array, in the order of the rule's row, and behind them its master copy, if it has one.

        The optimizer's own memory, not copies.
        """
        self._refreshed_groups()
        return [slot.states_as_given for slot in self._slots]

    @property
    def steps(self) -> int:
        """Steps done (by the first array)."""
        return self._slots[0].steps if self._slots else 0

    def next_steps(self, n: int) -> OptimizerSteps:
        """Record of all that a compiled epoch of `n` steps needs: rule, states, options, rates (of the first group)."""
        group = self._refreshed_groups()[0]
        lr, count = group.options["lr"], self._count
        rates = np.array([rate(lr, count + i) for i in range(n)]) if callable(lr) else np.full(n, lr)
        states = [slot.states_as_given for slot in group.slots]
        return OptimizerSteps(group.rule, states, group.options, rates, self.steps, self._clip_norm)

    def advance(self, n: int) -> None:
        """Counts `n` steps that a compiled epoch did on the arrays and states."""
        self._place.advance(n)
        self._count += n

    # -- the step

    def step(self, grads: Any, grad_scale: Any = None, found_inf: Any = None, skip_nonfinite: bool = False) -> bool:
        """Updates every array in place from its gradient.

        Args:
            grads: gradients in the structure of `params`, each an array of its parameter's shape and dtype, in any
                layout: NumPy's, or one that speaks `__dlpack__` on the CPU, whatever the parameter is. None skips an
                array, or a whole branch. With groups: a sequence with one entry a group. Gradients are not changed.
                The tuple (indices, values) is the gradient of some rows of an array of n (SGD, Adagrad, Adam):
                integers in 0 ... n - 1, of shape (k,), and an array of shape (k, *shape of a row). Other rows, with
                their states, stay as they are; see `fastopt.optim`.
            grad_scale: what the loss was multiplied by, and so the gradients are divided by: a number above 0, or an
                array of one. As in torch's fused optimizers, which take a GradScaler's scale. Costs nothing.
            found_inf: if true (or an array of a number other than 0), nothing is done, as in torch's.
            skip_nonfinite: look through all gradients first, and do nothing if there is inf or NaN in one.

        Returns:
            Whether the step was done. If not, nothing has changed and no step is counted.

        Threads may share an optimizer: their steps are done one after the other.

        With `clip_norm` or `skip_nonfinite` the gradients are read once more, beforehand, and `grad_norm` becomes
        their Euclidean norm after the division by `grad_scale` and before any clipping: inf or NaN where one of them
        is. A norm is the same bits for any number of threads.

        Raises:
            TypeError: a gradient is not an array, of another dtype, or not on the CPU; rows are given to AdamW or
                RMSprop.
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
        check_flag("skip_nonfinite", skip_nonfinite)
        if not self._slots:
            raise ValueError(f"this {type(self).__name__} has no arrays yet: give it params, or call bind")
        leaves = tuple(self._leaves(grads))
        with self._turn:
            done = self._place.step(self, leaves, grad_scale, found_inf, skip_nonfinite)
            if done:
                self._count += 1
        return done

    @property
    def grad_norm(self) -> float | None:
        """The norm of the gradients of the last step that was clipped by it, or looked for inf and NaN; see `step`."""
        return self._place.grad_norm

    def settle(self) -> list[int]:
        """The steps done, for each array; what `steps` and `grad_norm` say is then exact.

        For arrays in a GPU's memory (`backend="cuda"`) this waits for all steps that were given, because only the
        device knows which of them it skipped, and the norm of the last one's gradients. Otherwise all is known anyway.
        An array without elements is said to have done all steps.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> opt = fo.SGD(np.zeros(2), lr=0.5, backend="numpy")
            >>> opt.step(np.ones(2)), opt.step(np.array([np.inf, 1.0]), skip_nonfinite=True), opt.settle()
            (True, False, [1])
        """
        self._place.settle()
        return [slot.steps for slot in self._slots]

    def _drop_plan(self) -> None:
        self._place.drop_plan()

    def _leaves(self, grads: Any) -> list[Any] | tuple[Any, ...]:
        if self._flat and isinstance(grads, list | tuple) and len(grads) == len(self._slots):
            return grads
        out: list[Any] = [None] * len(self._slots)
        match(self._template, grads, "grads", out)
        return out

    # -- saving and loading

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, in torch's layout; the arrays are copies.

        `{"state": {index: {"step": int, state name: array, ...}}, "param_groups": [{..., "params": [indices]}]}`, with
        the arrays numbered in the order of the groups, and states in the shape of their array. Groups whose arrays were
        given in mappings have "param_names", too: their keys, with points between those of nested ones. The torch
        optimizer of the same name loads it (in torch's convention) when its arrays, which are NumPy's, have become
        tensors.
        """
        with self._turn:
            return self._saved()

    def _saved(self) -> dict[str, Any]:
        self.settle()
        groups, numbers = [], iter(range(len(self._slots)))
        shared = {"clip_norm": self._clip_norm, "convention": self.convention, "lr_step": self._count}
        if any(slot.form == STOCHASTIC for slot in self._slots):
            shared["seed"] = self._seed
        for group, names in zip(self._refreshed_groups(), self._names, strict=True):
            hyper = {name: group.public[name] for name in self._hyper} | shared
            if self._decoupled is not None:
                hyper["decoupled_weight_decay"] = self._decoupled
            if names is not None:
                hyper[KEY] = list(names)
            groups.append({**hyper, "params": [next(numbers) for _ in group.slots]})
        return {"state": {i: slot.saved() for i, slot in enumerate(self._slots)}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`: copies hyper-parameters, steps and states; the parameters stay as they are.

        Where arrays have names here and in the state_dict ("param_names", as torch's has them after
        `named_parameters()`), each gets the states of its name, and a group the hyper-parameters of that with the same
        names, whatever their order; else positions decide.

        A state_dict of the torch optimizer of the same name is understood too. States are arrays on the CPU: NumPy's,
        what speaks `__dlpack__` such as tensors, or lists; those of a 16-bit array may be of its dtype, as torch's are.
        An array without an entry starts afresh, and a master copy that is not there is made from its array; options
        that torch does not have get their defaults. Numbers may be tensors of one; what torch's schedulers keep in
        groups for themselves, such as "initial_lr", is left out: the learning rate is the one that they have set.

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
        if [len(group["params"]) for group in groups] != [len(group.slots) for group in self._groups]:
            raise ValueError(
                f"the state_dict has groups of {[len(group['params']) for group in groups]} arrays,"
                f" this optimizer of {[len(group.slots) for group in self._groups]}"
            )
        convention = common(groups, "convention", conventions.DEFAULT)
        if convention != self.convention:
            raise ValueError(
                f"the state_dict is one of the convention {convention!r}, this {type(self).__name__} is of"
                f" {self.convention!r}: states and hyper-parameters do not mean the same in both"
            )
        hypers = [self._loaded_hyper(group) for group in groups]
        clip_norm = check_in_domain("clip_norm", common(groups, "clip_norm", None), BOUND)
        check_clipping(clip_norm, hypers, self.backend)
        rules = [self._rule(hyper) for hyper in hypers]
        numbers = [number for group in groups for number in group["params"]]
        unknown = [number for number in state if number not in numbers]
        if unknown:
            raise ValueError(f"the state_dict has states of arrays that are in none of its groups: {unknown}")
        required = [rule for rule, group in zip(rules, groups, strict=True) for _ in group["params"]]
        loaded = [
            slot.checked(state.get(number, {}), rule, self._states)
            for slot, number, rule in zip(self._slots, numbers, required, strict=True)
        ]
        seed = check_count("seed", common(groups, "seed", self._seed), least=0)
        latest = max((steps for steps, _ in loaded), default=0)
        count = check_count("lr_step", common(groups, "lr_step", latest), least=0)
        with self._turn:
            self._count, self._clip_norm, self._seed = count, clip_norm, seed
            self._drop_plan()
            for slot, (steps, states) in zip(self._slots, loaded, strict=True):
                slot.restore(steps, states)
            for group, rule, hyper in zip(self._groups, rules, hypers, strict=True):
                group.take(rule, hyper)

    def _loaded_hyper(self, group: Mapping[str, Any]) -> Hyper:
        decoupled = group.get("decoupled_weight_decay", self._decoupled)
        if decoupled != self._decoupled:
            raise ValueError(f"the state_dict has decoupled_weight_decay={decoupled}, unlike {type(self).__name__}")
        extra = {name: value for name, value in self._optional_defaults.items() if name in self._hyper}
        others = ("params", *COMMON, *TORCH_ONLY, *SCHEDULERS)
        return self._checked({k: as_plain(v) for k, v in {**extra, **group}.items() if k not in others})

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without the views of the arrays, which a copy would tear from its own arrays."""
        return {
            "defaults": self.defaults,
            "backend": self.backend,
            "convention": self.convention,
            "sixteen": (self._master_weights, self._seed),
            "capturable": self._capturable,
            "template": self._template,
            "grouped": self._grouped,
            "paths": [slot.path for slot in self._slots],
            "arrays": [group["params"] for group in self.param_groups],
            "saved": self.state_dict(),
            "grad_norm": self.grad_norm,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the optimizer from pickle or copy, over the same arrays; read-only ones are replaced by copies.

        Buffers that are handed over beside a pickle, and memory maps of joblib's, may be read-only.
        """
        self.defaults, self.backend = state["defaults"], state["backend"]
        give_turn(self)
        self._convention = self._conventions[state["convention"]]
        self._master_weights, self._seed = state["sixteen"]
        self._capturable = state.get("capturable", False)
        self._clip_norm = None
        self._values = itemgetter(*self._hyper)
        self._count = 0
        paths = iter(state["paths"])
        groups = [(self.defaults, [(next(paths), _writable(array)) for array in arrays]) for arrays in state["arrays"]]
        self._take(state["template"], groups, state["grouped"])
        self.load_state_dict(state["saved"])
        self._place.grad_norm = state.get("grad_norm")

    def move(self, arrays: Sequence[Any]) -> None:
        """Takes other arrays of the same shapes and dtypes in the place of those it has, and keeps states and steps."""
        state, rest = self.__getstate__(), iter(arrays)
        self.__setstate__({**state, "arrays": [[next(rest) for _ in some] for some in state["arrays"]]})


def _writable(array: Any) -> Any:
    return array.copy("K") if isinstance(array, np.ndarray) and not array.flags.writeable else array

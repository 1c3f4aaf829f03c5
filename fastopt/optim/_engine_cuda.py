"""Optimizers on arrays in a GPU's memory: what stands for Parameter, Memory and Slot there, and the step.

    opt = fastopt.Adam(params, backend="cuda")       arrays of Numba, CuPy or torch, C-contiguous, of all four dtypes
    opt.step(grads)                                  of any of these libraries; returns at once
    opt.settle()                                     waits; then `steps` and `grad_norm` are what they are on the host

A step works on the stream that the library of the first array works on at that moment, and nothing waits for it. So
`step` says True of every step that was given to the device, whether or not that then leaves it out; a step that it
leaves out (`found_inf` on the device, `skip_nonfinite`) is not counted by the next ones, but a schedule counts all that
were given. States are in the device's memory; `state_dict` waits, and copies them to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import _backends
from .._dlpack import is_tensor, speaks_dlpack, view_of
from .._validation import FLOAT32, describe, plain
from ..kernels.formulas import dropout_stream
from ..kernels.spec import STOCHASTIC, ArrayUpdate
from ._engine import Leaves, Place
from ._hyperparameters import check_one_number, check_scale
from ._param_state import Slot
from ._parameters import WORK, bits_of, name_of
from ._settings import Settings


def _kernels() -> Any:
    return _backends.get(_backends.DEVICE)


def _seen(name: str, value: Any) -> Any:
    """What an array in a GPU's memory says of itself; the error of one that kernels do not take as it is."""
    see = _kernels().see
    try:
        seen = see(value)
    except TypeError as error:
        raise TypeError(f"{name} must be in a GPU's memory, as the backend is 'cuda': {error}") from None
    if seen.dtype not in WORK:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16; got {seen.dtype}")
    if not seen.contiguous:
        raise ValueError(f"{name} must be C-contiguous in a GPU's memory; got strides of another order, or gaps")
    if seen.address % WORK[seen.dtype].itemsize:
        raise ValueError(f"{name} must be aligned: its address {seen.address} is no multiple of its numbers' size")
    return seen


class DeviceParameter:
    """An array that is updated in place in a GPU's memory; the counterpart of `Parameter`."""

    __slots__ = ("address", "array", "dtype", "gpu", "kind", "lender", "name", "shape", "work")

    direct = False  # gradients are checked here, not as those on the host

    def __init__(self, name: str, value: Any) -> None:
        seen = _seen(name, value)
        self.name, self.array, self.work = name, value, value
        self.kind, self.shape, self.address = seen.dtype, seen.shape, seen.address
        self.dtype = WORK[self.kind]
        self.gpu = _kernels().gpu_of({seen.address})
        self.lender = self if is_tensor(value) else None  # others cannot move their memory

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def check_place(self) -> None:
        if (self.array.data_ptr(), tuple(self.array.shape)) != (self.address, self.shape):
            raise ValueError(
                f"{self.name} is no longer where it was when the optimizer was made, as after p.data = ... or resize_:"
                " make a new optimizer, and load this one's state_dict into it"
            )

    def changed(self) -> None:
        """Tells autograd, as on the host."""
        import torch

        if not self.array.is_inference():
            torch.autograd.graph.increment_version(self.array)

    def new_state(self, fill: float) -> Any:
        return _kernels().DeviceArray(self.gpu, self.shape, self.real, fill)

    def new_copy(self) -> Any:
        return _kernels().widened(self.array)

    @property
    def given(self) -> Any:
        return self.array

    @property
    def sixteen(self) -> bool:
        return self.dtype.itemsize == 2

    @property
    def real(self) -> np.dtype[Any]:
        return FLOAT32 if self.sixteen else self.dtype

    def inward(self, array: Any, dtype: np.dtype[Any] | None = None) -> Any:
        return array

    def outward(self, state: Any) -> Any:
        return state

    def check_like(self, name: str, value: Any, state: bool = True) -> np.ndarray:
        """A state of the parameter's shape and dtype, on the host or copied there; see `Parameter.check_like`."""
        try:
            array, kind = _kernels().to_host(value), _kernels().see(value).dtype
        except TypeError:
            foreign = not isinstance(value, np.ndarray) and speaks_dlpack(value)
            array = view_of(name, value) if foreign else plain(name, value)
            kind = name_of(array.dtype)
        kind = self.kind if self.sixteen and kind == "float32" else kind
        self._check(name, kind, array.shape, "float32, or " if self.sixteen else "")
        array = bits_of(array) if name_of(array.dtype) == "bfloat16" else array
        return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])

    def check_gradient(self, name: str, value: Any) -> None:
        """Raises unless the gradient is one that kernels take."""
        if isinstance(value, tuple):
            raise TypeError(
                f"{name} must be an array like {self.name}; got (indices, values): they are for the CPU alone"
            )
        seen = _seen(name, value)
        self._check(name, seen.dtype, seen.shape)

    def _check(self, name: str, kind: str, shape: tuple[int, ...], also: str = "") -> None:
        if kind != self.kind:
            raise TypeError(f"{name} must be {also}{self.kind} like {self.name}; got {kind}")
        if shape != self.shape:
            raise ValueError(f"{name} must have the shape {self.shape} of {self.name}; got {shape}")


class DeviceMemory:
    """Where the parameters lie: refuses overlapping ones, and gradients that overlap any of them."""

    foreign = False
    owners: frozenset[int] = frozenset()

    def __init__(self, parameters: Iterable[DeviceParameter]) -> None:
        self.parameters = list(parameters)
        _kernels().gpu_of({p.address for p in self.parameters})  # all on one
        self.sizes = np.array([p.size * p.dtype.itemsize for p in self.parameters], np.int64)
        spans = sorted((p.address, int(size), p) for p, size in zip(self.parameters, self.sizes, strict=True) if size)
        for (start, size, first), (later, _, second) in pairwise(spans):
            if later < start + size:
                names = sorted((first.name, second.name))
                raise ValueError(f"{names[0]} and {names[1]} share memory; each array must be given once")
        self.starts = np.array([start for start, _, _ in spans], np.int64)
        self.ends = np.array([start + size for start, size, _ in spans], np.int64)
        self.sorted = [parameter for _, _, parameter in spans]

    def check_gradients(self, addresses: np.ndarray) -> None:
        """Raises for the first that shares memory with a parameter; the address 0 stands for none."""
        last = np.searchsorted(self.starts, addresses + self.sizes) - 1  # the last that begins before the gradient ends
        wrong = (addresses != 0) & (last >= 0)
        wrong[wrong] = self.ends[last[wrong]] > addresses[wrong]
        if wrong.any():
            i = int(np.argmax(wrong))
            name = "grads" + self.parameters[i].name.removeprefix("params")
            raise ValueError(f"{name} shares memory with {self.sorted[last[i]].name}, which the step changes")


class DeviceSlot(Slot):
    """One parameter array in a GPU's memory with its states."""

    __slots__ = ()

    def planned(self, rule: str, group: int, seed: int) -> ArrayUpdate:
        p: Any = self.parameter
        stream = dropout_stream(seed, self.number) if self.form == STOCHASTIC else 0
        return ArrayUpdate(rule, p.work, self.states, p.dtype, p.size, p.shape, group, self.form, stream)

    def _copy(self, state: Any) -> Any:
        return state.copy_to_host(_kernels().current_stream(self.parameter.array))

    def _copy_into(self, kept: Any, state: np.ndarray) -> None:
        kept.write(state, _kernels().current_stream(self.parameter.array))

    def _own(self, state: np.ndarray) -> Any:
        made = self.parameter.new_state(0.0)
        self._copy_into(made, state)
        return made


class OnDevice(Place):
    """The arrays of an optimizer in a GPU's memory."""

    of_array, of_all, of_slot = DeviceParameter, DeviceMemory, DeviceSlot

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        self.taken = np.zeros_like(self.done)  # of the steps that the plan knows to have been skipped, those off `done`
        self.measured = False  # whether the last step found out the norm of its gradients

    def settle(self) -> None:
        if self._plan is None:
            return
        plan = self._plan[1].plan
        skipped = plan.settled()
        self.done -= skipped - self.taken
        self.taken[:] = skipped
        if self.measured:
            self.grad_norm = plan.last_norm(self._plan[1].stream())

    def drop_plan(self) -> None:
        self.settle()
        self.taken[:] = 0  # the next one begins to count anew
        super().drop_plan()

    def step(
        self, settings: Settings, leaves: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        if settings.backend != _backends.DEVICE:
            raise ValueError(f"the arrays are in a GPU's memory: the backend must be 'cuda'; got {settings.backend!r}")
        scale, scale_at = 1.0, 0 if grad_scale is None else _one_on_device("grad_scale", grad_scale)
        if grad_scale is not None and not scale_at:
            scale = 1.0 / check_scale(grad_scale)
        found_at = 0 if found_inf is None else _one_on_device("found_inf", found_inf)
        skip = found_inf is not None and not found_at and check_one_number("found_inf", found_inf) != 0
        for _, lender in self.lenders:
            lender.check_place()
        groups, plan, clip_norm = settings._refreshed_groups(), self.plan(settings), settings.clip_norm
        options = [group.at(settings._count) for group in groups]
        gradients, others = plan.read(leaves)
        for i in [i for i in others if leaves[i] is not None]:
            self.memory.parameters[i].check_gradient(f"grads{self.slots[i].path}", leaves[i])
        self.memory.check_gradients(gradients)
        if skip:
            return False
        guard = _kernels().Guard(clip_norm, scale_at, found_at, bool(skip_nonfinite))
        self.give(plan, gradients, leaves, options, scale, guard)
        self.measured = bool(gradients.any()) and (clip_norm is not None or bool(skip_nonfinite))
        self.grad_norm = None
        self.changed(leaves)
        return True

    def give(
        self,
        plan: Any,
        gradients: np.ndarray,
        leaves: Sequence[Any],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Any,
    ) -> None:
        """A step to the device, counted here."""
        numbers = self.done + self.taken - self.origins + 1
        plan.update(gradients, numbers, options, scale, {}, guard)
        self.done += [g is not None for g in leaves]


def _one_on_device(name: str, value: Any) -> int:
    """The address of one float32 in a GPU's memory, 0 for what is on the host."""
    try:
        seen = _kernels().see(value)
    except TypeError:
        return 0
    if seen.dtype != "float32" or math.prod(seen.shape) != 1:
        raise TypeError(
            f"{name} must be a number, or in a GPU's memory one float32; got {describe(value)} of {seen.dtype},"
            f" shape {seen.shape}"
        )
    return int(seen.address)

"""Optimizers on arrays in a GPU's memory: the counterparts of Parameter, Memory and ParamState, and the step.

    opt = fastopt.Adam(params, backend="cuda")       arrays of Numba, CuPy or torch, C-contiguous, of all four dtypes
    opt.step(grads)                                  of any of these libraries; returns at once
    opt.settle()                                     waits; then `steps` and `grad_norm` are exact, as on the host

A step runs on the stream that the library of the first array uses at that moment, and nothing waits for it. So `step`
returns True for every step that was given to the device, even if the device then skips it (`found_inf` on the device,
`skip_nonfinite`). The next steps do not count a skipped one, but a schedule counts all that were given. States are in
the device's memory; `state_dict` waits, and copies them to the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import _backends
from .._dlpack import has_dlpack, is_tensor, view_of
from .._validation import FLOAT32, describe, plain
from ..kernels.spec import ArrayUpdate
from ._coded_state import CodedState
from ._engine import Leaves, StepSettings, UpdateEngine
from ._hyperparameters import check_one_number, check_scale
from ._param_state import ParamState
from ._parameters import KERNEL_DTYPES, bits_of, dtype_name_of


def _kernels() -> Any:
    return _backends.get(_backends.DEVICE)


def _seen(name: str, value: Any) -> Any:
    """Description of an array in a GPU's memory, or the error of one that kernels cannot use as it is."""
    see = _kernels().see
    try:
        seen = see(value)
    except TypeError as error:
        raise TypeError(f"{name} must be in a GPU's memory, as the backend is 'cuda': {error}") from None
    if seen.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16; got {seen.dtype}")
    if not seen.contiguous:
        raise ValueError(f"{name} must be C-contiguous in a GPU's memory; got strides of another order, or gaps")
    if seen.address % KERNEL_DTYPES[seen.dtype].itemsize:
        raise ValueError(f"{name} must be aligned: its address {seen.address} is no multiple of its element size")
    return seen


class CudaParameter:
    """An array that is updated in place in a GPU's memory; the counterpart of `Parameter`."""

    __slots__ = ("address", "array", "dtype", "dtype_name", "foreign", "gpu", "kernel_view", "name", "shape")

    usable_as_is = False  # its gradients have no quick check on the host

    def __init__(self, name: str, value: Any) -> None:
        seen = _seen(name, value)
        self.name, self.array, self.kernel_view = name, value, value
        self.dtype_name, self.shape, self.address = seen.dtype, seen.shape, seen.address
        self.dtype = KERNEL_DTYPES[self.dtype_name]
        self.gpu = _kernels().gpu_of({seen.address})
        self.foreign = self if is_tensor(value) else None  # others cannot move their memory

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def check_unmoved(self) -> None:
        if (self.array.data_ptr(), tuple(self.array.shape)) != (self.address, self.shape):
            raise ValueError(
                f"{self.name} is no longer where it was when the optimizer was made, as after p.data = ... or resize_:"
                " make a new optimizer, and load this one's state_dict into it"
            )

    def report_change(self) -> None:
        """Tells autograd, as on the host."""
        import torch

        if not self.array.is_inference():
            torch.autograd.graph.increment_version(self.array)

    def new_state(self, fill: float) -> Any:
        return _kernels().DeviceArray(self.gpu, self.shape, self.state_dtype, fill)

    def new_copy(self) -> Any:
        return _kernels().widened(self.array)

    @property
    def user_array(self) -> Any:
        return self.array

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape)))

    @property
    def is_16bit(self) -> bool:
        return self.dtype.itemsize == 2

    @property
    def state_dtype(self) -> np.dtype[Any]:
        return FLOAT32 if self.is_16bit else self.dtype

    def to_kernel_layout(self, array: Any, dtype: np.dtype[Any] | None = None) -> Any:
        return array

    def to_user_layout(self, state: Any) -> Any:
        return state

    def check_like(self, name: str, value: Any, state: bool = True) -> np.ndarray:
        """A state of the parameter's shape and dtype, on the host or copied there; see `Parameter.check_like`."""
        try:
            array, kind = _kernels().to_host(value), _kernels().see(value).dtype
        except TypeError:
            foreign = not isinstance(value, np.ndarray) and has_dlpack(value)
            array = view_of(name, value) if foreign else plain(name, value)
            kind = dtype_name_of(array.dtype)
        kind = self.dtype_name if self.is_16bit and kind == "float32" else kind
        self._check(name, kind, array.shape, "float32, or " if self.is_16bit else "")
        array = bits_of(array) if dtype_name_of(array.dtype) == "bfloat16" else array
        return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])

    def check_gradient(self, name: str, value: Any) -> None:
        """Raises unless kernels can use the gradient."""
        if isinstance(value, tuple):
            raise TypeError(
                f"{name} must be an array like {self.name}; got (indices, values): they are for the CPU alone"
            )
        seen = _seen(name, value)
        self._check(name, seen.dtype, seen.shape)

    def _check(self, name: str, kind: str, shape: tuple[int, ...], also: str = "") -> None:
        if kind != self.dtype_name:
            raise TypeError(f"{name} must be {also}{self.dtype_name} like {self.name}; got {kind}")
        if shape != self.shape:
            raise ValueError(f"{name} must have the shape {self.shape} of {self.name}; got {shape}")


class CudaMemory:
    """Memory of all parameters: refuses overlapping ones, and gradients that overlap any of them."""

    has_foreign = False
    owners: frozenset[int] = frozenset()

    def __init__(self, parameters: Iterable[CudaParameter]) -> None:
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
        """Raises for the first gradient that shares memory with a parameter; the address 0 stands for none."""
        last = np.searchsorted(self.starts, addresses + self.sizes) - 1  # the last that begins before the gradient ends
        wrong = (addresses != 0) & (last >= 0)
        wrong[wrong] = self.ends[last[wrong]] > addresses[wrong]
        if wrong.any():
            i = int(np.argmax(wrong))
            name = "grads" + self.parameters[i].name.removeprefix("params")
            raise ValueError(f"{name} shares memory with {self.sorted[last[i]].name}, which the step changes")


class CudaParamState(ParamState):
    """One parameter array in a GPU's memory with its states."""

    __slots__ = ()

    def array_update(self, rule: str, group: int, seed: int) -> ArrayUpdate:
        p: Any = self.parameter
        stream = self.random_stream(seed)
        return ArrayUpdate(
            rule, p.kernel_view, self.states, p.dtype, p.size, p.shape, group, self.form, stream, self.storage
        )

    @property
    def num_elements(self) -> int:
        parameter: Any = self.parameter
        return math.prod(parameter.shape)

    @property
    def _stream(self) -> int:
        return int(_kernels().current_stream(self.parameter.array))

    def _copy(self, state: Any) -> Any:
        return (state.codes if isinstance(state, CodedState) else state).copy_to_host(self._stream)

    def _magnitudes(self, state: CodedState) -> np.ndarray:
        return np.asarray(state.largest.copy_to_host(self._stream))

    def _copy_into(self, kept: Any, state: Any) -> None:
        if isinstance(state, CodedState):
            self._copy_into(kept.codes, state.codes)
            self._copy_into(kept.largest, state.largest)
        else:
            kept.write(np.ascontiguousarray(state), self._stream)

    def _new_state(self, state: Any) -> Any:
        if isinstance(state, CodedState):
            made: Any = CodedState(*(self._new_array(part.shape, part.dtype) for part in state))
        else:
            made = self.parameter.new_state(0.0)
        self._copy_into(made, state)
        return made

    def _new_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        parameter: Any = self.parameter
        return _kernels().DeviceArray(parameter.gpu, shape, dtype)

    def _new_coded(self, name: str, fill: float) -> Any:
        return self._new_state(super()._new_coded(name, fill))

    def _converted(self, name: str, state: Any) -> Any:
        on_host = self._copy(state)
        if isinstance(state, CodedState):
            on_host = CodedState(on_host, self._magnitudes(state))
        return self._new_state(super()._converted(name, on_host))


class CudaEngine(UpdateEngine):
    """The arrays of an optimizer in a GPU's memory."""

    parameter_class, memory_class, state_class = CudaParameter, CudaMemory, CudaParamState

    def __init__(self, groups: list[Leaves], master_weights: bool) -> None:
        super().__init__(groups, master_weights)
        self.skipped = np.zeros_like(self.steps_done)  # steps that the plan has skipped, no longer in `steps_done`
        self.has_norm = False  # the last step computed the norm of its gradients

    def settle(self) -> None:
        if self._plan is None:
            return
        plan = self._plan.plan
        skipped = plan.count_skipped()
        self.steps_done -= skipped - self.skipped
        self.skipped[:] = skipped
        if self.has_norm:
            self.grad_norm = plan.last_norm(self._plan.stream())

    def drop_plan(self) -> None:
        self.settle()
        self.skipped[:] = 0  # the next plan counts from 0
        super().drop_plan()

    def step(
        self, settings: StepSettings, gradients: tuple[Any, ...], grad_scale: Any, found_inf: Any, skip_nonfinite: bool
    ) -> bool:
        if settings.backend != _backends.DEVICE:
            raise ValueError(f"the arrays are in a GPU's memory: the backend must be 'cuda'; got {settings.backend!r}")
        # Numbers on the device are read there; the host waits for none of them.
        scale, scale_address = 1.0, 0 if grad_scale is None else _address_on_device("grad_scale", grad_scale)
        if grad_scale is not None and not scale_address:
            scale = 1.0 / check_scale(grad_scale)
        found_address = 0 if found_inf is None else _address_on_device("found_inf", found_inf)
        skipped = found_inf is not None and not found_address and check_one_number("found_inf", found_inf) != 0
        for _, foreign in self.foreign_arrays:
            foreign.check_unmoved()
        plan = self.plan(settings)
        addresses, unread = plan.read(gradients)
        for i in [i for i in unread if gradients[i] is not None]:
            self.memory.parameters[i].check_gradient(f"grads{self.param_states[i].path}", gradients[i])
        self.memory.check_gradients(addresses)
        if skipped:
            return False
        guard = _kernels().Guard(settings.clip_norm, scale_address, found_address, bool(skip_nonfinite))
        self.launch(plan, addresses, gradients, settings.options, scale, guard)
        self.has_norm = bool(addresses.any()) and (settings.clip_norm is not None or bool(skip_nonfinite))
        self.grad_norm = None
        self.report_changes(gradients)
        return True

    def launch(
        self,
        plan: Any,
        addresses: np.ndarray,
        gradients: Sequence[Any],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Any,
    ) -> None:
        """Gives a step to the device and counts it."""
        numbers = self.steps_done + self.skipped - self.origins + 1
        plan.update(addresses, numbers, options, scale, {}, guard)
        self.steps_done += [g is not None for g in gradients]


def _address_on_device(name: str, value: Any) -> int:
    """Address of one float32 in a GPU's memory; 0 for a number on the host."""
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

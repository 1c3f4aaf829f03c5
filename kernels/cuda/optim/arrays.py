"""Steps on arrays of any library that has them on the device: Numba, CuPy, torch, and what has the array interface.

Nothing is copied and nothing waits: arrays are read and written where they are, on the stream on which their library
works at the moment of the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...spec import ArrayUpdate, BufferUpdate, Update
from ..runtime.compile import SIMULATED
from ..runtime.rehearsal import rehearsed
from .counted import CountedPlan, Number
from .plan import NO_GUARD, Guard, Plan


class Seen(NamedTuple):
    """What an array says of itself."""

    address: int
    shape: tuple[int, ...]
    dtype: str  # of NumPy's names, and "bfloat16"
    contiguous: bool  # in C order
    stream: int | None  # on which what was last written to it is done; None: on the library's current one


def see(array: Any) -> Seen:
    """Return what an array in the device's memory says of itself. Steps call this for every gradient.

    Raises:
        TypeError: it is none.
    """
    if _library(array) == "torch":  # whose array interface refuses tensors that require a gradient
        if array.device.type != "cuda":
            raise TypeError(f"expected a CUDA tensor; got one on {array.device}")
        dtype = str(array.dtype).removeprefix("torch.")
        return Seen(array.data_ptr(), tuple(array.shape), dtype, array.is_contiguous(), None)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None and SIMULATED and not isinstance(array, np.ndarray):
        interface = getattr(array, "__array_interface__", None)  # the simulator's arrays have only that
    if interface is None:
        raise TypeError(f"expected an array in a GPU's memory; got {type(array).__module__}.{type(array).__qualname__}")
    (name, size), strides = _named(interface["typestr"]), interface.get("strides")
    shape = tuple(interface["shape"])
    contiguous = strides is None or 0 in shape or _dense(shape, strides, size)
    if not name:
        name = str(getattr(array, "dtype", interface["typestr"]))
    return Seen(interface["data"][0] or 0, shape, name, contiguous, interface.get("stream"))


@cache
def _named(typestr: str) -> tuple[str, int]:
    """Return the dtype's name and bytes. NumPy takes 2 us to make a name.

    The interface has no word for bfloat16: CuPy's arrays of it are of two bytes there, and of ml_dtypes' dtype. So
    there the name is "": the array itself may know it.
    """
    dtype = np.dtype(typestr)
    return "" if dtype.kind == "V" else dtype.name, dtype.itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """What NumPy has for an array that says so of itself: of bfloat16 its bits."""
    return np.dtype("uint16" if name == "bfloat16" else name)


def _kernel_dtype(dtype: np.dtype[Any]) -> str:
    """The name that kernels have for it: bits of 16 are bfloat16's."""
    return "bfloat16" if dtype == np.uint16 else dtype.name


def _dense(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> bool:
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


def _library(array: Any) -> str:
    return _library_of(type(array))  # type: ignore[arg-type]


@cache
def _library_of(cls: type) -> str:
    """Return the library that a class is of, "torch" also for a subclass of its tensors in a program's own module."""
    packages = [base.__module__.partition(".")[0] for base in cls.__mro__]
    return next((package for package in packages if package in STREAMS), packages[0])


def _torch_stream(array: Any) -> int:
    import torch

    return int(torch.cuda.current_stream(array.device).cuda_stream)


def _cupy_stream(array: Any) -> int:
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


# Where a library puts the work that it is given now, whatever stream an array may name.
STREAMS: dict[str, Callable[[Any], int]] = {"torch": _torch_stream, "cupy": _cupy_stream}


def current_stream(array: Any) -> int:
    """The handle of the stream that the caller works on."""
    ask = STREAMS.get(_library(array))
    return ask(array) if ask else see(array).stream or 0


def gpu_of(addresses: Collection[int]) -> Any:
    """The device that memory at these addresses belongs to; of no memory the one that the caller works on.

    Raises:
        ValueError: it belongs to several.
    """
    if (not_there := rehearsed()) is not None:
        return not_there
    if SIMULATED:
        from ..runtime.simulator import Gpu

        return Gpu()
    from ..runtime.driver import current_device, device_of
    from ..runtime.gpu import gpu

    found = {device_of(address) for address in addresses if address}
    if len(found) > 1:
        numbers = " and ".join(map(str, sorted(found)))
        raise ValueError(f"the arrays of one call, or one optimizer, must lie on one GPU; these lie on GPUs {numbers}")
    return gpu(found.pop() if found else current_device())


class ArrayPlan:
    """The plan of an optimizer that updates arrays on a GPU; it owns none of them, and they must stay where they are.

    owners: ids of arrays whose memory must not be a gradient's; they stay alive as long as the plan.
    counters, captured: as those of CountedPlan, for one whose steps the device counts.
    """

    def __init__(
        self,
        planned: Sequence[ArrayUpdate],
        owners: Collection[int],
        counters: Sequence[Number] | None = None,
        captured: list[Any] | None = None,
    ) -> None:
        self.planned, self.owners = planned, frozenset(owners)
        self.dtypes = [_kernel_dtype(t.dtype) for t in planned]
        targets = [
            BufferUpdate(
                t.rule, _kernel_dtype(t.dtype), t.elements, 0 if t.p is None else see(t.p).address,
                [see(s).address for s in t.states], t.group, t.form, t.stream,
            )
            for t in planned
        ]  # fmt: skip
        gpu = gpu_of({address for t in targets for address in (t.p, *t.states)})
        self.plan: Any = Plan(targets, gpu) if counters is None else CountedPlan(targets, counters, gpu, captured)
        self.stream: Callable[[], int] = lambda: 0
        if first := next((a for t in planned for a in (t.p, *t.states) if a is not None), None):
            self.stream = lambda: current_stream(first)

    def read(self, gradients: tuple[Any, ...]) -> tuple[np.ndarray, list[int]]:
        """What the other calls take, (n,) int64, with the gradients that need no further check, and 0 for the others.

        The others are those whose indices come with it: `put` gives them. All must stay alive until they are used.
        """
        found, others = np.zeros(len(self.planned), np.int64), []
        for i, (g, t, dtype) in enumerate(zip(gradients, self.planned, self.dtypes, strict=True)):
            try:
                seen = see(g)
            except TypeError:
                others.append(i)
                continue
            fits = seen.shape == t.shape and seen.dtype == dtype and seen.contiguous and id(g) not in self.owners
            if fits and seen.address % t.dtype.itemsize == 0:
                found[i] = seen.address
            else:
                others.append(i)
        return found, others

    def put(self, gradients: np.ndarray, i: int, gradient: Any) -> None:
        """A gradient of the same elements as the array, C-contiguous, on the same GPU."""
        gradients[i] = see(gradient).address

    def norm(self, gradients: np.ndarray) -> float:
        """The Euclidean norm of all gradients laid end to end. Waits for it."""
        return self.plan.norm(gradients, self.stream())

    def update(
        self,
        gradients: np.ndarray,
        steps: np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        copies: Mapping[int, Any],
        guard: Guard = NO_GUARD,
    ) -> None:
        """As `Plan.update`; copies: the parameters that are given in every step, by their index."""
        places = {i: see(p).address for i, p in copies.items()}
        self.plan.update(gradients, steps, options, scale, places, guard, self.stream())

    def update_counted(
        self,
        gradients: np.ndarray,
        present: Sequence[bool],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Guard = NO_GUARD,
    ) -> None:
        """As `CountedPlan.update`, for a plan with counters."""
        self.plan.update(gradients, options, scale, guard, self.stream(), present)


def update(jobs: Sequence[Update], scale: float = 1.0) -> None:
    """Update p and the states of every job in place; arrays are C-contiguous. For once: `ArrayPlan` is for again.

    Gradients are taken times `scale`, and are not changed.
    """
    groups = {id(job.options): job.options for job in jobs}
    numbers = {key: number for number, key in enumerate(groups)}
    planned = []
    for job in jobs:
        p = see(job.p)
        group, elements = numbers[id(job.options)], math.prod(p.shape)
        dtype = numpy_dtype(p.dtype)
        planned.append(ArrayUpdate(job.rule, job.p, job.states, dtype, elements, p.shape, group, job.form, job.stream))
    plan = ArrayPlan(planned, ())
    gradients = np.array([see(job.g).address for job in jobs], np.int64)
    plan.update(gradients, np.array([job.step for job in jobs], np.int64), list(groups.values()), scale, {})


def gradient_norm(gradients: Sequence[Any]) -> float:
    """The Euclidean norm of all gradients laid end to end; they are C-contiguous. Waits for it."""
    seen = [see(g) for g in gradients]
    planned = [
        ArrayUpdate("sgd", g, (), numpy_dtype(s.dtype), math.prod(s.shape), s.shape, 0)
        for g, s in zip(gradients, seen, strict=True)
    ]
    return ArrayPlan(planned, ()).norm(np.array([s.address for s in seen], np.int64))

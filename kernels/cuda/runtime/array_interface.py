"""Arrays of any library in a GPU's memory: address, dtype, shape, and the stream and device that work on them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .compile import SIMULATED
from .device import Device
from .rehearsal import rehearsed


class Seen(NamedTuple):
    """Description of an array."""

    address: int
    shape: tuple[int, ...]
    dtype: str  # a name of NumPy's, or "bfloat16"
    contiguous: bool  # in C order
    stream: int | None  # the one that last wrote to it; None: the library's current one


def see(array: Any) -> Seen:
    """Return the description of an array in the device's memory. Steps call this for every gradient.

    Raises:
        TypeError: it is not such an array.
    """
    if _library(array) == "torch":  # whose array interface refuses tensors that require a gradient
        if array.device.type != "cuda":
            raise TypeError(f"the tensor must be on a CUDA device; got one on {array.device}")
        dtype = str(array.dtype).removeprefix("torch.")
        return Seen(array.data_ptr(), tuple(array.shape), dtype, array.is_contiguous(), None)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None and SIMULATED and not isinstance(array, np.ndarray):
        interface = getattr(array, "__array_interface__", None)  # the only one of the simulator's arrays
    if interface is None:
        raise TypeError(f"an array must be in a GPU's memory; got {type(array).__module__}.{type(array).__qualname__}")
    (name, size), strides = _named(interface["typestr"]), interface.get("strides")
    shape = tuple(interface["shape"])
    contiguous = strides is None or 0 in shape or _dense(shape, strides, size)
    if not name:
        name = str(getattr(array, "dtype", interface["typestr"]))
    return Seen(interface["data"][0] or 0, shape, name, contiguous, interface.get("stream"))


@cache
def _named(typestr: str) -> tuple[str, int]:
    """Return the dtype's name and bytes, remembered because NumPy takes 2 us to make a name.

    The interface has no word for bfloat16: CuPy's arrays of it are two raw bytes there, and of ml_dtypes' dtype. Their
    name is "" here: the array itself may know it.
    """
    dtype = np.dtype(typestr)
    return "" if dtype.kind == "V" else dtype.name, dtype.itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a name of `Seen`: uint16, its bits, for bfloat16."""
    return np.dtype("uint16" if name == "bfloat16" else name)


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
    """Return the library of a class: "torch" also for a subclass of its tensors in a program's own module."""
    packages = [base.__module__.partition(".")[0] for base in cls.__mro__]
    return next((package for package in packages if package in STREAMS), packages[0])


def _torch_stream(array: Any) -> int:
    import torch

    return int(torch.cuda.current_stream(array.device).cuda_stream)


def _cupy_stream(array: Any) -> int:
    import cupy

    return int(cupy.cuda.get_current_stream().ptr)


# The stream that a library works on now, whatever stream an array may name.
STREAMS: dict[str, Callable[[Any], int]] = {"torch": _torch_stream, "cupy": _cupy_stream}


def current_stream(array: Any) -> int:
    """Return the handle of the stream that the caller works on."""
    ask = STREAMS.get(_library(array))
    return ask(array) if ask else see(array).stream or 0


def gpu_of(addresses: Collection[int]) -> Device:
    """Return the device that these addresses belong to; without addresses the one that the caller works on.

    Raises:
        ValueError: they belong to several.
    """
    if (rehearsal := rehearsed()) is not None:
        return rehearsal
    if SIMULATED:
        from .simulator import SimulatedGpu

        return SimulatedGpu()
    from .driver import current_device, device_of
    from .gpu import gpu

    found = {device_of(address) for address in addresses if address}
    if len(found) > 1:
        numbers = " and ".join(map(str, sorted(found)))
        raise ValueError(f"the arrays of one call, or one optimizer, must lie on one GPU; these lie on GPUs {numbers}")
    return gpu(found.pop() if found else current_device())

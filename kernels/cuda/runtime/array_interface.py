"""What an array in a GPU's memory says of itself, and the stream and the device that work on it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .compile import SIMULATED
from .device import Device
from .rehearsal import rehearsed


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
            raise TypeError(f"the tensor must be on a CUDA device; got one on {array.device}")
        dtype = str(array.dtype).removeprefix("torch.")
        return Seen(array.data_ptr(), tuple(array.shape), dtype, array.is_contiguous(), None)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None and SIMULATED and not isinstance(array, np.ndarray):
        interface = getattr(array, "__array_interface__", None)  # the simulator's arrays have only that
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
    """Return the dtype's name and bytes. NumPy takes 2 us to make a name.

    The interface has no word for bfloat16: CuPy's arrays of it are of two bytes there, and of ml_dtypes' dtype. So
    there the name is "": the array itself may know it.
    """
    dtype = np.dtype(typestr)
    return "" if dtype.kind == "V" else dtype.name, dtype.itemsize


def numpy_dtype(name: str) -> np.dtype[Any]:
    """What NumPy has for an array that says so of itself: of bfloat16 its bits."""
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


def gpu_of(addresses: Collection[int]) -> Device:
    """The device that memory at these addresses belongs to; of no memory the one that the caller works on.

    Raises:
        ValueError: it belongs to several.
    """
    if (not_there := rehearsed()) is not None:
        return not_there
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

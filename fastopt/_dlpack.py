"""NumPy views of other libraries' arrays on the CPU, through `__dlpack__`.

The capsule that `__dlpack__` returns is read here, not by `np.from_dlpack`: its arrays are read-only in NumPy before
2.2.5, and for every exporter below DLPack 1.0 (JAX, and torch before 2.9), and it has no bfloat16.

Source: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

_NEWEST = (1, 0)  # version of DLPack that is requested; a later 1.x has the same fields
_READ_ONLY, _COPIED = 1, 2  # flags
_ON_CPU = (1, 3, 11)  # kDLCPU, kDLCUDAHost, kDLROCMHost: ordinary memory, and ordinary memory that is pinned
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_DTYPES = {
    (code, bits): np.dtype("bool" if name == "bool" else f"{name}{bits}")
    for code, name in _CODES.items()
    for bits in {"bool": (8,), "bfloat": (), "float": (16, 32, 64), "complex": (64, 128)}.get(name, (8, 16, 32, 64))
}
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])  # NumPy has none: its bits, under a field name of our own
_DTYPES[4, 16] = BFLOAT16
# Libraries with immutable arrays, whose capsules (DLPack below 1.0) have no flag for that.
_IMMUTABLE = ("jax", "jaxlib", "tensorflow")


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class _Versioned(ctypes.Structure):  # DLManagedTensorVersioned; the older DLManagedTensor begins with the DLTensor
    _fields_ = (
        ("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p), ("flags", ctypes.c_uint64), ("tensor", _DLTensor),
    )  # fmt: skip


# Prototypes of our own: argument types set on ctypes.pythonapi's functions would be everybody's.
_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _MemoryView:
    """Memory for `np.asarray`; `owner` keeps it alive, such as a capsule, which releases it when it is deleted."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def has_dlpack(value: Any) -> bool:
    return hasattr(type(value), "__dlpack__")


def is_tensor(value: Any) -> bool:
    """True for a tensor of torch's; without importing torch."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def detached(value: Any) -> Any:
    """The array without autograd, which does not hand out the memory of tensors that require gradients; a view."""
    return value.detach() if getattr(value, "requires_grad", False) is True else value


def view_of(name: str, value: Any, in_place: bool = False) -> np.ndarray:
    """A NumPy view of an array with `__dlpack__`, which it keeps alive.

    It is read-only if the exporter says so. Refused: other devices, dtypes that NumPy does not have, and an exporter's
    copy if the array is to be changed `in_place`.
    """
    interface = _tensor_interface(value) if is_tensor(value) and not in_place else None
    if interface is not None:
        return np.asarray(_MemoryView(interface, value))
    return np.asarray(_MemoryView(*_exported(name, value, in_place)))


def _exported(name: str, value: Any, in_place: bool = False) -> tuple[dict[str, Any], Any]:
    """The `__array_interface__` of an array's memory, and the capsule that keeps it alive."""
    try:
        value = detached(value)
        negated = is_tensor(value) and value.is_neg()  # torch exports its memory nevertheless
        capsule = capsule_of(value)
        kind = _name_of(capsule)
        address = _pointer_of(capsule, kind)
    except Exception as error:  # any, of any library
        _check_device(name, value, _device_of(value))
        raise TypeError(f"{name}, {_described(value)}, does not hand out its memory: {error}") from error
    if negated:
        raise TypeError(f"{name} must be its memory, not the negative of it; use resolve_neg()")
    if kind == b"dltensor_versioned":
        versioned = _Versioned.from_address(address)
        if versioned.major != _NEWEST[0]:
            raise TypeError(f"{name}, {_described(value)}, speaks DLPack {versioned.major}; at most 1 is known")
        tensor, flags = versioned.tensor, versioned.flags
    else:
        tensor = _DLTensor.from_address(address)
        flags = _READ_ONLY if type(value).__module__.partition(".")[0] in _IMMUTABLE else 0
    _check_device(name, value, tensor.device_type)
    if in_place and flags & _COPIED:
        raise ValueError(f"{name}, {_described(value)}, hands out a copy and cannot be updated in place")
    interface = _interface(name, tensor, bool(flags & _READ_ONLY))
    if not tensor.data and 0 not in interface["shape"]:
        raise TypeError(f"{name}, {_described(value)}, has no memory")
    return interface, capsule


def _tensor_interface(tensor: Any) -> dict[str, Any] | None:
    """The `__array_interface__` of a plain tensor, without a capsule in a quarter of the time; None for others."""
    torch: Any = sys.modules["torch"]
    address = address_of(tensor)
    if not address or not tensor.is_floating_point() or tensor.itemsize == 1:
        return None
    width = tensor.itemsize
    strides = tuple([width * stride for stride in tensor.stride()])
    dtype = _DTYPES[4 if tensor.dtype is torch.bfloat16 else 2, 8 * width]
    return _array_interface(dtype, tuple(tensor.shape), strides, address, False)


def address_of(tensor: Any) -> int:
    """Address of a plain tensor's elements on the CPU; 0 for any other."""
    torch: Any = sys.modules["torch"]
    plain = type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
    if not plain or tensor.layout is not torch.strided or not tensor.is_cpu or tensor.is_neg():
        return 0
    try:
        return int(tensor.data_ptr())
    except RuntimeError:  # there is none inside a transform of torch.func
        return 0


def _interface(name: str, tensor: Any, read_only: bool) -> dict[str, Any]:
    """The `__array_interface__` of a DLTensor, whose dtype is looked up by its code and bits."""
    dtype = _DTYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        known = tensor.code in _CODES and tensor.lanes == 1
        what = f"{_CODES[tensor.code]}{tensor.bits}" if known else f"DLPack's {tensor.code, tensor.bits, tensor.lanes}"
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16; got {what}")
    address = tensor.data + tensor.byte_offset if tensor.data else 0
    axes, shape, strides = tensor.ndim, (), None  # without axes, both may be null
    if axes:
        shape = tuple(tensor.shape[:axes])
        if tensor.strides:  # null: in C order
            strides = tuple([dtype.itemsize * stride for stride in tensor.strides[:axes]])
    return _array_interface(dtype, shape, strides, address, read_only)


def _array_interface(dtype: np.dtype, shape: Any, strides: Any, address: int, read_only: bool) -> dict[str, Any]:
    fields = {"descr": dtype.descr} if dtype.names else {}
    return {
        "version": 3, "typestr": dtype.str, **fields, "shape": shape, "strides": strides, "data": (address, read_only),
    }  # fmt: skip


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"


def capsule_of(value: Any) -> Any:
    """A capsule of the newest version of DLPack that an array supports, 1.0 at most."""
    try:
        return value.__dlpack__(max_version=_NEWEST)
    except TypeError:  # exporters below DLPack 1.0 have no max_version
        return value.__dlpack__()


def _device_of(value: Any) -> int:
    """The device type that the array states; kDLCPU if it states none."""
    try:
        return int(value.__dlpack_device__()[0])
    except Exception:  # such as torch's of the device "meta"
        return _ON_CPU[0] if str(getattr(value, "device", "cpu")) == "cpu" else 0


def _check_device(name: str, value: Any, device: int) -> None:
    if device not in _ON_CPU:
        where = getattr(value, "device", f"DLPack's device {device}")
        advice = "copy it there, or use fastopt.torch" if is_tensor(value) else "copy it there"
        raise TypeError(f"{name} must be on the CPU; got {_described(value)} on {where} ({advice})")


class ForeignArray:
    """Another library's array that is updated in place, through a view of its memory."""

    __slots__ = ("array", "is_tensor", "location", "name", "torch", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value
        self.array = view_of(name, value, in_place=True)
        # Tensors of inference mode have no version counter, and autograd keeps nothing that depends on them.
        self.is_tensor = is_tensor(value)
        self.torch = sys.modules["torch"] if self.is_tensor and not value.is_inference() else None
        self.location = self._location()

    def check_unmoved(self) -> None:
        """Raise ValueError if the array has moved: the view would write to its old memory."""
        if self._location() != self.location:
            raise ValueError(
                f"{self.name} is no longer where it was when the optimizer was made, as after p.data = ..., resize_ or"
                " model.to(...): make a new optimizer, and load this one's state_dict into it"
            )

    def report_change(self) -> None:
        """Report a write to autograd, so that backward refuses a saved value that was overwritten."""
        if self.torch is not None:
            self.torch.autograd.graph.increment_version(self.value)

    def _location(self) -> Any:
        if self.is_tensor:  # a tenth of the time
            return self.value.data_ptr(), self.value.shape, self.value.stride()
        interface, _ = _exported(self.name, self.value)
        return interface["data"], interface["shape"], interface["strides"]

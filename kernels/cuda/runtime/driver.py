"""CUDA driver, opened with cffi: enough to find the devices, without any other library."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import cffi

ffi = cffi.FFI()
ffi.cdef("""
    typedef int CUresult;
    typedef int CUdevice;
    typedef unsigned long long CUdeviceptr;
    CUresult cuInit(unsigned int flags);
    CUresult cuGetErrorName(CUresult error, const char **name);
    CUresult cuGetErrorString(CUresult error, const char **text);
    CUresult cuDriverGetVersion(int *version);
    CUresult cuDeviceGetCount(int *count);
    CUresult cuDeviceGet(CUdevice *device, int ordinal);
    CUresult cuDeviceGetName(char *name, int length, CUdevice device);
    CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device);
    CUresult cuDevicePrimaryCtxRetain(void **context, CUdevice device);
    CUresult cuCtxGetCurrent(void **context);
    CUresult cuCtxGetDevice(CUdevice *device);
    CUresult cuCtxPushCurrent_v2(void *context);
    CUresult cuCtxPopCurrent_v2(void **context);
    CUresult cuPointerGetAttribute(void *value, int attribute, CUdeviceptr pointer);
    CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes);
    CUresult cuMemFree_v2(CUdeviceptr pointer);
    CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags);
    CUresult cuMemFreeHost(void *pointer);
    CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr into, const void *from, size_t bytes, void *stream);
    CUresult cuMemcpyDtoHAsync_v2(void *into, CUdeviceptr from, size_t bytes, void *stream);
    CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr into, CUdeviceptr from, size_t bytes, void *stream);
    CUresult cuMemsetD8Async(CUdeviceptr into, unsigned char value, size_t bytes, void *stream);
    CUresult cuStreamSynchronize(void *stream);
    CUresult cuStreamIsCapturing(void *stream, int *status);
    CUresult cuThreadExchangeStreamCaptureMode(int *mode);
    CUresult cuModuleLoadData(void **module, const void *image);
    CUresult cuModuleGetFunction(void **function, void *module, const char *name);
    CUresult cuFuncSetAttribute(void *function, int attribute, int value);
    CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared);
    CUresult cuLaunchKernel(void *function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                            unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                            void *stream, void **parameters, void **extra);
    CUresult cuMemGetInfo_v2(size_t *free, size_t *total);
    CUresult cuEventCreate(void **event, unsigned int flags);
    CUresult cuEventDestroy_v2(void *event);
    CUresult cuEventRecord(void *event, void *stream);
    CUresult cuEventQuery(void *event);
    CUresult cuEventSynchronize(void *event);
    CUresult cuEventElapsedTime(float *milliseconds, void *start, void *end);
    CUresult cuStreamCreate(void **stream, unsigned int flags);
    CUresult cuStreamWaitEvent(void *stream, void *event, unsigned int flags);
    CUresult cuStreamBeginCapture_v2(void *stream, int mode);
    CUresult cuStreamEndCapture(void *stream, void **graph);
    CUresult cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags);
    CUresult cuGraphLaunch(void *executable, void *stream);
    CUresult cuGraphExecDestroy(void *executable);
    CUresult cuGraphDestroy(void *graph);
""")

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


# The oldest devices that CUDA 13 makes code for. Intermediate code is made for them, and linked for the present one.
OLDEST = (7, 5)
NOT_READY = 600  # CUDA_ERROR_NOT_READY
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
ALIGNMENT = 256  # bytes: allocated memory begins at multiples of it, and no kernel or library asks for more


class CudaError(RuntimeError):
    """A failed call of the driver or of one of its libraries. `code` is its CUresult, 0 if there is no driver."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@cache
def opened() -> Any:
    """Return the driver, which may not have started yet; CudaError if there is none."""
    try:
        return ffi.dlopen(LIBRARY)
    except OSError as error:
        raise CudaError(f"there is no NVIDIA driver here: {error}") from None


@cache
def library() -> Any:
    """Return the driver, started; CudaError if there is none, or if it does not start."""
    driver = opened()
    check(driver.cuInit(0), driver)
    return driver


def check(code: int, driver: Any = None) -> None:
    """Raise CudaError, with the driver's words, unless a call succeeded."""
    if code:
        driver = driver or library()
        name, text = ffi.new("const char **"), ffi.new("const char **")
        if driver.cuGetErrorName(code, name) or driver.cuGetErrorString(code, text):
            raise CudaError(f"the CUDA driver reports error {code}", code)
        raise CudaError(f"{ffi.string(name[0]).decode()}: {ffi.string(text[0]).decode()}", code)


def query(kind: str, function: Any, *args: Any) -> Any:
    """Call a function of the driver; return the value that it writes to its first argument."""
    value = ffi.new(f"{kind} *")
    check(function(value, *args))
    return value[0]


def driver_version() -> tuple[int, int]:
    """Return the newest CUDA that the driver knows; it need not have started."""
    driver, found = opened(), ffi.new("int *")
    check(driver.cuDriverGetVersion(found), driver)
    version = found[0]
    return version // 1000, version % 1000 // 10


def device_count() -> int:
    return int(query("int", library().cuDeviceGetCount))


def device(ordinal: int) -> int:
    """Return the driver's handle of a device."""
    return int(query("CUdevice", library().cuDeviceGet, ordinal))


def device_name(handle: int) -> str:
    text = ffi.new("char[]", 256)
    check(library().cuDeviceGetName(text, 256, handle))
    return str(ffi.string(text).decode())


def attribute(handle: int, number: int) -> int:
    return int(query("int", library().cuDeviceGetAttribute, number, handle))


def capability(handle: int) -> tuple[int, int]:
    return attribute(handle, MAJOR), attribute(handle, MINOR)


def current_device() -> int:
    """Return the ordinal of the device whose context is current in this thread; 0 if none is."""
    if query("void *", library().cuCtxGetCurrent) == ffi.NULL:
        return 0
    handle = query("CUdevice", library().cuCtxGetDevice)
    return next(number for number in range(device_count()) if device(number) == handle)


def device_of(address: int) -> int:
    """Return the ordinal of the device that an address belongs to."""
    value = ffi.new("int *")
    check(library().cuPointerGetAttribute(value, ORDINAL, address))
    return int(value[0])

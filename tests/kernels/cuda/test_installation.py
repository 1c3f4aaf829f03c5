"""Diagnosis of the backend: on this machine, and with requirements, drivers and devices that are made up."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt import _backends
from fastopt.cli.info import _cuda
from fastopt.cli.main import main
from fastopt.kernels import cuda
from fastopt.kernels.cuda import installation
from fastopt.kernels.cuda.runtime import driver, nvjitlink, requirements

ALL = {
    "numba-cuda": "0.30.4", "libNVVM": "/a", "nvJitLink": "/b", "NVRTC": "/c", "cuBLASLt": "/d", "driver": "13.0",
    "devices": ["NVIDIA H200 (9.0)"],
}  # fmt: skip
NOTHING = dict.fromkeys(ALL) | {"devices": []}


@pytest.fixture
def have(monkeypatch):
    def have(found):
        monkeypatch.setattr(requirements, "find_requirements", lambda: found)
        monkeypatch.setattr(requirements, "numba_cuda", lambda: found["numba-cuda"])
        monkeypatch.setattr(requirements, "simulated", lambda: False)
        cuda._require.cache_clear()

    yield have
    cuda._require.cache_clear()


def test_loading_the_backend_needs_nothing():
    code = "from fastopt import _backends; import sys; _backends.get('cuda'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert not {"numba", "numba_cuda", "cuda"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            NOTHING,
            r"lacks numba-cuda, libNVVM, nvJitLink, NVRTC, driver: pip install 'fastopt\[cuda\]' brings the libraries;"
            r" the driver comes with the system, and wants an NVIDIA GPU$",
        ),
        ({**ALL, "nvJitLink": None}, r"lacks nvJitLink: pip install 'fastopt\[cuda\]' brings the libraries$"),
    ],
)
def test_what_is_missing_is_said(have, found, message):
    have(found)
    with pytest.raises(ImportError, match=message):
        _backends.get("cuda").ArrayPlan  # noqa: B018


class Gpu:
    """A driver with one GPU that answers questions, and runs nothing."""

    def __init__(self, knows=13000, starts=0, devices=1, capability=(9, 0)):
        self.knows, self.starts, self.devices, self.capability = knows, starts, devices, capability

    def cuInit(self, flags):
        return self.starts

    def cuDriverGetVersion(self, place):
        place[0] = self.knows
        return 0

    def cuDeviceGetCount(self, place):
        place[0] = self.devices
        return 0

    def cuDeviceGet(self, place, ordinal):
        place[0] = ordinal
        return 0

    def cuDeviceGetName(self, name, length, device):
        driver.ffi.memmove(name, b"NVIDIA H200\0", 12)
        return 0

    def cuDeviceGetAttribute(self, place, attribute, device):
        place[0] = self.capability[attribute - driver.MAJOR]
        return 0

    def cuCtxGetCurrent(self, place):
        place[0] = driver.ffi.NULL
        return 0

    def cuGetErrorName(self, error, name):
        self.name = driver.ffi.new("char[]", b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH")
        name[0] = self.name
        return 0

    def cuGetErrorString(self, error, text):
        self.text = driver.ffi.new("char[]", b"system has unsupported display driver / cuda driver combination")
        text[0] = self.text
        return 0


@pytest.fixture
def gpu(monkeypatch, have):
    """gpu(...): a driver with such a GPU, all other requirements, and a kernel that can be loaded."""

    def gpu(**properties):
        have(ALL)
        fake = Gpu(**properties)
        monkeypatch.setattr(driver, "opened", lambda: fake)
        driver.library.cache_clear()
        monkeypatch.setattr(installation, "library", driver.library)
        monkeypatch.setattr(installation._trial, "run", lambda: None)
        monkeypatch.setattr(nvjitlink, "version", lambda: (13, 0))
        installation._trial.forget()

    yield gpu
    driver.library.cache_clear()
    installation._trial.forget()


CANNOT = "the backend 'cuda' cannot run: "


@pytest.mark.parametrize(
    ("properties", "visible", "sentence"),
    [
        (
            {"knows": 12040},
            None,
            "the NVIDIA driver knows CUDA 12.4, and 13.0 is needed: install driver 580 or newer",
        ),
        ({"starts": 100}, "", "no GPU is visible: CUDA_VISIBLE_DEVICES is ''"),
        ({"starts": 100}, None, "the NVIDIA driver sees no GPU: see what nvidia-smi says"),
        ({"devices": 0}, "7", "no GPU is visible: CUDA_VISIBLE_DEVICES is '7'"),
        (
            {"starts": 803},
            None,
            "the NVIDIA driver does not start (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: system has unsupported display driver"
            " / cuda driver combination): see what nvidia-smi says",
        ),
        (
            {"capability": (6, 1)},
            None,
            "NVIDIA H200 has compute capability 6.1, and CUDA 13 makes code for 7.5 or newer",
        ),
        ({"knows": 13020}, None, ""),
    ],
)
def test_a_driver_or_a_device_that_will_not_do(gpu, monkeypatch, properties, visible, sentence):
    gpu(**properties)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert installation.trouble() == (CANNOT + sentence if sentence else "")


def test_a_linker_that_will_not_do(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(nvjitlink, "version", lambda: (12, 8))
    monkeypatch.setattr(nvjitlink, "find", lambda: "/x/libnvJitLink.so.13")
    brings = "pip install 'fastopt[cuda]' brings that of CUDA 13.0"
    assert installation.trouble() == f"{CANNOT}nvJitLink 12.8 (/x/libnvJitLink.so.13) is too old: {brings}"

    def missing():
        raise nvjitlink.LinkError("there is no libnvJitLink.so.13 here")

    monkeypatch.setattr(nvjitlink, "version", missing)
    assert installation.trouble() == f"{CANNOT}there is no libnvJitLink.so.13 here: {brings}"


def test_whatever_else_is_wrong_shows_in_a_first_kernel(gpu, monkeypatch, capsys):
    gpu()
    tries = []

    def run():
        tries.append(1)
        raise OSError("no space\nleft on device")

    monkeypatch.setattr(installation._trial, "run", run)
    reason = f"{CANNOT}a first kernel could not be compiled and loaded (OSError: no space left on device)"
    for _ in range(2):
        with pytest.raises(ImportError) as raised:
            installation.require()
        assert str(raised.value) == reason
    assert len(tries) == 1  # it takes long, and is looked at once
    with pytest.raises(ImportError, match="a first kernel could not be compiled"):
        _backends.get("cuda").ArrayPlan  # noqa: B018
    assert main(["info"]) == 0
    assert reason in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cuda_trouble"] == reason


def test_with_all_of_it_nothing_is_said(gpu, have, monkeypatch):
    gpu()
    installation.require()
    have({**ALL, "cuBLASLt": None})  # which only products need
    installation.require()
    for name in ("Network", "dense_forward"):
        with pytest.raises(ImportError, match=r"lacks cuBLASLt: pip install 'fastopt\[cuda\]' brings the libraries$"):
            getattr(cuda, name)


def test_models_say_what_is_missing(have, capsys, tmp_path):
    have(NOTHING)
    model = fastopt.Sequential([fastopt.Dense(1)], backend="cuda")
    model.compile(loss="mean_squared_error")
    x = np.ones((4, 2))
    with pytest.raises(ImportError, match=r"the backend 'cuda' lacks .*driver: pip install"):
        model.fit(x, x[:, 0])
    with pytest.raises(ImportError, match=r"the backend 'cuda' lacks .*driver: pip install"):
        model.predict(x)
    model.backend = "cpu"
    model.fit(x, x[:, 0])
    table = tmp_path / "table.csv"
    table.write_text("1,2.5\n3,4.5\n5,6.5\n7,8.5\n9,1.5\n")
    for more in ([], ["--quiet"]):
        assert main(["train", str(table), "--backend", "cuda", *more]) == 2
        assert capsys.readouterr().err.startswith("fastopt: error: the backend 'cuda' lacks numba-cuda, ")


def test_the_simulator_needs_numba_cuda_alone(have, monkeypatch):
    have({**NOTHING, "numba-cuda": "0.30.4"})
    monkeypatch.setattr(requirements, "simulated", lambda: True)
    installation.require()
    have(NOTHING)
    monkeypatch.setattr(requirements, "simulated", lambda: True)
    with pytest.raises(ImportError, match="lacks numba-cuda"):
        installation.require()


def test_what_the_backend_does_not_have():
    with pytest.raises(AttributeError, match="the backend 'cuda' has no forward; it has ArrayPlan, "):
        cuda.forward  # noqa: B018


def test_a_machine_without_a_driver(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libno-such-driver.so")
    for asked in (driver.opened, driver.library):
        asked.cache_clear()
    try:
        with pytest.raises(driver.CudaError, match="there is no NVIDIA driver here: .*no-such-driver"):
            driver.library()
        found = requirements.find_requirements()
    finally:
        for asked in (driver.opened, driver.library):
            asked.cache_clear()
    assert found.keys() == ALL.keys()
    assert (found["driver"], found["devices"]) == (None, [])


def test_info_in_one_line():
    assert _cuda(ALL, "") == "NVIDIA H200 (9.0), driver 13.0, numba-cuda 0.30.4, libNVVM, nvJitLink, NVRTC, cuBLASLt"
    assert _cuda(NOTHING, "x lacks y") == "missing: numba-cuda, libNVVM, nvJitLink, NVRTC, cuBLASLt, driver, devices"
    assert _cuda({**ALL, "cuBLASLt": None}, "").endswith("NVRTC; missing: cuBLASLt")
    assert _cuda(ALL, "the driver is too old").endswith("NVRTC, cuBLASLt; the driver is too old")


def test_torch_goes_on_with_its_own_code(gpu):
    """And `explain` says why."""
    pytest.importorskip("torch", reason="in the extra `torch`")
    from fastopt.torch import _devices

    gpu(knows=12080)
    _devices.why_no_cuda.cache_clear()
    try:
        assert _devices.why_no_cuda() == installation.trouble() != ""
    finally:
        _devices.why_no_cuda.cache_clear()

"""What the backend says where parts of it are missing: here, whatever there is, and where all of it is made up."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt import _backends
from fastopt.cli import main
from fastopt.commands.info import _cuda
from fastopt.kernels import cuda
from fastopt.kernels.cuda import driver, parts

ALL = {
    "numba-cuda": "0.30.4", "libNVVM": "/a", "nvJitLink": "/b", "NVRTC": "/c", "cuBLASLt": "/d", "driver": "13.0",
    "devices": ["NVIDIA H200 (9.0)"],
}  # fmt: skip
NOTHING = dict.fromkeys(ALL) | {"devices": []}


@pytest.fixture
def have(monkeypatch):
    def have(found):
        monkeypatch.setattr(parts, "parts", lambda: found)
        monkeypatch.setattr(parts, "_numba_cuda", lambda: found["numba-cuda"])
        monkeypatch.setattr(parts, "simulated", lambda: False)
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
        ({**ALL, "devices": []}, "lacks a device: the driver comes with the system, and wants an NVIDIA GPU$"),
    ],
)
def test_what_is_missing_is_said(have, found, message):
    have(found)
    with pytest.raises(ImportError, match=message):
        _backends.get("cuda").ArrayPlan  # noqa: B018


def test_with_all_of_it_nothing_is_said(have):
    have(ALL)
    parts.require()
    have({**ALL, "cuBLASLt": None})  # which only products need
    parts.require()
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
    monkeypatch.setattr(parts, "simulated", lambda: True)
    parts.require()
    have(NOTHING)
    monkeypatch.setattr(parts, "simulated", lambda: True)
    with pytest.raises(ImportError, match="lacks numba-cuda"):
        parts.require()


def test_what_the_backend_does_not_have():
    with pytest.raises(AttributeError, match="the backend 'cuda' has no forward; it has ArrayPlan, "):
        cuda.forward  # noqa: B018


def test_a_machine_without_a_driver(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libno-such-driver.so")
    driver.library.cache_clear()
    try:
        with pytest.raises(driver.CudaError, match="there is no NVIDIA driver here: .*no-such-driver"):
            driver.library()
        found = parts.parts()
    finally:
        driver.library.cache_clear()
    assert found.keys() == ALL.keys()
    assert (found["driver"], found["devices"]) == (None, [])


def test_info_in_one_line():
    assert _cuda(ALL) == "NVIDIA H200 (9.0), driver 13.0, numba-cuda 0.30.4, libNVVM, nvJitLink, NVRTC, cuBLASLt"
    assert _cuda(NOTHING) == "missing: numba-cuda, libNVVM, nvJitLink, NVRTC, cuBLASLt, driver, devices"
    assert _cuda({**ALL, "cuBLASLt": None}).endswith("NVRTC; missing: cuBLASLt")

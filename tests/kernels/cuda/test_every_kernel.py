"""Every kernel is tested, has the same bits in every run, and passes compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
import helpers_every

from fastopt.kernels.cuda.runtime.array_interface import gpu_of

pytestmark = pytest.mark.gpu

AGAIN = 10
SANITIZER_SECONDS = 300  # of a tool: a GPU is lent for minutes
TOOLS = {"memcheck": "all", "racecheck": "ours", "synccheck": "ours", "initcheck": "ours"}
CASES = dict(helpers_every.every())
device_alone = pytest.mark.skipif(SIMULATED, reason="the simulator has no races, and no memory of its own")


def words(call):
    return [array.copy_to_host().tobytes() for array in call()]


def test_every_kernel_is_launched(monkeypatch, capsys):
    launched, gpu = set(), type(gpu_of(()))
    launch = gpu.launch

    def spy(self, kernel, *args):
        launched.add(kernel.name)
        launch(self, kernel, *args)

    monkeypatch.setattr(gpu, "launch", spy)
    helpers_every.main("all")
    count = len(CASES) + 1  # with the products
    assert f"{count} of {count} calls, of {len(helpers_every.kernels())} kernels" in capsys.readouterr().out
    assert {kernel.name for kernel in helpers_every.kernels()} <= launched


@device_alone
@pytest.mark.parametrize("name", CASES)
def test_runs_are_alike(name):
    first = words(CASES[name])
    for _ in range(AGAIN):
        assert words(CASES[name]) == first


@device_alone
def test_runs_of_products_are_alike():
    first = words(helpers_every.products)
    for _ in range(AGAIN):
        assert words(helpers_every.products) == first


@pytest.mark.slow
@device_alone
@pytest.mark.parametrize("tool", TOOLS)
def test_compute_sanitizer(tool):
    """Bounds, races between threads of a block, barriers, and reads of what nobody has written."""
    command = shutil.which("compute-sanitizer")
    if command is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    script = [sys.executable, helpers_every.__file__, TOOLS[tool]]
    options = ["--tool", tool, "--error-exitcode", "9", "--launch-timeout", "0"]
    if TOOLS[tool] == "ours":  # mangled names of our kernels have the package's in them; cuBLAS's are NVIDIA's business
        options += ["--kernel-name", "kernel_substring=fastopt"]
    paths = os.pathsep.join([str(Path(helpers_every.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [command, *options, *script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=SANITIZER_SECONDS,
    )
    said = done.stdout + done.stderr
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this device here")
    assert done.returncode == 0, said[-5000:]
    assert "ERROR SUMMARY: 0 errors" in said or "RACECHECK SUMMARY: 0 hazards" in said, said[-5000:]

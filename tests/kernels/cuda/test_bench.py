"""The benchmarks for a GPU: that they run, from the command to the report, as far as the simulator goes."""

from __future__ import annotations

import json
import os

import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
pytest.importorskip("pytest_benchmark", reason="in the extra `bench`")
from fastopt.cli import main
from fastopt.reports import read

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# A few of each suite: all of them take the simulator minutes.
ONLY = {
    "limits": "copy or 4096",
    "updates": "(adam-float32-1000000 or momentum-float64-1000000 or (adam-bfloat16 and 1000000-)) and not torch",
    "steps": "fastopt and not torch",
    "dense": "(64x784x256 or 4096x4096x10) and not torch",
    "kernels": "relu or hinge or norm or gather or dropout or accuracy",
    "networks": "mlp-64",
    "small_networks": "64-32-10-8 and not torch",
}
KINDS = {"limit", "update", "step", "dense", "loss", "kernel", "epoch"}


def test_a_file_has_the_name_of_the_gpu(tmp_path, capfd, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", "--backend", "cuda", "limits", "--quick", "-k", "copy and driver", "--json"]
    assert main.main(arguments) == 0, capfd.readouterr().out
    (file,) = tmp_path.glob("*.json")
    name = json.loads(file.read_text(encoding="utf-8"))["machine_info"]["gpu"]["name"].lower()
    assert file.stem == "numba-s-simulator" if SIMULATED else all(word in name for word in file.stem.split("-"))


def test_a_quick_run_makes_a_report(tmp_path, capfd, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # pytest-benchmark measures nothing in one of several workers
    found = set()
    for suite, only in ONLY.items():
        path = tmp_path / f"{suite}.json"
        status = main.main(["bench", "--backend", "cuda", suite, "--quick", "--json", str(path), "-k", only])
        out = capfd.readouterr().out
        assert status == 0, out
        run = read.read(path)
        assert run.gpu
        assert all(result.seconds > 0 for result in run.results)
        found |= {result.kind for result in run.results}
        assert main.main(["report", str(path)]) == 0
        gpu = json.loads(path.read_text(encoding="utf-8"))["machine_info"]["gpu"]
        assert gpu["simulated"] == SIMULATED
        assert gpu["name"] in run.machine
    assert found == KINDS

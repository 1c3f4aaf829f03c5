"""Facts that a survey depends on: the device and its clocks, the driver, libraries, tools, missing parts.

python -m fastopt.benchmarks.cuda.facts [--clocks]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastopt.benchmarks.cuda.child import device, main, tell
from fastopt.benchmarks.workloads import Absent
from fastopt.cli import info

# Packages besides those of `fastopt info`.
PACKAGES = (
    "numba-cuda", "cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "nvidia-nvjitlink", "nvidia-nvvm",
    "nvidia-cublas", "torch", "triton", "cupy-cuda13x", "pytest", "pytest-xdist", "pytest-timeout", "pytest-benchmark",
    "hypothesis", "expecttest",
)  # fmt: skip
WANTED = ("numba-cuda", "pytest", "pytest-xdist", "pytest-timeout", "pytest-benchmark", "hypothesis", "expecttest")
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "gcc", "g++")
ENVIRONMENT = ("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "FASTOPT_CACHE_DIR")


def packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def collect() -> str:
    """Report all facts, and return a line."""
    known = info.collect()
    versions = {**known["versions"], **packages()}
    tell(
        versions=versions, cuda=known["cuda"], trouble=known["cuda_trouble"], processor=known["processor"],
        cache=known["cache"], platform=platform.platform(), python=sys.version,
        tools={name: shutil.which(name) for name in TOOLS},
        environment={name: os.environ.get(name) for name in ENVIRONMENT},
        missing=[name for name in WANTED if versions[name] is None],
    )  # fmt: skip
    return clocks()


def clocks() -> str:
    """Report the current clocks, and return a line."""
    from fastopt.benchmarks.cuda.device import facts

    device()
    found = facts()
    tell(gpu=found)
    return summary(found)


def summary(gpu: dict[str, Any]) -> str:
    """Return a line about the device."""
    parts = [str(gpu.get("name")), f"capability {gpu.get('capability')}"]
    if "driver_version" in gpu:
        parts.append(f"driver {gpu['driver_version']}")
    parts += [f"CUDA {gpu['cuda']}"] if "cuda" in gpu else []
    parts += [f"clock {gpu['clocks.sm']} of {gpu['clocks.max.sm']}"] if "clocks.sm" in gpu else []
    parts += [f"memory {gpu['clocks.mem']}"] if "clocks.mem" in gpu else []
    parts += [f"{gpu['temperature.gpu']} C"] if "temperature.gpu" in gpu else []
    return ", ".join(parts)


def absent(reason: str) -> str:
    """Return the reason why a stage cannot run."""
    raise Absent(reason)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clocks", action="store_true", help="only what changes while a survey runs")
    parser.add_argument("--absent", metavar="REASON", help="say why a stage cannot be")
    arguments = parser.parse_args()
    if arguments.absent:
        main(lambda: absent(arguments.absent))
    main(clocks if arguments.clocks else collect)

"""Smoke checks: small checks of what only a device can show, each in a process of its own.

python -m fastopt.benchmarks.cuda.smoke NAME

A check that spoils its context, or hangs, does not affect the others. Under Numba's simulator those without torch run
on tiny arrays. The table imports nothing of CUDA, so that names can be read without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

from fastopt.benchmarks.cuda.child import main

CHECKS = {  # name of the check: its module, smoke_...; the function has the check's name
    "first-kernel": "device",
    "zero-memset": "device",
    "pageable-reuse": "device",
    "pinned-words": "device",
    "shared-memory": "device",
    "events": "device",
    "streams": "device",
    "graph-capture": "device",
    "strict-capture": "device",
    "most-blocks": "device",
    "past-32-bits": "device",
    "first-steps": "steps",
    "bits-float32": "steps",
    "bits-float64": "steps",
    "bits-float16": "steps",
    "bits-bfloat16": "steps",
    "rounding": "steps",
    "clipping": "steps",
    "skipping": "steps",
    "heuristics": "networks",
    "dense-float32": "networks",
    "dense-tf32": "networks",
    "dense-float16": "networks",
    "dense-bfloat16": "networks",
    "kernels": "networks",
    "graph-network": "networks",
    "fused-network": "networks",
    "mixed-network": "networks",
    "streamed-network": "networks",
    "torch-arrays": "torch",
    "torch-no-waiting": "torch",
    "torch-streams": "torch",
    "torch-graph": "torch",
    "torch-steps": "torch",
    "torch-scaler": "torch",
    "cupy-arrays": "torch",
}


def check(name: str) -> Callable[[], str]:
    """Return the check with this name: it returns a line, or raises."""
    found: Callable[[], str] = getattr(
        import_module(f"fastopt.benchmarks.cuda.smoke_{CHECKS[name]}"), name.replace("-", "_")
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CHECKS)
    arguments = parser.parse_args()
    main(lambda: check(arguments.name)())

"""Figures of the program as a whole: what importing costs, and what `fastopt train` takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from fastopt.benchmarks.limits import interleave

Row = tuple[str, str, str, str]


def _seconds(*command: str, **environment: str) -> Callable[[], None]:
    def call() -> None:
        subprocess.run(command, check=True, env=os.environ | environment, capture_output=True)

    return call


def imports() -> Iterator[Row]:
    """What `import fastopt` adds to the start of Python, against `import numpy`."""
    times = interleave(
        {
            "start": _seconds(sys.executable, "-c", "pass"),
            "numpy": _seconds(sys.executable, "-c", "import numpy"),
            "fastopt": _seconds(sys.executable, "-c", "import numpy, fastopt"),
        },
        rounds=21,
    )
    theirs, ours = times["numpy"] - times["start"], times["fastopt"] - times["numpy"]
    yield "import fastopt, after numpy", f"{ours * 1e3:.1f} ms", f"numpy {theirs * 1e3:.1f} ms", f"{ours / theirs:.2f}"


def train() -> Iterator[Row]:
    """`fastopt train` with its defaults, the whole process: with an empty cache folder and with a full one."""
    folder = tempfile.mkdtemp()
    try:
        command = _seconds(sys.executable, "-m", "fastopt", "train", FASTOPT_CACHE_DIR=folder)
        first = interleave({"first": command}, rounds=1, warm=0)["first"]
        later = interleave({"later": command}, rounds=5, warm=0)["later"]
    finally:
        shutil.rmtree(folder)
    yield "fastopt train, first time ever", f"{first:.1f} s", "", ""
    yield "fastopt train, afterwards", f"{later:.1f} s", "", ""

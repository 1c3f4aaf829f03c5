"""Every kernel under a tool of compute-sanitizer.

python -m fastopt.benchmarks.cuda.sanitizer TOOL
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fastopt.benchmarks.cuda.child import device, main, tell
from fastopt.benchmarks.cuda.stages import TOOLS, checkout
from fastopt.benchmarks.workloads import Absent

SCRIPT = Path("tests", "helpers_every.py")
SECONDS = 80  # seconds of kernels, all kinds early; the tool itself needs the rest
FAILED = 9  # exit status of a tool that has found an error
FOLDERS = ("bin", "compute-sanitizer", "extras/compute-sanitizer")  # of a toolkit


def binary() -> str:
    """Return compute-sanitizer from PATH, a toolkit, or NVIDIA's wheel. Raises Absent."""
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]
    places = [Path(toolkit, folder) for toolkit in toolkits for folder in FOLDERS]
    places += [Path(entry, "nvidia", "cu13", "bin") for entry in sys.path if entry]
    found = shutil.which("compute-sanitizer") or next(
        (path for place in places if (path := shutil.which("compute-sanitizer", path=str(place)))), None
    )
    if found is None:
        raise Absent("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    return found


def command(sanitizer: str, tool: str, script: Path) -> list[str]:
    """Return the command line. memcheck checks all kernels; other tools check ours alone, not cuBLAS's."""
    options = ["--tool", tool, "--error-exitcode", str(FAILED), "--launch-timeout", "0"]
    if tool != "memcheck":
        options += ["--kernel-name", "kernel_substring=fastopt"]  # mangled names have the package's in them
    what = "all" if tool == "memcheck" else "ours"
    return [sanitizer, *options, sys.executable, str(script), what, str(SECONDS)]


def summary(said: str) -> str:
    """Return the tool's summary line."""
    lines = [line.strip("= \t") for line in said.splitlines()]
    return next((line for line in reversed(lines) if "SUMMARY" in line), "")


def check(tool: str) -> str:
    """Run the tool; raise if it has found an error."""
    place = checkout()
    if place is None:
        raise Absent("the script is in tests/: run the survey in a checkout")
    script = place / SCRIPT
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    device()
    found = command(binary(), tool, script)
    print("$", *found, flush=True)
    said: list[str] = []
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(
        found, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)  # reported at once, in case the time is up
            if len(said) < 100_000:
                said.append(line)
    text = "".join(said)
    if "Device not supported" in text:
        raise Absent("compute-sanitizer does not support this device here")
    calls = re.findall(r"^\d+ of \d+ calls", text, re.MULTILINE)
    word = ", ".join(filter(None, (*calls[-1:], summary(text))))
    tell(summary=word)
    if process.returncode:
        errors = re.findall(r"========= (?:Error: |Warning: )?([^\n]+)", text)
        raise AssertionError(word or (errors[0] if errors else f"exit status {process.returncode}"))
    if "SUMMARY" not in word:
        raise AssertionError("compute-sanitizer said nothing of what it had found")
    return word


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    arguments = parser.parse_args()
    main(lambda: check(arguments.tool))

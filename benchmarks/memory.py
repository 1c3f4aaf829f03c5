"""Peak memory of training, each contestant in a process of its own: `python -m fastopt.benchmarks.memory NAME`.

The process prints a JSON object with two numbers of bytes: resident memory `before` training, with libraries imported
and data loaded, and the `peak` while a model trains on the workload "wide". Only Linux can reset and report the peak.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from fastopt.benchmarks.peers import PEERS, tolerant
from fastopt.benchmarks.workloads import WORKLOADS, Absent, Workload

CONTESTANTS = ("fastopt", "torch-fused", "torch-default", "jax-step", "jax-scan")
RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


def resident(field: str) -> int:
    """Resident memory in bytes: VmRSS is the present one, VmHWM the peak since the last reset."""
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def train(name: str, workload: Workload, steps: int) -> dict[str, int]:
    """Train for some steps and return `before` and `peak`."""
    workload = replace(workload, order=workload.order[: steps * workload.batch_size])
    with tolerant():
        small = WORKLOADS["wide"](True)
        PEERS[name](small).epoch()  # late imports, and start of threads
        before = resident("VmRSS")
        peer = PEERS[name](workload)
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        peer.epoch()
    return {"before": before, "peak": resident("VmHWM")}


def measure(name: str, short: bool = False) -> dict[str, int]:
    """Return `before` and `peak` of a contestant, measured in a process of its own. Raises Absent."""
    if not Path("/proc/self/clear_refs").exists():
        raise Absent("the peak of resident memory is known on Linux only")
    command = [sys.executable, "-m", "fastopt.benchmarks.memory", name, *["--short"] * short]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Absent(done.stderr.strip().rpartition("\n")[2] or f"{name} ended with status {done.returncode}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS, metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--steps", type=int, default=20, help="(default: 20)")
    parser.add_argument("--short", action="store_true", help="a small network")
    args = parser.parse_args()
    try:
        print(json.dumps(train(args.name, WORKLOADS["wide"](args.short), args.steps)))
    except Absent as reason:
        parser.exit(1, f"{reason}\n")


if __name__ == "__main__":
    main()

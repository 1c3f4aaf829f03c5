"""Peak memory of training 1024-4096-4096-10, each contestant in a process of its own."""

import pytest

from fastopt.benchmarks import memory
from fastopt.benchmarks.workloads import TITLES, Absent


@pytest.mark.parametrize("contestant", memory.CONTESTANTS)
def test_memory(benchmark, note, quick, contestant):
    if benchmark.disabled:
        pytest.skip("nothing to agree on")
    benchmark.group = "peak memory of 1024-4096-4096-10"
    try:  # the time is the process's, and of no interest
        found = benchmark.pedantic(memory.measure, (contestant, quick), rounds=1)
    except Absent as reason:
        pytest.skip(str(reason))
    note("memory", "wide", contestant, size=0, title=TITLES["wide"])
    benchmark.extra_info |= {"before_bytes": found["before"], "peak_bytes": found["peak"]}

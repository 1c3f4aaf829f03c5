"""Matrix products and small training steps: our kernels and the libraries that are present, beside the FMA peak."""

import numpy as np
import pytest

from fastopt import get_num_threads
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.peaks import Chains, has_peak
from fastopt.benchmarks.peers.own import Compiled
from fastopt.benchmarks.products import TITLES, TURN_FLOPS, Operands, Shape, label, libraries, turn_count
from fastopt.benchmarks.workloads import make, random_classes
from fastopt.kernels.cpu.dense.blas import using
from fastopt.kernels.cpu.dense.matmul import AS_IS, TRANSPOSED
from fastopt.kernels.cpu.runtime.launch import STEP_FLOPS, num_threads_for

ROUNDS, LARGE_ROUNDS = 7, 3
LARGE_FLOPS = 1e10  # of a product that is timed in few rounds
CHECKED_ROWS = 64  # of a result, evenly spread
STEP_ROUNDS, PEAK_ROUNDS = 25, 25
EPOCHS = 10  # of a turn of small steps
SAME_LOSSES = 1e-4  # relative difference of the losses of an epoch, rounded differently

LAYERS = [(784, 256), (256, 128), (128, 10), (512, 512), (1024, 1024)]  # inputs, outputs
BATCHES = (64, 256, 1024)
TEAMS = ("one thread", "all threads")


def products_of(rows, inputs, outputs):
    """The three products of a layer by direction: y = x w, dx = dy w^T, dw = x^T dy."""
    return {
        "forward": Shape(rows, outputs, inputs),
        "dx": Shape(rows, inputs, outputs, AS_IS, TRANSPOSED),
        "dw": Shape(inputs, outputs, rows, TRANSPOSED, AS_IS),
    }


def cases():
    """Products by (group, direction, dtype, rows x inputs x outputs)."""
    found = {}
    for inputs, outputs in LAYERS:
        for rows in BATCHES:
            for direction, shape in products_of(rows, inputs, outputs).items():
                found["products of a step", direction, "float32", f"{rows}x{inputs}x{outputs}"] = shape
    for rows in (64, 1024):
        for direction, shape in products_of(rows, 784, 256).items():
            found["products of a step", direction, "float64", f"{rows}x784x256"] = shape
    for rows in BATCHES:
        for inputs, outputs in ((784, 256), (1024, 1024)):
            for direction, shape in products_of(rows, inputs, outputs).items():
                found["products of a step", direction, "bfloat16", f"{rows}x{inputs}x{outputs}"] = shape
    for side in (1024, 2048, 4096):
        found["products of squares", "square", "float32", f"{side}x{side}x{side}"] = Shape(side, side, side)
    return found


CASES = cases()


def threads_of(team):
    """The threads of a team; the test is skipped if both teams are one thread."""
    threads = get_num_threads() if team == "all threads" else 1
    if team == "all threads" and threads == 1:
        pytest.skip("one thread is all")
    return threads


def assert_product(operands, rows):
    """Each thread's result is that of float64, to the rounding of a sum of k products."""
    expected, allowed = operands.expected(rows), 4 * np.finfo(operands.dtype).eps * operands.shape.k
    for result in operands.c:
        np.testing.assert_allclose(result[rows], expected, rtol=0, atol=allowed)


def measured(shape, dtype, threads, names, quick, timed):
    """Check every contestant's product, and return its seconds by contestant and round, with those of the FMA peak."""
    operands, count = Operands(shape, dtype, threads), 1 if quick else turn_count(shape)
    rows = np.unique(np.linspace(0, shape.m - 1, CHECKED_ROWS).astype(int))
    calls = {}
    for name in names:
        operands.c[...] = np.nan
        operands.call(libraries(dtype)[name], 1)()
        assert_product(operands, rows)
        calls[name] = operands.call(libraries(dtype)[name], count)
    if not timed:
        return {}
    peak = Chains(dtype, threads, TURN_FLOPS / 10 if quick else TURN_FLOPS)
    rounds = 2 if quick else LARGE_ROUNDS if shape.flops > LARGE_FLOPS else ROUNDS
    times = interleaved_times(calls | {"peak": peak.run}, rounds)
    found = {name: [seconds / count for seconds in times[name]] for name in names}
    return found | {"peak": [seconds * threads * shape.flops / peak.flops for seconds in times["peak"]]}


@interleaved
@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_registers(benchmark, note, quick, dtype, team):
    if not has_peak(dtype):
        pytest.skip(f"the processor does not calculate in {dtype}")
    if benchmark.disabled:
        pytest.skip("nothing to agree on")
    threads = threads_of(team)
    benchmark.group = f"FMA peak, {dtype}, {team}"
    chains = Chains(dtype, threads, TURN_FLOPS)
    record(benchmark, interleaved_times({"peak": chains.run}, 2 if quick else PEAK_ROUNDS)["peak"])
    note("limit", f"multiplications and additions, {team}", "registers", size=int(chains.flops), shape="in registers",
         dtype=dtype, threads=threads, contestant_title="registers", flops=chains.flops)  # fmt: skip


@interleaved
@pytest.mark.parametrize("contestant", TITLES)
@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_product(benchmark, note, request, quick, case, team, contestant):
    threads = threads_of(team)
    (group, direction, dtype, text), shape = case, CASES[case]
    if contestant not in libraries(dtype):
        pytest.skip(f"{TITLES[contestant]} is not on this machine, or has no products of {dtype}")
    if quick and shape.flops > LARGE_FLOPS:
        pytest.skip("a large product: when timed")
    benchmark.group = f"{direction} {text} {dtype}, {team}"
    timed = not benchmark.disabled
    found = shared_result(
        request,
        lambda names: measured(shape, dtype, threads, [x for x in names if x in libraries(dtype)], quick, timed),
    )
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    record(benchmark, found[contestant])
    note("product", f"{direction}, {team}", contestant, size=shape.m * shape.n * shape.k, shape=text, dtype=dtype,
         threads=threads, title=f"{group}, {team}", contestant_title=label(libraries(dtype)[contestant]),
         flops=threads * shape.flops, limit=min(found["peak"]))  # fmt: skip


def trained(workload, names, rounds):
    """Return the seconds of a step by contestant and round, each trained by its own library's products.

    Bias, activation, loss and update are the same kernels for all.
    """
    peers, losses = {}, {}
    for name in names:
        with using(libraries()[name]):  # an epoch builds the program
            peers[name] = Compiled(workload)
            losses[name] = peers[name].epoch()
    first = losses[names[0]]
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, first, rtol=SAME_LOSSES, err_msg=f"{name} against {names[0]}")
    times = interleaved_times({name: peer.epoch for name, peer in peers.items()}, rounds, count=EPOCHS)
    return {name: [seconds / workload.steps for seconds in taken] for name, taken in times.items()}


@interleaved
@pytest.mark.parametrize("contestant", TITLES)
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_small_step(benchmark, note, request, quick, width, rows, contestant):
    if contestant not in libraries():
        pytest.skip(f"{TITLES[contestant]} is not on this machine")
    workload = make("small", *random_classes(50 * rows, width), (width, width), rows)
    benchmark.group = f"training step of {workload.shape}"
    rounds = 0 if benchmark.disabled else 2 if quick else STEP_ROUNDS
    found = shared_result(
        request, lambda names: trained(workload, [name for name in names if name in libraries()], rounds)
    )
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    record(benchmark, found[contestant])
    flops = workload.flops / workload.steps
    note("product", "step with Adam", contestant, size=workload.parameters, shape=workload.shape,
         title="small training steps", contestant_title=label(libraries()[contestant]), flops=flops,
         threads=num_threads_for(flops, STEP_FLOPS, rows))  # fmt: skip

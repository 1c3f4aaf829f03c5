"""`step` with sparse gradients of an embedding table, against torch's sparse gradients and a dense one."""

import numpy as np
import pytest

import fastopt as fo
from fastopt.benchmarks.interleaved import available, interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.peers import TITLES, need, tolerant
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.costs import update_flops
from fastopt.kernels.formulas import OPTIMIZERS

TABLE, COUNT = (100_000, 64), 4_096  # shape of the table; rows in a gradient, some of them twice
BATCHES = 8  # of indices, one after the other, so that a step's rows are not in the caches yet
ROUNDS, STEPS = 15, 5
CONTESTANTS = {
    "fastopt": "fastopt", "numpy": TITLES["numpy"], "torch-default": "torch, sparse gradient",
    "fastopt-dense": "fastopt, whole gradient",
}  # fmt: skip
OURS = {"sgd": fo.SGD, "adagrad": fo.Adagrad, "adam": fo.Adam}
EPS = 1e-12  # small, because SparseAdam adds it elsewhere


def drawn():
    rng = np.random.default_rng(0)
    table = rng.standard_normal(TABLE, "float32")
    return table, rng.integers(0, TABLE[0], (BATCHES, COUNT)), rng.standard_normal((COUNT, TABLE[1]), "float32")


def step_by(name, rule):
    """Return the table, and a step on it as a call. Raises Absent."""
    table, batches, values = drawn()
    options = {"lr": 1e-2} if rule == "sgd" else {"lr": 1e-2, "eps": EPS}
    done = iter(range(10**9))
    if name == "torch-default":
        need("torch")
        import torch

        from fastopt.benchmarks.peers.with_torch import use_our_threads

        use_our_threads()
        tensor = torch.nn.Parameter(torch.from_numpy(table))
        cls = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}[rule]
        peer = cls([tensor], **options)
        indices, values = torch.from_numpy(batches), torch.from_numpy(values)

        def step():
            at = indices[next(done) % BATCHES][None]
            tensor.grad = torch.sparse_coo_tensor(at, values, TABLE, check_invariants=False)
            peer.step()

        return table, step
    optimizer = OURS[rule](table, **options, backend="numpy" if name == "numpy" else "cpu")
    if name == "fastopt-dense":
        whole = np.zeros(TABLE, "float32")
        return table, lambda: optimizer.step(whole)
    return table, lambda: optimizer.step((batches[next(done) % BATCHES], values))


def measured(rule, names, quick):
    """Return the seconds of a step by contestant."""
    with tolerant():
        calls = available(lambda name: step_by(name, rule)[1], names)
        return interleaved_times(calls, 3 if quick else ROUNDS, count=STEPS)


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("rule", OURS)
def test_rows(benchmark, note, request, quick, contestant, rule):
    benchmark.group = f"{rule} step of {COUNT} rows"
    try:
        with tolerant():
            table, step = step_by(contestant, rule)
            step()
    except Absent as reason:
        pytest.skip(str(reason))
    expected, of_reference = step_by("numpy", rule)
    if contestant != "fastopt-dense":
        of_reference()
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-6)
    if benchmark.disabled:
        benchmark(lambda: None)
        return
    found = shared_result(request, lambda names: measured(rule, names, quick))
    record(benchmark, found[contestant])
    size = COUNT * TABLE[1]  # and of them a few listed twice
    moved = (3 + 2 * len(OPTIMIZERS[rule].states)) * 4 * size
    note("step", rule, contestant, size=size, shape=f"{COUNT} of {TABLE[0]:,} rows of {TABLE[1]}", moved=moved,
         flops=update_flops(rule) * size, contestant_title=CONTESTANTS[contestant])  # fmt: skip

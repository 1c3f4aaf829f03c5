"""Training on several ranks: the same bits for any number of them, and errors that every rank is told of."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_mpi import results
from helpers_mpi_cases import NAMES, PROGRAM, alone

ALL = "\ntell({name: train(name, distributed='mpi')[0] for name in sys.argv[1].split(',')})"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.repeats)])
def test_any_number_of_ranks_has_the_same_bits(ranks):
    """Weights, states and figures, on every rank; a training of several cases in one job."""
    names = NAMES if ranks == 3 else NAMES[:1]
    told = results(ranks, PROGRAM + ALL, ",".join(names))
    for name in names:
        wanted = alone(name, distributed="mpi")[0]
        for rank in range(ranks):
            assert told[rank][name] == wanted, (name, rank)


SMALL_BUCKETS = """
from fastopt.kernels.cpu.training import pieces
from fastopt.distributed import _exchange
pieces.BUCKET_BYTES, _exchange.MESSAGE_BYTES = 32, 64
"""


@pytest.mark.slow
@pytest.mark.repeats
def test_gradients_that_travel_in_buckets():
    """While the layers below are computed, and cut into messages within a parameter.

    The order of a sum of squares, for clipping, is that of the buckets.
    """
    names = ("sgd", "weighted", "averaged", "frozen", "adam")
    told = results(2, SMALL_BUCKETS + PROGRAM + ALL, ",".join(names))
    for name in names[:-1]:
        wanted = alone(name, distributed="mpi")[0]
        assert [told[rank][name] for rank in (0, 1)] == [wanted] * 2, name
    one = results(1, SMALL_BUCKETS + PROGRAM + ALL, "adam")
    assert [of_rank["adam"] for of_rank in told] == [one[0]["adam"]] * 2


DIVIDED = """
import resource
told, model, history = train("adam", distributed="mpi", shard_states=True)
states = [v for s in model.optimizer.state_dict()["state"].values() for v in s.values() if hasattr(v, "shape")]
zeros = sum(int((s == 0).sum()) for s in states) / sum(s.size for s in states)
def refusal(f, *args, **options):
    try:
        f(*args, **options)
    except ValueError as error:
        return str(error)
again = train("adam", distributed="mpi", shard_states=True, epochs=4)[0]
on = model.fit(x, labels, batch_size=64, epochs=4, initial_epoch=2, distributed="mpi", shard_states=True, verbose=0)
weights = digest(model.parameters)
import io
tell([told, zeros, refusal(model.save, io.BytesIO()), refusal(model.fit, x, labels), again[0], weights])
"""


@pytest.mark.slow
@pytest.mark.repeats
def test_states_are_divided():
    """Weights and figures are those of states that are not; rank 0 has all states, the other its part."""
    first, second = results(2, PROGRAM + DIVIDED)
    wanted = alone("adam", distributed="mpi")[0]
    assert first[0] == wanted
    assert second[0][0] == wanted[0]
    assert second[0][1] != wanted[1]
    assert first[1] < 0.1 < 0.4 < second[1] < 0.7
    assert first[2] is first[3] is None
    assert "this rank has a part of the optimizer's states alone: save on rank 0" in second[2]
    assert "fit goes on with shard_states=True" in second[3]
    assert first[4] == first[5] == second[4] == second[5]


WIRE = "\ntell([train(n, distributed='mpi', wire_dtype='bfloat16')[0] for n in ('sgd', 'weighted')])"


@pytest.mark.slow
@pytest.mark.repeats
def test_bfloat16_on_the_wire():
    """Alike on all ranks, other bits than float32, and nearly its losses."""
    first, second = results(2, PROGRAM + WIRE)
    assert first == second
    for name, found in zip(("sgd", "weighted"), first, strict=True):
        wanted = alone(name, distributed="mpi")[0]
        assert found[0] != wanted[0]
        np.testing.assert_allclose(found[4], wanted[4], rtol=0.02)


FAST = """
from fastopt.distributed import _tree
class Watched:
    def __init__(self, comm):
        self.comm, self.called = comm, []
    def __getattr__(self, name):
        def call(*args, **more):
            sums = any(arg is distributed._world.mpi().SUM for arg in args)
            self.called.append(name + " SUM" * sums)
            return getattr(self.comm, name)(*args, **more)
        return call
world = distributed.world()
world.comm = Watched(world.comm)
def figures(name, **more):
    world.comm.called.clear()
    told = train(name, distributed="mpi", **more)[0]
    if more.get("shard_states"):
        told[1] = None  # the states of its part alone
    calls = {call for call in world.comm.called if "SUM" in call or call.endswith(("lltoallv", "llgatherv"))}
    return [told, sorted(calls)]
names = ("sgd", "adam", "averaged")
found = {n: [figures(n, reduction="fast"), figures(n, reduction="fast", shard_states=True)] for n in names}
_tree.LEAST_PIECES = distributed.ranks()  # one a rank
found |= {n: [*found[n], figures(n)] for n in names if distributed.ranks() == 2}
tell(found)
"""


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("buckets", ["", SMALL_BUCKETS], ids=["alone", "overlapped"])
def test_fast_sums_are_those_of_mpi(ranks, buckets):
    """Alike on all ranks; of two, whose sums have one order, those of a tree of one piece a rank; else nearly these."""
    found = results(ranks, buckets + PROGRAM + FAST)
    letter = "Ia" if buckets else "A"
    for name, (whole, divided, *tree) in found[0].items():
        assert all(other[name][0] == whole for other in found)
        assert whole[1] == [f"{letter}llreduce SUM"]
        reduces = f"{'Ir' if buckets else 'R'}educe_scatter SUM"
        assert all(other[name][1] == divided for other in found)
        assert divided[1] == sorted([reduces, f"{letter}llgatherv"])
        assert divided[0][0] == whole[0][0] or ranks > 2 or name == "adam"
        wanted = alone(name, distributed="mpi")[0]
        assert whole[0][0] != wanted[0] or name == "averaged"  # Lion goes by signs
        np.testing.assert_allclose(whole[0][4], wanted[4], rtol=2e-3)
        for sums, calls in tree:
            assert sorted(calls) == sorted([f"{letter}lltoallv", f"{letter}llgatherv"])
            assert sums[:1] + sums[2:] == whole[0][:1] + whole[0][2:] or name == "adam"


TRAFFIC = """
model = fo.Sequential([fo.Dense(300, "relu"), fo.Dense(200), fo.Dense(3)], inputs=6)
model.compile("sgd", "sparse_categorical_crossentropy")
history = model.fit(x, labels, batch_size=64, distributed="mpi", verbose=0)
size = sum(p.nbytes for p in model.parameters)
tell(history.traffic.sent_bytes / (4 * size))
"""


@pytest.mark.slow
@pytest.mark.repeats
def test_bytes_are_the_fewest():
    """2 (n - 1) / n of the gradients in a step, on average over the ranks: four steps."""
    for ranks in (2, 3):
        found = results(ranks, PROGRAM + TRAFFIC)
        assert np.mean(found) == pytest.approx(2 * (ranks - 1) / ranks, rel=0.02)


@pytest.mark.slow
@pytest.mark.repeats
def test_four_ranks_of_two_threads():
    """More ranks than processors, each with more threads than it needs."""
    program = PROGRAM + "\ntell(repr(train('adam', distributed='mpi')[0]))"
    assert results(4, program, FASTOPT_NUM_THREADS="2") == [repr(alone("adam", distributed="mpi")[0])] * 4


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_agrees_with_a_plain_fit(name):
    """To rounding, with dropout, which draws by rows of a step; with several batches a step, a plain one by batch."""
    pytest.importorskip("mpi4py")
    space = {}
    exec(PROGRAM.replace("fo.Dropout(0.3)", "fo.Dropout(0.0)") if name == "sgd" else PROGRAM, space)
    (*_, figures, losses), model, _ = space["train"](name, distributed="mpi")
    (*_, plain_figures, plain_losses), plain, _ = space["train"](name)
    for ours, theirs in zip(model.parameters, plain.parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 if name != "averaged" else 7e-3)
    np.testing.assert_allclose(losses, plain_losses, rtol=2e-3)
    assert figures.keys() == plain_figures.keys()


LOCAL = """
def local(own_rows, weights=None, **more):
    model = fo.Sequential([fo.Dense(9, "tanh"), fo.Dropout(0.2), fo.Dense(3)], seed=2)
    model.compile(fo.SGD(lr=0.1), "sparse_categorical_crossentropy", ["accuracy"])
    model.classes = [0, 1, 2]
    own = None if weights is None else weights[own_rows]
    more |= dict(epochs=2, batch_size=60, shuffle=False, verbose=0, sample_weight=own)
    history = model.fit(x[own_rows], labels[own_rows], **more)
    return [[p.tolist() for p in model.parameters], history["loss"], history["accuracy"], history.step_losses.tolist()]

ends = [0, 150, 153, 203]
rows = np.arange(*ends[distributed.rank() : distributed.rank() + 2])
tell([local(rows, w, distributed="mpi", rows="local") for w in (None, np.arange(203) % 3)])
"""


@pytest.mark.slow
@pytest.mark.repeats
def test_rows_of_each_rank():
    """150, 3 and 50 rows in four steps: those of one process whose steps have the rows of all ranks."""
    told = results(3, PROGRAM + LOCAL)
    assert told[0] == told[1] == told[2]
    space = {}
    exec(PROGRAM, space)
    fo, x, labels = space["fo"], space["x"], space["labels"]
    shares = [np.arange(0, 150), np.arange(150, 153), np.arange(153, 203)]
    cut = [[share[i * len(share) // 4 : (i + 1) * len(share) // 4] for share in shares] for i in range(4)]
    steps = [np.concatenate(parts) for parts in cut]
    for weights, (found, losses, accuracies, step_losses) in zip((None, np.arange(203) % 3), told[0], strict=True):
        model = fo.Sequential([fo.Dense(9, "tanh"), fo.Dropout(0.2), fo.Dense(3)], seed=2)
        model.compile(fo.SGD(lr=0.1), "sparse_categorical_crossentropy", ["accuracy"])
        items = [(x[s], labels[s]) if weights is None else (x[s], labels[s], weights[s]) for s in steps]
        history = model.fit(items, epochs=2, verbose=0)
        for ours, theirs in zip(found, model.parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(step_losses, history.step_losses, rtol=1e-5)
        np.testing.assert_allclose(losses, history["loss"], rtol=1e-6)
        np.testing.assert_allclose(accuracies, history["accuracy"], rtol=1e-9)

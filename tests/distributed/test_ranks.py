"""Training on several ranks: the same bits for any number of them, and errors that every rank is told of."""

from __future__ import annotations

import helpers_mpi
import numpy as np
import pytest
from helpers_mpi import results
from helpers_mpi_cases import NAMES, PROGRAM, alone

ALL = "\ntell({name: train(name, distributed='mpi')[0] for name in sys.argv[1].split(',')})"


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.repeats)])
def test_any_number_of_ranks_has_the_same_bits(ranks):
    """Weights, states and figures, on every rank; a training of several cases in one job."""
    names = NAMES if ranks == 3 else NAMES[:1]
    told = results(ranks, PROGRAM + ALL, ",".join(names))
    for name in names:
        wanted = alone(name, distributed="mpi")[0]
        for rank in range(ranks):
            assert told[rank][name] == wanted, (name, rank)


@pytest.mark.repeats
def test_four_ranks_of_two_threads():
    """More ranks than processors, each with more threads than it needs."""
    job = helpers_mpi.start(
        4, "-c", PROGRAM + "\nprint(repr(train('adam', distributed='mpi')[0]))", FASTOPT_NUM_THREADS="2"
    )
    status, out, err = helpers_mpi.finish(job)
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert lines == [repr(alone("adam", distributed="mpi")[0])] * 4


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_agrees_with_a_plain_fit(name):
    """To rounding; dropout draws by pieces of a step instead of batches, so it is left out."""
    pytest.importorskip("mpi4py")
    space = {}
    exec(PROGRAM.replace("fo.Dropout(0.3)", "fo.Dropout(0.0)"), space)
    (*_, figures, losses), model, _ = space["train"](name, distributed="mpi")
    (*_, plain_figures, plain_losses), plain, _ = space["train"](name)
    for ours, theirs in zip(model.parameters, plain.parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 if name != "averaged" else 7e-3)
    np.testing.assert_allclose(losses, plain_losses, rtol=2e-3)
    assert figures.keys() == plain_figures.keys()

"""The model of a step's time against ranks, by a count of messages that the test does itself; links; measurements."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from helpers_mpi import launcher, results
from hypothesis import given
from hypothesis import strategies as st

from fastopt import distributed
from fastopt.benchmarks import scaling_curves
from fastopt.distributed import Links, StepCost, best_ranks, dense_step, ranks_that_pay, step_time
from fastopt.distributed._tree import share_of

MICRO, NANO = st.floats(0, 1e-5), st.floats(0, 1e-9)
LINKS = st.builds(Links, MICRO, MICRO, NANO)
STEPS = st.builds(
    StepCost, pieces=st.sampled_from([1 << k for k in range(12)]), pieces_seconds=MICRO, update_seconds=MICRO,
    sum_seconds=MICRO, fixed_seconds=MICRO, nbytes=st.integers(1, 10**9), buckets=st.integers(1, 5),
    gathers=st.integers(1, 9),
)  # fmt: skip


@given(STEPS, LINKS, st.integers(0, 2047))
def test_time_is_that_of_its_messages(step, links, number):
    """Messages are counted one by one, those of a ring by its rounds, and of the agreement by doublings."""
    ranks = 1 + number % step.pieces
    found = step_time(step, links, ranks)
    most = max(share_of(rank, ranks, step.pieces)[1] for rank in range(ranks))
    others = range(1, ranks)
    compute = step.fixed_seconds + step.update_seconds / ranks + step.pieces_seconds * most / step.pieces
    compute += sum(step.sum_seconds / ranks for _ in others)
    part = step.nbytes / ranks * links.seconds_per_byte
    one = links.latency + links.overhead + links.overhead
    scatter = sum(part + step.buckets * 2 * links.overhead for _ in others) + step.buckets * links.latency * bool(
        others
    )
    gather = sum(part + step.gathers * one for _ in others)
    reached, agreement = 1, 0.0
    while reached < ranks:
        reached, agreement = 2 * reached, agreement + one
    assert found.ranks == ranks
    assert found.compute == pytest.approx(compute)
    assert found.communication == pytest.approx(scatter + gather + agreement)
    assert found.seconds == found.compute + found.communication
    assert found.sent_bytes == pytest.approx(2 * step.nbytes * (ranks - 1) / ranks)


@given(STEPS, LINKS, st.integers(1, 2000))
def test_best_and_paying_ranks_by_trying_all(step, links, most):
    counts = [ranks for ranks in (1 << k for k in range(11)) if ranks <= min(most, step.pieces)]
    times = {ranks: step_time(step, links, ranks).seconds for ranks in counts}
    assert best_ranks(step, links, most).seconds == min(times.values())
    pays = ranks_that_pay(step, links, most).ranks
    for before, after in pairwise(counts):
        saved, perfect = times[before] - times[after], times[before] / 2
        if after <= pays:
            assert saved >= perfect / 2 * (1 - 1e-9)
        elif before == pays:
            assert saved <= perfect / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("ranks", "error", "words"),
    [(0, ValueError, "ranks must be at least 1"), (5, ValueError, "at most the 4 pieces of a step; got 5"),
     (2.0, TypeError, "ranks must be a whole number")],
)  # fmt: skip
def test_ranks_that_no_step_has(ranks, error, words):
    with pytest.raises(error, match=words):
        step_time(StepCost(4, 1.0, 1.0, 1.0, 1.0, 100), Links(0, 0, 0), ranks)


@pytest.mark.parametrize("wrong", ["parameters", "rows"])
def test_no_network_of_nothing(wrong):
    with pytest.raises(ValueError, match=f"{wrong} must be at least 1; got 0"):
        dense_step(**{"parameters": 10, "rows": 10, wrong: 0}, flops_per_second=1e9, bytes_per_second=1e9)


def test_curves_of_three_networks(tmp_path, monkeypatch, capsys):
    """Small networks stop paying before large ones; a picture with both panels, and a table."""
    pytest.importorskip("matplotlib")
    rates, links = scaling_curves.Rates(1e11, 1.5e10, 35e-6), Links(1.5e-6, 4e-7, 8e-11)
    strong, weak = scaling_curves.strong(rates, links), scaling_curves.weak(rates, links)
    assert [*strong] == [*weak] == ["1e5", "1e7", "1e9"]
    assert {len(times) for times in (*strong.values(), *weak.values())} == {11}
    assert strong["1e5"][-1].seconds > min(time.seconds for time in strong["1e5"])
    assert strong["1e9"][-1].seconds == min(time.seconds for time in strong["1e9"])
    assert strong["1e7"][3].sent_bytes == 2 * 7 / 8 * 4e7
    monkeypatch.setattr(scaling_curves, "measured_rates", lambda: rates)
    path = tmp_path / "scaling.svg"
    scaling_curves.main([str(path), "--latency", "1.5e-6", "--overhead", "4e-7", "--gigabytes", "12.5"])
    text = path.read_text(encoding="utf-8")
    assert text.count("1e9 parameters") >= 2
    assert "131,072 rows a step" in text
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["1e5", "1e7", "1e9"]
    assert int(lines[0].split()[4]) < int(lines[2].split()[4]) == 1024  # the fastest


def test_links_need_two_ranks():
    with pytest.raises(ValueError, match="links need 2 ranks at least \\(mpirun -n 2\\); got 1"):
        distributed.measure_links(SimpleNamespace(ranks=1, rank=0))


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.parametrize("ranks", [2, 3])
def test_links_are_the_same_on_all_ranks(ranks):
    found = results(ranks, "tell(list(distributed.measure_links(nbytes=1 << 20)))")
    assert len(Counter(json.dumps(links) for links in found)) == 1
    latency, overhead, seconds_per_byte = found[0]
    assert 0 <= latency < 1
    assert 0 < overhead < 1
    assert 0 <= seconds_per_byte < 1e-3


@pytest.mark.slow
@pytest.mark.repeats
def test_meter_of_two_ranks():
    """Bytes, messages and calls of a step; the parts of a step's seconds are its whole."""
    pytest.importorskip("pytest_benchmark")
    from fastopt.benchmarks.scaling import Task, contest, predicted

    launcher()
    told = contest(Task((20, 16, 4), 64, 4), ["apart", "two-ranks"], 1)
    parameters = 20 * 16 + 16 + 16 * 4 + 4
    assert [len(one) for one in told["two-ranks"]] == [2, 2]
    for one in told["two-ranks"][1]:
        assert 2 * 4 * parameters * 0.4 <= one["bytes"] <= 2 * 4 * parameters * 0.6
        assert one["messages"] == 2
        assert 0 < one["waiting"] < one["seconds"]
    for one in told["apart"][1]:
        step = StepCost(*one["cost"])
        assert one["bytes"] == one["messages"] == one["waiting"] == 0
        assert (step.pieces, step.nbytes, step.buckets, step.gathers) == (4, 4 * parameters, 1, 1)
        assert min(step[1:5]) > 0
        assert step.seconds == pytest.approx(one["seconds"])
    assert {one["loss"] for one in (*told["two-ranks"][0], *told["apart"][0])} == {told["apart"][0][0]["loss"]}
    time = predicted(told["apart"][1:])
    assert time.ranks == 2
    assert time.sent_bytes == 4 * parameters

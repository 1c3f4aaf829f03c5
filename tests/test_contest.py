"""The contest of the benchmarks: its times, and its notice of a contestant that does other work."""

from dataclasses import replace

import numpy as np
import pytest

from fastopt.benchmarks import contest, peers, workloads
from fastopt.benchmarks.peers.own import Compiled, Reference


@pytest.fixture
def digits():
    return workloads.WORKLOADS["digits"](True)


def test_backends_agree_and_are_timed(digits):
    outcome = contest.contest(digits, ["fastopt", "numpy"], rounds=2, pause=0)
    assert set(outcome.seconds) == {"fastopt", "numpy"}
    assert not outcome.absent
    for name, seconds in outcome.seconds.items():
        assert len(seconds) >= 2
        assert len(outcome.losses[name]) >= len(seconds) + 2  # the first epoch, and that for the length of a turn
        assert outcome.losses[name][-1] < outcome.losses[name][0]
        assert outcome.median(name) == np.median(seconds)


@pytest.mark.parametrize("change", [{"lr": 1.1e-3}, {"optimizer": "momentum"}, {"batch_size": 16}])
def test_other_work_is_noticed(digits, monkeypatch, change):
    monkeypatch.setitem(peers.PEERS, "other", lambda workload: Reference(replace(workload, **change)))
    with pytest.raises(AssertionError, match="digits: the first steps' loss is .* of numpy, but .* of other"):
        contest.contest(digits, ["numpy", "other"], rounds=0)


def test_a_loss_that_is_no_number_is_noticed(digits):
    with pytest.raises(AssertionError, match="nan of b"):
        contest.check(digits, "the loss", {"a": 1.0, "b": float("nan")}, 0.1)


def test_who_is_not_there_says_why(digits, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    outcome = contest.contest(digits, ["numpy", "torch-fused", "jax-scan"], rounds=0)
    assert list(outcome.losses) == ["numpy"]
    assert "torch is not installed" in outcome.absent["torch-fused"]
    assert "jax is not installed" in outcome.absent["jax-scan"]


def test_all_start_from_the_same_weights_and_leave_them_alone(digits):
    before = [w.copy() for w in digits.weights]
    Compiled(digits).epoch()
    for a, b in zip(digits.weights, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_workloads_say_what_they_are():
    assert set(workloads.WORKLOADS) == set(workloads.TITLES)
    assert set(peers.PEERS) == set(peers.TITLES)
    digits = workloads.WORKLOADS["digits"](True)
    assert sorted(digits.order) == list(range(100))
    assert [len(rows) for rows in digits.batches()] == [32, 32, 32, 4]
    assert digits.mean(np.array([1.0, 1.0, 1.0, 26.0])) == 2.0
    assert digits.flops == 2 * 100 * (2 * 64 * 32 + 3 * 32 * 10)

"""Profiles: rows that add up, exact counts, a valid trace, and refusals."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from helpers_model import assert_same, blobs, classifier

import fastopt
from fastopt import profiling
from fastopt.kernels.cpu.dense.matmul_bfloat16 import bfloat16_refusal
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import network

LIMITS = profiling.Limits(bandwidth=1e10, flops=1e11)


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """Limits that need not be measured."""
    monkeypatch.setattr(profiling.profile, "limits", lambda self, *of: self._limits.setdefault(of, LIMITS))


@pytest.fixture
def two_threads(monkeypatch):
    from fastopt.kernels.cpu.runtime import launch

    monkeypatch.setattr(launch, "_threads", 2)
    monkeypatch.setattr(network, "STEP_FLOPS", 1)
    monkeypatch.setattr(network, "PASS_FLOPS", 1)


@pytest.fixture
def profiled(two_threads):
    """Two epochs of `classifier` on 120 rows: 2 x 4 steps of at most 32 rows, and a validation."""
    model = classifier("cpu")
    with fastopt.profile() as p:
        model.fit(*blobs(), epochs=2, validation_data=blobs(40))
    return p


def test_rows(profiled):
    rows = {(row.verb, row.kernel): row for row in profiled.rows}
    assert {row.verb for row in profiled.rows} == {"train", "evaluate"}
    forward = rows["train", "forward 6x12 relu"]
    assert (forward.calls, forward.dtype) == (8, "float32")
    assert forward.bytes == 4 * (8 * (6 * 12 + 12) + 240 * (6 + 12))
    assert forward.flops == 240 * (2 * 6 + 1) * 12
    assert rows["train", "weights+adam 6x12"].flops == 240 * 2 * 6 * 12 + 8 * 15 * 6 * 12
    assert rows["train", "total"].calls == 16  # of the loss and of the accuracy
    assert rows["evaluate", "forward 6x12 relu"].flops == 2 * 40 * (2 * 6 + 1) * 12
    for row in profiled.rows:
        if row.bytes:
            best = max(row.bytes / LIMITS.bandwidth, row.flops / LIMITS.flops)
            assert row.of_limit == pytest.approx(best / row.seconds)
            assert row.bandwidth == pytest.approx(row.bytes / row.seconds)
            assert row.rate == pytest.approx(row.flops / row.seconds)
        else:
            assert row.of_limit is None


def test_totals(profiled):
    train, evaluate = profiled.totals
    assert (train.verb, train.threads, train.passes, train.steps, train.marked) == ("train", 2, 2, 8, 8)
    assert (evaluate.verb, evaluate.passes, evaluate.steps) == ("evaluate", 2, 2)
    for total in (train, evaluate):
        rows = [row for row in profiled.rows if row.verb == total.verb]
        assert sum(row.seconds + row.waiting for row in rows) == pytest.approx(total.seconds)
        assert total.step == pytest.approx(total.seconds / total.marked)
        assert sum(row.of_step for row in rows) <= 1 + 1e-9
        assert 0 < total.coverage <= 1


def test_table(profiled):
    text = profiled.table()
    for row in profiled.rows:
        assert row.kernel in text
    assert "train: 8 steps in 2 passes, float32, 2 threads" in text
    assert "limits, measured now: 10 GB/s from memory, 100 GFLOP/s in float32 registers" in text
    assert profiling.profile().table() == "nothing was recorded"


def test_table_of_a_part(monkeypatch):
    from fastopt.kernels.cpu.training import run

    monkeypatch.setattr(run, "MARKS", 1)
    with fastopt.profile() as p:
        classifier("cpu").fit(*blobs())
    assert "train: 1 steps in 1 pass, float32, 1 thread; 3 more without marks" in p.table()
    assert 0 < p.totals[0].coverage <= 1


def test_trace(profiled, tmp_path):
    path = tmp_path / "trace.json"
    profiled.save_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {0: "calls", 1: "rank 0", 2: "rank 1"}
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["tid"], event["cat"]].append(event)
    calls = rows[0, "pass"]
    assert [call["name"] for call in calls] == ["train", "evaluate"] * 2
    for tid in (1, 2):
        steps, kernels, waits = rows[tid, "step"], rows[tid, "kernel"], rows[tid, "waiting"]
        assert [step["name"] for step in steps] == [*("step 0", "step 1", "step 2", "step 3", "step 0")] * 2
        assert [step["args"]["rows"] for step in steps] == [32, 32, 32, 24, 40] * 2
        assert len(kernels) == sum(row.calls for row in profiled.rows)
        assert waits
        for outer, inner in ((calls, steps), (steps, kernels), (steps, waits)):
            for event in inner:
                assert any(encloses(other, event) for other in outer)
        in_order = sorted(kernels + waits, key=lambda event: (event["ts"], event["dur"]))
        for one, other in pairwise(in_order):
            assert one["ts"] + one["dur"] <= other["ts"] + 1e-3
    assert sum(e["args"]["flops"] for e in rows[1, "kernel"]) == sum(row.flops for row in profiled.rows)


def encloses(outer, inner):
    rounding = 1e-3
    return outer["ts"] <= inner["ts"] + rounding and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + rounding


@pytest.mark.parametrize("steps", [0, 6])
def test_trace_of_the_first_steps(tmp_path, steps):
    with fastopt.profile(trace_steps=steps) as p:
        classifier("cpu").fit(*blobs(), epochs=3)
    p.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len([event for event in events if event.get("cat") == "step"]) == steps
    assert p.totals[0].marked == 12


def test_the_same_bits(two_threads):
    models = [classifier("cpu") for _ in range(2)]
    models[0].fit(*blobs(), epochs=2)
    with fastopt.profile():
        models[1].fit(*blobs(), epochs=2)
    assert_same(models[0].get_weights(), models[1].get_weights())
    assert_same(models[0].history.step_losses, models[1].history.step_losses)


def test_only_while_open():
    model = classifier("cpu")
    with fastopt.profile() as p:
        pass
    model.fit(*blobs())
    assert p.rows == []
    with pytest.raises(KeyError), p:  # closed by an error, too
        raise KeyError
    model.fit(*blobs())
    assert p.rows == []


def test_the_inner_one_of_two():
    with fastopt.profile() as outer:
        with fastopt.profile() as inner:
            classifier("cpu").fit(*blobs())
        classifier("cpu").predict(blobs()[0])
    assert ([t.verb for t in outer.totals], [t.verb for t in inner.totals]) == (["predict"], ["train"])
    with outer, pytest.raises(RuntimeError, match="open already"):
        outer.__enter__()


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_other_backends_are_refused(verb):
    model, (x, y) = classifier("numpy"), blobs()
    arguments = (x,) if verb == "predict" else (x, y)
    message = "only the backends cpu and cuda can be profiled; this model's is numpy"
    with fastopt.profile(), pytest.raises(ValueError, match=message):
        getattr(model, verb)(*arguments)
    getattr(model, verb)(*arguments)


@pytest.mark.parametrize(("steps", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_a_wrong_number_of_steps(steps, error):
    with pytest.raises(error, match="trace_steps"):
        fastopt.profile(steps)


def test_limits_are_measured(monkeypatch):
    monkeypatch.undo()
    from fastopt.benchmarks import limits, peaks
    from fastopt.benchmarks.products import Shape

    monkeypatch.setattr(peaks, "SHAPES", (Shape(32, 32, 32),))
    monkeypatch.setattr(limits, "copy_bandwidth", lambda: 5e9)
    p = fastopt.profile()
    if INTERPRETED:
        assert p.limits("float32") is None
    else:
        bandwidth, flops, products, library = p.limits("float64")
        assert bandwidth == 5e9
        assert flops > 0
        assert products > 0
        assert library
        assert p.limits("float64") is p.limits("float64")
        assert p.limits("float16") is None


def test_the_limits_stand_below_the_tables():
    line = profiling._limits_line("float32", "", profiling.Limits(37.3e9, 250e9, 230e9, "MKL 2026.2"))
    expected = "37.3 GB/s from memory, 250 GFLOP/s in float32 registers; products at best 230 (MKL 2026.2)"
    assert line == f"limits, measured now: {expected}"
    line = profiling._limits_line("float32", "H100", profiling.Limits(3e12, 5e13))
    assert line == "limits, measured now on H100: 3,000 GB/s from memory, 50,000 GFLOP/s in float32 products"


def test_bfloat16_is_held_against_its_own_limit(monkeypatch):
    """Such layers have twice the rate of float32, whose peak would give shares above 100 %."""
    if refusal := bfloat16_refusal():
        pytest.skip(refusal)
    x, y = blobs()
    with fastopt.profile() as p:
        model = fastopt.Sequential([fastopt.Dense(12, "relu"), fastopt.Dense(3)], seed=0, compute_dtype="bfloat16")
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x, y)
    assert {row.dtype for row in p.rows} == {"bfloat16"}
    asked = []
    monkeypatch.setattr(profiling.profile, "limits", lambda self, *of: asked.append(of) or LIMITS)
    assert p.rows
    assert set(asked) == {("bfloat16", "")}


def test_without_limits(monkeypatch):
    monkeypatch.setattr(profiling.profile, "limits", lambda self, *of: None)
    with fastopt.profile() as p:
        classifier("cpu").fit(*blobs())
    assert all(row.of_limit is None for row in p.rows)
    assert "limits" not in p.table()

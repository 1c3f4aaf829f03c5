"""Training with clipping and accumulation: against the reference, the path in one pass, and any number of threads."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import program
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import DenseSpec, DropoutSpec

from .test_network import LAYERS, TOLERANCE, Run, assert_agree, compare, data_for

LOSS = "sparse_categorical_crossentropy"
SMOOTH = [DenseSpec(7, 9, "tanh"), DenseSpec(9, 6, "gelu", False), DenseSpec(6, 3)]
HOW = {
    "norm": {"clip_norm": 0.05},
    "accumulated": {"accumulate": 3},
    "both": {"clip_norm": 0.05, "accumulate": 2},
    "value and l1": {"clip_value": 0.01, "l1": 0.01, "weight_decay": 0.01},
    "accumulated value": {"clip_value": 0.01, "accumulate": 2},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_against_the_reference(rule, how, dtype):
    eps = {"eps": 1e-3} if "eps" in OPTIMIZERS[rule].options else {}  # else g / |g| makes much of a rounding of g
    compare(LAYERS, LOSS, ["accuracy"], dtype, rule, n=50, batch_size=8, **HOW[how], **eps)


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.around_formulas
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_do_not_depend_on_the_number_of_threads(rule, dtype, threads):
    layers = [DenseSpec(64, 300, "relu"), DropoutSpec(0.5), DenseSpec(300, 130, "silu", False), DenseSpec(130, 10)]
    x, y = data_for(np.random.default_rng(0), LOSS, 700, 64, 10, dtype)
    for how in ("norm", "both", "value and l1"):
        results = []
        for count in (1, 2, 4):
            with threads(count):
                run = Run(cpu, layers, LOSS, [], dtype, rule)
                losses = [run.train(x, y, np.arange(700), 160, **HOW[how]).losses for _ in range(2)]
                results.append([*run.params, *losses, *(s for states in run.states for s in states)])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_norm_that_is_never_reached_changes_no_bit(rule, dtype):
    """So the gradients are those of the path in one pass, and the updates follow them all, with the old w in dx."""
    widths = (7, 9, 6) if INTERPRETED else (50, 200, 120)
    layers = [DenseSpec(widths[0], widths[1], "relu"), DenseSpec(widths[1], widths[2]), DenseSpec(widths[2], 3)]
    x, y = data_for(np.random.default_rng(0), LOSS, 90, widths[0], 3, dtype)
    one, two = (Run(cpu, layers, LOSS, ["accuracy"], dtype, rule) for _ in range(2))
    for _ in range(2):
        a = one.train(x, y, np.arange(90), 32)
        b = two.train(x, y, np.arange(90), 32, clip_norm=1e9)
        np.testing.assert_array_equal(a.losses, b.losses)
    for p, q in zip(one.params, two.params, strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("n", [64, 60, 65, 100, 130, 3])
@pytest.mark.parametrize("backend", [cpu, reference])
def test_small_batches_add_up_to_the_large_one(backend, n):
    """Also where the last group, and the last batch in it, are short."""
    x, y = data_for(np.random.default_rng(0), LOSS, n, 7, 3, "float64")
    small, large = (Run(backend, SMOOTH, LOSS, ["accuracy"], "float64") for _ in range(2))
    for clip_norm in (None, 0.05):
        ours = small.train(x, y, np.arange(n), 16, accumulate=4, clip_norm=clip_norm)
        theirs = large.train(x, y, np.arange(n), 64, clip_norm=clip_norm)
        assert len(ours.losses) == len(theirs.losses) == -(-n // 64) == small.net.steps_done
        assert_agree(ours, theirs, "float64")
    for a, b in zip(small.params, large.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=TOLERANCE["float64"], atol=TOLERANCE["float64"])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_random_groups(data):
    compare(
        SMOOTH, LOSS, ["accuracy"], "float64", "sgd", n=data.draw(st.integers(1, 70)),
        batch_size=data.draw(st.integers(1, 30)), accumulate=data.draw(st.integers(1, 8)),
        clip_norm=data.draw(st.sampled_from([None, 1e-3, 0.1, 10.0])), seed=data.draw(st.integers(0, 1000)),
    )  # fmt: skip


def test_clipping_limits_the_norm_of_a_step():
    x, y = data_for(np.random.default_rng(0), LOSS, 16, 7, 3, "float64")
    for backend in (cpu, reference):
        run = Run(backend, LAYERS, LOSS, [], "float64", "sgd")
        before = [p.copy() for p in run.params]
        run.train(x, y, np.arange(16), 16, lr=1.0, clip_norm=0.01)
        moved = np.sqrt(sum(np.square(p - q).sum() for p, q in zip(run.params, before, strict=True)))
        assert moved == pytest.approx(0.01, rel=1e-3)


def test_the_norm_may_change_and_end_from_pass_to_pass():
    ours, theirs = (Run(backend, LAYERS, LOSS, ["accuracy"], "float64") for backend in (cpu, reference))
    x, y = data_for(np.random.default_rng(0), LOSS, 40, 7, 3, "float64")
    for clip_norm, accumulate in [(0.1, 1), (0.01, 1), (None, 1), (None, 2), (0.1, 2), (0.1, 3), (None, 1)]:
        assert_agree(
            *(run.train(x, y, np.arange(40), 8, accumulate=accumulate, clip_norm=clip_norm) for run in (ours, theirs)),
            "float64",
        )
    kernels = len(ours.net._trained.program.phases)
    ours.train(x, y, np.arange(40), 8, clip_norm=0.1)
    assert len(ours.net._trained.program.phases) == kernels + 2  # squares and apply: none of them where nothing asks


def test_dropout_draws_anew_for_every_batch_of_a_group():
    layers = [DropoutSpec(0.5), DenseSpec(200, 1, bias=False)]
    x, y = np.ones((2, 200)), np.zeros((2, 1))
    for backend in (cpu, reference):
        run = Run(backend, layers, "mean_squared_error", [], "float64", rule="sgd")
        run.params[0][...] = 1
        grouped = [run.train(x, y, np.arange(2), 1, accumulate=2, lr=0.0).losses[0] for _ in range(3)]
        assert len(set(grouped)) == 3


def test_an_interrupted_pass_counts_whole_groups(monkeypatch):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    n, batch_size = (3_000, 1) if INTERPRETED else (400_000, 4)
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", n, 7, 3, "float32")

    def interrupt(steps, loss):
        raise KeyboardInterrupt

    run, again = (Run(cpu, SMOOTH, "mean_squared_error", [], "float32") for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        run.train(x, y, np.arange(n), batch_size, progress=interrupt, accumulate=3)
    done = run.net.steps_done
    assert 0 < done < n // (3 * batch_size)
    again.train(x, y, np.arange(done * 3 * batch_size), batch_size, accumulate=3)
    for a, b in zip(run.params, again.params, strict=True):
        np.testing.assert_array_equal(a, b)


def test_progress_counts_optimizer_steps(monkeypatch):
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    x, y = data_for(np.random.default_rng(0), "mean_squared_error", 70, 7, 3, "float32")
    seen = []
    run = Run(cpu, LAYERS, "mean_squared_error", [], "float32")
    run.train(x, y, np.arange(70), 8, accumulate=2, progress=lambda steps, loss: seen.append(steps))
    assert seen[-1] == run.net.steps_done == 5

"""In-place updates on the device: bit for bit those of the reference, for every rule, option, dtype and layout."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_cuda import (
    SIMULATED,
    assert_same_bits,
    drawing,
    on_device,
    require_device,
    to_device,
    update_reference,
)
from hypothesis import given

require_device()
from optimizers import draw_rule, other

from fastopt.kernels import cuda
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import TILE
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update

pytestmark = pytest.mark.gpu

SIZES = [0, 1, 3, 33, TILE - 1, TILE, TILE + 1, 3 * TILE + 5]
DTYPES = ("float32", "float64")

CASES = [(rule, option) for rule, row in OPTIMIZERS.items() for option in (None, *row.options)]


def drawn(rng, rule, size, dtype, special=False):
    """A parameter, a gradient and states."""
    p, g, *states = (rng.standard_normal(size).astype(dtype) for _ in range(2 + len(OPTIMIZERS[rule].states)))
    if special and size:
        tiny = np.finfo(dtype).tiny
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, tiny / 4, -tiny / 8, np.finfo(dtype).max], dtype)
        for array in (p, g):
            array[rng.integers(0, size, size // 2)] = rng.choice(odd, size // 2)
    return p, g, tuple(np.abs(s) for s in states)


def check(rule, options, size, dtype, seed, steps=2, special=False, shifts=(0,) * 5):
    rng = np.random.default_rng(seed)
    p, g, states = drawn(rng, rule, size, dtype, special)
    q, *others = (to_device(a, shift) for a, shift in zip((p, *states), shifts, strict=False))
    for step in range(1, steps + 1):
        _, g, _ = drawn(rng, rule, size, dtype, special)
        ours = to_device(g, shifts[-1])
        cuda.update([Update(rule, q, ours, tuple(others), options, step)])
        with np.errstate(all="ignore"):
            update_reference([Update(rule, p, g, states, options, step)])
        assert_same_bits(ours, g)
    for a, b in zip((q, *others), (p, *states), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rule", "option"), CASES)
def test_bits_equal_the_reference(rule, option, dtype):
    options = dict(OPTIMIZERS[rule].options)
    if option:
        options[option] = other(rule, option)
    for size in (TILE + 6,) if option and SIMULATED else SIZES:
        check(rule, options, size, dtype, seed=size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_with_infinities_nan_and_denormals(rule, dtype):
    check(rule, OPTIMIZERS[rule].options, TILE + 7, dtype, seed=1, special=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shifts", [(1, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 1, 0, 0), (1,) * 5, (3, 2, 1, 2, 3)])
def test_bits_of_arrays_that_are_not_aligned(shifts, dtype):
    check("amsgrad", OPTIMIZERS["amsgrad"].options, 2 * TILE + 3, dtype, seed=2, shifts=shifts)


@drawing(20)
@given(data=st.data())
def test_bits_with_random_rules_options_sizes_and_places(data):
    rule, options = draw_rule(data)
    size = data.draw(st.integers(0, 300 if SIMULATED else 300_000))
    shifts = data.draw(st.sampled_from([(0,) * 5, (1, 0, 0, 0, 0), (2, 2, 2, 2, 2)]))
    dtype = data.draw(st.sampled_from(DTYPES))
    check(rule, options, size, dtype, data.draw(st.integers(0, 2**32)), shifts=shifts)


def test_many_arrays_of_different_dtypes_rules_and_sizes_in_one_call():
    rng = np.random.default_rng(3)
    jobs, twins = [], []
    for i, size in enumerate([0, 1, 33, TILE, 0, 2 * TILE + 1, 7] * 4):
        rule, dtype = list(OPTIMIZERS)[i % len(OPTIMIZERS)], DTYPES[i % 2]
        p, g, states = drawn(rng, rule, size, dtype)
        q, h, *others = on_device(p, g, *states)
        jobs.append(Update(rule, q, h, tuple(others), OPTIMIZERS[rule].options, i + 1))
        twins.append(jobs[-1]._replace(p=p, g=g, states=states))
    cuda.update(jobs)
    update_reference(twins)
    for job, twin in zip(jobs, twins, strict=True):
        for a, b in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
            assert_same_bits(a, b)


def test_one_launch_for_all_arrays_and_groups_of_a_rule(monkeypatch):
    rng = np.random.default_rng(4)
    jobs = []
    for i in range(12):  # two rows of the table, three groups, one rule
        p, g, states = drawn(rng, "adam", 5 * i, "float32")
        q, h, *others = on_device(p, g, *states)
        options = {**OPTIMIZERS["adam"].options, "lr": 0.1 * (i % 3 + 1)}
        jobs.append(Update(("adam", "adamw")[i % 2], q, h, tuple(others), options, 1))
    gpu = gpu_of([see(jobs[1].p).address])
    launched, launch = [], type(gpu).launch

    def spy(self, kernel, *args):
        launched.append(kernel.name)
        launch(self, kernel, *args)

    monkeypatch.setattr(type(gpu), "launch", spy)
    cuda.update(jobs)
    assert launched == ["update_adam_float32"]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [3, TILE - 1, 2 * TILE + 3])
def test_nothing_outside_the_array_is_written(size, shift):
    rooms = on_device(*[np.full(size + 64, 7.0, "float32") for _ in range(4)])
    place = slice(16 + shift, 16 + shift + size)
    p, g, m, v = (room[place] for room in rooms)
    cuda.update([Update("adam", p, g, (m, v), OPTIMIZERS["adam"].options, 1)])
    for room, written in zip(rooms, (True, False, True, True), strict=True):
        changed = room.copy_to_host() != 7
        assert changed[place].all() == written
        assert changed.sum() == size * written

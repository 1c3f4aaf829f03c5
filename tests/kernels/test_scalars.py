"""The scalars of steps: those made ahead are those of each step for itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt.kernels.formulas import NUM_SCALARS, OPTIMIZERS
from fastopt.kernels.scalars import AHEAD, Scalars, fill_row, fill_scalars


def rows_of(scalars, name, steps, dtype):
    for step, options, scale in steps:
        found, expected = np.full((2, NUM_SCALARS + 1), np.nan, dtype)
        scalars.fill(found, step, options, scale)
        fill_row(expected, name, step, options, scale)
        # Columns that a rule does not have keep old values, or are zero.
        used = ~np.isnan(expected)
        yield found[used].tobytes(), expected[used].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@given(
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(1, 3 * AHEAD), st.integers(10**6, 10**6 + AHEAD)),
            st.sampled_from([1e-3, 0.5]),
            st.sampled_from([1.0, 0.25, 1 / 3]),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_rows_made_ahead_are_those_of_each_step(name, dtype, steps):
    scalars = Scalars(name, np.dtype(dtype))
    chosen = [
        (step, {**OPTIMIZERS[name].options, "lr": lr, "maximize": maximize}, scale)
        for step, lr, scale, maximize in steps
    ]
    for found, expected in rows_of(scalars, name, chosen, dtype):
        assert found == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_that_the_caller_changes_are_noticed(name):
    scalars, options = Scalars(name, np.dtype("float32")), dict(OPTIMIZERS[name].options)
    steps = [(1, options, 1.0), (2, options, 1.0)]
    for found, expected in rows_of(scalars, name, steps, "float32"):
        assert found == expected
    options["lr"] = 0.25
    for found, expected in rows_of(scalars, name, [(3, options, 1.0), (4, options, 2.0)], "float32"):
        assert found == expected


def test_rows_of_an_epoch_are_those_of_its_steps():
    options, rates = OPTIMIZERS["adam"].options, np.linspace(1e-3, 1e-4, 7)
    table, row = np.zeros((7, NUM_SCALARS + 1)), np.zeros(NUM_SCALARS + 1)
    fill_scalars(table, "adam", range(5, 12), options, rates)
    for i, rate in enumerate(rates):
        fill_row(row, "adam", 5 + i, {**options, "lr": rate})
        assert table[i].tobytes() == row.tobytes()

"""The order of rows is a pure function of seed and epoch; validation rows are held out whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt._random_rows import epoch_order, split


@given(rows=st.integers(1, 200), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_every_epoch_visits_every_row_once(rows, seed, epoch):
    order = epoch_order(np.arange(rows), seed, epoch, shuffle=True)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(rows))
    np.testing.assert_array_equal(order, epoch_order(np.arange(rows), seed, epoch, shuffle=True))


def test_orders_differ_between_epochs_and_seeds():
    orders = {tuple(epoch_order(np.arange(50), seed, epoch, True)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_unshuffled_order_is_a_copy():
    rows = np.arange(5)
    order = epoch_order(rows, 0, 3, shuffle=False)
    np.testing.assert_array_equal(order, rows)
    assert not np.shares_memory(order, rows)


@given(rows=st.integers(2, 200), fraction=st.floats(0.01, 0.99), shuffle=st.booleans())
def test_split_shares_out_all_rows(rows, fraction, shuffle):
    held_out = int(rows * fraction)
    if held_out == 0:
        with pytest.raises(ValueError, match="at least one"):
            split(rows, fraction, 0, shuffle)
        return
    train, validation = split(rows, fraction, 0, shuffle)
    assert train.dtype == validation.dtype == np.uint32
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == list(range(rows))
    if not shuffle:
        assert train[-1] < validation[0]


def test_split_is_drawn_by_the_seed():
    assert not np.array_equal(split(100, 0.3, 0, True)[1], split(100, 0.3, 1, True)[1])
    assert not np.array_equal(split(100, 0.3, 0, True)[1], split(100, 0.3, 0, False)[1])


def test_split_of_one_row():
    with pytest.raises(ValueError, match="validation_split=0.5 of 1 rows leaves 0 for validation and 1 for training"):
        split(1, 0.5, 0, True)

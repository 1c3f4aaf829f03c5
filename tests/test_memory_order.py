"""However an array lies in memory, everything that takes it gives what it gives for the plain one, bit for bit."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from helpers_layouts import ENTRIES, LAYOUTS, NOT_IN_PLACE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt import _validation

DTYPES = ("float32", "float64")


def assert_the_same(entry, layouts, backend, dtype, rows, seed):
    """The results for arrays of these layouts, by name, are those for plain ones; arrays that are not updated stay."""
    arrays = entry.make(np.random.default_rng(seed), dtype, rows)
    laid = {name: LAYOUTS[layouts[name]](a) if name in layouts else a.copy() for name, a in arrays.items()}
    plain = {name: np.array(a, a.dtype.newbyteorder("="), order="C", subok=False) for name, a in laid.items()}
    before = {name: np.array(a) for name, a in laid.items()}
    found, wanted = entry.call(backend, dtype, laid), entry.call(backend, dtype, plain)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        if entry.rtol:
            np.testing.assert_allclose(ours, theirs, rtol=entry.rtol, atol=entry.rtol)
        else:
            np.testing.assert_array_equal(ours, theirs)
    for name, a in laid.items():
        if name not in entry.in_place:
            np.testing.assert_array_equal(a, before[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ENTRIES)
def test_every_layout_of_every_array(name, layout, backend):
    entry = ENTRIES[name]
    names = entry.make(np.random.default_rng(0), "float32", 6)
    movable = [array for array in names if array not in entry.in_place or layout not in NOT_IN_PLACE]
    assert_the_same(entry, dict.fromkeys(movable, layout), backend, "float32", rows=6, seed=1)


@pytest.mark.repeats
@pytest.mark.parametrize("name", ENTRIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=8)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_layouts_together(name, backend, data, dtype, rows, seed):
    entry = ENTRIES[name]
    layouts = {}
    for array in entry.make(np.random.default_rng(0), "float64", 2):
        some = [layout for layout in LAYOUTS if array not in entry.in_place or layout not in NOT_IN_PLACE]
        layouts[array] = data.draw(st.sampled_from(some), label=array)
    assert_the_same(entry, layouts, backend, dtype, rows, seed)


def test_the_case_that_was_wrong(backend, tmp_path):
    w = np.arange(12.0).reshape(3, 4).T
    model = fo.Sequential([fo.Dense(3, kernel_initializer=w)], inputs=4, backend=backend)
    np.testing.assert_array_equal(model.predict(np.eye(4)), w)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(fo.load_model(tmp_path / "model.safetensors").parameters[0], w)
    model.set_weights([2 * w, np.zeros(3)])
    np.testing.assert_array_equal(model.predict(np.eye(4)), 2 * w)
    assert all(p.flags.c_contiguous for p in model.parameters)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_is_ours(layout):
    """Later changes of the user's array do not reach what was made from it, and the other way round."""
    given = LAYOUTS[layout](np.arange(12.0).reshape(4, 3))
    before = np.array(given)
    layer = fo.Dense(3, kernel_initializer=given)
    model = fo.Sequential([layer], inputs=4, backend="numpy", dtype="float64")
    assert not any(np.shares_memory(given, kept) for kept in (layer.kernel_initializer, model.parameters[0]))
    model.parameters[0][:] = 7
    np.testing.assert_array_equal(given, before)
    np.testing.assert_array_equal(layer.kernel_initializer, before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_own(layout, dtype):
    given = LAYOUTS[layout](np.arange(24).reshape(2, 3, 4).astype(dtype))
    kept = _validation.own(given, np.dtype(dtype))
    assert kept.flags.carray
    assert kept.flags.owndata
    assert kept.dtype.isnative
    assert type(kept) is np.ndarray
    assert not np.shares_memory(kept, given)
    np.testing.assert_array_equal(kept, given)


# ---------------------------------------------------------------- nothing is left out
NO_ARRAYS = {
    "Activation", "Callback", "Dropout", "EMA", "EarlyStopping", "GaussianNoise", "History", "__version__",
    "get_num_threads", "get_optimizer", "profile",
    "set_num_threads", "load_model", "Loss", "Optimizer", "OptimizerRule", "Sequential",
    # modules, whose contents are named one by one
    "activations", "batches", "callbacks", "compress", "constraints", "conventions", "datasets", "distributed",
    "export", "functional", "layers", "losses", "optim", "profiling", "regularizers", "schedules",
}  # fmt: skip
SEQUENTIAL = {  # take none
    "build", "compile", "freeze", "get_averages", "get_weights", "learnt_for", "load_weights", "network", "save",
    "specs", "summary", "unfreeze", "use_averages",
}  # fmt: skip
OPTIMIZER = {"advance", "check_epochs", "next_steps", "settle", "state_dict", "rates"}
# Methods that an entry of another name calls.
CALLED = {"step", "bind", "add_param_group", "load_state_dict", "move"}


def _methods(cls):
    return {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_every_entry_is_there():
    covered = {name.split()[0] for name in ENTRIES}
    assert set(fo.__all__) == NO_ARRAYS | {name for name in covered if "." not in name}
    assert {name.split()[-1] for name in ENTRIES if name.startswith("losses ")} == set(fo.losses.LOSS_CLASSES)
    assert {f"Sequential.{name}" for name in _methods(fo.Sequential) - SEQUENTIAL} == {
        name for name in covered if name.startswith("Sequential.")
    }
    assert _methods(fo.Optimizer) - OPTIMIZER == CALLED
    assert _methods(fo.losses.Loss) == {"define", "gradient", "value_and_gradient"}
    assert set(fo.functional.__all__) == {name for name in covered if name.startswith("dense_")}

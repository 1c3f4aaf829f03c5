"""Every public option of models, layers and optimizers changes a training, or names the test of what it does.

A row for each parameter in the signatures: a new one without a row fails.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, blobs

import fastopt as fo
from fastopt.kernels import cpu, reference

X, Y = blobs(60)
REAL = (X @ np.linspace(-1, 1, X.shape[1]) + 5).astype(np.float32)


class At(NamedTuple):
    """The test of an option without an effect on weights and history, or with one that another test looks at."""

    path: str  # "test_x.py::test_name", below tests


class Changed(NamedTuple):
    """Keyword arguments with the option, and those without it (None: no arguments)."""

    given: dict[str, Any]
    before: dict[str, Any] | None = None


def doubled(x, y, rng):
    return 2 * x, y


FIT: dict[str, Any] = {
    "epochs": 3, "batch_size": 7, "validation_split": 0.25, "validation_data": (X, Y), "shuffle": False,
    "callbacks": [fo.EarlyStopping("loss", threshold=1e9)], "initial_epoch": 1, "accumulate": 2,
    "sample_weight": np.linspace(0, 2, 60), "class_weight": {0: 5.0, 1: 1.0, 2: 1.0},
    "drop_last": Changed({"batch_size": 25, "drop_last": True}, {"batch_size": 25}),
    "steps_per_epoch": 3,
    "validation_freq": Changed({"validation_freq": 2, "validation_split": 0.25}, {"validation_split": 0.25}),
    "max_steps": 4, "augment": doubled, "pruning": 0.6,
    "x": At("test_model.py::test_learns_digits"),
    "y": At("test_model.py::test_learns_digits"),
    "verbose": At("test_progress.py::test_silent"),
    "nan": At("test_data_sources.py::test_rows_with_gaps_stay_where_they_are"),
    "standardize_targets": At("test_every_option.py::test_targets_may_be_standardized"),
    "max_seconds": At("test_limits.py::test_a_training_ends_with_a_time"),
    "checkpoint": At("test_resume.py::test_after_any_checkpoint"),
    "checkpoint_every": At("test_resume.py::test_checkpoints_are_written_when_they_are_due"),
    "resume": At("test_resume.py::test_after_any_checkpoint"),
    "distributed": At("mpi/test_ranks.py::test_any_number_of_ranks_has_the_same_bits"),
    "reduction": At("mpi/test_ranks.py::test_fast_sums_are_those_of_mpi"),
    "shard_states": At("mpi/test_ranks.py::test_states_are_divided"),
    "wire_dtype": At("mpi/test_ranks.py::test_bfloat16_on_the_wire"),
    "rows": At("mpi/test_ranks.py::test_rows_of_each_rank"),
}  # fmt: skip
COMPILE: dict[str, Any] = {
    "optimizer": "sgd", "loss": fo.losses.SparseCategoricalCrossentropy(label_smoothing=0.2), "metrics": ["f1_macro"],
    "ema": fo.EMA(0.5), "quantize": "int4",
    "decay_biases": Changed({"decay_biases": False, "optimizer": fo.AdamW(weight_decay=0.5)},
                            {"optimizer": fo.AdamW(weight_decay=0.5)}),
}  # fmt: skip
MODEL: dict[str, Any] = {
    "layers": [fo.Dense(3)], "seed": 1, "dtype": "float64",
    "backend": At("test_every_option.py::test_backends_are_those_that_were_asked_for"),
    "inputs": At("test_model_structure.py::test_build_once"),
    "compute_dtype": At("test_model_compute.py::test_training_is_that_of_float32_but_for_rounding"),
}  # fmt: skip
ONES = {"bias_initializer": np.ones(4)}
NAMED = At("test_every_option.py::test_layers_have_their_names")
TRAINED_NORM = {
    "epsilon": 0.5, "center": False, "scale": False, "beta_initializer": "ones", "gamma_initializer": "zeros",
    "trainable": False, "name": NAMED,
}  # fmt: skip
LAYERS: dict[Any, dict[str, Any]] = {  # of the first layer; those beside `units`, `rate` and so on
    fo.Dense: {
        "units": 6, "activation": "relu", "use_bias": False, "kernel_initializer": "he_normal",
        "bias_initializer": np.ones(4), "kernel_regularizer": "l2", "lr_scale": 0.5, "trainable": False,
        "kernel_constraint": fo.constraints.MaxNorm(0.1), "weight_decay": 0.5,
        "bias_regularizer": Changed({"bias_regularizer": "l2"} | ONES, ONES),
        "bias_constraint": "non_negative", "name": NAMED,
    },
    fo.Dropout: {"rate": 0.7, "name": NAMED},
    fo.GaussianNoise: {"stddev": 2.0, "name": NAMED},
    fo.LayerNorm: TRAINED_NORM,
    fo.BatchNorm: TRAINED_NORM | {
        "momentum": 0.1, "moving_mean_initializer": "ones",
        "moving_variance_initializer": Changed({"moving_variance_initializer": "zeros"}),
    },
    fo.Activation: {"name": "relu", "label": NAMED},
    fo.Normalization: {
        "axis": Changed({"axis": None}),
        "mean": Changed({"mean": 1.0, "variance": 2.0}, {"mean": 0.0, "variance": 2.0}),
        "variance": Changed({"mean": 1.0, "variance": 2.0}, {"mean": 1.0, "variance": 3.0}),
        "name": NAMED,
    },
    fo.Rescaling: {"scale": 3.0, "offset": 1.0, "name": NAMED},
}  # fmt: skip
NEEDED: dict[Any, dict[str, Any]] = {
    fo.Dense: {"units": 4}, fo.Dropout: {"rate": 0.1}, fo.GaussianNoise: {"stddev": 0.1},
    fo.Activation: {"name": "tanh"}, fo.Rescaling: {"scale": 0.5},
}  # fmt: skip
OF_ALL: dict[str, Any] = {
    "lr": 0.3, "weight_decay": 0.5, "maximize": True, "l1": 0.2, "clip_value": 1e-3, "clip_norm": 1e-3,
    "clip_each": At("test_optim_clip_each.py::test_every_array_is_clipped_as_if_it_were_alone"),
    "params": At("test_optim.py::test_structures"), "convention": At("test_conventions.py::test_conventions_differ"),
    "state_bits": At("test_optim_state_bits.py::test_the_option_is_not_ignored"),
    "state_rounding": At("test_optim_state_bits.py::test_random_rounding_has_a_seed_and_is_saved"),
    "master_weights": At("test_optim_16bit.py::test_small_updates_are_not_lost"),
    "seed": At("test_optim_16bit.py::test_seeds"),
    "capturable": At("kernels/cuda/test_capturable.py::test_steps_are_the_hosts"),
    "backend": At("test_every_option.py::test_backends_are_those_that_were_asked_for"),
}  # fmt: skip
WITH_MOMENTUM = {"momentum": 0.9}
OPTAX = {  # of that convention alone
    name: Changed({"convention": "optax", "lr": 0.1, name: value}, {"convention": "optax", "lr": 0.1})
    for name, value in (("eps_root", 0.1), ("nesterov", True))
}
OPTIMIZERS: dict[Any, dict[str, Any]] = {
    fo.SGD: {
        "momentum": 0.9, "dampening": Changed(WITH_MOMENTUM | {"dampening": 0.5}, WITH_MOMENTUM),
        "nesterov": Changed(WITH_MOMENTUM | {"nesterov": True}, WITH_MOMENTUM),
    },
    fo.Adam: {"betas": (0.5, 0.9), "eps": 0.1, "amsgrad": True, **OPTAX},
    fo.AdamW: {"betas": (0.5, 0.9), "eps": 0.1, "amsgrad": True, **OPTAX},
    fo.NAdam: {
        "betas": (0.5, 0.9), "eps": 0.1, "momentum_decay": 0.5,
        "decoupled_weight_decay": Changed({"decoupled_weight_decay": True, "weight_decay": 0.5}, {"weight_decay": 0.5}),
    },
    fo.Adagrad: {"lr_decay": 0.5, "initial_accumulator_value": 1.0, "eps": 0.1},
    fo.Adadelta: {"rho": 0.5, "eps": 0.1},
    fo.RMSprop: {"alpha": 0.5, "eps": 0.1, "momentum": 0.9, "centered": True},
    fo.Lion: {"betas": (0.5, 0.9)},
}  # fmt: skip
EMA = {"decay": 0.9, "debias": Changed({"decay": 0.9, "debias": False}, {"decay": 0.9}), "start": 5}


def parameters_of(call: Any) -> set[str]:
    return {name for name in inspect.signature(call).parameters if name != "self"}


TABLES = {
    fo.Sequential.fit: FIT, fo.Sequential.compile: COMPILE, fo.Sequential: MODEL, **LAYERS, fo.EMA: EMA,
    **{optimizer: OF_ALL | own for optimizer, own in OPTIMIZERS.items()},
}  # fmt: skip


@pytest.mark.parametrize("call", TABLES, ids=lambda call: call.__qualname__)
def test_every_parameter_has_a_row(call):
    assert set(TABLES[call]) == parameters_of(call)


def test_every_public_class_has_a_table():
    """Layers, and optimizers that `compile` takes."""
    named = {getattr(fo, name) for name in dir(fo) if inspect.isclass(getattr(fo, name))}
    layers = {one for one in named if one.__module__ in {layer.__module__ for layer in LAYERS}}
    optimizers = {one for one in named if issubclass(one, fo.Optimizer)} - {fo.Optimizer}
    assert (layers, optimizers) == (set(LAYERS), set(OPTIMIZERS))


@pytest.mark.parametrize("table", TABLES.values(), ids=[call.__qualname__ for call in TABLES])
def test_rows_name_tests_that_are_there(table):
    here = Path(__file__).parent
    for row in table.values():
        if isinstance(row, At):
            path, _, name = row.path.partition("::")
            assert f"def {name}(" in (here / path).read_text(encoding="utf-8"), row.path


def outcome(backend, call, arguments):
    """Weights, history and predictions of a small training, with arguments of a call in it."""
    arguments = copy.deepcopy(arguments)  # optimizers and callbacks belong to one training
    fit: dict[str, Any] = {"epochs": 2, "batch_size": 10, "verbose": 0}
    compiled: dict[str, Any] = {"optimizer": "adam", "loss": CROSS_ENTROPY, "metrics": ["accuracy"]}
    model: dict[str, Any] = {"layers": [fo.Dense(4, "tanh"), fo.Dense(3)], "seed": 0, "backend": backend}
    if call is fo.Sequential.fit:
        fit |= arguments
    elif call is fo.Sequential.compile:
        compiled |= arguments
    elif call is fo.Sequential:
        model |= arguments
    elif call is fo.EMA:
        compiled["ema"] = fo.EMA(**arguments)
    elif call in LAYERS:
        layer = call(**NEEDED.get(call, {}) | arguments)
        first = [layer] if call is fo.Dense else [layer, fo.Dense(4, "tanh")]
        if call is fo.Activation:
            first = [fo.Dense(4), layer]
        model["layers"] = [*first, fo.Dense(3)]
    else:
        compiled["optimizer"] = call(**arguments)
    trained = fo.Sequential(**model)
    trained.compile(**compiled)
    history = trained.fit(X, Y, **fit).history
    figures = {name: values for name, values in history.items() if name not in ("seconds", "samples_per_second")}
    return figures, [np.array(w) for w in trained.get_weights()], trained.predict(X)


def same(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(np.array_equal, (*a[1], a[2]), (*b[1], b[2])))


CASES = [
    pytest.param(call, row if isinstance(row, Changed) else Changed({name: row}), id=f"{call.__qualname__}-{name}")
    for call, table in TABLES.items()
    for name, row in table.items()
    if not isinstance(row, At)
]


@pytest.mark.parametrize(("call", "row"), CASES)
def test_options_change_a_training(backend, call, row):
    assert not same(outcome(backend, call, row.given), outcome(backend, call, row.before or {}))


def test_trainings_without_an_option_are_alike(backend):
    assert same(outcome(backend, fo.Sequential.fit, {}), outcome(backend, fo.Sequential.compile, {}))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers_have_their_names(layer):
    label = "label" if layer is fo.Activation else "name"
    model = fo.Sequential([layer(**NEEDED.get(layer, {}), **{label: "given"}), fo.Dense(1)])
    assert model.names[0] == "given"


def test_backends_are_those_that_were_asked_for(backend, monkeypatch):
    model, seen, update = fo.Sequential([fo.Dense(3)], backend=backend, inputs=4), [], reference.ArrayPlan.update
    assert type(model._network_for(training=False)) is (reference if backend == "numpy" else cpu).Network
    monkeypatch.setattr(reference.ArrayPlan, "update", lambda *args: (seen.append(args), update(*args))[1])
    for optimizer in OPTIMIZERS:
        optimizer([np.ones(3)], lr=0.1, backend=backend).step([np.ones(3)])
    assert len(seen) == len(OPTIMIZERS) * (backend == "numpy")


def test_targets_may_be_standardized(backend):
    found = []
    for flag in (False, True):
        model = fo.Sequential([fo.Dense(4, "tanh"), fo.Dense(1)], seed=0, backend=backend)
        model.compile("adam", "mse")
        found.append(model.fit(X, REAL, epochs=2, standardize_targets=flag, verbose=0)["loss"])
    assert found[0] != found[1]

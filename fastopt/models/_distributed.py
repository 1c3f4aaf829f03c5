"""`fit` on several ranks: all check that they begin alike, train on shares of every step, and end together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from .. import _backends, distributed
from ..callbacks import Callback
from ..kernels.spec import BatchNormSpec
from . import _checkpoints, epoch_loop, training
from .history import History
from .training import FitOptions, Plan

BACKENDS = ("cpu",)
WHOLE_BYTES = 64 << 20  # of an array of which ranks compare all elements, in some 40 ms


def run(model: Any, x: Any, y: Any, options: FitOptions) -> History:
    """Train as `fit` does, with all ranks; an error on one of them is told on all."""
    plan = joined(model, x, y, options)
    with plan.world.ending_together():
        at_once = not plan.world.largest(int(not plan.at_once))  # a bar of one rank is a reason for all
        history = training.run_at_once(model, plan) if at_once else epoch_loop.run(model, plan)
        history.traffic = plan.network.traffic
        model.optimizer._divided = options.shard_states and not plan.world.is_first
        plan.world.agree(None)  # nobody goes on before all are done
        return history


def joined(model: Any, x: Any, y: Any, options: FitOptions) -> Plan:
    """The plan of a `fit` that all ranks train by, each calling this.

    Nothing is changed where the plan fails on one of them, or where they differ in data, settings, weights or versions.
    """
    world = distributed.world()
    world.meet()
    with world.ending_together():
        plan, error = _begun(model, x, y, options, world)
    if error is not None:  # every rank has one
        raise error
    assert plan is not None
    settings = distributed.Settings(options.reduction, bool(options.shard_states), options.wire_dtype, options.rows)
    network = distributed.DistributedNetwork(plan.network, _backends.get(model.backend), world, settings)
    evaluator = network if plan.evaluator is plan.network else plan.evaluator
    options = _options_of(world, plan.options)
    plan = plan._replace(network=network, evaluator=evaluator, world=world, options=options)
    if options.rows == "local":
        total, size = sum(world.gather(len(plan.rows))), options.batch_size
        assert isinstance(size, int)
        plan = plan._replace(local_steps=-(-total // size), batch_size=size)
    return plan


def _begun(model: Any, x: Any, y: Any, options: FitOptions, world: Any) -> tuple[Plan | None, Exception | None]:
    """The plan of a `fit`, or the error that this rank is to raise as there is one on a rank."""
    plan, error = None, None
    try:
        check_model(model, options)
        if y is None:
            raise ValueError('distributed="mpi" needs x and y, whose rows all ranks know; got an iterable of batches')
        plan = model._plan(x, y, options)
        error = _too_many(world, plan)
    except Exception as failure:
        error = failure
    error = world.error_of_all(error)
    if error is None:
        assert plan is not None
        error = _differing(model, world, plan)
    return plan, error


def _options_of(world: Any, options: FitOptions) -> FitOptions:
    """The options of a rank: the first shows the progress and has the callbacks that write files."""
    if world.is_first:
        return options
    callbacks = [_silent(callback) if callback.writes_files else callback for callback in options.callbacks]
    return replace(options, callbacks=callbacks, verbose=0)


def _silent(callback: Callback) -> Callback:
    """A callback that does nothing, in the place of one of the first rank: an epoch has the same parts on all."""
    names: dict[str, Any] = {name: getattr(callback, name) for name in ("every_steps", "reads_weights")}
    if _checkpoints.stateful([callback]):
        names |= {"state_dict": lambda self: {}, "load_state_dict": lambda self, state: None}
    made: Callback = type(type(callback).__name__, (Callback,), names)()
    return made


def check_model(model: Any, options: FitOptions) -> None:
    """Raise ValueError for a model, or a `fit` of it, that ranks cannot train together."""
    if model.backend not in BACKENDS:
        raise ValueError(
            f'distributed="mpi" trains on the backend "cpu"; got {model.backend!r}. On GPUs use fastopt.torch in'
            " torch.nn.parallel.DistributedDataParallel"
        )
    if options.wire_dtype is not None and model.dtype.name != "float32":
        raise ValueError(f"wire_dtype={options.wire_dtype!r} is for models of float32; got {model.dtype}")
    if model.optimizer is not None and model.optimizer.param_groups[0]["state_bits"] == 8:
        raise ValueError('distributed="mpi" keeps states as numbers: state_bits must be 32; got 8')
    if options.rows == "local" and "r2" in model.metrics:
        raise ValueError('the metric r2 goes by rows that all ranks know, and rows="local" has none')
    if options.pruning is not None or model._masks is not None:
        raise ValueError('distributed="mpi" trains no pruned models: train first, and prune in a fit of one process')
    if model._quantize is not None:
        raise ValueError(
            f'distributed="mpi" does not round weights in training, as quantize={model._quantize!r} asks for: compile'
            " without it, or train in one process"
        )
    fixed = model._fixed_layers
    for i, spec in enumerate(model.specs(model.inputs or 1)):
        if isinstance(spec, BatchNormSpec) and i not in fixed:
            raise ValueError(
                'distributed="mpi" has no BatchNorm that is trained, as its statistics are those of all rows of a batch'
                " together: use LayerNorm, or freeze the layer"
            )


def _too_many(world: Any, plan: Plan) -> Exception | None:
    """The error of more ranks than a step has pieces."""
    batches = None if plan.batch_size is None else int(getattr(plan.batch_size, "high", 0) or 0)
    rows = (batches or (plan.batch_size if isinstance(plan.batch_size, int) else 1)) * int(plan.options.accumulate)
    most = distributed.num_pieces(rows)
    if world.ranks <= most or plan.options.reduction == "fast" or plan.options.rows == "local":
        return None
    return ValueError(
        f"{world.ranks} ranks need steps of more rows: those of {rows} have {most} pieces, and a rank one at least;"
        f' got batch_size={plan.batch_size}. reduction="fast" has no such limit'
    )


def _differing(model: Any, world: Any, plan: Plan) -> Exception | None:
    """The error of ranks that do not begin alike."""
    names = training.figure_names(model.metrics, plan.validation is not None, model.metric_functions)
    rows, validation, optimizer = plan.data, plan.validation, model.optimizer
    data = {
        "x": rows.features, "y": rows.y, "weights of the rows": rows.weights, "numbers of the rows": plan.rows,
        "validation data": None if validation is None else [validation.features, validation.y, validation.weights],
    }  # fmt: skip
    options = plan.options
    if options.rows == "local":
        data = {"features": rows.features.shape[1], "validation data": data["validation data"]}
        options = replace(options, sample_weight=None)
    told = _checkpoints.call_of(model, options, {}, names)
    learnt = model.learnt
    told["what is known of the data"] = _summary([*map(repr, learnt.statistics), learnt.classes, learnt.target_scale])
    told |= {name: _summary(value) for name, value in data.items()}
    names = ["epochs", "max_steps", "max_seconds", *distributed.OPTIONS]
    told |= {name: getattr(plan.options, name) for name in names}
    told |= _told_of_callbacks(plan.options.callbacks)
    told |= {"version of fastopt": version("fastopt"), "version of NumPy": np.__version__}
    products = _backends.get(model.backend).products(model.compute_dtype)
    told |= {"library of matrix products": f"{products.name} {products.version}"}
    described = optimizer.state_dict()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in described["param_groups"]]
    told |= {"weights of the model": _summary(model.parameters), "options of the optimizer": repr(groups)}
    if not plan.options.shard_states:  # else each rank has those of its part
        told["states of the optimizer"] = _summary([list(state.values()) for state in described["state"].values()])
    found = distributed.differences(world.gather(told))
    return ValueError(f"all ranks must begin alike: {'; '.join(found)}") if found else None


def _told_of_callbacks(callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Entries of callbacks that must be alike: those of fastopt that change a training, and the steps of all calls."""
    ours = [callback for callback in callbacks if not callback.writes_files and _is_ours(callback)]
    plain = [
        {k: v for k, v in vars(callback).items() if v is None or isinstance(v, bool | int | float | str)}
        for callback in ours
    ]
    steps = sorted({callback.every_steps for callback in callbacks if callback.every_steps})
    return {
        "callbacks": [f"{type(callback).__name__} {own}" for callback, own in zip(ours, plain, strict=True)],
        "every_steps of the callbacks": steps,
    }


def _is_ours(callback: Callback) -> bool:
    return type(callback).__module__.startswith(f"{__package__.partition('.')[0]}.callbacks")


def _summary(value: Any) -> Any:
    """A text that differs where arrays do: shape, dtype and a sum over all elements, or some of very many."""
    if isinstance(value, list | tuple):
        return [_summary(part) for part in value]
    if isinstance(value, np.ndarray) and value.nbytes <= WHOLE_BYTES:
        digest = zlib.crc32(np.ascontiguousarray(value).tobytes()) if value.size else 0
        return f"{value.dtype} of shape {value.shape}, {digest:08x}"
    return _checkpoints.fingerprint(value) if hasattr(value, "shape") else value

"""Arrays in every memory layout of users, and every public function that takes arrays."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt.kernels.formulas import LOSSES
from fastopt.kernels.formulas.optimizers import CLASSES

Arrays = dict[str, np.ndarray]


def _misaligned(a: np.ndarray) -> np.ndarray:
    view = np.frombuffer(bytearray(a.nbytes + 1), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a: np.ndarray) -> np.ndarray:
    kept = a.copy()
    kept.flags.writeable = False
    return kept


def _every_other(a: np.ndarray) -> np.ndarray:
    for axis in range(a.ndim):
        a = np.repeat(a, 2, axis)
    return a[(slice(None, None, 2),) * a.ndim]


def _broadcast(a: np.ndarray) -> np.ndarray:
    """Rows of stride 0: all are the first row, so values change."""
    return np.broadcast_to(a[:1], a.shape) if a.ndim else np.broadcast_to(a, ())


def _memory_mapped(a: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(a.tobytes() or b"0")
        return np.memmap(path, a.dtype, "c", shape=a.shape) if a.size else a.copy()


def _from_npy(a: np.ndarray) -> np.ndarray:
    """The array that `np.load` returns of a file in Fortran order."""
    file = io.BytesIO()
    np.save(file, a.copy(order="F"))
    return np.load(io.BytesIO(file.getvalue()))


def _odd_strides(a: np.ndarray) -> np.ndarray:
    """Axes with at most one element, whose strides may be anything."""
    strides = [13 if n <= 1 else s for n, s in zip(a.shape, a.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(a.copy(), a.shape, strides)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "columns first": lambda a: a.copy(order="F"),
    "transposed": lambda a: a.T.copy().T,
    "strided": _every_other,
    "negative strides": lambda a: a[(slice(None, None, -1),) * a.ndim].copy()[(slice(None, None, -1),) * a.ndim],
    "columns first and negative": lambda a: a[::-1].copy(order="F")[::-1] if a.ndim else a.copy(),
    "misaligned": _misaligned,
    "misaligned columns": lambda a: _misaligned(a.T.copy()).T,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "swapped bytes, columns first": lambda a: a.astype(a.dtype.newbyteorder(), order="F"),
    "read-only": _read_only,
    "read-only columns": lambda a: _read_only(a.T.copy()).T,
    "broadcast": _broadcast,
    "memory-mapped": _memory_mapped,
    "memory-mapped columns": lambda a: _memory_mapped(a.T.copy()).T,
    "from a file, columns first": _from_npy,
    "odd strides": _odd_strides,
    "part of a larger array": lambda a: np.concatenate([a, a])[: len(a)] if a.ndim else a.copy(),
    "subclass": lambda a: a.copy(order="F").view(_Sub),
}
NOT_IN_PLACE = ("read-only", "read-only columns", "broadcast")  # which cannot be updated


class _Sub(np.ndarray):
    pass


class Entry(NamedTuple):
    """A public function: arrays of a dtype for it, and its results for them on a backend."""

    make: Callable[[np.random.Generator, str, int], Arrays]  # of so many rows
    call: Callable[[str, str, Arrays], list[Any]]
    in_place: tuple[str, ...] = ()  # arrays that are updated
    rtol: float = 0.0  # of sums that are taken in the order of the memory


IN, OUT = 4, 3


def _weights(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    return {"w": rng.standard_normal((IN, OUT)).astype(dtype), "b": rng.standard_normal(OUT).astype(dtype)}


def _x(rows: int = 5) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((rows, IN))


def _all_of(model: fo.Sequential) -> list[Any]:
    """Weights and predictions, at first, after saving and loading, and after some steps."""
    x, y = _x(), np.arange(15.0).reshape(5, OUT) / 15
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.safetensors")
        again = fo.load_model(Path(folder) / "model.safetensors")
        weights = again.get_weights()
        again.set_weights([w * 0 for w in weights])
        again.load_weights(Path(folder) / "model.safetensors")
    found = [model.predict(x), again.predict(x), *model.get_weights(), *weights]
    model.compile(fo.SGD(lr=0.5, momentum=0.9), "mse")
    model.fit(x, y, batch_size=2, verbose=0)
    return [*found, *model.parameters]


def _initializers(backend: str, dtype: str, a: Arrays) -> list[Any]:
    layer = fo.Dense(OUT, "tanh", kernel_initializer=a["w"], bias_initializer=a["b"])
    return _all_of(fo.Sequential([layer], backend=backend, dtype=dtype, inputs=IN))


def _vectors(*names: str) -> Callable[[np.random.Generator, str, int], Arrays]:
    def make(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
        return {name: rng.random(IN).astype(dtype) for name in names}

    return make


def _normalizes(cls: Any) -> Callable[[str, str, Arrays], list[Any]]:
    def call(backend: str, dtype: str, a: Arrays) -> list[Any]:
        layer = cls(**{f"{name}_initializer": array for name, array in a.items()})
        return _all_of(fo.Sequential([layer, fo.Dense(OUT)], backend=backend, dtype=dtype, inputs=IN))

    return call


def _set_weights(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = fo.Sequential([fo.Dense(OUT, "tanh")], backend=backend, dtype=dtype, inputs=IN)
    model.set_weights([a["w"], a["b"]])
    return _all_of(model)


def _adopt(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = fo.Sequential([fo.Dense(OUT, "tanh")], backend=backend, dtype=dtype)
    model.adopt(IN, [a["w"], a["b"]])
    return _all_of(model)


def _targets(loss: str, rng: np.random.Generator, dtype: str, rows: int) -> np.ndarray:
    row = LOSSES[loss]
    if row.targets == "labels":
        return rng.integers(0, OUT, rows)
    if row.by_row:
        return np.eye(OUT, dtype=dtype)[rng.integers(0, OUT, rows)]
    if row.link or row.signs:
        return rng.integers(0, 2, (rows, OUT)).astype(dtype)
    return rng.standard_normal((rows, OUT)).astype(dtype)


def _data(loss: str) -> Callable[[np.random.Generator, str, int], Arrays]:
    def make(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
        x, vx = (rng.standard_normal((rows, IN)).astype(dtype) for _ in range(2))
        y, vy = (_targets(loss, rng, dtype, rows) for _ in range(2))
        w, vw = (rng.random(rows).astype(dtype) for _ in range(2))
        return {"x": x, "y": y, "w": w, "vx": vx, "vy": vy, "vw": vw}

    return make


def _model(loss: str, backend: str, dtype: str) -> fo.Sequential:
    model = fo.Sequential([fo.Dense(5, "tanh"), fo.Dense(OUT)], seed=3, backend=backend, dtype=dtype, inputs=IN)
    model.compile(fo.Adam(lr=0.1), loss)
    return model


def _fit(loss: str) -> Callable[[str, str, Arrays], list[Any]]:
    def call(backend: str, dtype: str, a: Arrays) -> list[Any]:
        model = _model(loss, backend, dtype)
        validation = a["vx"], a["vy"], a["vw"]
        history = model.fit(a["x"], a["y"], 2, 4, validation_data=validation, verbose=0, sample_weight=a["w"])
        return [history["loss"], history["val_loss"], history.step_losses, *model.parameters]

    return call


def _fit_many(backend: str, dtype: str, a: Arrays) -> list[Any]:
    models = [_model("huber", backend, dtype) for _ in range(2)]
    rows, weights = [None, np.arange(len(a["x"]))[::2]], a["w"]
    found = fo.fit_many(models, a["x"], a["y"], rows, 2, 4, verbose=0, sample_weight=weights)
    return [*(p for model in models for p in model.parameters), *(history["loss"] for history in found)]


def _lr_finder(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = _model("huber", backend, dtype)
    test = fo.lr_finder(model, a["x"], a["y"], 1e-4, 0.1, steps=4, batch_size=4, sample_weight=a["w"])
    return [test.losses, test.smoothed, *model.parameters]


def _evaluate(loss: str) -> Callable[[str, str, Arrays], list[Any]]:
    def call(backend: str, dtype: str, a: Arrays) -> list[Any]:
        return [_model(loss, backend, dtype).evaluate(a["x"], a["y"], sample_weight=a["w"])["loss"]]

    return call


def _predict(backend: str, dtype: str, a: Arrays) -> list[Any]:
    return [_model("mse", backend, dtype).predict(a["x"])]


def _preparation(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    features = {"x": rng.standard_normal((rows, IN)).astype(dtype), "y": rng.integers(1, OUT + 1, rows)}
    return features | {name: rng.random(IN).astype(dtype) for name in ("scale", "offset", "mean", "variance")}


def _rescaling(backend: str, dtype: str, a: Arrays) -> list[Any]:
    return _all_of(fo.Sequential([fo.Rescaling(a["scale"], a["offset"]), fo.Dense(OUT)], 0, backend, dtype, IN))


def _normalization(backend: str, dtype: str, a: Arrays) -> list[Any]:
    layers = [fo.Normalization(mean=a["mean"], variance=a["variance"]), fo.Normalization().adapt(a["x"])]
    model = fo.Sequential([*layers, fo.Dense(OUT)], 0, backend, dtype, IN)
    return [model.predict(a["x"]), *(part for numbers in model.statistics.values() for part in numbers)]


def _adapt(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = fo.Sequential([fo.Normalization(), fo.Dense(OUT)], 0, backend, dtype)
    model.adapt(a["x"])
    return [*model.statistics["normalization_1"], model.predict(a["x"])]


def _predict_classes(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = fo.Sequential([fo.Dense(OUT)], 0, backend, dtype)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.classes = np.arange(1, OUT + 1)
    model.fit(a["x"], a["y"], verbose=0)
    return [model.predict_classes(a["x"]), *model.parameters]


def _incremental(backend: str, dtype: str, a: Arrays) -> list[Any]:
    model = fo.Sequential([fo.Dense(OUT)], 0, backend, dtype)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.classes = np.arange(1, OUT + 1)
    figures = model.train_on_batch(a["x"], a["y"])
    return [figures["loss"], *model.partial_fit(a["x"], a["y"]).parameters, model.predict_proba(a["x"])]


def _outputs(loss: str) -> Callable[[np.random.Generator, str, int], Arrays]:
    return lambda rng, dtype, rows: {
        "z": rng.standard_normal((rows, OUT)).astype(dtype), "t": _targets(loss, rng, dtype, rows),
    }  # fmt: skip


def _loss(loss: str) -> Callable[[str, str, Arrays], list[Any]]:
    def call(backend: str, dtype: str, a: Arrays) -> list[Any]:
        it = fo.losses.LOSS_CLASSES[loss](backend=backend)
        return [it(a["z"], a["t"]), it.gradient(a["z"], a["t"]), *it.value_and_gradient(a["z"], a["t"])]

    return call


def _layer(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    shapes = {"x": (rows, IN), "w": (IN, OUT), "b": (OUT,), "dy": (rows, OUT), "y": (rows, OUT), "z": (rows, OUT)}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def _forward(activation: str) -> Callable[[str, str, Arrays], list[Any]]:
    return lambda backend, dtype, a: [
        *fo.dense_forward(a["x"], a["w"], a["b"], activation, return_preactivation=True, backend=backend),
        fo.dense_forward(a["x"], a["w"], None, activation, backend=backend),
    ]


def _backward(activation: str) -> Callable[[str, str, Arrays], list[Any]]:
    return lambda backend, dtype, a: list(
        fo.dense_backward(a["dy"], a["x"], a["w"], a["y"], activation, z=a["z"], backend=backend)
    )


INCREMENTAL = ("train_on_batch", "partial_fit", "predict_proba")
OPTIMIZERS: dict[str, Callable[..., fo.Optimizer]] = {
    **{name: getattr(fo, name) for name in CLASSES},
    "SGD": lambda p, **more: fo.SGD(p, lr=0.1, momentum=0.9, **more),
    "Adam": lambda p, **more: fo.Adam(p, lr=0.1, amsgrad=True, **more),
}


def _gradients(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    names = ("p", "g", "h", "q", "k")
    arrays = {name: rng.standard_normal((rows, OUT)).astype(dtype) for name in names}
    return arrays | {"scale": np.array([2.0]).astype(dtype), "found": np.array([0.0]).astype(dtype)}


def _known(optimizer: fo.Optimizer) -> list[Any]:
    return [array for entry in optimizer.state_dict()["state"].values() for array in entry.values()]


def _steps(make: Callable[..., fo.Optimizer]) -> Callable[[str, str, Arrays], list[Any]]:
    """The constructor, `step` in all its ways, `add_param_group` and `bind`."""

    def call(backend: str, dtype: str, a: Arrays) -> list[Any]:
        optimizer = make(None, backend=backend)
        optimizer.bind([a["p"]])
        optimizer.step([a["g"]], grad_scale=a["scale"], found_inf=a["found"])
        optimizer.add_param_group({"params": [a["q"]]})
        optimizer.step([[a["h"]], [a["k"]]], skip_nonfinite=True)
        return [a["p"], a["q"], *_known(optimizer)]

    return call


def _clipped(backend: str, dtype: str, a: Arrays) -> list[Any]:
    optimizer = fo.SGD([a["p"], a["q"]], lr=0.1, momentum=0.9, backend=backend, clip_norm=0.5)
    optimizer.step([a["g"], a["h"]])
    each = fo.Adam(a["q"], lr=0.1, backend=backend, clip_each=0.5)
    each.step(a["g"])
    return [a["p"], a["q"], optimizer.grad_norm, *_known(optimizer), *_known(each)]


def _rows(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    indices = rng.integers(0, rows, 2 * rows)
    return {
        "p": rng.standard_normal((rows, OUT)).astype(dtype), "indices": indices,
        "values": rng.standard_normal((len(indices), OUT)).astype(dtype),
    }  # fmt: skip


def _row_steps(backend: str, dtype: str, a: Arrays) -> list[Any]:
    optimizer = fo.Adam(a["p"], lr=0.1, backend=backend)
    optimizer.step((a["indices"], a["values"]))
    optimizer.step((a["indices"], a["values"]))
    return [a["p"], *_known(optimizer)]


def _states(rng: np.random.Generator, dtype: str, rows: int) -> Arrays:
    arrays = {name: rng.random((rows, OUT)).astype(dtype) for name in ("p", "exp_avg", "exp_avg_sq", "g", "q")}
    return arrays | {"step": np.array(3.0)}


def _load_states(backend: str, dtype: str, a: Arrays) -> list[Any]:
    optimizer = fo.Adam(a["p"], lr=0.1, backend=backend)
    saved = optimizer.state_dict()
    saved["state"][0] = {name: a[name] for name in ("step", "exp_avg", "exp_avg_sq")}
    optimizer.load_state_dict(saved)
    optimizer.step(a["g"])
    shown = [state.copy() for states in optimizer.states for state in states]
    optimizer.move([a["q"]])
    optimizer.step(a["g"])
    return [a["p"], a["q"], *_known(optimizer), *shown]


# One loss for each kind of targets; activations: linear, and those whose slope follows from y and from z.
KINDS = {(row.targets, row.by_row, row.signs): name for name, row in LOSSES.items()}.values()
ENTRIES: dict[str, Entry] = {
    "Dense": Entry(_weights, _initializers),
    "LayerNorm": Entry(_vectors("gamma", "beta"), _normalizes(fo.LayerNorm)),
    "BatchNorm": Entry(_vectors("gamma", "beta", "moving_mean", "moving_variance"), _normalizes(fo.BatchNorm)),
    "lr_finder": Entry(_data("huber"), _lr_finder),
    "Sequential.set_weights": Entry(_weights, _set_weights),
    "Sequential.adopt": Entry(_weights, _adopt),
    "Sequential.predict": Entry(_data("huber"), _predict),
    "Sequential.predict_classes": Entry(_preparation, _predict_classes),
    **{f"Sequential.{name}": Entry(_preparation, _incremental) for name in INCREMENTAL},
    "Sequential.adapt": Entry(_preparation, _adapt),
    "Normalization": Entry(_preparation, _normalization),
    "Rescaling": Entry(_preparation, _rescaling),
    **{f"Sequential.fit {loss}": Entry(_data(loss), _fit(loss)) for loss in KINDS},
    "fit_many": Entry(_data("huber"), _fit_many),
    **{f"Sequential.evaluate {loss}": Entry(_data(loss), _evaluate(loss)) for loss in KINDS},
    **{f"losses {loss}": Entry(_outputs(loss), _loss(loss)) for loss in LOSSES},
    **{f"dense_forward {name}": Entry(_layer, _forward(name)) for name in ("linear", "tanh", "gelu")},
    **{f"dense_backward {name}": Entry(_layer, _backward(name)) for name in ("linear", "tanh", "gelu")},
    **{name: Entry(_gradients, _steps(make), ("p", "q")) for name, make in OPTIMIZERS.items()},
    "Optimizer.step clipped": Entry(_gradients, _clipped, ("p", "q"), rtol=1e-5),
    "Optimizer.step rows": Entry(_rows, _row_steps, ("p",)),
    "Optimizer.load_state_dict": Entry(_states, _load_states, ("p", "q")),
}

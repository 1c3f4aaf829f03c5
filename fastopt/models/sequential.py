"""Sequential: layers behind each other, and everything one does with them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _backends, profiling
from .._exclusive import Exclusive
from .._files import Path, Readable, Writable
from .._metrics import check_classes, check_metrics, check_outputs
from .._validation import FLOATS, as_numbers, check_count, check_flag, check_number, describe, own
from ..callbacks import Callback
from ..kernels.formulas import LOSSES
from ..kernels.spec import LayerSpec
from ..layers import Dense, Dropout, Layer, chain, kind
from ..losses import Loss
from ..losses import get as get_loss
from ..optim import Optimizer, get_optimizer
from . import _intake, _targets, batching, checkpoint, training
from ._data_memory import DataMemory
from .history import History
from .progress import check_verbose


class Sequential(DataMemory):
    """A network of dense layers, each working on what the one before it gives.

    layers   Dense and Dropout; the last one is Dense, and only it may have the activation softmax. Before them
             Normalization and Rescaling may stand, which change neither the weights nor the masks that the seed gives
    seed     whole number in [0, 2^64): the initial weights, the order of the rows and the dropout masks follow from it
             and from nothing else, so every backend starts from the same weights and sees the same batches
    backend  "cpu" (compiled kernels), "cuda" (the same on a GPU) or "numpy" (the reference); `model.backend` may be
             changed between calls. `fit` takes the data to the GPU once, so that nothing should write to them
             meanwhile. It is the current GPU, as `with torch.cuda.device(1):` and its like in other libraries choose
             it, or the first. Where kernels cannot run there, an ImportError says what is missing
    dtype    "float32" or "float64": of weights, data and predictions. Data of any other real type is converted
    inputs   number of features; left out, it comes from the data (or from `build`)
    compute_dtype  "bfloat16" for mixed precision, as torch's autocast and Keras' "mixed_bfloat16": layers multiply
             bfloat16 numbers, which a GPU does many times as fast, add up in float32, and give bfloat16 to one another.
             Weights, optimizer, predictions and losses stay in `dtype`, which must be float32. On "cuda" and "numpy".
             "tf32", on "cuda": float32 numbers are multiplied as if they had 10 bits of mantissa, faster than whole.
             None, or the dtype: layers compute in it. `model.compute_dtype` may be changed between calls

    Where the activation of the last layer is the one that the loss undoes (softmax for the cross-entropies, sigmoid for
    binary_crossentropy), training runs on the logits, which is exact and fast, and `predict` gives probabilities. With
    a linear last layer and such a loss training is the same, and `predict` gives logits.

    Attributes: `layers`, `seed`, `dtype`, `inputs` (None until built), `optimizer`, `loss`, `metrics` (None, None, ()
    until compiled), `parameters`, `epochs_done` (over the model's life), `history` (of the last `fit`) and
    `stop_training`, for callbacks; and what the model knows of its data: `classes`, `feature_names`, `target_scale`,
    `statistics` (of Normalization) and `preparation`, all of which go into its file.

    Every method checks its arguments before it changes anything: TypeError for a wrong kind, ValueError for a wrong
    shape or value, and model, optimizer and arrays are as before.

    >>> import numpy as np, fastopt as fo
    >>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> model = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=1)
    >>> model.compile(fo.Adam(lr=0.03), loss="mean_squared_error", metrics=["r2"])
    >>> history = model.fit(x, x**2, epochs=40, batch_size=16)
    >>> history["loss"][-1] < 0.01 and model.evaluate(x, x**2)["r2"] > 0.9
    True
    >>> model.predict(x).shape
    (64, 1)
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        seed: int = 0,
        backend: str = _backends.DEFAULT,
        dtype: DTypeLike = "float32",
        inputs: int | None = None,
        compute_dtype: str | None = None,
    ) -> None:
        self.layers = _check_layers(layers)
        self.names = _name(self.layers)
        self._remember(self.layers)
        self.seed = check_count("seed", seed, least=0)
        if self.seed >= 2**64:
            raise ValueError(f"seed must be below 2^64; got {seed}")
        self.dtype = _check_dtype(dtype)
        self._backend = _backends.known(backend)
        self.compute_dtype = compute_dtype
        self.inputs: int | None = None
        self.optimizer: Optimizer | None = None
        self.loss: Loss | None = None
        self.metrics: tuple[str, ...] = ()
        self.epochs_done = 0
        self.history: History | None = None
        self.stop_training = False
        self._use = Exclusive()
        self._specs: list[LayerSpec] = []
        self._parameters: list[np.ndarray] = []
        if inputs is not None:
            self.build(inputs)

    # -- structure and weights

    @property
    def backend(self) -> str:
        """The name of the backend that runs the kernels."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        name = _backends.known(name)
        _backends.check_compute(self._compute, self.dtype.name, name)
        self._backend = name

    @property
    def compute_dtype(self) -> str:
        """The dtype that layers compute in.

        >>> model = Sequential([Dense(2)], backend="numpy", compute_dtype="bfloat16", inputs=3)
        >>> model.compute_dtype, model.parameters[0].dtype.name
        ('bfloat16', 'float32')
        >>> model.compute_dtype = None
        >>> model.compute_dtype
        'float32'
        """
        return self._compute

    @compute_dtype.setter
    def compute_dtype(self, name: str | None) -> None:
        self._compute = _backends.check_compute(name, self.dtype.name, self._backend)

    @property
    def outputs(self) -> int:
        """The number of columns that `predict` gives."""
        return self._last.units

    @property
    def last_activation(self) -> str:
        """The activation of the last layer."""
        return self._last.activation

    @property
    def built(self) -> bool:
        """Whether the model has weights."""
        return self.inputs is not None

    @property
    def parameters(self) -> list[np.ndarray]:
        """The weights themselves, [w0, b0, w1, b1, ...]: w (inputs, outputs), b (outputs,). Training changes them."""
        return list(self._parameters)

    @property
    def _last(self) -> Dense:
        last = self.layers[-1]
        assert isinstance(last, Dense)  # checked in __init__
        return last

    def specs(self, inputs: int) -> list[LayerSpec]:
        """What the backends need to know of the layers, behind `inputs` features; ValueError where layers clash."""
        return chain(self.layers, self.names, inputs)

    def build(self, inputs: int) -> None:
        """Make the weights for `inputs` features, from the seed. Once built, only the same number is accepted.

        >>> model = Sequential([Dense(2)])
        >>> model.build(3)
        >>> [p.shape for p in model.parameters]
        [(3, 2), (2,)]
        """
        inputs = check_count("inputs", inputs)
        if self.inputs is None:
            with self._use.alone("build"):
                self._draw(inputs)
        if inputs != self.inputs:
            raise ValueError(f"the model is built for {self.inputs} features; got {inputs}")

    def _draw(self, inputs: int) -> None:
        """Make the weights, unless another thread has come first."""
        if self.inputs is not None:
            return
        self.specs(inputs)  # refuses layers that clash before a weight is drawn
        drawn: list[np.ndarray] = []
        width = inputs
        for index, layer in enumerate(self.layers[len(self.preprocessing) :]):
            if isinstance(layer, Dense):
                drawn += layer.draw(width, self.seed, index)
                width = layer.units
        self._adopt(inputs, [own(array, self.dtype) for array in drawn])

    def adopt(self, inputs: int, parameters: list[np.ndarray]) -> None:
        """Copy arrays of the right shapes, of any dtype and layout, as the weights of a model that has none yet."""
        self._adopt(inputs, [own(p, self.dtype) for p in parameters])

    def _adopt(self, inputs: int, parameters: list[np.ndarray]) -> None:
        """Take arrays that nobody else has, as `own` makes them, as the weights."""
        if self.optimizer is not None:
            self.optimizer.bind(parameters)  # fails, before anything has changed, where another model has bound it
        self.inputs, self._specs, self._parameters = inputs, self.specs(inputs), parameters
        self.learnt = self.learnt  # the numbers that layers bring are the model's from now on

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of the weights, in the order of `parameters`."""
        with self._use.shared("get_weights"):
            return [p.copy() for p in self._parameters]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Copy `weights`, in the order and shapes of `parameters`, into the model. The optimizer stays as it is."""
        if not self.built:
            raise ValueError("the model has no weights yet: call build, or fit")
        if isinstance(weights, np.ndarray | str) or not isinstance(weights, Sequence):
            raise TypeError(f"weights must be a list of arrays; got {describe(weights)}")
        if len(weights) != len(self._parameters):
            raise ValueError(f"weights must be {len(self._parameters)} arrays; got {len(weights)}")
        arrays = [as_numbers(f"weights[{i}]", w, self.dtype) for i, w in enumerate(weights)]
        for i, (p, w) in enumerate(zip(self._parameters, arrays, strict=True)):
            if p.shape != w.shape:
                raise ValueError(f"weights[{i}] must have shape {p.shape}; got {w.shape}")
        with self._use.alone("set_weights"):
            for p, w in zip(self._parameters, arrays, strict=True):
                p[...] = w

    def summary(self) -> str:
        """Return a table of the layers: what they give and how many parameters they have.

        >>> print(Sequential([Dense(16, "relu"), Dropout(0.2), Dense(3)], inputs=4).summary())
        layer      activation  outputs  parameters
        dense_1    relu             16          80
        dropout_1  rate 0.2         16           0
        dense_2    linear            3          51
        total: 131 parameters, 4 inputs, float32
        """
        width, total = self.inputs, 0
        rows = [("layer", "activation", "outputs", "parameters")]
        for layer, name in zip(self.layers, self.names, strict=True):
            if not isinstance(layer, Dense):
                what = f"rate {layer.rate:g}" if isinstance(layer, Dropout) else layer.formula()
                rows.append((name, what, "?" if width is None else f"{width:,}", "0"))
                continue
            count = None if width is None else (width + layer.use_bias) * layer.units
            total += count or 0
            rows.append((name, layer.activation, f"{layer.units:,}", "?" if count is None else f"{count:,}"))
            width = layer.units
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{name:<{sizes[0]}}  {what:<{sizes[1]}}  {outputs:>{sizes[2]}}  {count:>{sizes[3]}}"
            for name, what, outputs, count in rows
        ]
        end = f"total: {total:,} parameters, {self.inputs:,} inputs" if self.inputs else "not built: inputs unknown"
        return "\n".join([*lines, f"{end}, {self.dtype.name}{f', computed in {self._compute}' * self._mixed}"])

    def __repr__(self) -> str:
        inputs = "" if self.inputs is None else f", inputs={self.inputs}"
        inputs += f", compute_dtype={self._compute!r}" * self._mixed
        layers = ", ".join(map(repr, self.layers))
        return f"Sequential([{layers}], seed={self.seed}, backend={self.backend!r}, dtype={self.dtype.name!r}{inputs})"

    # -- training

    def compile(
        self,
        optimizer: str | Optimizer | type[Optimizer] = "adam",
        loss: str | Loss | type[Loss] | None = None,
        metrics: str | Iterable[str] | None = (),
    ) -> None:
        """Choose how to train. Weights stay as they are; an optimizer that is new to the model starts afresh.

        optimizer  a name (sgd, momentum, adagrad, rmsprop, adam, adamw), or an optimizer made without parameters, such
                   as `fastopt.Adam(lr=3e-4)`, or a class, or the model's own one. The model's backend runs it, whatever
                   its own one is. Its lr may be one of `fastopt.schedules`: a rate for every step, also within an epoch
        loss       a name, or a loss such as `fastopt.losses.Huber(delta=0.5)`, or a class
        metrics    of accuracy, mean_squared_error, mean_absolute_error, r2 those that the loss's targets admit, by
                   these names or others ("acc", "mse", "mae", "r2_score"); a single one may be given by itself

        Accuracy is, for the categorical losses, the share of rows whose largest output is that of their class; for
        binary_crossentropy, hinge and perceptron the share of right labels over rows and outputs: a probability above
        0.5 (a logit above 0) stands for 1, else for 0, and an output above 0 stands for 1, else for -1. For the other
        losses targets must be one-hot (the largest output counts), or 0 and 1 for one output (which 0.5 parts). An
        output that is NaN is never right. `fit` and `evaluate` refuse to count it for real-valued targets.

        r2 is weighted by the variance of the outputs, where there are several. Where targets are constant, which those
        of a single row always are, it is 1 if the predictions are exact and 0 if they are not.

        Raises ValueError where the last activation is not one that the loss can follow: the cross-entropies take logits
        (softmax, sigmoid or linear at the end) and the softmax two units or more; hinge and perceptron take signs.

        >>> Sequential([Dense(3, "softmax")]).compile(loss="mean_squared_error")
        Traceback (most recent call last):
        ...
        ValueError: softmax as the last activation needs a softmax cross-entropy as the loss: \
sparse_categorical_crossentropy, categorical_crossentropy; got mean_squared_error
        """
        if loss is None:
            raise TypeError(f"compile needs a loss; known: {', '.join(LOSSES)}")
        new_loss, new_optimizer = get_loss(loss), get_optimizer(optimizer)
        check_outputs(new_loss.spec.name, self._last.activation, self._last.units)
        names = check_metrics(metrics, new_loss.spec.name)
        with self._use.alone("compile"):
            if new_optimizer is not self.optimizer:
                if new_optimizer.bound:
                    raise ValueError(
                        "the optimizer has its arrays already; give compile one that was made without params"
                    )
                if self.built:
                    new_optimizer.bind(self._parameters)
            self.optimizer, self.loss, self.metrics = new_optimizer, new_loss, names

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        epochs: int = 1,
        batch_size: int = 32,
        validation_split: float = 0.0,
        validation_data: tuple[ArrayLike, ArrayLike] | None = None,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        verbose: int | str = "auto",
        initial_epoch: int = 0,
        nan: str = "raise",
        accumulate: int = 1,
        standardize_targets: bool = False,
    ) -> History:
        """Train, in place, and return the figures of every epoch.

        x                 (n, inputs), real numbers of any type, converted to the model's dtype and, but for what the
                          model's Normalization and Rescaling do, not scaled. Images (n, 28, 28) are flattened. Tables
                          of pandas, polars and pyarrow may have bool, nullable and categorical columns of numbers;
                          `feature_names` keeps their names, and other columns are refused from then on
        y                 labels (n,) or (n, 1) for sparse_categorical_crossentropy, and for binary_crossentropy, hinge
                          and perceptron with one output: whole numbers, bools or strings. Those that are not 0, 1, ...
                          already are numbered in sorted order, and `classes` keeps them; there must be as many as the
                          outputs tell apart. Else numbers (n, outputs), or (n,) where there is one output
        epochs            number of the last epoch; with initial_epoch=0 that is how many are run
        batch_size        rows per batch; the last batch of an epoch has what is left
        validation_split  share in [0, 1) of the rows to hold out: drawn by the seed, or the last ones if not `shuffle`
        validation_data   (x, y) to validate on instead
        shuffle           go through the rows in a new order every epoch: a function of the seed and `epochs_done` alone
        callbacks         a sequence of `Callback`
        verbose           1 for a progress bar on stderr, 0 for none, "auto" for one on a terminal and in a notebook
        initial_epoch     epochs that count as done: after loading a checkpoint, `epochs=10,
                          initial_epoch=model.epochs_done` goes on to the tenth, bit for bit as without interruption
        nan               "raise": NaN, missing cells and infinity in the data are errors; "skip": rows that have them
                          are left out
        accumulate        batches per optimizer step: their gradients are averaged over all their rows, so that
                          accumulate=4 with batch_size=16 takes the steps of batch_size=64 in a quarter of the memory.
                          Steps, also those of `step_losses`, are the optimizer's; the last of an epoch has what is left
        standardize_targets  for losses of real numbers: the network learns targets less their mean, over their
                          deviation, of the rows that it trains on at the first `fit` (a constant one: over 1).
                          `target_scale` keeps both, for later calls, too. Losses and metrics are in these units, also
                          those of `evaluate`; `predict` gives the units of y

        Clipping and penalties are the optimizer's: `fastopt.Adam(clip_norm=1.0, l1=1e-5)`. With `clip_norm` or
        `accumulate` the gradients are written to memory before the update; else they never are.

        Where the training loss of an epoch is inf or NaN, a RuntimeWarning names the first such epoch, once a call.

        An interrupt (Ctrl-C) ends the training between two batches with KeyboardInterrupt; the model stays usable and
        `model.history` has the epochs that were finished. Weights are those of the last batch, or those of the best
        epoch with EarlyStopping(restore_best_weights=True).

        A callback may call `fit` itself: that is a training by itself, whose figures are in the History that it
        returns, and whose end, early or not, is not that of the one around it. Other threads have no part in a model
        that is being trained: their calls of methods that read or change the weights raise RuntimeError. Several
        threads may predict at once.
        """
        with self._use.alone("fit", trains=True):
            plan = self._plan(
                x, y, epochs, batch_size, validation_split, validation_data, shuffle, callbacks, verbose, initial_epoch,
                nan, accumulate, standardize_targets,
            )  # fmt: skip
            return training.run(self, plan)

    def _plan(
        self,
        x: ArrayLike,
        y: ArrayLike,
        epochs: int,
        batch_size: int,
        validation_split: float = 0.0,
        validation_data: tuple[ArrayLike, ArrayLike] | None = None,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        verbose: int | str = "auto",
        initial_epoch: int = 0,
        nan: str = "raise",
        accumulate: int = 1,
        standardize_targets: bool = False,
    ) -> training.Plan:
        """Check the arguments of `fit` and build the model; `training.run_epochs` takes what is returned."""
        loss = self._compiled()
        if self.optimizer is not None and len(self.optimizer.param_groups) > 1:
            raise ValueError("fit trains the model's own arrays, but its optimizer was given more by add_param_group")
        if self.optimizer is not None and self.optimizer.param_groups[0]["clip_each"] is not None:
            raise ValueError("fit clips by clip_value or clip_norm; the optimizer's clip_each is for its method `step`")
        first, last = check_count("initial_epoch", initial_epoch, least=0), check_count("epochs", epochs)
        if first > last:
            raise ValueError(f"initial_epoch must be at most epochs={last}; got {first}")
        batch_size, accumulate = check_count("batch_size", batch_size), check_count("accumulate", accumulate)
        fraction = check_number("validation_split", validation_split, 0.0, 1.0)
        check_flag("shuffle", shuffle)
        check_verbose(verbose)
        if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
            raise TypeError(f"callbacks must be a list of Callback; got {describe(callbacks)}")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"every callback must be a Callback; got {describe(callback)}")
        check_flag("standardize_targets", standardize_targets)
        raw = _intake.read(self, ("x", "y"), x, y, loss, nan)
        inputs = raw.x.values.shape[1]
        self._check_clash(inputs)
        rows, held_out = np.arange(len(raw.x.values)), None
        if validation_data is not None:
            if fraction:
                raise ValueError("give validation_split or validation_data, not both")
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise TypeError(f"validation_data must be a tuple (x, y); got {describe(validation_data)}")
        elif fraction:
            rows, held_out = batching.split(len(rows), fraction, self.seed, shuffle)
        learnt = _intake.learnt_from(self, raw, None if held_out is None else rows, loss, standardize_targets)
        data, validation = _intake.converted(self, ("x", "y"), raw, loss, learnt), None
        if validation_data is not None:
            names = ("validation x", "validation y")
            more = _intake.read(self, names, *validation_data, loss, nan, inputs, learnt.feature_names)
            validation = _intake.converted(self, names, more, loss, learnt)
        elif held_out is not None:
            validation = _intake.Data(data.x[held_out], data.y[held_out])
        for name, some in (("y", data), ("validation y", validation)):
            if some is not None:
                check_classes(self.metrics, loss.spec.name, some.y, name)
        names_of_figures = training.figure_names(self.metrics, validation is not None)
        for callback in callbacks:
            callback.check(names_of_figures)
        _backends.network(self.backend)  # where it cannot run, nothing is learnt
        self.build(inputs)
        self.learnt = learnt
        epoch_numbers = range(first + 1, last + 1)
        return training.Plan(
            data, rows, validation, epoch_numbers, batch_size, shuffle, list(callbacks), verbose, accumulate
        )

    def evaluate(self, x: ArrayLike, y: ArrayLike, batch_size: int = 1024, nan: str = "raise") -> dict[str, float]:
        """Return {"loss": mean loss, metric: value, ...} on x and y, which are as in `fit`, without dropout.

        Labels must be among `classes`. With a `target_scale` the figures are in its units, as those of `fit`.
        """
        loss = self._compiled()
        batch_size = check_count("batch_size", batch_size)
        raw = _intake.read(self, ("x", "y"), x, y, loss, nan)
        inputs = raw.x.values.shape[1]
        self._check_clash(inputs)
        data = _intake.converted(self, ("x", "y"), raw, loss, self.learnt_for(inputs))
        check_classes(self.metrics, loss.spec.name, data.y, "y")
        with self._reading("evaluate"):
            self.build(inputs)
            return training.figures(self.network().evaluate(*data, batch_size))

    def predict(self, x: ArrayLike, batch_size: int = 1024) -> np.ndarray:
        """Return the outputs (n, outputs) for x (n, inputs), the last activation applied, without dropout.

        x is as in `fit`. With a `target_scale` the outputs are in the units of the targets.
        """
        batch_size = check_count("batch_size", batch_size)
        features = _intake.read_x(self, "x", x)
        inputs = features.values.shape[1]
        self._check_clash(inputs)
        learnt = self.learnt_for(inputs)
        rows = _intake.prepared(self, "x", features, learnt)
        with self._reading("predict"):
            self.build(inputs)
            outputs = self.network(training=False).predict(rows, batch_size)
        return outputs if learnt.target_scale is None else _targets.unscaled(outputs, learnt.target_scale)

    def _reading(self, call: str) -> AbstractContextManager[None]:
        """While open, no other thread changes the weights; the first call makes them."""
        return self._use.shared(call) if self.built else self._use.alone(call)

    def network(self, training: bool = True) -> Any:
        """Return a new network of the backend over the model's own weights; without a loss unless for training."""
        profiling.check_backend(self.backend)
        spec = None if self.loss is None or not training else self.loss.spec
        metrics = self.metrics if training else ()
        network = _backends.network(self.backend)
        compute = {"compute": self._compute} if self._mixed else {}
        return network(self._specs, self._parameters, self.dtype, spec, metrics, **compute)

    def _check_clash(self, inputs: int) -> None:
        """ValueError where layers clash behind `inputs` features, before anything is made."""
        if not self.built:
            self.specs(inputs)

    @property
    def _mixed(self) -> bool:
        """Whether layers compute in another dtype than that of the weights."""
        return self._compute != self.dtype.name

    def _compiled(self) -> Loss:
        if self.loss is None:
            raise ValueError("the model has no loss and optimizer yet: call compile")
        return self.loss

    # -- copies and files

    def __copy__(self) -> Sequential:
        """Return a deep copy: models that shared weights or an optimizer would change each other."""
        return copy.deepcopy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the model from pickle or copy, with weights in memory of its own, whatever memory they came in."""
        self.__dict__.update(state)
        self._parameters = [np.require(p, None, ["C", "A", "W", "O", "E"]) for p in self._parameters]
        if self.optimizer is not None and self.optimizer.bound:
            arrays = [array for group in self.optimizer.param_groups for array in group["params"]]
            if any(a is not p for a, p in zip(arrays, self._parameters, strict=False)):
                self.optimizer.move([*self._parameters, *arrays[len(self._parameters) :]])

    def save(self, path: Path | Writable) -> None:
        """Write layers, weights, optimizer and counts to a safetensors file; see `fastopt.load_model`.

        `path` is a str, bytes or os.PathLike, or a file object open for writing in binary mode, such as an io.BytesIO.
        A file that is there is replaced in one step: it keeps its mode and, where the system allows, owner and group,
        and whatever fails, the old one stays as it was. The user must be allowed to write to the file and to its
        folder. A link stays, and what it points to is replaced; hard links to the old file keep the old content. A pipe
        or a device is written to directly.

        A schedule of the learning rate that is not one of `fastopt.schedules` cannot be in a file: its present value is
        saved, and a warning logged, now and when the file is loaded.

        >>> import io, fastopt as fo
        >>> model, file = Sequential([Dense(2)], inputs=3), io.BytesIO()
        >>> model.save(file)
        >>> _ = file.seek(0)
        >>> bool((fo.load_model(file).parameters[0] == model.parameters[0]).all())
        True
        """
        with self._use.shared("save"):
            checkpoint.save(self, path)

    def load_weights(self, path: Path | Readable) -> None:
        """Take the weights of a file written by `save`; its dense layers must be the model's, and so must those before.

        `path` is that of the file, or a file object open for reading in binary mode. The weights are converted to the
        model's dtype. What makes sense of them comes with them: the numbers of Normalization, `target_scale` and, where
        the file has them, `classes`, `feature_names` and `preparation`. Optimizer and counts stay as they are. Raises
        ValueError, with the differences, for a file of another architecture, or one that is damaged or foreign; nothing
        is changed then.
        """
        with self._use.alone("load_weights"):
            checkpoint.load_weights(self, path)


def _check_layers(layers: Any) -> tuple[Layer, ...]:
    known = "Dense, Dropout, Normalization"
    if isinstance(layers, Layer | str) or not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a list of {known} and Rescaling; got {describe(layers)}")
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{i}] must be {known} or Rescaling; got {describe(layer)}")
    if not layers:
        raise ValueError("layers must hold at least one Dense")
    if not isinstance(layers[-1], Dense):
        drops = isinstance(layers[-1], Dropout)
        why = "Dropout would zero outputs at random" if drops else "the others only prepare data"
        raise ValueError(f"the last layer must be Dense: {why}")
    for i, layer in enumerate(layers[:-1]):
        if isinstance(layer, Dense) and layer.activation == "softmax":
            raise ValueError(f"only the last layer may have the activation softmax; got it in layers[{i}]")
    return tuple(layers)


def _name(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """The layers' names: dense_1, dropout_1, dense_2, ... where they have none of their own."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for layer in layers:
        counts[kind(layer)] = counts.get(kind(layer), 0) + 1
        names.append(layer.name or f"{kind(layer)}_{counts[kind(layer)]}")
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"two layers have the name {twice[0]!r}")
    return tuple(names)


def _check_dtype(dtype: Any) -> np.dtype:
    with contextlib.suppress(TypeError):
        if dtype is not None and np.dtype(dtype) in FLOATS:  # None would be float64
            return np.dtype(dtype)
    raise ValueError(f"dtype must be float32 or float64; got {dtype!r}")

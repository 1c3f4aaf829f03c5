"""Sequential: a model of layers one after the other; training, evaluation, prediction and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _backends
from .._files import Path, Readable, Writable, shown
from .._metrics import Function, check_classes, check_metrics, check_outputs
from .._pruning import Pruning, Share
from .._random_rows import split
from .._validation import check_count, check_flag, check_name, describe
from ..averaging import EMA
from ..batches import BatchSize, Growing, Random
from ..callbacks import Callback
from ..kernels.formulas import LOSSES
from ..kernels.spec import row_numbers
from ..layers import Layer
from ..losses import Loss
from ..losses import get as get_loss
from ..optim import Optimizer, get_optimizer
from . import (
    _auto_batch,
    _checkpoints,
    _description,
    _distributed,
    _gradual,
    _intake,
    _quantized_training,
    _row_weights,
    _sizes,
    _stream_plan,
    _targets,
    _trainable,
    checkpoint,
    epoch_loop,
    training,
)
from ._augment import Augment
from ._incremental import Incremental
from ._intake import Learnt
from ._items import split_rows
from ._magnitudes import chosen_layers
from ._masks import check_states
from ._probabilities import probabilities, refusal
from ._row_stream import RowStream
from .history import History
from .training import NAN, FitOptions

DIVIDED = "this rank has a part of the optimizer's states alone"


class Sequential(Incremental):
    """A network of dense layers; each is applied to the outputs of the one before.

    layers   Dense, Dropout, GaussianNoise, LayerNorm, BatchNorm and Activation; the last one is Dense, and only it may
             have the activation softmax. Normalization and Rescaling may come first; they change neither the weights
             nor the dropout masks of a seed
    seed     whole number in [0, 2^64), which alone determines the initial weights, the order of the rows and the
             dropout masks: every backend starts from the same weights and sees the same batches
    backend  "cpu" (compiled kernels), "cuda" (the same on a GPU) or "numpy" (the reference); `model.backend` may be
             changed between calls. `fit` copies the data to the GPU once: do not change them meanwhile. The GPU is the
             current one, as `with torch.cuda.device(1):` and its like in other libraries select it, else the first. If
             kernels cannot run there, an ImportError lists what is missing
    dtype    "float32" or "float64": of weights, data and predictions. Data of any other real type is converted
    inputs   number of features; by default that of the data (or of `build`)
    compute_dtype  "bfloat16" is mixed precision as in torch's autocast and Keras's "mixed_bfloat16": layers multiply
             bfloat16 numbers, which a GPU does many times as fast and "cpu" twice, add in float32, and have bfloat16
             outputs. Weights, optimizer, predictions and losses stay in `dtype`, which is float32. "cpu" has it on
             processors that gain by it (AMD's Zen 4 and 5), and refuses it on others with the reason. "tf32", on
             "cuda": products of float32 numbers with 10 bits of mantissa, which are faster. None, or the dtype: layers
             compute in it. `model.compute_dtype` may be changed between calls

    With a cross-entropy, training runs on logits, which is exact and fast. If the last layer has the loss's activation
    (softmax, or sigmoid for binary_crossentropy), `predict` returns probabilities; if it is linear, logits.

    Attributes: `layers`, `seed`, `dtype`, `inputs` (None until built), `optimizer`, `loss`, `metrics` (None, None, ()
    until compiled), `metric_functions` (those that are functions, by name), `parameters`, `epochs_done` (over the
    model's life), `history` (of the last `fit`) and `stop_training`, for callbacks; and what the model knows of its
    data: `classes`, `feature_names`, `target_scale`, `statistics` (of Normalization) and `preparation`, all of which go
    into its file.

    Every method checks its arguments before it changes anything: after a TypeError (wrong kind) or ValueError (wrong
    shape or value) model, optimizer and arrays are unchanged.

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

    _auto_batch: tuple[Any, _auto_batch.Choice] | None = None  # the last choice of a batch size, after its key
    _penalties_by_rows = False  # penalties of regularizers are divided by the rows of a step, as scikit-learn's

    def __init__(
        self,
        layers: Sequence[Layer],
        seed: int = 0,
        backend: str = _backends.DEFAULT,
        dtype: DTypeLike = "float32",
        inputs: int | None = None,
        compute_dtype: str | None = None,
    ) -> None:
        super().__init__(layers, seed, backend, dtype, compute_dtype)
        self._kept_networks: dict[tuple[bool, bool], tuple[Any, ...]] = {}
        if inputs is not None:
            self.build(inputs)

    # -- training

    def compile(
        self,
        optimizer: str | Optimizer | type[Optimizer] = "adam",
        loss: str | Loss | type[Loss] | None = None,
        metrics: str | Function | Iterable[str | Function] | None = (),
        ema: EMA | None = None,
        decay_biases: bool = True,
        quantize: str | None = None,
    ) -> None:
        """Set optimizer, loss and metrics. Weights stay; an optimizer that is new to the model starts afresh.

        optimizer  a name (sgd, momentum, adagrad, rmsprop, adam, adamw), or an optimizer made without parameters, such
                   as `fastopt.Adam(lr=3e-4)`, or a class, or the model's own one. The model's backend runs it, whatever
                   its own one is. Its lr may be one of `fastopt.schedules`: a rate for every step, also within an epoch
        loss       a name, or a loss such as `fastopt.losses.Huber(delta=0.5)`, or a class
        metrics    names, or a single name, of those that go with the loss: accuracy, top_5_accuracy and its like for
                   any number (of the softmax losses), precision, recall and f1 (of two classes), precision_macro,
                   recall_macro and f1_macro, roc_auc, mean_squared_error, mean_absolute_error, r2; also as "acc",
                   "top_k_accuracy", "top_k_categorical_accuracy", "mse", "mae", "r2_score", "auc", and
                   "binary_accuracy" and its like of Keras. Or functions f(y_true, y_pred) of yours, which go by their
                   names
        ema        an average of the weights over steps, `fastopt.EMA(decay=0.999)`, which `predict`, `evaluate` and the
                   validation use; None: there is none. The average of a model that had the same one goes on
        decay_biases  False: weight decay, that of the optimizer and of layers, leaves biases alone, as is usual
        quantize   train for `fastopt.compress.quantize` (quantization-aware training): dense layers multiply rounded
                   weights in training, and gradients pass straight through the rounding. "int8": weights and inputs,
                   these to 256 codes of the range of each batch; "int8_weights", "int4": weights alone, for
                   weights_only=True of 8 and 4 bits. `predict`, `evaluate` and the validation use the weights as they
                   are. Models of float32, on "cpu" and "numpy". None: nothing is rounded

        Accuracy is, for the categorical losses, the share of rows whose largest output is that of their class. For
        binary_crossentropy, hinge and perceptron it is the share of right labels over rows and outputs: probabilities
        above 0.5 (logits above 0) are class 1, else 0; scores above 0 are class 1, else -1. For other losses targets
        must be one-hot (the largest output counts), or 0 and 1 for one output (threshold 0.5). NaN is never right.
        `fit` and `evaluate` raise ValueError for accuracy of real-valued targets.

        precision, recall and f1 are those of the positive class: 1, the second of two outputs; where several outputs
        are yes or no each, all of them together. Those ending in _macro are means over the classes that there are among
        targets or predictions. 0 / 0 is 0.

        roc_auc and functions need all rows at once: they are called by `evaluate`, and by `fit` once an epoch with the
        validation data, as "val_" and their name. y_pred is what `predict` gives, y_true are class numbers or targets,
        in the units of y; both (n,) where there is one output. They return a number.

        r2 of several outputs is weighted by their variances. For constant targets, such as those of a single row, it is
        1 for exact predictions, else 0.

        Raises ValueError for a last activation that does not fit the loss: cross-entropies need softmax, sigmoid or
        linear, and softmax two units or more; hinge and perceptron need scores of both signs.

        >>> from fastopt import Dense
        >>> Sequential([Dense(3, "softmax")]).compile(loss="mean_squared_error")
        Traceback (most recent call last):
        ...
        ValueError: softmax as the last activation needs a softmax cross-entropy as the loss: \
sparse_categorical_crossentropy, categorical_crossentropy; got mean_squared_error
        """
        if loss is None:
            raise TypeError(f"compile needs a loss; known: {', '.join(LOSSES)}")
        new_loss, new_optimizer = get_loss(loss), get_optimizer(optimizer)
        check_outputs(new_loss.spec.name, self.last_activation, self.outputs)
        names, functions = check_metrics(metrics, new_loss.spec.name, self.outputs)
        decay_biases = check_flag("decay_biases", decay_biases)
        quantize = _quantized_training.check(quantize, self.dtype.name, self._compute, self._backend)
        if ema is not None and not isinstance(ema, EMA):
            raise TypeError(f"ema must be a fastopt.EMA, or None; got {describe(ema)}")
        with self._use.exclusive("compile"):
            if new_optimizer is not self.optimizer:
                if new_optimizer.bound:
                    raise ValueError(
                        "the optimizer has its arrays already; give compile one that was made without params"
                    )
                if self.built:
                    new_optimizer.bind(self._parameters, _trainable.frozen_params(self.layers))
            self.optimizer, self.loss, self.metrics = new_optimizer, new_loss, names
            self.metric_functions, self.decay_biases = functions, decay_biases
            self._quantize = quantize
            self._renew_settings()
            self._average_by(ema)
            self._kept_networks.clear()

    def fit(
        self,
        x: ArrayLike | Iterable[Any],
        y: ArrayLike | None = None,
        epochs: int | None = None,
        batch_size: BatchSize = 32,
        validation_split: float = 0.0,
        validation_data: tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike | None]
        | Iterable[Any] | None = None,
        shuffle: bool | str = True,
        callbacks: Callback | Sequence[Callback] | None = (),
        verbose: int | str = "auto",
        initial_epoch: int = 0,
        nan: str = "raise",
        accumulate: int = 1,
        standardize_targets: bool = False,
        sample_weight: ArrayLike | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        drop_last: bool = False,
        steps_per_epoch: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        max_steps: int | None = None,
        max_seconds: float | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: int | str | None = None,
        resume: Path | bool | None = None,
        augment: Augment | None = None,
        pruning: Pruning | Share | None = None,
        distributed: str | None = None,
        reduction: str = "fixed",
        shard_states: bool = False,
        wire_dtype: str | None = None,
        rows: str = "global",
    ) -> History:
        """Train the model and return its History: loss and metrics of every epoch.

        Without y, x is an iterable of batches: see below.

        x                 (n, inputs), real numbers of any type, converted to the model's dtype and, but for what the
                          model's Normalization and Rescaling do, not scaled. It stays where and as it is, such as a
                          memory map of bytes: rows are converted and scaled as a batch is gathered. Only arrays columns
                          first (Fortran order) are copied, in their dtype, unless they are memory-mapped or have more
                          than 128 MB. Matrices of scipy.sparse (others than CSR become CSR) are
                          gathered into dense batches. Images (n, 28, 28) are flattened. Tables
                          of pandas, polars and pyarrow may have bool, nullable and categorical columns of numbers;
                          `feature_names` keeps their names, and other columns are refused from then on
        y                 labels (n,) or (n, 1) for sparse_categorical_crossentropy, and for binary_crossentropy, hinge
                          and perceptron with one output: whole numbers, bools or strings. Those that are not 0, 1, ...
                          already are numbered in sorted order, and `classes` keeps them; there must be as many as the
                          outputs tell apart. Else numbers (n, outputs), or (n,) where there is one output
        epochs            number of the last epoch; with initial_epoch=0 the number of epochs to run. None: 1, or where
                          max_steps or max_seconds are given as many as these allow
        batch_size        rows per batch; the last batch of an epoch may have fewer. "full": all rows, a step an epoch.
                          `fastopt.batches.Random(low, high)` draws a size for every batch, and
                          `fastopt.batches.Growing(first, factor, every, most)` grows over the epochs. "auto" is a power
                          of two: the smallest with 80 % of the throughput of the fastest, measured within a second on
                          copies of the weights, of those with 32 steps an epoch, with a row of every class and in a
                          quarter of the free memory. Its choice is in `history.batch_size`, the reason in
                          `history.batch_size_reason` and the log ("fastopt", INFO), and the next fit of this model to
                          data of this size takes it, too, as does a training that goes on from a checkpoint
        validation_split  share in [0, 1) of the rows to hold out: drawn by the seed, or the last ones if not `shuffle`
        validation_data   (x, y) to validate on instead, or (x, y, sample_weight); or an iterable of such items, such as
                          a DataLoader, whose rows are gathered once
        shuffle           go through the rows in a new order every epoch: it follows from seed and `epochs_done` alone.
                          "blocks" is for a memory map beyond memory: blocks of neighbouring rows, 1 MB of x each, come
                          in random order, and within every 64 blocks rows are mixed, so that 64 MB of the file are
                          read at a time, a block in one go (`fastopt.kernels.spec.Shuffle` has the formula)
        callbacks         a `Callback`, a sequence of them, or None
        verbose           1 for a progress bar on stderr, 0 for none, "auto" for one on a terminal and in a notebook
        initial_epoch     epochs that count as done: with a loaded model, `epochs=10,
                          initial_epoch=model.epochs_done` continues to the tenth, bit for bit as without interruption
        nan               "raise": NaN, missing cells and infinity in the data are errors; "skip": rows that have them
                          are left out
        accumulate        batches per optimizer step: their gradients are averaged over all their rows, so that
                          accumulate=4 with batch_size=16 takes the steps of batch_size=64 in a quarter of the memory.
                          Steps, also those of `step_losses`, are the optimizer's; the last of an epoch has what is left
        standardize_targets  for losses of real numbers: the network learns targets less their mean, over their
                          deviation, of the rows that it trains on at the first `fit` (a constant one: over 1).
                          `target_scale` keeps both, for later calls, too. Losses and metrics are in these units, also
                          those of `evaluate`; `predict` gives the units of y
        sample_weight     (n,) weights of the rows, 0 or above; those of rows that are held out weigh the validation
        class_weight      weights by label, such as {"no": 1.0, "yes": 5.0}, those left out being 1; or "balanced":
                          n / (classes x rows of the class), so that each class weighs as much. For targets that are
                          one class a row. They multiply sample_weight, and leave the validation alone
        drop_last         leave out the last batch of an epoch where it has fewer rows than the others, unless it is the
                          only one: with `shuffle` other rows in each epoch. Losses and metrics are of the rows used
        steps_per_epoch   optimizer steps of an epoch; the next one goes on in the data where it ends. All steps are of
                          whole batches: the rows follow one another without end, each time through in a new order. By
                          default an epoch goes once through the data
        validation_freq   n: validate after every n-th epoch; or a list of numbers of epochs. "val_..." of the others
                          are NaN in the history, and not in the logs of callbacks
        max_steps         the training ends with this step of the optimizer, counted from its begin; the epoch that it
                          is in is then short, but validated, and one of the history
        max_seconds       it ends with the step in which so many seconds have passed, in the same way
        checkpoint        path of a file that the training can be resumed from, also if it is killed: weights, states,
                          position, history and the states of callbacks. It is written anew in one step, and the one
                          before it goes by the name with ".previous" at its end. It is a model file, too
        checkpoint_every  number of steps between two checkpoints, or such as "5 min" and "2 epochs"; by default "1
                          epoch". There is always one when the training ends, too
        resume            path of a checkpoint to go on from, or True for that of `checkpoint`. The model is made and
                          compiled as before, and the call is the same, but paths, callbacks without a state, and limits
                          may differ (epochs, max_steps and max_seconds are totals): weights and figures are, to the
                          bit, those of a training without interruption, for any number of threads. Where `checkpoint`
                          is the same path and there is no file yet, the training begins
        augment           f(x, y, rng) -> (x, y) on every batch: rows as they were given, in an array of their own, of
                          the shape (rows, ...) of x, before Normalization and Rescaling; and a NumPy Generator, a
                          function of the seed, the epoch in the model's life, and the number of the batch, so that
                          checkpoints go on to the bit if f depends on its arguments alone. It may return other rows,
                          and more or fewer of them. It runs in a thread, a batch ahead of the kernels
        pruning           `fastopt.compress.Pruning`, or a share that stands for one: the smallest weights become zero
                          while the model is trained, more and more of them
        distributed       "mpi": all processes that mpirun has started train this model together, each on its share of
                          the rows of every step (extra `mpi`, backend "cpu"). They make the same model and give the
                          same data; if not, a ValueError names the difference. Rank 0 shows the progress and writes
                          files. At most four ranks, from 1,024 rows a step on eight, and so on
        reduction         "fixed": gradients are added up in the order of a tree over pieces of a step's rows, so that
                          weights, states and figures have the same bits for any number of ranks. "fast": MPI's own
                          Allreduce of one piece a rank, or its Reduce_scatter with shard_states, whose order, and so
                          bits, depend on the number of ranks and the library of MPI
        shard_states      True: each rank keeps the optimizer's states of its part of the weights alone, so that their
                          memory is divided by the ranks. At the end of a pass rank 0 gets those of all, for files
        wire_dtype        "bfloat16": gradients are rounded to it to be sent, in half as many bytes; weights are not.
                          Bits depend on the number of ranks then
        rows              "local": x and y are rows of this rank alone, more or fewer than those of others. A step takes
                          from each rank its share of batch_size, which is that of all together. `classes`, and the
                          statistics of Normalization, must be set before. "global": all ranks have the same data

        Without y, x is an iterable of items (x, y) or (x, y, weights), such as a list, a generator or torch's
        DataLoader: each item is a batch, and a step (`accumulate` of them are), and may be of another size. An iterable
        that can be begun anew is gone through once an epoch, or for its first `steps_per_epoch` steps; an iterator
        gives the steps of all epochs in turn. A ValueError names the step at which it ends too early. The first item
        builds the model; classes that it lacks must be set by `model.classes`, and statistics by `adapt`. `resume` asks
        for the items anew and passes over those trained on, also all of each epoch before, so that an order drawn at
        random goes on as it would have: it must have a seed, such as the generator of a DataLoader, as the first item
        tells one training from another. Items that end before the checkpoint's are a ValueError.

        With weights w a mean over rows is sum(w l) / sum(w): the gradient of a step, over its rows; the loss and the
        metrics, over all rows of the epoch or the data. So the scale of weights does not matter, in full batches a
        weight of 2 is a row given twice, and 0 leaves a row out (it goes through the layers all the same, which its
        features must not overflow). Keras divides by the number of rows instead: for its steps, give weights with a
        mean of 1 in every batch. A step whose weights sum to 0 has loss 0 and leaves the
        model and the states of its optimizer alone; it counts as a step, also for the schedule of the learning rate.
        Normalization, standardize_targets and "balanced" learn from the rows that have a weight above 0, whatever it
        is; BatchNorm takes the mean and variance of all rows of a batch. Metrics that are functions are given the
        weights of the validation if they have an argument sample_weight; else they see its rows alike.

        Clipping is the optimizer's, and so are penalties of all parameters: `fastopt.Adam(clip_norm=1.0, l1=1e-5)`.
        Regularizers are those of single layers, and a part of the loss: `history["loss"]` has the penalty of the
        weights before each step, that of an epoch the mean over its steps. With `clip_norm` or
        `accumulate` the gradients are written to memory before the update; else they never are.

        If the training loss of an epoch is inf or NaN, a RuntimeWarning names the first such epoch, once a call.

        An interrupt (Ctrl-C) ends the training between two batches with KeyboardInterrupt; the model stays usable and
        `model.history` has the epochs that were finished. Weights are those of the last batch, or those of the best
        epoch with EarlyStopping(restore_best_weights=True).

        A callback may call `fit` itself: a separate training, with its own History and its own early stopping. While a
        model is trained, methods that read or change its weights raise RuntimeError in other threads. Several threads
        may predict at once.
        """
        options = FitOptions(
            epochs, batch_size, validation_split, validation_data, shuffle, training.listed(callbacks), verbose,
            initial_epoch, nan, accumulate, standardize_targets, sample_weight, class_weight, drop_last,
            steps_per_epoch, validation_freq, max_steps, max_seconds, checkpoint, checkpoint_every, resume, augment,
            pruning, distributed, reduction, shard_states, wire_dtype, rows,
        )  # fmt: skip
        with self._use.exclusive("fit", trains=True):
            if options.distributed is not None:
                return _distributed.run(self, x, y, options)
            plan = self._plan(x, y, options)
            return training.run_at_once(self, plan) if plan.at_once else epoch_loop.run(self, plan)

    def _plan(self, x: Any, y: ArrayLike | None, options: FitOptions) -> training.Plan:
        """Check the arguments of `fit`, and build the model."""
        return self._plan_stream(x, options) if y is None else self._plan_fit(x, y, options)

    def _plan_stream(self, x: Any, options: FitOptions) -> training.Plan:
        """Check a `fit` to the items of an iterable, and build the model by the first of them."""
        return _stream_plan.plan(self, Sequential, x, self._trainable_loss(options), _gradual.resolved(options, None))

    def _plan_fit(self, x: Any, y: ArrayLike, options: FitOptions) -> training.Plan:
        """Check the data of `fit`, build the model, and let it learn what its data mean."""
        return self._settled(*self._checked_fit(x, y, options))

    def _checked_fit(
        self, x: Any, y: ArrayLike, options: FitOptions, among: np.ndarray | None = None, intake: Any = _intake
    ) -> tuple[training.Plan, Learnt]:
        """Check the data of `fit`, which changes nothing; return its plan, without a network, and all that is learnt.

        among: (m,) numbers of the rows to fit to, as of `row_numbers`; None: all. intake: who reads the data.
        """
        loss = self._trainable_loss(options)
        if isinstance(options.batch_size, Random):
            _sizes.check_backend(options.batch_size, int(options.accumulate), self.backend)
        raw = intake.read(self, ("x", "y"), x, y, loss, options.nan)
        weights = None
        if options.sample_weight is not None:
            weights = _row_weights.read("sample_weight", options.sample_weight, raw.given, raw.rows)
        inputs = raw.x.values.shape[1]
        if self.inputs is None:
            self.specs(inputs)  # raises, before anything is made, where layers clash
        rows, held_out = row_numbers(len(raw.x.values if raw.rows is None else raw.rows)), None  # of those without gaps
        if among is not None:
            rows = raw.numbers_of(among)
        if options.validation_split:
            parts = split(len(rows), float(options.validation_split), self.seed, bool(options.shuffle))
            rows, held_out = parts if among is None else (rows[part] for part in parts)
        used = rows if weights is None else _row_weights.used("sample_weight", weights, rows)
        learnt_rows = None if held_out is None and weights is None and among is None else used
        learnt = _intake.learnt_from(self, raw, learnt_rows, loss, bool(options.standardize_targets))
        data, validation = intake.converted(self, ("x", "y"), raw, loss, learnt), None
        if options.validation_data is not None:
            validation = self._validation_of(options, loss, inputs, learnt, intake)
        elif held_out is not None:
            validation = data._replace(rows=_intake.chosen(data.rows, held_out))
            if weights is not None:
                found = _row_weights.in_dtype("sample_weight", weights, self.dtype)
                _row_weights.used("sample_weight of the rows held out", found, held_out)
                validation = validation._replace(weights=raw.of_all(found))
        if options.class_weight is not None:
            of_classes = _row_weights.of_classes(options.class_weight, loss, data.targets, learnt.classes, used)
            weights = of_classes if weights is None else weights * of_classes
        if weights is not None:
            found = _row_weights.in_dtype("sample_weight times class_weight", weights, self.dtype)
            _row_weights.used("sample_weight times class_weight", found, rows)
            data = data._replace(weights=raw.of_all(found))
        for name, some in (("y", data), ("validation y", validation)):
            if some is not None and self.metrics:
                check_classes(self.metrics, loss.spec.name, some.y, name)
        for callback in options.callbacks:
            callback.check(training.figure_names(self.metrics, validation is not None, self.metric_functions))
        if options.pruning is not None:
            options = _gradual.resolved(options, len(rows))
        size: Any = options.batch_size
        if not isinstance(size, Random | Growing | str):
            size = min(int(size), len(rows))
        size = len(rows) if size == "full" else size
        rows = rows if data.rows is None else data.rows[rows]
        plan = training.Plan(None, data, rows, validation, options, None, size)
        if options.steps_per_epoch is not None:
            plan = plan._replace(stream=RowStream(rows, training.shuffle_of(self, plan)))
        if options.augment is not None:
            plan = plan._replace(source=_stream_plan.augmented(self, x, raw, data.weights, loss, learnt, options))
        if options.checkpoint is not None or options.resume not in (None, False):
            names = training.figure_names(self.metrics, validation is not None, self.metric_functions)
            told = {**data._asdict(), "x": data.features, "rows": len(rows)}
            told["learnt"] = [learnt.statistics, learnt.target_scale]
            plan = _checkpoints.plan(self, Sequential, plan, _checkpoints.call_of(self, options, told, names))
        return plan, learnt

    def _settled(self, plan: training.Plan, learnt: Learnt) -> training.Plan:
        """Build the model, if it is not yet, for a checked plan; return it with its networks."""
        options, data = plan.options, plan.data
        if self.inputs is None:
            _backends.network(self.backend)  # raises, before anything is made, where it cannot run
            self.build(data.x.shape[1])
        network = self._network_for(training=True)  # raises before anything is learnt
        if plan.batch_size == "auto":
            size, reason = _auto_batch.choose(self, network, data, plan.rows, int(options.accumulate))
            call = None if plan.call is None else {**plan.call, "batch_size": size}
            plan = plan._replace(batch_size=size, batch_size_reason=reason, call=call)
        evaluator = self._evaluator(network)
        self.learnt = learnt
        return plan._replace(network=network, evaluator=evaluator)

    def _trainable_loss(self, options: FitOptions | None = None) -> Loss:
        """The loss of a model that `fit` can train, with these options; ValueError for another."""
        loss = self._compiled()
        assert self.optimizer is not None
        if len(self.optimizer.param_groups) > 1:
            raise ValueError("fit trains the model's own arrays, but its optimizer was given more by add_param_group")
        if self.optimizer._divided and not (options is not None and options.shard_states):
            raise ValueError(f"{DIVIDED}: fit goes on with shard_states=True")
        if self.optimizer.param_groups[0]["clip_each"] is not None:
            raise ValueError("fit clips by clip_value or clip_norm; the optimizer's clip_each is for its method `step`")
        if self._masks is not None or (options is not None and options.pruning is not None):
            check_states(self)
        if options is not None and options.pruning is not None:
            chosen_layers(self, options.pruning.layers, options.pruning.share)  # raises for names of other layers
        self.optimizer.check_epochs()
        if self.param_settings or self._all_frozen:
            _trainable.check_trainable(self.param_settings, self._all_frozen, self.optimizer)
        return loss

    def _validation_of(
        self, options: FitOptions, loss: Loss, inputs: int, learnt: Learnt, intake: Any = _intake
    ) -> _intake.Data:
        """The checked rows of `validation_data`; intake: who reads the data."""
        called = ("validation x", "validation y")
        x, y, *rest = options.validation_data
        raw = intake.read(self, called, x, y, loss, options.nan, inputs, learnt.feature_names)
        data: _intake.Data = intake.converted(self, called, raw, loss, learnt)
        if rest and rest[0] is not None:
            data = self._weighted(data, raw, "validation sample_weight", rest[0])
        return data

    def _weighted(self, data: _intake.Data, raw: _intake.Raw, name: str, sample_weight: ArrayLike) -> _intake.Data:
        """The data with the weights of its rows."""
        weights = _row_weights.read(name, sample_weight, raw.given, raw.rows)
        found = _row_weights.in_dtype(name, weights, self.dtype)
        _row_weights.used(name, found, row_numbers(len(found)))
        return data._replace(weights=raw.of_all(found))

    def _network_for(self, training: bool, averaged: bool = False) -> Any:
        """Return a network to train or predict with: that of the call before, with its programs, if it still fits.

        averaged: over the averages of the weights, where there are any; so is one to predict with.
        """
        averages = self._averages if averaged or not training else None
        weights = self._parameters if averages is None else averages.arrays
        parts: tuple[Any, ...] = self._backend, self._compute, weights
        if training:
            parts += self.loss, self.metrics
        if self._masks is not None:
            parts += (self._masks.left,)  # other masks may leave other layers to multiply sparsely
        key = training, averages is not None
        ids, kept = [*map(id, parts)], self._kept_networks.get(key)
        if kept is not None and kept[0] == ids:
            return kept[2]
        network = self.network(training, averages is not None)
        if getattr(network, "reusable", False):
            self._kept_networks[key] = ids, parts, network  # with the parts, so that nothing else gets their ids
        return network

    def _evaluator(self, network: Any) -> Any:
        """Return the network to evaluate with: one over the averages of the weights, else that of the training."""
        return network if self._averages is None else self._network_for(training=True, averaged=True)

    def evaluate(
        self,
        x: ArrayLike | Iterable[Any],
        y: ArrayLike | None = None,
        batch_size: int = 1024,
        nan: str = "raise",
        sample_weight: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Return {"loss": mean loss, metric: value, ...} on x and y, which are as in `fit`, without dropout.

        Without y, x is an iterable of items (x, y) or (x, y, weights), such as a DataLoader, whose rows are gathered
        first: an iterator is used up.

        Labels must be among `classes`. With a `target_scale` the figures are in its units, as those of `fit`. With
        sample_weight (n,) they are sum(w l) / sum(w), as scikit-learn's: a weight of 2 is a row given twice, and 0
        leaves it out, also where it is the only one of a class. Metrics that are functions are given the weights if
        they have an argument sample_weight.

        >>> from fastopt import Dense
        >>> model = Sequential([Dense(1, kernel_initializer="zeros")], inputs=1)
        >>> model.compile("sgd", "mean_squared_error")
        >>> model.evaluate([[0.0], [0.0]], [1.0, 3.0], sample_weight=[3, 1])
        {'loss': 3.0}
        """
        loss = self._compiled()
        batch_size = check_count("batch_size", batch_size)
        check_name("nan", nan, NAN)
        if y is None:
            x, y, sample_weight = split_rows(x, sample_weight)
        raw = _intake.read(self, ("x", "y"), x, y, loss, nan)
        inputs = raw.x.values.shape[1]
        if self.inputs is None:
            self.specs(inputs)  # raises, before anything is made, where layers clash
        data = _intake.converted(self, ("x", "y"), raw, loss, self.learnt_for(inputs), batch_size)
        if sample_weight is not None:
            data = self._weighted(data, raw, "sample_weight", sample_weight)
        check_classes(self.metrics, loss.spec.name, data.y, "y")
        with self._reading("evaluate"):
            self.build(inputs)
            network = self._evaluator(None) or self._network_for(training=True)
            return training.evaluated(self, network, data, batch_size)

    def predict(self, x: ArrayLike, batch_size: int = 1024) -> np.ndarray:
        """Return the outputs (n, outputs) for x (n, inputs), the last activation applied, without dropout.

        x is as in `fit`. With a `target_scale` the outputs are in the units of the targets. Several threads may predict
        with one model at the same time: they share its weights, and none waits for another.
        """
        if type(batch_size) is not int or batch_size < 1:
            batch_size = check_count("batch_size", batch_size)
        if _intake.usable_as_is(self, x):
            rows, learnt = _intake.check_usable("x", x), self._learnt  # type: ignore[arg-type]
        else:
            features = _intake.read_x(self, "x", x)
            inputs = features.values.shape[1]
            if self.inputs is None:
                self.specs(inputs)  # raises, before anything is made, where layers clash
            learnt = self.learnt_for(inputs)
            rows = _intake.prepared(self, "x", features, learnt, batch_size=batch_size)
        with self._reading("predict"):
            if self.inputs != rows.shape[1]:  # also where another thread has built it meanwhile
                self.build(rows.shape[1])
            outputs: np.ndarray = self._network_for(training=False).predict(rows, batch_size)
        return outputs if learnt.target_scale is None else _targets.unscaled(outputs, learnt.target_scale)

    def predict_classes(self, x: ArrayLike, batch_size: int = 1024) -> np.ndarray:
        """Return the label of every row's class (n,): one of `classes`, or a class number from 0.

        The class is that of the largest output; with one output it is the second class if the sigmoid is above 0.5 (the
        score above 0), else the first. Several outputs under binary_crossentropy, hinge and perceptron are yes or no
        each where `classes` is None: (n, outputs) of 1 and 0. `x` and `batch_size` are as in `predict`.

        Raises ValueError for a model whose outputs are not classes: one of a loss for real-valued targets.
        """
        rule = _targets.decision_rule(None if self.loss is None else self.loss.spec, self.last_activation, self.outputs)
        if self.classes is not None and self.outputs > 1:
            rule = "largest"
        if rule is None:
            why = "it has no loss yet" if self.loss is None else f"its loss is {self.loss.spec.name}"
            raise ValueError(f"predict_classes is for models that are trained on classes, and {why}: call predict")
        return _targets.classes_of(self.predict(x, batch_size), rule, self.classes)

    def predict_proba(self, x: ArrayLike, batch_size: int = 1024) -> np.ndarray:
        """Return the probability of every class (n, classes), in the order of `classes`, in the model's dtype.

        One output tells two classes apart: their columns are 1 - p and p. Linear outputs of a model that a
        cross-entropy trains are logits: softmax or the sigmoid is applied here. Several outputs under
        binary_crossentropy are the probabilities of as many answers of yes: (n, outputs). `x` and `batch_size` are as
        in `predict`.

        Raises ValueError for a model whose outputs are no probabilities: one of real-valued targets, or of scores.

        >>> import fastopt as fo
        >>> model = fo.Sequential([fo.Dense(1)], inputs=2)
        >>> model.compile("adam", "binary_crossentropy")
        >>> model.predict_proba([[0.0, 0.0]]).tolist()
        [[0.5, 0.5]]
        """
        loss = None if self.loss is None else self.loss.spec
        reason = refusal(loss, self.last_activation)
        if reason:
            raise ValueError(
                "predict_proba is for models that end in softmax or sigmoid, or that a cross-entropy trains;"
                f" {reason}: call predict"
            )
        return probabilities(self.predict(x, batch_size), loss, self.last_activation)

    def _compiled(self) -> Loss:
        if self.loss is None:
            raise ValueError("the model has no loss and optimizer yet: call compile")
        return self.loss

    # -- copies and files

    def __getstate__(self) -> dict[str, Any]:
        self._bring_back()
        state = {**self.__dict__, "_kept_networks": {}}  # whose programs have the addresses of these weights
        state.pop("_holder", None)
        return state

    def save(self, path: Path | Writable, weights_only: bool = False) -> None:
        """Write layers, weights, optimizer and counts to a safetensors file; see `fastopt.load_model`.

        `path` is a str, bytes or os.PathLike, or a file object open for writing in binary mode, such as an io.BytesIO.
        A file that is there is replaced in one step: it keeps its mode and, where the system allows, owner and group,
        and whatever fails, the old one stays as it was. The user must be allowed to write to the file and to its
        folder. A link stays, and what it points to is replaced; hard links to the old file keep the old content. A pipe
        or a device is written to directly.

        weights_only: leave out what `compile` was given, with the optimizer's states. The loaded model predicts, and is
        to be compiled before it is trained.

        A schedule of the learning rate that is not one of `fastopt.schedules` cannot be in a file: its present value is
        saved, and a warning logged, now and when the file is loaded.

        >>> import io, fastopt as fo
        >>> model, file = Sequential([fo.Dense(2)], inputs=3), io.BytesIO()
        >>> model.save(file)
        >>> _ = file.seek(0)
        >>> bool((fo.load_model(file).parameters[0] == model.parameters[0]).all())
        True
        """
        check_flag("weights_only", weights_only)
        if self.optimizer is not None and self.optimizer._divided and not weights_only:
            raise ValueError(f"{DIVIDED}: save on rank 0, or weights_only=True")
        with self._use.shared("save"):
            self._bring_back()
            checkpoint.write(path, *_description.describe(self, weights_only=bool(weights_only)))

    def load_weights(self, path: Path | Readable) -> None:
        """Load the weights of a file written by `save`, whose dense and preprocessing layers must be the model's.

        `path` is that of the file, or a file object open for reading in binary mode. The weights are converted to the
        model's dtype. Loaded with them are the statistics of Normalization, `target_scale` and, where
        the file has them, `classes`, `feature_names` and `preparation`. Optimizer and counts stay as they are. Raises
        ValueError, with the differences, for a file of another architecture, or one that is damaged or foreign; nothing
        is changed then.
        """
        with self._use.exclusive("load_weights"):
            with checkpoint.opened(path) as (description, tensors):
                if "quantized" in description:
                    raise ValueError("it is of a quantized model, whose weights are integers: load_model reads it")
                whole = {**description, "compute_dtype": None}
                _description.check_defined(description)
                saved = _description.build_model(Sequential, whole, tensors, self.backend)
            self._bring_back()
            _description.take_weights(self, saved, shown(path))

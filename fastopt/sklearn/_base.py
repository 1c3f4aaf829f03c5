"""The part that all estimators share: a network, built and trained as scikit-learn's are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import _backends, regularizers
from ..layers import Dense, Dropout
from ..models.sequential import Sequential
from ..optim import SGD, Adagrad, Adam, Optimizer
from ._checks import STOCHASTIC, check_parameters, widths_of
from ._iterations import LEAST_RATE, Iterations, Losses, ScaledRate
from ._lbfgs import Objective, Within, minimise
from ._tasks import Task
from ._threads import on_threads

Array = NDArray[Any]
FLOATS = (np.float64, np.float32)
SPARSE = ("csr", "csc")
BATCH = 200  # rows, at most, of a batch of "auto"
# scikit-learn's names of activations that have another one here
ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid"}


class NetworkEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of the estimators: what differs between them is their parameters, and a few methods.

    Attributes that are set by fit: `n_iter_`, `t_` (rows seen), `loss_`, `loss_curve_`, `best_loss_`,
    `validation_scores_`, `best_validation_score_`, `n_features_in_`, `feature_names_in_`.
    """

    # parameters that an estimator may lack
    hidden_layer_sizes: Any = ()
    activation: str = "linear"
    learning_rate: str = "constant"
    power_t: float = 0.5
    shuffle: bool = True
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    max_fun: int = 15_000
    fit_intercept: bool = True
    dropout: float = 0.0
    class_weight: Any = None
    alpha: float = 0.0
    n_jobs: int | None = None
    positive: bool = False

    _model: Sequential  # that was trained last
    _penalty: tuple[float, float]  # its factors of L1 and L2
    _task: Task
    _seed: int

    # -- what estimators differ in

    def _read_targets(self, y: Any, first: bool, incremental: bool) -> Task:
        """Return the task of targets; `first`: they are those of the first fit. incremental: classes are known."""
        raise NotImplementedError

    def _dense_targets(self, y: Any) -> Array:
        """Return targets as an array; TypeError where they cannot be sparse."""
        if scipy.sparse.issparse(y):
            raise TypeError(f"y must be dense; got a sparse one of shape {y.shape}: use y.toarray()")
        return np.asarray(y)

    def _coded(self, y: Any) -> Array:
        """Return targets as a network takes them."""
        raise NotImplementedError

    def _score_of(self, outputs: Array, y: Any, weights: Array | None) -> float:
        """Return the score of outputs of the network for rows held out."""
        raise NotImplementedError

    def _publish(self) -> None:
        """Set the attributes that show the parameters of the network."""
        raise NotImplementedError

    def _penalties(self) -> tuple[float, float]:
        """Return alpha of L2 and of L1: of alpha / 2 times squares, and alpha times values, over `_penalty_over`."""
        return float(self.alpha), 0.0

    _penalty_over: ClassVar[str] = "step"  # the sum of weights of a "step", of all "data", or of a "row", which is 1

    def _rate(self) -> Any:
        return self.learning_rate_init

    def _hidden(self) -> list[int]:
        return [int(size) for size in widths_of(self.hidden_layer_sizes)]

    # -- fitting

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False, start: Any = (None, None)
    ) -> Any:
        """Train; start: initial `coef_` and `intercept_` of a linear model, None: as drawn, or as trained before."""
        check_parameters(self)
        first = not hasattr(self, "_model") or not (self.warm_start or incremental)
        X, y = validate_data(
            self, X, y, accept_sparse=SPARSE, multi_output=True, dtype=FLOATS, reset=first, y_numeric=self._numeric
        )
        y = self._dense_targets(y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)
        weights = self._with_class_weights(y, weights)
        task = self._read_targets(y, first, incremental)
        task, targets, weights = self._weighted(task, self._coded(y), weights)
        self._random = check_random_state(self.random_state)
        given = self._checked_start(start, X.shape[1], task.outputs)
        params = self._begin(X, task) if first else self._model.get_weights()
        for p, values in zip(params, given, strict=False):
            if values is not None:
                p[...] = values
        with on_threads(self.threads, self.n_jobs):
            if self.solver == "lbfgs":
                self._fit_lbfgs(_dense(X), targets, weights, params)
            else:
                self._fit_stochastic(X, y, targets, weights, params, incremental)
        if not all(np.isfinite(p).all() for p in self._model.parameters):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be"
                " preprocessed."
            )
        self._publish()
        return self

    _numeric: ClassVar[bool] = False  # targets are real numbers
    _ftol: ClassVar[float] = 1e7 * float(np.finfo(float).eps)  # least relative change of the loss, for lbfgs: scipy's
    _impatience: ClassVar[int] = 0  # iterations without improvement by which a training ends before scikit-learn's MLPs

    def _with_class_weights(self, y: Any, weights: Array | None) -> Array | None:
        return weights

    def _weighted(self, task: Task, targets: Array, weights: Array | None) -> tuple[Task, Array, Array | None]:
        """Return task, targets and weights as the network takes them."""
        return task, targets, weights

    def _begin(self, X: Any, task: Task) -> list[Array]:
        """Forget earlier trainings; return weights drawn as scikit-learn draws them."""
        self.__dict__.pop("_model", None)
        self.n_iter_ = self.t_ = self._no_improvement_count = 0
        self.n_outputs_, self.out_activation_ = task.outputs, _sklearn_name(task.activation)
        if self.solver != "lbfgs":
            self._begin_curves()
        widths = [X.shape[1], *self._hidden(), task.outputs]
        self.n_layers_ = len(widths)
        dtype = X.dtype if self.dtype is None else np.dtype(self.dtype)
        drawn: list[Array] = []
        for inputs, outputs in pairwise(widths):
            drawn += self._draw(inputs, outputs)
        # put back where others draw after the weights, so that they get what follows these in scikit-learn
        shared = self.early_stopping or not isinstance(self.random_state, Integral)
        state = self._random.get_state(legacy=False) if shared else None
        self._task, self._seed = task, int(self._random.randint(np.iinfo(np.int32).max))
        if state is not None:
            self._random.set_state(state)
        return [array.astype(dtype) for array in drawn]

    def _checked_start(self, start: Any, inputs: int, outputs: int) -> list[Array | None]:
        """Return the user's initial parameters, as the network has them; None for those that are not given."""
        return []

    def _begin_curves(self) -> None:
        """Set the attributes that follow the iterations, as before the first one."""
        self.loss_curve_: list[float] = []
        self.best_loss_ = None if self.early_stopping else np.inf
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        self.best_validation_score_ = -np.inf if self.early_stopping else None

    def _draw(self, inputs: int, outputs: int) -> list[Array]:
        """Return the initial w and b of a layer: uniform, by Glorot & Bengio 2010."""
        factor = 2.0 if ACTIVATIONS.get(self.activation, self.activation) == "sigmoid" else 6.0
        bound = np.sqrt(factor / (inputs + outputs))
        shapes: list[Any] = [(inputs, outputs)] + [outputs] * bool(self.fit_intercept)
        return [self._random.uniform(-bound, bound, shape) for shape in shapes]

    def _network(self, params: list[Array], inputs: int, penalty: tuple[float, float] = (0.0, 0.0)) -> Sequential:
        """Return a model with copies of these weights; penalty: factors of L1 and L2 in fastopt's loss."""
        regularizer = regularizers.L1L2(*penalty) if any(penalty) else None
        options: dict[str, Any] = {"use_bias": bool(self.fit_intercept), "kernel_regularizer": regularizer}
        if self.positive:
            options["kernel_constraint"] = "non_negative"
        layers: list[Any] = []
        activation = ACTIVATIONS.get(self.activation, self.activation)
        for size in self._hidden():
            layers.append(Dense(size, activation, **options))
            if self.dropout:
                layers.append(Dropout(self.dropout))
        layers.append(Dense(self._task.outputs, self._task.last_activation, **options))
        model = Sequential(
            layers, seed=self._seed, backend=self.backend, dtype=params[0].dtype, compute_dtype=self.compute_dtype
        )
        model.adopt(inputs, params)
        model._penalties_by_rows = self._penalty_over == "step"
        return model

    def _optimizer(self) -> Optimizer:
        """Return the solver. Its rate, or Adam's eps, takes in by how much fastopt's gradient differs."""
        rate, factor = self._rate(), self._task.gradient
        if self.solver == "adam":
            betas = (self.beta_1, self.beta_2)
            return Adam(lr=rate, betas=betas, eps=self.epsilon / factor, convention="sklearn")
        if self.solver == "adagrad":
            return Adagrad(lr=rate, eps=self.epsilon / factor)
        momentum = {"gd": 0.0, "sgd": self._sgd_momentum}.get(self.solver, self.momentum)
        nesterov = bool(self.nesterovs_momentum) and momentum > 0
        if not callable(rate):
            rate = float(rate) * factor
        elif factor != 1:
            rate = ScaledRate(rate, factor)
        return SGD(lr=rate, momentum=momentum, nesterov=nesterov, convention="sklearn")

    @property
    def _sgd_momentum(self) -> float:
        return float(self.momentum)

    def _batch(self, rows: int) -> int:
        if self.solver == "gd":
            return rows
        if self.batch_size == "auto":
            return min(BATCH, rows)
        if self.batch_size > rows:
            warnings.warn(
                f"batch_size={self.batch_size} is larger than the {rows} rows, and clipped to them", stacklevel=4
            )
        return min(int(self.batch_size), rows)

    def _fit_stochastic(
        self, X: Any, y: Any, targets: Array, weights: Array | None, params: list[Array], incremental: bool
    ) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        task, score = self._task, None
        if self.early_stopping:
            X, targets, weights, score = self._held_out(X, y, targets, weights)
        rows = len(targets)
        batch = self._batch(rows)
        steps = None if weights is None else np.array([min(batch, rows - start) for start in range(0, rows, batch)])
        total = rows if weights is None else float(weights.sum())
        # scikit-learn's warm start goes on with its best weights, and keeps the last ones unless their score is beaten
        best = None if hasattr(self, "_model") or score is None else [p.copy() for p in params]
        model = self._compiled(params, total, incremental)
        rule = Iterations(
            self, Losses(task.value, steps), self._schedule(), self._least_rate(), score, rows,
            self.n_iter_no_change - self._impatience, best,
        )  # fmt: skip
        self.n_iter_ = 0
        try:
            model.fit(
                _rows(X), targets, 1 if incremental else int(self.max_iter), batch, shuffle=bool(self.shuffle),
                callbacks=[rule, *self.callbacks], verbose=0, sample_weight=weights,
            )  # fmt: skip
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
            return
        finally:
            if rule.best_weights is not None:
                model.set_weights(rule.best_weights)
        if not (incremental or rule.converged or model.stop_training):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't"
                " converged yet.", ConvergenceWarning, stacklevel=4,
            )  # fmt: skip

    def _compiled(self, params: list[Array], weight: float, incremental: bool) -> Sequential:
        """Return the model with its optimizer: a new one, unless a fit goes on. weight: of all rows together."""
        (l2, l1), over = self._penalties(), weight if self._penalty_over == "data" else 1.0
        over *= self._task.gradient
        penalty = l1 / over, l2 / (2 * over)
        before: Sequential | None = getattr(self, "_model", None)
        former = before.optimizer if incremental and before is not None else None
        if before is not None and former is not None and penalty == self._penalty:
            return before
        self._penalty, optimizer = penalty, self._optimizer()
        model = self._network(params, self.n_features_in_, penalty)
        model.compile(optimizer, self._task.compiled_loss())
        if before is not None:
            model.epochs_done = before.epochs_done
        if former is not None:
            optimizer.load_state_dict(former.state_dict())
        self._model = model
        return model

    def _schedule(self) -> Callable[[int], float] | None:
        if self.learning_rate != "invscaling" or self.solver not in ("sgd", "gd", "momentum"):
            return None
        rate, power, factor = self._rate(), self.power_t, self._task.gradient
        return lambda rows: rate * factor / (rows + 1) ** power

    def _least_rate(self) -> float | None:
        """Return the rate of fastopt's gradient at which a training with an "adaptive" one ends."""
        if self.learning_rate != "adaptive" or self.solver not in ("sgd", "gd", "momentum"):
            return None
        return LEAST_RATE * self._task.gradient

    def _held_out(
        self, X: Any, y: Any, targets: Array, weights: Array | None
    ) -> tuple[Any, Array, Array | None, Callable[[Any], float]]:
        """Split rows off by `validation_fraction`; return the others, and the function that scores by them."""
        binary = is_classifier(self) and self._task.outputs == 1
        indices = np.arange(len(targets))
        train, held = train_test_split(
            indices, random_state=self._random, test_size=float(self.validation_fraction),
            stratify=targets if binary else None,
        )  # fmt: skip
        if len(held) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        held_x, held_y = _rows(X)[held], np.asarray(y)[held]
        held_w = None if weights is None else weights[held]

        def score(model: Sequential) -> float:
            outputs = self._task.outputs_of(model.predict(held_x))
            return self._score_of(outputs, held_y, held_w) if np.isfinite(outputs).all() else np.nan

        return _rows(X)[train], targets[train], None if weights is None else weights[train], score

    def _fit_lbfgs(self, X: Array, targets: Array, weights: Array | None, params: list[Array]) -> None:
        activations = [ACTIVATIONS.get(self.activation, self.activation)] * len(self._hidden()) + ["linear"]
        alpha, l1 = self._penalties()
        if self.dropout:
            raise ValueError("lbfgs needs a loss that is the same in every call, which it is not with dropout")
        backend = self.backend if self.backend in _backends.HOST else "cpu"
        data = np.ascontiguousarray(X, params[0].dtype), targets
        objective = Objective(params, activations, self._task, data, weights, alpha, backend, bool(self.fit_intercept))
        within = Within(objective, l1, bool(self.positive)) if l1 or self.positive else objective
        self.n_iter_, self.loss_ = minimise(
            within, int(self.max_iter), int(self.max_fun), float(self.tol or 0.0), self._ftol
        )
        self._model = self._network(params, self.n_features_in_)

    # -- prediction

    def _checked_rows(self, X: Any) -> Any:
        check_is_fitted(self, "_model")
        return validate_data(self, X, accept_sparse=SPARSE, dtype=FLOATS, reset=False)

    def _outputs(self, X: Any) -> Array:
        """Return the outputs of the network (n, outputs)."""
        X = self._checked_rows(X)
        with on_threads(self.threads, self.n_jobs):
            found: Array = self._model.predict(_rows(X))
        return self._task.outputs_of(found)

    def _weights(self) -> tuple[list[Array], list[Array]]:
        """Return the parameters of the layers themselves: all w, and all b."""
        params, step = self._model.parameters, 1 + bool(self.fit_intercept)
        return params[::step], params[1::step] if step == 2 else []

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        if "_task" in state:
            return {"_task": state["_task"], **state}  # read first: it defines the loss of the network
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def is_stochastic(estimator: Any) -> bool:
    """Return true if `partial_fit` is possible; AttributeError, as scikit-learn's, if it is not."""
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(
            f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic."
        )
    return True


def _dense(X: Any) -> Array:
    return np.ascontiguousarray(X.toarray() if scipy.sparse.issparse(X) else X)


def _rows(X: Any) -> Any:
    """Return features as a network takes them: a matrix, or compressed sparse rows."""
    return X.tocsr() if scipy.sparse.issparse(X) else X


def _sklearn_name(activation: str) -> str:
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return names.get(activation, activation)

"""Classifiers: classes of targets, and what they make of a network's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import column_or_1d

from ._base import NetworkEstimator
from ._tasks import Task, log_loss, multilabel

Array = NDArray[Any]


def _labels_of(y: Array) -> tuple[Array, bool]:
    """Return the sorted labels of targets, and true if these are rows of labels that are there or not."""
    if y.ndim == 1 and y.dtype.kind in "biuU":
        # scikit-learn looks through them five times for this, in 0.4 ms
        found = np.unique(y)
        if len(found) <= round(0.5 * len(y)):
            return found, False
    kind = type_of_target(y)
    if kind == "multiclass-multioutput":
        raise ValueError(
            f"y must be labels (n,), or (n, labels) of 0 and 1; got {y.shape[1]} columns of classes: for these wrap the"
            " estimator in sklearn.multioutput.MultiOutputClassifier"
        )
    check_classification_targets(y)
    return unique_labels(y), kind.startswith("multilabel")


class NetworkClassifier(ClassifierMixin, NetworkEstimator):  # type: ignore[misc]
    """Base of the classifiers. `classes_`: sorted labels, or numbers of columns if y is (n, labels) of 0 and 1."""

    def _read_targets(self, y: Any, first: bool, incremental: bool) -> Task:
        found, multilabel_ = _labels_of(y)
        if first and not incremental:
            self.classes_, self._multilabel = found, multilabel_
        is_known = found is self.classes_ or not len(np.setdiff1d(found, self.classes_))
        if not is_known or (self.warm_start and not first and len(found) != len(self.classes_)):
            raise ValueError(f"y must have the classes of the fit before, {self.classes_}; got {found}")
        return multilabel(len(self.classes_)) if self._multilabel else self._task_of(len(self.classes_))

    _sparse_labels = False  # those of the last fit were sparse, and predictions are

    def _dense_targets(self, y: Any) -> Array:
        self._sparse_labels = issparse(y) and type_of_target(y).startswith("multilabel")
        return np.asarray(y.toarray()) if self._sparse_labels else super()._dense_targets(y)

    def _task_of(self, classes: int) -> Task:
        return log_loss(classes)

    def _coded(self, y: Any) -> Array:
        if self._multilabel:
            return np.asarray(y, np.float64)
        labels = y if y.ndim == 1 else column_or_1d(y, warn=True)
        return np.searchsorted(self.classes_, labels).astype(np.int64)

    def _with_class_weights(self, y: Any, weights: Array | None) -> Array | None:
        if self.class_weight is None:
            return weights
        labels = column_or_1d(y)
        classes = np.unique(labels)
        of_class = compute_class_weight(self.class_weight, classes=classes, y=labels)
        found: Array = of_class[np.searchsorted(classes, labels)]
        return found if weights is None else found * weights

    def _decide(self, outputs: Array, boundary: float) -> Array:
        """Return the labels that outputs stand for: the largest, or those above a boundary."""
        if self._multilabel:
            return (outputs > boundary).astype(np.int64)
        if outputs.shape[1] > 1:
            found: Array = self.classes_[outputs.argmax(axis=1)]
            return found
        return self.classes_[np.minimum(outputs[:, 0] > boundary, len(self.classes_) - 1).astype(np.intp)]

    def _score_of(self, outputs: Array, y: Any, weights: Array | None) -> float:
        return float(accuracy_score(y, self._decide(outputs, self._boundary), sample_weight=weights))

    _boundary = 0.5

    def predict(self, X: Any) -> Array:
        """Return the label of every row, (n,), or (n, labels) of 0 and 1; X: (n, features), also sparse.

        Of an estimator whose y was a sparse matrix of 0 and 1, the result is one, too (CSR).
        """
        found = self._decide(self._outputs(X), self._boundary)
        return csr_matrix(found) if self._sparse_labels else found

    def _first_classes(self, y: Any, classes: Any) -> None:
        """Learn the classes at the first call of partial_fit; ValueError if they are missing, or others than before."""
        if hasattr(self, "classes_"):
            if classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
                raise ValueError(f"`classes={classes!r}` is not the same as on the last call, {self.classes_!r}")
            return
        if classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        self._multilabel = type_of_target(y).startswith("multilabel")
        self.classes_ = unique_labels(y) if self._multilabel else unique_labels(classes)


class ProbabilisticClassifier(NetworkClassifier):
    """Base of the classifiers whose outputs are probabilities."""

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of every class, (n, classes), in the order of `classes_`; X: (n, features)."""
        outputs = self._outputs(X)
        if self._multilabel or outputs.shape[1] > 1:
            return outputs
        if len(self.classes_) == 1:
            return np.ones_like(outputs)
        return np.hstack([1 - outputs, outputs])

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

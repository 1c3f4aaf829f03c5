"""Peer in scikit-learn: linear regression by stochastic gradient descent."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import SGDRegressor

from fastopt.benchmarks.workloads import Absent, Workload


class Regressor:
    """SGDRegressor, which steps after every row, without momentum: other steps to the same minimum."""

    same_steps = False

    def __init__(self, workload: Workload) -> None:
        if workload.classes or workload.hidden:
            raise Absent("SGDRegressor is for the linear regression only")
        self.x, self.y = workload.x, np.ascontiguousarray(workload.y[:, 0])
        self.model = SGDRegressor(penalty=None, learning_rate="constant", eta0=1e-3, random_state=0)

    def epoch(self) -> float:
        self.model.partial_fit(self.x, self.y)
        return float("nan")

    def loss(self) -> float:
        return float(np.mean((self.model.predict(self.x) - self.y) ** 2))

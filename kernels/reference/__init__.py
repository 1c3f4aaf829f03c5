"""The "numpy" backend: the vectorised NumPy specification of what every other backend computes.

It is the oracle of the tests, the baseline of the benchmarks and a backend of its own: optimizers in `optimizers`,
functions and losses in `maths`, metrics in `metrics`, layers in `dense` and `normalization`, networks in `network`.
"""

from .dense import activate, dense_backward, dense_forward
from .maths import ACTIVATIONS, LOSSES
from .metrics import METRICS
from .network import Network, loss
from .optimizers import UPDATES
from .quantized import weights_of
from .updates import ArrayPlan, gradient_norm, sum_rows, update, update_rows

__all__ = [
    "ACTIVATIONS",
    "LOSSES",
    "METRICS",
    "UPDATES",
    "ArrayPlan",
    "Network",
    "activate",
    "dense_backward",
    "dense_forward",
    "gradient_norm",
    "loss",
    "sum_rows",
    "update",
    "update_rows",
    "weights_of",
]

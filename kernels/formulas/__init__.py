"""The mathematics, once: scalar formulas of plain arithmetic, and the tables that name them.

Every backend compiles these same functions into its own loops. To add an activation, a loss or a metric, write
one function, add one row, and add its independent counterpart to `reference/`: `maths.py` or `metrics.py`; for an
optimizer see `optimizers`. Loops, tests, benchmarks and command line iterate the tables.

Rules for a formula: arguments are scalars of one floating-point type T, and so is the result. A literal is written
T(0.5), because a bare 0.5 is float64 and would silently promote float32 work.
"""

from . import activations, after_step, defined, dropout, losses, metrics, noise, optimizers
from .activations import ACTIVATIONS, OUTPUTS, Activation
from .after_step import CONSTRAINTS, averaged
from .domains import BOUND, FLAG, FRACTION, POSITIVE, Domain
from .dropout import dropout_draw, dropout_key, dropout_stream
from .losses import LOSS_DOMAINS, LOSSES, Loss
from .metrics import METRICS, Metric
from .noise import with_noise
from .optimizers import DOMAINS, OPTIMIZERS, Optimizer
from .optimizers.common import NUM_SCALARS, clip_each_factor, clip_factor

# Their functions may be called by kernels.
MODULES = (*optimizers.MODULES, activations, losses, metrics, dropout, after_step, noise)

__all__ = [
    "ACTIVATIONS",
    "BOUND",
    "CONSTRAINTS",
    "DOMAINS",
    "FLAG",
    "FRACTION",
    "LOSSES",
    "LOSS_DOMAINS",
    "METRICS",
    "MODULES",
    "NUM_SCALARS",
    "OPTIMIZERS",
    "OUTPUTS",
    "POSITIVE",
    "Activation",
    "Domain",
    "Loss",
    "Metric",
    "Optimizer",
    "averaged",
    "clip_each_factor",
    "clip_factor",
    "defined",
    "dropout_draw",
    "dropout_key",
    "dropout_stream",
    "with_noise",
]

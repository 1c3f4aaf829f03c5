"""Compiled kernels for training dense networks.

Importing the package loads neither NumPy nor a compiler: every name below is imported when it is first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:  # "x as x" exports x to type checkers; the same names as below
    from . import activations as activations
    from . import batches as batches
    from . import callbacks as callbacks
    from . import compress as compress
    from . import constraints as constraints
    from . import conventions as conventions
    from . import datasets as datasets
    from . import distributed as distributed
    from . import export as export
    from . import functional as functional
    from . import layers as layers
    from . import losses as losses
    from . import optim as optim
    from . import profiling as profiling
    from . import regularizers as regularizers
    from . import schedules as schedules
    from .activations import Activation as Activation
    from .averaging import EMA as EMA
    from .callbacks import Callback as Callback
    from .callbacks import EarlyStopping as EarlyStopping
    from .functional import dense_backward as dense_backward
    from .functional import dense_forward as dense_forward
    from .kernels.cpu.runtime.launch import get_num_threads as get_num_threads
    from .kernels.cpu.runtime.launch import set_num_threads as set_num_threads
    from .layers import BatchNorm as BatchNorm
    from .layers import Dense as Dense
    from .layers import Dropout as Dropout
    from .layers import GaussianNoise as GaussianNoise
    from .layers import LayerNorm as LayerNorm
    from .losses import Loss as Loss
    from .models.history import History as History
    from .models.loading import load_model as load_model
    from .models.lr_finder import lr_finder as lr_finder
    from .models.many import fit_many as fit_many
    from .models.sequential import Sequential as Sequential
    from .optim import *  # noqa: F403
    from .preprocessing import Normalization as Normalization
    from .preprocessing import Rescaling as Rescaling
    from .profiling import profile as profile

    __version__: str

_NAMES = {
    "activations": ("Activation",),
    "averaging": ("EMA",),
    "callbacks": ("Callback", "EarlyStopping"),
    "models.loading": ("load_model",),
    "models.lr_finder": ("lr_finder",),
    "functional": ("dense_backward", "dense_forward"),
    "models.history": ("History",),
    "kernels.cpu.runtime.launch": ("get_num_threads", "set_num_threads"),
    "layers": ("BatchNorm", "Dense", "Dropout", "GaussianNoise", "LayerNorm"),
    "losses": ("Loss",),
    "models.many": ("fit_many",),
    "models.sequential": ("Sequential",),
    "optim": ("SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "Optimizer", "RMSprop", "get_optimizer"),
    "optim.rules": ("OptimizerRule",),
    "preprocessing": ("Normalization", "Rescaling"),
    "profiling": ("profile",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = (
    "activations", "batches", "callbacks", "compress", "constraints", "conventions", "datasets", "distributed",
    "export", "functional", "layers", "losses", "optim", "profiling", "regularizers", "schedules",
)  # fmt: skip

_KERAS = {"BatchNormalization": "BatchNorm", "LayerNormalization": "LayerNorm"}

__all__ = ["__version__", *_MODULE_OF, *_MODULES]


def __getattr__(name: str) -> _Any:
    if name in _MODULE_OF:
        value = getattr(_import_module(f".{_MODULE_OF[name]}", __name__), name)
    elif name in _MODULES:
        value = _import_module(f".{name}", __name__)
    elif name == "__version__":
        value = _import_module("importlib.metadata").version("fastopt")
    else:
        hint = f": it is {__name__}.{_KERAS[name]}" if name in _KERAS else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

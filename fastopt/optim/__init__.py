"""Optimizers for arrays in place: their classes are in `optimizers`, what all of them share in `base`."""

from .optimizers import OPTIMIZER_CLASSES, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop, get_optimizer

__all__ = ["OPTIMIZER_CLASSES", "SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "get_optimizer"]

"""Data sets: `load` those that are known by name, `read_table` files and frames of your own.

Both return a `Dataset` of NumPy arrays, split into training and test rows. "digits" ships with the package; MNIST and
Fashion-MNIST are found on the machine or downloaded.

>>> from fastopt import datasets
>>> data = datasets.load("digits")
>>> data.x_train.shape, data.x_train.dtype, data.y_train.shape, data.y_train.dtype, data.classes
((1437, 64), dtype('float32'), (1437,), dtype('int64'), 10)
"""

from .dataset import Dataset
from .loading import NAMES, load
from .preparation import Preparation
from .tables import read_table

__all__ = ["NAMES", "Dataset", "Preparation", "load", "read_table"]

"""Callbacks: code that `fit` calls between epochs, or between steps: `model.fit(x, y, callbacks=[...])`.

    EarlyStopping       stops when a figure has not improved for some epochs, or has reached a threshold
    ReduceLROnPlateau   lowers the learning rate when a figure has not improved for some epochs
    ModelCheckpoint     saves the model: the best one, or every n epochs or steps
    CSVLogger           writes the figures of every epoch to a file
    TensorBoard         writes them for TensorBoard (extra `tensorboard`)
    LambdaCallback      calls functions of yours
    Callback            the base of your own ones; MonitorCallback of those that watch a figure

Names and defaults are Keras's, but methods are given the model first, and epochs and steps count from 1.

>>> import numpy as np, fastopt as fo
>>> x = np.linspace(-1, 1, 64).reshape(-1, 1)
>>> model = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=1, backend="numpy")
>>> model.compile(fo.Adam(lr=0.1), loss="mean_squared_error")
>>> plateau = ReduceLROnPlateau("loss", patience=3, factor=0.5)
>>> enough = EarlyStopping("loss", threshold=0.02)
>>> history = model.fit(x, x**2, epochs=99, batch_size=16, callbacks=[plateau, enough])
>>> len(history), history["loss"][-1] < 0.02, history["lr"][-1]
(21, True, 0.05)
"""

from __future__ import annotations

from .base import Callback, LambdaCallback, Trainable
from .loggers import CSVLogger, TensorBoard
from .monitors import MODES, EarlyStopping, ModelCheckpoint, MonitorCallback, ReduceLROnPlateau

__all__ = [
    "MODES",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "ModelCheckpoint",
    "MonitorCallback",
    "ReduceLROnPlateau",
    "TensorBoard",
    "Trainable",
]

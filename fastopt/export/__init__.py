"""Models to and from other programs: ONNX, torch, Keras, scikit-learn, and a file that needs NumPy alone.

    fo.export.to_onnx(model, "model.onnx")      # extra `onnx`; runs in onnxruntime
    fo.export.to_numpy(model, "predictor.py")   # one Python file: predict, predict_classes
    fo.export.to_torch(model)                   # an nn.Sequential; extra `torch`
    fo.export.to_sklearn(model)                 # an MLPClassifier or MLPRegressor; extra `sklearn`
    fo.export.to_keras_weights(model)           # for set_weights of a Keras model
    fo.export.from_torch(module), from_keras(model), from_sklearn(mlp)

Common to all of them:

- Predictions are the same to rounding: with the preparation by Normalization and Rescaling, the last activation, the
  scale of standardized targets, and the averages over steps of a model with an EMA.
- Layers that act in training alone, Dropout and GaussianNoise, are left out where nothing is trained afterwards.
- ValueError, by name, for what cannot be carried over; nothing is written then. Such are activations of your own, a
  `compute_dtype` other than the model's dtype, models without weights, and layers that the other side has not.
- Neither optimizer nor loss come along; models that come in are to be compiled before they are trained.
"""

from ._keras import from_keras, to_keras_weights
from ._numpy import to_numpy
from ._onnx import to_onnx
from ._sklearn import from_sklearn, to_sklearn
from ._torch import from_torch, load_state_dict, to_state_dict, to_torch

__all__ = [
    "from_keras",
    "from_sklearn",
    "from_torch",
    "load_state_dict",
    "to_keras_weights",
    "to_numpy",
    "to_onnx",
    "to_sklearn",
    "to_state_dict",
    "to_torch",
]

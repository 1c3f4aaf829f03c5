"""torch: an nn.Sequential from a model, a model from one, and state_dicts both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._validation import describe
from ..layers import Activation, BatchNorm, Dense, Dropout, GaussianNoise, LayerNorm, Trained
from ..models.quantized import REASON, QuantizedModel
from ..models.sequential import Sequential
from ..preprocessing import Normalization, Rescaling
from ._building import Found, assemble, common_dtype
from ._reading import NamedLayer, read, refusal

if TYPE_CHECKING:
    from torch import nn

INSTALL = "torch models need the package torch: pip install 'fastopt[torch]'"
# Our activation: torch's module with its arguments. softplus: torch goes straight from `threshold` on.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "elu": ("ELU", {"alpha": 1.0}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {"beta": 1.0, "threshold": 40.0}),
    "silu": ("SiLU", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "gelu_tanh": ("GELU", {"approximate": "tanh"}),
    "hardswish": ("Hardswish", {}),
    "mish": ("Mish", {}),
    "softmax": ("Softmax", {"dim": 1}),
}
# Our arrays: those of torch's modules, in the order of torch's state_dict
NAMES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
NAMES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


def to_torch(model: Sequential) -> nn.Sequential:
    """Return a `torch.nn.Sequential` on the CPU, in evaluation mode, with the predictions of the model.

    It takes rows (n, inputs): of the model's dtype, or of any dtype where the model prepares its data, which modules of
    fastopt do in float64, as they scale the outputs for a `target_scale`. Dropout and noise act after `.train()`.
    Layers that are not trained have `requires_grad` False; keep a frozen BatchNorm in evaluation mode, as torch's would
    go by its batch otherwise. BatchNorm's momentum is 1 less ours, and torch moves the unbiased variance.

    Raises ImportError without torch (extra `torch`); ValueError as all exports do.
    """
    return _module("to_torch", model)


def _module(call: str, model: Sequential) -> nn.Sequential:
    """`to_torch`; call: the function that a refusal names."""
    modules, torch = import_torch()
    found = read(call, model)
    dtype = getattr(torch, found.dtype.name)
    made: list[Any] = []
    for i, stage in enumerate(found.stages):
        last = i == len(found.stages) - 1
        made.append(_affine(modules, torch, stage, dtype if last else torch.float64))
    for entry in found.layers:
        made += _modules_of(entry, modules, torch, dtype)
    if found.unscale is not None:
        made.append(_affine(modules, torch, found.unscale, dtype))
    return torch.nn.Sequential(*made).eval()


def import_torch() -> tuple[Any, Any]:
    """Return our modules and torch; ImportError, with the way to install it, if it is missing."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(INSTALL) from error
    from . import _torch_modules

    return _torch_modules, torch


def _affine(modules: Any, torch: Any, stage: Any, dtype: Any) -> Any:
    return modules.Affine(stage.divides, torch.tensor(stage.factor), torch.tensor(stage.term), dtype)


def _modules_of(entry: NamedLayer, modules: Any, torch: Any, dtype: Any) -> Iterator[Any]:
    """The module of a layer, and that of its activation."""
    layer, nn = entry.layer, torch.nn
    if isinstance(layer, Dense):
        inputs, units = entry.arrays["kernel"].shape
        yield _filled(nn.Linear(inputs, units, bias=layer.use_bias, dtype=dtype), entry, torch)
    elif isinstance(layer, BatchNorm):
        momentum, affine = 1 - layer.momentum, layer.scale or layer.center
        yield _filled(nn.BatchNorm1d(entry.inputs, layer.epsilon, momentum, affine, dtype=dtype), entry, torch)
    elif isinstance(layer, LayerNorm):
        affine = layer.scale or layer.center
        yield _filled(nn.LayerNorm(entry.inputs, layer.epsilon, affine, layer.center, dtype=dtype), entry, torch)
    elif isinstance(layer, Dropout):
        yield nn.Dropout(layer.rate)
    elif isinstance(layer, GaussianNoise):
        yield modules.GaussianNoise(layer.stddev)
    if entry.activation != "linear":
        name, arguments = ACTIVATIONS[entry.activation]
        yield getattr(nn, name)(**arguments)


def _filled(module: Any, entry: NamedLayer, torch: Any) -> Any:
    """Copy a layer's arrays into its module. A part that the layer has not stays at 1 or 0, and untrained."""
    ours = {NAMES[which]: array.T if which == "kernel" else array for which, array in entry.arrays.items()}
    with torch.no_grad():
        for name, array in ours.items():
            getattr(module, name).copy_(torch.tensor(np.ascontiguousarray(array)))
    trainable = isinstance(entry.layer, Trained) and entry.layer.trainable
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable and name in ours)
    return module


# ---------------------------------------------------------------- from torch


def from_torch(module: nn.Module) -> Sequential:
    """Return a fastopt model with the layers and weights of an `nn.Sequential` or `nn.Linear`.

    It may have Linear, BatchNorm1d, LayerNorm over the columns, Dropout, the activations that fastopt has, Identity,
    Flatten at first, such Sequentials within, and what `to_torch` makes. Weights are float32 or float64. Layers whose
    parameters do not require gradients are not trained. torch moves BatchNorm's unbiased variance, ours is the biased
    one, as Keras's: predictions are the same.

    Raises TypeError for what is no such module; ValueError, by name, for a layer or an argument without counterpart.

    nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) becomes Sequential([Dense(8, "relu"), Dense(2)]).
    """
    modules, torch = import_torch()
    if not isinstance(module, torch.nn.Sequential | torch.nn.Linear):
        raise TypeError(
            "module must be a torch.nn.Sequential or Linear, as a forward of one's own cannot be read;"
            f" got {describe(module)}"
        )
    found: list[Found] = []
    scale: tuple[np.ndarray, np.ndarray] | None = None
    for name, part in _leaves("", module, torch):
        what = f"module {name} ({type(part).__name__})"
        _check_hooks(part, what)
        if scale is not None:
            raise refusal("from_torch", what, "outputs are scaled before it")
        try:
            item = _layer_of(part, what, modules, torch, first=not found)
        except ValueError as error:
            raise refusal("from_torch", what, str(error)) from None
        has_dense = any(isinstance(before.layer, Dense) for before in found)
        if item is not None and isinstance(item.layer, Rescaling) and has_dense:
            scale = np.asarray(item.layer.offset), np.asarray(item.layer.scale)
        elif item is not None:
            found.append(item)
    model = assemble("from_torch", found)
    model.target_scale = scale
    return model


def _leaves(prefix: str, module: Any, torch: Any) -> Iterator[tuple[str, Any]]:
    """Modules with their names in the order of the data, those of Sequentials within included."""
    if type(module) is not torch.nn.Sequential:
        yield prefix.removesuffix(".") or "itself", module
        return
    _check_hooks(module, f"module {prefix.removesuffix('.') or 'itself'} (Sequential)")
    for name, part in module.named_children():
        yield from _leaves(f"{prefix}{name}.", part, torch)


def _check_hooks(part: Any, what: str) -> None:
    if part._forward_hooks or part._forward_pre_hooks:
        raise refusal("from_torch", what, "it has hooks, which may change what it computes")


def _layer_of(part: Any, what: str, modules: Any, torch: Any, first: bool) -> Found | None:
    """The layer of a module; None for one that does nothing to rows."""
    nn, cls = torch.nn, type(part)
    if cls is nn.Identity or (cls is nn.Flatten and first and (part.start_dim, part.end_dim) == (1, -1)):
        return None
    if cls is nn.Linear:
        layer = Dense(part.out_features, use_bias=part.bias is not None, trainable=_trainable(part))
        arrays = [part.weight] if part.bias is None else [part.weight, part.bias]
        return Found(what, layer, [array.T for array in _arrays(arrays)][:1] + _arrays(arrays)[1:])
    if cls in (nn.BatchNorm1d, nn.LayerNorm):
        return _normalization(part, what, nn)
    if cls is nn.Dropout:
        return Found(what, Dropout(part.p))
    if cls is modules.GaussianNoise:
        return Found(what, GaussianNoise(part.stddev))
    if cls is modules.Affine:
        factor, term = part.factor.cpu().double().numpy(), part.term.cpu().double().numpy()
        known = Normalization(mean=term, variance=factor**2) if part.divides else Rescaling(factor, term)
        return Found(what, known)
    name = _activation_of(part, nn)
    if name is None:
        raise ValueError("fastopt has no layer that computes the same")
    return Found(what, Activation(name))


def _activation_of(part: Any, nn: Any) -> str | None:
    """Our name of torch's activation with its arguments; None if there is none."""
    if type(part) is nn.Softplus:
        return "softplus" if part.beta == 1 and part.threshold >= 20 else None
    if type(part) is nn.Softmax:
        return "softmax" if part.dim in (1, -1) else None
    for name, (cls, arguments) in ACTIVATIONS.items():
        if type(part) is getattr(nn, cls) and all(getattr(part, key) == value for key, value in arguments.items()):
            return name
    return None


def _normalization(part: Any, what: str, nn: Any) -> Found:
    given = [name for name in ("weight", "bias") if getattr(part, name) is not None]
    trained = [name for name in given if getattr(part, name).requires_grad]
    fixed = {name: getattr(part, name) for name in given if name not in trained}
    if trained and all(bool((array == (name == "weight")).all()) for name, array in fixed.items()):
        given, fixed = trained, {}  # the other part is 1 or 0 for good
    if trained and fixed:
        raise ValueError("its parameters must all require gradients, or none of them")
    options: dict[str, Any] = {"scale": "weight" in given, "center": "bias" in given}
    options["trainable"] = bool(trained) or not given
    arrays = [getattr(part, name) for name in given]
    if isinstance(part, nn.LayerNorm):
        if len(part.normalized_shape) != 1:
            raise ValueError(f"normalized_shape must be one number; got {tuple(part.normalized_shape)}")
        return Found(what, LayerNorm(part.eps, **options), _arrays(arrays))
    if part.running_mean is None or part.momentum is None:
        raise ValueError("it must have running averages, and a momentum")
    layer = BatchNorm(1 - part.momentum, part.eps, **options)
    return Found(what, layer, _arrays([*arrays, part.running_mean, part.running_var]))


def _trainable(part: Any) -> bool:
    asked = {parameter.requires_grad for parameter in part.parameters()}
    if len(asked) > 1:
        raise ValueError("its parameters must all require gradients, or none of them")
    return asked == {True}


def _unusable(tensor: Any) -> str:
    return "a tensor without values, on the device 'meta'" if tensor.is_meta else f"of {tensor.dtype}"


def _arrays(tensors: Any) -> list[np.ndarray]:
    common_dtype("from_torch", list(tensors)) if tensors else None
    for tensor in tensors:
        if tensor.is_meta:
            raise ValueError(f"its weights must have values; got {_unusable(tensor)}")
    return [tensor.detach().cpu().numpy() for tensor in tensors]


# ---------------------------------------------------------------- state_dicts


def to_state_dict(model: Sequential) -> dict[str, Any]:
    """Return the state_dict of `to_torch(model)`: tensors by names such as "0.weight", kernels as (outputs, inputs).

    Of Sequential([Dense(4, "relu"), Dense(2)]) the names are 0.weight, 0.bias, 2.weight and 2.bias: 1 is the ReLU.
    """
    return dict(_module("to_state_dict", model).state_dict())


def load_state_dict(model: Sequential, state: Mapping[str, Any]) -> None:
    """Copy the weights of a torch state_dict into a built model with the same layers.

    Names are those of `to_state_dict`, or others in the order of the layers, such as those of a module of one's own.
    Averages over steps begin again, with these weights; the optimizer stays as it is. Factors and terms that prepare
    data, or scale outputs, must be the model's, or be left out.

    Raises ImportError without torch; TypeError for what is no mapping, ValueError for tensors that do not fit: nothing
    is changed then.
    """
    _, torch = import_torch()
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a state_dict; got {describe(state)}")
    module = _module("load_state_dict", model)
    if isinstance(model, QuantizedModel):
        raise ValueError(f"load_state_dict: {REASON}")
    ours = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    fixed = {name for name in ours if name.endswith((".factor", ".term"))}
    given = {name: torch.as_tensor(value) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for name, tensor in given.items():
        if tensor.is_meta or tensor.is_complex():
            raise ValueError(f"state must have real numbers; {name} is {_unusable(tensor)}")
    for name in fixed & set(given):
        if not torch.equal(given.pop(name).double().cpu(), ours[name]):
            raise ValueError(f"state: {name} must be the model's own, which prepares its data or scales its outputs")
    wanted = [name for name in ours if name not in fixed]
    # names of a module of one's own say nothing: the order does
    tensors = [given[name] for name in wanted] if set(wanted) == set(given) else list(given.values())
    shapes, found = ([tuple(tensor.shape) for tensor in some] for some in ([ours[name] for name in wanted], tensors))
    if shapes != found:
        raise ValueError(f"state must have tensors of the shapes {shapes}; got {found}")
    with torch.no_grad():
        for name, tensor in zip(wanted, tensors, strict=True):
            ours[name].copy_(tensor)
    model.set_weights(_weights(model, module, torch))


def _weights(model: Sequential, module: Any, torch: Any) -> list[np.ndarray]:
    """The arrays of a module that `to_torch` has made of the model, in the model's order."""
    nn = torch.nn
    parts = [part for part in module if isinstance(part, nn.Linear | nn.BatchNorm1d | nn.LayerNorm)]
    trained = [layer for layer in model.layers if isinstance(layer, Trained)]
    arrays = []
    for layer, part in zip(trained, parts, strict=True):
        for which in layer.arrays:
            array = getattr(part, NAMES[which]).detach().numpy()
            arrays.append(array.T if which == "kernel" else array)
    return arrays

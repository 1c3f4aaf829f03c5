"""The rules of the optimizers in plain vectorised NumPy: the table UPDATES, for `reference` and to check the formulas.

As in `maths`, nothing here comes from `formulas`. Scalars are worked out in float64 and cast to the arrays'
number type T before they meet an array, so float32 stays float32; a rule keeps one order of operations, so that other
backends can match it bit for bit.

A rule is rule(p, g, states, o, step): it changes p and the states in place; o: options, step: from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..denormals import SMALLEST

Array = np.ndarray
Options = Mapping[str, Any]
States = Sequence[Array]


def flush(x: Array) -> None:
    """Put 0 where |x| is below the smallest normal number: processors are slow on denormals."""
    x[np.abs(x) < SMALLEST[x.dtype]] = 0


def mean(x: Array, beta: float, value: Array) -> None:
    """Move a running mean on: x = beta x + (1 - beta) value, in place."""
    T = x.dtype.type
    x *= T(beta)
    x += T(1 - beta) * value


def flushed_mean(x: Array, beta: float, value: Array) -> None:
    """`mean` of numbers of either sign, without denormal ones."""
    mean(x, beta, value)
    flush(x)


def squared(x: Array, g: Array, beta: float | None = None) -> None:
    """Move a running mean of g^2 on, or a sum where beta is None, in place.

    Where the result is below the smallest normal number, it is that number, unless there was no gradient up to now.
    """
    seen = (x > 0) | (g != 0)
    if beta is None:
        x += g * g
    else:
        mean(x, beta, g * g)
    tiny = SMALLEST[x.dtype]
    x[seen & (x < tiny)] = tiny


def ascent(g: Array, o: Options) -> Array:
    return -g if o["maximize"] else g


def prepared(g: Array, o: Options, scale: float) -> Array:
    """The gradient times `scale`, then clipped by value; NaN stays NaN."""
    T = g.dtype.type
    if scale != 1:
        g = g * T(scale)
    return g if o["clip_value"] is None else np.clip(g, T(-o["clip_value"]), T(o["clip_value"]))


def shrinkage(max_norm: float, norm: float) -> float:
    """The factor that brings a gradient of this norm to slightly less than `max_norm`; at most 1, and NaN for NaN."""
    return float(np.minimum(np.float64(max_norm) / (norm + 1e-6), 1.0))


def lasso(p: Array, g: Array, o: Options) -> Array:
    """The gradient with that of the L1 penalty, l1 times the sign of the parameter."""
    T = p.dtype.type
    return g + np.where(p > 0, T(o["l1"]), np.where(p < 0, T(-o["l1"]), T(0))) if o["l1"] != 0 else g


def ridge(p: Array, g: Array, l2: float) -> Array:
    """The gradient with that of an L2 penalty, l2 times the parameter."""
    return g + p.dtype.type(l2) * p if l2 != 0 else g


def coupled(p: Array, g: Array, o: Options) -> Array:
    """The gradient with its sign and both penalties, for rules whose weight decay is an L2 penalty."""
    return lasso(p, ridge(p, ascent(g, o), o["weight_decay"] + o.get("l2", 0.0)), o)


def decayed(p: Array, g: Array, o: Options) -> Array:
    """The gradient without the weight decay; the parameter itself has decayed."""
    g = lasso(p, ridge(p, ascent(g, o), o.get("l2", 0.0)), o)
    if o["weight_decay"] != 0:
        p *= p.dtype.type(1 - o["lr"] * o["weight_decay"])
    return g


def penalised(p: Array, g: Array, o: Options) -> Array:
    """`decayed` or `coupled`, as the option `decoupled` says."""
    return decayed(p, g, o) if o["decoupled"] else coupled(p, g, o)


def sgd(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    T = p.dtype.type
    p -= T(o["lr"]) * coupled(p, g, o)


def sgdw(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    g = decayed(p, g, o)
    p -= p.dtype.type(o["lr"]) * g


def velocity(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Heavy ball whose state is the step itself, or Nesterov's form of it."""
    T = p.dtype.type
    (v,) = states
    pull = T(o["lr"]) * penalised(p, g, o)
    v *= T(o["momentum"])
    v -= pull
    flush(v)
    p += T(o["momentum"]) * v - pull if o["nesterov"] else v


def momentum(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Heavy ball, or Nesterov's form of it; the first step fills the buffer with the undamped gradient."""
    T = p.dtype.type
    (b,) = states
    mu = T(o["momentum"])
    g = coupled(p, g, o)
    if step == 1:
        b[...] = g
    else:
        b *= mu
        b += T(1 - o["dampening"]) * g
    flush(b)
    p -= T(o["lr"]) * (g + mu * b if o["nesterov"] else b)


def lion(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """A step of size lr by the sign of a momentum; the state holds less of the gradient than the sign is taken of."""
    g, update = decayed(p, g, o), states[0].copy()
    flushed_mean(update, o["beta1"], g)
    flushed_mean(states[0], o["beta2"], g)
    p -= p.dtype.type(o["lr"]) * np.sign(update)


def adagrad(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    T = p.dtype.type
    (s,) = states
    g = coupled(p, g, o)
    squared(s, g)
    p -= T(o["lr"] / (1 + (step - 1) * o["lr_decay"])) * (g / (np.sqrt(s) + T(o["eps"])))


def adagrad_eps_in_sqrt(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Adagrad with eps inside the root."""
    T = p.dtype.type
    (s,) = states
    g = penalised(p, g, o)
    squared(s, g)
    p -= T(o["lr"]) * (g / np.sqrt(s + T(o["eps"])))


def adagrad_safe(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """`adagrad_eps_in_sqrt`, without a step where the sum is not above zero."""
    T = p.dtype.type
    (s,) = states
    g = coupled(p, g, o)
    squared(s, g)
    p -= T(o["lr"]) * np.where(s > 0, g / np.sqrt(s + T(o["eps"])), 0 * g)


def adadelta(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Divide by the root mean square of gradients, and multiply by that of the steps so far."""
    g, (v, u) = penalised(p, g, o), states
    squared(v, g, o["rho"])
    d = np.sqrt(u + p.dtype.type(o["eps"])) / np.sqrt(v + p.dtype.type(o["eps"])) * g
    squared(u, d, o["rho"])
    p -= p.dtype.type(o["lr"]) * d


def rmsprop(
    p: Array, g: Array, states: States, o: Options, step: int, centered: bool = False, heavy: bool = False
) -> None:
    """Divide by the running root mean square; `centered`: of g minus its mean; `heavy`: a momentum buffer."""
    T = p.dtype.type
    g = coupled(p, g, o)
    s = states[0]
    squared(s, g, o["alpha"])
    spread = s
    if centered:
        a = states[1]
        flushed_mean(a, o["alpha"], g)
        spread = np.maximum(s - a * a, T(0))
    d = np.sqrt(spread) + T(o["eps"])
    if heavy:
        b = states[-1]
        b *= T(o["momentum"])
        b += g / d
        flush(b)
        p -= T(o["lr"]) * b
    else:
        p -= T(o["lr"]) * (g / d)


def rmsprop_eps_in_sqrt(
    p: Array, g: Array, states: States, o: Options, step: int, centered: bool = False, heavy: bool = False
) -> None:
    """RMSprop with eps inside the root, and momentum as in `velocity`."""
    T = p.dtype.type
    g = penalised(p, g, o)
    spread = states[0]
    squared(spread, g, o["alpha"])
    if centered:
        a = states[1]
        flushed_mean(a, o["alpha"], g)
        spread = np.maximum(spread - a * a, T(0))
    pull = T(o["lr"]) * (g / np.sqrt(spread + T(o["eps"])))
    if heavy:
        v = states[-1]
        v *= T(o["momentum"])
        v -= pull
        flush(v)
        p += v
    else:
        p -= pull


def grow(m: Array, v: Array, g: Array, o: Options) -> None:
    """Adam's running means of the gradient and of its square."""
    flushed_mean(m, o["beta1"], g)
    squared(v, g, o["beta2"])


def raised(largest: Array, v: Array) -> Array:
    """The largest so far, in place; a NaN in v gets through."""
    np.copyto(largest, v, where=~(largest > v))
    return largest


def adam(
    p: Array, g: Array, states: States, o: Options, step: int, amsgrad: bool = False, decoupled: bool = False
) -> None:
    """Adam; `amsgrad` divides by the largest second moment so far, `decoupled` is AdamW's weight decay."""
    T = p.dtype.type
    g = decayed(p, g, o) if decoupled else coupled(p, g, o)
    m, v = states[:2]
    grow(m, v, g, o)
    if amsgrad:
        v = raised(states[2], v)
    d = np.sqrt(v) * T(1 / math.sqrt(1 - o["beta2"] ** step)) + T(o["eps"])
    p -= T(o["lr"] / (1 - o["beta1"] ** step)) * (m / d)


def adam_hat(p: Array, g: Array, states: States, o: Options, step: int, amsgrad: bool = False) -> None:
    """Adam with eps beside the root of the second moment as it is; the paper calls that epsilon-hat."""
    T = p.dtype.type
    m, v = states[:2]
    grow(m, v, penalised(p, g, o), o)
    if amsgrad:
        v = raised(states[2], v)
    p -= T(o["lr"] * math.sqrt(1 - o["beta2"] ** step) / (1 - o["beta1"] ** step)) * (m / (np.sqrt(v) + T(o["eps"])))


def adam_eps_root(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Adam with a second eps inside the root, beside the corrected second moment."""
    T = p.dtype.type
    m, v = states
    grow(m, v, penalised(p, g, o), o)
    d = np.sqrt(v * T(1 / (1 - o["beta2"] ** step)) + T(o["eps_root"])) + T(o["eps"])
    p -= T(o["lr"] / (1 - o["beta1"] ** step)) * (m / d)


def nadam_eps_root(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Adam with Nesterov's momentum: the mean as the next step would have it, with this gradient once more.

    Numerator and denominator are taken times the root of 1 - beta2^step.
    """
    T = p.dtype.type
    m, v = states
    g = penalised(p, g, o)
    grow(m, v, g, o)
    share = 1 - o["beta2"] ** step
    ahead = T(o["lr"] * o["beta1"] / (1 - o["beta1"] ** (step + 1)) * math.sqrt(share)) * m
    ahead += T(o["lr"] * (1 - o["beta1"]) / (1 - o["beta1"] ** step) * math.sqrt(share)) * g
    p -= ahead / (np.sqrt(v + T(o["eps_root"] * share)) + T(o["eps"] * math.sqrt(share)))


def nadam(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """Adam with Nesterov's momentum, which grows by a schedule: each step has a momentum mu of its own."""
    T = p.dtype.type
    m, v = states
    g = decayed(p, g, o) if o["decoupled_weight_decay"] else coupled(p, g, o)
    grow(m, v, g, o)
    mu = [o["beta1"] * (1 - 0.5 * 0.96 ** (k * o["momentum_decay"])) for k in range(1, step + 2)]
    product, share = math.prod(mu[:-1]), 1 - o["beta2"] ** step
    ahead = T(o["lr"] * mu[-1] / (1 - product * mu[-1]) * math.sqrt(share)) * m
    ahead += T(o["lr"] * (1 - mu[-2]) / (1 - product) * math.sqrt(share)) * g
    p -= ahead / (np.sqrt(v) + T(o["eps"] * math.sqrt(share)))


def amsgrad_eps_root(p: Array, g: Array, states: States, o: Options, step: int) -> None:
    """`adam_eps_root` with the largest corrected second moment so far."""
    T = p.dtype.type
    m, v, largest = states
    grow(m, v, coupled(p, g, o), o)
    raised(largest, v * T(1 / (1 - o["beta2"] ** step)))
    d = np.sqrt(largest + T(o["eps_root"])) + T(o["eps"])
    p -= T(o["lr"] / (1 - o["beta1"] ** step)) * (m / d)


UPDATES: dict[str, Callable[[Array, Array, States, Options, int], None]] = {
    "sgd": sgd,
    "momentum": momentum,
    "sgdw": sgdw,
    "velocity": velocity,
    "lion": lion,
    "adagrad": adagrad,
    "adagrad_eps_in_sqrt": adagrad_eps_in_sqrt,
    "adagrad_safe": adagrad_safe,
    "adadelta": adadelta,
    "rmsprop": rmsprop,
    "rmsprop_momentum": partial(rmsprop, heavy=True),
    "rmsprop_centered": partial(rmsprop, centered=True),
    "rmsprop_centered_momentum": partial(rmsprop, centered=True, heavy=True),
    "rmsprop_eps_in_sqrt": rmsprop_eps_in_sqrt,
    "rmsprop_eps_in_sqrt_momentum": partial(rmsprop_eps_in_sqrt, heavy=True),
    "rmsprop_eps_in_sqrt_centered": partial(rmsprop_eps_in_sqrt, centered=True),
    "rmsprop_eps_in_sqrt_centered_momentum": partial(rmsprop_eps_in_sqrt, centered=True, heavy=True),
    "adam": adam,
    "amsgrad": partial(adam, amsgrad=True),
    "adamw": partial(adam, decoupled=True),
    "adamw_amsgrad": partial(adam, amsgrad=True, decoupled=True),
    "adam_hat": adam_hat,
    "amsgrad_hat": partial(adam_hat, amsgrad=True),
    "adam_eps_root": adam_eps_root,
    "nadam_eps_root": nadam_eps_root,
    "amsgrad_eps_root": amsgrad_eps_root,
    "nadam": nadam,
}

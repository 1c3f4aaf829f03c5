"""The parts that optimizers share: preprocessing of gradients, and keeping states out of the denormal range.

A rule is rule(p, g, s, h, tiny) -> (p, s): the parameter, its gradient, the tuple of its states, the scalars of the
step in the array's type T, and the smallest normal number of T. h[:5] mean the same in every rule, see
`common_scalars`; a rule unpacks the others by name from h[5:].
"""

from __future__ import annotations

from math import inf, sqrt

COMMON = 5  # scalars of a step that all rules have in common: h[:COMMON]
NUM_SCALARS = COMMON + 8  # with the rule's own
L2, L1 = 2, 3  # indices of the factors of the penalties' gradients

# The scalars of some steps, in float64 on the host: a column for each element of h. A column is a list with a number
# for each step, or one number for all of them.
Column = float | list[float]


def preprocess_gradient(p, g, h):
    """The parameter after decoupled weight decay, and the gradient that the rule uses.

    The gradient is scaled (negatively, to maximise), clipped by value, and then joined by the gradients of the L2 and
    the L1 penalty. NaN passes; the sign of 0 is 0.

    Two conditions on scalars, which LLVM takes out of the loop, decide what there is to do beside the scaling: with all
    of it in every loop, Adam in cache took a fifth longer. L2 alone, the most frequent, has a loop of its own: an epoch
    of 784-256-128-10 at batch 64 takes 1 % longer with weight decay, and took 6. A condition each would be many loops.
    """
    scale, clip_value, l2, l1, decay_factor = h[:5]
    g = scale * g
    if (clip_value < type(p)(inf)) | (l1 != 0):
        g = clip_value if g > clip_value else (-clip_value if g < -clip_value else g)
        with_l2 = g + l2 * p
        g = with_l2 if l2 != 0 else g  # 0 times infinity would be NaN
        with_l1 = g + (l1 if p > 0 else (-l1 if p < 0 else type(p)(0)))
        g = with_l1 if l1 != 0 else g
    elif l2 != 0:
        g = g + l2 * p
    return p * decay_factor, g


def common_scalars(
    rates: list[float],
    weight_decay: float,
    maximize: bool,
    l1: float,
    clip_value: float | None,
    decoupled: bool = False,
) -> tuple[Column, ...]:
    """The columns of h[:5]: scale, clip_value, l2, l1, decay_factor. rates: the learning rate of every step."""
    scale = -1.0 if maximize else 1.0
    bound = inf if clip_value is None else clip_value
    if decoupled:
        return scale, bound, 0.0, l1, [decay_factor(lr, weight_decay) for lr in rates]
    return scale, bound, weight_decay, l1, 1.0


def constant_scalars(own):
    """The `scalars` of a rule whose own ones, behind the learning rate, are own(**options) in every step."""

    def scalars(steps, rates, weight_decay, maximize, l1, clip_value, decoupled=False, **options):
        common = common_scalars(rates, weight_decay, maximize, l1, clip_value, decoupled)
        return *common, rates, *own(**options)

    return scalars


def decay_factor(lr, weight_decay):
    return 1.0 - lr * weight_decay


def constant(step, lr, h):
    """The own scalars of a rule that depends on the step by its learning rate alone, see `Optimizer.at_step`."""
    return (lr, *h[1:])


# Factors of gradients, in float64.


def clip_factor(max_norm, norm):
    """The factor that brings the norm of gradients down to `max_norm`, as torch's clip_grad_norm_.

    NaN if the norm is NaN, 0 if it is infinite.
    """
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def clip_each_factor(max_norm, norm):
    """The factor for the gradient of one array, as Keras's clipnorm: down to `max_norm` itself."""
    return 1.0 if norm <= max_norm else max_norm / norm


# States never become denormal, a range in which every processor is slow. CPU kernels run with denormals flushed (see
# `denormals.py`), CUDA kernels do not; so a rule must give the same either way.


def flush(x, tiny):
    """Zero instead of a denormal number, and instead of -0, which a processor that flushes may leave."""
    return type(x)(0) if abs(x) < tiny else x


def floor(x, old, g, tiny):
    """The smallest normal number instead of less, for a sum of squares x of `old` and g, which is divided by.

    It is zero only while all gradients have been zero. So a gradient whose square is too small does not become infinite
    when it is divided by the root, even with eps = 0.
    """
    least = tiny if (old > 0) | (g != 0) else type(x)(0)
    return least if x < least else x


def root(x):
    return type(x)(sqrt(x))


def sign(x):
    """-1, 0 or 1; NaN of NaN."""
    return type(x)(1) if x > 0 else (type(x)(-1) if x < 0 else x)

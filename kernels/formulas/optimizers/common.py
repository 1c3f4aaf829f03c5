"""Optimizers: what a step does to one parameter.

A rule is rule(p, g, s, h, tiny) -> (p, s): the parameter, its gradient, the tuple of its states, the step's scalars
in the array's type, and the smallest normal number of that type. h[:5] mean the same in every rule (see `penalise`);
the columns of the others are in `optimizers.py`.
"""

from __future__ import annotations

from math import inf, sqrt


def penalise(p, g, h):
    """What every rule starts from: the parameter after decoupled weight decay, and the gradient it is to use.

    The gradient is scaled (negatively, to maximise), clipped by value, and then joined by the gradients of the L2 and
    the L1 penalty. NaN passes; the sign of 0 is 0.

    One condition on scalars, which LLVM takes out of the loop, decides whether there is anything but the scaling to do:
    with all of it in every loop, Adam in cache took a fifth longer; with a condition each there would be many loops.
    """
    scale, most, coupled, l1, shrink = h[:5]
    g = scale * g
    if (most < type(p)(inf)) | (coupled != 0) | (l1 != 0):
        g = most if g > most else (-most if g < -most else g)
        decayed = g + coupled * p
        g = decayed if coupled != 0 else g  # 0 times infinity would be NaN
        pulled = g + (l1 if p > 0 else (-l1 if p < 0 else type(p)(0)))
        g = pulled if l1 != 0 else g
    return p * shrink, g


def clip_factor(most, norm):
    """What gradients are multiplied by so that their norm is at most `most`, as torch's clip_grad_norm_; in float64.

    NaN where the norm is NaN, 0 where it is infinite.
    """
    factor = most / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def clip_each_factor(most, norm):
    """The same for the gradient of one array, as Keras's clipnorm: to `most` itself; in float64."""
    return 1.0 if norm <= most else most / norm


# States never become denormal, in which range every processor is slow. CPU kernels run with denormals flushed (see
# `denormals.py`), CUDA kernels do not; so a rule must give the same either way.


def flush(x, tiny):
    """Zero instead of a denormal number, and instead of -0, which is what a processor that flushes may leave."""
    return type(x)(0) if abs(x) < tiny else x


def floor(x, old, g, tiny):
    """The smallest normal number instead of less, for a sum of squares x of `old` and g, which is divided by.

    It is zero only where there was no gradient yet. So a gradient whose square is too small does not become infinite
    when it is divided by the root, even with eps = 0.
    """
    least = tiny if (old > 0) | (g != 0) else type(x)(0)
    return least if x < least else x


def root(x):
    return type(x)(sqrt(x))


def sgd(p, g, s, h, tiny):
    lr = h[5]
    p, g = penalise(p, g, h)
    return p - lr * g, s


def momentum(p, g, s, h, tiny):
    lr, mu, undamped, nesterov = h[5:9]
    p, g = penalise(p, g, h)
    b = flush(mu * s[0] + undamped * g, tiny)
    d = g + nesterov * b if nesterov != 0 else b
    return p - lr * d, (b,)


def velocity(p, g, s, h, tiny):
    """Momentum whose state is the step itself, learning rate and all: another path than `momentum` where lr changes."""
    lr, mu, nesterov = h[5:8]
    p, g = penalise(p, g, h)
    v = flush(mu * s[0] - lr * g, tiny)
    d = mu * v - lr * g if nesterov != 0 else v
    return p + d, (v,)


def adagrad(p, g, s, h, tiny):
    lr, eps = h[5:7]
    p, g = penalise(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / (root(total) + eps)), (total,)


def adagrad_inner(p, g, s, h, tiny):
    lr, eps = h[5:7]
    p, g = penalise(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / root(total + eps)), (total,)


def adagrad_guarded(p, g, s, h, tiny):
    """`adagrad_inner` that stands still where there was no gradient yet, also with eps = 0."""
    lr, eps = h[5:7]
    p, g = penalise(p, g, h)
    total = floor(s[0] + g * g, s[0], g, tiny)
    return p - lr * (g / root(total + eps) if total > 0 else type(p)(0) * g), (total,)


def mean_square(v, g, h, tiny):
    alpha, rest = h[6:8]
    return floor(alpha * v + rest * (g * g), v, g, tiny)


def variance(v, a):
    """v - a^2, of the gradient where v and a are its second and first moment; not below 0."""
    difference = v - a * a
    return type(v)(0) if difference < 0 else difference


def rmsprop(p, g, s, h, tiny):
    lr, eps = h[5], h[8]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    return p - lr * (g / (root(v) + eps)), (v,)


def rmsprop_momentum(p, g, s, h, tiny):
    lr, eps, mu = h[5], h[8], h[9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    b = flush(mu * s[1] + g / (root(v) + eps), tiny)
    return p - lr * b, (v, b)


def rmsprop_centered(p, g, s, h, tiny):
    lr, alpha, rest, eps = h[5:9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    return p - lr * (g / (root(variance(v, a)) + eps)), (v, a)


def rmsprop_centered_momentum(p, g, s, h, tiny):
    lr, alpha, rest, eps, mu = h[5:10]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    b = flush(mu * s[2] + g / (root(variance(v, a)) + eps), tiny)
    return p - lr * b, (v, a, b)


def rmsprop_inner(p, g, s, h, tiny):
    lr, eps = h[5], h[8]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    return p - lr * (g / root(v + eps)), (v,)


def rmsprop_inner_momentum(p, g, s, h, tiny):
    lr, eps, mu = h[5], h[8], h[9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    b = flush(mu * s[1] - lr * (g / root(v + eps)), tiny)
    return p + b, (v, b)


def rmsprop_inner_centered(p, g, s, h, tiny):
    lr, alpha, rest, eps = h[5:9]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    return p - lr * (g / root(variance(v, a) + eps)), (v, a)


def rmsprop_inner_centered_momentum(p, g, s, h, tiny):
    lr, alpha, rest, eps, mu = h[5:10]
    p, g = penalise(p, g, h)
    v = mean_square(s[0], g, h, tiny)
    a = flush(alpha * s[1] + rest * g, tiny)
    b = flush(mu * s[2] - lr * (g / root(variance(v, a) + eps)), tiny)
    return p + b, (v, a, b)


def moments(m, v, g, h, tiny):
    beta1, rest1, beta2, rest2 = h[6:10]
    return flush(beta1 * m + rest1 * g, tiny), floor(beta2 * v + rest2 * (g * g), v, g, tiny)


def adam(p, g, s, h, tiny):
    lr, correction, eps = h[5], h[10], h[11]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    return p - lr * (m / (root(v) * correction + eps)), (m, v)


def amsgrad(p, g, s, h, tiny):
    lr, correction, eps = h[5], h[10], h[11]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    top = s[2] if s[2] > v else v
    return p - lr * (m / (root(top) * correction + eps)), (m, v, top)


def adam_rooted(p, g, s, h, tiny):
    lr, correction, eps, eps_root = h[5], h[10], h[11], h[12]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    return p - lr * (m / (root(v * correction + eps_root) + eps)), (m, v)


def nadam_rooted(p, g, s, h, tiny):
    """Where `adam_rooted` goes by the mean, this goes by what it will be if the next gradient is this one again.

    The correction of v is in the scalars, for there is no room for one more: lr_m, lr_g, eps are divided by its root,
    eps_root by itself.
    """
    lr_m, lr_g, eps, eps_root = h[5], h[10], h[11], h[12]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    return p - (lr_m * m + lr_g * g) / (root(v + eps_root) + eps), (m, v)


def amsgrad_rooted(p, g, s, h, tiny):
    """As `adam_rooted`, by the largest of all corrected second moments, where `amsgrad` corrects the largest."""
    lr, correction, eps, eps_root = h[5], h[10], h[11], h[12]
    p, g = penalise(p, g, h)
    m, v = moments(s[0], s[1], g, h, tiny)
    corrected = v * correction
    top = s[2] if s[2] > corrected else corrected
    return p - lr * (m / (root(top + eps_root) + eps)), (m, v, top)

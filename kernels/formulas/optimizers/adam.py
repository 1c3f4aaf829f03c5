"""Adam and its kin: running means of the gradient and of its square."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

from ..domains import FLAG, POSITIVE
from .common import common_scalars, floor, flush, preprocess_gradient, root
from .table import Convention, Optimizer, OptimizerClass, Option, row, rule_options, same

# ---------------------------------------------------------------- formulas


def adam(p, g, s, h, tiny):
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2, inv_sqrt_bias_correction2, eps = h[5:12]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    return p - lr * (m / (root(v) * inv_sqrt_bias_correction2 + eps)), (m, v)


def amsgrad(p, g, s, h, tiny):
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2, inv_sqrt_bias_correction2, eps = h[5:12]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    max_v = s[2] if s[2] > v else v
    return p - lr * (m / (root(max_v) * inv_sqrt_bias_correction2 + eps)), (m, v, max_v)


def nadam(p, g, s, h, tiny):
    m_coefficient, beta1, one_minus_beta1, beta2, one_minus_beta2, g_coefficient, eps = h[5:12]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    return p - (m_coefficient * m + g_coefficient * g) / (root(v) + eps), (m, v)


# optax's form, which corrects the second moment inside the root.


def adam_eps_root(p, g, s, h, tiny):
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2, inv_bias_correction2, eps, eps_root = h[5:13]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    return p - lr * (m / (root(v * inv_bias_correction2 + eps_root) + eps)), (m, v)


def nadam_eps_root(p, g, s, h, tiny):
    """`adam_eps_root` with Nesterov's look-ahead: the first moment after the same gradient once more.

    No scalar is free for the correction of v, so it is in the others: the coefficients of m and g, and eps, are
    multiplied by sqrt(1 - beta2^step), eps_root by 1 - beta2^step.
    """
    m_coefficient, beta1, one_minus_beta1, beta2, one_minus_beta2, g_coefficient, eps, eps_root = h[5:13]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    return p - (m_coefficient * m + g_coefficient * g) / (root(v + eps_root) + eps), (m, v)


def amsgrad_eps_root(p, g, s, h, tiny):
    """`adam_eps_root` by the largest of all corrected second moments; `amsgrad` corrects the largest one."""
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2, inv_bias_correction2, eps, eps_root = h[5:13]
    p, g = preprocess_gradient(p, g, h)
    m = flush(beta1 * s[0] + one_minus_beta1 * g, tiny)  # first moment
    v = floor(beta2 * s[1] + one_minus_beta2 * (g * g), s[1], g, tiny)  # second moment
    corrected = v * inv_bias_correction2
    max_v = s[2] if s[2] > corrected else corrected
    return p - lr * (m / (root(max_v + eps_root) + eps)), (m, v, max_v)


# ---------------------------------------------------------------- scalars


def lr_bias_corrected1(lr, step, beta1):
    return lr / (1.0 - beta1**step)


def lr_bias_corrected12(lr, step, beta1, beta2):
    return lr * sqrt(1.0 - beta2**step) / (1.0 - beta1**step)


def bias_correction2(step, beta2):
    return 1.0 - beta2**step


def inv_bias_correction2(step, beta2):
    return 1.0 / (1.0 - beta2**step)


def inv_sqrt_bias_correction2(step, beta2):
    return 1.0 / sqrt(1.0 - beta2**step)


def nadam_m_coefficient(lr, step, beta1, beta2):
    return lr * beta1 / (1.0 - beta1 ** (step + 1)) * sqrt(1.0 - beta2**step)


def nadam_g_coefficient(lr, step, beta1, beta2):
    return lr * (1.0 - beta1) / (1.0 - beta1**step) * sqrt(1.0 - beta2**step)


def adam_scalars(steps, rates, beta1, beta2, eps, **common):
    corrected = [lr_bias_corrected1(lr, step, beta1) for step, lr in zip(steps, rates, strict=True)]
    correction2 = [inv_sqrt_bias_correction2(step, beta2) for step in steps]
    return *common_scalars(rates, **common), corrected, beta1, 1.0 - beta1, beta2, 1.0 - beta2, correction2, eps


def adam_at_step(step, lr, h):
    _, beta1, one_minus_beta1, beta2, one_minus_beta2, _, eps, unused = h
    lr, correction2 = lr_bias_corrected1(lr, step, beta1), inv_sqrt_bias_correction2(step, beta2)
    return lr, beta1, one_minus_beta1, beta2, one_minus_beta2, correction2, eps, unused


def adamw_scalars(steps, rates, **options):
    return adam_scalars(steps, rates, decoupled=True, **options)


def adam_hat_scalars(steps, rates, beta1, beta2, eps, **common):
    """For `adam` and `amsgrad`: both corrections in the rate, so that eps is added to the uncorrected root."""
    corrected = [lr_bias_corrected12(lr, step, beta1, beta2) for step, lr in zip(steps, rates, strict=True)]
    return *common_scalars(rates, **common), corrected, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0, eps


def adam_hat_at_step(step, lr, h):
    return (lr_bias_corrected12(lr, step, h[1], h[3]), *h[1:])


def adam_eps_root_scalars(steps, rates, beta1, beta2, eps, eps_root, **common):
    corrected = [lr_bias_corrected1(lr, step, beta1) for step, lr in zip(steps, rates, strict=True)]
    correction2 = [inv_bias_correction2(step, beta2) for step in steps]
    betas = beta1, 1.0 - beta1, beta2, 1.0 - beta2
    return *common_scalars(rates, **common), corrected, *betas, correction2, eps, eps_root


def adam_eps_root_at_step(step, lr, h):
    _, beta1, one_minus_beta1, beta2, one_minus_beta2, _, eps, eps_root = h
    lr, correction2 = lr_bias_corrected1(lr, step, beta1), inv_bias_correction2(step, beta2)
    return lr, beta1, one_minus_beta1, beta2, one_minus_beta2, correction2, eps, eps_root


def nadam_eps_root_scalars(steps, rates, beta1, beta2, eps, eps_root, **common):
    pairs = list(zip(steps, rates, strict=True))
    of_m = [nadam_m_coefficient(lr, step, beta1, beta2) for step, lr in pairs]
    of_g = [nadam_g_coefficient(lr, step, beta1, beta2) for step, lr in pairs]
    corrected_eps = [eps * sqrt(bias_correction2(step, beta2)) for step in steps]
    corrected_eps_root = [eps_root * bias_correction2(step, beta2) for step in steps]
    betas = beta1, 1.0 - beta1, beta2, 1.0 - beta2
    return *common_scalars(rates, **common), of_m, *betas, of_g, corrected_eps, corrected_eps_root


def nadam_eps_root_at_step(step, lr, h):
    _, beta1, one_minus_beta1, beta2, one_minus_beta2, _, eps, eps_root = h
    of_m, of_g = nadam_m_coefficient(lr, step, beta1, beta2), nadam_g_coefficient(lr, step, beta1, beta2)
    correction2 = bias_correction2(step, beta2)
    eps, eps_root = eps * sqrt(correction2), eps_root * correction2
    return of_m, beta1, one_minus_beta1, beta2, one_minus_beta2, of_g, eps, eps_root


def scheduled_beta1(step, beta1, momentum_decay):
    return beta1 * (1.0 - 0.5 * 0.96 ** (step * momentum_decay))


@lru_cache(maxsize=8)
def mu_products(beta1, momentum_decay):
    """The products of the first 0, 1, 2, ... scheduled beta1, as long as they change 1 - product."""
    products = [1.0]
    while products[-1] > 2.0**-60:
        products.append(products[-1] * scheduled_beta1(len(products), beta1, momentum_decay))
    return products


def mu_product(step, beta1, momentum_decay):
    products = mu_products(beta1, momentum_decay)
    return products[min(step, len(products) - 1)]


def nadam_own(step, lr, product, h):
    """The own scalars; the correction of v is in the coefficients and in eps, which saves an operation."""
    _, beta1, one_minus_beta1, beta2, one_minus_beta2, _, eps, momentum_decay = h
    mu, next_mu = scheduled_beta1(step, beta1, momentum_decay), scheduled_beta1(step + 1, beta1, momentum_decay)
    correction = sqrt(1.0 - beta2**step)
    of_m = lr * next_mu / (1.0 - product * next_mu) * correction
    of_g = lr * (1.0 - mu) / (1.0 - product) * correction
    return of_m, beta1, one_minus_beta1, beta2, one_minus_beta2, of_g, eps * correction, momentum_decay


def nadam_at_step(step, lr, h):
    product, k = 1.0, 0.0
    while k < step and product > 2.0**-60:  # as `mu_products`
        k += 1.0
        product *= scheduled_beta1(k, h[1], h[7])
    return nadam_own(step, lr, product, h)


def nadam_scalars(steps, rates, beta1, beta2, eps, momentum_decay, decoupled_weight_decay, **common):
    limit = (0.0, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 0.0, eps, momentum_decay)
    pairs = zip(steps, rates, strict=True)
    own = [nadam_own(step, lr, mu_product(step, beta1, momentum_decay), limit) for step, lr in pairs]
    return *common_scalars(rates, decoupled=decoupled_weight_decay, **common), *map(list, zip(*own, strict=True))


# ---------------------------------------------------------------- rows

_ADAM = rule_options(1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
_ADAMW = {**_ADAM, "weight_decay": 1e-2}
_ADAM_HAT = {**_ADAM, "eps": 1e-7, "decoupled": True}
_EPS_ROOT = {**_ADAM, "eps_root": 0.0}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_WITH_MAX = (*_MOMENTS, "max_exp_avg_sq")
_REDDI = "Reddi, Kale & Kumar 2018, algorithm 2"

OPTIMIZERS = {
    "adam": Optimizer(adam, _MOMENTS, adam_scalars, adam_at_step, _ADAM, "Kingma & Ba 2015, algorithm 1; torch's form"),
    "amsgrad": Optimizer(amsgrad, _WITH_MAX, adam_scalars, adam_at_step, _ADAM, f"{_REDDI}; torch's form"),
    "adamw": Optimizer(adam, _MOMENTS, adamw_scalars, adam_at_step, _ADAMW, "Loshchilov & Hutter 2019; torch's form"),
    "adamw_amsgrad": Optimizer(
        amsgrad, _WITH_MAX, adamw_scalars, adam_at_step, _ADAMW, f"{_REDDI}; torch's form, decoupled decay"
    ),
    "adam_hat": Optimizer(
        adam,
        _MOMENTS,
        adam_hat_scalars,
        adam_hat_at_step,
        _ADAM_HAT,
        "Kingma & Ba 2015, end of section 2; Keras's and scikit-learn's form",
    ),
    "amsgrad_hat": Optimizer(
        amsgrad, _WITH_MAX, adam_hat_scalars, adam_hat_at_step, _ADAM_HAT, f"{_REDDI}; Keras's form"
    ),
    "adam_eps_root": Optimizer(
        adam_eps_root,
        _MOMENTS,
        adam_eps_root_scalars,
        adam_eps_root_at_step,
        {**_EPS_ROOT, "decoupled": False},
        "Kingma & Ba 2015, algorithm 1; optax's form",
    ),
    "nadam_eps_root": Optimizer(
        nadam_eps_root,
        _MOMENTS,
        nadam_eps_root_scalars,
        nadam_eps_root_at_step,
        {**_EPS_ROOT, "decoupled": False},
        "Dozat 2016, algorithm 2, without its factor beta2 of the second moment; optax's form",
    ),
    "amsgrad_eps_root": Optimizer(
        amsgrad_eps_root,
        _WITH_MAX,
        adam_eps_root_scalars,
        adam_eps_root_at_step,
        _EPS_ROOT,
        f"{_REDDI}; optax's form",
    ),
    "nadam": Optimizer(
        nadam,
        _MOMENTS,
        nadam_scalars,
        nadam_at_step,
        {**_ADAM, "lr": 2e-3, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
        "Dozat 2016, algorithm 2; torch's form",
    ),
}

_NO_EPS_ROOT = {"eps_root": "", "nesterov": "Adam has it in the convention optax, and so has AdamW"}


def _adam_variant(hyper):
    if hyper.get("decoupled_weight_decay"):  # torch's Adam may have it
        return _adamw_variant(hyper)
    if hyper.get("nesterov"):
        return "nadam" + "_amsgrad" * hyper["amsgrad"]
    return "amsgrad" if hyper["amsgrad"] else "adam"


def _adamw_variant(hyper):
    return "n" * hyper.get("nesterov", False) + "adamw" + "_amsgrad" * bool(hyper["amsgrad"])


ADAM = OptimizerClass(
    "Adam",
    {"lr": None, "betas": (0.9, 0.999), "eps": None, "weight_decay": 0.0, "amsgrad": False},
    """Adam: running means of the gradient and of its square, corrected for their start at zero.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.""",
    {
        "torch": Convention(
            "torch.optim.Adam",
            same("adam", "amsgrad", "adamw", "adamw_amsgrad"),
            {"lr": 1e-3, "eps": 1e-8},
            lacks=_NO_EPS_ROOT,
        ),
        "keras": Convention(
            "keras.optimizers.Adam",
            {"adam": "adam_hat", "amsgrad": "amsgrad_hat"},
            {"lr": 1e-3, "eps": 1e-7},
            decoupled=True,
            lacks=_NO_EPS_ROOT,
        ),
        "optax": Convention(
            "optax.adam",
            {"adam": "adam_eps_root", "amsgrad": "amsgrad_eps_root", "nadam": "nadam_eps_root"},
            {"eps": 1e-8},
        ),
        "sklearn": Convention(
            "scikit-learn's solver adam", {"adam": "adam_hat"}, {"lr": 1e-3, "eps": 1e-8}, lacks=_NO_EPS_ROOT
        ),
    },
    variant=_adam_variant,
    keywords={"eps_root": 0.0, "nesterov": False},
    options={
        "amsgrad": Option(FLAG, "divide by the largest second moment so far.", "bool"),
        "eps_root": Option(POSITIVE, "optax's second eps, inside the root, at least 0."),
        "nesterov": Option(
            FLAG, "optax's Adam with Nesterov's momentum, not with amsgrad; see `fastopt.conventions`.", "bool"
        ),
    },
    decoupled=False,
)

ADAMW = OptimizerClass(
    "AdamW",
    {**ADAM.arguments, "weight_decay": None},
    """AdamW: Adam with decoupled weight decay, which scales the parameter first and does not enter the moments.

        p = p (1 - lr weight_decay);  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.""",
    {
        "torch": Convention(
            "torch.optim.AdamW",
            same("adamw", "adamw_amsgrad"),
            {"lr": 1e-3, "eps": 1e-8, "weight_decay": 1e-2},
            lacks=_NO_EPS_ROOT,
        ),
        "keras": Convention(
            "keras.optimizers.AdamW",
            {"adamw": "adam_hat", "adamw_amsgrad": "amsgrad_hat"},
            {"lr": 1e-3, "eps": 1e-7, "weight_decay": 4e-3},
            decoupled=True,
            lacks=_NO_EPS_ROOT,
        ),
        "optax": Convention(
            "optax.adamw",
            {"adamw": "adam_eps_root", "nadamw": "nadam_eps_root"},
            {"eps": 1e-8, "weight_decay": 1e-4},
            decoupled=True,
        ),
    },
    variant=_adamw_variant,
    example=("lr=0.5, weight_decay=0.1", (0.45, 2.4)),
    keywords=ADAM.keywords,
    options=ADAM.options,
    base="Adam",
    decoupled=True,
    no_rows="AdamW's weight decay is for all rows in every step; SGD, Adagrad and Adam take rows",
)

_ARGUMENTS = {"lr": None, "betas": (0.9, 0.999), "eps": None, "weight_decay": 0.0}

NADAM = OptimizerClass(
    "NAdam",
    {**_ARGUMENTS, "momentum_decay": None, "decoupled_weight_decay": None},
    """NAdam: Adam with Nesterov's look-ahead, by a momentum that grows to beta1.

        mu(k) = beta1 (1 - 0.96^(k momentum_decay) / 2);  M = mu(1) ... mu(step);  m, v: as Adam's
        d = mu(step + 1) m / (1 - M mu(step + 1)) + (1 - mu(step)) g / (1 - M)
        p = p - lr d / (sqrt(v / (1 - beta2^step)) + eps)""",
    {
        "torch": Convention(
            "torch.optim.NAdam",
            row("nadam"),
            {"lr": 2e-3, "eps": 1e-8, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
        ),
        "keras": Convention(
            "keras.optimizers.Nadam",
            row("nadam"),
            {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decoupled_weight_decay": True},
            lacks={"momentum_decay": "", "decoupled_weight_decay": "its weight decay is always decoupled"},
        ),
    },
    example=("lr=0.5, betas=(0.0, 0.999)", (0.5, 2.5)),
    options={
        "momentum_decay": Option(POSITIVE, "of the momentum's growth, at least 0."),
        "decoupled_weight_decay": Option(FLAG, "weight decay as in AdamW.", "bool"),
    },
    no_rows="NAdam has no form for some rows, here as in torch; SGD, Adagrad and Adam have",
    derived={"mu_product": lambda step, hyper: mu_product(step, hyper["betas"][0], hyper["momentum_decay"])},
)

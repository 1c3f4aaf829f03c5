"""Machine code of users' formulas, for two compute capabilities: no device is needed for that."""

from __future__ import annotations

import math
import re

import pytest
from helpers_cuda import require_compiler

require_compiler()
import fastopt as fo
from fastopt.kernels.cuda.dense.epilogues import activate_kernel, slopes_kernel
from fastopt.kernels.cuda.dense.losses import loss_kernel
from fastopt.kernels.cuda.optim.updates import update_kernel

CAPABILITIES = [(8, 0), (9, 0)]


def value(z):
    return math.log1p(z * z) * math.tanh(z) + math.sqrt(abs(z)) ** 3


def cost(z, t, width):
    return width * math.log(math.cosh((z - t) / width))


def update(p, g, s, lr, step, beta, eps):
    v = beta * s[0] + (1 - beta) * g * g
    return p - lr * g / (math.sqrt(v / (1 - beta**step)) + eps), v


@pytest.fixture
def keys():
    activation = fo.Activation.define("code", value, value, check=False)
    loss = fo.Loss.define("code", cost, lambda z, t, width: math.tanh((z - t) / width), {"width": 1.5})
    rule = fo.OptimizerRule.define("Code", update, ["v"], {"beta": 0.9, "eps": 1e-8})
    of_labels = fo.Loss.define("root", lambda log_p: 1 - math.exp(log_p / 2), lambda log_p: -math.exp(log_p / 2) / 2,
                               targets="labels")  # fmt: skip
    return fo.Dense(1, activation).activation_key(), loss().spec.name, rule().rule, of_labels().spec.name


KERNELS = {
    "activation": lambda keys: activate_kernel(keys[0], "float32", True),
    "slope": lambda keys: slopes_kernel(keys[0], "float32", True),
    "loss": lambda keys: loss_kernel(keys[1], "float32", True),
    "loss of labels": lambda keys: loss_kernel(keys[3], "float32"),
    "update": lambda keys: update_kernel(keys[2], "float32"),
    "bfloat16 update": lambda keys: update_kernel(keys[2], "bfloat16", "master"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_machine_code(name, keys):
    kernel = KERNELS[name](keys)
    for capability in CAPABILITIES:
        listing = kernel.listing(capability)
        assert 0 < listing.registers <= 104
        if name != "loss of labels":  # 16 bytes at once
            assert "ld.global.v4" in listing.ptx or "ld.global.nc.v4" in listing.ptx
        if "update" in name:  # its arithmetic is that of the CPU: nothing is contracted, nothing is wider
            assert listing.local_bytes == 0
            assert not re.findall(r"\bfma\.|\.ftz|\.approx|\.f64", listing.ptx)
        if name == "activation":  # literals take the type of the numbers
            assert ".f64" not in listing.ptx

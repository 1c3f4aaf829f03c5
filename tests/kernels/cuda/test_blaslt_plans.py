"""Plans of dense layers on cuBLASLt, carried out by a simulation of it, against the float64 reference."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_products import Rows, assert_close, rounded
from hypothesis import given, settings

from fastopt.kernels import reference
from fastopt.kernels.cuda.dense import products
from fastopt.kernels.cuda.dense.blaslt import Compute, DataType, Epilogue
from fastopt.kernels.cuda.dense.blaslt_simulator import matmul
from fastopt.kernels.cuda.dense.products import (
    APPLIED,
    Layer,
    aux_stride,
    exact_activations,
    known,
    mask_stride,
    padded,
    plan_backward,
    plan_forward,
    plan_network,
)
from fastopt.kernels.formulas import ACTIVATIONS
from fastopt.kernels.spec import DenseSpec, DropoutSpec

KINDS = ["float32", "float64", "float16", "bfloat16"]
SIZES = [(1, 1, 1), (2, 3, 5), (5, 1, 1), (1, 7, 8), (4, 8, 16), (33, 17, 65), (9, 5, 130), (3, 129, 2)]
EVERY, NONE = frozenset(APPLIED), frozenset()
# Those that are tried with every activation; two of them in a quick run, one of 32 bits and one of 16.
OFTEN = [k if k in ("float32", "bfloat16") else pytest.param(k, marks=pytest.mark.repeats) for k in KINDS]


def activated(name, z):
    y = np.empty_like(z)
    reference.activate(name, z, y)
    return y


def slope(name, s):
    return reference.ACTIVATIONS[name].slope(s) if name != "linear" else np.ones_like(s)


def mask_rows(layer):
    return Rows(layer.rows, mask_stride(layer.outputs) // 8, "uint8")


def forward(plan, layer, activation, x, w, b):
    """Arrays that the device makes by a plan: y, z or None, the mask or None."""
    y = Rows(layer.rows, layer.outputs, layer.dtype, layer.y.stride)
    z = Rows(layer.rows, layer.outputs, layer.dtype, layer.y.stride)
    mask, into = mask_rows(layer), {"y": y, "z": z}[plan.into]
    aux = {"": 0, "mask": mask.address, "z": z.address}[plan.aux]
    bias = b.address if plan.product.has(products.BIAS) else 0
    matmul(plan.product, w.address, x.address, into.address, bias, aux)
    if plan.activate:
        values = into.numbers() + (0 if bias or b is None else b.numbers())
        values = rounded(values, layer.dtype)
        if into is z:
            z.view[...] = Rows(*z.shape, z.kind, 0, values).view
        y.view[...] = Rows(*y.shape, y.kind, 0, activated(activation, values)).view
    assert y.untouched()
    assert z.untouched()
    return y, z if plan.into == "z" or plan.aux == "z" else None, mask if plan.aux == "mask" else None


def operands(rng, layer, bias):
    """x, w and b in memory."""
    x = Rows(layer.rows, layer.inputs, layer.dtype, layer.x.stride, rng.standard_normal((layer.rows, layer.inputs)))
    w = rng.standard_normal((layer.inputs, layer.outputs)) / np.sqrt(layer.inputs)
    b = Rows(1, layer.outputs, layer.dtype, 0, rng.standard_normal((1, layer.outputs))) if bias else None
    return x, Rows(layer.inputs, layer.outputs, layer.dtype, 0, w), b


def check_forward(layer, activation, bias, keep, fused, supported=known):
    rng = np.random.default_rng(layer.rows + layer.outputs)
    x, w, b = operands(rng, layer, bias)
    plan = plan_forward(layer, activation, bias, keep, fused, supported)
    y, z, mask = forward(plan, layer, activation, x, w, b)
    Z = x.numbers() @ w.numbers() + (b.numbers() if bias else 0)
    sizes = np.abs(x.numbers()) @ np.abs(w.numbers()) + (np.abs(b.numbers()) if bias else 0)
    kind = "tf32" if plan.product.compute == Compute.C_32F_FAST_TF32 else layer.dtype
    assert_close(y.numbers(), activated(activation, Z), kind, sizes)
    assert (z is not None) == (keep == "z")
    if z is not None:
        assert_close(z.numbers(), Z, kind, sizes)
    assert (mask is not None) == (keep == "mask")
    if mask is not None:
        ones = np.unpackbits(mask.view, axis=1, bitorder="little")[:, : layer.outputs]
        np.testing.assert_array_equal(ones.astype(bool), y.numbers() > 0)
    return plan


@pytest.mark.parametrize("kind", OFTEN)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward(activation, kind):
    for sizes, bias, keep, fused, gaps in itertools.product(
        SIZES, (True, False), ("", "z"), (EVERY, NONE, None), (True, False)
    ):
        rows, inputs, outputs = sizes
        strides = (padded(inputs), padded(outputs)) if gaps else (0, 0)
        layer = Layer(rows, inputs, outputs, kind, False, *strides)
        plan = check_forward(layer, activation, bias, keep, fused)
        chosen = exact_activations(kind) if fused is None else fused
        possible = activation in chosen and keep in ("", "z" if activation == "gelu_tanh" else "")
        possible = possible and (not keep or layer.y.stride % 8 == 0)
        if activation != "linear":
            assert plan.activate == (not possible)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_relu(kind):
    for (rows, inputs, outputs), bias in itertools.product(SIZES, (True, False)):
        plan = check_forward(Layer(rows, inputs, outputs, kind), "relu", bias, "mask", EVERY)
        assert plan.product.epilogue == (Epilogue.RELU_AUX_BIAS if bias else Epilogue.RELU_AUX)
        assert plan.product.aux_stride % 128 == 0
        assert outputs <= plan.product.aux_stride < outputs + 128


def test_what_epilogues_are_chosen():
    layer = Layer(4, 8, 16, "bfloat16")
    names = {
        (activation, bias, keep): plan_forward(layer, activation, bias, keep, EVERY).product.epilogue.name
        for activation, bias, keep in itertools.product(
            ("linear", "relu", "gelu_tanh", "tanh"), (True, False), ("", "z")
        )
    }
    assert names == {
        ("linear", True, ""): "BIAS", ("linear", False, ""): "DEFAULT",
        ("linear", True, "z"): "BIAS", ("linear", False, "z"): "DEFAULT",
        ("relu", True, ""): "RELU_BIAS", ("relu", False, ""): "RELU",
        ("relu", True, "z"): "BIAS", ("relu", False, "z"): "DEFAULT",
        ("gelu_tanh", True, ""): "GELU_BIAS", ("gelu_tanh", False, ""): "GELU",
        ("gelu_tanh", True, "z"): "GELU_AUX_BIAS", ("gelu_tanh", False, "z"): "GELU_AUX",
        ("tanh", True, ""): "BIAS", ("tanh", False, ""): "DEFAULT",
        ("tanh", True, "z"): "BIAS", ("tanh", False, "z"): "DEFAULT",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_library_has_no_epilogue_at_all(kind):
    def plain(product):
        return product.epilogue == Epilogue.DEFAULT

    for activation, bias in itertools.product(ACTIVATIONS, (True, False)):
        plan = check_forward(Layer(5, 7, 8, kind), activation, bias, "", EVERY, plain)
        assert plan.product.epilogue == Epilogue.DEFAULT
        assert plan.activate == (bias or activation != "linear")
    with pytest.raises(ValueError, match="no epilogue leaves the mask of relu in"):
        plan_forward(Layer(5, 7, 8, kind), "relu", True, "mask", EVERY, plain)


def test_only_exact_activations_are_epilogues_unless_asked():
    for kind in KINDS:
        epilogue = plan_forward(Layer(4, 8, 16, kind), "relu", True).product.epilogue
        assert epilogue == Epilogue.BIAS
        epilogue = plan_forward(Layer(4, 8, 16, kind), "gelu_tanh", True).product.epilogue
        assert epilogue == (Epilogue.GELU_BIAS if kind in ("float16", "bfloat16") else Epilogue.BIAS)


def test_relu_as_an_epilogue_hides_nan():
    """The reason why it is not the default; our own kernel keeps NaN."""
    layer = Layer(1, 2, 3, "float32")
    x, w = Rows(1, 2, "float32", 0, np.array([[np.nan, 1]])), Rows(2, 3, "float32", 0, np.ones((2, 3)))
    y, _, _ = forward(plan_forward(layer, "relu", False, "", EVERY), layer, "relu", x, w, None)
    np.testing.assert_array_equal(y.numbers(), 0)
    y, _, _ = forward(plan_forward(layer, "relu", False), layer, "relu", x, w, None)
    assert np.isnan(y.numbers()).all()


# ---------------------------------------------------------------- types
@pytest.mark.parametrize(
    ("kind", "tf32", "compute", "scale"),
    [
        ("float32", False, Compute.C_32F, DataType.R_32F),
        ("float32", True, Compute.C_32F_FAST_TF32, DataType.R_32F),
        ("float64", False, Compute.C_64F, DataType.R_64F),
        ("float64", True, Compute.C_64F, DataType.R_64F),
        ("float16", True, Compute.C_32F, DataType.R_32F),
        ("bfloat16", False, Compute.C_32F, DataType.R_32F),
    ],
)
def test_what_is_computed_in(kind, tf32, compute, scale):
    layer = Layer(2, 3, 4, kind, tf32)
    for product in (products.forward_product(layer), products.inputs_product(layer), products.weights_product(layer)):
        assert (product.compute, product.scale) == (compute, scale)


def test_tf32_is_less_exact_and_good_enough():
    check_forward(Layer(5, 300, 8, "float32", True), "linear", True, "", None)
    x, w, _ = operands(np.random.default_rng(0), Layer(5, 300, 8, "float32"), False)
    results = []
    for tf32 in (False, True):
        layer = Layer(5, 300, 8, "float32", tf32)
        y, _, _ = forward(plan_forward(layer, "linear", False), layer, "linear", x, w, None)
        results.append(np.abs(y.numbers() - x.numbers() @ w.numbers()).max())
    assert results[0] < 1e-5 < results[1]


def test_alignment():
    assert [products.alignment(a) for a in (0, 256, 512, 4096 + 16, 4096 + 2, 1 << 40)] == [256, 256, 256, 16, 2, 256]
    for kind, columns, whole in [("float32", 4, 4), ("bfloat16", 8, 8), ("float64", 2, 2)]:
        assert products.forward_product(Layer(3, columns, whole, kind)).aligned
        assert not products.forward_product(Layer(3, columns, whole + 1, kind)).aligned
        assert not products.forward_product(Layer(3, columns + 1, whole, kind)).aligned
        # w has no gaps, so odd outputs stay odd; odd inputs do not matter where x has gaps.
        assert products.forward_product(Layer(3, columns + 1, whole, kind, False, padded(columns + 1))).aligned


# ---------------------------------------------------------------- backward
def backward_operands(rng, layer, activation, bias):
    x, w, b = operands(rng, layer, bias)
    Z = x.numbers() @ w.numbers() + (b.numbers() if bias else 0)
    s = Z if ACTIVATIONS[activation].uses == "z" else activated(activation, Z)
    dy = Rows(layer.rows, layer.outputs, layer.dtype, layer.y.stride, rng.standard_normal(Z.shape))
    return x, w, rounded(s, layer.dtype), dy


def sums(layer, dz):
    return Rows(1, layer.outputs, layer.gradient or layer.dtype, 0, dz.numbers().sum(axis=0, keepdims=True))


def check_backward(layer, activation, wanted, supported=known):
    rng = np.random.default_rng(7 * layer.rows + layer.outputs)
    x, w, s, dy = backward_operands(rng, layer, activation, True)
    plan, kind = plan_backward(layer, activation, *wanted, supported), layer.gradient or layer.dtype
    dz = dy
    if plan.dz == "kernel":
        dz = Rows(*dy.shape, dy.kind, dy.stride, dy.numbers() * slope(activation, s))
    db = sums(layer, dz) if plan.db == "kernel" else Rows(1, layer.outputs, kind)
    dw, dx = Rows(layer.inputs, layer.outputs, kind), Rows(layer.rows, layer.inputs, layer.dtype, layer.x.stride)
    if plan.weights:
        matmul(plan.weights, dz.address, x.address, dw.address, db.address if plan.db == "weights" else 0)
    if plan.inputs:
        matmul(plan.inputs, w.address, dz.address, dx.address)
    expected = [np.empty(dx.shape), np.empty(dw.shape), np.empty(layer.outputs)]
    reference.dense_backward(dy.numbers(), x.numbers(), w.numbers(), s, activation, *expected)
    size = np.abs(dy.numbers() * slope(activation, s))
    sizes = size @ np.abs(w.numbers()).T, np.abs(x.numbers()).T @ size, size.sum(axis=0)
    assert (bool(plan.inputs), bool(plan.weights), bool(plan.db)) == wanted
    ours = [dx, dw, db]
    for mine, other, scale, want in zip(ours, expected, sizes, wanted, strict=True):
        if want:
            assert_close(mine.numbers().reshape(other.shape), other, layer.dtype, scale)
        assert mine.untouched()
    return plan


@pytest.mark.parametrize("kind", OFTEN)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward(activation, kind):
    for (rows, inputs, outputs), gaps in itertools.product(SIZES, (True, False)):
        strides = (padded(inputs), padded(outputs)) if gaps else (0, 0)
        for wanted in itertools.product((True, False), repeat=3):
            plan = check_backward(Layer(rows, inputs, outputs, kind, False, *strides), activation, wanted)
            by_product = activation == "linear" and wanted[1] and wanted[2] and rows > 1 and outputs > 1
            assert plan.db == ("" if not wanted[2] else "weights" if by_product else "kernel")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_gradients_of_weights_in_float32(kind):
    plan = check_backward(Layer(33, 17, 24, kind, gradient="float32"), "linear", (True, True, True))
    assert (plan.weights.result, plan.weights.epilogue) == ("float32", Epilogue.BGRADA)
    assert plan.inputs.result == kind


# ---------------------------------------------------------------- networks
def carried_out(specs, plans, rng):
    """Both passes of a network by its plans; every layer is compared with the reference on the same inputs."""
    first = plans[0].layer
    x = Rows(first.rows, first.inputs, first.dtype, first.x.stride, rng.standard_normal((first.rows, first.inputs)))
    kept = []
    for plan, spec in zip(plans, specs, strict=True):
        layer = plan.layer
        _, w, b = operands(rng, layer, spec.bias)
        y, z, mask = forward(plan.forward, layer, plan.activation, x, w, b)
        Z = x.numbers() @ w.numbers() + (b.numbers() if b else 0)
        sizes = np.abs(x.numbers()) @ np.abs(w.numbers()) + (np.abs(b.numbers()) if b else 0)
        assert_close(y.numbers(), activated(plan.activation, Z), layer.dtype, sizes)
        kept.append((x, w, z if ACTIVATIONS[plan.activation].uses == "z" else y, mask))
        x = y
    last = plans[-1].layer
    dy = Rows(last.rows, last.outputs, last.dtype, last.y.stride, rng.standard_normal((last.rows, last.outputs)))
    finished, db_above = False, None
    for i in reversed(range(len(plans))):
        plan, (x, w, s, _), layer = plans[i], kept[i], plans[i].layer
        assert (plan.backward.dz == "above") == finished
        dz = dy
        if plan.backward.dz == "kernel":
            dz = Rows(*dy.shape, dy.kind, dy.stride, dy.numbers() * slope(plan.activation, s.numbers()))
        kind = layer.gradient or layer.dtype
        db = db_above or (sums(layer, dz) if plan.backward.db == "kernel" else Rows(1, layer.outputs, kind))
        dw = Rows(layer.inputs, layer.outputs, kind)
        matmul(
            plan.backward.weights, dz.address, x.address, dw.address, db.address if plan.backward.db == "weights" else 0
        )
        size = np.abs(dz.numbers())
        assert_close(dw.numbers(), x.numbers().T @ dz.numbers(), layer.dtype, np.abs(x.numbers()).T @ size)
        assert bool(plan.backward.db) == specs[i].bias
        if specs[i].bias:
            # BGRAD sums before dz is rounded: off by up to a rounding for each row.
            assert_close(db.numbers()[0], dz.numbers().sum(axis=0), layer.dtype, size.sum(axis=0))
            assert db.untouched()
        product, db_above = plan.backward.inputs, None
        assert (product is None) == (i == 0)
        if product is None:
            continue
        below, (_, _, s_below, mask_below) = plans[i - 1], kept[i - 1]
        dx = Rows(layer.rows, layer.inputs, layer.dtype, layer.x.stride)
        finished = product.epilogue != Epilogue.DEFAULT
        aux = 0 if not finished else (mask_below or s_below).address
        if product.has(products.BGRAD):
            db_above = Rows(1, layer.inputs, layer.dtype)
        matmul(product, w.address, dz.address, dx.address, db_above.address if db_above else 0, aux)
        expected = dz.numbers() @ w.numbers().T
        if finished:
            expected = expected * slope(below.activation, s_below.numbers())
        assert_close(dx.numbers(), expected, layer.dtype, size @ np.abs(w.numbers()).T)
        assert dx.untouched()
        dy = dx


@pytest.mark.parametrize("kind", OFTEN)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks(activation, kind):
    for rows, bias, fused, last in itertools.product((1, 6, 33), (True, False), (EVERY, NONE, None), (1, 10)):
        specs = [DenseSpec(13, 24, activation, bias), DenseSpec(24, 7, activation, bias), DenseSpec(7, last)]
        carried_out(specs, plan_network(specs, rows, kind, fused=fused), np.random.default_rng(rows))


LAYERS = st.tuples(st.integers(1, 40), st.sampled_from([*ACTIVATIONS, *APPLIED]), st.booleans())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_networks(data):
    widths = data.draw(st.lists(LAYERS, min_size=1, max_size=4))
    inputs = [data.draw(st.integers(1, 40)), *(width for width, _, _ in widths)]
    specs = [DenseSpec(n, *rest) for n, rest in zip(inputs, widths, strict=False)]
    missing = data.draw(st.sets(st.sampled_from([e for e in Epilogue if e != Epilogue.DEFAULT])))
    kind, rows = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 40))
    fused = data.draw(st.sampled_from([EVERY, NONE, None]))
    gradient = data.draw(st.sampled_from(["", "float32"])) if kind in ("float16", "bfloat16") else ""

    def supported(product):
        return known(product) and product.epilogue not in missing

    plans = plan_network(specs, rows, kind, False, gradient, fused, supported)
    for plan in plans:
        for product in (plan.forward.product, plan.backward.weights, plan.backward.inputs):
            assert product is None or supported(product)
    carried_out(specs, plans, np.random.default_rng(data.draw(st.integers(0, 2**32))))


def chosen(specs, kind="bfloat16", **options):
    """The names of the epilogues of forward, inputs and weights, and where dz and db come from, layer by layer."""
    plans = plan_network(specs, 64, kind, **{"fused": EVERY, **options})
    return [
        (
            p.forward.product.epilogue.name,
            p.backward.inputs.epilogue.name if p.backward.inputs else None,
            p.backward.weights.epilogue.name,
            p.backward.dz,
            p.backward.db,
        )
        for p in plans
    ]


def test_what_is_chosen_for_a_network():
    specs = [DenseSpec(784, 256, "relu"), DenseSpec(256, 128, "gelu_tanh"), DenseSpec(128, 10)]
    assert chosen(specs) == [
        ("RELU_AUX_BIAS", None, "DEFAULT", "above", "above"),
        ("GELU_AUX_BIAS", "DRELU_BGRAD", "DEFAULT", "above", "above"),
        ("BIAS", "DGELU_BGRAD", "BGRADA", "dy", "weights"),
    ]
    assert chosen(specs, fused=None) == [
        ("BIAS", None, "DEFAULT", "kernel", "kernel"),
        ("GELU_AUX_BIAS", "DEFAULT", "DEFAULT", "above", "above"),
        ("BIAS", "DGELU_BGRAD", "BGRADA", "dy", "weights"),
    ]
    assert chosen(specs, gradient="float32")[0] == ("RELU_AUX_BIAS", None, "BGRADA", "above", "weights")


def test_outputs_of_another_dtype():
    """Those of the last layer alone, and its activation is then as exact as they are."""
    specs = [DenseSpec(784, 256, "gelu_tanh"), DenseSpec(256, 10, "gelu_tanh")]
    plans = plan_network(specs, 64, "bfloat16", gradient="float32", output="float32")
    assert [(p.forward.product.dtype, p.forward.product.result) for p in plans] == [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
    ]
    assert {p.backward.weights.result for p in plans} == {"float32"}
    assert plans[1].backward.inputs.result == "bfloat16"
    assert [p.forward.product.epilogue.name for p in plans] == ["GELU_AUX_BIAS", "BIAS"]
    assert (plans[1].forward.into, plans[1].forward.activate, plans[1].backward.dz) == ("z", True, "kernel")


def test_nothing_is_fused_across_dropout():
    specs = [DenseSpec(784, 256, "relu"), DropoutSpec(0.5), DenseSpec(256, 10)]
    assert chosen(specs) == [
        ("RELU_BIAS", None, "DEFAULT", "kernel", "kernel"),
        ("BIAS", "DEFAULT", "BGRADA", "dy", "weights"),
    ]


def test_sums_of_one_term_have_no_slope():
    """One output: the layer below has to take its slope itself, and leaves no mask."""
    assert chosen([DenseSpec(9, 16, "relu"), DenseSpec(16, 1)]) == [
        ("RELU_BIAS", None, "DEFAULT", "kernel", "kernel"),
        ("BIAS", "DEFAULT", "DEFAULT", "dy", "kernel"),
    ]


def test_a_plan_is_data():
    specs = [DenseSpec(784, 256, "relu"), DenseSpec(256, 10)]
    one, other = plan_network(specs, 64, "float32"), plan_network(specs, 64, "float32")
    assert one == other
    assert len({plan.forward.product for plan in one + other}) == 2
    with pytest.raises(AttributeError):
        one[0].forward.product.epilogue = Epilogue.RELU


def test_strides_of_what_is_left_for_slopes():
    layer = Layer(3, 4, 130, "float32", y_stride=136)
    assert (aux_stride(layer, "relu"), aux_stride(layer, "gelu_tanh")) == (256, 136)
    assert [padded(n) for n in (1, 8, 9)] == [8, 8, 16]


# ---------------------------------------------------------------- the simulation
def test_the_simulation_refuses_what_the_library_does():
    layer = Layer(4, 1, 8, "float32")
    x, w, b = operands(np.random.default_rng(0), layer, True)
    y, mask = Rows(4, 8, "float32"), mask_rows(layer)
    places = w.address, x.address, y.address, b.address
    good = products.forward_product(layer, Epilogue.RELU_AUX_BIAS, 128)
    matmul(good, *places, mask.address)
    for wrong, said in [
        (good._replace(aux_stride=64), "mask's column of 64 bits"),
        (good._replace(d=good.d._replace(stride=7)), "columns of 8 elements lie 7 apart"),
        (good._replace(transpose_a=True), "times"),
        (good._replace(epilogue=Epilogue.DRELU), "DRELU of sums of one term"),
        (good._replace(epilogue=Epilogue.GELU_AUX, aux_stride=9), "inputs lie 9 apart"),
    ]:
        with pytest.raises(ValueError, match=said):
            matmul(wrong, *places, mask.address)
    with pytest.raises(ValueError, match="a mask at"):
        matmul(good, *places, mask.address + 8)


def test_the_simulation_scales_and_adds():
    layer = Layer(4, 3, 8, "float32")
    x, w, _ = operands(np.random.default_rng(0), layer, False)
    y = Rows(4, 8, "float32", 0, np.ones((4, 8)))
    matmul(products.forward_product(layer), w.address, x.address, y.address, alpha=0.5, beta=2.0)
    np.testing.assert_allclose(y.numbers(), 0.5 * x.numbers() @ w.numbers() + 2, rtol=1e-5)


def test_bfloat16_is_rounded_to_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -np.inf, 3.4e38, 1e-40])
    np.testing.assert_array_equal(rounded(values, "bfloat16")[:5], [1.0, 1.0, 1 + 2**-6, -np.inf, np.inf])
    assert np.isnan(rounded(np.array([np.nan]), "bfloat16")).all()

"""Models for tests of exports, each with something that an export must not lose, and rows for them."""

import numpy as np
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas import ACTIVATIONS

INPUTS = 5


def rows(count=9, seed=0):
    """Rows far from 0, in float32, on which the order of subtraction and rounding shows."""
    return (100 + 3 * np.random.default_rng(seed).normal(size=(count, INPUTS))).astype(np.float32)


def drawn(model, seed=7):
    """The model with all weights drawn anew, variances positive, so that none is at its default."""
    rng = np.random.default_rng(seed)
    names = [name for layer in model.layers for name in getattr(layer, "arrays", ())]
    arrays = [rng.normal(size=p.shape) for p in model.parameters]
    pairs = zip(names, arrays, strict=True)
    model.set_weights([np.abs(a) + 0.5 if name == "moving_variance" else a for name, a in pairs])
    return model


def plain(*layers, dtype="float32"):
    """A built model on the reference with weights that are drawn."""
    return drawn(fo.Sequential(layers, backend="numpy", dtype=dtype, inputs=INPUTS))


def with_activation(name, dtype="float32"):
    """Everything that a prediction may hold, with an activation in each place for one."""
    return plain(
        fo.Normalization(mean=[100.0, 101, 99, 100, 98], variance=[9.0, 4, 9, 1, 0]),
        fo.Rescaling(0.5, offset=np.arange(INPUTS)),
        fo.GaussianNoise(0.1),
        fo.Dense(7, name),
        fo.BatchNorm(epsilon=0.01, momentum=0.9),
        fo.Dropout(0.2),
        fo.Dense(6, use_bias=False),
        fo.LayerNorm(epsilon=1e-5),
        fo.Activation(name),
        fo.Dense(3, name),
        dtype=dtype,
    )


def regression(dtype="float32"):
    """A model whose outputs are in the units of standardized targets."""
    model = plain(fo.Rescaling(0.01), fo.Dense(4, "tanh"), fo.Dense(2), dtype=dtype)
    model.target_scale = ([1000.0, -3.0], [50.0, 0.1])
    return model


def averaged(dtype="float32"):
    """A model that has an average over steps beside its weights."""
    model = plain(fo.Rescaling(0.01), fo.Dense(4, "relu"), fo.Dense(2), dtype=dtype)
    model.compile("sgd", "mean_squared_error", ema=fo.EMA(0.9))
    model.set_weights([2 * w for w in model.get_weights()], model.get_weights())
    return model


def normalized(norm, center, scale, dtype="float32"):
    """A model with a normalization that has only some of its parts."""
    return plain(fo.Rescaling(0.01), fo.Dense(4), norm(center=center, scale=scale), fo.Dense(2), dtype=dtype)


CLASSIFIERS = {
    "softmax": ("sparse_categorical_crossentropy", "softmax", 3),
    "logits": ("sparse_categorical_crossentropy", "linear", 3),
    "softmax of two": ("sparse_categorical_crossentropy", "softmax", 2),
    "sigmoid": ("binary_crossentropy", "sigmoid", 1),
    "one logit": ("binary_crossentropy", "linear", 1),
    "scores": ("hinge", "linear", 1),
    "yes or no each": ("binary_crossentropy", "sigmoid", 4),
}


def classifier(name, classes=None, dtype="float32", prepares=True):
    """A compiled model of classes, whose labels may be given; one that prepares nothing is for `rows() - 100`."""
    loss, activation, outputs = CLASSIFIERS[name]
    front = [fo.Normalization(mean=100.0, variance=9.0)] * prepares
    model = plain(*front, fo.Dense(6, "tanh"), fo.Dense(outputs, activation), dtype=dtype)
    model.compile("sgd", loss)
    if classes is not None:
        model.classes = classes
    return model


MODELS = {
    **{f"with {name}": lambda dtype, name=name: with_activation(name, dtype) for name in ACTIVATIONS},
    "regression": regression,
    "averaged": averaged,
    "softmax": lambda dtype: classifier("softmax", dtype=dtype),
    **{
        f"{norm.__name__} center={center} scale={scale}": lambda dtype, parts=(norm, center, scale): normalized(
            *parts, dtype
        )
        for norm in (fo.LayerNorm, fo.BatchNorm)
        for center, scale in ((True, False), (False, True), (False, False))
    },
}


def assert_close(found, wanted):
    """Outputs agree to a few roundings of the largest one, and have one dtype."""
    assert found.dtype == wanted.dtype
    eps = np.finfo(wanted.dtype).eps
    np.testing.assert_allclose(found, wanted, rtol=64 * eps, atol=64 * eps * np.abs(wanted).max())


@st.composite
def mixes(draw):
    """Models in float64 of any layers in any order."""
    names, flags = st.sampled_from(sorted(ACTIVATIONS)), st.booleans()
    classes = st.sampled_from([fo.LayerNorm, fo.BatchNorm])
    norms = st.builds(lambda cls, center, scale: cls(center=center, scale=scale), classes, flags, flags)
    inner = st.one_of(
        st.builds(fo.Dense, st.integers(1, 9), names, flags),
        st.builds(fo.Activation, names),
        st.builds(fo.Dropout, st.just(0.5)),
        st.builds(fo.GaussianNoise, st.just(0.5)),
        norms,
    )
    front = [fo.Normalization(mean=100.0, variance=9.0), fo.Rescaling(0.5, offset=np.arange(INPUTS))]
    outputs = draw(st.integers(2, 4))
    last = fo.Dense(outputs, draw(st.sampled_from([*sorted(ACTIVATIONS), "softmax"])), draw(flags))
    layers = front[: draw(st.integers(1, 2))] + draw(st.lists(inner, max_size=4)) + [last]
    model = plain(*layers, dtype="float64")
    if draw(flags):
        model.target_scale = (np.arange(outputs), np.arange(outputs) + 0.5)
    return model


def assert_same_meaning(found, model, x):
    """Outputs agree by far better than float32 would, in float64, however layers enlarge roundings."""
    wanted = model.predict(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7 * np.abs(wanted).max())

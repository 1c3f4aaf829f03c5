"""torch: models to nn.Sequential and back, against torch's own forward pass."""

import io

import numpy as np
import pytest
from helpers_export import INPUTS, MODELS, assert_close, assert_same_meaning, drawn, mixes, plain, regression, rows
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from fastopt.export import from_torch, load_state_dict, to_state_dict, to_torch

torch = pytest.importorskip("torch")
nn = torch.nn


def forward(module, x):
    """Outputs of a module in evaluation mode."""
    with torch.no_grad():
        return module.eval()(torch.tensor(x)).numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_way_there_and_back(name, dtype):
    model = MODELS[name](dtype)
    module = to_torch(model)
    assert not module.training
    assert_close(forward(module, rows()), model.predict(rows()))
    again = from_torch(module)
    assert_close(again.predict(rows()), model.predict(rows()))
    kinds = [type(layer) for layer in model.layers]
    assert [type(layer) for layer in again.layers if not isinstance(layer, fo.Activation)] == [
        kind for kind in kinds if kind is not fo.Activation
    ]


@given(model=mixes(), count=st.integers(1, 4))
def test_mixes_of_layers(model, count):
    module = to_torch(model)
    assert_same_meaning(forward(module, rows(count)), model, rows(count))
    again = from_torch(module)
    again.backend = "numpy"
    assert_same_meaning(again.predict(rows(count)), model, rows(count))


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_both_ways(name):
    model = MODELS[name]("float32")
    other = fo.Sequential(model.layers, backend="numpy", inputs=INPUTS)
    other.target_scale = model.target_scale
    load_state_dict(other, to_state_dict(model))
    used = model.averages or model.parameters
    assert all((a == b).all() for a, b in zip(other.parameters, used, strict=True))
    assert_close(other.predict(rows()), model.predict(rows()))


def test_a_state_dict_of_a_module_of_ones_own():
    """Names say nothing there; the order does."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.norm, self.out = nn.Linear(INPUTS, 4), nn.BatchNorm1d(4, eps=1e-3), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.norm(torch.relu(self.hidden(x))))

    net = Net()
    net(torch.tensor(rows()))  # moves the averages
    model = fo.Sequential([fo.Dense(4, "relu"), fo.BatchNorm(), fo.Dense(2)], backend="numpy", inputs=INPUTS)
    load_state_dict(model, net.state_dict())
    np.testing.assert_allclose(model.predict(rows()), forward(net, rows()), rtol=1e-5, atol=1e-5)


def test_state_dicts_that_do_not_fit():
    model = regression()
    before, state = model.get_weights(), to_state_dict(model)
    wrong = {**state, "1.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"state must have tensors of the shapes \[\(4, 5\), \(4,\)"):
        load_state_dict(model, wrong)
    with pytest.raises(ValueError, match="state must have tensors"):
        load_state_dict(model, {"1.weight": state["1.weight"]})
    with pytest.raises(ValueError, match="state: 0.factor must be the model's own"):
        load_state_dict(model, {**state, "0.factor": torch.ones(INPUTS)})
    with pytest.raises(TypeError, match="state must be a state_dict; got"):
        load_state_dict(model, [1])
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_state_dicts_into_integers_are_refused():
    with pytest.raises(ValueError, match="load_state_dict: the weights of a quantized model are integers"):
        load_state_dict(fo.compress.quantize(plain(fo.Dense(2)), bits=4), to_state_dict(plain(fo.Dense(2))))


def test_tensors_without_real_values_are_refused():
    model = plain(fo.Dense(2))
    before, state = model.get_weights(), to_state_dict(model)
    for wrong, message in (
        (state["0.weight"].to(torch.complex64), "state must have real numbers; 0.weight is of torch.complex64"),
        (state["0.weight"].to("meta"), "state must have real numbers; 0.weight is a tensor without values"),
    ):
        with pytest.raises(ValueError, match=message):
            load_state_dict(model, {**state, "0.weight": wrong})
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    with pytest.raises(ValueError, match=r"module 0 \(Linear\): its weights must have values; got a tensor without"):
        from_torch(nn.Sequential(nn.Linear(3, 2, device="meta")))


def test_what_comes_from_torch():
    module = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU()),
        nn.BatchNorm1d(8, momentum=0.25),
        nn.Dropout(0.3),
        nn.Linear(8, 6, bias=False),
        nn.Identity(),
        nn.GELU(approximate="tanh"),
        nn.LayerNorm(6, bias=False),
        nn.Linear(6, 3),
        nn.Softmax(dim=-1),
    )
    module[4].requires_grad_(False)
    module(torch.randn(20, 2, 2))  # moves the averages
    model = from_torch(module)
    assert repr(model.layers) == (
        "(Dense(8, 'leaky_relu'), BatchNorm(momentum=0.75, epsilon=1e-05), Dropout(0.3), "
        "Dense(6, 'gelu_tanh', use_bias=False, trainable=False), LayerNorm(epsilon=1e-05, center=False), "
        "Dense(3, 'softmax'))"
    )
    x = np.random.default_rng(0).normal(size=(7, 2, 2)).astype(np.float32)
    model.backend = "numpy"
    np.testing.assert_allclose(model.predict(x), forward(module, x), rtol=1e-5, atol=1e-6)
    single = nn.Linear(3, 2, dtype=torch.float64)
    assert from_torch(single).dtype == np.float64


def test_training_goes_on_in_torch():
    """The same step of SGD there and here, and frozen layers stay."""
    model = fo.Sequential(
        [fo.Dense(4, "tanh", trainable=False), fo.Dense(1)], backend="numpy", dtype="float64", inputs=INPUTS
    )
    drawn(model)
    module = to_torch(model)
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    x, y = rows().astype(np.float64) - 100, rows()[:, :1].astype(np.float64)
    model.compile(fo.SGD(lr=0.01), "mean_squared_error")
    model.fit(x, y, batch_size="full", epochs=1)
    loss = (module.train()(torch.tensor(x)) - torch.tensor(y)).square().mean()
    loss.backward()
    with torch.no_grad():  # a step of SGD
        for p in module.parameters():
            p -= 0.01 * (0 if p.grad is None else p.grad)
    assert_close(forward(module, x), model.predict(x))


def test_noise_acts_in_training_alone():
    module = to_torch(plain(fo.GaussianNoise(0.5), fo.Dense(2)))
    x = torch.tensor(rows())
    assert torch.equal(module(x), module(x))
    assert not torch.equal(module.train()(x), module(x))


def test_modules_are_saved_and_loaded():
    module, file = to_torch(regression()), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(torch.tensor(rows())), module(torch.tensor(rows())))
    assert "(x - term)" in str(to_torch(MODELS["with relu"]("float32")))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    part = nn.Linear(2, 2)
    part.register_forward_hook(lambda module, args, output: output + 1)
    return part


def half_trained():
    part = nn.Linear(2, 2)
    part.bias.requires_grad_(False)
    part.weight.requires_grad_(True)
    return part


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: nn.Conv1d(2, 2, 1), r"module 0 \(Conv1d\): fastopt has no layer that computes the same"),
        (lambda: Doubled(2, 2), r"module 0 \(Doubled\)"),
        (lambda: nn.LeakyReLU(0.2), r"module 0 \(LeakyReLU\)"),
        (lambda: nn.ELU(0.5), r"module 0 \(ELU\)"),
        (lambda: nn.Softplus(beta=2), r"module 0 \(Softplus\)"),
        (lambda: nn.Softmax(dim=0), r"module 0 \(Softmax\)"),
        (lambda: nn.LogSoftmax(dim=1), r"module 0 \(LogSoftmax\)"),
        (hooked, "it has hooks"),
        (half_trained, "its parameters must all require gradients, or none of them"),
        (lambda: nn.BatchNorm1d(2, track_running_stats=False), "it must have running averages"),
        (lambda: nn.BatchNorm1d(2, momentum=None), "and a momentum"),
        (lambda: nn.LayerNorm((1, 2)), "normalized_shape must be one number"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), r"module 0 \(Parametrized\w*Linear\)"),
        (lambda: nn.Linear(2, 2, dtype=torch.bfloat16), "weights must be all float32, or all float64; got bfloat16"),
        (lambda: nn.Linear(2, 2, dtype=torch.float64), "got float32, float64"),
    ],
)
def test_modules_without_counterpart_are_named(part, message):
    with pytest.raises(ValueError, match=message):
        from_torch(nn.Sequential(part(), nn.Linear(2, 2)))


def test_orders_without_counterpart():
    whole = nn.Sequential(nn.Linear(2, 2))
    whole.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match=r"module 0 \(Sequential\): it has hooks"):
        from_torch(nn.Sequential(whole))
    with pytest.raises(ValueError, match=r"module 1 \(Dropout\): the last layer must be dense"):
        from_torch(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    with pytest.raises(ValueError, match="must have a dense layer; got 1 layers"):
        from_torch(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Sequential or Linear.*; got"):
        from_torch(nn.ReLU())
    with pytest.raises(ValueError, match=r"module 4 \(ReLU\): outputs are scaled before it"):
        from_torch(nn.Sequential(*to_torch(regression())[1:], nn.ReLU())[1:])


@pytest.mark.parametrize("call", [fo.export.to_state_dict, lambda model: fo.export.load_state_dict(model, {})])
def test_refusals_name_the_function_that_was_called(call):
    model = fo.Sequential([fo.Dense(2, name="first"), fo.Dense(1)], inputs=3)
    small = fo.compress.quantize(model, np.ones((4, 3)))
    with pytest.raises(ValueError, match="(to|load)_state_dict cannot carry over products of integers"):
        call(small)

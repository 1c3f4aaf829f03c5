"""Steps inside torch's backward pass: the bits of a step after it, with no more than a layer's gradients in memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, TELLING, all_params, pair  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.torch import _in_backward, step_in_backward  # noqa: E402

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def perceptron(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)]
    return torch.nn.Sequential(*layers).to(dtype)


def twins(name="Adam", dtype=torch.float32, make=perceptron, **options):
    """Two models with optimizers of ours; the first is updated in backward. Returns (handle, models, optimizers)."""
    models = [make(dtype), make(dtype)]
    optimizers = [pair(name)[0](model.parameters(), **{**TELLING[name], **options}) for model in models]
    return step_in_backward(optimizers[0]), models, optimizers


def rows(step, dtype=torch.float32):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def loss_of(model, step, dtype=torch.float32):
    return model(rows(step, dtype)).float().square().mean()


def assert_same_bits(models, optimizers):
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert set(states[0]) == set(states[1])
    for key, state in states[1].items():
        assert set(states[0][key]) == set(state)
        assert all(torch.equal(states[0][key][name], value) for name, value in state.items() if value is not None)


def iterate(models, optimizers, step, dtype=torch.float32, loss=loss_of):
    """An iteration of both, the second with its step after backward."""
    loss(models[0], step, dtype).backward()
    assert all(p.grad is None for p in models[0].parameters())
    optimizers[1].zero_grad()
    loss(models[1], step, dtype).backward()
    optimizers[1].step()


# ---------------------------------------------------------------- bits
@pytest.mark.parametrize("waiting", [0, 600, 2**22], ids=["each alone", "some together", "all together"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_a_step_after_the_backward_pass(name, dtype, waiting, monkeypatch):
    monkeypatch.setattr(_in_backward, "WAITING_BYTES", waiting)
    handle, models, optimizers = twins(name, dtype)
    for step in range(5):
        iterate(models, optimizers, step, dtype)
        assert_same_bits(models, optimizers)
    handle.remove()
    for step in range(5, 7):  # the step is again where it was
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step, dtype).backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
        assert_same_bits(models, optimizers)


@pytest.mark.parametrize(
    ("name", "options"),
    [("Adam", {"amsgrad": True}), ("Adam", {"maximize": True, "lr": torch.tensor(0.02)}), ("SGD", {"momentum": 0.0}),
     ("SGD", {"nesterov": True}), ("RMSprop", {"centered": True}), ("AdamW", {"fused": True}),
     ("Adam", {"foreach": True, "amsgrad": True}), ("NAdam", {"betas": (0.6, 0.9)})],
)  # fmt: skip
def test_options(name, options):
    _, models, optimizers = twins(name, **options)
    for step in range(4):
        iterate(models, optimizers, step)
    assert_same_bits(models, optimizers)


def test_groups_with_options_of_their_own():
    models = [perceptron(), perceptron()]
    optimizers = []
    for model in models:
        first, *rest = model.parameters()
        groups = [{"params": [first], "lr": 0.5, "amsgrad": True}, {"params": rest, "weight_decay": 0.3}]
        optimizers.append(fastopt.torch.Adam(groups, lr=0.01))
    step_in_backward(optimizers[0])
    for step in range(4):
        iterate(models, optimizers, step)
        for optimizer in optimizers:
            optimizer.param_groups[1]["lr"] *= 0.5
    assert_same_bits(models, optimizers)


def test_nadam_whose_betas_change_is_stepped_by_torch_as_before():
    _, models, optimizers = twins("NAdam")
    for step in range(4):
        iterate(models, optimizers, step)
        if step == 1:
            for optimizer in optimizers:
                optimizer.param_groups[0]["betas"] = (0.5, 0.9)
    assert_same_bits(models, optimizers)


# ---------------------------------------------------------------- models of all sorts
class Shared(torch.nn.Module):
    """Two layers with one weight, and one that takes part in some passes only."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.rare = (torch.nn.Linear(8, 8, dtype=dtype) for _ in range(3))
        self.two.weight = self.one.weight

    def forward(self, x, rare=False):
        y = self.two(torch.tanh(self.one(x)))
        return self.rare(y) if rare else y


def test_a_shared_parameter_is_updated_once_and_one_without_gradient_is_not():
    _, models, optimizers = twins(make=Shared)

    def loss(model, step, dtype):
        return model(rows(step), step % 3 == 1).square().sum()

    for step in range(6):
        iterate(models, optimizers, step, loss=loss)
        assert_same_bits(models, optimizers)
    counts = {int(state["step"]) for state in optimizers[0].state_dict()["state"].values()}
    assert counts == {6, 2}


class Words(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 8, sparse=True, dtype=dtype)
        self.out = torch.nn.Linear(8, 3, dtype=dtype)
        self.turned = torch.nn.Parameter(torch.randn(3, 4, dtype=dtype).t())
        self.complex = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        y = self.out(self.table((x[:, 0].abs() * 9).long() % 10)) @ self.turned[:3, :]
        return y.sum() + (self.complex * self.complex.conj()).real.sum()


def test_parameters_that_torch_updates():
    """Sparse gradients, complex parameters and other layouts, beside those of our kernels."""
    _, models, optimizers = twins("SGD", make=Words, momentum=0.0, weight_decay=0.0)
    assert {placement.where for placement in fastopt.torch.explain(optimizers[0])} == {"fastopt", "torch"}
    for step in range(4):
        iterate(models, optimizers, step, loss=lambda model, step, dtype: model(rows(step)))
    assert_same_bits(models, optimizers)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_segments(reentrant):
    """A re-entrant pass is a pass inside of another, with an end of its own."""
    from torch.utils.checkpoint import checkpoint_sequential

    _, models, optimizers = twins()

    def loss(model, step, dtype):
        x = rows(step).requires_grad_()
        return checkpoint_sequential(model, 2, x, use_reentrant=reentrant).square().mean()

    for step in range(4):
        iterate(models, optimizers, step, loss=loss)
    assert_same_bits(models, optimizers)


def test_parameters_that_are_added_or_no_longer_frozen():
    models, optimizers = [perceptron(), perceptron()], []
    for model in models:
        model[0].requires_grad_(False)
        optimizers.append(fastopt.torch.Adam([*model[0].parameters(), *model[2].parameters()], lr=0.01))
    step_in_backward(optimizers[0])
    for step in range(6):
        for model, optimizer in zip(models, optimizers, strict=True):
            if step == 2:
                optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 0.1})
                model.zero_grad()
            if step == 4:
                model[0].requires_grad_(True)
        for model in models[:1] if step < 2 else []:
            model[4].requires_grad_(False)
        models[0][4].requires_grad_(True)
        loss_of(models[0], step).backward()
        optimizers[1].zero_grad()
        loss_of(models[1], step).backward()
        optimizers[1].step()
    assert_same_bits(models, optimizers)
    assert all(p.grad is None for p in all_params(optimizers[0]))


# ---------------------------------------------------------------- step, zero_grad, schedulers, checkpoints
def test_step_counts_nothing_twice_and_calls_its_hooks():
    _, models, optimizers = twins()
    called = []
    for optimizer in optimizers:
        optimizer.register_step_post_hook(lambda *args, one=optimizer: called.append(optimizers.index(one)))
    for step in range(3):
        iterate(models, optimizers, step)
        optimizers[0].step()
        optimizers[0].zero_grad()
    assert_same_bits(models, optimizers)
    assert sorted(called) == [0, 0, 0, 1, 1, 1]


def test_step_takes_a_closure():
    _, models, optimizers = twins()
    for step in range(3):
        found = []
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                return loss

            found.append(optimizer.step(closure))
        assert torch.equal(*found)
    assert_same_bits(models, optimizers)


def test_step_updates_what_has_a_gradient_all_the_same():
    p = torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.SGD([p], lr=0.5)
    step_in_backward(optimizer)
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == [0.5] * 3


@pytest.mark.parametrize("calls_step", [True, False])
def test_schedulers_neither_warn_nor_lag(calls_step):
    _, models, optimizers = twins()
    schedulers = [lr_scheduler.StepLR(optimizer, 2, gamma=0.3) for optimizer in optimizers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            iterate(models, optimizers, step)
            if calls_step:
                optimizers[0].step()
            for scheduler in schedulers:
                scheduler.step()
    assert_same_bits(models, optimizers)
    assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"] < 0.001


def test_checkpoints_and_copies():
    handle, models, optimizers = twins()
    for step in range(3):
        iterate(models, optimizers, step)
    saved = [[copy.deepcopy(one.state_dict()) for one in both] for both in (models, optimizers)]
    iterate(models, optimizers, 3)
    for both, states in zip((models, optimizers), saved, strict=True):
        for one, state in zip(both, states, strict=True):
            one.load_state_dict(state)
    for step in range(4, 7):
        iterate(models, optimizers, step)
    assert_same_bits(models, optimizers)
    # copies are not attached
    file = io.BytesIO()
    torch.save(optimizers[0], file)
    file.seek(0)
    for other in (
        copy.deepcopy(optimizers[0]), pickle.loads(pickle.dumps(optimizers[0])), torch.load(file, weights_only=False)
    ):  # fmt: skip
        assert other._in_backward is None
        assert "_step_supports_amp_scaling" not in vars(other)
        (all_params(other)[0] * 2).sum().backward()
        assert all_params(other)[0].grad is not None
    assert handle.optimizer._in_backward is handle


def test_accelerated_optimizers():
    models, classes = [perceptron(), perceptron()], (torch.optim.AdamW, fastopt.torch.AdamW)
    optimizers = [cls(model.parameters(), lr=0.01) for cls, model in zip(classes, models, strict=True)]
    step_in_backward(fastopt.torch.accelerate(optimizers[0]))
    for step in range(3):
        iterate(models, optimizers, step)
    assert_same_bits(models, optimizers)


def test_a_context_and_its_end():
    optimizer = fastopt.torch.Adam(perceptron().parameters(), fused=True)
    model_hooks = [p for p in all_params(optimizer) if p._post_accumulate_grad_hooks]
    assert not model_hooks
    with step_in_backward(optimizer) as handle:
        assert handle.optimizer is optimizer
        assert all(p._post_accumulate_grad_hooks for p in all_params(optimizer))
    handle.remove()  # again
    assert not any(p._post_accumulate_grad_hooks for p in all_params(optimizer))
    assert optimizer._step_supports_amp_scaling is True
    assert optimizer._in_backward is None
    with step_in_backward(optimizer):
        pass


def test_nothing_stays_once_handle_and_model_are_gone():
    handle, models, optimizers = twins()
    iterate(models, optimizers, 0)
    gone = [weakref.ref(one) for one in (handle, *models, *optimizers)]
    del handle, models, optimizers
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5


def test_an_optimizer_that_is_gone_is_missed_once():
    p = torch.ones(3, requires_grad=True)
    step_in_backward(fastopt.torch.SGD([p], lr=0.5))
    gc.collect()
    with pytest.raises(RuntimeError, match="optimizer of step_in_backward no longer exists, and its updates end here"):
        p.sum().backward()
    assert not p._post_accumulate_grad_hooks
    p.grad = None
    optimizer = fastopt.torch.SGD([p], lr=0.5)
    step_in_backward(optimizer)
    p.sum().backward()
    assert p.tolist() == [0.5] * 3


# ---------------------------------------------------------------- what is refused
def test_what_is_refused_at_once():
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"fastopt.torch's; got torch.optim.adam.Adam \(fastopt.torch.accelerate conv"):
        step_in_backward(torch.optim.Adam([p]))
    with pytest.raises(TypeError, match=r"fastopt.torch's; got torch.optim.lbfgs.LBFGS$"):
        step_in_backward(torch.optim.LBFGS([p]))
    with pytest.raises(TypeError, match=r"fastopt.torch's; got builtins.int$"):
        step_in_backward(3)

    class Own(fastopt.torch.SGD):
        def step(self, closure=None):
            return super().step(closure)

    with pytest.raises(TypeError, match="the step of fastopt.torch.SGD; got .*Own, whose own step would not be"):
        step_in_backward(Own([p]))
    with pytest.raises(ValueError, match=r"clip_norm must be None; got 1.0: the norm of all gradients is known when"):
        step_in_backward(fastopt.torch.SGD([p], clip_norm=1.0))
    with pytest.raises(ValueError, match="differentiable must be False; got True"):
        step_in_backward(fastopt.torch.SGD([p], differentiable=True))
    assert not p._post_accumulate_grad_hooks
    optimizer = fastopt.torch.SGD([p])
    step_in_backward(optimizer)
    with pytest.raises(ValueError, match="must not have its steps in backward already"):
        step_in_backward(optimizer)
    with pytest.raises(ValueError, match="one that another updates already"):
        step_in_backward(fastopt.torch.Adam([p]))
    with pytest.raises(ValueError, match="clip_norm must be None while steps are done in backward; got 2.0"):
        optimizer.clip_norm = 2.0
    assert optimizer.clip_norm is None


class Plain(fastopt.torch.SGD):
    """A class of the user's that leaves the step as it is."""


def test_derived_classes_that_leave_the_step_are_taken():
    for first in (Plain, fastopt.torch.SGD):
        p = torch.ones(3, requires_grad=True)
        optimizer = first([p], lr=0.5)
        step_in_backward(optimizer)
        p.sum().backward()
        assert p.tolist() == [0.5] * 3


def test_accumulation_is_refused_where_it_shows():
    p = torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.SGD([p], lr=0.5)
    handle = step_in_backward(optimizer)
    for _ in range(2):  # without `step`, each pass is a step
        p.sum().backward()
    assert p.tolist() == [0.0] * 3
    with pytest.raises(RuntimeError, match="must not be accumulated over several; got more than one backward pass"):
        optimizer.step()
    p.sum().backward()
    optimizer.step()
    p.sum().backward()
    with pytest.raises(RuntimeError, match="must not be accumulated"):  # from the first pass on that is too many
        p.sum().backward()
    assert p.tolist() == [-1.0] * 3
    handle.remove()
    p.grad = None


def test_two_losses_of_parameters_of_their_own_are_no_accumulation():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.SGD([p, q], lr=0.5)
    step_in_backward(optimizer)
    optimizer.step()  # before the first pass, as some do to quieten a scheduler
    for _ in range(2):
        p.sum().backward()
        q.sum().backward()
        optimizer.step()
    assert (p.tolist(), q.tolist()) == ([0.0] * 3, [0.0] * 3)


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "Adadelta"])  # with and without `fused` in torch
def test_grad_scaler_is_refused_with_the_reason(name, unscales):
    model = perceptron()
    optimizer = pair(name)[0](model.parameters())
    handle = step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    if unscales:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="must not be used with a GradScaler: the loss is scaled"):
        scaler.step(optimizer)
    handle.remove()
    loss_of(model, 0).backward()
    optimizer.step()  # nothing of the scaler is left over
    with step_in_backward(optimizer):
        disabled = torch.amp.GradScaler("cpu", enabled=False)
        disabled.scale(loss_of(model, 1)).backward()
        disabled.step(optimizer)


def test_several_processes_are_refused(monkeypatch):
    p = torch.ones(3, requires_grad=True)
    handle = step_in_backward(fastopt.torch.SGD([p]))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with pytest.raises(RuntimeError, match="must be used in one process: .*; got 4 processes"):
        p.sum().backward()
    handle.remove()
    with pytest.raises(RuntimeError, match="must be used in one process"):
        step_in_backward(fastopt.torch.SGD([p]))
    assert p.tolist() == [1.0] * 3


# ---------------------------------------------------------------- errors and threads
def test_a_pass_that_fails_leaves_nothing_behind():
    """The gradient that waits stays the parameter's, as after any pass that fails, and no pass updates it later."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise ArithmeticError("here")

    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.SGD([p, q], lr=0.5)
    handle = step_in_backward(optimizer)
    with pytest.raises(ArithmeticError, match="here"):
        (Fails.apply(p).sum() + (q * 2).sum()).backward()
    assert (p.tolist(), q.tolist()) == ([1.0] * 3, [1.0] * 3)
    assert q.grad.tolist() == [2.0] * 3
    gc.collect()
    assert [known() for known in handle._passes.values()] == [None]
    for _ in range(2 * _in_backward.MOST_PASSES):
        handle.optimizer.state.clear()
        (q * 0).sum().backward()
    assert len(handle._passes) <= _in_backward.MOST_PASSES
    optimizer.zero_grad()
    p.sum().backward()
    assert (p.tolist(), q.tolist()) == ([0.5] * 3, [1.0] * 3)


def test_backward_passes_on_several_threads():
    """Each thread has passes of its own parameters; the optimizer is one."""
    params = [torch.ones(50 + i, requires_grad=True) for i in range(8)]
    alone = [p.detach().clone().requires_grad_() for p in params]
    optimizer, twin = fastopt.torch.Adam(params, lr=0.1), fastopt.torch.Adam(alone, lr=0.1)
    step_in_backward(optimizer)
    errors = []

    def train(some, after):
        try:
            for step in range(20):
                sum((p * (step + 1)).square().sum() for p in some).backward()
                after()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=train, args=(params[i::4], lambda: None)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    train(alone, lambda: (twin.step(), twin.zero_grad()))
    assert not errors
    assert all(torch.equal(p, q) for p, q in zip(params, alone, strict=True))
    assert {int(state["step"]) for state in optimizer.state.values()} == {20}


def test_autograd_notices_a_value_that_was_overwritten():
    """As after a step: a second pass through the same graph would use the new weights."""
    model = perceptron()
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1)
    step_in_backward(optimizer)
    loss = loss_of(model, 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------- memory
def peak_of_gradients(model, optimizer, in_backward, x):
    """The most bytes of gradients of parameters that there are at a time, in an iteration after the first."""
    handle = step_in_backward(optimizer) if in_backward else None
    alive, most = {}, [0]

    def note(p):
        g = p.grad
        alive[id(p)] = g.nbytes
        most[0] = max(most[0], sum(alive.values()))
        weakref.finalize(g, alive.pop, id(p))

    def iterate():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        if handle is None:
            optimizer.step()

    iterate()
    hooks = [p.register_post_accumulate_grad_hook(note) for p in model.parameters()]
    if handle is not None:  # after the hooks that look at the gradients
        handle.remove()
        handle = step_in_backward(optimizer)
    iterate()
    for hook in hooks:
        hook.remove()
    return most[0]


def test_only_one_layers_gradients_are_in_memory():
    """Four hidden layers of 2048, inputs and outputs of as many: five equal layers."""
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (torch.nn.Linear(2048, 2048), torch.nn.ReLU())]
    model, x = torch.nn.Sequential(*layers[:-1]), torch.randn(4, 2048)
    total = sum(p.nbytes for p in model.parameters())
    optimizer = fastopt.torch.SGD(model.parameters(), lr=1e-3)
    after = peak_of_gradients(model, optimizer, False, x)
    inside = peak_of_gradients(model, optimizer, True, x)
    assert after == total
    assert after - inside >= 0.8 * total

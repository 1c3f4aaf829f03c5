"""Closures, hooks, schedulers and threads around an optimizer work as with torch's own."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import (  # noqa: E402
    FUSED,
    NAMES,
    TELLING,
    assert_same,
    pair,
    parameters,
    quietly,
    run,
    set_gradients,
    twins,
)
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.kernels.cpu.optim import norm, plan  # noqa: E402
from fastopt.kernels.cpu.runtime import launch  # noqa: E402

NEAR = {"rtol": 1e-12, "atol": 1e-13}


def test_closures():
    p = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = fastopt.torch.SGD([p], lr=0.25)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 5
        assert optimizer.step(closure=closure).item() == 1.25
    assert calls == [True, True]
    assert optimizer.step() is None


@pytest.mark.parametrize("name", NAMES)
def test_hooks(name):
    params = parameters()
    strange = torch.zeros(3, dtype=torch.complex64, requires_grad=True)  # for which torch's own step runs as well
    optimizer = pair(name)[0]([*params, strange])
    strange.grad = torch.ones_like(strange)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", opt))),
        optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", opt))),
        register_optimizer_step_post_hook(lambda opt, args, kwargs: seen.append(("all", opt))),
    ]
    run(optimizer, params, range(1))
    assert seen == [("pre", optimizer), ("post", optimizer), ("all", optimizer)]
    for handle in handles:
        handle.remove()
    run(optimizer, params, range(1, 2))
    assert len(seen) == 3


def test_profilers_see_steps():
    params = parameters()
    optimizer = fastopt.torch.Adam(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, params, range(3))
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#Adam.step"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_schedulers(name):
    schedulers = {
        "OneCycleLR": {"max_lr": 0.2, "total_steps": 20, "cycle_momentum": name in ("SGD", "Adam", "AdamW")},
        "CosineAnnealingLR": {"T_max": 7},
        "StepLR": {"step_size": 3},
    }
    for kind, arguments in schedulers.items():
        optimizers = []
        for cls in pair(name):
            params = parameters()
            optimizer = cls(params, **TELLING[name])
            scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **arguments)
            for step in range(15):
                run(optimizer, params, range(step, step + 1))
                scheduler.step()
            optimizers.append(optimizer)
        assert_same(*optimizers, **NEAR)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(name, fused):
    if name not in FUSED and fused:
        pytest.skip(f"torch has no fused {name}")
    results = []
    for cls in pair(name):
        params = [p for p in parameters(torch.float32) if p.numel()]
        optimizer = cls(params, **TELLING[name], **({"fused": True} if fused else {}))
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3)
        scaler.scale(torch.zeros(()))
        for step in range(10):
            set_gradients(params, step=step)
            for p in params:
                p.grad.mul_(scaler.get_scale())
            if step in (4, 7):
                params[0].grad[0, 0] = float("inf" if step == 4 else "nan")
            if step == 6:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        grads = [p.grad for p in params]
        results.append((optimizer, scaler.get_scale(), grads))
    (one, scale, grads), (other, its_scale, its_grads) = results
    assert scale == its_scale != 16
    for g, h in zip(grads, its_grads, strict=True):
        torch.testing.assert_close(g, h)
    assert_same(one, other, rtol=2e-5, atol=2e-6)


def test_an_infinite_first_gradient_leaves_no_trace():
    params = parameters(torch.float32)
    before = twins(params)
    optimizer = fastopt.torch.SGD(params, momentum=0.9, fused=True)
    set_gradients(params, step=0)
    params[0].grad[0, 0] = float("inf")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not any(optimizer.state.values())


def test_autograd_notices_that_a_value_it_has_kept_is_gone():
    w = torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.SGD([w], lr=0.1)
    loss = w.square().sum()
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_zero_grad():
    params = parameters()
    optimizer = fastopt.torch.Adam(params)
    run(optimizer, params, range(1))
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@pytest.mark.slow
def test_nothing_about_the_process_changes():
    """The process is new, because settings of this one may have been changed."""
    code = """
import locale, logging, numpy as np, os, random, signal, sys, threading, torch, warnings
torch.set_num_threads(3)
torch.manual_seed(7)
np.random.seed(7)
random.seed(7)
def denormals():
    # Those that torch's and NumPy's arithmetic gives, on this thread, on torch's own and on a new one.
    found = []
    def multiply():
        for dtype, small in ((torch.float32, 1e-40), (torch.float64, 1e-310)):
            t = torch.full((300_000,), small, dtype=dtype)
            found.extend([(t * 1.0).min().item(), (t.numpy() * 1.0).min().item(), small * 1.0])
    thread = threading.Thread(target=multiply)
    thread.start()
    thread.join()
    multiply()
    return found
def settings():
    return (torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
            torch.is_grad_enabled(), torch.initial_seed(), torch.get_rng_state().sum().item(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.get_default_device(), np.random.get_state()[1].sum(), random.getstate(), np.geterr(),
            np.get_printoptions(), dict(os.environ), denormals(), signal.getsignal(signal.SIGINT), sys.path[:],
            sys.getrecursionlimit(), locale.setlocale(locale.LC_ALL), warnings.filters[:], logging.root.handlers[:],
            sorted(thread.name for thread in threading.enumerate()))
torch.optim.SGD([torch.zeros(1)])  # the first one sets a variable of the environment
before = settings()
import fastopt as fo
import fastopt.torch
for cls in fastopt.torch._CLASSES.values():
    p = torch.ones(200_000, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = cls([p], clip_norm=1.0)
    optimizer.step()
    optimizer.step()
for backend in ("cpu", "numpy"):
    for array, seed in ((np.ones(200_000, np.float32), 0), (torch.ones(200_000, dtype=torch.bfloat16), 3)):
        fo.AdamW(array, master_weights=False, seed=seed, clip_norm=1.0, backend=backend).step(array * 2)
after = settings()
assert all(denormals())
for was, now in zip(before, after):
    assert was == now, (was, now)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=240)


@pytest.fixture
def ranks(monkeypatch):
    """Numbers of threads requested for each kernel, with eight allowed to ours."""
    used = []
    for module in (plan, norm):
        run = module.parallel
        monkeypatch.setattr(module, "parallel", lambda *args, run=run: used.append(args[3]) or run(*args))
    monkeypatch.setattr(launch, "_threads", 8)
    before = torch.get_num_threads()
    yield used
    torch.set_num_threads(before)


def test_steps_keep_to_torchs_number_of_threads(ranks, monkeypatch):
    """torchrun gives each process one thread, and so do the workers of a DataLoader."""
    params = [torch.ones(700, 500, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = fastopt.torch.Adam(params, clip_norm=1.0)
    for threads in (1, 3, 2, 1):
        torch.set_num_threads(threads)
        run(optimizer, params, range(2))
        assert (set(ranks), torch.get_num_threads()) == ({threads}, threads)
        ranks.clear()
    torch.set_num_threads(4)
    monkeypatch.setattr(launch, "_threads", 2)
    run(optimizer, params, range(1))
    assert set(ranks) == {2}


def _train(seed: int, steps: int = 5) -> list:
    params = [torch.randn(200, 500, generator=torch.Generator().manual_seed(seed)).requires_grad_()]
    optimizer = fastopt.torch.AdamW(params, lr=0.1)
    run(optimizer, params, range(steps))
    return params[0].detach().double().sum().item()


def _in_child(queue) -> None:
    torch.set_num_threads(1)  # as in workers of a DataLoader: torch's own threads do not survive a fork
    queue.put(_train(0))


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork():
    expected = _train(0)  # which starts the threads of the kernels
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_in_child, args=(queue,), daemon=True) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)
        child.kill()
        assert child.exitcode == 0
    assert [queue.get() for _ in children] == [expected] * 2


@pytest.mark.slow
def test_several_threads_at_once():
    expected = [_train(seed) for seed in range(4)]
    found = {}
    threads = [threading.Thread(target=lambda s=seed: found.setdefault(s, _train(s))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(4)] == expected


def test_shared_memory_of_processes():
    """Hogwild: parameters and Adagrad's sums in memory that processes share."""
    params = [p.detach().share_memory_().requires_grad_() for p in parameters()]
    other = twins(params)
    optimizers = [fastopt.torch.Adagrad(params), torch.optim.Adagrad(other)]
    for optimizer, its in zip(optimizers, (params, other), strict=True):
        optimizer.share_memory()
        run(optimizer, its, range(3))
    assert_same(*optimizers, **NEAR)


def test_swa_and_clipping_around_a_step():
    models = []
    for cls in pair("SGD"):
        model = torch.nn.Linear(4, 2, dtype=torch.float64)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel(), dtype=torch.float64).view_as(p))
        average = torch.optim.swa_utils.AveragedModel(model)
        optimizer = cls(model.named_parameters(), lr=0.1, momentum=0.9)
        for step in range(10):
            set_gradients(list(model.parameters()), step=step)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            average.update_parameters(model)
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
        models.append(average)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None\nimport fastopt.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert 'fastopt.torch needs PyTorch; install it with: pip install "fastopt[torch]"' in done.stderr


def test_a_class_of_the_users_own():
    class Noisy(fastopt.torch.Adam):
        def step(self, closure=None):
            loss = super().step(closure)
            self.calls = getattr(self, "calls", 0) + 1
            return loss

    params, others = parameters(), parameters()
    one, other = Noisy(params), torch.optim.Adam(others)
    run(one, params, range(3))
    run(other, others, range(3))
    assert one.calls == 3
    assert_same(one, other, **NEAR)


def test_compiled_programs_run_torchs_code(monkeypatch):
    """torch.compile looks into torch's step; ours must not be traced."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    params, others = parameters(), parameters()
    one, other = fastopt.torch.SGD(params, momentum=0.9), torch.optim.SGD(others, momentum=0.9)
    quietly(run, one, params, range(3))
    quietly(run, other, others, range(3))
    assert "_fastopt_plans" not in vars(one)
    assert_same(one, other, rtol=0, atol=0)

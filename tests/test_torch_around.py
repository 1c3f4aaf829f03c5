"""Programs of torch's that use an optimizer: the same numbers with ours instead of torch's."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NEAR, quietly, where  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.optim import lr_scheduler as schedulers  # noqa: E402

import fastopt.torch  # noqa: E402

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X[:, :1].sin()


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


def train(model, optimizer, steps, *others):
    """Steps of the optimizer, each followed by one of the others; the losses."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
        for other in others:
            other.step()
        losses.append(loss.item())
    return losses


def by_both(program, since="2.7"):
    """Result of `program(torch.optim or fastopt.torch)`, which must be the same for both, within rounding.

    since: the first torch whose own optimizers can do it.
    """
    ours = quietly(program, fastopt.torch)
    if tuple(map(int, torch.__version__.split(".")[:2])) < tuple(map(int, since.split("."))):
        pytest.skip(f"torch's own needs torch {since}; ours has done it")
    torch.testing.assert_close(ours, quietly(program, torch.optim), **NEAR)


def values(model):
    return [p.detach().clone() for p in model.parameters()]


# ---------------------------------------------------------------- schedulers that work together, and on more than lr

SCHEDULERS = {
    "chained": ("SGD", lambda o: schedulers.ChainedScheduler([
        schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.9)
    ])),
    "sequential": ("RMSprop", lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), schedulers.CosineAnnealingWarmRestarts(o, 3)], [2]
    )),
    "cyclic, with momentum": ("SGD", lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=3)),
    "one cycle, with momentum": ("SGD", lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=12)),
    "one cycle, with betas": ("AdamW", lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=12)),
    "by a function": ("Adam", lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch)),
    "for averaging": ("Adagrad", lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=4)),
}  # fmt: skip


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("case", SCHEDULERS)
def test_schedulers(case, tensor):
    def program(module):
        name, make = SCHEDULERS[case]
        model = network()
        rate = torch.tensor(0.05, dtype=torch.float64) if tensor else 0.05
        optimizer = getattr(module, name)(model.parameters(), lr=rate, **({"momentum": 0.9} if name == "SGD" else {}))
        scheduler = make(optimizer)
        losses = train(model, optimizer, 10, scheduler)
        group = optimizer.param_groups[0]
        assert torch.is_tensor(group["lr"]) == tensor
        return losses, values(model), float(group["lr"]), [*group.get("betas", []), group.get("momentum", 0)]

    by_both(program)


def test_schedulers_and_their_optimizers_are_copied_together():
    def program(module):
        model = network()
        optimizer = module.Adam(model.parameters(), lr=0.05)
        scheduler = schedulers.StepLR(optimizer, 2, 0.5)
        train(model, optimizer, 3, scheduler)
        model2, optimizer2, scheduler2 = copy.deepcopy((model, optimizer, scheduler))
        assert scheduler2.optimizer is optimizer2
        first = train(model, optimizer, 5, scheduler)
        assert first == train(model2, optimizer2, 5, scheduler2)
        assert optimizer.param_groups[0]["lr"] == optimizer2.param_groups[0]["lr"] < 0.01
        return first

    by_both(program)


# ---------------------------------------------------------------- options, groups, states


def test_betas_that_are_tensors():
    def program(module):
        model, betas = network(), (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))
        optimizer = module.Adam(model.parameters(), lr=torch.tensor([0.05], dtype=torch.float64), betas=betas)
        losses = train(model, optimizer, 3)
        betas[0].fill_(0.5)
        return losses + train(model, optimizer, 3)

    by_both(program, since="2.8")


def test_groups_with_entries_of_the_users_own():
    def program(module):
        model = network()
        groups = [{"params": model[0].parameters(), "lr": 0.01, "tag": "first", "l1": 5.0}]
        optimizer = module.Adam(groups, lr=0.001)
        optimizer.add_param_group({"params": model[2].parameters()})
        losses = train(model, optimizer, 4)
        assert [group.get("tag") for group in optimizer.state_dict()["param_groups"]] == ["first", None]
        return losses

    by_both(program)


def test_parameters_that_are_frozen_for_a_while():
    def program(module):
        model = network()
        optimizer = module.Adam(model.parameters(), lr=0.01)
        losses = train(model, optimizer, 2)
        model[0].requires_grad_(False)
        optimizer.zero_grad()
        losses += train(model, optimizer, 3)
        model[0].requires_grad_(True)
        losses += train(model, optimizer, 2)
        assert [state["step"].item() for state in optimizer.state_dict()["state"].values()] == [4, 4, 7, 7]
        return losses

    by_both(program)


@pytest.mark.parametrize("change", ["float64", "int64", "fused"])
def test_states_as_other_programs_leave_them(change):
    """Steps in another dtype, and a checkpoint of torch's fused optimizer, whose steps are tensors, too."""

    def program(module):
        model = network()
        optimizer = (torch.optim if change == "fused" else module).Adam(
            model.parameters(), lr=0.01, fused=change == "fused"
        )
        train(model, optimizer, 3)
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = module.Adam(model.parameters())
        optimizer.load_state_dict(state)
        for state in optimizer.state.values():
            state["step"] = state["step"].to(getattr(torch, change, torch.float32))
        if module is fastopt.torch:
            assert set(where(optimizer)) == {"torch" if change == "int64" else "fastopt"}
        losses = train(model, optimizer, 3)
        assert optimizer.state_dict()["state"][0]["step"] == 6
        return losses

    by_both(program)


def test_hooks_of_state_dicts():
    model, seen = network(), []
    optimizer = fastopt.torch.Adam(model.parameters())
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    train(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["save", "saved", "load", "loaded"]


def test_a_hook_may_change_the_arguments_of_a_step():
    p = torch.ones(2, requires_grad=True)
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


def test_optimizers_are_saved_whole():
    def program(module):
        model = network()
        optimizer = module.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train(model, optimizer, 2)
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        return train(*torch.load(file, weights_only=False), 3)

    by_both(program)


# ---------------------------------------------------------------- other ways to take a step


def test_an_optimizer_for_each_parameter_in_the_backward_pass():
    def program(module):
        model = network()
        optimizers = {p: module.Adam([p], lr=0.01) for p in model.parameters()}

        def step(p):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for _ in range(4):
            torch.nn.functional.mse_loss(model(X), Y).backward()
        assert all(p.grad is None for p in model.parameters())
        return values(model)

    by_both(program)


def test_moving_averages_of_the_weights():
    def program(module):
        model = network()
        optimizer = module.SGD(model.parameters(), lr=0.1)
        ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema)
        for _ in range(5):
            train(model, optimizer, 1)
            average.update_parameters(model)
        return values(average)

    by_both(program)


def test_reparametrised_and_pruned_layers():
    def program(module):
        model = network()
        torch.nn.utils.parametrizations.weight_norm(model[0])
        prune.l1_unstructured(model[2], "weight", 0.5)
        return train(model, module.Adam(model.parameters(), lr=0.01), 4)

    by_both(program)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_modes_without_gradients(mode):
    def program(module):
        p = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = module.Adam([p], lr=0.1)
        for step in range(3):
            p.grad = p.detach() + step
            with getattr(torch, mode)():
                optimizer.step()
        return p.detach()

    by_both(program)


def test_tensors_of_inference_mode():
    """Outside of it torch refuses to change them (when it has)."""

    def program(module):
        with torch.inference_mode():
            p = torch.ones(3)
            p.grad = torch.ones(3)
            optimizer = module.SGD([p], lr=0.1)
            optimizer.step()
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            optimizer.step()
        return p.tolist()

    by_both(program)


def test_another_default_device():
    def program(module):
        torch.set_default_device("meta")
        try:
            p = torch.ones(3, device="cpu", requires_grad=True)
            optimizer = module.Adam([p], lr=0.1)
            for _ in range(2):
                p.grad = torch.ones(3, device="cpu")
                optimizer.step()
            assert module is torch.optim or where(optimizer) == ["fastopt"]
        finally:
            torch.set_default_device(None)
        return p.detach().double().round(decimals=6)

    by_both(program, since="2.8")


@pytest.mark.slow
def test_compiled_models_and_steps():
    """A compiled model is trained by our kernels; into a compiled step torch's own code goes."""

    def program(module):
        torch._dynamo.reset()
        model = network()
        optimizer = module.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = train(torch.compile(model, backend="eager"), optimizer, 3)
        assert module is torch.optim or "_fastopt_plans" in vars(optimizer)
        step = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            step()
        return losses, values(model)

    by_both(program)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_loaders_with_workers():
    """They are forks, made while our threads exist."""

    def program(module):
        model = network()
        optimizer = module.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        train(model, optimizer, 1)
        rows = torch.utils.data.TensorDataset(X, Y)
        for _ in range(2):
            for x, y in torch.utils.data.DataLoader(rows, batch_size=8, num_workers=2, multiprocessing_context="fork"):
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
        return values(model)

    by_both(program)


# ---------------------------------------------------------------- torch.distributed


@pytest.fixture
def alone(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [False, True])
def test_states_divided_between_processes(alone, bucket):
    def program(module):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        model = network()
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=module.Adam, lr=0.01, parameters_as_bucket_view=bucket
        )
        losses = train(model, optimizer, 5)
        optimizer.consolidate_state_dict()
        assert module is torch.optim or set(where(optimizer.optim)) == {"fastopt"}
        return losses, len(optimizer.state_dict()["state"])

    by_both(program)


@pytest.mark.slow
def test_checkpoints_by_names_of_parameters(alone):
    def program(module):
        from torch.distributed.checkpoint import state_dict

        model, other = network(), network()
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        train(model, optimizer, 3)
        saved = copy.deepcopy(state_dict.get_optimizer_state_dict(model, optimizer))
        assert sorted(saved["state"]) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        other.load_state_dict(model.state_dict())
        fresh = module.AdamW(other.parameters(), lr=0.5)
        state_dict.set_optimizer_state_dict(other, fresh, saved)
        assert train(model, optimizer, 3) == train(other, fresh, 3)
        return values(other)

    by_both(program)

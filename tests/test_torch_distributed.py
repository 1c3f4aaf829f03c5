"""Our optimizers under DistributedDataParallel and inside of ZeroRedundancyOptimizer, in two processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

pytestmark = [
    pytest.mark.repeats,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]

PRELUDE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, {tests!r})
import fastopt as fo
import fastopt.torch
from helpers_torch import NAMES, TELLING, pair

torch.set_default_dtype(torch.float64)  # in which torch keeps NAdam's product of momenta
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
X = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)

def perceptron():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))

def loss_of(model, step, ranks=(rank,)):
    # The mean over the rows of these ranks, 16 each.
    rows = torch.cat([torch.arange(16) + (2 * step + r) % 6 * 16 for r in ranks])
    return torch.nn.functional.cross_entropy(model(X[rows]), Y[rows])

def trained(model, optimizer, steps=6, first=0, clip=None):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return list(model.module.parameters())

def ddp(**options):
    return DistributedDataParallel(perceptron(), **options)

def bits(params):
    return [p.detach().numpy().tobytes() for p in params]

def near(ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)

def everywhere(value):
    # The value on each rank.
    found = [None, None]
    dist.all_gather_object(found, value)
    return found

def all_ours(optimizer):
    return {{placement.where for placement in fastopt.torch.explain(optimizer)}} == {{"fastopt"}}

def refused(error, words, call):
    try:
        call()
    except error as caught:
        assert words in str(caught), caught
    else:
        raise AssertionError(f"nothing was refused: {{words}}")
"""
# A rank is through once it has said so: threads of gloo, which lose their peer at the end, have aborted the process.
ENDING = """
open(f"{sys.argv[2]}.through{rank}", "w").close()
dist.barrier()  # a rank that goes while the other still talks to it ends that one's threads
dist.destroy_process_group()
"""


@pytest.fixture
def on_two_ranks(tmp_path, request):
    """on_two_ranks(code): run it after the prelude in two processes, which find each other by a file."""

    def run(code):
        program = tmp_path / "rank.py"
        text = PRELUDE.format(tests=str(request.path.parent)) + code + ENDING
        program.write_text(text, encoding="utf-8")
        command = [sys.executable, str(program)]
        ranks = [
            subprocess.Popen([*command, rank, tmp_path / "store"], stderr=subprocess.PIPE, text=True)
            for rank in ("0", "1")
        ]  # fmt: skip
        try:
            errors = [process.communicate(timeout=240)[1] for process in ranks]
        finally:
            for process in ranks:
                process.kill()  # one whose peer has failed waits for it
        through = [(tmp_path / f"store.through{rank}").exists() for rank in range(2)]
        assert through == [True, True], "\n".join(errors)

    return run


def test_distributed_data_parallel(on_two_ranks):
    """The weights of torch's own optimizer, the same bits on both ranks, and those of one process with all rows."""
    on_two_ranks("""
for number, name in enumerate(NAMES):
    found = []
    for cls in pair(name):
        model = ddp(gradient_as_bucket_view=bool(number % 2))
        optimizer = cls(model.parameters(), **TELLING[name])
        found.append(trained(model, optimizer))
        assert all_ours(optimizer) == (cls is pair(name)[0])
    near(*found)
    one, other = everywhere(bits(found[0]))
    assert one == other
    alone = perceptron()
    optimizer = pair(name)[1](alone.parameters(), **TELLING[name])
    for step in range(6):
        optimizer.zero_grad()
        loss_of(alone, step, (0, 1)).backward()
        optimizer.step()
    near(found[0], alone.parameters())
    assert not torch.equal(found[0][0], perceptron()[0].weight)
""")


def test_clipping_and_accumulation_see_averaged_gradients(on_two_ranks):
    on_two_ranks("""
ours, theirs = pair("AdamW")
options = TELLING["AdamW"]
for clip in (0.05, 100.0):
    model, twin = ddp(), ddp()
    near(
        trained(model, ours(model.parameters(), clip_norm=clip, **options)),
        trained(twin, theirs(twin.parameters(), **options), clip=clip),
    )
found = []
for cls in (ours, theirs):
    model = ddp()
    optimizer = cls(model.parameters(), **options)
    for step in range(0, 6, 2):
        optimizer.zero_grad()
        with model.no_sync():
            loss_of(model, step).backward()
        loss_of(model, step + 1).backward()
        optimizer.step()
    found.append(list(model.module.parameters()))
near(*found)

class Parted(torch.nn.Module):  # of whose layers one is used in every other step
    def __init__(self):
        super().__init__()
        self.body, self.often = perceptron(), False
        self.seldom = torch.nn.Linear(3, 3)
    def forward(self, x):
        self.often = not self.often
        return self.body(x) if self.often else self.seldom(self.body(x))

found = []
for cls in (ours, theirs):
    torch.manual_seed(3)
    model = DistributedDataParallel(Parted(), find_unused_parameters=True)
    found.append(trained(model, cls(model.parameters(), **options)))
near(*found)
refused(RuntimeError, "step_in_backward must be used in one process",
        lambda: fastopt.torch.step_in_backward(ours(model.parameters())))
""")


def test_zero_redundancy_optimizer(on_two_ranks):
    """Bits are those of an optimizer that is not cut up; every state is on one rank; checkpoints go on."""
    on_two_ranks("""
def sharded(model, cls, view=False, **options):
    return ZeroRedundancyOptimizer(model.parameters(), cls, parameters_as_bucket_view=view, **options)

for number, name in enumerate(NAMES):
    cls, options = pair(name)[0], TELLING[name]
    whole = ddp()
    plain = cls(whole.parameters(), **options)
    expected = bits(trained(whole, plain))
    model = ddp()
    optimizer = sharded(model, cls, bool(number % 2), **options)
    assert bits(trained(model, optimizer)) == expected
    assert all_ours(optimizer) and len(fastopt.torch.explain(optimizer)) == len(optimizer.optim.state) > 0
    held = everywhere([tuple(p.shape) for p in optimizer.optim.state])
    assert sorted(held[0] + held[1]) == sorted(tuple(p.shape) for p in whole.parameters())

    # a checkpoint: all states on rank 0, which are those of the optimizer that is not cut up
    optimizer.consolidate_state_dict(0)
    kept = [optimizer.state_dict() if rank == 0 else None]
    if rank == 0:
        for key, state in plain.state_dict()["state"].items():
            for word, value in state.items():
                assert torch.equal(torch.as_tensor(kept[0]["state"][key][word]), torch.as_tensor(value)), (key, word)
    dist.broadcast_object_list(kept, 0)
    again = ddp()
    again.module.load_state_dict(model.module.state_dict())
    other = sharded(again, cls, **{**options, "lr": 1.0})
    other.load_state_dict(kept[0])
    assert bits(trained(again, other, 3, 6)) == bits(trained(whole, plain, 3, 6))
    assert all_ours(other)
""")


def test_schedules_groups_and_formulas_inside_of_zero(on_two_ranks):
    on_two_ranks("""
def groups(model):
    params = list(model.parameters())
    return [{"params": params[:2], "weight_decay": 0.3}, {"params": params[2:], "lr": 0.5}]

found = []
for make in (lambda given: ZeroRedundancyOptimizer(given, fastopt.torch.SGD, lr=0.1, momentum=0.9),
             lambda given: fastopt.torch.SGD(given, lr=0.1, momentum=0.9)):
    model = ddp()
    optimizer = make(groups(model))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in range(6):
        trained(model, optimizer, 1, step)
        schedule.step()
    found.append(bits(model.parameters()))
assert found[0] == found[1]

from test_torch_formulas import rule
cls = fastopt.torch.class_of(rule())
found = []
for make in (lambda given: cls(given, lr=0.1), lambda given: ZeroRedundancyOptimizer(given, cls, lr=0.1)):
    model = ddp()
    found.append(bits(trained(model, make(model.parameters()))))
assert found[0] == found[1]

for cls in (cls, fastopt.torch.AdamW):
    refused(ValueError, "clip_norm must be None in a ZeroRedundancyOptimizer",
            lambda: ZeroRedundancyOptimizer(model.parameters(), cls, lr=0.1, clip_norm=1.0))
    cls(model.parameters(), lr=0.1, clip_norm=1.0)  # of all parameters
""")

"""Models of torch's reach, step by step, the loss that they reach with torch's own optimizers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, TELLING, all_params, pair, where  # noqa: E402


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.body = torch.nn.TransformerEncoder(layer, 2)
        self.head = torch.nn.Linear(16, 11)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens))).flatten(0, 1)


def perceptron():
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))


def batches(model):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (4, 7), generator=generator)
    for _ in range(25):
        if isinstance(model, Transformer):
            yield tokens, tokens.flip(1).flatten()
        else:
            x = torch.randn(32, 8, generator=generator)
            yield x.to(next(model.parameters()).dtype), x[:, :3].argmax(1)


def losses(cls, make, dtype, **kwargs):
    torch.manual_seed(0)
    model = make().to(dtype)
    optimizer = cls(model.parameters(), **kwargs)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 25)
    result = []
    for x, y in batches(model):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        result.append(loss.item())
    return result, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", [perceptron, Transformer])
@pytest.mark.parametrize("name", NAMES)
def test_the_losses_are_torchs(name, make, dtype):
    kwargs = {**TELLING[name], "weight_decay": 1e-3}
    (ours, one), (theirs, _) = (losses(cls, make, dtype, **kwargs) for cls in pair(name))
    assert set(where(one)) == {"fastopt"}
    assert theirs[-1] < 0.97 * theirs[0]
    # Rounding grows from step to step: in float32 from 6e-8 to 1e-5 in 25 of them, in float64 from 1e-16.
    assert ours == pytest.approx(theirs, rel=5e-5 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_parabola_and_rosenbrock(name):
    """The valley of Rosenbrock's function leads both to the same place."""
    rate = {"SGD": 1e-3, "Adagrad": 0.5, "NAdam": 0.01}.get(name, 0.02)
    paths = []
    for cls in pair(name):
        p = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        q = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)
        optimizer = cls([p, q], **{**TELLING[name], "weight_decay": 0.0, "lr": rate})
        for _ in range(300):
            optimizer.zero_grad()
            loss = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2 + (q**2).sum()
            loss.backward()
            optimizer.step()
        paths.append((loss.item(), [t.detach().clone() for t in all_params(optimizer)]))
    (ours, here), (theirs, there) = paths
    assert ours < (24.2 + 25) / 10
    # The walls of the valley throw roundings of 1e-16 back and forth: 1e-4 of the loss after 300 steps.
    assert ours == pytest.approx(theirs, rel=1e-3)
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

"""Training loops that others wrote, with our optimizers in the place of torch's: the same weights at the end."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, TELLING, pair  # noqa: E402

import fastopt.torch  # noqa: E402

pytestmark = pytest.mark.slow


def perceptron(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)).to(dtype)


def rows(dtype=torch.float64):
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))


def assert_same_weights(ours, theirs):
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def assert_all_ours(optimizer):
    """Our kernels still update an optimizer that a trainer has wrapped or copied."""
    assert {placement.where for placement in fastopt.torch.explain(optimizer)} == {"fastopt"}


# ---------------------------------------------------------------- Lightning
def lightning_run(cls, kwargs, folder):
    """Five epochs with clipping, a schedule and accumulation; the last two from a checkpoint, in a new trainer."""
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")
    made = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = perceptron()

        def training_step(self, batch, index):
            x, y = batch
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            made.append(cls(self.parameters(), **kwargs))
            return [made[-1]], [torch.optim.lr_scheduler.CosineAnnealingLR(made[-1], 5)]

    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=0.5, accumulate_grad_batches=2,
            precision="64-true",
        )  # fmt: skip

    loader = torch.utils.data.DataLoader(rows(), batch_size=16)
    first = trainer(3)
    first.fit(Module(), loader)
    path = folder / f"{cls.__module__}.ckpt"
    first.save_checkpoint(path)
    module = Module()
    trainer(5).fit(module, loader, ckpt_path=path, weights_only=False)
    return module, made[-1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_lightning(name, tmp_path):
    ours, theirs = (lightning_run(cls, TELLING[name], tmp_path) for cls in pair(name))
    assert_same_weights(ours[0], theirs[0])
    assert_all_ours(ours[1])


# ---------------------------------------------------------------- Transformers
def transformers_run(cls, kwargs, folder, resume):
    """A small GPT-2; with `resume`, to the middle, and on from the checkpoint in a trainer of its own."""
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    pytest.importorskip("accelerate", reason="Accelerate is not installed")

    def trainer(steps):
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=17, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
                                         embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.randint(0, 17, (64, 8), generator=torch.Generator().manual_seed(2))
        optimizer = cls(model.parameters(), **kwargs)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=steps, per_device_train_batch_size=8, report_to=[], use_cpu=True, save_steps=6,
            max_grad_norm=0.5, disable_tqdm=True, gradient_accumulation_steps=2, logging_strategy="no",
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in tokens]
        return transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, scheduler)), optimizer

    if resume:
        trainer(6)[0].train()
    made, optimizer = trainer(12)
    made.train(resume_from_checkpoint=resume)
    return made.model, optimizer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("resume", [False, True], ids=["in one go", "from a checkpoint"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_transformers_trainer(name, resume, tmp_path):
    ours, theirs = (transformers_run(cls, TELLING[name], tmp_path / cls.__module__, resume) for cls in pair(name))
    for a, b in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert_all_ours(ours[1])

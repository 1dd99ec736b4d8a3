"""Loops that others drive: Lightning's Trainer and Accelerate, over the same dataset."""

import warnings

import lightning.pytorch as lightning
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import farfeed
import farfeed.torch
from datasets import TOKENS, ids_of, token_loader

SAMPLES = 200
BATCHES = SAMPLES // 8


class Model(lightning.LightningModule):
    """Remembers what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(TOKENS, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch, _index):
        self.seen.append(ids_of(batch["tokens"]))
        return self.layer(batch["tokens"].float() / 65536).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_two_epochs_and_goes_on_in_mid_epoch(tokens, tmp_path):
    def fit(loader, checkpoint=None, callbacks=(), **options) -> Model:
        model = Model()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": bool(callbacks)}
        run = lightning.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=list(callbacks), **quiet, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batches = StatefulDataLoader(farfeed.torch.Dataset(loader), batch_size=None)
            run.fit(model, train_dataloaders=batches, ckpt_path=checkpoint, weights_only=True)
        return model

    with token_loader(tokens) as loader:
        whole = fit(loader, max_epochs=2)
    assert len(whole.seen) == 2 * BATCHES
    assert sorted(sum(whole.seen[:BATCHES], [])) == list(range(SAMPLES))

    steps = BATCHES + 5
    with token_loader(tokens) as loader:
        # As long runs do: a checkpoint every so many steps, and an end that comes later.
        keep = ModelCheckpoint(tmp_path, filename="mid", every_n_train_steps=steps, enable_version_counter=False)
        before = fit(loader, max_steps=steps + 3, callbacks=[keep])
    with token_loader(tokens) as loader:
        after = fit(loader, checkpoint=tmp_path / "mid.ckpt", max_epochs=2)
    assert before.seen[:steps] + after.seen == whole.seen


def test_accelerate_steps_over_the_dataset_as_it_is(tokens):
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(TOKENS, 1)
    model, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    seen = []
    with token_loader(tokens, rank=accelerator.process_index, world_size=accelerator.num_processes) as loader:
        # Not prepared: ranks have their shares already, and prepare() would deal them out again.
        for batch in DataLoader(farfeed.torch.Dataset(loader), batch_size=None):
            accelerator.backward(model(batch["tokens"].float() / 65536).square().mean())
            optimiser.step()
            optimiser.zero_grad()
            seen.extend(ids_of(batch["tokens"]))
            del batch
    assert sorted(seen) == list(range(SAMPLES))

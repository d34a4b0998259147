"""Trains a tiny student for some steps on one or several devices (processes); run by a test.

Run: python two_devices.py DEVICES TEACHER OUT [QUEUE_SIZE | sharded]
"""

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from helpers import TINY
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from g2l_plugin.distillation.beyond.similarity import SimilarityKLLoss
from g2l_plugin.distillation.losses import LogSumLoss
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.schedule import CosineSchedule, LossEarlyStopping
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.slides.batch import TileBatch
from g2l_plugin.slides.views import AugmentedView

_TILES_IN_STEP = 12


class Batches(Dataset):
    """Each device's rows of the batch of each step: together always the same tiles."""

    def __init__(self, rank, devices):
        generator = torch.Generator().manual_seed(1)
        tiles = torch.randint(0, 256, (72, 3, 40, 40), dtype=torch.uint8, generator=generator)
        rows = _TILES_IN_STEP // devices
        first = rank * rows
        self.batches = [
            TileBatch(
                tiles[start + first : start + first + rows],
                np.arange(start + first, start + first + rows),
            )
            for start in range(0, len(tiles), _TILES_IN_STEP)
        ]

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # The loss of patch tokens is one of each device's own tiles.
        self.values.append(pl_module.mean_over_devices(outputs["loss"].detach().clone()))


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        batches = Batches(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(batches, batch_size=None)


def main(devices, teacher, out, option=""):
    torch.manual_seed(0)
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=24,
        callbacks=[losses, LossEarlyStopping(window=3, max_exceedances=2, consecutive=False)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = DistillationModule(
        teacher=EncoderSource(f"local-dir:{teacher}"),
        student=EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=TINY),
        loss=SimilarityKLLoss(int(option)) if option.isdecimal() else LogSumLoss(),
        view=AugmentedView(32),
        patch_weight=0.5,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lr_scheduler=lambda o: CosineSchedule(o, T_max=20),
        widths=[16],
        shard_teachers=option == "sharded",
    )
    trainer.fit(module, datamodule=Data())
    state = {f"weights/{k}": v for k, v in module.state_dict().items() if torch.is_tensor(v)}
    state["losses"] = torch.stack(losses.values)
    of_teacher = [getattr(p, "to_local", lambda p=p: p)() for p in module.teacher.parameters()]
    state["teacher"] = torch.tensor(sum(part.numel() for part in of_teacher))
    state["tiles_seen"] = torch.tensor(module.run_state.tiles_seen)
    save_file(state, f"{out}_{devices}_{trainer.global_rank}.safetensors")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for the second, a new process
    main(int(sys.argv[1]), *sys.argv[2:])

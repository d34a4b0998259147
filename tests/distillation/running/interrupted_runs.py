"""Trains the same student twice, the second time killed again and again; run by a test.

Run: python interrupted_runs.py FOLDER SEED
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from eva.core import DataLoader, DataloadersSchema, DatasetsSchema, Interface
from helpers import TINY

from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running.run_checkpoint import RunCheckpoint
from g2l_plugin.distillation.running.trainer import KDTrainer
from g2l_plugin.distillation.schedule import CosineSchedule, LossEarlyStopping
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.files import write_text
from g2l_plugin.publishing.callback import PublishStudent
from g2l_plugin.slides.data_module import TileDataModule
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.views import AugmentedView

_STEPS = 40


class Started(pl.Callback):
    """Says when training has started: what comes before can be killed without loss."""

    def __init__(self, marker):
        self.marker = marker

    def on_train_start(self, trainer, pl_module):
        write_text(self.marker, str(trainer.global_step))  # read as soon as it is there


def train(folder, root):
    torch.set_num_threads(1)
    trainer = KDTrainer(
        default_root_dir=str(root),
        max_steps=_STEPS,
        accelerator="cpu",
        checkpoint_type="last",
        resume="auto",
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=7,
        accumulate_grad_batches=2,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[
            RunCheckpoint(every_n_train_steps=3, every_minutes=0.01),
            LossEarlyStopping(window=100),
            Started(root / "started"),
            PublishStudent(force=True),
        ],
    )
    student = TINY | {"drop_path_rate": 0.5}
    module = DistillationModule(
        teacher=EncoderSource(f"local-dir:{folder / 'teacher'}"),
        student=EncoderSource("timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=student),
        view=AugmentedView(32),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
        lr_scheduler=lambda o: CosineSchedule(o, T_max=_STEPS),
    )
    tiles = {"root": str(folder / "slides"), "width": 32, "height": 32, "min_sharpness": 0}
    tiles |= {"index_dir": str(folder / "index"), "n_val_tiles": 8}
    loader = DataLoader(batch_size=8, num_workers=1, drop_last=True)
    data = TileDataModule(
        datasets=DatasetsSchema(
            train=TileDataset(**tiles, split="train"), val=TileDataset(**tiles, split="val")
        ),
        dataloaders=DataloadersSchema(train=loader, val=loader),
        buffer_tiles=32,
    )
    torch.manual_seed(0)
    Interface().fit(trainer, module, data)


def start(folder, root):
    """Trains in another process; the packages are imported once, here."""
    (root / "started").unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        train(folder, root)
        status = 0
    except SystemExit as left:
        status = left.code
    except BaseException as error:
        print(f"raised: {error!r}")
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait_for_start(pid, root):
    """Waits until the run trains; False where it ended before."""
    while not (root / "started").exists():
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.01)
    return True


def main(folder, seed):
    rng = random.Random(seed)
    (folder / "whole").mkdir()
    (folder / "killed").mkdir()
    pid = start(folder, folder / "whole")
    assert wait_for_start(pid, folder / "whole")
    begin = time.monotonic()
    assert os.waitpid(pid, 0)[1] == 0
    length = time.monotonic() - begin

    root = folder / "killed"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        pid = start(folder, root)
        if not wait_for_start(pid, root):
            print("ended early")
            break
        resumed = int((root / "started").read_text())
        time.sleep(rng.uniform(0, length / 4))
        os.kill(pid, number)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"from step {resumed}: {number.name}, exit status {status}", flush=True)
        kept = sorted(root.glob("*/run_0/checkpoints/step=*.ckpt"))
        if kept and rng.random() < 0.5:  # as after a power cut
            with kept[-1].open("r+b") as file:
                file.truncate(kept[-1].stat().st_size // 2)
    pid = start(folder, root)
    print(f"at last: exit status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Distillation in Python, without a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from eva.core.data.dataloaders import DataLoader
from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from g2l_plugin.distillation.losses import DistillationLoss
from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running.progress import DistillationProgressBar
from g2l_plugin.distillation.running.run_checkpoint import RunCheckpoint
from g2l_plugin.distillation.running.trainer import KDTrainer
from g2l_plugin.distillation.schedule import CosineSchedule
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.publishing.callback import PublishStudent
from g2l_plugin.slides.data_module import TileDataModule
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.views import AugmentedView


def distil(
    teacher: str | EncoderSource,
    student: str | EncoderSource,
    tiles: TileDataset,
    output: str | Path,
    *,
    val_tiles: TileDataset | None = None,
    max_steps: int = 100_000,
    batch_size: int = 32,
    lr: float = 1e-4,
    weight_decay: float = 0.05,
    loss: DistillationLoss | None = None,
    view: AugmentedView | None = None,
    cancer: str | None = None,
    num_workers: int = 8,
    val_check_interval: int = 500,
    seed: int = 42,
    callbacks: Sequence[Any] = (),
    **trainer_options: Any,
) -> Path:
    """Distils a teacher into a student by the G2L recipe, and publishes the student.

    The settings are those of `configs/g2l_breast.yaml`, except for the paper's early stop: add
    `LossEarlyStopping()` to `callbacks` for it. `DistillationModule` and `KDTrainer` give access to
    every part.

    Args:
        teacher: The teacher, e.g. `hf-hub:org/name`; see `load_encoder`.
        student: The start of the student.
        tiles: The tiles to train on.
        output: Folder of the runs.
        val_tiles: Held-out tiles; None runs no validation.
        max_steps: Optimizer steps.
        batch_size: Tiles per batch.
        lr: Learning rate at the start of the schedule.
        weight_decay: Weight decay at the start of the schedule.
        loss: The loss; None uses the log-sum loss.
        view: The augmentation; None uses the paper's, 224 px.
        cancer: The cancer of the slides, for the model card.
        num_workers: Processes that read tiles.
        val_check_interval: Steps between two validations.
        seed: Seed of the networks and of the order of the tiles.
        callbacks: More callbacks of Lightning.
        trainer_options: More arguments of `KDTrainer`, e.g. `devices`, `precision`, `resume`.

    Returns:
        The folder of the student, which plain timm loads.

    Raises:
        UserError: A source, the tiles or a setting cannot be used, the run fails, or its student is
            further from the teacher than its start. Its checkpoint is kept in that case.

    Examples:
        >>> import timm
        >>> from g2l_plugin import AugmentedView, DemoTiles, EncoderSource, distil
        >>> network = {"img_size": 56, "patch_size": 8, "embed_dim": 96, "depth": 1, "num_heads": 3}
        >>> student = distil(
        ...     teacher="demo:teacher",
        ...     student=EncoderSource(
        ...         "timm:vit_tiny_patch16_224", pretrained=False, model_kwargs=network
        ...     ),
        ...     tiles=DemoTiles("demo", slides="train", labelled=False, n_slides=4),
        ...     output="logs",
        ...     view=AugmentedView(56),
        ...     max_steps=3,
        ...     num_workers=0,
        ... )
        >>> timm.create_model(f"local-dir:{student}", pretrained=True).num_features
        96
    """
    seed_everything(seed)
    publish = PublishStudent(cancer=cancer)
    module = DistillationModule(
        teacher=_source(teacher),
        student=_source(student),
        loss=loss,
        view=view,
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=lr, weight_decay=weight_decay
        ),
        lr_scheduler=lambda optimizer: CosineSchedule(optimizer, T_max=max_steps),
    )
    settings: dict[str, Any] = {
        "precision": "bf16-mixed" if torch.cuda.is_available() else "32-true",
        "checkpoint_type": "last",
        "logger": [TensorBoardLogger(str(output), name="")],
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": None,
        "val_check_interval": val_check_interval,
        "limit_val_batches": 0 if val_tiles is None else 1.0,
        "enable_model_summary": False,
    }
    trainer = KDTrainer(
        default_root_dir=str(output),
        max_steps=max_steps,
        callbacks=[DistillationProgressBar(), RunCheckpoint(), *callbacks, publish],
        **(settings | trainer_options),
    )
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    data = TileDataModule(
        datasets=DatasetsSchema(train=tiles, val=val_tiles),
        dataloaders=DataloadersSchema(
            train=DataLoader(**options, drop_last=True), val=DataLoader(**options)
        ),
        seed=seed,
    )
    trainer.fit(module, datamodule=data)
    publish.raise_failure()
    assert publish.student_folder is not None
    return publish.student_folder


def _source(encoder: str | EncoderSource) -> EncoderSource:
    return EncoderSource(encoder) if isinstance(encoder, str) else encoder

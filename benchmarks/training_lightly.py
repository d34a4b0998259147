"""LightlyTrain's distillation for `training.py`, run by a Python that has `lightly_train`.

Needs nothing of this project: LightlyTrain is better installed apart from it.
"""

from __future__ import annotations

import os

import lightly_train
import torch
from training_settings import Settings
from training_turns import Clock


def main() -> None:
    settings = Settings.read(os.environ["SETTINGS"])
    teacher = settings.teacher.create().to(getattr(torch, settings.teacher_dtype))
    student = settings.student.create()
    clock = Clock.of(settings)
    # LightlyTrain takes no callbacks: a step is from one forward pass of the student to the next.
    next(student.children()).register_forward_pre_hook(lambda *_: clock.step())
    lightly_train.pretrain(
        out="run",
        data=settings.images,
        model=student,
        method="distillation",
        method_args={"teacher": teacher},
        epochs=1000,  # does not come to that
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        devices=1,
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        precision=settings.precision,
        optim="adamw",
        transform_args={"image_size": (settings.image_size, settings.image_size)},
    )


if __name__ == "__main__":
    main()

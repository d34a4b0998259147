"""LightlyTrain's distillation for `training.py`, run by a Python that has `lightly_train`.

Imports nothing of this project but `turns.py`: LightlyTrain has a separate environment. This file
is not `lightly.py`, which would hide the package `lightly` that LightlyTrain imports.
"""

from __future__ import annotations

import lightly_train
import torch
from turns import IMAGE_SIZE, Clock, Settings


def main() -> None:
    settings = Settings.read()
    teacher = settings.teacher.create().to(getattr(torch, settings.teacher_dtype))
    student = settings.student.create()
    clock = Clock.of(settings)
    # LightlyTrain accepts no callbacks: a step lasts from one forward pass of the student to the
    # next.
    next(student.children()).register_forward_pre_hook(lambda *_: clock.step())
    lightly_train.pretrain(
        out="run",
        data=settings.images,
        model=student,
        method="distillation",
        method_args={"teacher": teacher},
        epochs=1000,  # never reached
        batch_size=settings.batch_size,
        num_workers=settings.workers,
        devices=1,
        accelerator="gpu" if settings.on_cuda else "cpu",
        precision=settings.precision,
        optim="adamw",
        transform_args={"image_size": (IMAGE_SIZE, IMAGE_SIZE)},
    )


if __name__ == "__main__":
    main()

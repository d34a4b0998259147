"""How much memory a run needs on its GPU, by its settings."""

from __future__ import annotations

import dataclasses
import functools

from torch.optim import AdamW

from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.doctor.needs import STUDENT, TEACHER
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.errors import UserError
from g2l_plugin.planning.settings import Model, Settings
from g2l_plugin.planning.step_memory import DEVICE_OVERHEAD, StepMemory, largest_micro_batch, trace
from g2l_plugin.slides.views import AugmentedView


def is_measured(settings: Settings) -> bool:
    """Whether the device's memory was measured for such a step."""
    (teacher, *further), student = settings.teachers, settings.student
    return (
        not further
        and (settings.precision, settings.view_size) == ("bf16-mixed", 224)
        and teacher.dtype == TEACHER.dtype
        and teacher.parameters == TEACHER.parameters
        and student.parameters == STUDENT.parameters
    )


def device_memory(settings: Settings) -> float:
    """Bytes that training needs on a device, those beside PyTorch's tensors too."""
    peak = _step(settings).peak(settings.batch_size, settings.micro_batch_size)
    return peak + DEVICE_OVERHEAD


def largest_fitting(settings: Settings, memory: float) -> int | None:
    """The largest micro-batch that fits into a device's memory; None if no tile does."""
    return largest_micro_batch(_step(settings), settings.batch_size, memory)


def _step(settings: Settings) -> StepMemory:
    try:
        return _traced(
            tuple(_buildable(teacher, TEACHER) for teacher in settings.teachers),
            _buildable(settings.student, STUDENT),
            settings.view_size,
            settings.precision,
        )
    except UserError:  # the run says so itself, and another check before it
        recipe = (_buildable(TEACHER, TEACHER),), _buildable(STUDENT, STUDENT)
        return _traced(*recipe, 224, "bf16-mixed")


@functools.cache
def _traced(
    teachers: tuple[Model, ...], student: Model, view_size: int, precision: str
) -> StepMemory:
    first, *further = (EncoderSource(model.source, dtype=model.dtype) for model in teachers)
    module = DistillationModule(
        first,
        EncoderSource(student.source),
        view=AugmentedView(view_size),
        optimizer=functools.partial(AdamW, fused=True),
        further_teachers=further,
    )
    return trace(module, precision)


def _buildable(model: Model, otherwise: Model) -> Model:
    """A network that is built without the Hub; a measured one in place of others."""
    if model.known is None and model.repo_id is not None:
        model = dataclasses.replace(otherwise, dtype=model.dtype)
    return dataclasses.replace(model, variable="", revision=None, pretrained=False)

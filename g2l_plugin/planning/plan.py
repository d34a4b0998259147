"""What a run needs: memory by GPU, tiles/s, hours, money and disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from g2l_plugin.distillation.module import DistillationModule
from g2l_plugin.distillation.running.sharded_teachers import largest_block
from g2l_plugin.planning import disk
from g2l_plugin.planning.gpus import Gpu
from g2l_plugin.planning.settings import Settings, read_settings
from g2l_plugin.planning.speed import step_flops, step_share, tiles_per_second
from g2l_plugin.planning.step_memory import (
    DEVICE_OVERHEAD,
    StepMemory,
    largest_batch,
    largest_micro_batch,
    trace,
)
from g2l_plugin.planning.weightless import build_weightless, read_module


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the run.

    Attributes:
        source: Its source.
        parameters: Number of its weights.
        features: Width of its embedding.
        flops: Operations of the forward pass of one tile.
    """

    source: str
    parameters: int
    features: int
    flops: int


@dataclasses.dataclass(frozen=True)
class OnGpu:
    """A run on a kind of GPU.

    Attributes:
        gpu: The kind of GPU.
        need: Bytes that a step needs on one, with the settings as they are.
        fits: Whether one has them.
        largest_batch: The largest power of two that fits without micro-batches; None if none does.
        micro_batch: Tiles in a forward pass: as set, or the largest that fits; None for the batch.
        limit: Tiles/s of all GPUs at the speed of a large matrix product; None where no step fits,
            and where the precision has no measured speed.
        rate: Tiles/s of all GPUs, by the share that training reaches; likewise.
        pass_hours: Hours of one pass over all tiles; likewise.
        run_hours: Hours of MAX_STEPS; None also where that has no limit.
        pass_dollars: Price of one pass on all of them.
    """

    gpu: Gpu
    need: float
    fits: bool
    largest_batch: int | None
    micro_batch: int | None
    limit: float | None
    rate: float | None
    pass_hours: float | None
    run_hours: float | None
    pass_dollars: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        settings: Its settings.
        teachers: Its teachers.
        student: Its student.
        trained: Number of weights that are trained: of student and projector.
        step: The memory of a step.
        slides: Slides of the cohort.
        devices: GPUs of the run.
        gpus: The run on each kind of GPU.
    """

    settings: Settings
    teachers: tuple[Network, ...]
    student: Network
    trained: int
    step: StepMemory
    slides: int
    devices: int
    gpus: tuple[OnGpu, ...]

    @property
    def tiles(self) -> int:
        """Tiles of one pass."""
        return self.slides * disk.TILES_PER_SLIDE

    def disk(self) -> dict[str, float]:
        """Bytes on disk, by what they are."""
        sources = dict.fromkeys((*self.teachers, self.student))
        width = sum(teacher.features for teacher in self.teachers)
        return {
            "slides": self.slides * disk.SLIDE,
            "index": disk.index(self.slides),
            "packed tiles (optional)": self.tiles * disk.PACKED_TILE,
            "weights to download": sum(disk.weights(network.parameters) for network in sources),
            "checkpoints": disk.CHECKPOINTS * disk.checkpoint(self.trained),
            "published student": disk.weights(self.student.parameters),
            "teacher cache, one view (optional)": disk.embeddings(self.tiles, width),
        }


def describe_networks(module: DistillationModule) -> tuple[tuple[Network, ...], Network, int]:
    """The teachers, the student, and the number of trained weights of a module that is built."""
    sources = [*module.teacher_sources, module.student_source]
    encoders = [*module.teachers.encoders, module.student]
    *teachers, student = (
        Network(
            source.source,
            encoder.count_parameters(),
            encoder.embedding_dim,
            encoder.count_flops(module.view.size),
        )
        for source, encoder in zip(sources, encoders, strict=True)
    )
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return tuple(teachers), student, trained


def plan_run(
    config: str,
    gpus: Sequence[Gpu],
    slides: int | None = None,
) -> Plan:
    """Plans a run.

    Args:
        config: A config of the recipe, by name or path (see `config_files.find_config`).
        gpus: Kinds of GPU.
        slides: Slides of the cohort; None takes N_SLIDES, or 1,000 where it takes all.

    Raises:
        UserError: There is no such config, a value is wrong, or a network cannot be built without
            its weights.
    """
    settings = read_settings(config)
    module = read_module(config)
    build_weightless(module)
    teachers, student, trained = describe_networks(module)
    compiled = module.compile_encoders
    step = trace(module, settings.precision)
    slides, devices = slides or settings.n_slides or 1000, settings.devices or 1
    if module.shard_teachers and devices > 1:
        step = step.divided(devices, max(map(largest_block, module.teachers.encoders)))
    planned = tuple(
        _on_gpu(gpu, settings, step, (teachers, student), compiled, slides, devices) for gpu in gpus
    )
    return Plan(settings, teachers, student, trained, step, slides, devices, planned)


def _on_gpu(
    gpu: Gpu,
    settings: Settings,
    step: StepMemory,
    networks: tuple[tuple[Network, ...], Network],
    compiled: bool,
    slides: int,
    devices: int,
) -> OnGpu:
    batch, micro = settings.batch_size, settings.micro_batch_size
    need = step.peak(batch, micro) + DEVICE_OVERHEAD
    fits = need <= gpu.memory
    if not fits:
        micro = largest_micro_batch(step, batch, gpu.memory)
    limit = rate = pass_hours = run_hours = None
    if (fits or micro is not None) and settings.precision.endswith("mixed"):
        teachers, student = networks
        in_parts = micro is not None and micro < batch
        flops = step_flops(sum(teacher.flops for teacher in teachers), student.flops, in_parts)
        limit = devices * tiles_per_second(gpu.tflops, flops)
        rate = limit * step_share(min(micro or batch, batch), in_parts, compiled)
        pass_hours = slides * disk.TILES_PER_SLIDE / rate / 3600
        if settings.max_steps >= 0:
            run_hours = settings.max_steps * batch * devices / rate / 3600
    return OnGpu(
        gpu=gpu,
        need=need,
        fits=fits,
        largest_batch=largest_batch(step, gpu.memory),
        micro_batch=micro,
        limit=limit,
        rate=rate,
        pass_hours=pass_hours,
        run_hours=run_hours,
        pass_dollars=None if pass_hours is None else pass_hours * devices * gpu.dollars,
    )

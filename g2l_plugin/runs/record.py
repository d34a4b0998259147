"""The record of a run: saved in every checkpoint, and all that publishing needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.errors import UserError
from g2l_plugin.parallel.cpus import usable_cpus

KEY = "g2l"
"""Key of the record in a checkpoint."""


@dataclasses.dataclass(frozen=True)
class EncoderRecord:
    """What a run knows of one of its encoders.

    Attributes:
        provenance: The weights it started with.
        parameters: Number of weights.
        flops: Floating-point operations per image.
        embedding_dim: Width of its embeddings.
        input_size: Height and width of that image, in pixels.
    """

    provenance: Provenance
    parameters: int
    flops: int
    embedding_dim: int
    input_size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a checkpoint knows of its run.

    Attributes:
        teacher: The teacher.
        student: The student, with the weights that it started from.
        network: The student's config.json, from which timm builds its network.
        objective: The objective in words, see `describe_objective`.
        finished: Whether the run had ended.
        ending: What ended it before its last step, e.g. an early stop; "" if nothing did.
        step: Optimizer steps taken.
        tiles_seen: Tiles seen in training.
        seconds: Time of training over all resumed parts, in seconds.
        hardware: The devices, e.g. `2 x NVIDIA H200`.
        cohort: `tiles`, and `slides` or `images` with `centres` (how many of them per centre);
            `patients`, those of training and validation as `list_patients` hashes them, and
            `patients_public`, whether all have a TCGA barcode.
        start: Figures of the validation before the first step, as `alignment`.
        alignment: Figures of the last validation (see `g2l_plugin.runs.validation`), with
            its `step`, `tiles` and, if known, `patients`; may be empty.
        change: From start to the last validation: the difference of `val/cka` and of
            `val/shared_neighbours`, and both ends of its 95 % interval; None where unknown.
        further_teachers: The teachers after the first.
        widths: Prefixes of the student's embedding that were distilled too.
        resumed: What was changed where the run was resumed, a line for each time.
    """

    teacher: EncoderRecord
    student: EncoderRecord
    network: dict[str, Any]
    objective: str
    finished: bool = False
    ending: str = ""
    step: int = 0
    tiles_seen: int = 0
    seconds: float = 0.0
    hardware: str = ""
    cohort: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: dict[str, float] = dataclasses.field(default_factory=dict)
    alignment: dict[str, float] = dataclasses.field(default_factory=dict)
    change: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    further_teachers: tuple[EncoderRecord, ...] = ()
    widths: tuple[int, ...] = ()
    resumed: tuple[str, ...] = ()

    @property
    def teachers(self) -> tuple[EncoderRecord, ...]:
        """All teachers."""
        return (self.teacher, *self.further_teachers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which PyTorch reads from a checkpoint without running code."""
        return dataclasses.asdict(self)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], source: str) -> RunRecord:
        """Reads the record of a checkpoint.

        Args:
            checkpoint: The loaded checkpoint.
            source: Its path, for errors.

        Raises:
            UserError: It has no record.
        """
        try:
            values = dict(checkpoint[KEY])
            for role in ("teacher", "student"):
                values[role] = _rebuild(values[role])
            values["further_teachers"] = tuple(
                _rebuild(part) for part in values.get("further_teachers", ())
            )
            for name in ("widths", "resumed"):
                values[name] = tuple(values.get(name, ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{source} is no checkpoint of a distillation by this version ({error!r}). "
                "Expected checkpoints/last.ckpt of a run of g2l_plugin.KDTrainer."
            ) from error


def record_encoder(encoder: Encoder, size: int) -> EncoderRecord:
    """Records an encoder; runs it once to count its FLOPs.

    Args:
        encoder: The encoder.
        size: Height and width of its images in the run, in pixels.
    """
    return EncoderRecord(
        provenance=encoder.provenance,
        parameters=encoder.count_parameters(),
        flops=encoder.count_flops(size),
        embedding_dim=encoder.embedding_dim,
        input_size=(size, size),
    )


def describe_objective(
    loss: nn.Module,
    projector: str = "linear",
    normalize_teacher: bool = True,
    patch_weight: float = 0.0,
    n_teachers: int = 1,
) -> str:
    """Describes an objective in a sentence without its full stop.

    Args:
        loss: The loss between student and teacher.
        projector: What brings them together: `linear`, `rotation` or `learned_rotation`.
        normalize_teacher: Whether the teacher's embeddings are normalised.
        patch_weight: Weight of the cosine loss between patch tokens.
        n_teachers: Number of teachers.
    """
    settings = {k: v for k, v in vars(loss).items() if isinstance(v, int | float) and k[0] != "_"}
    settings.pop("training", None)
    inner = ", ".join(f"{name}={value:g}" for name, value in settings.items())
    teachers, several = "the teacher's", ""
    if projector != "linear":
        if n_teachers > 1:
            teachers = f"the joined embeddings of {n_teachers} teachers"
        kind = "rotation that trains" if projector == "learned_rotation" else "fixed rotation"
        way, norms = f"a {kind} turns the student's embedding into", ""
    else:
        way = "a linear projector, discarded afterwards, maps the student's embedding to"
        norms = " after batch norms" if normalize_teacher else " after a batch norm of its side"
        if n_teachers > 1:
            several = (
                f"; each of {n_teachers} teachers has its own projector and loss, and their "
                "weighted mean is the loss"
            )
    patches = f", plus {patch_weight:g} x the cosine loss of patch tokens" if patch_weight else ""
    return f"{way} {teachers}; the loss is {type(loss).__name__}({inner}){norms}{patches}{several}"


def describe_hardware(device: torch.device, n_devices: int) -> str:
    """The devices of a run, e.g. `2 x NVIDIA H200`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"CPU ({usable_cpus()} cores)"
    else:
        name = device.type
    return f"{n_devices} x {name}"


def _rebuild(values: dict[str, Any]) -> EncoderRecord:
    parts = dict(values)
    parts["provenance"] = Provenance(**parts["provenance"])
    parts["input_size"] = tuple(parts["input_size"])
    return EncoderRecord(**parts)

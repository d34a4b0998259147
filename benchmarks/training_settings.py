"""What `training.py` compares: networks and settings, the same for every way to train.

Needs PyTorch and timm alone, for LightlyTrain's environment too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import timm
import timm.layers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with random weights.

    Attributes:
        source: As `g2l_plugin.load_encoder` takes it.
        kwargs: Arguments for it, as `model_kwargs`.
        architecture: timm's name of the same network.
        architecture_kwargs: Arguments for `timm.create_model`.
    """

    source: str
    kwargs: dict[str, Any]
    architecture: str
    architecture_kwargs: dict[str, Any]

    def create(self) -> nn.Module:
        """The network by timm alone, without a classifier."""
        kwargs = dict(self.architecture_kwargs)
        if isinstance(kwargs.get("mlp_layer"), str):
            kwargs["mlp_layer"] = getattr(timm.layers, kwargs["mlp_layer"])
        return timm.create_model(self.architecture, num_classes=0, **kwargs)

    def describe(self, image_size: int) -> dict[str, Any]:
        """Parameters, width, and floating-point operations of a forward pass of one image."""
        with torch.device("meta"):  # takes no memory
            network: Any = self.create().eval()
            image = torch.empty(1, 3, image_size, image_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
        return {
            "source": self.source,
            "architecture": self.architecture,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "features": network.num_features,
            "flops": counter.get_total_flops(),
        }


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all ways of one comparison have in common, and each reads from a file.

    Attributes:
        teacher: The teacher.
        student: The student.
        image_size: Side of a view, in pixels.
        batch_size: Tiles of a step.
        warm_up: Steps before the first window.
        steps: Steps of a window.
        precision: As Lightning names it: 32-true or bf16-mixed.
        teacher_dtype: What the teacher's weights are held in: float32 or bfloat16.
        device: cpu or cuda.
        threads: Threads of PyTorch on the CPU.
        workers: Data workers.
        slides: Folder of slides.
        index: Folder of their index.
        tiles: File of tiles, uint8 (N, 3, 256, 256).
        images: Folder of the same tiles as JPEG files.
    """

    teacher: Network
    student: Network
    image_size: int
    batch_size: int
    warm_up: int
    steps: int
    precision: str
    teacher_dtype: str
    device: str
    threads: int
    workers: int
    slides: str
    index: str
    tiles: str
    images: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(path: str) -> Settings:
        values = json.loads(Path(path).read_text())
        for name in ("teacher", "student"):
            values[name] = Network(**values[name])
        return Settings(**values)

    def dtype(self) -> torch.dtype:
        """The precision of matrix products."""
        return torch.bfloat16 if self.precision.startswith("bf16") else torch.float32

"""Patch tokens distilled beside the class token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override


class PatchObjective(nn.Module):
    """One minus the cosine between student and teacher at each place of their grids.

    A class token alone leaves the patch tokens free, on which segmentation stands. Each teacher has
    its own linear projector, without a normalization: a cosine needs none. Where the grids differ,
    the teacher's is resampled to the student's.

    Source: the idea is DistillPath's and H0-mini's (arXiv 2501.16239); this form is ours.
    """

    def __init__(self, student_dim: int, teacher_dims: Sequence[int]) -> None:
        """Initializes the projectors.

        Args:
            student_dim: Features of a place of the student's grid, C_s.
            teacher_dims: Those of each teacher's, C_t.
        """
        super().__init__()
        self.projectors = nn.ModuleList(nn.Linear(student_dim, dim) for dim in teacher_dims)

    @override
    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Computes the loss, the mean over teachers, tiles and places.

        Args:
            student: The student's grid (B, C_s, H, W).
            teachers: The grid of each teacher, (B, C_t, H_t, W_t).

        Returns:
            The loss, a scalar in [0, 2].
        """
        with torch.autocast(student.device.type, enabled=False):
            places = student.float().permute(0, 2, 3, 1)  # (B, H, W, C_s)
            losses = []
            for projector, teacher in zip(self.projectors, teachers, strict=True):
                target = teacher.float()
                if target.shape[-2:] != student.shape[-2:]:
                    target = functional.interpolate(
                        target, student.shape[-2:], mode="bilinear", antialias=True
                    )
                cosine = functional.cosine_similarity(  # (B, H, W)
                    projector(places), target.permute(0, 2, 3, 1), dim=-1
                )
                losses.append(1 - cosine.mean())
            return torch.stack(losses).mean()  # ()

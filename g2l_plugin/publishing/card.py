"""The model card of a student: what it is, where it is from, and what was measured."""

from __future__ import annotations

import dataclasses
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from g2l_plugin.encoders.encoder import Provenance


@dataclasses.dataclass(frozen=True)
class StudentFacts:
    """All that a card says; every number is one that the run counted or measured.

    Attributes:
        teacher: Where the teacher is from.
        start: Where the student's start weights are from.
        architecture: timm's name of the network.
        parameters: Weights of the student.
        teacher_parameters: Weights of the teacher.
        embedding_dim: Width of the student's embeddings.
        input_size: Height and width of its images, in pixels.
        mean: Normalisation mean, RGB.
        std: Normalisation standard deviation, RGB.
        loss: Name and settings of the loss.
        steps: Optimizer steps taken.
        tiles_seen: Tiles seen in training.
        n_slides: Slides of the training cohort, where known.
        alignment: `val/cosine`, `val/cka` and the `step` they were measured at; may be empty.
        evaluation: What the run's evaluation.json holds; None where there is none.
        license: Licence identifier, where teacher and start weights agree on one.
    """

    teacher: Provenance
    start: Provenance
    architecture: str
    parameters: int
    teacher_parameters: int
    embedding_dim: int
    input_size: tuple[int, int]
    mean: list[float]
    std: list[float]
    loss: str
    steps: int
    tiles_seen: int
    n_slides: int | None
    alignment: dict[str, float]
    evaluation: dict[str, Any] | None
    license: str | None


def render_card(facts: StudentFacts) -> str:
    """Writes README.md of a published folder: Hub metadata, then text."""
    base = facts.start.source.removeprefix("hf-hub:").partition("@")[0]
    from_hub = facts.start.pretrained and facts.start.source.startswith("hf-hub:")
    metadata = ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        license=facts.license,
        base_model=base if from_hub else None,
        tags=["pathology", "histology", "knowledge-distillation", "g2l"],
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{_text(facts)}"))


def _text(facts: StudentFacts) -> str:
    share = facts.parameters / facts.teacher_parameters
    start = "random weights" if not facts.start.pretrained else _origin(facts.start)
    slides = "" if facts.n_slides is None else f" of {facts.n_slides:,} whole slides"
    height, width = facts.input_size
    license_text = facts.license or "not settled: it depends on those of teacher and start weights"
    return f"""# Pathology tile encoder, distilled with G2L

An encoder of {facts.parameters / 1e6:.2f} M parameters that gives {facts.embedding_dim} features
for a tile, distilled from a teacher of {facts.teacher_parameters / 1e6:.2f} M parameters
({share:.1%} of its size).

```python
import timm
model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
# RGB tiles of {width}x{height} px, scaled to [0, 1], then normalised with
# mean {facts.mean} and std {facts.std}
```

## Where it is from

| | |
|---|---|
| teacher | {_origin(facts.teacher)} |
| student's start | {start} |
| architecture | timm `{facts.architecture}` |
| licence | {license_text} |

## How it was trained

Recipe: G2L (arXiv 2510.11176), loss {facts.loss}, {facts.steps:,} steps on {facts.tiles_seen:,}
augmented tiles{slides}. Teacher and student saw the same view of each tile.

## What was measured

{_measurements(facts)}

## Limits

For research. Not a medical device, not validated for diagnosis. Tissue, stains and scanners that
were not in the training cohort were not seen, and biases of the teacher may be inherited.
"""


def _origin(provenance: Provenance) -> str:
    parts = [f"`{provenance.source}`"]
    if provenance.revision:
        parts.append(f"revision `{provenance.revision}`")
    if provenance.sha256:
        parts.append(f"weights sha256 `{provenance.sha256}`")
    if not provenance.pretrained:
        parts.append("random weights")
    return ", ".join(parts)


def _measurements(facts: StudentFacts) -> str:
    blocks = []
    if facts.alignment:
        blocks.append(
            f"Against the teacher, on held-out tiles of the cohort, at step "
            f"{int(facts.alignment['step']):,}: linear CKA {facts.alignment['val/cka']:.4f}, "
            f"cosine of the projected embeddings {facts.alignment['val/cosine']:.4f}."
        )
    if facts.evaluation:
        rows = [
            f"| {name} | {row['knn_accuracy']:.4f} | {row['cka']:.4f} |"
            for name, row in facts.evaluation["encoders"].items()
        ]
        blocks.append(
            f"kNN (k = {facts.evaluation['k']}) accuracy on tiles of held-out slides, and linear "
            "CKA with the teacher:\n\n| encoder | kNN accuracy | CKA |\n|---|---|---|\n"
            + "\n".join(rows)
        )
    return "\n\n".join(blocks) or "Nothing yet."

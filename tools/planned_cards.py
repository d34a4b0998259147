"""The card of a student that is not trained yet: what its config says, and nothing measured.

Run: python tools/planned_cards.py configs/g2l_breast.yaml model_cards/breast_vitl14.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import g2l_plugin
from g2l_plugin.config_files import load_config
from g2l_plugin.encoders.encoder import Encoder, Provenance
from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.timm_network import create_timm, timm_config
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.publishing.card import CardFacts, render_card
from g2l_plugin.publishing.licenses import license_of
from g2l_plugin.publishing.publish import find_cancer
from g2l_plugin.runs.record import RunRecord, describe_objective, record_encoder


def planned_card(config_path: Path) -> str:
    """Writes the card of the student that a config would train.

    Args:
        config_path: A config of `g2l_plugin.KDTrainer`; teacher and student are known encoders.

    Raises:
        UserError: They are not known, so that nothing can be said of them.
    """
    config: Any = load_config(config_path)
    model = config["model"]["init_args"]
    size = int(model["view"]["init_args"]["size"])
    teacher, student = (_on_paper(model[role]["source"]) for role in ("teacher", "student"))
    loss = getattr(g2l_plugin, model["loss"]["class_path"].rpartition(".")[2])
    record = RunRecord(
        teacher=record_encoder(teacher, size),
        student=record_encoder(student, size),
        network=timm_config(student),
        objective=describe_objective(
            loss(**model["loss"].get("init_args", {})),
            model["projector"],
            model["normalize_teacher"],
            float(model["patch_weight"]),
        ),
    )
    settled = license_of([("teacher", teacher.provenance), ("start", student.provenance)])
    cancer = find_cancer(config)
    return render_card(CardFacts(record, settled, cancer, config))


def _on_paper(source: str) -> Encoder:
    """A known encoder without memory: its shape and what is known of it."""
    known = find_known(source)
    if known is None:
        raise UserError(f"{source} is not among the encoders that `g2l models` lists.")
    with torch.device("meta"):
        model = create_timm(
            known.architecture, source, None, torch.float32, dict(known.model_kwargs)
        )
        encoder = Encoder(
            model,
            mean=known.mean,
            std=known.std,
            provenance=Provenance(source, license=known.license),
        )
    # Its values are needed, unlike the weights'.
    for name in ("mean", "std"):
        encoder.register_buffer(
            name, torch.tensor(getattr(known, name)).view(1, 3, 1, 1), persistent=False
        )
    return encoder


if __name__ == "__main__":
    write_text(Path(sys.argv[2]), planned_card(Path(sys.argv[1])))

"""Publishes a model that was distilled elsewhere: with a card that says what can be seen of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import check_replaceable
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.publishing.card import CardFacts
from g2l_plugin.publishing.licenses import choose_license
from g2l_plugin.publishing.paths import without_paths
from g2l_plugin.publishing.publish import Published, write_published
from g2l_plugin.runs.record import KEY, RunRecord, record_encoder


def publish_elsewhere(
    student: Encoder,
    teacher: Encoder,
    folder: Path,
    *,
    compare: Callable[[], dict[str, float]] | None = None,
    cancer: str | None = None,
    license: str | None = None,
    onnx: bool = False,
) -> Published:
    """Writes a folder of a student whose training this package has not seen.

    Its card has what the weights and tiles show, and says that teacher and cancer are the
    publisher's word and that the rest is not known.

    Args:
        student: The student; timm must be able to build its network.
        teacher: The teacher that the publisher names.
        folder: The folder to write.
        compare: Compares it with the teacher (`compare_on_images`), once all else is found to be in
            order; None measures nothing.
        cancer: The cancer that it is for; None if none is named.
        license: Licence identifier; None derives it from the student's and the teacher's.
        onnx: Whether to write model.onnx too, which needs the extra `onnx`.

    Raises:
        UserError: timm cannot build the network, the Hub knows no such licence, or the folder holds
            other files.
    """
    check_replaceable(folder.expanduser())
    network = timm_config(student)
    named = choose_license(
        [("teacher", teacher.provenance), ("model", student.provenance)], license
    )
    patients = student.training_patients
    record = RunRecord(
        teacher=record_encoder(teacher, teacher.usual_size),
        student=record_encoder(student, student.usual_size),
        network=network,
        objective="",
        alignment=compare() if compare else {},
        cohort={"patients": patients} if patients else {},
    )
    record = RunRecord.from_checkpoint({KEY: without_paths(record.to_dict())}, str(folder))
    return write_published(
        folder,
        student.model.state_dict(),
        CardFacts(record, named, cancer, elsewhere=True),
        metadata={"origin": record.student.provenance.describe()},
        results={"alignment": record.alignment},
        patients=patients,
        onnx=onnx,
    )

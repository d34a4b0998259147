"""Publishes a model that was distilled elsewhere: with a card that says what can be seen of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import PATIENTS, README, RESULTS, write_folder
from g2l_plugin.encoders.timm_network import timm_config
from g2l_plugin.files import write_text
from g2l_plugin.publishing.card import CardFacts, render_card
from g2l_plugin.publishing.licenses import check_license, license_of
from g2l_plugin.publishing.onnx_export import export_onnx
from g2l_plugin.publishing.paths import without_paths
from g2l_plugin.publishing.publish import Published
from g2l_plugin.runs.record import KEY, RunRecord, record_encoder

_USUAL_SIZE = 224
"""Side of the images, in pixels, on which FLOPs are counted of an encoder that names no size."""


def publish_elsewhere(
    student: Encoder,
    teacher: Encoder,
    folder: Path,
    *,
    alignment: dict[str, float] | None = None,
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
        alignment: How it compares with the teacher, from `compare_on_images`; None if unmeasured.
        cancer: The cancer that it is for; None if none is named.
        license: Licence identifier; None derives it from the student's and the teacher's.
        onnx: Whether to write model.onnx too, which needs the extra `onnx`.

    Raises:
        UserError: timm cannot build the network, or the Hub knows no such licence.
    """
    if license:
        check_license(license)
    network = timm_config(student)
    derived = license_of([("teacher", teacher.provenance), ("model", student.provenance)])
    if license:
        derived = dataclasses.replace(derived, identifier=license)
    teacher_record, student_record = (
        record_encoder(encoder, (encoder.input_size or (_USUAL_SIZE,))[0])
        for encoder in (teacher, student)
    )
    patients = student.training_patients
    record = RunRecord(
        teacher_record,
        student_record,
        network,
        objective="",
        alignment=alignment or {},
        cohort={"patients": patients} if patients else {},
    )
    record = RunRecord.from_checkpoint({KEY: without_paths(record.to_dict())}, str(folder))
    facts = CardFacts(record, derived, cancer, lists_patients=bool(patients), elsewhere=True)
    files = {RESULTS: json.dumps({"alignment": record.alignment}, indent=2) + "\n"}
    if patients:
        files[PATIENTS] = "".join(f"{entry}\n" for entry in patients)
    written = write_folder(
        folder,
        student.model.state_dict(),
        network,
        card=render_card(facts),
        license=derived.identifier,
        metadata={
            "teacher": record.teacher.provenance.describe(),
            "origin": record.student.provenance.describe(),
        },
        files=files,
    )
    if onnx:
        export_onnx(written)
        write_text(written / README, render_card(dataclasses.replace(facts, has_onnx=True)))
    return Published(written, record, derived)

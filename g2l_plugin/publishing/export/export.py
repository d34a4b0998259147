"""Writes a student in the form that another tool takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from safetensors.torch import load_file

from g2l_plugin.encoders.encoder import Encoder
from g2l_plugin.encoders.folder import CONFIG, ONNX, README, write_folder
from g2l_plugin.encoders.locate import locate_folder, split_revision
from g2l_plugin.encoders.timm_network import explain_build_errors, timm_config
from g2l_plugin.encoders.weights import WEIGHTS, hash_tensors
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.publishing.export.lines import (
    TORCHSCRIPT,
    onnx_lines,
    timm_lines,
    torchscript_lines,
    wsinfer_lines,
)
from g2l_plugin.publishing.export.precision import (
    FLOAT32,
    ExampleTiles,
    check_precision,
    describe_cost,
    lower_onnx,
    lower_torchscript,
)
from g2l_plugin.publishing.export.python_file import FOLDER, file_name, render
from g2l_plugin.publishing.export.record import check_place, new_export
from g2l_plugin.publishing.export.student import Student, load_student
from g2l_plugin.publishing.export.torchscript import Fit, write_torchscript, wsinfer_config
from g2l_plugin.publishing.onnx_export import export_onnx

PYTHON_TOOLS = (
    "lazyslide",
    "trident",
    "stamp",
    "hest",
    "thunder",
    "slideflow",
    "tiatoolbox",
    "atlaspatch",
)
"""Tools that take a student through a Python file."""

TOOLS = (*PYTHON_TOOLS, "timm", "onnx", "torchscript", "wsinfer")
"""All tools."""


@dataclasses.dataclass(frozen=True)
class Export:
    """An export.

    Attributes:
        folder: Its folder.
        lines: The lines that use it.
        notes: Sentences on what was assumed, and on what a lower precision costs.
        written: False if the folder held this export before.
    """

    folder: Path
    lines: str
    notes: list[str]
    written: bool


def export_for(
    source: str,
    tool: str,
    folder: Path,
    *,
    mpp: float | None = None,
    fit: Fit | None = None,
    precision: str = FLOAT32,
    tiles: ExampleTiles | None = None,
) -> Export:
    """Writes a student in the form that a tool takes.

    Args:
        source: A source for `load_encoder`.
        tool: One of `TOOLS`.
        folder: The folder to write, which does not exist yet.
        mpp: Resolution of its tiles, in micrometres per pixel; None finds it (`load_student`).
        fit: Fits the classifier, for WSInfer.
        precision: `float32`; for ONNX also `float16` or `int8`, for TorchScript also `float16` or
            `bfloat16`. Images and embeddings are float32 all the same.
        tiles: What a lower precision is compared with float32 on; needed for one.

    Raises:
        UserError: The tool is unknown or cannot take the student or the precision, or the folder
            exists.

    Examples:
        >>> export = export_for("demo:teacher", "lazyslide", Path("lazyslide"))
        >>> sorted(file.name for file in export.folder.iterdir())
        ['export.json', 'lazyslide_student.py', 'student']
    """
    if tool not in TOOLS:
        raise UserError(f"Unknown tool {tool!r}. Expected one of {', '.join(TOOLS)}.")
    if (tool == "wsinfer") != (fit is not None):
        raise UserError(
            "WSInfer takes classifiers: give --embeddings DIR, labelled embeddings of this student "
            "by eva predict_fit."
            if fit is None
            else f"{tool} takes no classifier: leave --embeddings and --classes out."
        )
    check_precision(tool, precision)
    folder = folder.expanduser()
    check_place(folder)  # before the weights are read
    student, encoder, note = load_student(source, mpp)
    notes = [note] if note else []
    record: dict[str, Any] = {"tool": tool, "student": dataclasses.asdict(student)}
    hub = None
    if tool in PYTHON_TOOLS:
        hub = _find_on_hub(source, student, encoder)
        if source.startswith("hf-hub:") and hub is None:
            notes.append(
                f"timm needs the weights of {source} in another layout: they are written beside "
                "the file."
            )
        record["hub"] = hub and list(hub)
    lower = tiles if precision != FLOAT32 else None
    if lower:
        record["precision"] = precision
    classifier = None
    if fit is not None:
        classifier, record["classes"] = fit(student, encoder)
        record["probe"] = hash_tensors(classifier.probe)
    with new_export(folder, record) as (partial, cost):
        if tool in PYTHON_TOOLS:
            text, lines = render(tool, student, hub)
            if partial and hub is None:
                _write_timm_folder(partial / FOLDER, source, student, encoder)
            if partial:
                write_text(partial / file_name(tool), text)
        elif tool in ("timm", "onnx"):
            lines = timm_lines(folder) if tool == "timm" else onnx_lines(folder, student)
            if partial:
                _write_timm_folder(partial, source, student, encoder)
            if partial and tool == "onnx":
                export_onnx(partial)
            if partial and tool == "onnx" and lower:
                cost |= lower_onnx(partial / ONNX, encoder, precision, lower, student.size)
                _append(partial / README, f"## Precision of {ONNX}\n\n{describe_cost(cost)}\n")
        elif tool == "torchscript":
            lines = torchscript_lines(folder, student)
            if partial and lower:
                file = partial / TORCHSCRIPT
                cost |= lower_torchscript(file, encoder, precision, lower, student.size)
            elif partial:
                write_torchscript(encoder, student.size, partial / TORCHSCRIPT, source)
        else:
            assert classifier is not None
            lines = wsinfer_lines(folder)
            if partial:
                write_torchscript(classifier, student.size, partial / TORCHSCRIPT, source)
                config = wsinfer_config(student, record["classes"])
                write_text(partial / CONFIG, json.dumps(config, indent=2) + "\n")
    if cost:
        notes.append(describe_cost(cost))
    return Export(folder, lines, notes, partial is not None)


def _append(file: Path, text: str) -> None:
    write_text(file, f"{file.read_text(encoding='utf-8').rstrip()}\n\n{text}")


def _write_timm_folder(folder: Path, source: str, student: Student, encoder: Encoder) -> None:
    """Writes what timm from 0.9.16 on can load, and checks that it is the student."""
    card = f"# {student.name}\n\nWritten by `g2l export` from {student.source}.\n"
    scheme = source.partition(":")[0]
    if scheme in ("local-dir", "demo"):
        readme = locate_folder(source)[0] / README
        card = readme.read_text(encoding="utf-8") if readme.is_file() else card
    write_folder(
        folder,
        encoder.model.state_dict(),
        timm_config(encoder),
        card=card,
        license=student.license,
        metadata={"source": student.source},
    )
    _check_same(folder / WEIGHTS, student, encoder)


def _find_on_hub(source: str, student: Student, encoder: Encoder) -> tuple[str, str] | None:
    """Finds repository and commit of weights that timm loads as they are, if there are any."""
    source, _ = split_revision(source)
    scheme, _, repo_id = source.partition(":")
    commit = encoder.provenance.revision
    if scheme != "hf-hub" or commit is None:
        return None
    folder, _ = locate_folder(source, commit)
    expected = encoder.model.state_dict()
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        names = set(file.keys())
        if names != expected.keys() or any(
            file.get_slice(name).get_shape() != list(expected[name].shape) for name in names
        ):
            return None
    _check_same(folder / WEIGHTS, student, encoder)
    return repo_id, commit


def _check_same(weights: Path, student: Student, encoder: Encoder) -> None:
    """Checks that architecture, arguments and weights alone give the student's embeddings."""
    with explain_build_errors(student.source):
        network = timm.create_model(student.architecture, **student.model_args).eval()
        network.load_state_dict(load_file(weights))
    images = torch.rand(2, 3, student.size, student.size)
    with torch.no_grad():
        difference = float(
            (network((images - encoder.mean) / encoder.std) - encoder(images)).abs().max()
        )
    if not difference <= 1e-4:
        raise UserError(
            f"timm alone gives embeddings that differ from those of {student.source} by "
            f"{difference:.2g}, so nothing is written. Publish it again: g2l publish RUN."
        )

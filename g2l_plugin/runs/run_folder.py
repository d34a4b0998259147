"""The files of a run's folder, `<default_root_dir>/<session>/run_<n>`."""

from __future__ import annotations

CONFIG = "config.yaml"
"""The configuration of the run, as eva writes it at every start."""

EVALUATION = "evaluation.json"
"""The metrics of teacher, student before and student after."""

STUDENT = "student"
"""Folder of the published student."""

START = "start"
"""Folder of the student before training."""

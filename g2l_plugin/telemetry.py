"""Libraries that would tell their makers how they are used."""

import os


def switch_off_telemetry() -> None:
    """Has ONNX Runtime send nothing: from 1.29 on it reports each process and model to Microsoft.

    eva imports it (through MONAI) wherever it is installed, and our extra `onnx` installs it. Only
    what it finds at its import counts, as its Privacy.md says; ORT_DISABLE_TELEMETRY=0 in the
    user's environment keeps its reports.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

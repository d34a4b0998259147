"""The lines that use an export, as `g2l export` prints them."""

from __future__ import annotations

from pathlib import Path

from g2l_plugin.encoders.folder import CONFIG, ONNX
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.publishing.export.student import Student

TORCHSCRIPT = "torchscript_model.pt"
"""The name that WSInfer's model zoo gives it."""


def timm_lines(folder: Path) -> str:
    """Lines for timm: two ways, by its version."""
    place = str(folder)
    return (
        f'model = timm.create_model("local-dir:{place}", pretrained=True)  # timm 1.0.16 or newer\n'
        f'config = json.load(open("{place}/{CONFIG}"))  # or, with timm from 0.9.16 on:\n'
        'model = timm.create_model(config["architecture"], pretrained=True, num_classes=0, '
        'pretrained_cfg_overlay=config["pretrained_cfg"] | '
        f'{{"file": "{place}/{WEIGHTS}"}}, **config["model_args"])'
    )


def onnx_lines(folder: Path, student: Student) -> str:
    """Lines for ONNX Runtime."""
    return (
        f"images = (tiles / 255 - np.array({student.mean})) / np.array({student.std})"
        f"  # RGB uint8 (B, {student.size}, {student.size}, 3)\n"
        f'session = onnxruntime.InferenceSession("{folder / ONNX}")\n'
        "(embeddings,) = session.run(None, "
        '{"images": images.transpose(0, 3, 1, 2).astype("float32")})'
    )


def torchscript_lines(folder: Path, student: Student) -> str:
    """Lines for PyTorch."""
    size = student.size
    return (
        f'student = torch.jit.load("{folder / TORCHSCRIPT}")\n'
        f"images = tiles.permute(0, 3, 1, 2) / 255  # RGB uint8 (B, {size}, {size}, 3), "
        f"{student.mpp} um/px\n"
        "embeddings = student(images)  # it normalises them itself"
    )


def wsinfer_lines(folder: Path) -> str:
    """The command of WSInfer, and what QuPath needs."""
    return (
        "wsinfer run --wsi-dir slides --results-dir results \\\n"
        f"    --model-path {folder / TORCHSCRIPT} --config {folder / CONFIG}\n"
        f"# QuPath: copy {folder} into the local model folder of the WSInfer extension."
    )

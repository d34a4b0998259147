"""What a student's patch tokens know: the demo's tissue, segmented by eva's own benchmark.

python benchmarks/study/segmentation.py --work DIR [--rows paper …]

Writes pieces of the demo's slides in the layout of BCSS, a pixel of the demo as 8 x 8 of BCSS, so
that eva's patches of 224 px become the 56 px that the demo's encoders take. For each run of the
pair `demo` that has ended, `g2l benchmark --tasks bcss` then trains eva's decoder on the frozen
teacher, the student before and the student after. Writes segmentation.json (Dice on slides of the
split `test`, without background) into the run's folder.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
from PIL import Image
from scanners import ended_runs

from g2l_plugin.demo.generate import load_cohort, make_cohort
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE

_ENLARGED = 8
_SIDE = 168
"""Side of a piece in the demo's pixels: 3 x 3 patches."""

_PIECES = {"train": ("AR", 76), "val": ("BH", 30), "test": ("OL", 45)}
"""eva's institutes for the splits, and how many of BCSS's 151 images are of each."""


def write_bcss(demo: Path, root: Path) -> None:
    """Writes the pieces with the most tissue, evenly over the slides of each split."""
    if root.exists():
        return
    partial = root.with_name(f"{root.name}.part")
    for name in ("masks", "rgbs_colorNormalized"):
        (partial / name).mkdir(parents=True, exist_ok=True)
    make_cohort(demo)
    for split, (institute, n_pieces) in _PIECES.items():
        slides = [slide for slide in load_cohort(demo) if slide.split == split]
        for number in range(n_pieces):
            slide, turn = slides[number % len(slides)], number // len(slides)
            labels = np.asarray(Image.open(slide.mask))
            x, y = _fullest(labels, turn)
            with openslide.OpenSlide(slide.path) as opened:
                image = opened.read_region((x, y), 0, (_SIDE, _SIDE)).convert("RGB")
            side = _SIDE // MASK_DOWNSAMPLE
            top, left = y // MASK_DOWNSAMPLE, x // MASK_DOWNSAMPLE
            mask = Image.fromarray(labels[top : top + side, left : left + side])
            name = f"TCGA-{institute}-{number:04d}-DX1_xmin1_ymin1_MPP-0.2500.png"
            size = (_SIDE * _ENLARGED,) * 2
            for folder, picture in (("rgbs_colorNormalized", image), ("masks", mask)):
                picture.resize(size, Image.Resampling.NEAREST).save(partial / folder / name)
    partial.rename(root)


def _fullest(labels: np.ndarray, turn: int) -> tuple[int, int]:
    """Corner, in pixels, of the piece with the `turn`-th most tissue."""
    side = _SIDE // MASK_DOWNSAMPLE
    corners = [
        (x, y)
        for y in range(0, labels.shape[0] - side + 1, side)
        for x in range(0, labels.shape[1] - side + 1, side)
    ]
    corners.sort(key=lambda corner: -(labels[corner[1] :, corner[0] :][:side, :side] > 0).mean())
    x, y = corners[turn]
    return x * MASK_DOWNSAMPLE, y * MASK_DOWNSAMPLE


def judge(model: str, label: str, work: Path) -> dict[str, float]:
    """Dice by eva, of a model on the test slides, as a column of the study's table."""
    output = work / "segmentation" / label
    table = output / "report" / "report.csv"
    if not table.exists():
        words = ["benchmark", f"{label}={model}", "--tasks", "bcss", "--data", work / "data"]
        few = {"N_RUNS": "1", "N_DATA_WORKERS": "0", "TQDM_REFRESH_RATE": "0"}
        g2l = Path(sys.executable).with_name("g2l")
        subprocess.run([g2l, *words, "--output", output], env=os.environ | few, check=True)
    rows = pd.read_csv(table)
    rows = rows[(rows["metric"] == "MonaiDiceScore") & (rows["split"] == "test")]
    (found,) = rows.loc[~rows["published"], "mean"]
    return {"segmentation": float(found)}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    parser.add_argument("--rows", nargs="*", help="rows of rows.yaml; all if not given")
    options = parser.parse_args()
    work = options.work.resolve()
    write_bcss(work / "demo", work / "data" / "bcss")
    for folder, run in ended_runs(work):
        row, seed = folder.parts[-2:]
        if options.rows and row.replace("_", " ") not in options.rows:
            continue
        found = {
            "teacher": judge("demo:teacher", "teacher", work),
            # A start of random weights is the same for all rows and seeds.
            "student before": judge(f"local-dir:{run / 'start'}", "start", work),
            "student after": judge(f"local-dir:{run / 'student'}", f"{row}_{seed}", work),
        }
        (folder / "segmentation.json").write_text(json.dumps(found))
        print(folder, found, flush=True)


if __name__ == "__main__":
    main()

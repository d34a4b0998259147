"""The segmentation tasks of eva: the values of their configs, which are those of eva's own.

Source: eva's configs/vision/pathology/offline/segmentation (kaiko-ai/eva, 0.4.5).
"""

from __future__ import annotations

import dataclasses

_TRAIN_VAL = {"train": "train", "val": "val"}


@dataclasses.dataclass(frozen=True)
class SegmentationTask:
    """A segmentation task.

    Attributes:
        title: Title of the task, one line.
        about: Further comment lines at the top of the config: source of the data and licence.
        dataset: Class path of the dataset.
        dataset_args: Arguments of the dataset, as lines of YAML.
        classes: Names of the classes, in the order of their indices.
        splits: eva's splits to the dataset's names for them.
        metadata_keys: Keys of the patches' metadata to store with the maps.
        ignored: Index of the last class, if loss and metrics ignore it.
        patience: Evaluations without improvement before early stopping.
    """

    title: str
    about: tuple[str, ...]
    dataset: str
    dataset_args: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, str] = dataclasses.field(default_factory=lambda: _TRAIN_VAL)
    metadata_keys: tuple[str, ...] = ()
    ignored: int | None = None
    patience: int = 100

    @property
    def n_outputs(self) -> int:
        """Number of classes that the decoder predicts."""
        return len(self.classes) if self.ignored is None else len(self.classes) - 1


def _sampler(max_samples: int | None = None) -> tuple[str, ...]:
    path = "eva.vision.data.wsi.patching.samplers.GridSampler"
    if max_samples is None:
        return (f"sampler: {path}",)
    arguments = ("  init_args:", f"    max_samples: {max_samples}")
    return ("sampler:", f"  class_path: {path}", *arguments)


SEGMENTATION_TASKS = {
    "consep": SegmentationTask(
        title="CoNSeP: four kinds of colorectal nuclei, to segment",
        about=(
            "Data: https://warwick.ac.uk/TIA/data/hovernet (Train and Test), Apache 2.0.",
            "Its test images are the val split, as on eva's leaderboard.",
        ),
        dataset="eva.vision.datasets.CoNSeP",
        dataset_args=("root: ${oc.env:DATA_ROOT, data/consep}", *_sampler()),
        classes=("background", "other", "inflammatory", "epithelial", "spindle-shaped"),
        metadata_keys=("coords",),
        patience=200,
    ),
    "monusac": SegmentationTask(
        title="MoNuSAC: four kinds of nuclei of four organs, to segment",
        about=(
            "Data: https://monusac-2020.grand-challenge.org/Data/ (DOWNLOAD_DATA=true),",
            "CC BY-NC-SA 4.0. Its test images are the val split, as on eva's leaderboard.",
            "eva keeps the masks that it draws in EVA_HOME.",
        ),
        dataset="eva.vision.datasets.MoNuSAC",
        dataset_args=(
            "root: ${oc.env:DATA_ROOT, data/monusac}",
            "download: ${oc.env:DOWNLOAD_DATA, false}",
        ),
        classes=("Background", "Epithelial", "Lymphocyte", "Neutrophil", "Macrophage", "Ambiguous"),
        splits={"train": "train", "val": "test"},
        ignored=5,
    ),
    "bcss": SegmentationTask(
        title="BCSS: five tissues of breast cancer (TCGA-BRCA), to segment",
        about=(
            "Data: https://github.com/PathologyDataScience/BCSS (the folders masks and",
            "rgbs_colorNormalized, at 0.25 microns per pixel), CC0 1.0.",
            "outside_roi is eva's background: it counts in the loss, and not in the mean Dice.",
        ),
        dataset="eva.vision.datasets.BCSS",
        dataset_args=("root: ${oc.env:DATA_ROOT, data/bcss}", *_sampler(1000)),
        classes=("outside_roi", "tumor", "stroma", "inflammatory", "necrosis", "other"),
        splits=_TRAIN_VAL | {"test": "test"},
        metadata_keys=("coords",),
        patience=8,
    ),
}
"""Config name to task."""

"""G2L for eva: distil a giga-scale pathology encoder into a large-scale student of one cancer.

Importing this package loads neither torch nor eva; each public name is imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AugmentedView": "g2l_plugin.slides.views",
    "BreaKHis": "g2l_plugin.tasks.breakhis",
    "CKA": "g2l_plugin.evaluation.measures",
    "CosineLoss": "g2l_plugin.distillation.losses",
    "CosineSchedule": "g2l_plugin.distillation.schedule",
    "DataWait": "g2l_plugin.distillation.data_wait",
    "DemoTiles": "g2l_plugin.demo.tiles",
    "DistillationLoss": "g2l_plugin.distillation.losses",
    "DistillationModule": "g2l_plugin.distillation.module",
    "DistillationProgressBar": "g2l_plugin.distillation.progress",
    "DistillationReport": "g2l_plugin.evaluation.report",
    "EmbeddingMeasures": "g2l_plugin.evaluation.benchmark",
    "EmbeddingsInMemory": "g2l_plugin.evaluation.in_memory",
    "EmbeddingsWriter": "g2l_plugin.evaluation.writer",
    "Encoder": "g2l_plugin.encoders.encoder",
    "EncoderSource": "g2l_plugin.encoders.load",
    "export_student": "g2l_plugin.publishing.export",
    "KDTrainer": "g2l_plugin.distillation.trainer",
    "knn_accuracy": "g2l_plugin.evaluation.knn",
    "KNNVoting": "g2l_plugin.evaluation.knn",
    "linear_cka": "g2l_plugin.evaluation.cka",
    "load_encoder": "g2l_plugin.encoders.load",
    "LogisticProbe": "g2l_plugin.evaluation.probe",
    "LogSumLoss": "g2l_plugin.distillation.losses",
    "LossEarlyStopping": "g2l_plugin.distillation.schedule",
    "LossGuard": "g2l_plugin.distillation.guard",
    "ManifestTiles": "g2l_plugin.tasks.manifest",
    "MeanSquaredErrorLoss": "g2l_plugin.distillation.losses",
    "MatchedRobustness": "g2l_plugin.evaluation.matched",
    "RobustnessIndex": "g2l_plugin.evaluation.robustness",
    "RunCheckpoint": "g2l_plugin.distillation.run_checkpoint",
    "SimilarityKLLoss": "g2l_plugin.distillation.losses",
    "SmoothL1Loss": "g2l_plugin.distillation.losses",
    "SupervisedPretraining": "g2l_plugin.demo.pretraining",
    "TileDataModule": "g2l_plugin.slides.data_module",
    "TileDataset": "g2l_plugin.slides.tiles",
    "TileLoader": "g2l_plugin.slides.loader",
    "UserError": "g2l_plugin.errors",
}
"""Public name to the module that defines it."""

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__

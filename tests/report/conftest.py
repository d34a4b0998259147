"""Synthetic session folders, as eva writes them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml


def save_session(
    folder: Path,
    model: str = "a",
    task: str = "bach",
    split: str = "test",
    head: dict | None = None,
    values: dict | None = None,
    undefined: dict | None = None,
    intervals: dict | None = None,
    predictions: pd.DataFrame | None = None,
    facts: dict | None = None,
    classes: list[str] | None = None,
    config: dict | None = None,
    embedding_metrics: bool = True,
    training_patients: dict | None = None,
) -> Path:
    """Writes a session folder: results.json, config.yaml and run_0/metrics.

    `head` has the values of each run by metric, `values` those that EmbeddingMetrics computed.
    Without `embedding_metrics`, there is no run_0/metrics.
    """
    head, values = head or {}, values or {}
    n_runs = max((len(runs) for runs in head.values()), default=1)
    all_values = head | {name: [value] * n_runs for name, value in values.items()}
    statistics = {
        f"{split}/{name}": {"mean": 0.0, "stdev": 0.0, "values": list(runs)}
        for name, runs in all_values.items()
    }
    stages = {"val": [], "test": []} | {split: [statistics]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"metrics": stages}))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if embedding_metrics:
        metrics = folder / "run_0" / "metrics"
        metrics.mkdir(parents=True, exist_ok=True)
        facts_json = {"task": task, "classes": classes, "model": {"name": model} | (facts or {})}
        (metrics / "facts.json").write_text(json.dumps(facts_json))
        saved = {
            "n_tiles": 0 if predictions is None else len(predictions),
            "n_units": 1,
            "values": values,
            "undefined": undefined or {},
            "details": {"intervals": intervals or {}},
        }
        if training_patients is not None:
            saved["training_patients"] = training_patients
        (metrics / f"{split}.json").write_text(json.dumps(saved))
        if predictions is not None:
            predictions.to_parquet(metrics / f"{split}.parquet")
    return folder


def eva_config(
    dataset: str = "eva.vision.datasets.BACH",
    model_name: str = "pathology/owkin_phikon",
    monitor: str = "val/MulticlassAccuracy",
    mode: str = "max",
    kwargs: object = None,
    dataset_args: dict | None = None,
    root: str = "logs/model/offline/bach",
) -> dict:
    """A config like eva's own, with its variables resolved."""
    backbone = {
        "class_path": "eva.vision.models.ModelFromRegistry",
        "init_args": {"model_name": model_name, "model_extra_kwargs": kwargs},
    }
    callbacks = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"monitor": monitor, "mode": mode},
        },
        {
            "class_path": "eva.callbacks.ClassificationEmbeddingsWriter",
            "init_args": {"backbone": backbone},
        },
    ]
    predict = {"class_path": dataset, "init_args": dataset_args or {}}
    train = {"class_path": "eva.datasets.EmbeddingsClassificationDataset", "init_args": {}}
    return {
        "trainer": {
            "class_path": "eva.Trainer",
            "init_args": {"default_root_dir": root, "callbacks": callbacks},
        },
        "model": {"class_path": "eva.HeadModule", "init_args": {}},
        "data": {
            "class_path": "eva.DataModule",
            "init_args": {"datasets": {"train": train, "predict": [predict]}},
        },
    }


def make_predictions(
    accuracy: float,
    n_patients: int = 40,
    n_tiles: int = 10,
    n_classes: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions with an expected accuracy, for the same tiles whatever the seed."""
    generator = np.random.default_rng(seed)
    n = n_patients * n_tiles
    labels = np.arange(n) % n_classes
    wrong = (labels + 1 + generator.integers(0, n_classes - 1, n)) % n_classes
    predicted = np.where(generator.random(n) < accuracy, labels, wrong)
    scores = generator.random((n, n_classes)) + 2 * np.eye(n_classes)[predicted]
    scores /= scores.sum(1, keepdims=True)
    patients = np.arange(n) // n_tiles
    columns = {
        "name": [f"tile_{index:05d}" for index in range(n)],
        "label": labels,
        "patient": [f"p{patient}" for patient in patients],
        "centre": [f"centre {patient % 3}" for patient in patients],
    }
    for classifier in ("knn", "logistic"):
        columns |= {f"{classifier}/{i}": column for i, column in enumerate(scores.T)}
    centre = np.stack([np.cos(labels * 2.4), np.sin(labels * 2.4)]) * 3 * accuracy
    points = centre + generator.normal(size=(2, n)) + np.array([patients % 3, -(patients % 3)])
    columns |= {"pca/1": points[0], "pca/2": points[1]}
    return pd.DataFrame(columns)


@pytest.fixture
def write_session(tmp_path):
    """A function that calls `save_session` for a folder in `tmp_path / "logs"`."""

    def write(name: str, **arguments) -> Path:
        return save_session(tmp_path / "logs" / name, **arguments)

    return write


@pytest.fixture
def predictions():
    """`make_predictions`."""
    return make_predictions


@pytest.fixture
def config():
    """`eva_config`."""
    return eva_config

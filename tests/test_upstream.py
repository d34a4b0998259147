"""The private names that the package relies on are there, and mean what they meant."""

import importlib
import inspect

import lightning.pytorch as pl
import torch
from eva.core import DataLoader
from eva.core.callbacks import config as eva_config
from eva.core.trainers import Trainer
from eva.core.trainers._recorder import SessionRecorder
from eva.vision.data.datasets import BACH
from eva.vision.models import ModelFromRegistry
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.distributed import distributed_c10d

from g2l_plugin import upstream


def test_what_is_replaced_exists():
    assert hasattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")
    assert "_session_id" in inspect.getsource(Trainer.__init__)
    assert callable(eva_config._load_submitted_config)
    assert callable(SessionRecorder.save)
    assert callable(distributed_c10d._get_default_store)


def test_the_interval_of_checkpoints_is_read():
    assert upstream.checkpoint_interval(ModelCheckpoint(every_n_train_steps=7)) == 7


def test_evas_data_loader_reads_without_workers():
    importlib.import_module("g2l_plugin.distillation.running.trainer")  # as eva's command line does
    assert next(iter(DataLoader(num_workers=0, batch_size=2)([1, 2, 3]))).tolist() == [1, 2]
    assert DataLoader(num_workers=1)([1]).prefetch_factor == 2


def test_a_module_outside_of_a_run_has_no_trainer():
    assert upstream.attached_trainer(pl.LightningModule()) is None


def test_outside_of_evas_command_line_there_is_no_config(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert upstream.submitted_config() is None


def test_the_config_of_the_command_line_is_resolved(monkeypatch, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {max_steps: '${oc.env:STEPS, 3}'}\n")
    monkeypatch.setattr("sys.argv", ["eva", "fit", "--config", str(path)])
    monkeypatch.setenv("STEPS", "5")
    assert upstream.submitted_config() == {"trainer": {"max_steps": 5}}


def test_transforms_and_registry_names_of_eva_are_found(tmp_path):
    dataset = BACH(root=str(tmp_path), split="val", transforms=len)
    assert upstream.image_transforms(dataset) is len
    network = ModelFromRegistry("universal/vit_tiny_patch16_224_random")
    assert upstream.registry_name(network) == "universal/vit_tiny_patch16_224_random"
    assert upstream.registry_name(torch.nn.Identity()) is None

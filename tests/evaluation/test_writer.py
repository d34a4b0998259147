import functools
import json
import multiprocessing
import os
import shutil
import signal
import warnings

import pytest
import torch
from eva.core import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, HeadModule, Trainer
from eva.core.data.datasets import MapDataset
from eva.vision.data.transforms.common import ResizeAndCrop
from helpers import run_script
from loguru import logger
from torch import nn

from g2l_plugin.encoders.weights import hash_tensors
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embedding_files import read_embeddings, read_model
from g2l_plugin.evaluation.writer import EmbeddingsWriter


class Tiles(MapDataset):
    def __init__(self, n=6, mean=(0.5, 0.5, 0.5), flip=0, shade=0):
        self.n, self.flip, self.shade = n, flip, shade
        self._transforms = ResizeAndCrop(8, mean, (0.5, 0.5, 0.5))

    def __len__(self):
        return self.n

    def filename(self, index):
        return f"{self.n}/{index}.png"

    def __getitem__(self, index):
        image = torch.full((3, 8, 8), index + self.shade, dtype=torch.uint8)
        kind = (index + self.flip) % 2
        return self._transforms(image), torch.tensor(kind), {"centre": "ab"[kind]}


class Backbone(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 4)
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.layer(images.mean((2, 3)))


def run(root, backbone, tiles=None, function="predict", **options):
    """Run eva's predict, or its fit, with our writer."""
    tiles = tiles or [Tiles(6), Tiles(4)]
    writer = EmbeddingsWriter(
        str(root / "embeddings"), backbone, {0: "train", 1: "val"}, ["centre"], **options
    )
    trainer = Trainer(
        default_root_dir=str(root / "logs"),
        callbacks=[writer],
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batch_size=4, num_workers=0, prefetch_factor=None, persistent_workers=False)
    data = DataModule(
        DatasetsSchema(train=tiles[0], val=tiles[1], predict=tiles),
        DataloadersSchema(train=loader, val=loader, predict=loader),
    )
    module = HeadModule(nn.Linear(3, 2), nn.CrossEntropyLoss())
    module.forward = lambda images: module.head(images.mean((2, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if function == "fit":
            trainer.fit(module, datamodule=data)
        else:
            trainer.predict(module, datamodule=data, return_predictions=False)
    return backbone


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of embeddings by `Backbone()`, written once because eva starts a process for it."""
    root = tmp_path_factory.mktemp("written")
    run(root, Backbone())
    return root / "embeddings"


@pytest.fixture
def predict(written, tmp_path):
    """Run eva on a copy of that folder; return the backbone."""
    shutil.copytree(written, tmp_path / "embeddings")
    return functools.partial(run, tmp_path)


def test_embeddings_equal_evas_and_identify_their_model(written):
    backbone = Backbone()
    read = read_embeddings(written, "val")
    images = torch.stack([Tiles(4)[index][0] for index in range(4)])
    torch.testing.assert_close(torch.from_numpy(read.values), backbone(images).detach())
    assert read.groups["centre"].tolist() == ["a", "b", "a", "b"]
    model = read_model(written)
    assert model["complete"] and model["sha256"] == hash_tensors(backbone)
    assert (model["name"], model["parameters"], model["embedding_dim"]) == ("Backbone", 16, 4)
    assert model["flops"] == 2 * 3 * 4
    assert model["input_size"] == 8 and model["tiles_per_second"] > 0


def test_existing_embeddings_are_not_computed_again(predict):
    assert predict(Backbone()).calls == 0
    predict(Backbone(), function="fit")


class Failing(Backbone):
    """Fails on the second batch, or in `fail`."""

    def fail(self):
        raise AssertionError("Input height (33) doesn't match model (32).")

    def forward(self, images):
        if self.calls:
            self.fail()
        return super().forward(images)


def test_an_error_while_tiles_are_embedded_ends_the_writing_process(tmp_path):
    with pytest.raises(UserError, match="tiles of 3 x 8 x 8 .Input height .33. doesn't match"):
        run(tmp_path, Failing())
    assert not multiprocessing.active_children()
    assert run(tmp_path, Backbone()).calls  # what is there is incomplete, and computed again


def test_sigterm_ends_the_run_and_the_writing_process(tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)
    backbone = Failing()
    backbone.fail = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, backbone)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: the embeddings are incomplete" in capfd.readouterr().err


def test_a_writing_process_that_ends_early_is_an_error(tmp_path):
    backbone = Failing()

    def kill_writer():
        (writer,) = multiprocessing.active_children()
        writer.kill()
        writer.join()

    backbone.fail = kill_writer
    with pytest.raises(UserError, match="cannot be written to .*its process ended: -9"):
        run(tmp_path, backbone)
    assert not read_model(tmp_path / "embeddings")["complete"]


def test_the_writing_process_ends_with_a_parent_that_is_killed(tmp_path):
    code = """
import multiprocessing, os, signal, sys
from g2l_plugin.evaluation.writer import EmbeddingsWriter
from torch import nn
writer = EmbeddingsWriter(sys.argv[1], nn.Identity())
writer._initialize_write_process()
writer._write_process.start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    (script := tmp_path / "script.py").write_text(code)
    result = run_script(script, tmp_path / "embeddings")
    # The writer holds the pipe too: `run` returns when both are gone, else at its timeout.
    assert result.returncode == -signal.SIGKILL


def test_labels_and_metadata_of_kept_embeddings_are_read_anew(predict, tmp_path):
    backbone = predict(Backbone(), [Tiles(6), Tiles(4, flip=1)])
    assert backbone.calls == 0
    read = read_embeddings(tmp_path / "embeddings", "val")
    assert read.labels.tolist() == [1, 0, 1, 0]
    assert read.groups["centre"].tolist() == ["b", "a", "b", "a"]
    assert read.names.tolist() == [f"4/{index}.png" for index in range(4)]
    assert read_embeddings(tmp_path / "embeddings", "train").labels.tolist() == [0, 1] * 3


def test_class_names_of_kept_embeddings_are_read_anew(predict, tmp_path):
    tiles = [Tiles(6), Tiles(4)]
    tiles[0].classes = ["no", "yes"]
    assert predict(Backbone(), tiles).calls == 0
    assert read_model(tmp_path / "embeddings")["classes"] == ["no", "yes"]
    assert read_model(tmp_path / "embeddings")["complete"]


def test_other_images_under_the_same_names_are_embedded_anew(predict, tmp_path, warned):
    backbone = predict(Backbone(), [Tiles(6), Tiles(4, shade=90)])
    assert backbone.calls
    assert any("image files have changed" in line for line in warned)
    images = torch.stack([Tiles(4, shade=90)[index][0] for index in range(4)])
    read = read_embeddings(tmp_path / "embeddings", "val")
    torch.testing.assert_close(torch.from_numpy(read.values), backbone(images).detach())


@pytest.mark.parametrize("function", ["predict", "fit"])
def test_embeddings_of_another_model_are_refused(predict, function):
    mine = hash_tensors(Backbone())
    with pytest.raises(UserError, match=f"embeddings of Backbone .sha256 {mine[:12]}., not of"):
        predict(Backbone(seed=1), function=function)


def test_embeddings_are_overwritten_on_request(predict, tmp_path):
    backbone = predict(Backbone(seed=1), overwrite=True)
    assert read_model(tmp_path / "embeddings")["sha256"] == hash_tensors(backbone)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ([Tiles(6), Tiles(5)], "of other tiles"),
        ([Tiles(6, mean=(0.7, 0.6, 0.7)), Tiles(4)], "with other transforms"),
    ],
)
def test_embeddings_of_other_tiles_or_transforms_are_refused(predict, tiles, message):
    with pytest.raises(UserError, match=message):
        predict(Backbone(), tiles)


def test_embeddings_of_an_interrupted_run_are_computed_again(predict, tmp_path):
    path = tmp_path / "embeddings" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(UserError, match="that are incomplete"):
        predict(Backbone(), function="fit")
    assert predict(Backbone()).calls and read_model(path.parent)["complete"]


def test_embeddings_of_unknown_origin_are_refused(predict, tmp_path):
    (tmp_path / "embeddings" / "model.json").unlink()
    with pytest.raises(UserError, match="unknown origin"):
        predict(Backbone())


def test_a_normalisation_other_than_the_models_is_warned_about(predict):
    backbone = Backbone()
    backbone.source = "local-dir:student"
    backbone.pretrained_cfg = {"mean": (0.7, 0.6, 0.65), "std": (0.5, 0.5, 0.5)}
    said = []
    sink = logger.add(said.append, level="WARNING")
    try:
        predict(backbone)
    finally:
        logger.remove(sink)
    assert len([line for line in said if "NORMALIZE_MEAN is [0.5, 0.5, 0.5]" in line]) == 1
    assert not any("NORMALIZE_STD" in line for line in said)


def test_the_patients_of_a_student_are_written_and_those_of_others_are_unknown(
    predict, tmp_path, warned
):
    assert "training_patients" not in read_model(tmp_path / "embeddings")
    student, listed = Backbone(), ["0" * 16, "unknown"]
    student.training_patients = listed
    assert predict(student).calls == 0  # the embeddings are there already
    assert read_model(tmp_path / "embeddings")["training_patients"] == listed
    student.training_patients = ["Ann"]
    predict(student, overwrite=True)
    assert "training_patients" not in read_model(tmp_path / "embeddings")
    assert any("is not a list that `g2l publish` wrote" in line for line in warned)

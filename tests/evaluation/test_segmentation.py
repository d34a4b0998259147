import numpy as np
import pandas as pd
import pytest
import timm
import torch
from eva.core import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, HeadModule, Trainer
from eva.core.data.datasets import MapDataset
from eva.vision.data.datasets import EmbeddingsSegmentationDataset
from eva.vision.data.transforms.common import ResizeAndCrop
from eva.vision.models import ModelFromRegistry
from helpers import save_tiny_model
from torch import nn
from torchvision import tv_tensors

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.embedding_files import read_model
from g2l_plugin.evaluation.segmentation import (
    SegmentationEmbeddingsWriter,
    hash_maps,
    read_patches,
)


class Patches(MapDataset):
    """Patches of two images, with masks; patches of one image share its name, as in eva."""

    classes = ("a", "b")

    def __init__(self, n=6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator)
        self.images = [tv_tensors.Image(image.to(torch.uint8)) for image in images]
        self.masks = torch.randint(0, 2, (n, 32, 32), generator=generator)
        self._transforms = ResizeAndCrop(32, (0.7, 0.6, 0.65), (0.2, 0.25, 0.15))

    def __len__(self):
        return len(self.images)

    def filename(self, index):
        return f"TCGA-A1-000{index % 2}-DX1.png"

    def __getitem__(self, index):
        return self._transforms(self.images[index]), self.masks[index], {}


def build(folder, out_indices=2):
    extra = {"source": f"local-dir:{folder}"}
    return ModelFromRegistry("g2l/student", {"out_indices": out_indices}, extra)


class Counting(nn.Module):
    """Counts the calls of a backbone."""

    def __init__(self, backbone):
        super().__init__()
        self.model, self._model_kwargs = backbone.model, backbone._model_kwargs
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.model(images)


def run(root, backbone, patches):
    writer = SegmentationEmbeddingsWriter(str(root / "maps"), backbone, {0: "val"})
    trainer = Trainer(
        default_root_dir=str(root / "logs"),
        callbacks=[writer],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batch_size=4, num_workers=0, prefetch_factor=None, persistent_workers=False)
    data = DataModule(DatasetsSchema(predict=[patches]), DataloadersSchema(predict=loader))
    module = HeadModule(nn.Identity(), nn.CrossEntropyLoss())
    trainer.predict(module, datamodule=data, return_predictions=False)


def test_maps_and_masks_are_those_of_the_network_and_are_written_once(tmp_path):
    folder, patches = save_tiny_model(tmp_path / "student", depth=3), Patches()
    network = Counting(build(folder))
    run(tmp_path, network, patches)
    n_calls = network.calls
    dataset = EmbeddingsSegmentationDataset(
        root=str(tmp_path / "maps"), manifest_file="manifest.csv", split="val"
    )
    dataset.setup()
    # timm alone, all layers at once.
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.stack([patches[index][0] for index in range(6)])
    with torch.inference_mode():
        expected = whole.forward_intermediates(images, intermediates_only=True)[1:]
    assert len(dataset) == 6
    for index in range(6):
        maps, mask = dataset[index]
        assert torch.equal(mask, patches.masks[index])
        for own, layer in zip(maps, expected, strict=True):
            torch.testing.assert_close(own, layer[index], rtol=1e-4, atol=1e-5)
    model = read_model(tmp_path / "maps")
    assert model["complete"] and model["maps_sha256"] == hash_maps(network)
    assert not {"parameters", "tiles_per_second"} & model.keys()  # of some layers only

    before = pd.read_csv(tmp_path / "maps" / "manifest.csv")
    again = Counting(build(folder))
    run(tmp_path, again, patches)
    assert n_calls == 2 and again.calls == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "maps" / "manifest.csv"), before)
    with pytest.raises(UserError, match=r"holds embeddings of local-dir:.*OVERWRITE=true"):
        run(tmp_path, build(folder, out_indices=1), patches)


def test_maps_of_other_layers_or_weights_are_others(tmp_path):
    folder = save_tiny_model(tmp_path / "one", depth=3)
    other = save_tiny_model(tmp_path / "two", seed=1, depth=3)
    hashes = [hash_maps(build(folder, layers)) for layers in (1, 2, [0, 2])]
    assert len({*hashes, hash_maps(build(other, 1))}) == 4
    assert hash_maps(build(folder, 1)) == hashes[0]


@pytest.mark.parametrize(("names", "known"), [("TCGA-A1-0001_x.png", True), ("val_1.png", False)])
def test_patches_know_their_patients_by_their_barcodes(names, known, tmp_path):
    rows = [("TCGA-A1-0000.png", "a.pt", "a-mask.pt", "val"), (names, "b.pt", "b-mask.pt", "val")]
    table = pd.DataFrame(rows, columns=["origin", "embeddings", "target", "split"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    patches = read_patches(tmp_path, "val")
    assert len(patches) == 2 and len(read_patches(tmp_path, "test")) == 0
    assert patches.names.tolist() == ["TCGA-A1-0000.png", names]
    assert ("patient" in patches.groups) == known
    if known:
        expected = np.array(["TCGA-A1-0000", "TCGA-A1-0001"])
        assert (patches.groups["patient"] == expected).all()

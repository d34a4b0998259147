import numpy as np
import pytest
import torch
from eva.core import DataLoader, DataloadersSchema, DatasetsSchema

from g2l_plugin.errors import UserError
from g2l_plugin.slides.data_module import TileDataModule
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.loader import TileLoader


def make_module(dataset, **options):
    loaders = {
        "train": DataLoader(batch_size=7, drop_last=True, num_workers=0),
        "val": DataLoader(batch_size=7, num_workers=0),
    }
    return TileDataModule(
        DatasetsSchema(train=dataset, val=dataset), DataloadersSchema(**loaders), **options
    )


@pytest.fixture
def dataset(tmp_path, write_slide):
    write_slide(tmp_path / "slides" / "a.tiff", 768)
    dataset = TileDataset(
        str(tmp_path / "slides"), width=64, height=64, index_dir=str(tmp_path / "index")
    )
    dataset.prepare_data()
    dataset.setup()
    return dataset


def test_training_tiles_come_from_a_tile_loader(dataset):
    # eva's EVA_GLOBAL_SEED may be False
    loaders = [make_module(dataset, seed=seed).train_dataloader() for seed in (False, 0, 1)]
    assert all(isinstance(loader, TileLoader) for loader in loaders)
    (off, zero, one) = (next(iter(loader)).tiles for loader in loaders)
    assert off.shape == (7, 3, 64, 64)
    assert (off == zero).all() and not (off == one).all()


def test_validation_batches_have_the_numbers_of_their_tiles(dataset):
    (loader,) = make_module(dataset).val_dataloader()
    batches = list(loader)
    assert np.concatenate([batch.numbers for batch in batches]).tolist() == [*range(len(dataset))]
    tiles = torch.cat([batch.tiles for batch in batches])
    assert torch.equal(tiles, torch.stack([dataset[number] for number in range(len(dataset))]))


def test_fewer_tiles_than_a_batch_are_an_error_and_no_empty_run(dataset):
    module = make_module(dataset)
    module.setup("fit")
    module.dataloaders.train.batch_size = len(dataset) + 1
    with pytest.raises(UserError, match=rf"BATCH_SIZE is {len(dataset) + 1} .*only {len(dataset)}"):
        module.setup("fit")
    module.setup("validate")


def test_other_datasets_are_an_error_with_their_name():
    with pytest.raises(UserError, match=r"not on list.*eva\.DataModule"):
        make_module([]).train_dataloader()

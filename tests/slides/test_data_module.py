import os

import numpy as np
import pytest
import torch
from eva.core import DataLoader, DataloadersSchema, DatasetsSchema
from torch.utils.data import DataLoader as TorchDataLoader

from g2l_plugin.errors import UserError
from g2l_plugin.slides import in_order
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


@pytest.mark.parametrize("n_devices", [2, 3, 5])
def test_devices_validate_as_many_tiles_each_and_all_together(dataset, monkeypatch, n_devices):
    seen, lengths = [], set()
    for rank in range(n_devices):
        monkeypatch.setattr(in_order, "rank_and_devices", lambda r=rank: (r, n_devices))
        (loader,) = make_module(dataset).val_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        lengths.add(sum(len(batch.numbers) for batch in batches))
        for batch in batches:
            seen += batch.numbers.tolist()
            assert torch.equal(batch.tiles, torch.stack([dataset[n] for n in batch.numbers]))
    assert len(lengths) == 1 and set(seen) == set(range(len(dataset)))
    assert len(seen) < len(dataset) + n_devices


def test_no_tile_goes_through_the_shared_memory_that_a_container_lacks(dataset, monkeypatch):
    def die(*args):  # as by SIGBUS, when /dev/shm is full
        os._exit(1)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", die)
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # PyTorch's own way
        list(TorchDataLoader(dataset, batch_size=4, num_workers=1))
    module = make_module(dataset)
    module.dataloaders.val.num_workers = module.dataloaders.train.num_workers = 1
    (val,) = module.val_dataloader()
    assert sum(len(batch.numbers) for batch in val) == len(dataset)
    assert len(next(iter(module.train_dataloader())).numbers) == 7
    assert len(next(in_order.some_batches(module.train_dataloader(), 4)).numbers) == 4


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

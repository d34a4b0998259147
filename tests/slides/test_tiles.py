import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError
from g2l_plugin.slides.cohort import select_slides
from g2l_plugin.slides.tiles import TileDataset


@pytest.fixture
def cohort(tmp_path, write_slide):
    for number in range(3):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 512 + 64 * number)
    return tmp_path


def make_dataset(folder, **options):
    options = {"width": 64, "height": 64, "index_dir": str(folder / "index")} | options
    dataset = TileDataset(str(folder / "slides"), **options)
    dataset.prepare_data()
    dataset.setup()
    return dataset


def test_tiles_are_uint8_images_of_tissue(cohort):
    dataset = make_dataset(cohort)
    tile = dataset[len(dataset) // 2]
    assert tile.shape == (3, 64, 64)
    assert tile.dtype == torch.uint8
    assert tile.float().mean() < 220


def test_train_and_val_part_the_tiles_and_stay_the_same(cohort):
    everything, train, val = (
        {(int(s), *map(int, xy)) for s, xy in zip(d._slide_of_tile, d._xy, strict=True)}
        for d in (
            make_dataset(cohort, split=split, n_val_tiles=9) for split in (None, "train", "val")
        )
    )
    assert len(val) == 9
    assert train | val == everything
    assert not train & val
    again = make_dataset(cohort, split="val", n_val_tiles=9)
    assert {tuple(map(int, xy)) for xy in again._xy} == {key[1:] for key in val}


def test_worker_processes_read_the_same_tiles(cohort):
    dataset = make_dataset(cohort)
    dataset[0]  # a handle that is open in the parent must not be used by its children
    alone = torch.cat(list(DataLoader(dataset, batch_size=16)))
    workers = torch.cat(list(DataLoader(dataset, batch_size=16, num_workers=2)))
    assert torch.equal(alone, workers)


def test_few_handles_serve_many_slides(cohort):
    few, many = (make_dataset(cohort, max_open_slides=n) for n in (1, 8))
    order = torch.randperm(len(few)).tolist()[:40]
    assert all(torch.equal(few[i], many[i]) for i in order)
    assert len(few._open) == 1


def test_an_open_dataset_can_be_pickled(cohort):
    dataset = make_dataset(cohort)
    tile = dataset[3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3], tile)


def test_a_choice_of_slides_is_seeded(cohort):
    root = cohort / "slides"
    chosen = {tuple(select_slides(root, n_slides=2, seed=seed)) for seed in range(8)}
    assert len(chosen) > 1
    assert select_slides(root, n_slides=2, seed=3) == select_slides(root, n_slides=2, seed=3)
    assert len(select_slides(root, n_slides=99)) == 3


def test_a_missing_or_empty_folder_gives_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="does not exist.*SLIDES_ROOT"):
        select_slides(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"No slides in .*\.svs"):
        select_slides(tmp_path)
    with pytest.raises(UserError, match="1 of 1 slides are missing"):
        select_slides(tmp_path, ["a.svs"])


def test_no_tissue_gives_a_clear_error(cohort):
    with pytest.raises(UserError, match="min_tissue"):
        make_dataset(cohort, min_tissue=1.1)


def test_a_slide_that_is_damaged_in_the_middle_is_named(cohort):
    dataset = make_dataset(cohort)
    path = dataset.slide_paths[0]
    data = bytearray(path.read_bytes())
    data[2000 : len(data) // 2] = b"\xff" * (len(data) // 2 - 2000)
    path.write_bytes(bytes(data))
    with pytest.raises(
        UserError, match=r"0\.tiff cannot be (read at|opened)|cannot open .*0\.tiff"
    ):
        for number in range(len(dataset)):
            dataset[number]

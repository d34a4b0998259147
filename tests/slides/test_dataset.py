import pickle

import numpy as np
import pytest
import torch
from helpers import damage
from torch.utils.data import DataLoader

from g2l_plugin.errors import UserError
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.loader import TileLoader


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


def places(dataset):
    return {
        (int(number), *map(int, xy))
        for number, xy in zip(dataset.tiles.slide_of_tile, dataset.tiles.xy, strict=True)
    }


def patients(dataset):
    return dataset.patients(np.arange(len(dataset)))


def test_tiles_are_uint8_images_of_tissue(cohort):
    dataset = make_dataset(cohort)
    tile = dataset[len(dataset) // 2]
    assert tile.shape == (3, 64, 64)
    assert tile.dtype == torch.uint8
    assert tile.float().mean() < 220


def test_validation_tiles_are_of_patients_that_are_not_trained_on(tmp_path, write_slide):
    for number in range(9):  # two slides of each patient, one of the last
        name = f"TCGA-A1-{number // 2:04}-01Z-00-DX{number % 2 + 1}.tiff"
        write_slide(tmp_path / "slides" / name, 512)
    options = {"one_per_patient": False, "keep_duplicates": True}
    train, val, few = (
        make_dataset(tmp_path, **options, **split)
        for split in ({"split": "train"}, {"split": "val"}, {"split": "val", "n_val_tiles": 9})
    )
    everything = make_dataset(tmp_path, **options)
    assert len(np.unique(patients(everything))) == 5
    assert len(np.unique(patients(val))) == 1  # of fewer than eight, one
    assert set(patients(train)) | set(patients(val)) == set(patients(everything))
    assert not set(patients(train)) & set(patients(val))
    assert len(train) + len(val) == len(everything)
    assert len(few) == 9 and places(few) < places(val)
    assert places(make_dataset(tmp_path, **options, split="val", n_val_tiles=9)) == places(few)
    slides = train.describe_cohort()["slides"], val.describe_cohort()["slides"]
    assert sum(slides) == 9 and slides[1] in (1, 2)
    nothing = make_dataset(tmp_path, **options, split="train", n_val_tiles=0)
    assert places(nothing) == places(everything)


def test_a_slide_of_an_unknown_patient_counts_as_a_patient(cohort):
    val = make_dataset(cohort, split="val")
    assert len(set(patients(val))) == 1 and patients(val)[0].endswith(".tiff")


def test_one_patient_gives_validation_tiles_with_a_warning(tmp_path, write_slide, warned):
    write_slide(tmp_path / "slides" / "a.tiff", 1024)
    train, val = (make_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert 0 < len(val) <= len(train) / 9
    assert not places(train) & places(val)
    assert any("of one patient" in message for message in warned)
    assert patients(val) is None  # the patient is trained on


def test_worker_processes_read_the_same_tiles(cohort):
    dataset = make_dataset(cohort)
    dataset[0]  # a handle that is open in the parent must not be used by its children
    alone = torch.cat(list(DataLoader(dataset, batch_size=16)))
    workers = torch.cat(list(DataLoader(dataset, batch_size=16, num_workers=2)))
    assert torch.equal(alone, workers)


def test_an_open_dataset_can_be_pickled(cohort):
    dataset = make_dataset(cohort)
    tile = dataset[3]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3], tile)


def test_tiles_are_located_by_their_number(cohort):
    dataset = make_dataset(cohort)
    table = dataset.locate(np.array([len(dataset) - 1, 0]))
    assert [path.name for path in table["slide"]] == ["2.tiff", "0.tiff"]
    assert table["tile"].tolist() == [len(dataset) - 1, 0]
    assert table[["x", "y"]].to_numpy().tolist() == dataset.tiles.xy[[-1, 0]].tolist()
    assert dataset.lost_tiles().empty


def test_tiles_need_a_setup():
    with pytest.raises(RuntimeError, match="no tiles yet.*`setup`"):
        len(TileDataset("slides"))


def test_no_tissue_gives_a_clear_error(cohort):
    with pytest.raises(UserError, match="min_tissue"):
        make_dataset(cohort, min_tissue=1.1)


def test_setup_does_not_build_a_missing_index(cohort):
    with pytest.raises(UserError, match="no index in"):
        TileDataset(str(cohort / "slides"), index_dir=str(cohort / "none")).setup()


def test_unusable_slides_stop_a_run_unless_max_lost_allows_them(cohort):
    (cohort / "slides" / "bad.svs").write_bytes(b"no slide")
    with pytest.raises(UserError, match=r"1 of 4 slides.*bad\.svs"):
        make_dataset(cohort)
    assert make_dataset(cohort, max_lost=0.3).describe_cohort()["slides"] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_in_any_worker_are_counted_together(cohort, workers):
    dataset = make_dataset(cohort, max_lost=0.5)
    damage(cohort / "slides" / "1.tiff", 0, [6, 7])
    damage(cohort / "slides" / "2.tiff", 0, [12])
    options = {"num_workers": workers} if workers else {}
    for _ in range(2):  # a tile that is lost in every epoch is lost once
        assert sum(len(b.tiles) for b in TileLoader(dataset, 8, drop_last=False, **options)) == len(
            dataset
        )
    lost = dataset.lost_tiles()
    assert list(lost.columns) == ["tile", "slide", "x", "y"]
    assert {path.name for path in lost["slide"]} == {"1.tiff", "2.tiff"}
    assert len(lost.drop_duplicates(["slide", "x", "y"])) == len(lost) <= 12
    assert lost["tile"].is_monotonic_increasing and lost["tile"].is_unique


def test_too_many_losses_in_a_worker_stop_the_run_with_a_message(cohort):
    dataset = make_dataset(cohort, max_lost=0.001)
    damage(cohort / "slides" / "1.tiff", 0, range(6, 12))
    with pytest.raises(UserError, match=r"tiles cannot be read, more than the 0\.1%"):
        for _ in TileLoader(dataset, 8, num_workers=1):
            pass


def test_patients_are_known_by_barcode_or_list_and_else_said_to_be_unknown(tmp_path, write_slide):
    names = ["TCGA-A1-0001-01Z-00-DX1.tiff", "TCGA-A1-0002.tiff", "c.tiff", "d.tiff"]
    for name in names:
        write_slide(tmp_path / "slides" / name, 512)
    table = tmp_path / "slides.csv"
    rows = zip(names, ["", "", "P3", ""], strict=True)
    table.write_text("slide,patient\n" + "".join(f"{a},{b}\n" for a, b in rows))
    found = make_dataset(tmp_path, file_paths=str(table), keep_duplicates=True).known_patients()
    assert found == {"TCGA-A1-0001", "TCGA-A1-0002", "P3", ""}

import itertools
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import damage
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.slides import pack, packed_source
from g2l_plugin.slides import shards as shards_module
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.index import read_settings
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.loader import TileLoader
from g2l_plugin.slides.pack import pack_images, pack_tiles
from g2l_plugin.slides.packed_source import PackedTiles
from g2l_plugin.slides.tile_grid import TileGrid

GRID = TileGrid(64, 64, min_sharpness=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pack")


@pytest.fixture
def index(tmp_path, write_slide):
    for number in range(3):
        write_slide(tmp_path / "slides" / f"{number}.tiff", 448 + 64 * number)
    build_index(tmp_path / "index", GRID, tmp_path / "slides")
    return tmp_path / "index"


def from_slides(index, split):
    dataset = TileDataset(
        str(index.parent / "slides"),
        width=64,
        height=64,
        min_sharpness=0,
        split=split,
        n_val_tiles=9,
        index_dir=str(index),
    )
    dataset.setup()
    return dataset


def packed(root, split, **settings):
    settings = {"width": 64, "height": 64, "min_sharpness": 0, "n_val_tiles": 9} | settings
    dataset = TileDataset("nowhere", split=split, packed_root=str(root), **settings)
    dataset.prepare_data()
    dataset.setup()
    return dataset


def test_packed_tiles_equal_the_tiles_of_the_slides(index, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TILES", 32)
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, workers=2)
    settings = json.loads((tmp_path / "packed" / "pack.json").read_text())
    for split in ("train", "val"):
        slides, shards = from_slides(index, split), packed(tmp_path / "packed", split)
        assert len(shards) == len(slides) == settings[f"{split}_tiles"]
        assert shards.describe_cohort() == slides.describe_cohort()
        assert shards.known_patients() == slides.known_patients()
        numbers = np.arange(len(shards))
        assert sorted(shards.patients(numbers)) == sorted(slides.patients(numbers))
        places = [
            dataset.locate(numbers).assign(slide=lambda t: t["slide"].map(lambda p: Path(p).name))
            for dataset in (slides, shards)
        ]
        originals = torch.stack([slides[i] for i in range(len(slides))]).float()
        copies = torch.stack([shards[i] for i in range(len(shards))]).float()
        assert copies.shape[1:] == (3, 64, 64)
        # Each copy is nearest to one original, and each original to one copy.
        distances = torch.cdist(copies.flatten(1), originals.flatten(1)) / (3 * 64 * 64) ** 0.5
        nearest = distances.argmin(1)
        assert sorted(nearest.tolist()) == list(range(len(slides)))
        # And it is the copy of the tile at the place that it says.
        assert (
            places[1]
            .drop(columns="tile")
            .equals(places[0].iloc[nearest.numpy()].drop(columns="tile").reset_index(drop=True))
        )
        assert distances.min(1).values.max() < 5  # JPEG at quality 95 against noise of 20


def test_a_loader_reads_every_packed_tile_once_with_and_without_workers(
    index, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards_module, "SHARD_TILES", 32)
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, workers=1)
    dataset = packed(tmp_path / "packed", "train")
    assert dataset.tiles.group_sizes.sum() == len(dataset)
    assert len(dataset.tiles.group_sizes) == -(-len(dataset) // 32)
    options = {"batch_size": 8, "block_tiles": 8, "drop_last": False}
    alone = [batch.tiles for batch in TileLoader(dataset, **options)]
    workers = [batch.tiles for batch in TileLoader(dataset, num_workers=2, **options)]
    assert sum(map(len, alone)) == len(dataset)
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(alone, workers))


def test_a_shard_mixes_slides():
    shards = shards_module._mixed_shards(np.full(400, 100), 16, seed=0)
    assert [len(shard) for shard in shards] == [2048] * 19 + [400 * 100 - 19 * 2048]
    assert sorted(np.concatenate(shards).tolist()) == list(range(40000))
    assert np.mean([len(np.unique(shard // 100)) for shard in shards[:-1]]) > 100


def test_an_existing_folder_is_not_overwritten(index, tmp_path):
    (tmp_path / "packed").mkdir()
    with pytest.raises(UserError, match="exists"):
        pack_tiles(index, tmp_path / "packed")
    with pytest.raises(UserError, match="no index in"):
        pack_tiles(tmp_path / "none", tmp_path / "other")


def test_lost_tiles_are_replaced_up_to_a_limit_beyond_which_nothing_is_written(index, tmp_path):
    damage(tmp_path / "slides" / "1.tiff", 0, [6])
    with pytest.raises(UserError, match=r"tiles cannot be read, more than the 0\.1%"):
        pack_tiles(index, tmp_path / "packed", max_lost=0.001, workers=1)
    assert {path.name for path in tmp_path.iterdir()} == {"slides", "index"}
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, max_lost=0.5, workers=1)
    assert len(packed(tmp_path / "packed", "train")) == len(from_slides(index, "train"))


def test_a_folder_without_packed_tiles_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no packed tiles in .*g2l pack SOURCE"):
        PackedTiles(str(tmp_path), "train")
    with pytest.raises(UserError, match="set `split`"):
        TileDataset("", packed_root=str(tmp_path)).configure()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"width": 32, "height": 32, "target_mpp": 1.0}, "TILE_SIZE=64, TARGET_MPP=0.5, .*=32, .*"),
        ({"overwrite_mpp": 0.25}, "OVERWRITE_MPP=null, .*=0.25"),
        ({"min_tissue": 0.4}, "MIN_TISSUE=0.5, .*=0.4"),
        ({"min_sharpness": 0.1}, "MIN_SHARPNESS=0, .*=0.1"),
        ({"n_slides": 2}, "N_SLIDES=null, .*=2"),
        ({"seed": 4}, "COHORT_SEED=0, .*=4"),
        ({"one_per_patient": False}, "one_per_patient=true, .*=false"),
        ({"keep_duplicates": True}, "keep_duplicates=false, .*=true"),
        ({"n_val_tiles": 8}, "N_VAL_TILES=9, .*=8"),
        ({"n_val_patients": 1}, "N_VAL_PATIENTS=20, .*=1"),
    ],
)
def test_a_run_of_other_settings_than_packed_is_refused(index, tmp_path, settings, told):
    description = {"index": read_settings(index), "n_val_tiles": 9, "n_val_patients": 20}
    (tmp_path / "pack.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=f"were packed with {told}.* Set it as packed"):
        packed(tmp_path, "train", **settings)


def test_validation_tiles_are_chosen_with_the_seed_of_the_index(tmp_path, write_slide):
    write_slide(tmp_path / "slides" / "0.tiff", 448)
    build_index(tmp_path / "index", GRID, tmp_path / "slides", seed=5)
    pack_tiles(tmp_path / "index", tmp_path / "packed", n_val_tiles=9, workers=1)
    assert len(packed(tmp_path / "packed", "val", seed=5)) > 0
    with pytest.raises(UserError, match="COHORT_SEED=5"):
        packed(tmp_path / "packed", "val")


def test_a_missing_or_cut_shard_is_told_before_a_run(index, tmp_path):
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, workers=1)
    (shard,) = (tmp_path / "packed" / "train").glob("*.bin")
    os.truncate(shard, 1000)
    with pytest.raises(UserError, match=r"Shard .*train/chunk-0-0\.bin has 1,000 of .* bytes\."):
        packed(tmp_path / "packed", "train")
    shard.unlink()
    with pytest.raises(UserError, match=r"Shard .*train/chunk-0-0\.bin has 0 of"):
        packed(tmp_path / "packed", "train")


def test_a_shard_that_goes_bad_during_a_run_is_one_line(index, tmp_path):
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, workers=1)
    tiles = packed(tmp_path / "packed", "train").tiles
    (shard,) = (tmp_path / "packed" / "train").glob("*.bin")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(UserError, match=r"Shard chunk-0-0\.bin of .*train cannot be read: ") as e:
        tiles.read(3)
    assert "\n" not in str(e.value)


def test_a_store_that_does_not_answer_is_waited_for_with_a_limit(monkeypatch):
    monkeypatch.setattr(packed_source, "_MAX_WAIT", 0.1)
    down = threading.Event()
    with pytest.raises(UserError, match=r"s3://a has not answered for 0\.1 s"):
        packed_source._wait_for("s3://a", down.wait)
    down.set()
    assert packed_source._wait_for("s3://a", lambda: 3) == 3
    with pytest.raises(KeyError):
        packed_source._wait_for("s3://a", lambda: {}["b"])


@pytest.mark.parametrize("error", [OSError, RuntimeError])  # here, or LitData's report of a process
def test_a_full_disk_is_one_line_and_leaves_nothing(index, tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error("Traceback ...\nOSError: [Errno 28] No space left on device")

    monkeypatch.setattr(pack, "write_shards", fail)
    with pytest.raises(UserError, match=r"Packing into .*packed failed: No space left on device\."):
        pack_tiles(index, tmp_path / "packed")
    assert {path.name for path in tmp_path.iterdir()} == {"slides", "index"}


def test_pickled_shards_are_refused(index, tmp_path):
    pack_tiles(index, tmp_path / "packed", workers=1)
    description = tmp_path / "packed" / "train" / "index.json"
    description.write_text(description.read_text().replace('"bytes"', '"pickle"', 1))
    with pytest.raises(UserError, match=r"holds \['pickle'\]"):
        PackedTiles(str(tmp_path / "packed"), "train")


@pytest.fixture
def images(tmp_path):
    """Twelve images of four patients in a folder: a JPEG and two PNGs of each."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(12):
        image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
        name = f"{'abcd'[number // 3]}_{number}.{'jpg' if number % 3 == 0 else 'png'}"
        image.save(tmp_path / "images" / name, quality=80)
    return tmp_path / "images"


def pack_some(images, output, **options):
    options = {"mpp": 0.5, "tile_size": 64, "patient_pattern": "^([a-d])_"} | options
    pack_images(images, output, workers=1, **options)


def test_packed_images_are_those_of_the_folder_with_their_patients(images, tmp_path):
    pack_some(images, tmp_path / "packed")
    settings = {"n_val_tiles": 2048, "min_tissue": 0.7}  # tissue is no setting of images
    train, val = (packed(tmp_path / "packed", split, **settings) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 3)
    assert train.describe_cohort() == {"tiles": 9, "images": 9, "centres": {"unknown": 9}}
    assert train.known_patients() | val.known_patients() == set("abcd")
    for dataset in (train, val):
        located = dataset.locate(np.arange(len(dataset)))
        names = located["slide"].tolist()
        assert dataset.patients(np.arange(len(dataset))).tolist() == [name[0] for name in names]
        for number, name in enumerate(names):
            pixels = np.asarray(Image.open(images / name)).transpose(2, 0, 1)
            difference = np.abs(dataset[number].numpy().astype(int) - pixels).mean()
            # A JPEG is kept; pure noise is the worst that quality 95 meets.
            assert difference == 0 if name.endswith(".jpg") else difference < 6
    held_out = set(val.patients(np.arange(3)))
    assert len(held_out) == 1 and not held_out & set(train.patients(np.arange(9)))


def test_a_run_with_another_tile_size_than_the_images_is_refused(images, tmp_path):
    pack_some(images, tmp_path / "packed")
    with pytest.raises(UserError, match="TILE_SIZE=64.*this run has TILE_SIZE=32"):
        packed(tmp_path / "packed", "train", width=32, height=32, n_val_tiles=2048)


@pytest.fixture
def interrupts():
    """SIGINT interrupts, as in a terminal: what a shell runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_stopped_pack_goes_on_and_gives_the_same(images, tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "SHARD_TILES", 4)
    pack_some(images, tmp_path / "whole")
    read, calls = shards_module._ShardWriter._encode, tmp_path / "calls"

    def interrupt(self, tile):
        if calls.exists() and calls.stat().st_size == 6:  # in the second shard
            os.kill(os.getppid(), signal.SIGINT)  # a terminal interrupts all processes
            raise KeyboardInterrupt
        return note(self, tile)

    def note(self, tile):  # in a process of its own
        with calls.open("a") as file:
            file.write(".")
        return read(self, tile)

    monkeypatch.setattr(shards_module._ShardWriter, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_some(images, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    with pytest.raises(UserError, match=r"a part of a pack with another quality\. Pack as before"):
        pack_some(images, tmp_path / "packed", quality=50)
    calls.unlink()
    monkeypatch.setattr(shards_module._ShardWriter, "_encode", note)
    pack_some(images, tmp_path / "packed")
    assert calls.stat().st_size == 12 - 4  # the first shard is kept
    calls.unlink()
    names = [
        sorted(p.relative_to(folder) for p in folder.rglob("*"))
        for folder in (tmp_path / "whole", tmp_path / "packed")
    ]
    assert names[0] == names[1] and not any(".shard" in str(name) for name in names[1])
    for name in names[0]:
        if (tmp_path / "whole" / name).is_file():
            assert (tmp_path / "whole" / name).read_bytes() == (
                tmp_path / "packed" / name
            ).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "whole", "packed"}


def test_a_process_that_is_killed_is_told_and_its_shard_is_written_later(
    images, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(shards_module._ShardWriter, "_encode", lambda self, tile: os._exit(9))
        with pytest.raises(UserError, match=r"packed was killed.*--workers"):
            pack_some(images, tmp_path / "packed")
    pack_some(images, tmp_path / "packed")
    assert len(packed(tmp_path / "packed", "train", n_val_tiles=2048)) > 0


def test_substitutes_of_a_pack_are_known_to_its_runs(index, tmp_path):
    damage(tmp_path / "slides" / "1.tiff", 0, [6])
    pack_tiles(index, tmp_path / "packed", n_val_tiles=9, max_lost=0.5, workers=2)
    lost = sum(len(packed(tmp_path / "packed", split).lost_tiles()) for split in ("train", "val"))
    read = 0
    for split in ("train", "val"):
        slides = from_slides(index, split)
        slides._max_lost = 1
        slides.tiles._lost._max_lost = 1.0
        for number in range(len(slides)):
            slides[number]
        read += len(slides.lost_tiles())
    assert lost == read > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mpp": None}, "resolution of 12 of 12 images is not known.*--mpp"),
        ({"patient_pattern": "^([a-c])_"}, "patients of 3 of 12 images are unknown, e.g. of d_10"),
        ({"patient_pattern": "nobody"}, "'nobody' finds no patient in any name, e.g. in a_0.jpg"),
        ({"patient_pattern": "("}, "is no regular expression"),
        ({"tile_size": 65}, "12 of 12 images give no tile of 65 px"),
    ],
)
def test_images_that_cannot_be_packed_are_told_and_nothing_is_left(images, tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        pack_some(images, tmp_path / "packed", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_images_of_unknown_patients_are_divided_with_a_warning(images, tmp_path, warned):
    pack_some(images, tmp_path / "packed", patient_pattern=None)
    val = packed(tmp_path / "packed", "val", n_val_tiles=2048)
    assert len(val) == 1 and val.patients(np.arange(1)) is None
    assert any("of unknown ones" in message for message in warned)


def test_the_patient_of_a_tcga_image_is_in_its_path(tmp_path):
    for patient in ("TCGA-A1-0001", "TCGA-A1-0002"):
        folder = tmp_path / "images" / f"{patient}-01Z-00-DX1"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
    pack_some(tmp_path / "images", tmp_path / "packed", patient_pattern=None)
    train = packed(tmp_path / "packed", "train", n_val_tiles=2048)
    assert len(train) == 3 and len(set(train.patients(np.arange(3)))) == 1
    assert train.patients(np.arange(3))[0].startswith("TCGA-A1-000")

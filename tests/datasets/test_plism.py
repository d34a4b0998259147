import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g2l_plugin.datasets.plism import prepare
from g2l_plugin.errors import UserError

SLIDES = [
    f"{stain}_{scanner}_to_GMH_S60.tif" for stain in ("GIVH", "MY") for scanner in ("AT2", "P")
]


def image_field(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, slides=SLIDES, n_locations=10, drop=(), shards=2):
    """Writes shards as on the Hub: sorted by slide, with slides split between shards."""
    rows = [
        {"slide_id": slide, "tile_id": f"tile_16_{location}_129", "png": image_field(location)}
        for slide in slides
        for location in range(n_locations)
        if (slide, location) not in drop
    ]
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        table = pa.Table.from_pylist([rows[index] for index in part])
        pq.write_table(table, folder / "data" / f"train-{number:05d}-of-{shards:05d}.parquet")
    return folder


def test_every_nth_location_of_every_slide_is_listed(tmp_path):
    manifest = prepare(write(tmp_path / "download"), tmp_path / "plism", every=2)
    table = pd.read_csv(manifest)
    assert len(table) == 5 * 4
    assert set(table["label"]) == set(table["scanner"]) == {"AT2", "P"}
    assert set(table["stain"]) == {"GIVH", "MY"}
    assert (table.groupby("location")["slide"].nunique() == 4).all()
    assert (table.groupby("location")["split"].nunique() == 1).all()
    assert set(table["split"]) == {"train", "val"}
    first = table.iloc[0]
    number = int(first["location"].split("_")[2])
    assert (manifest.parent / first["path"]).read_bytes() == image_field(number)["bytes"]


def test_a_missing_shard_or_location_is_named(tmp_path):
    download = write(tmp_path / "download")
    (download / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="train-00001-of-00002.parquet is missing"):
        prepare(download, tmp_path / "plism")
    download = write(tmp_path / "other", drop={(SLIDES[1], 3)})
    with pytest.raises(
        UserError, match=f"Slide {SLIDES[1]} lacks 1 of 10 locations, such as tile_16_3_129"
    ):
        prepare(download, tmp_path / "plism")
    assert not (tmp_path / "plism" / "manifest.csv").exists()


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    pq.write_table(
        pa.table({"slide_id": SLIDES, "png": [b""] * 4}), tmp_path / "other" / "a.parquet"
    )
    with pytest.raises(UserError, match="has no column tile_id.*owkin/plism-dataset-tiles"):
        prepare(tmp_path / "other", tmp_path / "plism")


@pytest.mark.parametrize("every", [0, 10, 1000])
def test_too_few_locations_for_two_splits_are_refused(every, tmp_path):
    with pytest.raises(UserError, match="Give --every|Expected 1 or more"):
        prepare(write(tmp_path / "download"), tmp_path / "plism", every)
    assert not (tmp_path / "plism" / "manifest.csv").exists()


def test_the_seed_decides_which_fifth_of_the_locations_is_held_out(tmp_path):
    download = write(tmp_path / "download")
    held_out = []
    for seed in (0, 0, 1):
        table = pd.read_csv(prepare(download, tmp_path / "plism", every=1, seed=seed))
        held_out.append(set(table.loc[table["split"] == "val", "location"]))
    assert len(held_out[0]) == 2 and held_out[0] == held_out[1] != held_out[2]


def test_existing_tiles_are_not_written_again(tmp_path):
    download = write(tmp_path / "download")
    first, second = pd.read_csv(prepare(download, tmp_path / "plism", every=5))["path"][:2]
    before = (tmp_path / "plism" / first).stat().st_mtime_ns
    content = (tmp_path / "plism" / second).read_bytes()
    (tmp_path / "plism" / second).unlink()
    prepare(download, tmp_path / "plism", every=5)
    assert (tmp_path / "plism" / first).stat().st_mtime_ns == before
    assert (tmp_path / "plism" / second).read_bytes() == content


def test_a_slide_without_stain_and_scanner_in_its_name_is_named(tmp_path):
    with pytest.raises(UserError, match="Slide GMH has no stain and scanner"):
        prepare(write(tmp_path / "download", slides=["GMH"]), tmp_path / "plism", every=1)

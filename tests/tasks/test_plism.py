import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.tasks.plism import prepare

SLIDES = [
    f"{stain}_{scanner}_to_GMH_S60.tif" for stain in ("GIVH", "MY") for scanner in ("AT2", "P")
]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, slides=SLIDES, n_places=10, drop=(), shards=2):
    """Writes shards as the Hub has them: sorted by slide, cut without regard to slides."""
    rows = [
        {"slide_id": slide, "tile_id": f"tile_16_{place}_129", "png": picture(place)}
        for slide in slides
        for place in range(n_places)
        if (slide, place) not in drop
    ]
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        table = pa.Table.from_pylist([rows[index] for index in part])
        pq.write_table(table, folder / "data" / f"train-{number:05d}-of-{shards:05d}.parquet")
    return folder


def test_every_nth_place_of_every_slide_is_listed(tmp_path):
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
    assert (manifest.parent / first["path"]).read_bytes() == picture(number)["bytes"]


def test_a_shard_or_a_place_that_is_missing_is_told(tmp_path):
    download = write(tmp_path / "download")
    (download / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="train-00001-of-00002.parquet is missing"):
        prepare(download, tmp_path / "plism")
    download = write(tmp_path / "other", drop={(SLIDES[1], 3)})
    with pytest.raises(UserError, match=f"Slide {SLIDES[1]} lacks 1 of 10 places .tile_16_3_129"):
        prepare(download, tmp_path / "plism")
    assert not (tmp_path / "plism" / "manifest.csv").exists()


def test_a_column_that_is_missing_is_told(tmp_path):
    (tmp_path / "other").mkdir()
    pq.write_table(
        pa.table({"slide_id": SLIDES, "png": [b""] * 4}), tmp_path / "other" / "a.parquet"
    )
    with pytest.raises(UserError, match="has no column tile_id.*owkin/plism-dataset-tiles"):
        prepare(tmp_path / "other", tmp_path / "plism")


@pytest.mark.parametrize("every", [0, 10, 1000])
def test_too_few_places_for_two_splits_are_refused(every, tmp_path):
    with pytest.raises(UserError, match="give --every"):
        prepare(write(tmp_path / "download"), tmp_path / "plism", every)
    assert not (tmp_path / "plism" / "manifest.csv").exists()


def test_a_fifth_of_the_places_is_held_out_as_the_seed_says(tmp_path):
    download = write(tmp_path / "download")
    held_out = []
    for seed in (0, 0, 1):
        table = pd.read_csv(prepare(download, tmp_path / "plism", every=1, seed=seed))
        held_out.append(set(table.loc[table["split"] == "val", "location"]))
    assert len(held_out[0]) == 2 and held_out[0] == held_out[1] != held_out[2]


def test_tiles_that_are_there_are_not_written_again(tmp_path):
    download = write(tmp_path / "download")
    first, second = pd.read_csv(prepare(download, tmp_path / "plism", every=5))["path"][:2]
    before = (tmp_path / "plism" / first).stat().st_mtime_ns
    content = (tmp_path / "plism" / second).read_bytes()
    (tmp_path / "plism" / second).unlink()
    prepare(download, tmp_path / "plism", every=5)
    assert (tmp_path / "plism" / first).stat().st_mtime_ns == before
    assert (tmp_path / "plism" / second).read_bytes() == content


def test_a_slide_without_stain_and_scanner_in_its_name_is_told(tmp_path):
    with pytest.raises(UserError, match="Slide GMH has no stain and scanner"):
        prepare(write(tmp_path / "download", slides=["GMH"]), tmp_path / "plism", every=1)

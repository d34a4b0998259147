import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g2l_plugin import ManifestTiles
from g2l_plugin.datasets.pathorob import prepare
from g2l_plugin.errors import UserError

SLIDES = [
    *((f"normal_{n:03d}", "normal", "RUMC") for n in range(6)),
    *((f"patient_{n:03d}_node_{n % 4}", "tumor", "UMCU") for n in range(6)),
    ("patient_003_node_0", "tumor", "UMCU"),
    *((f"patient_09{n}_node_1", "tumor", "LPON") for n in range(2)),
]


def image_bytes(number, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def tiles_of(slides, patch="{0}", kind="PNG"):
    rows = []
    for slide, label, centre in slides:
        for number in range(2):
            rows.append(
                {
                    "image": {"bytes": image_bytes(len(rows), kind), "path": f"{len(rows)}.png"},
                    "slide_id": slide,
                    "patch_id": patch.format(34317 + number),
                    "biological_class": label,
                    "medical_center": centre,
                }
            )
    return rows


def write_shards(folder, rows, n_shards=1):
    (folder / "data").mkdir(parents=True)
    for number in range(n_shards):
        path = folder / "data" / f"train-{number:05d}-of-{n_shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[number::n_shards]), path)
    (folder / "README.md").touch()
    return folder


@pytest.fixture
def download(tmp_path):
    """PathoROB-camelyon as on the Hub."""
    return write_shards(tmp_path / "PathoROB-camelyon", tiles_of(SLIDES))


def test_tiles_are_written_with_class_centre_slide_and_patient(download, tmp_path):
    manifest = prepare(download, tmp_path / "out")
    table = pd.read_csv(manifest, dtype=str)
    assert len(table) == 30
    row = table[table["slide"] == "patient_003_node_0"].iloc[1]
    assert row["label"] == "tumor" and row["centre"] == "UMCU" and row["patient"] == "patient_003"
    assert row["path"] == "tiles/patient_003_node_0/34318.png"
    assert table["patient"][0] == "RUMC_normal_000"
    assert table.groupby("patient")["split"].nunique().max() == 1
    data = ManifestTiles(str(tmp_path / "out"), "manifest.csv")
    data.prepare_data()
    data.setup()
    assert data.classes == ["normal", "tumor"] and len(data) == 30
    assert [int(data[index][0][0, 0, 0]) for index in range(30)] == list(range(30))


def test_the_same_case_number_in_two_centres_is_two_patients(tmp_path):
    slides = [
        (f"case_{n:03d}", label, centre)
        for centre in ("VALSET1_UKK", "VALSET2_WNS")
        for n in range(4)
        for label in ("TUMOR", "ADVENT")
    ]
    rows = tiles_of(slides, "{0}")
    for row in rows:
        row["patch_id"] = f"{row['biological_class'].lower()}.{row['patch_id']}"
    download = write_shards(tmp_path / "tolkach", rows)
    table = pd.read_csv(prepare(download, tmp_path / "out"), dtype=str)
    assert table["patient"].nunique() == table["slide"].nunique() == 8
    assert table["path"][0] == "tiles/VALSET1_UKK_case_000/tumor.34317.png"


def test_all_shards_are_read_and_jpeg_stays_jpeg(tmp_path):
    slides = [
        (f"TCGA-E9-A1R{n}-01Z-00-DX{d}", f"class {n % 2}", "Asterand")
        for n in range(8)
        for d in (1, 2)
    ]
    rows = tiles_of(slides, "0_{0}_521", "JPEG")
    download = write_shards(tmp_path / "tcga", rows, n_shards=3)
    table = pd.read_csv(prepare(download, tmp_path / "out"), dtype=str)
    assert len(table) == 32 and table["patient"].nunique() == 8 and table["slide"].nunique() == 16
    assert table["path"].str.endswith(".jpg").all()


def write_list(path, rows):
    columns = ["subset", "slide_id", "patch_id", "biological_class", "medical_center"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_only_listed_tiles_are_written_with_their_entries(download, tmp_path):
    rows = [
        ("OOD" if centre == "LPON" else "ID", slide, 34317, label, centre)
        for slide, label, centre in SLIDES[::-1]
    ]
    pairs = [(pair, "normal_002", 34318, "normal", "RUMC") for pair in ("a-b-x-y", "a-c-x-y")]
    whole = write_list(tmp_path / "camelyon.csv", rows)
    paired = write_list(tmp_path / "tcga_2x2.csv", [*pairs, pairs[0]])
    table = pd.read_csv(prepare(download, tmp_path / "out", [whole, paired]), dtype=str)
    assert len(table) == 16
    listed = table.set_index("path")["listed"]
    assert listed["tiles/RUMC_normal_002/34317.png"] == "camelyon/ID/12"
    assert listed["tiles/patient_091_node_1/34317.png"] == "camelyon/OOD/0"
    assert listed["tiles/RUMC_normal_002/34318.png"] == (
        "tcga_2x2/a-b-x-y/0;tcga_2x2/a-c-x-y/1;tcga_2x2/a-b-x-y/2"
    )


def test_a_list_of_another_dataset_is_refused(download, tmp_path):
    other = write_list(tmp_path / "camelyon.csv", [("ID", "other", 1, "x", "y")])
    with pytest.raises(UserError, match="1 of 1 tiles of camelyon.csv .*are not in"):
        prepare(download, tmp_path / "out", [other])
    empty = write_list(tmp_path / "empty.csv", [])
    with pytest.raises(UserError, match=r"empty.csv lists no tiles"):
        prepare(download, tmp_path / "out", [empty])


def test_existing_tiles_are_not_written_again(download, tmp_path):
    prepare(download, tmp_path / "out")
    path = tmp_path / "out" / "tiles" / "RUMC_normal_000" / "34317.png"
    before = path.stat().st_mtime_ns
    (tmp_path / "out" / "tiles" / "RUMC_normal_000" / "34318.png").unlink()
    prepare(download, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    assert np.asarray(Image.open(path.with_name("34318.png")))[0, 0].tolist() == [1, 0, 0]


def test_a_missing_shard_is_named(tmp_path):
    download = write_shards(tmp_path / "tcga", tiles_of(SLIDES), n_shards=3)
    (download / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00003.parquet is missing.*hf download"):
        prepare(download, tmp_path / "out")


def test_an_empty_folder_is_not_the_download(tmp_path):
    with pytest.raises(UserError, match="No parquet files.*huggingface.co/bifold-pathomics"):
        prepare(tmp_path, tmp_path / "out")


def test_another_dataset_is_refused(tmp_path):
    rows = [{"image": {"bytes": image_bytes(0)}, "label": 1}]
    download = write_shards(tmp_path / "other", rows)
    with pytest.raises(UserError, match="has no column slide_id"):
        prepare(download, tmp_path / "out")


def test_a_broken_shard_is_named(tmp_path):
    download = write_shards(tmp_path / "broken", tiles_of(SLIDES))
    next((download / "data").iterdir()).write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be read.*Download it again"):
        prepare(download, tmp_path / "out")


def test_a_tile_that_is_not_an_image_is_named(tmp_path):
    rows = tiles_of(SLIDES)
    rows[3]["image"]["bytes"] = b"text"
    with pytest.raises(UserError, match="Tile tiles/RUMC_normal_001/34318 is not a PNG"):
        prepare(write_shards(tmp_path / "broken", rows), tmp_path / "out")

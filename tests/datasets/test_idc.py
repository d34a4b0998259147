import shutil

import pandas as pd
import pytest
from PIL import Image

from g2l_plugin import ManifestTiles
from g2l_plugin.datasets.idc import prepare
from g2l_plugin.errors import UserError


@pytest.fixture
def download(tmp_path):
    """IDC_regular_ps50_idx5 as unpacked from its archive: folders of patient and class."""
    root = tmp_path / "IDC_regular_ps50_idx5"
    for patient in range(10253, 10263):
        for label in (0, 1):
            folder = root / str(patient) / str(label)
            folder.mkdir(parents=True)
            for x in (1351, 1401):
                name = f"{patient}_idx5_x{x}_y1101_class{label}.png"
                Image.new("RGB", (50, 50)).save(folder / name)
    return root


def test_the_manifest_lists_the_tiles_with_splits_by_patient(download, tmp_path):
    manifest = prepare(download, tmp_path / "out")
    table = pd.read_csv(manifest, dtype=str)
    assert len(table) == 40
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table["split"].value_counts().to_dict() == {"train": 24, "val": 8, "test": 8}
    data = ManifestTiles(str(download), str(manifest), "val")
    data.prepare_data()
    data.setup()
    assert data.classes == ["0", "1"]
    assert all(f"class{data.load_target(n)}" in data.filename(n) for n in range(len(data)))


def test_an_archive_with_every_tile_twice_is_listed_once(download, tmp_path):
    for patient in list(download.iterdir()):
        shutil.copytree(patient, tmp_path / patient.name)
    table = pd.read_csv(prepare(tmp_path, tmp_path / "out"), dtype=str)
    assert len(table) == 40
    assert table["path"].str.startswith("IDC_regular_ps50_idx5/").all()


def test_another_seed_draws_other_splits(download, tmp_path):
    tables = [pd.read_csv(prepare(download, tmp_path / str(seed), seed)) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1]) and not tables[0].equals(tables[2])


def test_an_empty_folder_is_not_the_download(tmp_path):
    with pytest.raises(UserError, match="No patient folders.*andrewjanowczyk.com"):
        prepare(tmp_path, tmp_path / "out")


def test_a_patient_without_tiles_is_named(download, tmp_path):
    shutil.rmtree(download / "10255")
    (download / "10255").mkdir()
    with pytest.raises(UserError, match="10255 has no tiles"):
        prepare(download, tmp_path / "out")


def test_a_tile_in_the_folder_of_another_class_is_named(download, tmp_path):
    tile = next((download / "10255" / "0").iterdir())
    tile.rename(download / "10255" / "1" / tile.name)
    with pytest.raises(UserError, match="class0.png has an unexpected name"):
        prepare(download, tmp_path / "out")

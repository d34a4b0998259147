import pandas as pd
import pytest
from loguru import logger
from PIL import Image

from g2l_plugin import ManifestTiles
from g2l_plugin.datasets.tils import prepare
from g2l_plugin.errors import UserError

PATIENTS = {
    "train": ["TCGA-A1-A0SB", "TCGA-E2-A15A"],
    "val": ["TCGA-BH-A0B3"],
    "test": ["TCGA-OL-A66I"],
}


@pytest.fixture
def download(tmp_path):
    """TCGA-TILs as unpacked from its archive: a list, and folders of cancer, split and label."""
    root = tmp_path / "TCGA-TILs"
    rows = []
    for study in ("brca", "luad"):
        for split, patients in PATIENTS.items():
            for label in ("til-negative", "til-positive"):
                for patient in patients:
                    barcode = patient if study == "brca" else patient.replace("-A", "-9")
                    md5 = f"{len(rows):032x}"
                    path = f"images-tcga-tils/{study}/{split}/{label}/{barcode}_{md5}.png"
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (100, 100)).save(root / path)
                    rows.append((split, study, barcode, label, path, md5))
    columns = ["partition", "study", "barcode", "label", "path", "md5"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(root / "images-tcga-tils-metadata.csv", index=False)
    return root


def read(manifest):
    return pd.read_csv(manifest, dtype=str)


@pytest.mark.parametrize("above", [False, True])
def test_the_manifest_lists_the_tiles_of_breast_in_the_official_splits(download, tmp_path, above):
    root = download.parent if above else download
    manifest = prepare(root, tmp_path / "out")
    assert manifest == tmp_path / "out" / "manifest.csv"
    table = read(manifest)
    assert table["split"].value_counts().to_dict() == {"train": 4, "val": 2, "test": 2}
    first = table.iloc[0]
    assert first["patient"] == "TCGA-A1-A0SB" and first["centre"] == "A1"
    assert first["cancer"] == "brca" and first["label"] == "til-negative"
    for split in ("train", "val", "test"):
        data = ManifestTiles(str(root), str(manifest), split)
        data.prepare_data()
        data.setup()
        assert data.classes == ["til-negative", "til-positive"]
        assert data[0][0].shape == (3, 100, 100)


def test_another_cancer_or_all_can_be_chosen(download, tmp_path):
    assert len(read(prepare(download, tmp_path / "a", "luad"))) == 8
    assert len(read(prepare(download, tmp_path / "b", "all"))) == 16
    with pytest.raises(UserError, match="no tiles of 'prad'. Expected all, or one of brca, luad"):
        prepare(download, tmp_path / "c", "prad")


def test_a_patient_in_two_official_splits_is_kept_in_the_later_one(download, tmp_path):
    path = download / "images-tcga-tils-metadata.csv"
    table = pd.read_csv(path).replace("TCGA-OL-A66I", "TCGA-A1-A0SB")
    table.to_csv(path, index=False)
    warnings = []
    handler = logger.add(warnings.append, level="WARNING")
    rows = read(prepare(download, tmp_path / "out"))
    logger.remove(handler)
    assert rows["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}
    assert set(rows["split"][rows["patient"] == "TCGA-A1-A0SB"]) == {"test"}
    assert "1 patients" in warnings[0] and "2 of their tiles" in warnings[0]


@pytest.mark.parametrize("part", ["images-tcga-tils-metadata.csv", "images-tcga-tils"])
def test_a_missing_part_is_named_with_its_source(download, tmp_path, part):
    (download / part).rename(download / "gone")
    with pytest.raises(UserError, match=f"{part} is missing.*zenodo.org/records/6604094"):
        prepare(download, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_tiles_are_counted(download, tmp_path):
    next(download.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="1 of 16 files do not exist"):
        prepare(download, tmp_path / "out", "all")


def test_a_missing_download_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing does not exist"):
        prepare(tmp_path / "nothing", tmp_path / "out")

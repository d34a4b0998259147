import json
import shutil

import pandas as pd
import pytest
from eva.vision.data.datasets import WsiClassificationDataset
from eva.vision.data.wsi.patching.samplers import GridSampler

from g2l_plugin.datasets.chimera import prepare
from g2l_plugin.errors import UserError

PATIENTS = [str(1003 + number) for number in range(10)]


@pytest.fixture
def download(tmp_path, write_slide):
    """Task 1 as downloaded from its bucket."""
    root = tmp_path / "task1"
    (root / "clinical_data").mkdir(parents=True)
    for number, patient in enumerate(PATIENTS):
        clinical = {
            "age_at_prostatectomy": 60,
            "BCR": f"{number % 2}.0",  # a string, as in the download
            "time_to_follow-up/BCR": f"{12.5 * number}",
        }
        (root / "clinical_data" / f"{patient}.json").write_text(json.dumps(clinical))
        folder = root / "pathology" / "images" / patient
        for slide in (1, 2):
            write_slide(folder / f"{patient}_{slide}.tif", 256, levels=1)
            write_slide(folder / f"{patient}_{slide}_tissue.tif", 256, levels=1)
    return root


@pytest.mark.parametrize("above", [False, True])
def test_the_manifest_lists_slides_with_their_patients_outcome(download, tmp_path, above):
    root = download.parent if above else download
    manifest = prepare(root, tmp_path / "out")
    table = pd.read_csv(manifest, dtype={"patient": str})
    assert len(table) == 20 and not table["path"].str.contains("tissue").any()
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert table.groupby("patient")["target"].first().tolist() == [0, 1] * 5
    assert set(table["centre"]) == {"Radboudumc"}
    assert table["months"][table["patient"] == "1005"].tolist() == [25.0, 25.0]
    data = WsiClassificationDataset(
        str(root), str(manifest), 64, 64, 0.5, GridSampler(max_samples=1), split="val"
    )
    data.setup()
    assert len(data) == 4 and data[0][0].shape == (3, 64, 64)


@pytest.mark.parametrize("part", ["clinical_data", "pathology/images"])
def test_a_missing_part_is_named_with_its_source(download, tmp_path, part):
    shutil.rmtree(download / part)
    with pytest.raises(UserError, match=f"{part} is missing.*s3://chimera-challenge/v2/task1"):
        prepare(download, tmp_path / "out")


@pytest.mark.parametrize("part", ["clinical_data/1004.json", "pathology/images/1004"])
def test_a_patient_without_slides_or_outcome_is_named(download, tmp_path, part):
    (download / part).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"{part} is missing, one of 1 missing"):
        prepare(download, tmp_path / "out")


def test_a_folder_without_slides_is_named(download, tmp_path):
    for slide in (1, 2):
        (download / "pathology" / "images" / "1006" / f"1006_{slide}.tif").unlink()
    with pytest.raises(UserError, match="1006 has no slides"):
        prepare(download, tmp_path / "out")


@pytest.mark.parametrize("clinical", ["{}", '{"BCR": "x", "time_to_follow-up/BCR": 1}', "[1]", "{"])
def test_an_unreadable_outcome_is_named(download, tmp_path, clinical):
    (download / "clinical_data" / "1007.json").write_text(clinical)
    with pytest.raises(UserError, match="1007.json has no readable outcome"):
        prepare(download, tmp_path / "out")


def test_an_outcome_other_than_0_or_1_is_named(download, tmp_path):
    text = '{"BCR": 2, "time_to_follow-up/BCR": 1}'
    (download / "clinical_data" / "1007.json").write_text(text)
    with pytest.raises(UserError, match="has a BCR of 2. Expected 0 or 1"):
        prepare(download, tmp_path / "out")

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from g2l_plugin import ManifestTiles
from g2l_plugin.datasets.tiger import prepare
from g2l_plugin.errors import UserError

TCGA = [f"TCGA-A2-A0C{n}-01Z-00-DX1.AC4901DE-4B6D-4185-BB9F-15603383982{n}" for n in range(6)]
RUMC = [f"TC_S01_P00000{n}_C0001_B103" for n in range(6)]
JB = [f"{100 + n}{'BS'[n % 2]}" for n in range(6)]


def write_region(root, name, slide, offset=0):
    """Writes a region: a 64-pixel tile of tumour, one of stroma, and an unlabelled edge."""
    stem = f"{slide}_[{9283 + offset}, 28428, {9283 + offset + 150}, {28428 + 70}]"
    mask = np.zeros((70, 150), np.uint8)
    mask[:64, :64], mask[:64, 64:128] = 1, 2
    mask[:10, :64] = 7  # not pure
    image = np.random.default_rng(offset).integers(0, 255, (70, 150, 3), np.uint8)
    for kind, pixels in (("images", image), ("masks", mask)):
        folder = root / name / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{stem}.png")
    return image


@pytest.fixture
def download(tmp_path):
    """The part of the bucket tiger-training with the regions of interest."""
    root = tmp_path / "tiger" / "wsirois" / "roi-level-annotations"
    for slide in TCGA[:4]:
        write_region(root, "tissue-bcss", slide)
    for slide in [*TCGA[3:], *RUMC, *JB]:
        write_region(root, "tissue-cells", slide, 1000)
    return tmp_path / "tiger"


def prepared(download, tmp_path, **arguments):
    arguments = {"stride": 64, "min_purity": 0.75, "classes": "all"} | arguments
    manifest = prepare(download, tmp_path / "out", size=64, workers=1, **arguments)
    return manifest, pd.read_csv(manifest, dtype=str)


def test_tiles_are_cut_by_the_masks_majority_class(download, tmp_path):
    manifest, table = prepared(download, tmp_path)
    assert table["label"].value_counts().to_dict() == {
        "invasive tumor": 18,
        "tumor-associated stroma": 18,
    }
    assert table.groupby("patient")["split"].nunique().max() == 1
    data = ManifestTiles(str(manifest.parent), "manifest.csv", "test")
    data.prepare_data()
    data.setup()
    assert data.classes == ["invasive tumor", "tumor-associated stroma"]
    assert data[0][0].shape == (3, 64, 64)
    row = table[table["label"] == "tumor-associated stroma"].iloc[0]
    assert row["path"].endswith("/64_0.png") and "," not in row["path"]
    first = np.asarray(Image.open(manifest.parent / row["path"]))
    assert (first == write_region(tmp_path, "again", "x")[:64, 64:128]).all()


def relabel(download, mask):
    """Gives all regions a mask, int (H, W) of at most 70 x 150."""
    pixels = np.zeros((70, 150), np.uint8)
    pixels[: mask.shape[0], : mask.shape[1]] = mask
    for path in (download / "wsirois" / "roi-level-annotations").glob("*/masks/*.png"):
        Image.fromarray(pixels).save(path)


def majority_by_hand(mask, size, stride, merged):
    """Left edge, top edge and label of the tiles that one class covers by half, in a plain loop."""
    found = set()
    for y in range(0, 70 - size + 1, stride):
        for x in range(0, 150 - size + 1, stride):
            covered = {}
            for value in mask[y : y + size, x : x + size].ravel():
                covered[merged[value]] = covered.get(merged[value], 0) + 1
            label = max(covered, key=covered.get)
            if label and covered[label] >= size**2 / 2:
                found.add((x, y, label))
    return found


def test_the_papers_five_classes_are_cut_with_overlap_by_default(download, tmp_path):
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 8, (10, 21)), np.ones((7, 7), int))[:70, :147]
    mask[:, 30:70] = np.where(rng.random((70, 40)) < 0.8, 1 + 2 * (mask[:, 30:70] > 3), 4)
    mask[:, 80:110] = 4  # glands
    mask[:, 115:] = np.where(rng.random((70, 32)) < 0.7, 2, 6)
    mask = np.pad(mask, ((0, 0), (0, 3))).astype(np.uint8)
    relabel(download, mask)
    merged = [None, "tumor", "stroma", "tumor", None, "necrosis", "inflamed stroma", "rest"]
    merged = dict(enumerate(merged))
    expected = majority_by_hand(mask, 16, 8, merged | {0: None, 4: None})
    table = pd.read_csv(prepare(download, tmp_path / "out", size=16, workers=1), dtype=str)
    own = table[table["slide"] == TCGA[0]]
    places = own["path"].str.extract(r"/(\d+)_(\d+)\.png$").astype(int).to_numpy()
    found = {(x, y, label) for (x, y), label in zip(places.tolist(), own["label"], strict=True)}
    assert found == expected and len({label for *_, label in found}) >= 2
    assert any(x % 16 for x, *_ in found)


def test_in_situ_tumour_counts_with_invasive_and_glands_are_left_out(download, tmp_path):
    mask = np.zeros((64, 128), np.uint8)
    mask[:20, :64], mask[20:40, :64], mask[:, 64:] = 1, 3, 4
    relabel(download, mask)
    arguments = {"min_purity": 0.5, "stride": 64}
    _, table = prepared(download, tmp_path, classes="paper", **arguments)
    assert set(table["label"]) == {"tumor"} and len(table) == 18
    _, table = prepared(download, tmp_path, classes="all", **arguments)
    assert set(table["label"]) == {"healthy glands"} and len(table) == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 48}, "stride is 48 and the tile size 64"),
        ({"classes": "five"}, "classes are 'five'. Expected paper or all"),
    ],
)
def test_impossible_settings_are_told(download, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepared(download, tmp_path, **arguments)


def test_patient_and_centre_come_from_the_name(download, tmp_path):
    _, table = prepared(download, tmp_path)
    assert table.groupby("centre")["slide"].nunique().to_dict() == {"JB": 6, "RUMC": 6, "TCGA": 6}
    patients = table.groupby("slide")["patient"].first()
    assert patients[TCGA[0]] == "TCGA-A2-A0C0"
    assert patients[RUMC[4]] == "TC_S01_P000004"
    assert patients["101S"] == "JB_101"


def test_a_slide_in_both_sets_is_cut_once(download, tmp_path):
    _, table = prepared(download, tmp_path)
    assert len(table[table["slide"] == TCGA[3]]) == 2
    assert "10283" not in "".join(table["path"][table["slide"] == TCGA[3]])


def test_tiles_of_several_classes_are_left_out(download, tmp_path):
    _, table = prepared(download, tmp_path, min_purity=0.9)  # 10 of 64 rows are of another class
    assert set(table["label"]) == {"tumor-associated stroma"} and len(table) == 18


def test_a_class_with_too_few_patients_is_left_out(download, tmp_path):
    masks = download / "wsirois" / "roi-level-annotations" / "tissue-cells" / "masks"
    for mask in list(masks.glob("100B*")) + list(masks.glob("101S*")):
        pixels = np.asarray(Image.open(mask)).copy()
        pixels[pixels == 1] = 4  # glands, from two patients
        Image.fromarray(pixels).save(mask)
    _, table = prepared(download, tmp_path)
    assert len(table) == 34 and "healthy glands" not in set(table["label"])


def test_a_subfolder_of_the_download_may_be_given(download, tmp_path):
    _, table = prepared(download / "wsirois", tmp_path)
    assert len(table) == 36


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("name", ["tissue-bcss", "tissue-cells"])
def test_a_missing_part_is_named_with_its_source(download, tmp_path, name, kind):
    shutil.rmtree(download / "wsirois" / "roi-level-annotations" / name / kind)
    with pytest.raises(UserError, match=f"{name}/{kind} is missing.*s3://tiger-training"):
        prepare(download, tmp_path / "out")


def test_a_missing_mask_is_named(download, tmp_path):
    masks = download / "wsirois" / "roi-level-annotations" / "tissue-cells" / "masks"
    next(masks.glob("100B*")).unlink()
    with pytest.raises(UserError, match=r"100B_\[.*png is missing, one of 1 missing masks"):
        prepare(download, tmp_path / "out")


def test_an_image_and_a_mask_of_different_sizes_are_named(download, tmp_path):
    masks = download / "wsirois" / "roi-level-annotations" / "tissue-bcss" / "masks"
    Image.new("L", (10, 10)).save(next(masks.iterdir()))
    with pytest.raises(UserError, match=r"has \(70, 150\) pixels, but its mask has \(10, 10\)"):
        prepare(download, tmp_path / "out", size=64, workers=1)


def test_an_image_of_another_dataset_is_named(download, tmp_path):
    write_region(download / "wsirois" / "roi-level-annotations", "tissue-cells", "camelyon_1")
    with pytest.raises(UserError, match="camelyon_1 is not the name of a TIGER slide"):
        prepare(download, tmp_path / "out")

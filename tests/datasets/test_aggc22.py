import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from helpers import damage

from g2l_plugin import ManifestTiles
from g2l_plugin.datasets.aggc22 import mask_shares, prepare
from g2l_plugin.errors import UserError

SIZE = 512
LABELS = ("G3", "Normal", "Stroma")


def write_mask(path, corner, side=128, **options):
    """Writes a mask with one marked square, at the resolution of the slide."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[corner[1] : corner[1] + side, corner[0] : corner[0] + side] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, mask, **{"compression": "zlib", **options})


@pytest.fixture
def write_case(tmp_path, write_slide):
    def write(name, subset, part="Train", scanner="", below="Train", mpp=0.5):
        name = f"{subset}_{part}_{name}{scanner and '_'}{scanner}"
        image = tmp_path / "aggc" / f"{subset}_{part}_image" / scanner / f"{name}.tiff"
        masks = tmp_path / "aggc" / f"{subset}_{part}_annotation" / below / scanner / name
        write_slide(image, SIZE, mpp=mpp)
        for number, label in enumerate(LABELS):
            write_mask(masks / f"{label}_Mask.tif", (128 * number, 64 * number))
        return masks

    return write


@pytest.fixture
def download(tmp_path, write_case):
    """The archives of the training set, unpacked side by side."""
    for number in range(1, 4):
        write_case(number, "Subset1")
        write_case(number, "Subset2", below="")  # archives exist in both layouts
    for number in range(1, 3):
        for scanner in ("Akoya", "KFBio", "Leica"):
            write_case(number, "Subset3", scanner=scanner)
    return tmp_path / "aggc"


def prepared(download, tmp_path, **arguments):
    arguments = {"size": 64, "workers": 1} | arguments
    manifest = prepare(download, tmp_path / "out", **arguments)
    return manifest, pd.read_csv(manifest, dtype=str)


def test_tiles_are_cut_where_one_mask_covers_them(download, tmp_path):
    manifest, table = prepared(download, tmp_path)
    # Each square of 128 pixels holds 2 x 2 tiles of 64.
    assert table["label"].value_counts().to_dict() == {label: 48 for label in LABELS}
    names = table["path"][table["slide"] == "Subset1_Train_1"]
    assert "tiles/Subset1_Train_1/64_64.png" in set(names)  # G3
    assert set(table["label"][table["path"] == "tiles/Subset1_Train_1/64_64.png"]) == {"G3"}
    data = ManifestTiles(str(manifest.parent), "manifest.csv", "train")
    data.prepare_data()
    data.setup()
    assert data[0][0].shape == (3, 64, 64) and data.classes == list(LABELS)


def test_a_tile_shows_what_the_slide_shows_there(download, tmp_path):
    manifest, _ = prepared(download, tmp_path)
    slide = tifffile.imread(download / "Subset1_Train_image" / "Subset1_Train_1.tiff")
    data = ManifestTiles(str(manifest.parent), "manifest.csv")
    data.configure()
    names = [data.filename(index) for index in range(len(data))]
    pixels = data.load_data(names.index("tiles/Subset1_Train_1/192_64.png"))
    assert (pixels.permute(1, 2, 0).numpy() == slide[64:128, 192:256]).all()


def test_a_specimen_of_several_scanners_is_one_patient(download, tmp_path):
    _, table = prepared(download, tmp_path)
    case = table[table["patient"] == "Subset3_Train_2"]
    assert set(case["scanner"]) == {"Akoya", "KFBio", "Leica"} and case["split"].nunique() == 1
    assert set(table["scanner"][table["subset"] != "Subset3"]) == {"Akoya"}
    assert set(table["centre"]) == {"National University Hospital"}
    assert table.groupby("patient")["split"].nunique().max() == 1


def test_the_annotated_test_set_is_the_test_split(download, write_case, tmp_path):
    for number in range(1, 3):
        write_case(number, "Subset1", "Test")
    _, table = prepared(download, tmp_path)
    assert set(table["slide"][table["split"] == "test"]) == {"Subset1_Test_1", "Subset1_Test_2"}
    assert set(table["split"]) == {"train", "val", "test"}


def test_max_tiles_limits_the_tiles_per_class_and_slide(download, tmp_path):
    _, table = prepared(download, tmp_path, max_tiles=2)
    assert table.groupby(["slide", "label"]).size().eq(2).all()


@pytest.mark.parametrize("mpp", [0.25, None, 352.8])
def test_the_resolution_is_20x_if_the_metadata_is_missing_or_implausible(
    download, write_case, tmp_path, mpp
):
    write_case(4, "Subset1", mpp=mpp)
    _, table = prepared(download, tmp_path)
    tiles = table[table["slide"] == "Subset1_Train_4"]
    # At 0.25 microns per pixel a tile is as wide as a square, and one square lies on four tiles.
    assert len(tiles) == (2 if mpp == 0.25 else 12)


@pytest.mark.parametrize(
    "part", ["Subset1_Train_image", "Subset2_Train_annotation", "Subset3_Train_image"]
)
def test_a_missing_part_is_named_with_its_source(download, tmp_path, part):
    shutil.rmtree(download / part)
    with pytest.raises(UserError, match=f"{part} is missing.*aggc22.grand-challenge.org"):
        prepare(download, tmp_path / "out")


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_folder_is_not_the_download(tmp_path, exists):
    folder = tmp_path / "none"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError, match="aggc22.grand-challenge.org"):
        prepare(folder, tmp_path / "out")


def test_a_slide_without_annotations_is_left_out(download, tmp_path):
    shutil.rmtree(download / "Subset1_Train_annotation" / "Train" / "Subset1_Train_2")
    _, table = prepared(download, tmp_path)
    assert "Subset1_Train_2" not in set(table["slide"])


def test_too_many_broken_slides_are_an_error_that_names_one(download, tmp_path):
    (download / "Subset1_Train_image" / "Subset1_Train_2.tiff").write_bytes(b"no slide")
    with pytest.raises(UserError, match="1 of 12 regions cannot be read.*Subset1_Train_2.tiff"):
        prepare(download, tmp_path / "out", size=64, workers=1)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"rowsperstrip": 100},
        {"tile": (64, 48)},
        {"tile": (128, 128), "compression": None},
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_masks_of_every_storage_layout_are_counted_exactly(tmp_path, options, kind):
    mask = np.random.default_rng(0).random((300, 200)) < 0.4
    values = mask.astype(np.uint8) * 255 if kind is np.uint8 else mask
    if kind is bool:
        options = {**options, "compression": None}
    tifffile.imwrite(tmp_path / "mask.tif", values, **{"compression": "zlib", **options})
    shares = mask_shares(tmp_path / "mask.tif", (200, 300), (64, 32), (9, 3))
    for row, column in np.ndindex(9, 3):
        area = mask[row * 32 : (row + 1) * 32, column * 64 : (column + 1) * 64]
        assert shares[row, column] == pytest.approx(area.mean())


def test_a_mask_may_be_smaller_than_its_slide(tmp_path):
    write_mask(tmp_path / "mask.tif", (128, 0))
    shares = mask_shares(tmp_path / "mask.tif", (2 * SIZE, 2 * SIZE), (256, 256), (4, 4))
    assert shares.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]


def test_a_mask_of_another_shape_or_an_unreadable_mask_is_named(tmp_path):
    write_mask(tmp_path / "mask.tif", (128, 0))
    with pytest.raises(UserError, match="mask.tif has another aspect ratio"):
        mask_shares(tmp_path / "mask.tif", (SIZE, 2 * SIZE), (64, 64), (8, 8))
    damage(tmp_path / "mask.tif", 0, [0])
    with pytest.raises(UserError, match="mask.tif cannot be read"):
        mask_shares(tmp_path / "mask.tif", (SIZE, SIZE), (64, 64), (8, 8))
    (tmp_path / "bad.tif").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.tif cannot be read"):
        mask_shares(tmp_path / "bad.tif", (SIZE, SIZE), (64, 64), (8, 8))

import pandas as pd
import pytest
import torch
from eva.core.data.dataloaders import DataLoader
from eva.core.data.datamodules import DataModule
from eva.core.data.datamodules.schemas import DataloadersSchema, DatasetsSchema
from eva.vision.data.transforms.common import ResizeAndCrop
from PIL import Image

from g2l_plugin import ManifestTiles
from g2l_plugin.errors import UserError

ROWS = [
    ("a/0.png", "tumour", "train", "p0", "north"),
    ("a/1.png", "normal", "train", "p1", "south"),
    ("b/2.png", "tumour", "val", "p2", ""),
    ("b/3.png", "normal", "val", "p3", "north"),
    ("b/4.png", "normal", "test", "p4", "south"),
]
TABLE = pd.DataFrame(ROWS, columns=["path", "label", "split", "patient", "centre"])


@pytest.fixture
def root(tmp_path):
    for number, path in enumerate(TABLE["path"]):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (10 * number, 20, 30)).save(tmp_path / path)
    return tmp_path


def dataset(root, table=TABLE, split="train", **arguments):
    table.to_csv(root / "manifest.csv", index=False)
    return ManifestTiles(str(root), "manifest.csv", split, **arguments)


def set_up(data):
    data.prepare_data()
    data.setup()
    return data


def refusal(root, table, split="train"):
    with pytest.raises(UserError) as error:
        dataset(root, table, split).prepare_data()
    return str(error.value)


def with_value(row, column, value):
    table = TABLE.copy()
    table.loc[row, column] = value
    return table


def test_an_item_is_image_class_index_and_metadata(root):
    data = set_up(dataset(root, split="val"))
    image, target, metadata = data[0]
    assert image.shape == (3, 10, 12) and image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [20, 20, 30]  # red first
    assert target.dtype == torch.int64 and target.item() == 1
    assert metadata == {"patient": "p2", "slide": "", "centre": ""}
    assert [data.filename(index) for index in range(len(data))] == ["b/2.png", "b/3.png"]


def test_classes_have_the_same_indices_in_every_split(root):
    sets = [set_up(dataset(root, split=split)) for split in ("train", "val", "test", None)]
    assert [len(data) for data in sets] == [2, 2, 1, 5]
    assert {tuple(data.classes) for data in sets} == {("normal", "tumour")}
    assert [data.load_target(0).item() for data in sets] == [1, 1, 0, 1]
    assert sets[0].class_to_idx == {"normal": 0, "tumour": 1}


def test_classes_are_known_before_setup_and_numbers_are_sorted_by_value(root):
    table = pd.concat([TABLE.iloc[[0]]] * 6).assign(
        path=[f"{number}.png" for number in range(6)],
        label=["10", "9", "rest"] * 2,
        split=["train"] * 3 + ["val"] * 3,
        patient="",
    )
    assert dataset(root, table).classes == ["9", "10", "rest"]


def test_parquet_is_read_like_csv_and_empty_values_are_empty_text(root):
    table = TABLE.assign(label=[1, 0, 1, 0, 0], age=[40.0, None, 41.5, 42.0, 43.0])
    table["centre"] = table["centre"].replace("", None)
    table.to_parquet(root / "manifest.parquet")
    data = set_up(ManifestTiles(str(root), "manifest.parquet", "train"))
    assert data.classes == ["0", "1"]
    assert data.load_metadata(0) == {"patient": "p0", "slide": "", "centre": "north", "age": "40"}
    assert data.load_metadata(1)["age"] == ""
    val = set_up(ManifestTiles(str(root), "manifest.parquet", "val"))
    assert val.load_metadata(0)["centre"] == ""


def test_the_column_mapping_renames_columns(root):
    table = TABLE.rename(columns={"label": "diagnosis"}).assign(scanner=list("xyxyx"))
    mapping = {"label": "diagnosis", "centre": "scanner"}
    data = set_up(dataset(root, table, column_mapping=mapping))
    assert data.classes == ["normal", "tumour"]
    assert data.load_metadata(1) == {"patient": "p1", "slide": "", "centre": "y"}


def test_the_manifest_may_be_outside_the_root(root, tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "tiles.csv"
    TABLE.to_csv(path, index=False)
    assert len(set_up(ManifestTiles(str(root), str(path), "train"))) == 2


def test_evas_data_module_loads_batches(root):
    transforms = ResizeAndCrop(size=8, mean=[0.5] * 3, std=[0.5] * 3)
    sets = [dataset(root, split=split, transforms=transforms) for split in ("train", "val")]
    module = DataModule(
        DatasetsSchema(predict=sets), DataloadersSchema(predict=DataLoader(batch_size=2))
    )
    module.prepare_data()
    module.setup("predict")
    loaders = module.predict_dataloader()
    images, targets, metadata = next(iter(loaders[0]))
    assert images.shape == (2, 3, 8, 8) and targets.tolist() == [1, 0]
    assert metadata["patient"] == ["p0", "p1"] and metadata["centre"] == ["north", "south"]


def test_a_missing_manifest_is_an_error(root):
    with pytest.raises(UserError, match="nowhere.csv does not exist.*g2l prepare"):
        ManifestTiles(str(root), "nowhere.csv").prepare_data()


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_an_unreadable_manifest_is_an_error(root, name):
    (root / name).write_bytes(b"\xff\xfe\x00\x01" * 9)
    with pytest.raises(UserError, match="cannot be read"):
        ManifestTiles(str(root), name).prepare_data()


def test_missing_columns_are_named(root):
    assert "has no column label, split. Its columns are path," in refusal(
        root, TABLE.drop(columns=["label", "split"])
    )
    table = TABLE.drop(columns="split")
    assert len(set_up(dataset(root, table, None))) == 5  # all rows, so no split is needed


def test_missing_files_are_counted_and_the_first_is_named(root):
    (root / "a" / "1.png").unlink()
    assert "1 of 2 files do not exist" in refusal(root, TABLE)
    message = refusal(root, TABLE.assign(path="c/" + TABLE["path"]))
    assert "2 of 2 files do not exist" in message and "c/a/0.png" in message


@pytest.mark.parametrize("path", ["/data/0.png", "../0.png", "a/../../0.png", ""])
def test_paths_outside_the_root_are_refused(root, path):
    assert "Expected a path relative to the root and below it" in refusal(
        root, with_value(0, "path", path)
    )


@pytest.mark.parametrize("path", ["a/0.png", "./a//0.png"])
def test_a_tile_listed_twice_is_named(root, path):
    message = refusal(root, with_value(1, "path", path))
    assert "lists 1 tiles twice. The first is a/0.png" in message


def test_tiles_whose_embeddings_would_share_a_file_are_named(root):
    assert "a/0.png and a/0.jpg" in refusal(root, with_value(1, "path", "a/0.jpg"))


@pytest.mark.parametrize("label", ["", "  "])
def test_a_tile_without_label_is_named(root, label):
    message = refusal(root, with_value(3, "label", label))
    assert "1 of 5 rows" in message and "b/3.png" in message


def test_an_empty_manifest_is_refused(root):
    assert "has no rows" in refusal(root, TABLE.iloc[:0])


def test_an_absent_split_is_refused(root):
    table = TABLE[TABLE["split"] != "test"]
    message = refusal(root, table, "test")
    assert "no rows of the split 'test'. It has train, val." in message


@pytest.mark.parametrize("split", ["valid", ""])
def test_an_unknown_split_is_refused(root, split):
    message = refusal(root, with_value(2, "split", split))
    assert f"the split {split!r}. Expected train, val, test" in message


def test_a_label_in_only_one_split_is_named(root):
    message = refusal(root, with_value(0, "label", "rare"))
    assert "The label 'rare'" in message and "only in the split 'train'" in message


def test_a_label_that_train_lacks_is_named(root):
    table = TABLE.copy()
    table.loc[[2, 4], "label"] = "rare"
    assert "'rare'" in refusal(root, table) and "not in 'train'" in refusal(root, table)


def test_a_patient_in_two_splits_is_named(root):
    message = refusal(root, with_value(3, "patient", "p1"))
    assert "1 patients are in two splits" in message
    assert "The first is p1, in train and val." in message


@pytest.mark.parametrize(("first", "second"), [("P1", "P1 "), ("7", "7.0"), ("A 1", " A  1")])
def test_a_patient_in_two_splits_is_found_however_it_is_written(root, first, second):
    table = with_value(1, "patient", first)
    table.loc[3, "patient"] = second
    assert "1 patients are in two splits" in refusal(root, table)


def test_a_slide_in_two_splits_is_said_where_patients_are_unknown(root, warned):
    slides = TABLE.assign(slide=[f"s{number}" for number in range(len(TABLE))])
    slides.loc[3, "slide"] = slides.loc[1, "slide"]
    # Two patients may each have a slide 1.
    set_up(dataset(root, slides.assign(patient=[f"p{n}" for n in range(len(TABLE))])))
    assert not warned
    set_up(dataset(root, slides.assign(patient="")))
    assert "1 slides are in two splits" in warned[0] and "seen in training" in warned[0]


def test_unknown_patients_are_not_one_patient(root):
    assert len(set_up(dataset(root, TABLE.assign(patient="")))) == 2


def test_splits_are_drawn_by_patient_only_if_asked_for(root):
    table = pd.DataFrame({"path": [f"{n}.png" for n in range(40)]})
    table = table.assign(label=["a", "b"] * 20, patient=[f"p{n // 4}" for n in range(40)])
    assert "has no column split" in refusal(root, table)
    tiles = {}
    for split in ("train", "val", "test"):
        data = dataset(root, table, split, draw_splits=True)
        data.setup()
        tiles[split] = [
            (data.filename(n), data.load_metadata(n)["patient"]) for n in range(len(data))
        ]
    patients = [{patient for _, patient in found} for found in tiles.values()]
    assert not set.intersection(*patients) and sum(map(len, patients)) == 10
    assert sorted(name for found in tiles.values() for name, _ in found) == sorted(table["path"])
    with pytest.raises(UserError, match="neither a column split nor a column patient"):
        dataset(root, table.drop(columns="patient"), draw_splits=True).setup()


def test_splits_of_the_manifest_go_before_drawn_ones(root):
    drawn = [set_up(dataset(root, split=split, draw_splits=True)) for split in ("train", "test")]
    assert [[data.filename(0), len(data)] for data in drawn] == [["a/0.png", 2], ["b/4.png", 1]]

import io
import tarfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g2l_plugin.errors import UserError
from g2l_plugin.slides.image_set import find_images


def png(value, size=(8, 6)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_parquet(path, images, **columns):
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=2)


def values(images):
    """The red value of each image, read one by one from the last to the first."""
    found = []
    for number in reversed(range(len(images))):
        with images.open(number) as file, Image.open(file) as image:
            found.append(np.asarray(image)[0, 0, 0])
    return found[::-1]


def test_a_folder_is_searched_with_its_subfolders(tmp_path):
    for number, name in enumerate(["b.png", "a/1.PNG", "a/2.jpeg.png", "notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    images = find_images(tmp_path)
    assert images.table["name"].tolist() == ["a/1.PNG", "a/2.jpeg.png", "b.png"]
    assert values(images) == [1, 2, 0]
    assert (images.table["patient"] == "").all() and images.table["mpp"].isna().all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_manifest_names_images_patients_centres_and_resolutions(tmp_path, suffix):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    manifest = pd.DataFrame(
        {
            "Image": ["2.png", "0.png", "1.png"],
            "patient_id": ["P1 ", "7.0", "P1"],
            "mpp": [0.25, None, 0.5],
            "center": ["A", "", "B"],
        }
    )
    path = tmp_path / f"tiles{suffix}"
    manifest.to_csv(path, index=False) if suffix == ".csv" else manifest.to_parquet(path)
    images = find_images(path)
    assert values(images) == [2, 0, 1]
    assert images.table["patient"].tolist() == ["P1", "7", "P1"]
    assert images.table["centre"].tolist() == ["A", "", "B"]
    assert images.table["mpp"].fillna(-1).tolist() == [0.25, -1, 0.5]


def test_members_of_tars_are_read_in_place(tmp_path):
    write_tar(tmp_path / "0.tar", {"x.png": png(5), "x.json": b"{}", "y.png": png(6)})
    write_tar(tmp_path / "1.tar", {"deep/z.png": png(7)})
    images = find_images(tmp_path)
    assert images.table["name"].tolist() == ["x.png", "y.png", "deep/z.png"]
    assert images.group_sizes.tolist() == [2, 1]
    assert values(images) == [5, 6, 7]
    assert values(find_images(tmp_path / "1.tar")) == [7]


@pytest.mark.parametrize("as_struct", [True, False])
def test_rows_of_parquets_of_the_hub_are_read_by_row_group(tmp_path, as_struct):
    for file, rows in (("0.parquet", [0, 1, 2]), ("1.parquet", [3, 4])):
        data = [png(row) for row in rows]
        if as_struct:
            data = [{"bytes": d, "path": f"{r}.png"} for d, r in zip(data, rows, strict=True)]
        write_parquet(tmp_path / file, data, patient=[f"p{row}" for row in rows])
    images = find_images(tmp_path)
    assert values(images) == [0, 1, 2, 3, 4]
    names = [f"{n}.png" for n in range(5)] if as_struct else ["0.parquet:0", "0.parquet:1"]
    assert images.table["name"].tolist()[: len(names)] == names
    assert images.table["patient"].tolist() == ["p0", "p1", "p2", "p3", "p4"]
    assert images.group_sizes.tolist() == [2, 1, 2] and images.block_images == 2


def test_a_row_without_bytes_is_an_error_of_that_image(tmp_path):
    write_parquet(
        tmp_path / "a.parquet", [{"bytes": png(1), "path": None}, {"bytes": None, "path": "x"}]
    )
    images = find_images(tmp_path / "a.parquet")
    assert images.open(0).read() == png(1)
    with pytest.raises(OSError, match="row 1 of .*a.parquet has no bytes"):
        images.open(1)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "image_id,label\n1,2\n", "columns image_id, label, none of which names"),
        ("a.csv", "path,mpp\nx.png,wide\n", "Row 1 of manifest .* has 'wide' in its column `mpp`"),
        ("a.csv", "path,mpp\nx.png,0\n", "has '0' in its column `mpp`"),
        ("a.csv", "path,mpp\n,0.5\n", "Row 1 of manifest .* names no image"),
        ("a.csv", "path,mpp\n", "holds no images"),
        ("a.tar", "no tar", "a.tar cannot be read .*without compression"),
        ("a.parquet", "no parquet", "a.parquet cannot be read .*Expected an index"),
        ("a.zip", "", "a.zip holds no images"),
    ],
)
def test_what_holds_no_images_is_told(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        find_images(tmp_path / name)


def test_an_empty_and_a_missing_folder_are_told(tmp_path):
    with pytest.raises(UserError, match="holds no images. Expected an index of slides, a folder"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_images(tmp_path / "nowhere")

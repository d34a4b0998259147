import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from g2l_plugin.datasets.manifest import ManifestTiles
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.tiles import fingerprint, name_classes, write_manifest


@pytest.fixture
def tiles(tmp_path):
    """Write four tiles; return a function that reads them with some labels."""
    for number in range(4):
        image = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.bmp")

    def read(labels="abab"):
        table = pd.DataFrame({"path": [f"{n}.bmp" for n in range(4)], "label": list(labels)})
        table.to_csv(tmp_path / "manifest.csv", index=False)
        dataset = ManifestTiles(str(tmp_path))
        dataset.setup()
        return dataset

    return read


def test_images_are_known_by_their_files_whatever_their_labels(tiles, tmp_path):
    before = fingerprint(tiles())
    assert fingerprint(tiles("bbaa")) == before
    stat = os.stat(tmp_path / "2.bmp")
    (tmp_path / "2.bmp").write_bytes((tmp_path / "1.bmp").read_bytes())
    os.utime(tmp_path / "2.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint(tiles()) != before


def test_class_names_are_those_of_the_labels(tiles):
    words, numbers = tiles().classes, tiles("0101").classes
    assert name_classes(None, words) == ["a", "b"]
    assert name_classes(["a", "b"], words) == ["a", "b"]
    assert name_classes(["no", "yes"], numbers) == ["no", "yes"]
    assert name_classes(["no", "yes"], None) == ["no", "yes"]
    for given, own in ((["b", "a"], words), (["a"], words), (["a", "b", "c"], numbers)):
        with pytest.raises(UserError, match=f"{', '.join(given)}, .*has {', '.join(own)}, in"):
            name_classes(given, own)


def test_a_slide_is_one_row_of_the_manifest(tmp_path):
    class Patches:
        def __len__(self):
            return 4

        def filename(self, index):
            return f"slide{index // 2}.svs"

        def __getitem__(self, index):
            return None, index // 2, {"centre": "x", "y": index}

    write_manifest(tmp_path, [Patches()], ["test"], ["centre"])
    table = pd.read_csv(tmp_path / "manifest.csv")
    assert table.values.tolist() == [
        ["slide0.svs", "slide0.pt", 0, "test", "x"],
        ["slide1.svs", "slide1.pt", 1, "test", "x"],
    ]

import numpy as np
import torch
from PIL import Image

from g2l_plugin.demo.dataset import DemoTiles
from g2l_plugin.demo.generate import load_cohort
from g2l_plugin.demo.tissue import MASK_DOWNSAMPLE


def make_tiles(root, **options):
    tiles = DemoTiles(str(root), "train", n_slides=2, **options)
    tiles.prepare_data()
    tiles.setup()
    return tiles


def test_labels_agree_with_the_mask(tmp_path):
    tiles = make_tiles(tmp_path, min_purity=0.9)
    masks = {slide.path.stem: np.asarray(Image.open(slide.mask)) for slide in load_cohort(tmp_path)}
    for index in range(0, len(tiles), 37):
        tile, label, metadata = tiles[index]
        assert tile.shape == (3, 64, 64) and tile.dtype == torch.uint8
        x, y = tiles.tiles.xy[index] // MASK_DOWNSAMPLE
        area = masks[metadata["slide"]][y : y + 8, x : x + 8]
        assert (area == label.item() + 1).mean() >= 0.9
        assert tiles.filename(index).startswith(metadata["slide"])
    assert set(tiles._labels) == set(range(5))


def test_fewer_tiles_are_spread_over_the_slides(tmp_path):
    all_tiles, few = make_tiles(tmp_path), make_tiles(tmp_path, max_tiles=20)
    assert len(few) == 20 < len(all_tiles)
    assert len(set(few.tiles.slide_of_tile)) == 2


def test_transforms_are_applied_as_in_evas_datasets(tmp_path):
    tiles = make_tiles(tmp_path, max_tiles=3, transforms=lambda tile: tile.float().mean())
    assert tiles[0][0].ndim == 0

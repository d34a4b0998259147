"""Measures which tiles `min_sharpness` leaves out, with and without added blur.

The table has percentiles of the sharpness of tissue tiles, and the share below the default limit,
for the original tiles and after Gaussian blurs.

Run: python benchmarks/sharpness.py --slides DIR
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from cohorts import add_arguments, copy_slides
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from g2l_plugin import TileDataset
from g2l_plugin.slides.tile_grid import TileGrid
from g2l_plugin.slides.tissue import sharpness

BLURS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Standard deviations of the blurs, in microns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, n_slides=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slides = copy_slides(options.slides, Path(folder) / "slides", options.n_slides)
        dataset = TileDataset(
            str(slides),
            overwrite_mpp=options.overwrite_mpp,
            min_sharpness=0,
            index_dir=f"{folder}/index",
        )
        dataset.prepare_data()
        dataset.setup()
        tiles = [dataset[index].numpy() for index in range(len(dataset))]
    grid = TileGrid()
    table = Table(title=f"Sharpness of {len(tiles)} tissue tiles of {options.n_slides} slides")
    for column in ("blur (um)", "1 %", "50 %", "99 %", f"below {grid.min_sharpness}"):
        table.add_column(column, justify="right")
    for blur in BLURS:
        sigma = blur / grid.target_mpp
        values = np.array(
            [
                sharpness(ndimage.gaussian_filter(tile, (0, sigma, sigma)), grid.target_mpp)
                for tile in tiles
            ]
        )
        low, middle, high = np.percentile(values, (1, 50, 99))
        left_out = (values < grid.min_sharpness).mean()
        table.add_row(
            f"{blur:.1f}", f"{low:.3f}", f"{middle:.3f}", f"{high:.3f}", f"{left_out:.0%}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()

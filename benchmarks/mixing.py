"""Measures how well batches mix the slides, compared with a full shuffle of all tiles.

No tile is read, only tile numbers are drawn. Slides are made of squares of 64 tiles; two in five,
at the edge of the tissue, have fewer. "Neighbours" are pairs of tiles in a batch that come
from the same slide and whose numbers are less than a block apart.

Run: python benchmarks/mixing.py
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from g2l_plugin.slides.mixing import MixingBuffer, shuffled_blocks


def describe(batches: list[np.ndarray], slide: np.ndarray, block_tiles: int) -> tuple[float, float]:
    """Computes the mean number of slides, and of pairs of neighbours, in a batch."""
    n_slides, n_pairs = [], []
    for tiles in batches:
        n_slides.append(len(np.unique(slide[tiles])))
        same = slide[tiles][:, None] == slide[tiles][None]
        near = np.abs(tiles[:, None] - tiles[None]) < block_tiles
        n_pairs.append(np.triu(same & near, 1).sum())
    return float(np.mean(n_slides)), float(np.mean(n_pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-slides", type=int, default=1000)
    parser.add_argument("--tiles-per-slide", type=int, default=7500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--n-batches", type=int, default=5000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    squares_per_slide = round(options.tiles_per_slide / (0.6 * 64 + 0.4 * 32.5))
    n_squares = squares_per_slide * options.n_slides
    is_full = rng.random(n_squares) < 0.6
    sizes = np.where(is_full, 64, rng.integers(1, 65, n_squares))
    slide = np.repeat(np.arange(n_squares) // squares_per_slide, sizes)
    full = [
        rng.choice(sizes.sum(), options.batch_size, replace=False) for _ in range(options.n_batches)
    ]
    table = Table(
        title=f"{sizes.sum():,} tiles of {options.n_slides:,} slides, batches of "
        f"{options.batch_size}, mean of {options.n_batches:,} batches"
    )
    for column in ("block", "buffer", "slides per batch", "of a full shuffle", "neighbours"):
        table.add_column(column, justify="right")
    all_slides, pairs = describe(full, slide, 32)
    table.add_row("full shuffle", "", f"{all_slides:.2f}", "1.000", f"{pairs:.2f}")
    for block_tiles in (16, 32, 64):
        for capacity in (2048, 8192, 32768):
            blocks = shuffled_blocks(sizes, block_tiles, rng)
            buffer = MixingBuffer(blocks, options.batch_size, capacity, rng)
            batches = []
            for _ in range(options.n_batches):
                for _slots in buffer.fill():
                    pass
                batches.append(buffer.content[buffer.draw()])
            n_slides, pairs = describe(batches, slide, block_tiles)
            table.add_row(
                str(block_tiles),
                f"{capacity:,}",
                f"{n_slides:.2f}",
                f"{n_slides / all_slides:.3f}",
                f"{pairs:.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()

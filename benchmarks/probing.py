"""Measures how fast eva fits its head on embeddings in memory, and with one file per tile.

Run: python benchmarks/probing.py --n-tiles 20000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from eva.core.data.datasets import EmbeddingsClassificationDataset
from torch.utils.data import DataLoader
from tqdm import tqdm

from g2l_plugin.evaluation.embedding_files import EmbeddingsInMemory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-tiles", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), options.n_tiles, options.width)
        # Like one of eva's workers.
        torch.set_num_threads(1)
        theirs, ours = [], []
        eva = make(EmbeddingsClassificationDataset, root)
        mine, first = timed(lambda: make(EmbeddingsInMemory, root))
        for _ in range(options.epochs):
            theirs.append(timed(lambda: epoch(eva, options.width))[1])
            ours.append(timed(lambda: epoch(mine, options.width))[1])
    a, b = (options.n_tiles / statistics.median(times) for times in (theirs, ours))
    print(f"{options.n_tiles:,} tiles of {options.width:,} features, one core, batches of 256")
    print(f"eva's dataset           {a:10,.0f} tiles/s")
    print(f"EmbeddingsInMemory      {b:10,.0f} tiles/s, {b / a:.1f} times as fast")
    print(f"  read once at the start {first:.1f} s, {options.n_tiles / first:,.0f} tiles/s")
    print(f"  memory                 {options.n_tiles * options.width * 4 / 1e9:.2f} GB")


def write(root: Path, n_tiles: int, width: int) -> Path:
    """Writes random embeddings and their manifest, as eva does."""
    rows = []
    for number in tqdm(range(n_tiles), "Writing embeddings"):
        torch.save([torch.randn(width)], root / f"{number}.pt")
        rows.append((f"{number}.png", f"{number}.pt", number % 5, "train"))
    columns = ["origin", "embeddings", "target", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "manifest.csv", index=False)
    return root


def make(kind: type, root: Path) -> EmbeddingsClassificationDataset:
    dataset = kind(str(root), "manifest.csv", "train")
    dataset.setup()
    return dataset


def epoch(dataset: EmbeddingsClassificationDataset, width: int) -> None:
    head = torch.nn.Linear(width, 5)
    for embeddings, _ in DataLoader(dataset, batch_size=256, shuffle=True):
        head(embeddings)


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()

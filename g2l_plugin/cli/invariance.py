"""`g2l invariance`: whether tiles keep their embeddings when their images are changed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from g2l_plugin.cli.command import Commands, add_command

_EPILOG = """\
examples:
  g2l invariance logs/breast/run_0 h-optimus-0 --tiles data/tiles
  g2l invariance demo:teacher --tiles demo

Tiles are rotated, flipped, restained, compressed, blurred and rescaled. `relative` is 0 where a
changed tile is as far from itself as different tiles are from each other, and 1 where nothing
changes; `nearest` is the share of tiles to which no other tile is nearer than their changed self.
"""
_DEMO = "demo"
_DEMO_ROOT = "data/g2l_demo"


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "invariance",
        "Measures how much embeddings change when tiles are rotated, restained or compressed.",
        _EPILOG,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="student, run, name of `g2l models` or source")
    add("--tiles", required=True, help=f"folder, manifest, tar or parquet of images, or {_DEMO}")
    add("--output", type=Path, default=Path("invariance.csv"), metavar="CSV", help="all values")
    add("--max-tiles", type=int, default=500, help="tiles to use, evenly spread")
    add("--batch-size", type=int, default=32, help="tiles per batch")
    add("--seed", type=int, default=0, help="seed of the HED jitter")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import dataclasses

    import pandas as pd
    from rich.console import Console

    from g2l_plugin.encoders.load import load_encoder
    from g2l_plugin.errors import UserError
    from g2l_plugin.evaluation.invariance import embed_changed
    from g2l_plugin.files import write_text
    from g2l_plugin.metrics.invariance import measure_invariance
    from g2l_plugin.metrics.neighbours import choose_device
    from g2l_plugin.runs.model_names import find_source

    for name in ("max_tiles", "batch_size"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}. Expected 1 or more.")
    sources = {model: find_source(model) for model in options.models}
    tiles = _Spread(_tiles(options.tiles), options.max_tiles)
    rows: list[dict[str, Any]] = []
    for model, source in sources.items():
        encoder = load_encoder(source).to(choose_device("auto"))
        size = encoder.usual_size
        embeddings = embed_changed(
            encoder, tiles, size, options.batch_size, options.seed, f"Invariance of {model}"
        )
        baseline, found = measure_invariance(*embeddings)
        facts = {"model": model, "n_tiles": len(tiles), "size": size, "baseline": baseline}
        rows += [facts | {"change": n} | dataclasses.asdict(own) for n, own in found.items()]
        Console(soft_wrap=True).print(_table(model, size, len(tiles), baseline, found))
    write_text(options.output, pd.DataFrame(rows).to_csv(index=False))
    print(f"Values: {options.output}")


def _tiles(tiles: str) -> Any:
    """The tiles that are meant: images that `g2l pack` takes too, or the generated cohort."""
    from g2l_plugin.demo.dataset import DemoTiles
    from g2l_plugin.slides.image_set import find_images
    from g2l_plugin.slides.image_source import WholeImages

    if tiles != _DEMO:
        return WholeImages(find_images(tiles))
    dataset = DemoTiles(_DEMO_ROOT, "test", min_purity=0.8)
    dataset.prepare_data()
    dataset.setup()
    return dataset


class _Spread:
    """At most n tiles of a dataset, evenly spread over it, as images alone."""

    def __init__(self, tiles: Any, n: int) -> None:
        from g2l_plugin.slides.image_source import spread_evenly

        self._tiles, self._numbers = tiles, spread_evenly(len(tiles), n)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        item = self._tiles[self._numbers[index]]
        return item[0] if isinstance(item, tuple) else item


def _table(model: str, size: int, n_tiles: int, baseline: float, found: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{model}: {n_tiles:,} tiles of {size} px; cosine of different tiles {baseline:.3f}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("tile and the same tile")
    for name in ("cosine", "relative", "nearest"):
        table.add_column(name, justify="right")
    for change, own in found.items():
        table.add_row(change, f"{own.cosine:.3f}", f"{own.relative:.3f}", f"{own.nearest:.1%}")
    return table

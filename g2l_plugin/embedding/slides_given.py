"""What people give as slides to embed, found and indexed: a folder, a slide, a list, an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from g2l_plugin.errors import UserError
from g2l_plugin.slides.cohort import choose_cohort
from g2l_plugin.slides.index import Index, open_index, read_settings
from g2l_plugin.slides.indexing import build_index
from g2l_plugin.slides.slide_list import is_slide
from g2l_plugin.slides.tile_grid import TileGrid

TILE_SIZE = 224
"""Width and height of tiles, in pixels, if nobody says otherwise."""


@dataclasses.dataclass(frozen=True)
class GivenSlides:
    """Slides to embed, none of which is opened yet.

    Attributes:
        grid: The tiles, which are square.
        root: Folder of the slides.
        slides: The slides as `choose_cohort` takes them; None for an index.
        index_dir: Folder of an index that `g2l index` made; None if it is still to be made.
        keep_duplicates: Whether slides of the same content are all used.
    """

    grid: TileGrid
    root: Path
    slides: str | Sequence[str] | None = None
    index_dir: Path | None = None
    keep_duplicates: bool = True

    def index(
        self,
        folder: Path,
        shard: tuple[int, int] | None = None,
        workers: int | None = None,
        scheduler: str | None = None,
    ) -> Index:
        """Opens the index, or makes it with all slides, several of a patient too.

        Args:
            folder: Where to make it.
            shard: (i, n), with i from 1 to n: only the i-th of n parts.
            workers: Processes that index; None starts one per CPU core.
            scheduler: Address of a Dask scheduler whose workers index; None uses this machine.

        Raises:
            UserError: An index is not complete, or the folder of the slides disappears.
        """
        if self.index_dir is not None:
            index = open_index(self.index_dir, self.grid, self.root, self.keep_duplicates)
            return index.part(shard or (1, 1))
        build_index(
            folder,
            self.grid,
            self.root,
            self.slides,
            one_per_patient=False,
            keep_duplicates=True,
            max_lost=1.0,  # the others are embedded before anybody complains
            workers=workers,
            shard=shard,
            scheduler=scheduler,
        )
        return open_index(folder, self.grid, self.root, True, shard or (1, 1))


def find_slides(slides: str | Path, root: str | Path | None = None, **settings: Any) -> GivenSlides:
    """Finds out what was given.

    Args:
        slides: A folder of slides, one slide, a list of slides as `choose_cohort` takes it, or an
            index that `g2l index` made.
        root: Folder of the slides of a list (its own folder if None), or of an index whose slides
            have moved.
        settings: Fields of `TileGrid`, and `tile_size`; None where nobody says. An index has its
            own, and they may not differ from these.

    Raises:
        UserError: There are no slides, or an index has other settings.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if (size := given.pop("tile_size", None)) is not None:
        if size < 1:
            raise UserError(f"Tiles of {size} px (`tile_size`, --tile-size): give 1 or more.")
        given |= {"width": size, "height": size}
    path = Path(slides).expanduser()
    if (path / "index.json").is_file():
        return _find_index(path, root, given)
    grid = TileGrid(**{"width": TILE_SIZE, "height": TILE_SIZE} | given)
    if path.is_dir():
        _refuse_root(root, f"{path} is a folder")
        names = [slide.slide for slide in choose_cohort(path, one_per_patient=False)]
        # By name: slides that have come since the last run are embedded too.
        return GivenSlides(grid, path, names)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Expected a folder of slides, a slide, a list of slides, or an "
            "index made by g2l index."
        )
    if is_slide(path.name):
        _refuse_root(root, f"{path} is a slide")
        return GivenSlides(grid, path.parent, [path.name])
    return GivenSlides(grid, Path(root or path.parent).expanduser(), str(path))


def _find_index(folder: Path, root: str | Path | None, given: dict[str, Any]) -> GivenSlides:
    settings = read_settings(folder)
    grid = TileGrid(**settings["grid"])
    for name, value in given.items():
        if (own := getattr(grid, name)) != value:
            raise UserError(
                f"The index {folder} was made with `{name}` {own}, and {value} is given. Leave it "
                "out, or give the folder of the slides, which are then indexed anew."
            )
    if grid.width != grid.height:
        raise UserError(
            f"The tiles of the index {folder} are {grid.width}x{grid.height} px. Expected square "
            "ones: the files of slide-level models have one number for both sides."
        )
    slides = Path(root or settings["cohort"]["root"]).expanduser()
    return GivenSlides(grid, slides, None, folder, settings["keep_duplicates"])


def _refuse_root(root: str | Path | None, reason: str) -> None:
    if root is not None:
        raise UserError(f"`root` (--root) {root} is of no use: {reason}. Leave it out.")

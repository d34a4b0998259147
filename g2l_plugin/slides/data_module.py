"""eva's data module, with a `TileLoader` for training."""

from __future__ import annotations

from typing import Any

from eva.core.data.datamodules import DataModule
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from typing_extensions import override

from g2l_plugin.errors import UserError
from g2l_plugin.parallel.cpus import usable_cpus
from g2l_plugin.slides.dataset import TileDataset
from g2l_plugin.slides.in_order import OrderedLoader
from g2l_plugin.slides.loader import TileLoader


class TileDataModule(DataModule):
    """eva's `DataModule`, but training tiles come from a `TileLoader`.

    Batches of a validation dataset of tiles are `TileBatch`, in the order of their numbers.
    """

    def __init__(
        self,
        *args: Any,
        block_tiles: int = 64,
        buffer_tiles: int = 8192,
        seed: int | bool = 42,
        **kwargs: Any,
    ) -> None:
        """Initializes the data module.

        Args:
            args: Positional arguments of `eva.DataModule`.
            block_tiles: Neighbouring tiles that a worker reads together.
            buffer_tiles: Size of the mixing buffer of each device, 0.2 MB per tile at 256 px.
            seed: Seed of the order. eva's EVA_GLOBAL_SEED may be False, which means 0 here.
            kwargs: Keyword arguments of `eva.DataModule`. Training tiles are always shuffled.
        """
        super().__init__(*args, **kwargs)
        self.block_tiles = block_tiles
        self.buffer_tiles = buffer_tiles
        self.seed = int(seed)

    @override
    def setup(self, stage: str) -> None:
        """Prepares the tiles.

        Raises:
            UserError: The training tiles are fewer than a batch.
        """
        super().setup(stage)
        if stage == "fit" and len(self.train_dataloader()) == 0:
            raise UserError(
                f"BATCH_SIZE is {self.dataloaders.train.batch_size} on each device, and there are "
                f"only {len(self.datasets.train):,} training tiles: no batch is full, and nothing "
                "would be trained. Lower it, or add slides."
            )

    @override
    def train_dataloader(self) -> TileLoader:
        dataset, options = self.datasets.train, self.dataloaders.train
        if not isinstance(dataset, TileDataset):
            raise UserError(
                f"TileDataModule trains on a TileDataset, not on {type(dataset).__name__}. Use "
                "eva.DataModule for other datasets."
            )
        if options.collate_fn is not None:
            raise UserError(
                "`collate_fn` of the training loader is set, but tiles are read straight into the "
                "memory of their batch. Remove it; change tiles in the dataset."
            )
        # The options of eva's own loader, except those that PyTorch refuses without workers.
        n_cpus = usable_cpus()
        num_workers = n_cpus if options.num_workers is None else options.num_workers
        return TileLoader(
            dataset,
            options.batch_size or 1,
            self.block_tiles,
            self.buffer_tiles,
            self.seed,
            options.drop_last,
            num_workers=num_workers,
            persistent_workers=options.persistent_workers and num_workers > 0,
            prefetch_factor=options.prefetch_factor if num_workers else None,
            worker_init_fn=options.worker_init_fn,
        )

    @override
    def val_dataloader(self) -> EVAL_DATALOADERS:
        if not isinstance(self.datasets.val, TileDataset):
            return super().val_dataloader()
        options = self.dataloaders.val
        num_workers = usable_cpus() if options.num_workers is None else options.num_workers
        return [OrderedLoader(self.datasets.val, options.batch_size or 1, num_workers)]

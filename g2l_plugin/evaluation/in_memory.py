"""eva's dataset of embeddings, read once."""

from __future__ import annotations

import torch
from eva.core.data.datasets import EmbeddingsClassificationDataset
from typing_extensions import override

from g2l_plugin.evaluation.embeddings import read_embeddings


class EmbeddingsInMemory(EmbeddingsClassificationDataset):
    """eva's `EmbeddingsClassificationDataset`, which holds the embeddings in memory.

    eva's opens a file for every tile in every epoch, and fits a head on 4,000 tiles/s at most. Here
    each is opened once, for all epochs, runs and measures: 327,680 tiles of 1,024 features take
    1.3 GB. Give the data loader no workers.
    """

    @override
    def setup(self) -> None:
        super().setup()
        assert self._split is not None
        self._values = torch.from_numpy(read_embeddings(self._root, self._split).values)

    @override
    def _set_multiprocessing_start_method(self) -> None:
        """Leaves it as it is: eva's spawned workers are for files that many of them open."""

    @override
    def load_embeddings(self, index: int) -> torch.Tensor:
        return self._values[index]

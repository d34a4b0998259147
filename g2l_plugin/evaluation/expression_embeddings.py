"""Embeddings whose targets are genes, for a regression head by eva."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from g2l_plugin.evaluation.embedding_files import EmbeddingsInMemory, read_embeddings
from g2l_plugin.metrics.gene_table import read_genes


class ExpressionEmbeddings(EmbeddingsInMemory):
    """Embeddings in memory with the expression of all genes as their target, float32 (G,).

    The manifest of embeddings has one number per tile, so the genes are read from the table that
    `g2l prepare hest` writes.
    """

    def __init__(self, genes: str, **kwargs: Any) -> None:
        """Initializes the dataset.

        Args:
            genes: The table of expression.
            **kwargs: Arguments of eva's `EmbeddingsClassificationDataset`.
        """
        super().__init__(**kwargs)
        self._genes = genes

    @override
    def setup(self) -> None:
        super().setup()
        assert self._split is not None
        names = read_embeddings(self._root, self._split).names
        self._expression = torch.from_numpy(read_genes(self._genes, names)[0]).float()

    @override
    def load_target(self, index: int) -> torch.Tensor:
        return self._expression[index]

import numpy as np
import pandas as pd
import pytest
import torch

from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.expression_embeddings import ExpressionEmbeddings
from g2l_plugin.metrics.gene_table import write_genes


def test_an_embedding_has_the_genes_of_its_tile(tmp_path):
    names = [f"{number}.png" for number in range(6)]
    for number in range(6):
        torch.save([torch.full((4,), float(number))], tmp_path / f"{number}.pt")
    rows = [(f"{n}.png", f"{n}.pt", 0, ("train", "val")[n % 2]) for n in range(6)]
    table = pd.DataFrame(rows, columns=["origin", "embeddings", "target", "split"])
    table.to_csv(tmp_path / "manifest.csv", index=False)
    genes = tmp_path / "genes.parquet"
    write_genes(genes, names[::-1], ["A", "B"], np.arange(12.0).reshape(6, 2)[::-1])
    arguments = {"root": str(tmp_path), "manifest_file": "manifest.csv", "split": "val"}
    tiles = ExpressionEmbeddings(genes=str(genes), **arguments)
    tiles.setup()
    assert len(tiles) == 3
    for index, number in enumerate((1, 3, 5)):
        embedding, target = tiles[index]
        assert embedding.tolist() == [number] * 4
        assert target.tolist() == [2 * number, 2 * number + 1] and target.dtype == torch.float32
    write_genes(genes, names[:3], ["A", "B"], np.zeros((3, 2)))
    with pytest.raises(UserError, match="lacks 2 of 3 tiles, such as 3.png"):
        tiles.setup()

"""A small download of HEST-Benchmark, as its files are laid out."""

import json
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse

SAMPLES = {"TENX95": 0, "TENX99": 1, "NCBI783": 2}
"""The fold that tests each sample."""


def write_h5ad(path, counts, spots, genes, kind="csr"):
    """Writes counts (spots, genes) as AnnData does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, index, key in (("obs", spots, "_index"), ("var", genes, "gene_names")):
            group = file.create_group(name)
            group.attrs["_index"] = key
            group.create_dataset(key, data=list(index), dtype=h5py.string_dtype())
        if kind == "dense":
            file["X"] = counts
            return
        matrix = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}[kind](counts)
        group = file.create_group("X")
        group.attrs["encoding-type"] = f"{kind}_matrix"
        group.attrs["shape"] = matrix.shape
        group["data"], group["indices"] = matrix.data, matrix.indices
        group["indptr"] = matrix.indptr


def write_task(
    folder: Path, n_tiles=8, n_genes=50, samples=SAMPLES, kinds=("dense", "csr", "csc")
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes a task; returns the tiles and the counts of its genes, tile by tile, by sample.

    The genes are a part of those that were counted, in another order; some spots have no tile.
    The redder a tile, the more of the first half of the genes it has.
    """
    rng = np.random.default_rng(0)
    genes = [f"GENE{number}" for number in range(n_genes)]
    counted = [*(f"OTHER{number}" for number in range(5)), *reversed(genes)]
    (folder / "splits").mkdir(parents=True)
    (folder / "patches").mkdir()
    (folder / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    found = {}
    for sample, kind in zip(samples, kinds, strict=False):
        red = rng.integers(0, 200, n_tiles)
        tiles = rng.integers(0, 56, (n_tiles, 16, 16, 3)).astype(np.uint8)
        tiles[..., 0] += red[:, None, None].astype(np.uint8)
        rate = np.where(np.arange(n_genes) < n_genes / 2, 1 + red[:, None] / 10, 5)
        counts = rng.poisson(rate).astype(np.float32)
        spots = [f"{number:03d}x{sample}-1" for number in range(n_tiles + 3)]
        every = rng.poisson(1, (n_tiles + 3, len(counted))).astype(np.float32)
        at = rng.permutation(n_tiles + 3)[:n_tiles]  # the tiles are in another order
        every[at, 5:] = counts[:, ::-1]
        write_h5ad(folder / "adata" / f"{sample}.h5ad", every, spots, counted, kind)
        with h5py.File(folder / "patches" / f"{sample}.h5", "w") as file:
            file["img"] = tiles
            file["coords"] = np.zeros((n_tiles, 2), int)
            file["barcode"] = np.array([[spots[row].encode()] for row in at])
        found[sample] = tiles, counts
    for fold in sorted(set(samples.values())):
        for part in ("train", "test"):
            lines = ["sample_id,patches_path,expr_path"]
            for sample, own in samples.items():
                if (own == fold) == (part == "test"):
                    lines.append(f"{sample},patches/{sample}.h5,adata/{sample}.h5ad")
            (folder / "splits" / f"{part}_{fold}.csv").write_text("\n".join(lines) + "\n")
    return found

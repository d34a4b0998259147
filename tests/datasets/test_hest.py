import json

import h5py
import numpy as np
import pandas as pd
import pytest
from hest_download import SAMPLES, write_h5ad, write_task
from PIL import Image

from g2l_plugin import cli
from g2l_plugin.datasets.h5ad import read_counts
from g2l_plugin.datasets.hest import prepare
from g2l_plugin.errors import UserError


@pytest.fixture
def task(tmp_path):
    write_task(tmp_path / "IDC")
    return tmp_path / "IDC"


def test_every_tile_has_its_image_its_fold_and_the_genes_of_its_spot(tmp_path):
    written = write_task(tmp_path / "IDC")
    manifest = prepare(tmp_path / "IDC", tmp_path / "out")
    table = pd.read_csv(manifest)
    genes = pd.read_parquet(tmp_path / "out" / "genes.parquet")
    assert list(genes.columns) == ["path", *(f"GENE{number}" for number in range(50))]
    assert list(table["path"]) == list(genes["path"]) and len(table) == 3 * 8
    for sample, (tiles, counts) in written.items():
        rows = np.flatnonzero(table["slide"] == sample)
        assert set(table["fold"][rows]) == {SAMPLES[sample]}
        assert set(table["split"][rows]) == {"val" if SAMPLES[sample] == 0 else "train"}
        for row, tile, own in zip(rows, tiles, counts, strict=True):
            image = np.asarray(Image.open(tmp_path / "out" / table["path"][row]))
            assert (image == tile).all()
            logs = [np.log(1 + count) for count in own.tolist()]
            np.testing.assert_allclose(genes.iloc[row, 1:].tolist(), logs, rtol=1e-6)


def test_the_command_names_the_variables_and_takes_a_folder_with_one_task(tmp_path, capsys):
    write_task(tmp_path / "download" / "PRAD")
    arguments = ["prepare", "hest", str(tmp_path / "download"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert f"DATA_ROOT={tmp_path / 'out'} " in capsys.readouterr().out.splitlines()[-1]


def test_of_several_tasks_one_is_asked_for(tmp_path):
    for name in ("IDC", "PRAD"):
        write_task(tmp_path / "download" / name, n_tiles=2)
    with pytest.raises(UserError, match=r"2 tasks: IDC, PRAD\. Give one.*data/hest_idc"):
        prepare(tmp_path / "download", tmp_path / "out")


@pytest.mark.parametrize(
    "part", ["splits/train_1.csv", "splits/test_2.csv", "patches/NCBI783.h5", "adata/TENX99.h5ad"]
)
def test_a_missing_file_is_named_before_a_tile_is_written(part, task, tmp_path):
    (task / part).unlink()
    with pytest.raises(UserError, match=f"{part} is missing.*hest-bench"):
        prepare(task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_task_is_refused(task, tmp_path):
    with pytest.raises(UserError, match="does not exist.*hest-bench"):
        prepare(tmp_path / "none", tmp_path / "out")
    (task / "var_50genes.json").write_text("{}")
    with pytest.raises(UserError, match="var_50genes.json cannot be read"):
        prepare(task, tmp_path / "out")
    (task / "var_50genes.json").unlink()
    with pytest.raises(UserError, match="var_50genes.json is missing"):
        prepare(task, tmp_path / "out")


def test_half_a_file_is_named(task, tmp_path):
    for part in ("adata/TENX95.h5ad", "patches/TENX95.h5"):
        file = task / part
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match=f"{part} cannot be read"):
            prepare(task, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_missing_gene_and_a_barcode_without_counts_are_named(task, tmp_path):
    genes = [f"GENE{number}" for number in range(50)]
    (task / "var_50genes.json").write_text(json.dumps({"genes": [*genes, "ESR1"]}))
    with pytest.raises(UserError, match=r"TENX95.h5ad lacks 1 of 51 genes, such as ESR1"):
        prepare(task, tmp_path / "out")
    (task / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    with h5py.File(task / "patches" / "TENX99.h5", "a") as file:
        file["barcode"][3] = b"elsewhere"
    with pytest.raises(UserError, match=r"TENX99.h5ad lacks 1 of 8 spots, such as elsewhere"):
        prepare(task, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_tiles_that_are_no_images_are_refused(task, tmp_path):
    with h5py.File(task / "patches" / "TENX95.h5", "a") as file:
        del file["img"]
        file["img"] = np.zeros((7, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match=r"8 names, and tiles of \(7, 16, 16, 3\)"):
        prepare(task, tmp_path / "out")


def test_folds_that_do_not_fit_each_other_are_refused(task, tmp_path):
    split = task / "splits" / "train_1.csv"
    split.write_text("\n".join(split.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match="fold 1 does not train on all samples"):
        prepare(task, tmp_path / "out")


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
def test_counts_are_read_by_name_from_every_kind_of_matrix(kind, tmp_path):
    counts = np.random.default_rng(1).poisson(1, (6, 4)).astype(np.uint16)
    file = tmp_path / "a.h5ad"
    write_h5ad(file, counts, "abcdef", "WXYZ", kind)
    found = read_counts(file, ["e", "a"], ["Z", "W", "Y"])
    assert found.tolist() == [
        [counts[4, 3], counts[4, 0], counts[4, 2]],
        counts[0, [3, 0, 2]].tolist(),
    ]


def test_counts_that_are_none_and_names_that_are_twice_there_are_refused(tmp_path):
    file = tmp_path / "a.h5ad"
    write_h5ad(file, np.array([[1.0, -1.0]]), "a", "XY", "dense")
    with pytest.raises(UserError, match="negative"):
        read_counts(file, ["a"], ["Y"])
    write_h5ad(file, np.ones((1, 2)), "a", "XX", "dense")
    with pytest.raises(UserError, match="two genes called X"):
        read_counts(file, ["a"], ["X"])

import gzip

import pandas as pd
import pytest
from eva.vision.data.datasets import WsiClassificationDataset
from eva.vision.data.wsi.patching.samplers import GridSampler
from loguru import logger

from g2l_plugin.datasets.tp53 import prepare
from g2l_plugin.errors import UserError

PATIENTS = [f"TCGA-{site}-A0{number:02d}" for site in ("A1", "E2") for number in range(6)]
VARIANTS = [
    "Missense_Mutation",
    "Frame_Shift_Del",
    "Splice_Site",
    "In_Frame_Ins",
    "Nonsense_Mutation",
]


def maf(rows):
    header = "Hugo_Symbol\tEntrez_Gene_Id\tVariant_Classification\tTumor_Sample_Barcode\tnote\n"
    lines = [f'{gene}\t0\t{variant}\t{barcode}\t# a "note"\n' for gene, variant, barcode in rows]
    return "#version 2.4\n#genome.build hg19\n" + header + "".join(lines)


@pytest.fixture
def mutations(tmp_path):
    """A MAF as from cBioPortal; every second patient has a mutated TP53."""
    rows = [("PIK3CA", "Missense_Mutation", f"{patient}-01") for patient in PATIENTS]
    rows += [
        ("TP53", VARIANTS[number % 5], f"{patient}-01")
        for number, patient in enumerate(PATIENTS[::2])
    ]
    rows += [("TP53", "Silent", f"{PATIENTS[1]}-01"), ("TP53", "Intron", f"{PATIENTS[3]}-01")]
    rows += [("TP53", "Missense_Mutation", f"{PATIENTS[5]}-06")]  # a metastasis
    path = tmp_path / "data_mutations.txt"
    path.write_text(maf(rows))
    return path


@pytest.fixture
def download(tmp_path, write_slide):
    """Slides as the GDC client writes them: one folder per slide, named by an id."""
    for number, patient in enumerate(PATIENTS):
        name = f"{patient}-01Z-00-DX1.{number:08d}.tiff"
        write_slide(tmp_path / "slides" / f"id-{number}" / name, 256, levels=1)
    write_slide(tmp_path / "slides" / "f" / f"{PATIENTS[0]}-01A-01-TS1.0.tiff", 256, levels=1)
    return tmp_path / "slides"


def warnings_of(call):
    warnings = []
    handler = logger.add(warnings.append, level="WARNING")
    result = call()
    logger.remove(handler)
    return result, warnings


def test_the_manifest_lists_one_diagnostic_slide_per_patient(download, mutations, tmp_path):
    manifest = prepare(download, tmp_path / "out", mutations)
    table = pd.read_csv(manifest)
    assert {"path", "target", "split", "patient", "centre", "slide"} <= set(table.columns)
    assert sorted(table["patient"]) == sorted(PATIENTS)
    assert table["path"].str.contains("DX1").all()
    assert set(table["patient"][table["target"] == 1]) == set(PATIENTS[::2])
    assert set(table["centre"]) == {"A1", "E2"}
    assert table.groupby("split")["target"].nunique().to_dict() == {"train": 2, "val": 2, "test": 2}
    assert table["slide"][0] == f"{table['patient'][0]}-01Z-00-DX1"


def test_evas_slide_dataset_reads_the_manifest(download, mutations, tmp_path):
    manifest = prepare(download, tmp_path / "out", mutations)
    data = WsiClassificationDataset(
        str(download), str(manifest), 64, 64, 0.5, GridSampler(max_samples=2), split="test"
    )
    data.setup()
    table = pd.read_csv(manifest)
    row = table[table["path"] == data.filename(0)].iloc[0]
    assert row["split"] == "test" and data[0][1] == row["target"]
    assert data[0][0].shape == (3, 64, 64)


def test_a_folder_of_the_gdcs_compressed_mafs_is_read(download, mutations, tmp_path):
    rows = [
        (gene, variant, f"{patient}-01A-11D-A142-09")
        for number, patient in enumerate(PATIENTS)
        for gene, variant in [("TTN", "Silent")] + [("TP53", "Splice_Site")] * (number < 6)
    ]
    for number, row in enumerate(rows):
        path = tmp_path / "mafs" / str(number) / f"{number}.wxs.maf.gz"
        path.parent.mkdir(parents=True)
        with gzip.open(path, "wt") as file:
            file.write(maf([row]))
    table = pd.read_csv(prepare(download, tmp_path / "out", tmp_path / "mafs"))
    assert set(table["patient"][table["target"] == 1]) == set(PATIENTS[:6])


def test_patients_who_were_not_sequenced_are_left_out(download, mutations, tmp_path):
    lines = mutations.read_text().splitlines(keepends=True)
    mutations.write_text("".join(line for line in lines if PATIENTS[1] not in line))
    manifest, warnings = warnings_of(lambda: prepare(download, tmp_path / "out", mutations))
    assert PATIENTS[1] not in set(pd.read_csv(manifest)["patient"])
    assert "1 of 12 patients are left out: 0 have no diagnostic slide, 1 are not in" in warnings[0]


def test_a_missing_mutation_table_is_an_error(download, tmp_path):
    with pytest.raises(UserError, match="no MAF file at .*cbioportal.org"):
        prepare(download, tmp_path / "out", tmp_path / "none.maf")


def test_a_table_of_tp53_alone_is_refused(download, mutations, tmp_path):
    lines = mutations.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "PIK3CA" not in line and "\tSilent" not in line]
    mutations.write_text("".join(line for line in kept if "\tIntron" not in line))
    with pytest.raises(UserError, match="Of 6 patients .* 6 have a mutated TP53.*whole MAF"):
        prepare(download, tmp_path / "out", mutations)


def test_a_table_that_is_not_a_maf_is_refused(download, tmp_path):
    (tmp_path / "table.txt").write_text("Study ID\tSample ID\tTP53\nx\ty\tz\n")
    with pytest.raises(UserError, match="cannot be read as a MAF.*Hugo_Symbol"):
        prepare(download, tmp_path / "out", tmp_path / "table.txt")


def test_a_table_of_other_patients_is_refused(download, mutations, tmp_path):
    mutations.write_text(
        mutations.read_text().replace("TCGA-A1", "TCGA-XX").replace("TCGA-E2", "TCGA-YY")
    )
    with pytest.raises(UserError, match="lists none of the 12 patients"):
        prepare(download, tmp_path / "out", mutations)


def test_slides_that_are_not_diagnostic_are_not_used(mutations, tmp_path, write_slide):
    write_slide(tmp_path / "frozen" / f"{PATIENTS[0]}-01A-01-TS1.0.tiff", 256)
    with pytest.raises(UserError, match=r"has no diagnostic slides.*portal.gdc.cancer.gov"):
        prepare(tmp_path / "frozen", tmp_path / "out", mutations)

"""TP53: mutation status of the gene, from one diagnostic slide per patient of TCGA-BRCA.

Source: slides of TCGA-BRCA from https://portal.gdc.cancer.gov (open access). Mutations are in a
MAF file (https://docs.gdc.cancer.gov/Data/File_Formats/MAF_Format): data_mutations.txt of the study
brca_tcga_pan_can_atlas_2018 from https://www.cbioportal.org/datasets, or the GDC's masked somatic
MAF files.

A patient is mutated if a primary tumour has a non-silent variant of TP53, one that changes the
protein or a splice site. `_NON_SILENT` lists these classes, which maftools uses by default. Other
patients in the table are not mutated. Patients missing from the table were not sequenced and are
left out.
"""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pandas as pd
from loguru import logger
from tqdm import tqdm

from g2l_plugin.datasets.manifest_table import write_table
from g2l_plugin.datasets.splits import split_patients
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.slides.cohort import choose_cohort

_GENE = "TP53"
_NON_SILENT = (
    "Frame_Shift_Del",
    "Frame_Shift_Ins",
    "In_Frame_Del",
    "In_Frame_Ins",
    "Missense_Mutation",
    "Nonsense_Mutation",
    "Nonstop_Mutation",
    "Splice_Site",
    "Translation_Start_Site",
)
_COLUMNS = ("Hugo_Symbol", "Variant_Classification", "Tumor_Sample_Barcode")
_EXPECTED = (
    "the whole MAF of TCGA-BRCA: data_mutations.txt of brca_tcga_pan_can_atlas_2018 from "
    "https://www.cbioportal.org/datasets, or a folder of the GDC's masked somatic MAF files"
)
_LABELS = {0: "not mutated", 1: "mutated"}


def prepare(download: Path, output: Path, mutations: Path, seed: int = 0) -> Path:
    """Writes a manifest for eva's `WsiClassificationDataset`, with one slide per patient.

    The root of the manifest's paths is `download`. The columns are path, target (1 is mutated),
    split, patient, centre (TCGA's tissue source site), slide and label. The splits are drawn,
    because there are no official ones.

    Args:
        download: Folder of the slides, in any structure, such as the GDC client's.
        output: Folder for manifest.csv.
        mutations: The MAF file, or a folder of them; they may be compressed (.gz).
        seed: Seed of the splits and of the choice among a patient's slides.

    Returns:
        Path of the manifest.

    Raises:
        UserError: There are no diagnostic slides, or the MAF is missing or incomplete.
    """
    sequenced, mutated = _read_patients(Path(mutations))
    cohort = choose_cohort(download, seed=seed)
    slides = [slide for slide in cohort if slide.section.startswith("DX")]
    if not slides:
        raise UserError(
            f"{download} has no diagnostic slides of TCGA. Expected names such as "
            "TCGA-A1-A0SB-01Z-00-DX1....svs, from https://portal.gdc.cancer.gov (TCGA-BRCA, "
            "Diagnostic Slide)."
        )
    known = [slide for slide in slides if slide.patient in sequenced]
    if left_out := len(cohort) - len(known):
        logger.warning(
            f"{left_out:,} of {len(cohort):,} patients are left out: {len(cohort) - len(slides):,} "
            f"have no diagnostic slide, {len(slides) - len(known):,} are not in {mutations}."
        )
    if not known:
        raise UserError(
            f"{mutations} lists none of the {len(slides):,} patients of {download}. Expected "
            f"{_EXPECTED}."
        )
    table = pd.DataFrame(
        {
            "path": [slide.slide for slide in known],
            "target": [int(slide.patient in mutated) for slide in known],
            "patient": [slide.patient for slide in known],
            "centre": [slide.centre for slide in known],
            "slide": [Path(slide.slide).name.split(".")[0] for slide in known],
        }
    )
    table["label"] = table["target"].map(_LABELS)
    table["split"] = split_patients(table["label"], table["patient"], seed)
    return write_table(output / "manifest.csv", table)


def _read_patients(path: Path) -> tuple[set[str], set[str]]:
    """Returns the patients whose primary tumour was sequenced, and those with a mutated TP53."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.maf*") if file.is_file())
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise UserError(f"There is no MAF file at {path}. Expected {_EXPECTED}.")
    tables = [_read_maf(file) for file in tqdm(files, desc="Reading mutations", leave=False)]
    table = pd.concat(tables, ignore_index=True)
    barcode = table["Tumor_Sample_Barcode"].str.extract(r"^(TCGA-\w{2}-\w{4})-01")[0]
    table = table.assign(patient=barcode).dropna(subset="patient")
    non_silent = table["Variant_Classification"].isin(_NON_SILENT)
    sequenced = set(table["patient"])
    mutated = set(table["patient"][(table["Hugo_Symbol"] == _GENE) & non_silent])
    if not mutated or mutated == sequenced:
        raise UserError(
            f"Of {len(sequenced):,} patients with a primary tumour in {path}, {len(mutated):,} "
            f"have a mutated {_GENE}. Expected some with and some without: {_EXPECTED}."
        )
    return sequenced, mutated


def _read_maf(path: Path) -> pd.DataFrame:
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            n_comments = sum(1 for _ in itertools.takewhile(lambda line: line[0] == "#", file))
        return pd.read_csv(
            path, sep="\t", skiprows=n_comments, usecols=list(_COLUMNS), dtype=str, quoting=3
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a MAF ({in_one_line(error)}). Expected tab-separated text "
            f"with the columns {', '.join(_COLUMNS)}: {_EXPECTED}."
        ) from error

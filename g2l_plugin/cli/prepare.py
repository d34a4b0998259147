"""`g2l prepare`: the official download of a benchmark task as a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from g2l_plugin.cli.command import Commands, HelpFormatter, add_command

_EPILOG = """\
examples:
  g2l prepare tils /data/TCGA-TILs --output data/tils
  g2l prepare tp53 /data/TCGA-BRCA --output data/tp53 --mutations data_mutations.txt
  g2l prepare aggc22 /data/AGGC2022_train --output data/aggc22

It ends with the two variables that the config of the task needs: DATA_ROOT and MANIFEST_FILE. For
the download of a task and its source: `g2l prepare TASK --help`.
"""

_TASKS = {
    "tils": "TILs, tiles: TCGA-TILs, https://zenodo.org/records/6604094.",
    "tp53": "TP53, slides: TCGA-BRCA, https://portal.gdc.cancer.gov.",
    "idc": "IDC, tiles: IDC_regular_ps50_idx5, http://www.andrewjanowczyk.com.",
    "aggc22": "Gleason patterns, cuts tiles: https://aggc22.grand-challenge.org/Data.",
    "chimera": "CHIMERA task 1, slides: https://chimera.grand-challenge.org/dataset-download.",
    "tiger": "TIGER, cuts tiles: wsirois of https://tiger.grand-challenge.org/Data.",
    "plism": "PLISM, tiles: https://huggingface.co/datasets/owkin/plism-dataset-tiles.",
    "pathorob": "PathoROB, tiles: a dataset of https://huggingface.co/bifold-pathomics.",
    "hest": "HEST, tiles and genes: a task of https://huggingface.co/datasets/MahmoodLab/hest-bench.",
}
"""The tasks, by their modules in g2l_plugin.datasets."""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "prepare", "Turns the download of a benchmark task into its manifest.", _EPILOG
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK", dest="task")
    for name, summary in _TASKS.items():
        task = tasks.add_parser(
            name, help=summary, description=summary, formatter_class=HelpFormatter
        )
        _add_options(task, name)
        task.set_defaults(command=_run)


def _add_options(task: argparse.ArgumentParser, name: str) -> None:
    add = task.add_argument
    add("download", type=Path, help="folder of the download, unpacked")
    add("--output", type=Path, required=True, help="folder for the manifest, and for cut tiles")
    if name == "tils":
        add("--cancer", default="brca", help="TCGA's abbreviation of the cancer, or all")
    elif name != "hest":  # its folds are published
        add("--seed", type=int, default=0, help="seed of splits that are drawn")
    if name == "tp53":
        add("--mutations", type=Path, required=True, help="MAF of all genes, or folder of MAFs")
    if name in ("aggc22", "tiger"):
        size, purity = (512, 0.5) if name == "tiger" else (256, 0.75)
        add("--size", type=int, default=size, help="side of a tile, in pixels at 0.5 microns")
        add("--min-purity", type=float, default=purity, help="least share of one class in a tile")
        add("--workers", type=int, help="processes; one per CPU core if not given")
    if name == "aggc22":
        add("--max-tiles", type=int, default=100, help="most tiles per class and slide")
    if name == "tiger":
        add("--stride", type=int, help="pixels from a tile to the next; half a tile if not given")
        add(
            "--classes",
            choices=["paper", "all"],
            default="paper",
            help="five classes of the G2L paper, or all seven of TIGER",
        )
    if name == "plism":
        add("--every", type=int, default=16, help="use every n-th place")
    if name == "pathorob":
        add(
            "--metadata",
            type=Path,
            nargs="+",
            default=[],
            metavar="CSV",
            help="PathoROB's lists of tiles to use; all tiles if not given",
        )


def _run(options: argparse.Namespace) -> None:
    import importlib

    from g2l_plugin.datasets.manifest_table import print_summary
    from g2l_plugin.datasets.prepared import write_variables

    given = vars(options)
    prepare = importlib.import_module(f"g2l_plugin.datasets.{options.task}").prepare
    manifest = prepare(**{key: given[key] for key in given.keys() - {"task", "command"}}).resolve()
    print_summary(manifest)
    variables = write_variables(manifest, options.download)
    print(f"Manifest: {manifest}")
    found = " ".join(f"{name}={value}" for name, value in variables.items())
    print(f"Variables for the task's config: {found}")

"""`g2l`: what has no place in eva's command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from g2l_plugin.errors import UserError

if TYPE_CHECKING:
    from g2l_plugin.slides.index import Index

_EPILOGS = {
    "index": """\
examples:
  g2l index /data/TCGA-BRCA data/index/g2l_breast
  g2l index /data/TCGA-BRCA data/index/g2l_breast --slides gdc_manifest.txt --n-slides 500
  SLIDES_ROOT=/data/TCGA-BRCA eva fit --config configs/g2l_breast.yaml     # trains on the first

A run that is stopped goes on where it was. Open INDEX/index.html to look at the slides. On a
cluster, `--shard $SLURM_ARRAY_TASK_ID/16` in a job array of 1-16, then once `--merge`.
""",
    "models": """\
examples:
  g2l models
  TEACHER=hf-hub:paige-ai/Virchow2 eva fit --config configs/g2l_breast.yaml
""",
    "publish": """\
examples:
  g2l publish logs/g2l_breast/20261123-141422/run_0 --output breast_vitl14
  g2l publish logs/g2l_breast/20261123-141422/run_0/checkpoints/last.ckpt --output half_way
  g2l publish logs/g2l_breast/20261123-141422/run_0 --repo-id org/breast_vitl14 --dry-run
""",
    "prepare": """\
examples:
  g2l prepare tils /data/TCGA-TILs --output data/tils
  g2l prepare tp53 /data/TCGA-BRCA --output data/tp53 --mutations data_mutations.txt
  g2l prepare aggc22 /data/AGGC2022_train --output data/aggc22

It ends with the two variables that the task's config takes: DATA_ROOT and MANIFEST_FILE. What each
task's download is and where it is to be had: `g2l prepare TASK --help`.
""",
    "report": """\
examples:
  g2l report logs --output report
  g2l report teacher=logs/teacher student=logs/student --output report --reference teacher

A model that has no name in its results is named by LABEL=PATH. Open DIR/report.html to look at the
report; DIR/report.csv has all figures.
""",
    "pack": """\
example:
  g2l pack data/index/g2l_breast /fast/breast_tiles
  PACKED_ROOT=/fast/breast_tiles eva fit --config configs/g2l_breast.yaml
""",
}


_TASKS = {
    "tils": "TILs, tiles: TCGA-TILs, https://zenodo.org/records/6604094.",
    "tp53": "TP53, slides: TCGA-BRCA, https://portal.gdc.cancer.gov.",
    "idc": "IDC, tiles: IDC_regular_ps50_idx5, http://www.andrewjanowczyk.com.",
    "aggc22": "Gleason patterns, cuts tiles: https://aggc22.grand-challenge.org/Data.",
    "chimera": "CHIMERA task 1, slides: https://chimera.grand-challenge.org/dataset-download.",
    "tiger": "TIGER, cuts tiles: wsirois of https://tiger.grand-challenge.org/Data.",
    "plism": "PLISM, tiles: https://huggingface.co/datasets/owkin/plism-dataset-tiles.",
    "pathorob": "PathoROB, tiles: a dataset of https://huggingface.co/bifold-pathomics.",
}
"""Tasks that `g2l prepare` knows, by their modules."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command of `g2l`; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("g2l", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_index(commands)
    _add_pack(commands)
    _add_models(commands)
    _add_publish(commands)
    _add_prepare(commands)
    _add_report(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction, name: str, summary: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=_EPILOGS[name],
        formatter_class=_Formatter,
    )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if not action.default else super()._get_help_string(action)


def _add_index(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "index", "Chooses the slides of a cohort and finds the tiles on their tissue."
    )
    add = parser.add_argument
    add("root", type=Path, help="folder of the slides, searched with its subfolders")
    add("index", type=Path, metavar="INDEX", help="folder for the index")
    cohort = parser.add_argument_group("which slides")
    add = cohort.add_argument
    add("--slides", metavar="FILE", help="list of the slides: a path a line, CSV, or GDC manifest")
    add("--n-slides", type=int, default=1000, help="how many to choose; 0 takes all")
    add("--seed", type=int, default=0, help="seed of the choice")
    add("--all-of-a-patient", action="store_true", help="take more than one slide of a patient")
    add("--keep-duplicates", action="store_true", help="take slides of the same content twice")
    add("--max-lost", type=float, default=0.01, help="share of slides that may be unusable, 0 to 1")
    tiles = parser.add_argument_group("which tiles")
    add = tiles.add_argument
    add("--width", type=int, default=256, help="of a tile, in pixels")
    add("--height", type=int, default=256, help="of a tile, in pixels")
    add("--target-mpp", type=float, default=0.5, help="microns per pixel of the tiles")
    add("--overwrite-mpp", type=float, help="microns per pixel of slides whose metadata has none")
    add("--min-tissue", type=float, default=0.5, help="least share of tissue in a tile, 0 to 1")
    add("--min-sharpness", type=float, default=0.1, help="0 takes tiles out of focus too")
    work = parser.add_argument_group("how")
    add = work.add_argument
    add("--workers", type=int, help="processes; one per CPU core if not given")
    add("--shard", type=_shard, metavar="I/N", help="index only the I-th of N parts, I from 1")
    add("--merge", action="store_true", help="only check that all parts are there, and sum up")
    parser.set_defaults(command=_index)


def _add_pack(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "pack", "Writes the tiles of an index into shards that stream (LitData, JPEG)."
    )
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="folder of the index")
    add("output", type=Path, metavar="OUTPUT", help="folder for the shards; must not exist")
    add("--quality", type=int, default=95, help="of the JPEG files, 1 to 100")
    add("--n-val-tiles", type=int, default=256, help="tiles held out for validation")
    add("--seed", type=int, default=0, help="seed of that choice (COHORT_SEED of the configs)")
    add(
        "--max-lost",
        type=float,
        default=0.01,
        help="share of slides, or tiles, that may be unusable",
    )
    add("--workers", type=int, help="processes; one per CPU core if not given")
    parser.set_defaults(command=_pack)


def _add_models(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "models", "Lists known encoders, for TEACHER and STUDENT; others load too."
    )
    parser.set_defaults(command=_models)


def _add_publish(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "publish",
        "Writes the student of a run as a folder that plain timm loads, and uploads it to the Hub.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run that has ended, or a checkpoint")
    add("--output", type=Path, help="folder to write; RUN/student if not given")
    add(
        "--cancer",
        help="cancer of its slides for the card, e.g. breast; of its config if not given",
    )
    add("--license", help="licence identifier; what follows from teacher and start if not given")
    add("--onnx", action="store_true", help="writes model.onnx too, for ONNX Runtime")
    hub = parser.add_argument_group("upload to the Hub")
    add = hub.add_argument
    add("--repo-id", metavar="ORG/NAME", help="where to; without it nothing is uploaded")
    add("--private", action="store_true", help="makes a new repository private")
    add("--revision", help="branch to commit to; main if not given")
    add("--tag", help="tag to give to the commit")
    add("--create-pr", action="store_true", help="opens a pull request instead of committing")
    add("--replace", action="store_true", help="replaces another model that is there")
    add("--dry-run", action="store_true", help="shows what would go, and changes nothing there")
    parser.set_defaults(command=_publish)


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "prepare", "Turns the official download of a benchmark task into its manifest."
    )
    tasks = parser.add_subparsers(required=True, metavar="TASK", dest="task")
    for name, summary in _TASKS.items():
        task = tasks.add_parser(name, help=summary, description=summary, formatter_class=_Formatter)
        add = task.add_argument
        add("download", type=Path, help="folder of the download, unpacked")
        add("--output", type=Path, required=True, help="folder for the manifest, and for cut tiles")
        if name == "tils":
            add("--cancer", default="brca", help="TCGA's abbreviation of the cancer, or all")
        else:
            add("--seed", type=int, default=0, help="seed of splits that are drawn")
        if name == "tp53":
            add("--mutations", type=Path, required=True, help="MAF of all genes, or folder of MAFs")
        if name in ("aggc22", "tiger"):
            add("--size", type=int, default=256, help="side of a tile, in pixels at 0.5 microns")
            add("--min-purity", type=float, default=0.75, help="least share of a tile's one class")
            add("--workers", type=int, help="processes; one per CPU core if not given")
        if name == "aggc22":
            add("--max-tiles", type=int, default=100, help="most tiles of a class from a slide")
        if name == "plism":
            add("--every", type=int, default=16, help="take every n-th place")
        if name == "pathorob":
            add("--metadata", type=Path, help="PathoROB's list of tiles to take; all if not given")
        task.set_defaults(command=_prepare)


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands, "report", "Turns results of eva into tables and plots: models beside each other."
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULTS", help="folder of results, or one above them")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the report")
    add("--reference", metavar="MODEL", help="compare with it; with the best one if not given")
    add("--no-published", action="store_true", help="leaves out published figures")
    parser.set_defaults(command=_report)


def _shard(text: str) -> tuple[int, int]:
    part, _, n_parts = text.partition("/")
    if not (part.isdecimal() and n_parts.isdecimal() and 1 <= int(part) <= int(n_parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, as 3/16, got {text!r}")
    return int(part), int(n_parts)


def _index(options: argparse.Namespace) -> None:
    from g2l_plugin.slides import index as index_lib
    from g2l_plugin.slides.tiling import TileGrid

    grid = TileGrid(
        options.width,
        options.height,
        options.target_mpp,
        options.overwrite_mpp,
        options.min_tissue,
        options.min_sharpness,
    )
    index: Index | None
    if options.merge:
        index = index_lib.summarize_index(
            options.index, grid, options.root, options.keep_duplicates
        )
    else:
        index = index_lib.build_index(
            options.index,
            grid,
            options.root,
            options.slides,
            options.n_slides or None,
            options.seed,
            not options.all_of_a_patient,
            options.keep_duplicates,
            options.max_lost,
            options.workers,
            options.shard,
        )
    if index is None:
        part, n_parts = options.shard
        print(f"Part {part} of {n_parts} is indexed. When all are: g2l index … --merge")
        return
    _print_index(index)
    index.check_losses(options.max_lost)


def _print_index(index: Index) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    slides = Table("slides", "", title="What became of the slides")
    for outcome, count in index.counts().most_common():
        slides.add_row(outcome, f"{count:,}", style="" if outcome == "used" else "yellow")
    console.print(slides)
    tiles = Table("tiles", "", title="What became of the tiles")
    for name in ("tiles", "little_tissue", "ink", "blurred", "damaged"):
        total = sum(getattr(record, name) for record in index.records)
        tiles.add_row("kept" if name == "tiles" else name.replace("_", " "), f"{total:,}")
    console.print(tiles)
    for record in [record for record in index.records if record.problem][:10]:
        console.print(f"{record.problem}: {record.message}", style="yellow", markup=False)
    print(f"Summary: {index.folder / 'slides.csv'}")
    print(f"Look at: {index.folder / 'index.html'}")


def _pack(options: argparse.Namespace) -> None:
    from g2l_plugin.slides.pack import pack_tiles

    pack_tiles(
        options.index,
        options.output,
        options.n_val_tiles,
        options.seed,
        options.quality,
        options.max_lost,
        options.workers,
    )
    print(f"Train on them: PACKED_ROOT={options.output} eva fit --config configs/g2l_breast.yaml")


def _models(options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from g2l_plugin.encoders.known import KNOWN_ENCODERS

    table = Table(box=box.SIMPLE_HEAD)
    for column in (
        "name",
        "source",
        "M parameters",
        "width",
        "input",
        "licence",
        "gated",
        "cached",
    ):
        right = column in ("M parameters", "width", "input")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for known in KNOWN_ENCODERS.values():
        table.add_row(
            known.name,
            known.source,
            f"{known.parameters / 1e6:,.1f}",
            f"{known.embedding_dim}",
            f"{known.input_size}",
            known.license or ("see its card" if known.repo_id else ""),
            "yes" if known.gated else "",
            "yes" if known.is_cached() else "",
        )
    # As wide as the table is: a source that is cut off is of no use.
    Console(width=Console(width=1000).measure(table).maximum).print(table)
    print(
        "Also hf-hub:org/name[@revision], local-dir:path, timm:name and eva:name (eva's registry)."
    )


def _publish(options: argparse.Namespace) -> None:
    from g2l_plugin.publishing.options import UploadOptions
    from g2l_plugin.publishing.run import publish_run, upload_published

    published = publish_run(
        options.run, options.output, cancer=options.cancer, license=options.license
    )
    for restriction in published.license.restrictions:
        print(f"Licence: {restriction}", file=sys.stderr)
    print(f"Student: {published.folder}")
    if options.onnx:
        from g2l_plugin.publishing.onnx_export import export_onnx

        print(f"ONNX:    {export_onnx(published.folder)}")
    if options.repo_id is None:
        return
    names = [field.name for field in dataclasses.fields(UploadOptions)]
    upload = UploadOptions(**{name: getattr(options, name) for name in names})
    url = upload_published(published, upload, options.dry_run)
    print(f"{'Would be at' if options.dry_run else 'On the Hub'}: {url}")


def _prepare(options: argparse.Namespace) -> None:
    import importlib

    from g2l_plugin.tasks.summary import print_summary, root_of

    given = vars(options)
    prepare = importlib.import_module(f"g2l_plugin.tasks.{options.task}").prepare
    manifest = prepare(**{key: given[key] for key in given.keys() - {"task", "command"}}).resolve()
    print_summary(manifest)
    root = root_of(manifest, options.download).resolve()
    print(f"Manifest: {manifest}")
    print(f"Its task's config takes: DATA_ROOT={root} MANIFEST_FILE={manifest}")


def _report(options: argparse.Namespace) -> None:
    from g2l_plugin.reporting.terminal import print_report
    from g2l_plugin.reporting.write import PAGE, write_report

    report = write_report(
        options.results, options.output, options.reference, not options.no_published
    )
    print_report(report)
    print(f"Look at: {options.output / PAGE}")

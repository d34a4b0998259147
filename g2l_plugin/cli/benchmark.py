"""`g2l benchmark`: a model on many tasks, by eva, and the report."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from g2l_plugin.cli.command import Commands, add_command, shard

_EPILOG = """\
examples:
  g2l benchmark org/breast_vitl14 --tasks breast --reference h-optimus-0
  g2l benchmark logs/g2l_lung/20261123-141422 --manifest lung=/data/lung/tiles.csv
  g2l benchmark student=hf-hub:org/name --tasks bach crc robustness --dry-run

It runs `eva predict_fit` with the config of each task whose data is there, and says where the data
of the others comes from. What is done is not run again. Variables of the configs work as with eva:
N_RUNS=20 ACCELERATOR=cpu g2l benchmark ...; DOWNLOAD_DATA=true downloads what eva can.
LABEL=MODEL names a model. On a cluster, use `--shard $SLURM_ARRAY_TASK_ID/4` in a job array of 1-4,
then the same command without it. Or give the address of a Dask scheduler (--scheduler).
"""


def add_parser(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "benchmark",
        "Runs eva on the benchmark tasks of a model whose data is there, and reports.",
        _EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a student or a run, name, org/name or source")
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="breast, prostate, colorectal, segmentation, robustness, all, or names; "
        "all if no manifest is given",
    )
    add("--manifest", nargs="+", default=[], metavar="FILE", help="manifests of tiles of your own")
    add(
        "--root", type=Path, metavar="DIR", help="where their paths start; their own folders if not"
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help="their columns of other names, as label=diagnosis path=image",
    )
    add(
        "--reference", metavar="MODEL", help="runs this model too, and compares with it, by CKA too"
    )
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="folder of the tasks' data")
    add("--output", type=Path, default=Path("benchmark"), metavar="DIR", help="folder for results")
    where = parser.add_mutually_exclusive_group().add_argument
    where(
        "--shard", type=shard, metavar="I/N", help="only every N-th task from the I-th on, I from 1"
    )
    where("--scheduler", metavar="ADDRESS", help="Dask scheduler, as tcp://host:8786")
    add("--dry-run", action="store_true", help="prints the commands, and runs nothing")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from g2l_plugin.benchmark.jobs import find_session, plan_jobs
    from g2l_plugin.benchmark.models import load_models
    from g2l_plugin.benchmark.run import (
        REPORT,
        find_eva,
        report_on,
        run_eva,
        run_jobs,
        run_jobs_on_cluster,
    )
    from g2l_plugin.benchmark.tasks import ALL, choose_tasks
    from g2l_plugin.errors import UserError
    from g2l_plugin.report.report import PAGE
    from g2l_plugin.report.terminal import print_report

    names = options.tasks or ([] if options.manifest else [ALL])
    columns = dict(pair.split("=", 1) for pair in options.columns if "=" in pair)
    if len(columns) < len(options.columns) or (columns and not options.manifest):
        raise UserError(
            f"--columns {' '.join(options.columns)}: expected names of columns of a --manifest, "
            "each once, as label=diagnosis."
        )
    tasks, missing = choose_tasks(names, options.data, options.manifest, options.root, columns)
    for task in missing:
        print(f"not there: {task.name}: {task.missing}", file=sys.stderr)
    if not tasks:
        raise UserError(
            f"No data of these tasks is in {options.data} (--data). Get it as the lines above say, "
            "or give tiles of your own (--manifest)."
        )
    if options.shard is not None:
        part, n_parts = options.shard
        tasks = tasks[part - 1 :: n_parts]
    eva = find_eva()
    names = [options.model, *([options.reference] if options.reference else [])]
    models = load_models(names, maps=any(task.segments for task in tasks))
    reference = models[1] if options.reference else None
    output = options.output.expanduser().absolute()
    jobs = plan_jobs(tasks, models, output, reference)
    todo = []
    for job in jobs:
        session = find_session(job)
        if session is None:
            todo.append(job)
        else:
            print(f"done: {job.name}: {session.folder}", file=sys.stderr)
    if options.dry_run:
        for job in todo:
            print(job.command(eva))
        return
    if options.scheduler and todo:
        output.mkdir(parents=True, exist_ok=True)
        data = {Path(job.variables["DATA_ROOT"]).absolute() for job in todo}
        needs = [Path.cwd(), output, *data, *{job.task.config for job in todo}]
        failures = run_jobs_on_cluster(todo, options.scheduler, needs)
    else:
        failures = run_jobs(todo, functools.partial(run_eva, eva=eva))
    if options.shard is None:
        report = report_on(jobs, output, reference.label if reference else None)
        if report is not None:
            print_report(report)
            print(f"Look at: {output / REPORT / PAGE}")
    elif not failures:
        part, n_parts = options.shard
        print(f"Part {part} of {n_parts} is done. For the report: the same without --shard.")
    for name, problem in failures.items():
        print(f"failed: {name}: {problem}", file=sys.stderr)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(todo)} runs failed, as said above. The same command runs "
            "them again, and only them."
        )

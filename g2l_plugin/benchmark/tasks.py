"""The benchmark tasks: which config runs each, and where its data is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from g2l_plugin.config_files import configs_folder, find_config
from g2l_plugin.datasets.manifest_task import read_task
from g2l_plugin.datasets.prepared import find_variables
from g2l_plugin.errors import UserError

GROUPS = {
    "breast": (
        "bach",
        "bracs",
        "breakhis",
        "patch_camelyon",
        "camelyon16",
        "tils",
        "idc",
        "tp53",
        "hest_idc",
        "bcss",
    ),
    "prostate": ("gleason_arvaniti", "panda", "aggc22", "chimera", "hest_prad"),
    "colorectal": ("crc", "mhist", "unitopatho"),
    "segmentation": ("consep", "monusac", "bcss"),
    "robustness": (
        "tiger",
        "tiger_all",
        "pathorob_camelyon",
        "pathorob_tcga",
        "pathorob_tcga_2x2",
        "pathorob_tolkach_esca",
        "plism",
    ),
}
"""Tasks by what they are about: the names of the configs in `benchmarks`."""

ALL = "all"
"""What stands for the tasks of all groups."""

_DEMO = "demo"
_OWN = "manifest"
"""The config of a task of one's own, which runs for a manifest and is no task by itself."""

_DOWNLOADS = "DOWNLOAD_DATA=true"
_ROOT = re.compile(r"\$\{oc\.env:DATA_ROOT, data/(?P<folder>[^}]+)\}")
_ABOUT = re.compile(r"^# (?P<about>(?:Data|Prepare): .+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task that eva can run.

    Attributes:
        name: Its name on the command line.
        folder: Name of its folders of results and embeddings, and in the results.
        config: The config that runs it.
        variables: The variables that tell the config where the data is.
        missing: What is missing of its data and where to get it; "" if nothing is.
        manifest: The manifest of a task of one's own; None for a task of this package.
        segments: Whether it is segmentation, for which models give maps of patches.
    """

    name: str
    folder: str
    config: Path
    variables: dict[str, str]
    missing: str = ""
    manifest: Path | None = None
    segments: bool = False


def choose_tasks(
    names: Sequence[str],
    data: Path,
    manifests: Sequence[str] = (),
    root: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Task], list[Task]]:
    """Finds the tasks of a benchmark.

    Args:
        names: See `find_tasks`.
        data: Folder that the tasks' folders of data are in.
        manifests: Manifests of further tasks; see `own_task`.
        root: Folder that the manifests' paths are relative to; None is each one's own.
        columns: Our column names to the manifests', where they differ.

    Returns:
        The tasks whose data is there, and those whose data is not.

    Raises:
        UserError: A name is unknown, a manifest is wrong, or two manifests have one name.
    """
    own = [own_task(manifest, root, columns) for manifest in manifests]
    for number, task in enumerate(own):
        if task.name in [other.name for other in own[:number]]:
            raise UserError(
                f"Two manifests are called {task.name}. Name one of them: --manifest NAME=FILE."
            )
    found = find_tasks(names, data)
    return [task for task in found if not task.missing] + own, [t for t in found if t.missing]


def find_tasks(names: Sequence[str], data: Path) -> list[Task]:
    """Finds tasks of this package, each once, in the order of the names.

    Args:
        names: Names of tasks or of `GROUPS`, `demo` or `all`.
        data: Folder that the tasks' folders of data are in.

    Raises:
        UserError: A name is unknown.
    """
    everything = list(dict.fromkeys(task for group in GROUPS.values() for task in group))
    chosen: dict[str, None] = {}
    for name in names:
        if name == ALL:
            chosen |= dict.fromkeys(everything)
        elif name in GROUPS:
            chosen |= dict.fromkeys(GROUPS[name])
        elif name in (*everything, _DEMO):
            chosen[name] = None
        else:
            raise UserError(
                f"There is no task {name!r}. Expected {', '.join((*everything, _DEMO))}; or "
                f"{', '.join((*GROUPS, ALL))}. For tiles of your own: --manifest."
            )
    return [_find(name, data) for name in chosen]


def own_task(
    manifest: str, root: Path | None = None, columns: Mapping[str, str] | None = None
) -> Task:
    """The task of a manifest of tiles.

    Args:
        manifest: Path of a CSV or parquet file; `NAME=PATH` names the task.
        root: Folder that the manifest's paths are relative to; None is the manifest's own.
        columns: Our column names to the manifest's, where they differ.

    Raises:
        UserError: See `g2l_plugin.datasets.manifest_task.read_task`; or a task of this package has
            the name.
    """
    name, equals, path = manifest.partition("=")
    if not equals or Path(manifest).exists():
        name, path = "", manifest
    file = Path(path).expanduser().absolute()
    task = read_task(file, root, name, columns)
    if task.name in (*(name for group in GROUPS.values() for name in group), _DEMO):
        raise UserError(
            f"{file} is a task called {task.name}, as is one of this package. Give it another "
            f"name: --manifest NAME={path}"
        )
    variables = {"DATA_ROOT": task.root, "MANIFEST_FILE": task.file, "TASK_NAME": task.name}
    if task.columns:
        variables["MANIFEST_COLUMNS"] = json.dumps(task.columns)
    return Task(task.name, task.name, _config(_OWN), variables, manifest=file)


def _find(name: str, data: Path) -> Task:
    config = _config(name)
    text = config.read_text(encoding="utf-8")
    root = _ROOT.search(text)
    assert root is not None
    folder = data.expanduser().absolute() / root["folder"]
    about = " ".join(_ABOUT.findall(text))
    variables, missing = {"DATA_ROOT": str(folder)}, ""
    if "MANIFEST_FILE" in text:
        try:
            variables = find_variables(folder)
        except UserError as error:
            missing = f"{error} {about}"
    elif not (
        name == _DEMO
        or (_DOWNLOADS in about and os.environ.get("DOWNLOAD_DATA") == "true")
        or (folder.is_dir() and any(folder.iterdir()))
    ):
        missing = f"{folder} does not exist or is empty. {about}"
    segments = name in GROUPS["segmentation"]
    return Task(
        name, _results_folder(config), config, variables, missing=missing, segments=segments
    )


def _config(name: str) -> Path:
    return find_config(str(configs_folder() / "benchmarks" / f"{name}.yaml")).resolve()


def _results_folder(config: Path) -> str:
    """The name that the results of a config have; BreakHis has one per magnification."""
    callbacks = OmegaConf.load(config).trainer.init_args.callbacks
    (metrics,) = (c for c in callbacks if c.class_path == "g2l_plugin.EmbeddingMetrics")
    return str(metrics.init_args.task)

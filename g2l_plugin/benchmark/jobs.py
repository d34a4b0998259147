"""The runs of eva that a benchmark needs: one per task and model, without those that are done."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from g2l_plugin.benchmark.models import Model
from g2l_plugin.benchmark.tasks import Task
from g2l_plugin.errors import UserError
from g2l_plugin.evaluation.segmentation import MAPS
from g2l_plugin.report.config import task_title
from g2l_plugin.report.sessions import RESULTS, Session, read_sessions

LOGS, EMBEDDINGS = "logs", "embeddings"
"""Folders of the results and of the embeddings, in the folder of a benchmark."""

_OWN = (
    "MODEL_NAME",
    "MODEL_EXTRA_KWARGS",
    "G2L_STUDENT",
    "IN_FEATURES",
    "OUT_INDICES",
    "RESIZE_DIM",
    "NORMALIZE_MEAN",
    "NORMALIZE_STD",
    "DATA_ROOT",
    "MANIFEST_FILE",
    "MANIFEST_COLUMNS",
    "TASK_NAME",
    "TEACHER_EMBEDDINGS_ROOT",
)
"""Variables that a job sets, or must not inherit from the user's shell."""

_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of `eva predict_fit`.

    Attributes:
        task: The task.
        model: The model.
        variables: All variables that it sets.
        teacher: Folder of the reference's embeddings that it compares with; None if it is none.
    """

    task: Task
    model: Model
    variables: dict[str, str]
    teacher: Path | None = None

    @property
    def name(self) -> str:
        """Task and model, for messages."""
        return f"{self.task.name} ({self.model.label})"

    @property
    def weights(self) -> dict[str, str]:
        """Facts by which results say that they are of this model."""
        if self.task.segments:
            assert self.model.maps is not None
            return {MAPS: self.model.maps.sha256}
        return {"sha256": self.model.sha256}

    @property
    def embeddings(self) -> Path:
        """Folder of the embeddings that it writes."""
        return Path(self.variables["EMBEDDINGS_ROOT"]) / self.model.label / self.task.folder

    def arguments(self, eva: str) -> list[str]:
        """The command without its variables."""
        return [eva, "predict_fit", "--config", str(self.task.config)]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The environment of the command: the user's, but for what the job decides."""
        kept = {name: value for name, value in inherited.items() if name not in _OWN}
        return kept | self.variables

    def chosen(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables of a user's environment that the task's config reads."""
        read = set(_VARIABLE.findall(self.task.config.read_text(encoding="utf-8")))
        return {name: value for name, value in environment.items() if name in read}

    def command(self, eva: str) -> str:
        """The shell command that does the same."""
        unset = [f"-u {name}" for name in _OWN if name in os.environ.keys() - self.variables.keys()]
        given = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        prefix = ["env", *unset] if unset else []
        return " ".join([*prefix, *given, shlex.join(self.arguments(eva))])


def plan_jobs(
    tasks: Sequence[Task], models: Sequence[Model], output: Path, reference: Model | None = None
) -> list[Job]:
    """Plans a job per task and model; of a task, that of the reference comes first.

    Args:
        tasks: The tasks.
        models: The models, the reference among them.
        output: Folder of the benchmark.
        reference: The model that the others are compared with by CKA.
    """
    first = [model for model in models if model is reference]
    others = [model for model in models if model is not reference]
    return [_plan(task, model, output, reference) for task in tasks for model in first + others]


def _plan(task: Task, model: Model, output: Path, reference: Model | None) -> Job:
    variables = {
        "MODEL_LABEL": model.label,
        **model.variables,
        **(model.maps.variables if task.segments and model.maps else {}),
        **task.variables,
        "OUTPUT_ROOT": str(output / LOGS / model.label / task.folder),
        "EMBEDDINGS_ROOT": str(output / EMBEDDINGS),
    }
    if reference is None or model is reference or task.segments:  # CKA is of embeddings, not maps
        return Job(task, model, variables)
    teacher = output / EMBEDDINGS / reference.label / task.folder
    return Job(task, model, variables | {"TEACHER_EMBEDDINGS_ROOT": str(teacher)}, teacher)


def find_session(job: Job) -> Session | None:
    """The newest session that has done a job; None if it is still to do.

    Done is a session of the same weights on the same task, newer than its manifest, and with the
    CKA that the job asks for.

    Raises:
        UserError: A session of the same label has other weights, or one is damaged.
    """
    folder = Path(job.variables["OUTPUT_ROOT"])
    if not any(folder.rglob(RESULTS)):
        return None
    done = [session for session in read_sessions([str(folder)]) if _is_done(session, job)]
    return max(done, key=_time) if done else None


def _is_done(session: Session, job: Job) -> bool:
    ((key, expected),) = job.weights.items()
    sha256 = session.facts.get(key)
    if session.model != job.model.label or sha256 not in (None, expected):
        maps = " or OUT_INDICES" if job.task.segments else ""
        raise UserError(
            f"{session.folder} has results of another model{maps} called {session.model} (sha256 "
            f"{str(sha256)[:12]}, not {expected[:12]}). Give this one another label "
            "(LABEL=MODEL), or another --output."
        )
    manifest = job.task.manifest
    teachers = {metrics.teacher_root for metrics in session.split_metrics.values()}
    return (
        sha256 == expected
        and session.task == task_title(job.task.folder)
        and (manifest is None or manifest.stat().st_mtime_ns < _time(session))
        and (job.teacher is None or teachers == {str(job.teacher)})
    )


def _time(session: Session) -> int:
    return (session.folder / RESULTS).stat().st_mtime_ns

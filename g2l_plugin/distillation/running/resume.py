"""The run that a command resumes: the newest unfinished one of the same configuration."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text
from g2l_plugin.runs.checkpoints import FOLDER, LAST, find_damage, is_finished, list_checkpoints
from g2l_plugin.runs.run_folder import CONFIG

_KEPT = f"{FOLDER}/{CONFIG}"
"""A copy for resuming: eva rewrites its own at every start, and a kill then leaves it cut."""

_RESULTS = "results.json"
"""The file that eva writes into a session's folder when the session ends."""

_MAY_DIFFER = re.compile(
    r"workers$|_dir$|^packed_root$|^teacher_cache$|prefetch|persistent|pin_memory"
    r"|^micro_batch_size$|^compile$"
)
"""Settings of model and data that may change between the parts of a run: they do not change what is
trained. `T_max` of a `CosineSchedule` may too, and the settings of the trainer."""

_TOLD = re.compile(
    r"\.(max_steps|max_epochs|devices|num_nodes|precision|accumulate_grad_batches"
    r"|gradient_clip_\w+|window|max_exceedances|consecutive)$"
)
"""Settings of the trainer that change how the rest of a run is trained: its card tells them."""


def find_session(root: Path, config: dict[str, Any] | None, max_steps: int = -1) -> str | None:
    """Finds the newest session in a folder with the same model and data.

    Args:
        root: The folder of the sessions.
        config: The submitted configuration; None outside of eva's command line.
        max_steps: The limit of steps; one that has ended goes on if it was raised.

    Returns:
        Its name; None if there is none, or if the newest one of this configuration has ended.
    """
    others = []
    for session in sorted(root.glob("*"), reverse=True):
        if not session.is_dir() or not any(map(list_checkpoints, session.glob("run_*"))):
            continue
        if _trained_settings(config) != _trained_settings(_read_config(session)):
            if not (session / _RESULTS).exists():
                others.append(session.name)
        elif (session / _RESULTS).exists() and not _goes_on(session, max_steps):
            break
        else:
            return session.name
    if others:
        logger.info(
            f"{len(others)} unfinished sessions in {root} have another configuration "
            f"({others[0]}, ...): a new session starts. RESUME=<checkpoint> resumes one of them."
        )
    return None


def reopen(session: Path) -> None:
    """Removes the mark that a session has ended; eva writes its results anew."""
    (session / _RESULTS).unlink(missing_ok=True)


def compare_configs(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Compares the configuration of a run with the one that resumes it.

    Args:
        before: The run's configuration; None if unknown.
        now: The submitted configuration; None outside of eva's command line.

    Returns:
        What differs in how the rest is trained, e.g. `trainer.max_steps 20 → 40`.

    Raises:
        UserError: A setting differs that may not change within a run.
    """
    if before is None or now is None:
        return []
    if others := _differences(_trained_settings(before), _trained_settings(now)):
        raise UserError(
            f"The run to resume has other settings: {'; '.join(others.values())}. Resume with its "
            "own, or start a new run (RESUME=null)."
        )
    told = _differences({"trainer": before.get("trainer")}, {"trainer": now.get("trainer")})
    return [text for name, text in told.items() if _TOLD.search(name)]


def keep_config(run_folder: Path, config: dict[str, Any]) -> None:
    """Writes a run's configuration into its folder, if it is not there yet."""
    for path in (run_folder / CONFIG, run_folder / _KEPT):
        if not path.exists():  # eva writes none on several devices
            write_text(path, yaml.dump(config, sort_keys=False))


@contextlib.contextmanager
def sole_process(session: Path) -> Iterator[None]:
    """Reserves a session for this process during the block. A process that died reserves nothing.

    Raises:
        UserError: Another process trains the session.
    """
    session.mkdir(parents=True, exist_ok=True)
    with (session / ".lock").open("w") as file:
        try:
            # Unlike flock's, this lock does not pass to data workers, which may live for seconds
            # after this process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"Another process trains {session}. Wait for it, or start a separate run with "
                "RESUME=null."
            ) from None
        except OSError as error:  # a file system without locks
            logger.debug(f"{session} is not locked: {error}.")
        yield


def _read_config(session: Path) -> dict[str, Any] | None:
    path = session / "run_0" / _KEPT
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _trained_settings(config: dict[str, Any] | None) -> Any:
    """The part of a configuration that decides what is trained."""
    if config is None:
        return None
    return {part: _without_free_settings(config.get(part)) for part in ("model", "data")}


def _goes_on(session: Path, max_steps: int) -> bool:
    last = session / "run_0" / FOLDER / LAST
    return last.is_file() and find_damage(last) is None and not is_finished(last, max_steps)


def _differences(before: Any, now: Any) -> dict[str, str]:
    """The settings that differ, with both values, by their dotted names without `init_args`."""
    old, new = (dict(_flatten(config)) for config in (before, now))
    return {
        name: f"{name} {old.get(name)} → {new.get(name)}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, name if key == "init_args" else f"{name}.{key}".strip("."))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            kind = part.get("class_path", number) if isinstance(part, dict) else number
            yield from _flatten(part, f"{name}.{str(kind).rpartition('.')[2]}")
    else:
        yield name, value


def _without_free_settings(value: Any) -> Any:
    if isinstance(value, dict):
        # Schedules of torch keep the T_max of the checkpoint.
        steps = str(value.get("class_path")).endswith("CosineSchedule")
        return {
            name: _without_free_settings(
                {**inner, "T_max": None} if steps and name == "init_args" else inner
            )
            for name, inner in value.items()
            if not _MAY_DIFFER.search(str(name))
        }
    return [_without_free_settings(part) for part in value] if isinstance(value, list) else value

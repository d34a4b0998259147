"""Which run a command goes on with: the newest unfinished one of the same configuration."""

from __future__ import annotations

import contextlib
import fcntl
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from eva.core.callbacks.config import _load_submitted_config
from loguru import logger

from g2l_plugin.distillation.checkpoint_io import list_checkpoints
from g2l_plugin.errors import UserError
from g2l_plugin.files import write_text

CONFIG = "config.yaml"
"""Where eva keeps the configuration of a run, in its folder; it writes that anew at every start."""

_KEPT = f"checkpoints/{CONFIG}"
"""Where it is kept for whoever goes on: a start that is killed leaves it whole."""

_RESULTS = "results.json"
"""What eva writes into a session's folder at its end."""

_ANY = re.compile(
    r"workers$|_dir$|^packed_root$|^teacher_cache$|prefetch|persistent|pin_memory"
    r"|^micro_batch_size$|^compile$"
)
"""Settings that may differ between the parts of a run: they do not change what is trained."""


def find_session(root: Path, config: dict[str, Any] | None) -> str | None:
    """Name of the newest session under a folder that goes on with the same model and data.

    Args:
        root: The folder of the sessions.
        config: The configuration that was submitted; None outside of eva's command line.

    Returns:
        None where there is none, or the newest of this configuration has come to its end.
    """
    others = []
    for session in sorted(root.glob("*"), reverse=True):
        if not session.is_dir() or not any(map(list_checkpoints, session.glob("run_*"))):
            continue
        if _training(config) != _training(_read_config(session)):
            if not (session / _RESULTS).exists():
                others.append(session.name)
        elif (session / _RESULTS).exists():
            break
        else:
            return session.name
    if others:
        logger.info(
            f"{len(others)} unfinished sessions in {root} are of another configuration "
            f"({others[0]}, ...): a new one starts. RESUME=<checkpoint> goes on with one."
        )
    return None


def keep_config(run_folder: Path, config: dict[str, Any]) -> None:
    """Writes a run's configuration into its folder, where there is none yet."""
    for path in (run_folder / CONFIG, run_folder / _KEPT):
        if not path.exists():  # eva writes none on several devices
            write_text(path, yaml.dump(config, sort_keys=False))


def submitted_config() -> dict[str, Any] | None:
    """The configuration that eva's command line was given; None outside of it."""
    if not any(argument.endswith(".yaml") for argument in sys.argv[1:]):
        return None
    return _load_submitted_config()


@contextlib.contextmanager
def sole_process(session: Path) -> Iterator[None]:
    """Keeps a session for this process while the block runs; a process that died keeps nothing.

    Raises:
        UserError: Another process trains it.
    """
    session.mkdir(parents=True, exist_ok=True)
    with (session / ".lock").open("w") as file:
        try:
            # Unlike flock's, this lock is not handed on to data workers, which may live for seconds
            # after this process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"Another process trains {session}. Wait for it, or start another run beside it "
                "with RESUME=null."
            ) from None
        except OSError as error:  # a file system without locks
            logger.debug(f"{session} is not locked: {error}.")
        yield


def _read_config(session: Path) -> dict[str, Any] | None:
    path = session / "run_0" / _KEPT
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def _training(config: dict[str, Any] | None) -> Any:
    """What of a configuration decides what is trained."""
    if config is None:
        return None
    return {part: _without_any(config.get(part)) for part in ("model", "data")}


def _without_any(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_any(v) for k, v in value.items() if not _ANY.search(str(k))}
    return [_without_any(part) for part in value] if isinstance(value, list) else value

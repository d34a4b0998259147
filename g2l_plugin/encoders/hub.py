"""Files of a model on the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_download
from loguru import logger

from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.errors import UserError

_TIMEOUT = 15.0
"""Seconds to wait for the Hub's answer: a machine behind a wall shall hear of it soon."""


def download_model(
    repo_id: str, revision: str | None, files: Sequence[str]
) -> tuple[Path, str]:
    """Brings files of one commit of a repository into the local cache.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; None takes main.
        files: Names of the files.

    Returns:
        The folder that holds them, and the commit.

    Raises:
        UserError: No access, no such repository or revision, no such file, or no connection.
    """
    try:
        offline = not _is_reachable(repo_id, revision)
        first = Path(
            hf_hub_download(repo_id, files[0], revision=revision, local_files_only=offline)
        )
        # The cache names a snapshot's folder after its commit. The other files are of the same one,
        # also where a branch moves on meanwhile.
        commit = first.parent.name
        for file in files[1:]:
            hf_hub_download(repo_id, file, revision=commit, local_files_only=offline)
    except errors.GatedRepoError as error:
        raise UserError(_no_access(repo_id)) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hub has no model {repo_id}, or your account may not see it. Check the name, or log "
            f"in (`hf auth login`, or HF_TOKEN).{_another(repo_id)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"Model {repo_id} has no revision {revision!r} on the Hub.") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_out_of_reach(repo_id)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"Model {repo_id} has no {' and '.join(files)} on the Hub. Weights are read from "
            "safetensors only; ask its owner for them, or convert a copy you trust (local-dir:path)."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(_no_access(repo_id)) from error
        raise UserError(f"The Hub answered {status} for {repo_id}. Try again later.") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise UserError(_out_of_reach(repo_id)) from error
    return first.parent, commit


def _is_reachable(repo_id: str, revision: str | None) -> bool:
    """Whether the Hub answers; asked once, for a download alone would try for minutes."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT)
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, errors.HfHubHTTPError):  # it did, with an error
            raise
        logger.warning(f"The Hub cannot be reached; looking for {repo_id} in the local cache.")
        return False
    return True


def _no_access(repo_id: str) -> str:
    return f"No access to {repo_id}, which is gated. {_how_to_get_access(repo_id)}{_another(repo_id)}"


def _out_of_reach(repo_id: str) -> str:
    known = KNOWN_ENCODERS.get(f"hf-hub:{repo_id}")
    gated = f" It is gated. {_how_to_get_access(repo_id)}" if known and known.gated else ""
    return (
        f"Model {repo_id} is not in the local cache, and the Hub cannot be reached. Connect, or name "
        f"a local copy (TEACHER=local-dir:path, STUDENT=local-dir:path).{gated}{_another(repo_id)}"
    )


def _how_to_get_access(repo_id: str) -> str:
    return (
        f"Ask for access at {constants.ENDPOINT}/{repo_id}, then log in (`hf auth login`, or HF_TOKEN)."
    )


def _another(repo_id: str) -> str:
    known = KNOWN_ENCODERS.get(f"hf-hub:{repo_id}")
    if known is None or known.alternative is None:
        return " Or name another encoder (TEACHER=..., STUDENT=...)."
    return f" Or name another: the same weights are open as TEACHER={known.alternative}"

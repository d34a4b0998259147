"""Files of a model on the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.error import URLError

from huggingface_hub import HfApi, constants, errors, hf_hub_download
from loguru import logger

from g2l_plugin.encoders.known import KNOWN_ENCODERS
from g2l_plugin.errors import UserError

_TIMEOUT = 15.0
"""Seconds to wait for the Hub's answer: a machine behind a wall shall hear of it soon."""


def download_model(
    repo_id: str, revision: str | None, files: Sequence[str], optional: Sequence[str] = ()
) -> tuple[Path, str]:
    """Brings files of one commit of a repository into the local cache.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; None takes main.
        files: Names of the files.
        optional: Names of files to bring along where the repository has them.

    Returns:
        The folder that holds them, and the commit.

    Raises:
        UserError: No access, no such repository or revision, no such file, or no connection.
    """
    with explained(f"hf-hub:{repo_id}", revision, files):
        offline = not _is_reachable(repo_id, revision)
        first = Path(
            hf_hub_download(repo_id, files[0], revision=revision, local_files_only=offline)
        )
        # The cache names a snapshot's folder after its commit. The other files are of the same one,
        # also where a branch moves on meanwhile.
        commit = first.parent.name
        for file in files[1:]:
            hf_hub_download(repo_id, file, revision=commit, local_files_only=offline)
        for file in optional:
            with contextlib.suppress(errors.EntryNotFoundError):
                hf_hub_download(repo_id, file, revision=commit, local_files_only=offline)
    return first.parent, commit


@contextlib.contextmanager
def explained(
    source: str, revision: str | None = None, files: Sequence[str] = ()
) -> Iterator[None]:
    """Turns the Hub's errors within the block into a `UserError` that says what to do.

    Args:
        source: The source that is being loaded.
        revision: Branch, tag or commit that was asked for.
        files: The files that are needed.
    """
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(_no_access(source)) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hub has no model {_name(source)}, or your account may not see it. Check the "
            f"name, or log in (`hf auth login`, or HF_TOKEN).{_another(source)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"Model {_name(source)} has no revision {revision!r} on the Hub. Give a branch, tag or "
            "commit that it has, or none for its main branch."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_out_of_reach(source)) from error
    except errors.EntryNotFoundError as error:
        missing = " and ".join(files) or "such file"
        raise UserError(
            f"Model {_name(source)} has no {missing} on the Hub. Weights are read from safetensors "
            "only; ask its owner for them, or convert a copy you trust (local-dir:path)."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{source} is no name of a model on the Hub. Expected hf-hub:org/name."
        ) from error
    except errors.HfHubHTTPError as error:
        status = _status(error)
        if status in (401, 403):
            raise UserError(_no_access(source)) from error
        raise UserError(
            f"The Hub answered {status} for {_name(source)}. Try again later, or name a local copy "
            "(TEACHER=local-dir:path, STUDENT=local-dir:path)."
        ) from error
    except (errors.HTTPError, URLError, ConnectionError, TimeoutError) as error:
        raise UserError(_out_of_reach(source)) from error


def _is_reachable(repo_id: str, revision: str | None) -> bool:
    """Whether the Hub answers; asked once, for a download alone would try for minutes."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT)
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, errors.HfHubHTTPError) and (_status(error) or 0) < 500:
            raise  # it did, and said no
        logger.warning(f"The Hub cannot be reached; looking for {repo_id} in the local cache.")
        return False
    return True


def _status(error: errors.HfHubHTTPError) -> int | None:
    return error.response.status_code if error.response is not None else None


def _no_access(source: str) -> str:
    return f"No access to {_name(source)}. {_how_to_get_access(source)}{_another(source)}"


def _out_of_reach(source: str) -> str:
    known = KNOWN_ENCODERS.get(source)
    gated = f" It is gated. {_how_to_get_access(source)}" if known and known.gated else ""
    return (
        f"Model {_name(source)} is not in the local cache, and the Hub cannot be reached. Connect, "
        f"or name a local copy (TEACHER=local-dir:path, STUDENT=local-dir:path).{gated}"
        f"{_another(source)}"
    )


def _how_to_get_access(source: str) -> str:
    repo_id = _repo_id(source)
    page = f"{constants.ENDPOINT}/{repo_id}" if repo_id else "its page on the Hub"
    return f"Ask for access at {page}, then log in (`hf auth login`, or HF_TOKEN)."


def _another(source: str) -> str:
    known = KNOWN_ENCODERS.get(source)
    if known is None or known.alternative is None:
        return " Or name another encoder (TEACHER=..., STUDENT=...)."
    return f" Or name another: the same weights are open as TEACHER={known.alternative}"


def _name(source: str) -> str:
    return source.removeprefix("hf-hub:")


def _repo_id(source: str) -> str | None:
    """The repository behind a source; None where only eva knows it."""
    if source.startswith("hf-hub:"):
        return _name(source)
    known = KNOWN_ENCODERS.get(source)
    return known.repo_id if known else None

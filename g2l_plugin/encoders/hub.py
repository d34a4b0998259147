"""Files of a model on the Hugging Face Hub, with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote

from huggingface_hub import ModelInfo, constants, errors, get_token, hf_hub_download
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)
from loguru import logger

from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

TIMEOUT = 15.0
"""Seconds to wait for the Hub's answer: a machine behind a wall shall hear of it soon."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota or a file size that is used up."""

_BY_HAND = "name a local copy (TEACHER=local-dir:path, STUDENT=local-dir:path)"


def download_model(
    repo_id: str,
    revision: str | None,
    *,
    config: bool = True,
    weights: bool = True,
    code: bool = False,
) -> tuple[Path, str]:
    """Brings what makes a model into the local cache, all of it of one commit.

    A connection that is cut is taken up again where it was; a file in the cache is a whole one.
    Without a connection, the cache serves.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; None takes main.
        config: Whether to bring config.json, and preprocessor_config.json where there is one.
        weights: Whether to bring model.safetensors.
        code: Whether to bring the repository's Python files.

    Returns:
        The folder that holds the files, and the commit.

    Raises:
        UserError: No access, no such repository, revision or file, no connection, or a full disk.
    """
    files = [CONFIG] * config + [WEIGHTS] * weights
    with explained(f"hf-hub:{repo_id}", revision):
        info = _ask(repo_id, revision)
        offline = info is None
        there = {sibling.rfilename for sibling in (info.siblings or [])} if info else set()
        if info and not there.issuperset(files):
            raise UserError(_no_file(repo_id, sorted(set(files) - there), there))
        first = _fetch(repo_id, files[0], revision, offline)
        # The cache names a snapshot's folder after its commit. The other files are of the same one,
        # also where a branch moves on meanwhile.
        commit = first.parent.name
        extra = [
            name
            for name in sorted(there)
            if (config and name == PREPROCESSOR) or (code and name.endswith(".py"))
        ]
        for file in [*files[1:], *extra]:
            _fetch(repo_id, file, commit, offline)
    return first.parent, commit


@contextlib.contextmanager
def explained(source: str, revision: str | None = None) -> Iterator[None]:
    """Turns the Hub's errors within the block into a `UserError` that says what to do.

    Args:
        source: The source that is being loaded.
        revision: Branch, tag or commit that was asked for.
    """
    name = source.removeprefix("hf-hub:")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(_no_access(source)) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hub has no model {name}, or your account may not see it. Check the name, or log "
            f"in (`hf auth login`, or HF_TOKEN).{_another(source)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"Model {name} has no revision {revision!r} on the Hub. Give a branch, tag or commit "
            "that it has, or none for its main branch."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_out_of_reach(source)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"Model {name} lacks a file that is needed: {in_one_line(error)}."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{source} is no name of a model on the Hub. Expected hf-hub:org/name."
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(_refused(source, _status(error))) from error
    except (errors.HTTPError, URLError, ConnectionError, TimeoutError) as error:
        raise UserError(_out_of_reach(source)) from error
    except errors.XetDownloadError as error:
        if any(f"os error {number}" in str(error) for number in DISK_FULL):
            raise UserError(_disk_full(name)) from error
        raise UserError(_cut_off(name, error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(_disk_full(name)) from error
        if error.errno is not None:
            raise UserError(
                f"{name} cannot be written to the Hub's cache: {error}. Set HF_HOME to a folder "
                "that you may write to."
            ) from error
        if isinstance(error.__cause__, Exception):
            with explained(source, revision):  # transformers wraps the Hub's errors
                raise error.__cause__ from None
        raise UserError(_cut_off(name, error)) from error


def _ask(repo_id: str, revision: str | None) -> ModelInfo | None:
    """What the Hub says of a model; None where it cannot be reached.

    Asked once and before all else, for a download alone would try for minutes.
    """
    validate_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        return None
    url = f"{constants.ENDPOINT}/api/models/{repo_id}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    try:
        # It is polite to wait where the Hub says so.
        response = http_backoff(
            "GET",
            url,
            headers=build_hf_headers(),
            timeout=TIMEOUT,
            retry_on_exceptions=(),
            retry_on_status_codes=429,
        )
        hf_raise_for_status(response)
        return ModelInfo(**response.json())
    except (errors.HTTPError, OSError, ValueError) as error:  # a wall may answer in the Hub's place
        if isinstance(error, errors.HfHubHTTPError) and (_status(error) or 0) < 500:
            raise  # it did answer, and said no
        logger.warning(
            f"The Hub cannot be reached ({in_one_line(error)}); looking for {repo_id} in the local "
            "cache."
        )
        return None


def _fetch(repo_id: str, file: str, revision: str | None, offline: bool) -> Path:
    """A file of the Hub in the local cache."""
    try:
        return Path(hf_hub_download(repo_id, file, revision=revision, local_files_only=offline))
    except errors.HfHubHTTPError:
        raise
    except errors.HTTPError as error:  # the Hub was reached, but the connection did not last
        raise UserError(_cut_off(repo_id, error)) from error


def _status(error: errors.HfHubHTTPError) -> int | None:
    return error.response.status_code if error.response is not None else None


def _no_file(repo_id: str, missing: list[str], there: set[str]) -> str:
    found = sorted(n for n in there if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".safetensors")))
    known = find_known(f"hf-hub:{repo_id}")
    hint = (
        f" eva reads them as they are: TEACHER=eva:{known.eva}."
        if known and known.eva and WEIGHTS in missing
        else ""
    )
    return (
        f"Model {repo_id} has no {' and no '.join(missing)} on the Hub (weights there: "
        f"{', '.join(found) or 'none'}). Weights are read from safetensors only: name a revision "
        f"that has them (`revision: refs/pr/1`), or convert a copy that you trust.{hint}"
        + (_another(known.source) if known and known.alternative else "")
    )


def _no_access(source: str) -> str:
    if get_token() is None:
        problem = "is gated, and you are not logged in"
    else:
        problem = (
            "is gated, and your token has no access to it (a fine-grained token needs the right to "
            "read gated repositories)"
        )
    return (
        f"{source.removeprefix('hf-hub:')} {problem}. {_how_to_get_access(source)}"
        f"{_another(source)}"
    )


def _refused(source: str, status: int | None) -> str:
    name = source.removeprefix("hf-hub:")
    if status == 401:
        return (
            f"The Hub does not take your token for {name} (401). Log in anew (`hf auth login`, or "
            "HF_TOKEN), or unset a token that has expired."
        )
    known = find_known(source)
    if status == 403 and known and known.gated:
        return _no_access(source)
    if status == 403:
        return (
            f"The Hub, or a proxy before it, refuses {name} (403). Check your token's rights and "
            f"the proxy, or {_BY_HAND}."
        )
    return f"The Hub answered {status} for {name}. Try again later, or {_BY_HAND}."


def _out_of_reach(source: str) -> str:
    known = find_known(source)
    gated = f" It is gated. {_how_to_get_access(source)}" if known and known.gated else ""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    return (
        f"Model {source.removeprefix('hf-hub:')} is not in the local cache, and {why}. Connect, or "
        f"{_BY_HAND}.{gated}{_another(source)}"
    )


def _disk_full(name: str) -> str:
    return (
        f"The disk is full: {name} does not fit into {constants.HF_HUB_CACHE}. Make room, or set "
        "HF_HOME to a folder on a larger disk; files that are whole are kept."
    )


def _cut_off(name: str, error: Exception) -> str:
    return (
        f"The download of {name} was cut off ({in_one_line(error)}). Run the same again: the files "
        "that are whole are kept."
    )


def _how_to_get_access(source: str) -> str:
    known = find_known(source)
    repo_id = known.repo_id if known else source.removeprefix("hf-hub:")
    page = f"{constants.ENDPOINT}/{repo_id}" if repo_id else "its page on the Hub"
    return f"Ask for access at {page}, then log in (`hf auth login`, or HF_TOKEN)."


def _another(source: str) -> str:
    known = find_known(source)
    if known is None or known.alternative is None:
        return " Or name another encoder (TEACHER=..., STUDENT=...): `g2l models` lists them."
    return f" Or name another: the same weights are open as TEACHER={known.alternative}"

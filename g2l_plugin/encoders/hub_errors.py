"""Turns errors of the Hugging Face Hub into instructions for the user."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

from huggingface_hub import constants, errors, get_token
from huggingface_hub.file_download import repo_folder_name

from g2l_plugin.encoders.known import find_known
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk, an exhausted quota and a file that is too large."""

_USE_LOCAL_COPY = "use a local copy (TEACHER=local-dir:path, STUDENT=local-dir:path)"


@contextlib.contextmanager
def explain_hub_errors(source: str, revision: str | None = None) -> Iterator[None]:
    """Turns the Hub's errors within the block into a `UserError` that says what to do.

    Args:
        source: The source that is being loaded.
        revision: The requested branch, tag or commit.

    Raises:
        UserError: The block raised an error of the Hub's client, the network or the disk.
    """
    name = source.removeprefix("hf-hub:")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(_no_access_message(source)) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"The Hub has no model {name}, or your account cannot see it. Check the name, or log "
            f"in (`hf auth login`, or HF_TOKEN).{_suggest_alternative(source)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"Model {name} has no revision {revision!r} on the Hub. Give an existing branch, tag "
            "or commit, or none for the main branch."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(_unreachable_message(source)) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"Model {name} lacks a required file: {in_one_line(error)}. Check the source."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{source} is not a valid model name on the Hub. Expected hf-hub:org/name."
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(_refused_message(source, status_code(error))) from error
    except (errors.HTTPError, URLError, ConnectionError, TimeoutError) as error:
        raise UserError(_unreachable_message(source)) from error
    except errors.XetDownloadError as error:
        if any(f"os error {number}" in str(error) for number in DISK_FULL):
            raise UserError(_disk_full_message(name)) from error
        raise UserError(interrupted_message(name, error)) from error
    except ImportError as error:
        if "proxy" not in str(error):
            raise
        raise UserError(explain_proxy(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(_disk_full_message(name)) from error
        if error.errno is not None:
            raise UserError(
                f"{name} cannot be written to the Hub's cache: {error}. Set HF_HOME to a folder "
                "with write access."
            ) from error
        if isinstance(error.__cause__, Exception):
            with explain_hub_errors(source, revision):  # transformers wraps the Hub's errors
                raise error.__cause__ from None
        raise UserError(interrupted_message(name, error)) from error


def check_token() -> None:
    """Raises a `UserError` if the Hub's token cannot be sent: it has characters that none has."""
    token = get_token() or ""
    if not token.isascii() or not token.isprintable():
        raise UserError(
            "Your token for the Hub has characters that no token has: it was not copied well. Set "
            "HF_TOKEN again, or log in again (`hf auth login`)."
        )


def explain_proxy(error: ImportError) -> str:
    """Says what to do where the client cannot use the proxy that is set."""
    return (
        f"The Hub cannot be reached through the proxy that ALL_PROXY or HTTPS_PROXY names "
        f"({in_one_line(error)}). Install what it names (pip install 'httpx[socks]'), or unset it."
    )


def status_code(error: errors.HfHubHTTPError) -> int | None:
    """Returns the HTTP status of an error; None without a response."""
    return error.response.status_code if error.response is not None else None


def missing_files_message(repo_id: str, missing: list[str], present: set[str]) -> str:
    """Says which files a model lacks, and how to get weights that can be read.

    Args:
        repo_id: `org/name`.
        missing: Required files that the repository lacks.
        present: Files of the repository.
    """
    found = sorted(
        n for n in present if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".safetensors"))
    )
    known = find_known(f"hf-hub:{repo_id}")
    hint = (
        f" Or let eva read them as they are: TEACHER=eva:{known.eva}."
        if known and known.eva and WEIGHTS in missing
        else ""
    )
    return (
        f"Model {repo_id} has no {' and no '.join(missing)} on the Hub (weights there: "
        f"{', '.join(found) or 'none'}). Weights are read from safetensors only. Give a revision "
        f"that has them (`revision: refs/pr/1`), or convert a copy that you trust.{hint}"
        + (_suggest_alternative(known.source) if known and known.alternative else "")
    )


def _no_access_message(source: str) -> str:
    if get_token() is None:
        problem = "is gated, and you are not logged in"
    else:
        problem = (
            "is gated, and your token has no access to it (a fine-grained token needs the right to "
            "read gated repositories)"
        )
    return (
        f"{source.removeprefix('hf-hub:')} {problem}. {_how_to_get_access(source)}"
        f"{_suggest_alternative(source)}"
    )


def _refused_message(source: str, status: int | None) -> str:
    name = source.removeprefix("hf-hub:")
    if status == 401:
        return (
            f"The Hub rejects your token for {name} (401). Log in again (`hf auth login`, or "
            "HF_TOKEN), or unset an expired token."
        )
    known = find_known(source)
    if status == 403 and known and known.gated:
        return _no_access_message(source)
    if status == 403:
        return (
            f"The Hub, or a proxy, refuses access to {name} (403). Check your token's rights and "
            f"the proxy, or {_USE_LOCAL_COPY}."
        )
    return f"The Hub answered {status} for {name}. Try again later, or {_USE_LOCAL_COPY}."


def _unreachable_message(source: str) -> str:
    known = find_known(source)
    gated = f" It is gated. {_how_to_get_access(source)}" if known and known.gated else ""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    name = source.removeprefix("hf-hub:")
    if source.startswith("hf-hub:") and (commits := _cached_commits(name)):
        return (
            f"The requested revision of {name} is not in the local cache, and {why}. Connect, or "
            f"name a commit that is there (TEACHER_REVISION, STUDENT_REVISION, or {source}@commit):"
            f" {', '.join(commits)}."
        )
    return (
        f"Model {name} is not in the local cache, and {why}. Connect, or "
        f"{_USE_LOCAL_COPY}.{gated}{_suggest_alternative(source)}"
    )


def _cached_commits(repo_id: str) -> list[str]:
    """The commits of which the cache has weights."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    return sorted(file.parent.name for file in folder.glob(f"snapshots/*/{WEIGHTS}"))


def _disk_full_message(name: str) -> str:
    return (
        f"The disk is full: {name} does not fit into {constants.HF_HUB_CACHE}. Make room, or set "
        "HF_HOME to a folder on a larger disk. Complete files are kept."
    )


def interrupted_message(name: str, error: Exception) -> str:
    """Says that a model's download was interrupted, and what to do."""
    return (
        f"The download of {name} was interrupted ({in_one_line(error)}). Run the same command "
        "again. Complete files are kept."
    )


def _how_to_get_access(source: str) -> str:
    known = find_known(source)
    repo_id = known.repo_id if known else source.removeprefix("hf-hub:")
    page = f"{constants.ENDPOINT}/{repo_id}" if repo_id else "its page on the Hub"
    return f"Ask for access at {page}, then log in (`hf auth login`, or HF_TOKEN)."


def _suggest_alternative(source: str) -> str:
    known = find_known(source)
    if known is None or known.alternative is None:
        return " Or use another encoder (TEACHER=..., STUDENT=...): `g2l models` lists them."
    return f" Or use an open copy of the same weights: TEACHER={known.alternative}"

"""Turns errors of an upload to the Hugging Face Hub into instructions for the user."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from huggingface_hub import constants, errors, get_token

from g2l_plugin.encoders.hub_errors import DISK_FULL, explain_proxy, status_code
from g2l_plugin.errors import UserError, in_one_line

_LOG_IN = "Log in with a token that may write (`hf auth login`, or HF_TOKEN)"


@contextlib.contextmanager
def explain_upload_errors(repo_id: str, branch: str) -> Iterator[None]:
    """Turns errors of the Hub, its client and the disk within the block into a `UserError`.

    Args:
        repo_id: The repository, `org/name`.
        branch: The branch that is committed to.

    Raises:
        UserError: The block raised one of these errors.
    """
    try:
        yield
    except UserError:
        raise
    except errors.HfHubHTTPError as error:
        raise UserError(_explain_status(repo_id, branch, error)) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"You are not logged in to the Hub. {_LOG_IN}.") from error
    except ImportError as error:  # of a proxy's protocol, at the first request
        raise UserError(explain_proxy(error)) from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(_explain_connection(repo_id, error)) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"The disk is full: {repo_id} is prepared and read back in "
                f"{tempfile.gettempdir()}. Make room, or set TMPDIR to a larger disk, and run the "
                "same command again."
            ) from error
        if error.errno is None:  # raised by the Hub's client, not by the system
            raise UserError(_explain_connection(repo_id, error)) from error
        raise
    except (RuntimeError, errors.XetDownloadError) as error:
        if isinstance(error.__cause__, Exception):
            # The client wraps the error of a single file.
            with explain_upload_errors(repo_id, branch):
                raise error.__cause__ from None
        raise UserError(_explain_connection(repo_id, error)) from error
    except ValueError as error:  # the README's metadata, or the storage
        raise UserError(
            f"The Hub does not accept the files for {repo_id}: {_without_token(error)}. Correct "
            "what it names, and run the same command again."
        ) from error


def _without_token(message: object) -> str:
    """A message in one line, without the user's token if a server or proxy repeats it."""
    text = str(message)
    if token := get_token():
        text = text.replace(token, "…")
    return in_one_line(text)


def _explain_status(repo_id: str, branch: str, error: errors.HfHubHTTPError) -> str:
    status = status_code(error)
    detail = f": {_without_token(error.server_message)}" if error.server_message else ""
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo_id} has no branch {branch!r} to commit to. Give the name of a branch, not a "
            "tag or a commit, or leave it out for main."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"Your account has no access to {repo_id} ({status}{detail}). Check the name, or give "
            f"an organisation that you may write to. {_LOG_IN} there."
        )
    if status == 401:
        return f"The Hub does not accept your token for {repo_id} (401{detail}). {_LOG_IN}."
    if status == 403:
        return (
            f"Your token may not write to {repo_id} (403{detail}). Give an org/name that you may "
            f"write to, or make a token with write access at {constants.ENDPOINT}/settings/tokens "
            "and log in with it (`hf auth login`, or HF_TOKEN)."
        )
    if status in (409, 412):
        return (
            f"Somebody else changed {repo_id} during the upload ({status}{detail}). Nothing was "
            "replaced: look at the change, and run the same command again."
        )
    if status == 400:
        return (
            f"The Hub rejects the request for {repo_id} (400{detail}). Check the names of "
            "repository, branch and tag."
        )
    return (
        f"The Hub answered {status} for {repo_id}{detail}. Run the same command again later: files "
        "that have arrived are not sent again."
    )


def _explain_connection(repo_id: str, error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, so {repo_id} cannot be uploaded. Unset it."
    return (
        f"There is no connection to the Hub, or it was lost while uploading {repo_id} "
        f"({_without_token(error)}). Connect, and run the same command again: files that have "
        "arrived are not sent again."
    )

"""Downloads models from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from huggingface_hub import ModelInfo, constants, errors, hf_hub_download
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)
from loguru import logger

from g2l_plugin.encoders.folder import CONFIG, PATIENTS, PREPROCESSOR
from g2l_plugin.encoders.hub_errors import (
    check_token,
    explain_hub_errors,
    explain_proxy,
    interrupted_message,
    missing_files_message,
    status_code,
)
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line

TIMEOUT = 15.0
"""Seconds to wait for the Hub's answer; short, so that a blocked connection is reported soon."""


def download_model(
    repo_id: str,
    revision: str | None,
    *,
    config: bool = True,
    weights: bool = True,
    code: bool = False,
) -> tuple[Path, str]:
    """Downloads a model's files into the local cache, all from one commit.

    Interrupted downloads are resumed, and the cache holds complete files only. Without a
    connection, the files are read from the cache.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit; None uses main.
        config: Whether to download config.json, and preprocessor_config.json and patients.txt if
            they exist.
        weights: Whether to download model.safetensors.
        code: Whether to download the repository's Python files.

    Returns:
        The folder that holds the files, and the commit.

    Raises:
        UserError: The repository, revision or a file does not exist or is not accessible, the Hub
            cannot be reached, or the disk is full.
    """
    files = [CONFIG] * config + [WEIGHTS] * weights
    with explain_hub_errors(f"hf-hub:{repo_id}", revision):
        info = _request_info(repo_id, revision)
        offline = info is None
        present = {sibling.rfilename for sibling in (info.siblings or [])} if info else set()
        if info and not present.issuperset(files):
            raise UserError(missing_files_message(repo_id, sorted(set(files) - present), present))
        first = _fetch(repo_id, files[0], revision, offline)
        # The cache names a snapshot's folder after its commit. The other files come from this
        # commit, even if the branch moves in the meantime.
        commit = first.parent.name
        extra = [
            name
            for name in sorted(present)
            if (config and name in (PATIENTS, PREPROCESSOR)) or (code and name.endswith(".py"))
        ]
        for file in [*files[1:], *extra]:
            _fetch(repo_id, file, commit, offline)
    return first.parent, commit


def _request_info(repo_id: str, revision: str | None) -> ModelInfo | None:
    """Requests a model's information from the Hub; None if the Hub cannot be reached.

    One request before any download: downloads retry for minutes before they report an
    unreachable Hub.
    """
    validate_repo_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        return None
    check_token()
    url = f"{constants.ENDPOINT}/api/models/{repo_id}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"
    try:
        # Waits if the Hub limits the rate of requests.
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
    except ImportError as error:  # of a proxy's protocol
        logger.warning(f"{explain_proxy(error)} Looking for {repo_id} in the local cache.")
        return None
    except (errors.HTTPError, OSError, ValueError) as error:  # a proxy may answer instead
        if isinstance(error, errors.HfHubHTTPError) and (status_code(error) or 0) < 500:
            raise  # the Hub answered and refused
        logger.warning(
            f"The Hub cannot be reached ({in_one_line(error)}); looking for {repo_id} in the local "
            "cache."
        )
        return None


def _fetch(repo_id: str, file: str, revision: str | None, offline: bool) -> Path:
    """Returns a file's path in the local cache, after downloading it if needed."""
    try:
        return Path(hf_hub_download(repo_id, file, revision=revision, local_files_only=offline))
    except errors.HfHubHTTPError:
        raise
    except errors.HTTPError as error:  # the connection broke during the download
        raise UserError(interrupted_message(repo_id, error)) from error

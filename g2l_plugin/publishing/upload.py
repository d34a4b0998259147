"""Upload of a published folder to the Hugging Face Hub: one commit, read back and compared."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    errors,
)
from huggingface_hub.utils import validate_repo_id
from loguru import logger
from rich.console import Console
from rich.table import Table

from g2l_plugin.encoders.folder import CONFIG, ONNX, PATIENTS, README, RESULTS, TRAINING_CONFIG
from g2l_plugin.encoders.hub import TIMEOUT
from g2l_plugin.encoders.hub_errors import check_token
from g2l_plugin.encoders.weights import WEIGHTS
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.files import hash_file
from g2l_plugin.publishing.licenses import check_license
from g2l_plugin.publishing.upload_errors import explain_upload_errors

_REQUIRED = (WEIGHTS, CONFIG, README)
_OPTIONAL = (RESULTS, TRAINING_CONFIG, ONNX, PATIENTS)
_PLACEHOLDER = "OWNER/NAME"
"""What a card contains in place of the model's name on the Hub."""

_N_PULL_REQUESTS = 20
"""Number of open pull requests that are searched for the same files."""


@dataclasses.dataclass(frozen=True)
class UploadOptions:
    """Where and how a student is uploaded.

    Attributes:
        repo_id: `org/name`, created if it does not exist; None uploads nothing.
        private: Whether a new repository is private. False leaves it to the owner's default.
        revision: Branch to commit to, created from main if it does not exist; None means main.
        tag: Tag for the commit, set once the commit is verified. A tag is never moved.
        create_pr: Whether to open a pull request in an existing repository instead of committing.
        replace: Whether another model.safetensors may be replaced. The repository's history keeps
            the former one.
        license: Licence identifier; None derives it from teacher and start, provided that neither
            restricts sharing.
    """

    repo_id: str | None = None
    private: bool = False
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    replace: bool = False
    license: str | None = None


def upload_student(folder: Path, options: UploadOptions, dry_run: bool = False) -> str:
    """Uploads a published folder to the Hub in one commit, and verifies what arrived.

    If the upload is interrupted, the same call completes it: files that have arrived are not sent
    again, and if all of them have, nothing is committed. The README on the Hub names the
    repository; the local one keeps its placeholder.

    Args:
        folder: A folder that `publish_run` wrote. Its model.safetensors, config.json and README.md
            are sent, and results.json, config.yaml and model.onnx if they exist.
        options: Where and how; needs a `repo_id`.
        dry_run: Whether only to print what would be sent. Nothing is changed on the Hub.

    Returns:
        URL of the commit or of the pull request; for a dry run, that of the branch.

    Raises:
        UserError: The folder is incomplete, a name is invalid, the token may not write, the
            repository has another model, the connection failed, or what arrived is not what was
            sent.
    """
    repo_id = options.repo_id or ""
    branch = options.revision or constants.DEFAULT_REVISION
    _check_names(repo_id, options)
    check_token()
    api = HfApi(token=True)  # without a token, this fails before the first request
    with explain_upload_errors(repo_id, branch), _staged(folder, repo_id) as staged:
        remote = _look(api, repo_id, branch, staged)
        if remote is None and options.create_pr:
            raise UserError(
                f"The Hub has no {repo_id} to open a pull request in, or your account may not see "
                "it. Check the name, or upload without a pull request to create it."
            )
        if dry_run:
            target = "as a pull request" if options.create_pr else f"branch {branch}"
            target += f", tag {options.tag}" if options.tag else ""
            _print_plan(staged, remote, f"{repo_id}, {target}")
        elif remote is None:
            api.create_repo(repo_id, private=options.private or None, exist_ok=True)
            remote = _look(api, repo_id, branch, staged)
        if remote is not None:
            _check_remote(api, repo_id, remote, options)
        if dry_run:
            return f"{api.endpoint}/{repo_id}/tree/{quote(branch, safe='')}"
        if remote is None:
            raise UserError(f"The Hub does not list the new {repo_id} yet. Run the same again.")
        hashes = {file.name: hash_file(file) for file in staged.iterdir()}
        url, commit = _commit(api, repo_id, branch, staged, remote, hashes, options.create_pr)
        _read_back(api, repo_id, commit, hashes)
        if options.tag:
            api.create_tag(repo_id, tag=options.tag, revision=commit, exist_ok=True)
    logger.info(f"{repo_id} is on the Hub and was read back as it was sent: {url}")
    return url


def _check_names(repo_id: str, options: UploadOptions) -> None:
    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise UserError(
            f"{repo_id!r} is no name of a repository on the Hub. Expected org/name: your account "
            "or an organisation, then the model, of letters, digits, '-', '_' and '.'."
        )
    if options.create_pr and (options.revision or options.tag):
        given = f"revision={options.revision}" if options.revision else f"tag={options.tag}"
        raise UserError(
            f"A pull request cannot have {given}: it is opened against main and not tagged. Leave "
            "out one of the two."
        )


def _check_card(card: str) -> None:
    """Raises where the Hub would refuse a card's metadata, before a repository is made for it."""
    try:
        licenses = ModelCard(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"The metadata at the top of {README} cannot be read ({in_one_line(error)}). Correct "
            "it; nothing was sent."
        ) from error
    for license in licenses if isinstance(licenses, list) else [licenses]:
        if license is not None:
            check_license(str(license))


@contextlib.contextmanager
def _staged(folder: Path, repo_id: str) -> Iterator[Path]:
    """Yields a temporary folder with exactly the files to send, the card with its name filled in.

    Small files are copied, so that changes during the upload have no effect; weights are linked.
    """
    folder = folder.expanduser().resolve()
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}. Expected a published folder: `student` "
            "in the folder of a finished run, or what `g2l publish` wrote. Nothing was sent."
        )
    with tempfile.TemporaryDirectory(prefix="g2l_upload_") as temporary:
        staged = Path(temporary)
        for name in (*_REQUIRED, *_OPTIONAL):
            if not (folder / name).is_file():
                continue
            if name in (WEIGHTS, ONNX):
                (staged / name).symlink_to(folder / name)
            else:
                shutil.copyfile(folder / name, staged / name)
        card = (staged / README).read_text(encoding="utf-8")
        _check_card(card)
        (staged / README).write_text(card.replace(_PLACEHOLDER, repo_id), encoding="utf-8")
        yield staged


@dataclasses.dataclass(frozen=True)
class _Remote:
    """State of the repository before the upload, compared with the staged files.

    Attributes:
        commit: The commit that a new one is added to.
        private: Whether the repository is private; None if the Hub does not say.
        has_branch: Whether the branch exists.
        guarded: Whether the branch has its own model: it is main, or differs from main. A new
            branch at the same commit as main can lose nothing.
        new: Staged files that the commit lacks.
        changed: Staged files with other content, with the hash on the Hub and the staged one.
        only_there: Files of the commit that are not staged.
    """

    commit: str
    private: bool | None
    has_branch: bool
    guarded: bool
    new: list[str]
    changed: dict[str, tuple[str, str]]
    only_there: list[str]


def _look(api: HfApi, repo_id: str, branch: str, staged: Path) -> _Remote | None:
    """State of a repository; None if it does not exist."""
    try:
        main = api.model_info(repo_id, timeout=TIMEOUT)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None
    is_main = branch == constants.DEFAULT_REVISION
    try:
        head = main if is_main else api.model_info(repo_id, revision=branch, timeout=TIMEOUT)
    except errors.RevisionNotFoundError:
        head = None
    commit = str((head or main).sha)
    guarded = is_main or (head is not None and head.sha != main.sha)
    found = api.verify_repo_checksums(repo_id, revision=commit, local_dir=staged)
    return _Remote(
        commit,
        main.private,
        has_branch=head is not None,
        guarded=guarded,
        new=found.extra_paths,
        changed={item["path"]: (item["expected"], item["actual"]) for item in found.mismatches},
        only_there=found.missing_paths,
    )


def _check_remote(api: HfApi, repo_id: str, remote: _Remote, options: UploadOptions) -> None:
    """Raises if an upload would publish what is private, replace a model or move a tag."""
    if options.private and remote.private is False:
        raise UserError(
            f"{repo_id} exists and is public, but a private one was requested. Make it private in "
            "its settings on the Hub, or give another name. Nothing was sent."
        )
    replace = options.replace or options.create_pr
    if remote.guarded and not replace and WEIGHTS in remote.changed:
        theirs, ours = remote.changed[WEIGHTS]
        raise UserError(
            f"{repo_id} has another {WEIGHTS} (hash {theirs}) than the one to upload (hash {ours})."
            " Give another org/name or a branch (--revision), or --replace it; nothing was sent."
        )
    if (tag := options.tag) is None:
        return
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    # Users rely on tags, so they are never moved.
    if tag in tags and (remote.new or remote.changed or tags[tag] != remote.commit):
        raise UserError(
            f"{repo_id} has a tag {tag!r} already, of commit {tags[tag]}, which differs from this "
            "upload. Give another tag; nothing was sent."
        )


def _commit(
    api: HfApi,
    repo_id: str,
    branch: str,
    staged: Path,
    remote: _Remote,
    hashes: dict[str, str],
    create_pr: bool,
) -> tuple[str, str]:
    """Sends what the Hub does not have yet; returns the URL and the commit."""
    if not remote.has_branch:
        api.create_branch(repo_id, branch=branch, revision=remote.commit, exist_ok=True)
    names = [*remote.new, *remote.changed]
    if not names:
        logger.info(f"{repo_id} has the same files already: nothing is committed.")
        return f"{api.endpoint}/{repo_id}/commit/{remote.commit}", remote.commit
    if create_pr and (same := _find_pull_request(api, repo_id, staged)):
        logger.info(f"{same[0]} contains the same files already: no other is opened.")
        return same
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, staged / name) for name in names
    ]
    if WEIGHTS in names:  # the former student's results are not this one's
        stale = sorted({*_OPTIONAL} & {*remote.only_there})
        operations += [CommitOperationDelete(name) for name in stale]
    # `upload_folder` may split an upload into several commits; users must never see part of one.
    info = api.create_commit(
        repo_id,
        operations,
        commit_message="Upload a student distilled with G2L",
        commit_description=f"SHA-256 of {WEIGHTS}: {hashes[WEIGHTS]}",
        revision=branch,
        create_pr=create_pr,
        # Fails if somebody else has committed in between.
        parent_commit=None if create_pr else remote.commit,
    )
    return str(info.pr_url or info.commit_url), info.oid


def _find_pull_request(api: HfApi, repo_id: str, staged: Path) -> tuple[str, str] | None:
    """URL and commit of an open pull request that contains the same files."""
    pull_requests = api.get_repo_discussions(
        repo_id, discussion_type="pull_request", discussion_status="open"
    )
    for pull_request in itertools.islice(pull_requests, _N_PULL_REQUESTS):
        head = api.model_info(repo_id, revision=pull_request.git_reference, timeout=TIMEOUT)
        found = api.verify_repo_checksums(repo_id, revision=head.sha, local_dir=staged)
        if not found.mismatches and not found.extra_paths:
            return pull_request.url, str(head.sha)
    return None


def _read_back(api: HfApi, repo_id: str, commit: str, hashes: dict[str, str]) -> None:
    """Downloads the files of a commit, and compares their SHA-256 with those before the upload.

    `verify_repo_checksums` is not enough: it compares the hashes on record, not what users receive.
    """
    with tempfile.TemporaryDirectory(prefix="g2l_upload_") as folder:
        for name, sent in hashes.items():
            try:
                copy = api.hf_hub_download(
                    repo_id, name, revision=commit, local_dir=folder, force_download=True
                )
            except ValueError as error:  # the client's, in place of what went wrong
                raise error.__cause__ or error from None
            if (found := hash_file(Path(copy))) != sent:
                raise UserError(
                    f"{name} came back from {repo_id}, commit {commit}, with SHA-256 {found}, and "
                    f"{sent} was sent. Do not use that commit: if the file did not change here "
                    "during the upload, upload to another repository."
                )


def _print_plan(staged: Path, remote: _Remote | None, target: str) -> None:
    table = Table("file", "bytes", "on the Hub", title=f"Would be uploaded to {target}")
    for file in sorted(staged.iterdir()):
        if remote is None or file.name in remote.new:
            state = "new"
        else:
            state = "another" if file.name in remote.changed else "the same"
        table.add_row(file.name, f"{file.stat().st_size:,}", state)
    Console(soft_wrap=True).print(table)

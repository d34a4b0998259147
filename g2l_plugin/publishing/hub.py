"""A published folder on the Hugging Face Hub: one commit, read back, with errors that help."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    errors,
    get_token,
)
from huggingface_hub.utils import validate_repo_id
from loguru import logger
from rich.console import Console
from rich.table import Table

from g2l_plugin.encoders.hub import CONFIG, DISK_FULL, TIMEOUT
from g2l_plugin.encoders.weights import WEIGHTS, hash_file
from g2l_plugin.errors import UserError, in_one_line
from g2l_plugin.publishing.export import README, RESULTS, TRAINING_CONFIG

_REQUIRED = (WEIGHTS, CONFIG, README)
_OPTIONAL = (RESULTS, TRAINING_CONFIG)
_PLACEHOLDER = "OWNER/NAME"
"""What a card says where the model's name on the Hub will be."""

_N_PULL_REQUESTS = 20
"""So many open pull requests are looked at for one that suggests the same already."""

_LOG_IN = "Log in with a token that may write (`hf auth login`, or HF_TOKEN)"


def upload_student(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    replace: bool = False,
    dry_run: bool = False,
) -> str:
    """Uploads a published folder to the Hub, in one commit, and reads back what arrived.

    Stopped anywhere, the same call completes it: what has arrived is not sent again, and where all
    of it is there, nothing is committed. The README names the repository where it had a
    placeholder; the local one stays as it is.

    Args:
        folder: A folder that `publish_run` wrote. Of its files, model.safetensors, config.json,
            README.md, and results.json and config.yaml where they are, are sent.
        repo_id: `org/name`; made where there is none.
        private: Whether a new repository is private. Otherwise it is what its owner's are.
        revision: Branch to commit to, made from main where there is none; None takes main.
        tag: Tag to give to the commit when it was read back.
        create_pr: Whether to open a pull request in a repository, instead of committing to it.
        replace: Whether another model.safetensors may be replaced. What the former commit holds
            stays in the repository's history.
        dry_run: Whether only to print what would be sent. The Hub is asked what it has, and nothing
            is changed there.

    Returns:
        The URL of the commit, or of the pull request; of a dry run, that of the branch.

    Raises:
        UserError: The folder is not complete, the names do not do, the token may not write, another
            model is there, there is no connection, or something else arrived than was sent.
    """
    branch = revision or constants.DEFAULT_REVISION
    _check_names(repo_id, revision, tag, create_pr)
    files = _read_folder(folder, repo_id)
    api = HfApi(token=True)  # which fails before it asks anything where there is no token
    with _explained(repo_id, branch):
        there = _look(api, repo_id, branch)
        if there is None and create_pr:
            raise UserError(
                f"The Hub has no {repo_id} to open a pull request in, or your account may not see "
                "it. Check the name, or upload without a pull request to make it."
            )
        if dry_run:
            _print_plan(files, there, f"{repo_id}, {_what_is_made(branch, tag, create_pr)}")
        elif there is None:
            # Where it is there after all, it is kept as it is.
            api.create_repo(repo_id, private=private or None, exist_ok=True)
            there = _look(api, repo_id, branch)
        if there is not None:
            _check_private(repo_id, there, private)
            _check_weights(repo_id, files, there, replace or create_pr)
            _check_tag(api, repo_id, files, there, tag)
        if dry_run:
            return f"{api.endpoint}/{repo_id}/tree/{quote(branch, safe='')}"
        if there is None:
            raise UserError(f"The Hub made {repo_id} and does not show it. Run the same again.")
        url, commit = _commit(api, repo_id, branch, files, there, create_pr)
        _read_back(api, repo_id, commit, files)
        if tag:
            api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    logger.info(f"{repo_id} is on the Hub, and was read back as it was sent: {url}")
    return url


@dataclasses.dataclass(frozen=True)
class _File:
    """A file to send: its bytes, or where they are."""

    name: str
    content: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, content: bytes | None = None) -> _File:
        if content is None:
            return cls(path.name, path, path.stat().st_size, hash_file(path))
        return cls(path.name, content, len(content), hashlib.sha256(content).hexdigest())

    def is_in(self, there: _There) -> bool:
        """Whether a commit holds the same bytes under the same name."""
        found = there.siblings.get(self.name)
        if found is None:
            return False
        if found.lfs is not None:  # large files are known by their SHA-256, the others as git does
            return found.lfs.sha256 == self.sha256
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return found.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _There:
    """What the Hub has.

    Attributes:
        commit: The commit that a new one comes on top of.
        siblings: Its files by name.
        private: Whether the repository is private; None where the Hub does not say.
        has_branch: Whether the branch is there.
        guarded: Whether the branch holds this commit and main does not, or is main.
    """

    def __init__(self, main: ModelInfo, head: ModelInfo | None, is_main: bool) -> None:
        info = head or main
        self.commit = info.sha
        self.siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        self.private = info.private
        self.has_branch = head is not None
        # A branch that is where main is has nothing that could get lost: an upload that ended right
        # after making it goes on.
        self.guarded = is_main or (head is not None and head.sha != main.sha)


def _check_names(repo_id: str, revision: str | None, tag: str | None, create_pr: bool) -> None:
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
    if create_pr and (revision or tag):
        given = f"revision={revision}" if revision else f"tag={tag}"
        raise UserError(
            f"A pull request was asked for, and {given}. A pull request is against main and not "
            "tagged: leave out one of them."
        )


def _read_folder(folder: Path, repo_id: str) -> list[_File]:
    folder = folder.expanduser()
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {' and no '.join(missing)}. Expected a published folder: `student` "
            "of a run that has ended, or what `g2l publish` wrote. Nothing was sent."
        )
    card = (folder / README).read_text(encoding="utf-8").replace(_PLACEHOLDER, repo_id)
    return [
        _File.of(folder / name, card.encode() if name == README else None)
        for name in (*_REQUIRED, *_OPTIONAL)
        if (folder / name).is_file()
    ]


def _look(api: HfApi, repo_id: str, branch: str) -> _There | None:
    """What the Hub has of a repository; None where it has none."""
    try:
        main = api.model_info(repo_id, files_metadata=True, timeout=TIMEOUT)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        return None
    if branch == constants.DEFAULT_REVISION:
        return _There(main, main, True)
    try:
        head = api.model_info(repo_id, revision=branch, files_metadata=True, timeout=TIMEOUT)
    except errors.RevisionNotFoundError:
        head = None
    return _There(main, head, False)


def _check_private(repo_id: str, there: _There, private: bool) -> None:
    if private and there.private is False:
        raise UserError(
            f"{repo_id} is there and public; a private one was asked for. Make it private in its "
            "settings on the Hub, or give another name. Nothing was sent."
        )


def _check_weights(repo_id: str, files: list[_File], there: _There, replace: bool) -> None:
    weights = next(file for file in files if file.name == WEIGHTS)
    found = there.siblings.get(WEIGHTS)
    if replace or not there.guarded or found is None or weights.is_in(there):
        return
    other = f"SHA-256 {found.lfs.sha256}" if found.lfs else f"git blob {found.blob_id}"
    raise UserError(
        f"{repo_id} has another {WEIGHTS} ({other}) than the one to upload (SHA-256 "
        f"{weights.sha256}). Give another org/name or a branch (--revision), or --replace it; "
        "nothing was sent."
    )


def _check_tag(
    api: HfApi, repo_id: str, files: list[_File], there: _There, tag: str | None
) -> None:
    if not tag:
        return
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    # A tag that users rely on is never moved.
    if tag in tags and (_changes(files, there) or tags[tag] != there.commit):
        raise UserError(
            f"{repo_id} has a tag {tag!r} already, of commit {tags[tag]}, which is not what would "
            "be uploaded. Give another tag; nothing was sent."
        )


def _changes(files: list[_File], there: _There) -> list[_File]:
    return [file for file in files if not file.is_in(there)]


def _commit(
    api: HfApi, repo_id: str, branch: str, files: list[_File], there: _There, create_pr: bool
) -> tuple[str, str]:
    """Sends what the Hub does not have yet; returns where it is to be seen, and the commit."""
    if not there.has_branch:
        api.create_branch(repo_id, branch=branch, revision=there.commit, exist_ok=True)
    changes = _changes(files, there)
    if not changes:
        logger.info(f"{repo_id} has the same files already: nothing is committed.")
        return f"{api.endpoint}/{repo_id}/commit/{there.commit}", str(there.commit)
    if create_pr and (same := _find_pull_request(api, repo_id, files)):
        logger.info(f"{same[0]} suggests the same files already: no other is opened.")
        return same
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(file.name, file.content) for file in changes
    ]
    if WEIGHTS in [file.name for file in changes]:
        # What was said of the former student is not true of this one.
        stale = {*_OPTIONAL} & there.siblings.keys() - {file.name for file in files}
        operations += [CommitOperationDelete(name) for name in sorted(stale)]
    weights = next(file for file in files if file.name == WEIGHTS)
    try:
        info = api.create_commit(
            repo_id,
            operations,
            commit_message="Upload a student distilled with G2L",
            commit_description=f"SHA-256 of {WEIGHTS}: {weights.sha256}",
            revision=branch,
            create_pr=create_pr,
            # Nobody's commit that came in between is built upon unseen.
            parent_commit=None if create_pr else there.commit,
        )
    except errors.HfHubHTTPError:  # some are ValueErrors too
        raise
    except ValueError as error:  # of the README's metadata, or of the storage
        raise UserError(
            f"The Hub does not take the files for {repo_id}: {_line(error)}. Mend what it names, "
            "and run the same again."
        ) from error
    return str(info.pr_url or info.commit_url), info.oid


def _find_pull_request(api: HfApi, repo_id: str, files: list[_File]) -> tuple[str, str] | None:
    """URL and commit of an open pull request that holds the same files."""
    pull_requests = api.get_repo_discussions(
        repo_id, discussion_type="pull_request", discussion_status="open"
    )
    for pull_request in itertools.islice(pull_requests, _N_PULL_REQUESTS):
        head = api.model_info(repo_id, revision=pull_request.git_reference, files_metadata=True)
        if not _changes(files, _There(head, head, False)):
            return pull_request.url, str(head.sha)
    return None


def _read_back(api: HfApi, repo_id: str, commit: str, files: list[_File]) -> None:
    """Downloads the files of a commit, past the cache, and compares them with those sent."""
    with tempfile.TemporaryDirectory(prefix="g2l_upload_") as folder:
        for file in files:
            copy = api.hf_hub_download(
                repo_id, file.name, revision=commit, cache_dir=folder, force_download=True
            )
            if (found := hash_file(Path(copy))) != file.sha256:
                raise UserError(
                    f"{file.name} came back from {repo_id}, commit {commit}, with SHA-256 {found}, "
                    f"and {file.sha256} was sent. Nobody shall use that commit: if the file did "
                    "not change here meanwhile, upload to another repository."
                )


def _print_plan(files: list[_File], there: _There | None, target: str) -> None:
    table = Table("file", "bytes", "on the Hub", title=f"Would be uploaded to {target}")
    for file in files:
        if there is None or file.name not in there.siblings:
            state = "new"
        else:
            state = "the same" if file.is_in(there) else "another"
        table.add_row(file.name, f"{file.size:,}", state)
    Console(soft_wrap=True).print(table)


def _what_is_made(branch: str, tag: str | None, create_pr: bool) -> str:
    if create_pr:
        return "as a pull request"
    return f"branch {branch}" + (f", tag {tag}" if tag else "")


@contextlib.contextmanager
def _explained(repo_id: str, branch: str) -> Iterator[None]:
    """Turns the Hub's errors within the block into a `UserError` that says what to do."""
    try:
        yield
    except UserError:
        raise
    except errors.HfHubHTTPError as error:
        raise UserError(_refused(repo_id, branch, error)) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"You are not logged in to the Hub. {_LOG_IN}.") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(_cut_off(repo_id, error)) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"The disk is full: {repo_id} is read back into {tempfile.gettempdir()}. Make "
                "room, or set TMPDIR to a larger disk, and run the same again."
            ) from error
        if error.errno is None:  # of the Hub's client, and not of the system
            raise UserError(_cut_off(repo_id, error)) from error
        raise
    except (RuntimeError, errors.XetDownloadError) as error:
        if isinstance(error.__cause__, Exception):
            with _explained(repo_id, branch):  # the Hub's client wraps what befell one file
                raise error.__cause__ from None
        raise UserError(_cut_off(repo_id, error)) from error


def _refused(repo_id: str, branch: str, error: errors.HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    said = f": {_line(error.server_message)}" if error.server_message else ""
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repo_id} has no branch {branch!r} that could be committed to. Give the name of a "
            "branch, not a tag or a commit, or none for main."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"The Hub does not let your account see {repo_id} ({status}{said}). Check the name, or "
            f"give an organisation that you may write to. {_LOG_IN} there."
        )
    if status == 401:
        return f"The Hub does not take your token for {repo_id} (401{said}). {_LOG_IN}."
    if status == 403:
        return (
            f"Your token may not write to {repo_id} (403{said}). Give an org/name that you may "
            f"write to, or make a token with write access at {constants.ENDPOINT}/settings/tokens "
            "and log in with it (`hf auth login`, or HF_TOKEN)."
        )
    if status in (409, 412):
        return (
            f"Somebody else changed {repo_id} meanwhile ({status}{said}). Nothing of it was "
            "replaced: look at it, and run the same again."
        )
    if status == 400:
        return (
            f"The Hub does not take what was given for {repo_id} (400{said}). Check the names of "
            "repository, branch and tag."
        )
    return (
        f"The Hub answered {status} for {repo_id}{said}. Run the same again later: what has "
        "arrived is not sent again."
    )


def _cut_off(repo_id: str, error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and {repo_id} is to be uploaded. Unset it."
    return (
        f"The connection to the Hub was lost, or there is none, while uploading {repo_id} "
        f"({_line(error)}). Connect, and run the same again: what has arrived is not sent again."
    )


def _line(said: object) -> str:
    text = str(said)
    if token := get_token():  # should a server or a proxy repeat it
        text = text.replace(token, "…")
    return in_one_line(text)

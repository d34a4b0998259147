import errno
import hashlib
import json
import logging
import re
import tempfile
from pathlib import Path

import hub_server
import pytest
from helpers import save_tiny_model
from hub_server import connect_client, serve_hub
from huggingface_hub import HfApi, constants
from loguru import logger

from g2l_plugin.errors import UserError
from g2l_plugin.publishing.upload import UploadOptions, upload_student

TOKEN = "hf_that_nobody_may_read"
CARD = 'timm.create_model("hf-hub:OWNER/NAME")\nAutoModel.from_pretrained("OWNER/NAME")\n'


def publish(folder, seed=0):
    """Writes what `g2l publish` writes, and a file that it does not write."""
    save_tiny_model(folder, seed)
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{CARD}")
    (folder / "results.json").write_text(json.dumps({"seed": seed}))
    (folder / "config.yaml").write_text("trainer: {}\n")
    (folder / "notes.txt").write_text("mine")
    return folder


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def student(tmp_path):
    return publish(tmp_path / "student")


@pytest.fixture
def other(tmp_path):
    return publish(tmp_path / "other", seed=1)


@pytest.fixture
def log(caplog, monkeypatch):
    """Everything that is logged, by this package and by the Hub's client."""
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    lines = []
    sink = logger.add(lines.append, level="DEBUG")
    yield lines
    logger.remove(sink)
    assert TOKEN not in "".join(lines) + caplog.text


@pytest.fixture
def hub(tmp_path, monkeypatch, log, capfd):
    """A hub that the client talks to; its user may write to `org`."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serve_hub({}) as hub:
        connect_client(hub, tmp_path, monkeypatch)
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    assert not list(temporary.iterdir()), "something was left behind"
    assert not (tmp_path / "cache").exists(), "the cache was used"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert TOKEN not in "".join(capfd.readouterr())


def upload(folder, repo_id, dry_run=False, **options):
    return upload_student(folder, UploadOptions(repo_id, **options), dry_run)


def refusal(*arguments, **options):
    """Message of an upload that fails."""
    with pytest.raises(UserError) as error:
        upload(*arguments, **options)
    message = str(error.value)
    assert TOKEN not in message
    assert "\n" not in message
    return message


def sent(hub):
    """Requests since the last call that could change the hub."""
    requests = [(method, path) for method, path, _ in hub.served if method in ("POST", "PUT")]
    hub.served.clear()
    return requests


def head(hub, repo_id="org/student", branch="main"):
    repo = hub.repos[repo_id]
    return repo.commits[repo.branches[branch]]


def test_one_commit_holds_the_folder_and_names_the_repository(hub, student):
    url = upload(student, "org/student")
    repo = hub.repos["org/student"]
    assert len(repo.commits) == 2  # the Hub's own and this one
    assert url == f"{hub.url}/org/student/commit/{repo.branches['main']}"
    files = head(hub)
    for name in ("model.safetensors", "config.json", "results.json", "config.yaml"):
        assert files.pop(name) == (student / name).read_bytes()
    card = files.pop("README.md").decode()
    assert 'create_model("hf-hub:org/student")' in card
    assert 'from_pretrained("org/student")' in card and "OWNER" not in card
    assert list(files) == [".gitattributes"]
    assert CARD in (student / "README.md").read_text()
    assert not repo.private and not repo.tags
    assert len([path for method, path in sent(hub) if method == "PUT"]) == 1


def test_results_and_config_are_optional(hub, student):
    (student / "results.json").unlink()
    (student / "config.yaml").unlink()
    upload(student, "org/student", private=True)
    assert {"README.md", "config.json", "model.safetensors"} == head(hub).keys() - {
        ".gitattributes"
    }
    assert hub.repos["org/student"].private


def test_files_on_the_hub_are_not_sent_again(hub, student, log):
    first = upload(student, "org/student")
    repo = hub.repos["org/student"]
    sent(hub)
    assert upload(student, "org/student") == first
    assert not sent(hub) and len(repo.commits) == 2
    assert "nothing is committed" in "".join(log)

    assert upload(student, "org/student", tag="v1") == first
    assert [path for _, path in sent(hub)] == [f"/api/models/org/student/tag/{first[-40:]}"]
    assert repo.tags == {"v1": first[-40:]} and len(repo.commits) == 2
    assert upload(student, "org/student", tag="v1") == first

    # Only what is new is sent.
    (student / "README.md").write_text("# OWNER/NAME")
    sent(hub)
    upload(student, "org/student")
    assert not [path for _, path in sent(hub) if "lfs" in path]
    assert len(repo.commits) == 3 and head(hub)["README.md"] == b"# org/student"
    assert repo.tags["v1"] == first[-40:]


def test_another_model_is_replaced_only_on_request(hub, student, other):
    upload(student, "org/student")
    before = head(hub)
    sent(hub)
    message = refusal(other, "org/student")
    for part in (
        sha256(student / "model.safetensors"),
        sha256(other / "model.safetensors"),
        "--revision",
        "--replace",
        "another org/name",
    ):
        assert part in message
    assert not sent(hub) and head(hub) == before

    (other / "config.yaml").unlink()
    upload(other, "org/student", replace=True)
    assert len(hub.repos["org/student"].commits) == 3
    assert head(hub)["model.safetensors"] == (other / "model.safetensors").read_bytes()
    assert "config.yaml" not in head(hub)  # it belonged to the other student


def test_a_missing_branch_is_created(hub, student, other):
    upload(student, "org/student")
    main = head(hub)
    repo = hub.repos["org/student"]
    # Interrupted after the branch was created, the upload is completed; main is unchanged.
    hub.drop_commits = ["before"]
    assert "run the same command again" in refusal(
        other, "org/student", revision="v2/small", tag="t2"
    )
    assert repo.branches["v2/small"] == repo.branches["main"] and not repo.tags
    url = upload(other, "org/student", revision="v2/small", tag="t2")
    assert repo.tags == {"t2": url[-40:]} and repo.branches["v2/small"] == url[-40:]
    model = head(hub, branch="v2/small")["model.safetensors"]
    assert model == (other / "model.safetensors").read_bytes()
    assert head(hub) == main and len(repo.commits) == 3
    assert "has another model.safetensors" in refusal(student, "org/student", revision="v2/small")
    assert "no branch 't2'" in refusal(student, "org/student", revision="t2", replace=True)
    # A repository that does not exist is created with the branch.
    upload(other, "org/new", revision="v2")
    assert "model.safetensors" not in head(hub, "org/new")
    assert "model.safetensors" in head(hub, "org/new", "v2")


def test_a_tag_is_not_moved(hub, student, other):
    upload(student, "org/student", tag="v1")
    tags = dict(hub.repos["org/student"].tags)
    sent(hub)
    message = refusal(other, "org/student", tag="v1", replace=True)
    assert f"a tag 'v1' already, of commit {tags['v1']}" in message and "another tag" in message
    assert not sent(hub) and hub.repos["org/student"].tags == tags
    upload(other, "org/student", tag="v2", replace=True)
    assert "already" in refusal(other, "org/student", tag="v1")
    assert hub.repos["org/student"].tags["v1"] == tags["v1"]


def test_a_pull_request_leaves_main_unchanged(hub, student, other, log):
    upload(student, "org/student")
    hub.namespaces = set()  # from here on it belongs to somebody else
    main = head(hub)
    assert "may not write to org/student (403" in refusal(other, "org/student", replace=True)
    url = upload(other, "org/student", create_pr=True)
    assert url == f"{hub.url}/org/student/discussions/1"
    assert head(hub) == main
    model = head(hub, branch="refs/pr/1")["model.safetensors"]
    assert model == (other / "model.safetensors").read_bytes()
    assert upload(other, "org/student", create_pr=True) == url
    assert "refs/pr/2" not in hub.repos["org/student"].branches
    assert "no other is opened" in "".join(log)
    assert upload(student, "org/student", create_pr=True).endswith("commit/" + main_of(hub))
    assert "no org/nothing to open a pull" in refusal(other, "org/nothing", create_pr=True)
    assert "tag=v1" in refusal(other, "org/student", create_pr=True, tag="v1")
    assert "revision=v2" in refusal(other, "org/student", create_pr=True, revision="v2")


def main_of(hub):
    return hub.repos["org/student"].branches["main"]


def test_a_dry_run_sends_nothing(hub, student, other, capfd):
    url = upload(student, "org/student", tag="v1", dry_run=True)
    printed = capfd.readouterr().out
    assert url == f"{hub.url}/org/student/tree/main"
    assert "org/student, branch main, tag v1" in printed
    size = (student / "model.safetensors").stat().st_size
    line = next(line for line in printed.splitlines() if "model.safetensors" in line)
    assert f"{size:,}" in line and "new" in line
    assert "notes.txt" not in printed and "config.yaml" in printed
    assert not sent(hub) and not hub.repos

    upload(student, "org/student")
    sent(hub)
    upload(student, "org/student", dry_run=True)
    assert "the same" in capfd.readouterr().out
    assert "--replace" in refusal(other, "org/student", dry_run=True)
    assert "another" in capfd.readouterr().out
    upload(other, "org/student", dry_run=True, create_pr=True)
    assert "as a pull request" in capfd.readouterr().out
    url = upload(other, "org/student", dry_run=True, revision="v2/small")
    assert url.endswith("/tree/v2%2Fsmall")
    assert "branch v2/small" in capfd.readouterr().out
    assert not sent(hub) and list(hub.repos["org/student"].branches) == ["main"]


def test_files_that_arrived_damaged_are_an_error(hub, student):
    hub.corrupt = True
    expected = sha256(student / "model.safetensors")
    message = refusal(student, "org/student", tag="v1")
    assert "model.safetensors came back" in message and f"{expected} was sent" in message
    # The hashes on record are right, but the file is not: nothing is tagged v1.
    assert "came back" in refusal(student, "org/student", tag="v1")
    assert not hub.repos["org/student"].tags
    hub.corrupt = False
    upload(student, "org/student", tag="v1")
    assert len(hub.repos["org/student"].commits) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_changes_during_the_upload_is_found(hub, student, monkeypatch, name):
    create_commit = HfApi.create_commit

    def change(self, repo_id, operations, **options):
        (file,) = [item for item in operations if item.path_in_repo == name]
        Path(file.path_or_fileobj).write_bytes(b"{}")
        return create_commit(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", change)
    assert f"{name} came back" in refusal(student, "org/student")


def test_a_config_that_is_edited_during_the_upload_is_sent_as_it_was(hub, student, monkeypatch):
    create_commit = HfApi.create_commit
    before = (student / "config.json").read_bytes()

    def edit(self, repo_id, operations, **options):
        (student / "config.json").write_text("{}")
        return create_commit(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", edit)
    upload(student, "org/student")
    assert head(hub)["config.json"] == before


def test_an_interrupted_upload_is_completed(hub, student):
    hub.drop = 1
    upload(student, "org/once")  # the client retries
    assert hub.drop == 0 and "model.safetensors" in head(hub, "org/once")

    hub.large.clear()
    hub.drop = 1000
    message = refusal(student, "org/student")
    assert "uploading org/student (" in message and "run the same command again" in message
    assert "Error while" not in message  # what the client wraps around the cause
    assert len(hub.repos["org/student"].commits) == 1
    hub.drop = 0
    hub.drop_commits = ["before"]
    assert "run the same command again" in refusal(student, "org/student", tag="v1")
    assert len(hub.repos["org/student"].commits) == 1
    sent(hub)
    hub.drop_commits = ["after"]
    assert "run the same command again" in refusal(student, "org/student", tag="v1")
    assert "PUT" not in [method for method, _ in sent(hub)]  # it had arrived already
    upload(student, "org/student", tag="v1")
    repo = hub.repos["org/student"]
    assert len(repo.commits) == 2 and repo.tags == {"v1": repo.branches["main"]}


def test_a_hub_that_is_down_or_unreachable_is_reported(hub, student, monkeypatch):
    hub.busy = 1000
    assert "answered 429 for org/student" in refusal(student, "org/student")
    hub.busy = 0
    upload(student, "org/student")
    hub.down = {"org/student"}
    assert "answered 503 for org/student" in refusal(student, "org/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(student, "org/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refusal(student, "org/student")
    assert "There is no connection" in message and "run the same command again" in message


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("down", "The Hub answered 503 for org/student"),
        ("bare", r"or it was lost while uploading org/student \(Response from"),
    ],
)
def test_what_cannot_be_read_back_is_reported_and_completed_later(hub, student, answers, said):
    hub.answers = answers
    message = refusal(student, "org/student", tag="v1")
    assert re.search(said, message) and "the same command again" in message
    hub.answers = None
    upload(student, "org/student", tag="v1")
    repo = hub.repos["org/student"]
    assert len(repo.commits) == 2 and repo.tags == {"v1": repo.branches["main"]}


def test_a_token_that_cannot_be_sent_is_reported(hub, student, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_\u00e9")
    assert "characters that no token has" in refusal(student, "org/student")
    assert not hub.served


def test_a_proxy_that_the_client_cannot_use_is_reported(hub, student, monkeypatch):
    def fail(*_, **__):
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")

    monkeypatch.setattr(HfApi, "model_info", fail)
    message = refusal(student, "org/student")
    assert "ALL_PROXY" in message and "httpx[socks]" in message


def test_tokens_that_may_not_write_are_reported(hub, student, monkeypatch):
    hub.readers = {TOKEN}
    # The token is removed even if a server repeats it.
    monkeypatch.setitem(hub_server._ERRORS, "forbidden", (403, "", f"{TOKEN} may only read"))
    message = refusal(student, "org/student")
    assert "may not write to org/student (403: … may only read)" in message
    assert f"{hub.url}/settings/tokens" in message
    hub.readers = set()
    upload(student, "org/student")
    hub.readers = {TOKEN}
    assert "may not write" in refusal(student, "org/student", tag="v1")
    assert not hub.repos["org/student"].tags
    hub.readers = set()
    assert "may not write to else/student (403" in refusal(student, "else/student")

    hub.expired = {TOKEN}
    assert "does not accept your token for org/student (401" in refusal(student, "org/student")
    monkeypatch.setenv("HF_TOKEN", "")
    sent(hub)
    message = refusal(student, "org/student")
    assert "not logged in" in message and "hf auth login" in message and "HF_TOKEN" in message
    assert not hub.served


@pytest.mark.parametrize("repo_id", ["student", "org/", "a/b/c", "hf-hub:org/x", "org/a b", ""])
def test_invalid_names_are_an_error(hub, student, repo_id):
    message = refusal(student, repo_id)
    assert repr(repo_id) in message and "Expected org/name" in message
    assert not hub.served


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_missing_file_is_an_error(hub, student, name):
    (student / name).unlink()
    assert f"{student} has no {name}." in refusal(student, "org/student")
    assert "no model.safetensors and no config.json" in refusal(student / "no", "org/student")
    assert not hub.served


def test_a_public_repository_is_not_used_as_a_private_one(hub, student):
    upload(student, "org/student")
    assert "exists and is public" in refusal(student, "org/student", private=True)
    upload(student, "org/hidden", private=True)
    upload(student, "org/hidden", private=True)
    assert hub.repos["org/hidden"].private


def test_a_commit_made_during_the_upload_is_an_error(hub, student, other, monkeypatch):
    upload(student, "org/student")
    create_commit = HfApi.create_commit

    def overtake(self, repo_id, operations, **options):
        hub.repos[repo_id].commit({"model.safetensors": b"theirs"}, "main")
        return create_commit(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", overtake)
    assert "Somebody else changed org/student" in refusal(other, "org/student", replace=True)
    assert head(hub) == {"model.safetensors": b"theirs"}


def test_a_card_that_the_hub_rejects_is_reported(hub, student):
    (student / "README.md").write_text("---\nlicense: [\nmit]\n---\n")
    assert "license is no list" in refusal(student, "org/student")
    assert len(hub.repos["org/student"].commits) == 1


@pytest.mark.parametrize(
    ("metadata", "said"), [("license: MIT", "Did you mean mit?"), ("license: [", "cannot be read")]
)
def test_a_card_that_the_hub_would_reject_leaves_no_repository(hub, student, metadata, said):
    (student / "README.md").write_text(f"---\n{metadata}\n---\n{CARD}")
    assert said in refusal(student, "org/student")
    assert not hub.repos


def test_an_onnx_graph_is_uploaded_too_and_never_an_old_one(hub, student, other):
    (student / "model.onnx").write_bytes(b"graph")
    upload(student, "org/student")
    assert head(hub)["model.onnx"] == b"graph"
    upload(other, "org/student", replace=True)
    assert "model.onnx" not in head(hub)


def test_a_full_disk_is_reported(hub, student, monkeypatch):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "hf_hub_download", fill)
    message = refusal(student, "org/student")
    assert "The disk is full" in message and "TMPDIR" in message

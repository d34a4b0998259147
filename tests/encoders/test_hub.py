import contextlib
import errno
import hashlib
import json
import os
import subprocess
from pathlib import Path

import fork_server
import pytest
import timm
from helpers import save_own_code, save_tiny_model
from hub_server import COMMIT, serve_hub
from huggingface_hub import errors
from safetensors.torch import save_file

from g2l_plugin.encoders.hub_errors import explain_hub_errors
from g2l_plugin.errors import UserError

TOKEN = "hf_that_nobody_may_read"
CLIENT = Path(__file__).with_name("hub_client.py")


@pytest.fixture
def connect(tmp_path):
    """Starts a process that loads encoders with the real client; yields a function to use it."""

    @contextlib.contextmanager
    def start(**environment):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        }
        log = tmp_path / "client.log"
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                [fork_server.command("python"), CLIENT],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process,
        ):

            def load(source, revision=None, file_limit=None, token=TOKEN, **options):
                request = (source, revision, file_limit, token, options)
                print(json.dumps(request), file=process.stdin, flush=True)
                answer = process.stdout.readline()
                assert answer, log.read_text()
                assert TOKEN not in answer
                answer = json.loads(answer)
                if "error" in answer:
                    assert "\n" not in answer["error"]
                return answer.get("error", answer)

            yield load
            process.stdin.close()
        assert TOKEN not in log.read_text()

    return start


def test_a_model_is_loaded_from_the_hub_then_from_the_cache(tmp_path, connect):
    repo = save_tiny_model(tmp_path / "repo")
    (repo / "patients.txt").write_text("0123456789abcdef\n")
    pickled = save_tiny_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    timms_own = tmp_path / "timm" / "model.safetensors"
    timms_own.parent.mkdir()
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), timms_own)
    repos = {
        "org/tiny": repo,
        "bioptimus/H-optimus-0": repo,
        "org/open": repo,
        "org/pickled": pickled,
        "org/own": save_own_code(tmp_path / "own"),
        "MahmoodLab/UNI2-h": pickled,
        "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": timms_own.parent,
    }
    with serve_hub(repos) as hub, connect(HF_ENDPOINT=hub.url) as load:
        hub.gated = {"bioptimus/H-optimus-0": set(), "org/open": {TOKEN}}
        main = load("hf-hub:org/tiny")
        assert main == load("hf-hub:org/tiny", COMMIT) == load(f"hf-hub:org/tiny@{COMMIT}")
        assert main["revision"] == COMMIT
        assert "/patients.txt" in str(hub.served)
        assert main["source"] == "hf-hub:org/tiny"
        assert (main["file"], len(main["sha256"])) == ("model.safetensors", 64)
        assert load("hf-hub:org/open")["sha256"] == main["sha256"]

        timms = load("timm:vit_tiny_patch16_224")
        assert (timms["revision"], timms["file"]) == (COMMIT, "model.safetensors")
        assert timms["sha256"] == hashlib.sha256(timms_own.read_bytes()).hexdigest()

        gated = load("hf-hub:bioptimus/H-optimus-0")
        for part in (
            "bioptimus/H-optimus-0 is gated, and your token has no access",
            f"Ask for access at {hub.url}/bioptimus/H-optimus-0",
            "hf auth login",
            "TEACHER=hf-hub:1aurent/vit_giant_patch14_reg4_224.h-optimus-v0",
        ):
            assert part in gated
        assert "no model org/nothing" in load("hf-hub:org/nothing")
        assert "no revision 'v9'" in load("hf-hub:org/tiny", "v9")
        assert "Expected hf-hub:org/name" in load("hf-hub:one/too/many")
        no_safetensors = load("hf-hub:org/pickled")
        assert (
            "weights there: pytorch_model.bin). Weights are read from safetensors" in no_safetensors
        )
        assert "TEACHER=eva:pathology/mahmood_uni2_h" in load("hf-hub:MahmoodLab/UNI2-h")

        own, options = "hf-hub:org/own", {"mean": [0.5] * 3, "std": [0.5] * 3}
        assert "trust_remote_code: org/own" in load(own, **options)
        assert "/own_model.py" not in str(hub.served)
        assert load(own, trust_remote_code="org/own", **options)["revision"] == COMMIT

        hub.expired = {TOKEN}
        assert "rejects your token" in load("hf-hub:org/nothing")

        url = hub.url
        hub.expired = set()

        assert "characters that no token has" in load("hf-hub:org/tiny", token="hf_\u00e9")
        gated = load("hf-hub:bioptimus/H-optimus-0", token="")
        assert "is gated, and you are not logged in" in gated

        with connect(HF_ENDPOINT=url, ALL_PROXY="socks5://127.0.0.1:9", NO_PROXY="") as by_socks:
            assert by_socks("hf-hub:org/tiny") == main  # from the cache
            assert "the Hub cannot be reached" in by_socks("hf-hub:org/other")
        assert "httpx[socks]" in (tmp_path / "client.log").read_text()

    with connect(HF_HUB_OFFLINE="1") as load:
        assert load("hf-hub:org/tiny") == main
        assert "not in the local cache, and HF_HUB_OFFLINE is set" in load("hf-hub:org/other")
        refs = tmp_path / "hf" / "hub" / "models--org--tiny" / "refs"
        refs.rename(refs.with_name("none"))  # as if it had been fetched by commit
        assert load("hf-hub:org/tiny", COMMIT) == main
        by_name = load("hf-hub:org/tiny")
        assert "requested revision of org/tiny is not in the local cache" in by_name
        assert f"hf-hub:org/tiny@commit): {COMMIT}." in by_name
        refs.with_name("none").rename(refs)

    # Without the server, the cache is used, and a model it lacks is reported immediately.
    with connect(HF_ENDPOINT=url) as load:
        assert load("hf-hub:org/tiny") == main
        gone = load("hf-hub:bioptimus/H-optimus-0")
        assert "the Hub cannot be reached" in gone and "Ask for access at" in gone
        blobs = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs"
        blob = blobs / main["sha256"]
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
        assert f"{blob} is damaged" in load("hf-hub:org/tiny")


def ranges_of(hub):
    """Offsets from which the client requested part of a file."""
    return [int(part.removeprefix("bytes=").rstrip("-")) for *_, part in hub.served if part]


def test_downloads_survive_faults_of_networks_and_disks(tmp_path, connect):
    repo = save_tiny_model(tmp_path / "repo", embed_dim=384, depth=16)
    size = (repo / "model.safetensors").stat().st_size
    names = ["org/busy", "org/down", "org/cut", "org/broken", "org/full"]
    with serve_hub(dict.fromkeys(names, repo)) as hub, connect(HF_ENDPOINT=hub.url) as load:
        hub.busy = 2
        expected = load("hf-hub:org/busy")["sha256"]
        assert hub.busy == 0

        hub.down = {"org/down"}
        assert "org/down is not in the local cache, and the Hub cannot" in load("hf-hub:org/down")

        hub.cut = 1
        assert load("hf-hub:org/cut")["sha256"] == expected
        assert len(ranges_of(hub)) == 1  # resumed, not restarted

        hub.cut = 1000
        assert "org/broken was interrupted" in load("hf-hub:org/broken")
        hub.cut = 0
        assert load("hf-hub:org/broken")["sha256"] == expected

        full = load("hf-hub:org/full", file_limit=size // 2)
        assert "The disk is full: org/full does not fit into" in full
        assert "HF_HOME" in full
        partial = [path for path in (tmp_path / "hf").rglob("*.incomplete")]
        assert not partial, "half a file was left"


def test_faults_of_disk_and_connection_are_explained():
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        errors.XetDownloadError("IO Error: No space left on device (os error 28)"),
    ):
        with (
            pytest.raises(UserError, match="disk is full: org/name"),
            explain_hub_errors("hf-hub:org/name"),
        ):
            raise error
    with (
        pytest.raises(UserError, match="interrupted.*are kept"),
        explain_hub_errors("hf-hub:org/name"),
    ):
        raise errors.XetDownloadError("stream ended")
    for number in (errno.EACCES, errno.EROFS, errno.ESTALE):
        with pytest.raises(UserError, match="HF_HOME"), explain_hub_errors("hf-hub:org/name"):
            raise OSError(number, "denied")
    with pytest.raises(UserError, match="the Hub cannot be reached"), explain_hub_errors("eva:x"):
        raise OSError("as transformers wraps it") from ConnectionError("nothing there")
    with pytest.raises(FileNotFoundError), explain_hub_errors("hf-hub:org/name"):
        raise FileNotFoundError(errno.ENOENT, "a bug in this package")

import hashlib
import json
import os
import subprocess
import sys

import pytest
import timm
from helpers import save_tiny_model
from hub_server import serve_hub
from huggingface_hub import constants
from safetensors.torch import save_file

from g2l_plugin.encoders.hub import download_model
from g2l_plugin.errors import UserError

COMMIT = "0123456789abcdef" * 2 + "01234567"

TOKEN = "hf_that_nobody_may_read"

LOAD = """
import json, sys
from g2l_plugin import UserError, load_encoder
for line in sys.stdin:
    source, revision = json.loads(line)
    try:
        print(json.dumps(vars(load_encoder(source, revision).provenance)))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
"""


def load(tmp_path, *requests, **environment):
    """Loads each (source, revision) with the real clients; a provenance or an error each."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": TOKEN,
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-c", LOAD],
        input="\n".join(map(json.dumps, requests)),
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_model_is_loaded_from_the_hub_then_from_the_cache(tmp_path):
    repo = save_tiny_model(tmp_path / "repo")
    pickled = save_tiny_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    timms_own = tmp_path / "timm" / "model.safetensors"
    timms_own.parent.mkdir()
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), timms_own)
    repos = {
        "org/tiny": repo,
        "bioptimus/H-optimus-0": repo,
        "org/pickled": pickled,
        "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": timms_own.parent,
    }
    with serve_hub(repos, gated={"bioptimus/H-optimus-0"}, commit=COMMIT) as url:
        main, pinned, inline, gated, missing, revision, no_safetensors, timms, misnamed = load(
            tmp_path,
            ("hf-hub:org/tiny", None),
            ("hf-hub:org/tiny", COMMIT),
            (f"hf-hub:org/tiny@{COMMIT}", None),
            ("hf-hub:bioptimus/H-optimus-0", None),
            ("hf-hub:org/nothing", None),
            ("hf-hub:org/tiny", "v9"),
            ("hf-hub:org/pickled", None),
            ("timm:vit_tiny_patch16_224", None),
            ("hf-hub:one/too/many", None),
            HF_ENDPOINT=url,
        )
    assert main == pinned == inline
    assert main["revision"] == COMMIT
    assert main["source"] == "hf-hub:org/tiny"
    assert (main["file"], len(main["sha256"])) == ("model.safetensors", 64)
    for part in (
        "No access to bioptimus/H-optimus-0",
        f"Ask for access at {url}/bioptimus/H-optimus-0",
        "hf auth login",
        "TEACHER=hf-hub:1aurent/vit_giant_patch14_reg4_224.h-optimus-v0",
    ):
        assert part in gated["error"]
    assert "no model org/nothing" in missing["error"]
    assert "no revision 'v9'" in revision["error"]
    assert "safetensors only" in no_safetensors["error"]

    assert (timms["revision"], timms["file"]) == (COMMIT, "model.safetensors")
    assert timms["sha256"] == hashlib.sha256(timms_own.read_bytes()).hexdigest()
    assert "Expected hf-hub:org/name" in misnamed["error"]

    offline, absent = load(
        tmp_path, ("hf-hub:org/tiny", None), ("hf-hub:org/other", None), HF_HUB_OFFLINE="1"
    )
    assert offline == main
    assert "not in the local cache" in absent["error"]

    # The server is gone: the cache still serves, and what it lacks is told at once.
    unreachable, gone = load(
        tmp_path,
        ("hf-hub:org/tiny", None),
        ("hf-hub:bioptimus/H-optimus-0", None),
        HF_ENDPOINT=url,
    )
    assert unreachable == main
    assert "the Hub cannot be reached" in gone["error"]
    assert "Ask for access at" in gone["error"]


def test_a_hub_that_is_down_is_one_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub({"org/tiny": tmp_path}, down={"org/tiny"}) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        with pytest.raises(
            UserError, match="org/tiny is not in the local cache, and the Hub cannot"
        ):
            download_model("org/tiny", None, ["config.json"])

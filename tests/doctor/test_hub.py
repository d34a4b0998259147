import json
import os
import subprocess

import fork_server
import pytest
from helpers import save_tiny_model
from hub_server import COMMIT, serve_hub

from g2l_plugin.doctor.hub import Account, check_local, judge_account
from g2l_plugin.planning.settings import Model

TOKEN = "hf_that_nobody_may_read"
TEACHER, STUDENT = "bioptimus/H-optimus-0", "org/open"

CLIENT = """
import json, os, sys
from g2l_plugin.doctor.hub import check_hub
from g2l_plugin.planning.settings import read_settings
for line in sys.stdin:
    os.environ.update(json.loads(line))
    found = check_hub(read_settings("g2l_breast"))
    print(json.dumps([[f.mark, f.fact, f.advice] for f in found]), flush=True)
"""


@pytest.fixture
def connect(tmp_path):
    """Starts a process with the real client; returns a function that asks it with variables."""
    log = (tmp_path / "client.log").open("w+")
    started = []

    def start(**environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        clean |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        (script := tmp_path / "client.py").write_text(CLIENT)
        process = subprocess.Popen([fork_server.command("python"), script], env=clean, **pipes)
        started.append(process)

        def check(**variables):
            print(json.dumps(variables), file=process.stdin, flush=True)
            answer = process.stdout.readline()
            assert answer, (tmp_path / "client.log").read_text()
            assert TOKEN not in answer
            return json.loads(answer)

        return check

    yield start
    for process in started:
        process.communicate(timeout=60)
    log.seek(0)
    assert TOKEN not in log.read()
    log.close()


def test_the_hub_says_what_a_token_opens(tmp_path, connect):
    repo = save_tiny_model(tmp_path / "repo")
    with serve_hub({TEACHER: repo, STUDENT: repo}) as hub:
        hub.gated = {TEACHER: set()}
        check = connect(HF_ENDPOINT=hub.url, STUDENT=f"hf-hub:{STUDENT}")

        account, teacher, student = check(HF_TOKEN="")
        assert account[:2] == [
            "ok",
            "The Hub answers; no token is set, which is enough for open models.",
        ]
        assert teacher[0] == "problem" and "is gated, and you are not logged in" in teacher[1]
        for part in (
            f"Ask for access at {hub.url}/{TEACHER}",
            "hf auth login",
            "TEACHER=hf-hub:1aurent/vit_giant_patch14_reg4_224.h-optimus-v0",
        ):
            assert part in teacher[2]
        assert student[0] == "ok" and f"STUDENT=hf-hub:{STUDENT} is open to you" in student[1]

        account, teacher, student = check(HF_TOKEN=TOKEN)
        assert account[:2] == ["ok", "Logged in to the Hub, as somebody."]
        assert teacher[0] == "problem" and "your token has no access to it" in teacher[1]
        assert student[0] == "ok"

        hub.gated = {TEACHER: {TOKEN}}
        account, teacher, student = check(HF_TOKEN=TOKEN)
        assert [account[0], teacher[0], student[0]] == ["ok"] * 3
        assert "4.5 GB" in teacher[1]

        missing = check(STUDENT="hf-hub:org/nothing")[-1]
        assert missing[0] == "problem" and "no model org/nothing" in missing[1]
        assert check(STUDENT="hf-hub:one/too/many")[-1][0] == "problem"
        hub.busy = 100
        assert [mark for mark, *_ in check(STUDENT=f"hf-hub:{STUDENT}")] == ["ok"] + ["warning"] * 2
        hub.busy = 0

        hub.expired = {TOKEN}
        (rejected,) = check(HF_TOKEN=TOKEN)
        assert rejected[0] == "problem" and "rejects your token" in rejected[1]
        assert "hf auth login" in rejected[2]
        hub.expired = set()
        (typed,) = check(HF_TOKEN="hf_\u00e9")
        assert typed[0] == "problem" and "characters that no token has" in typed[1]

    account, teacher, student = check(HF_TOKEN=TOKEN)
    assert account[0] == "warning" and f"({hub.url}) cannot be reached" in account[1]
    assert teacher[0] == student[0] == "problem"
    assert "not in the local cache, and the Hub cannot be reached" in teacher[1]

    cached = tmp_path / "hf" / "hub" / f"models--{TEACHER.replace('/', '--')}"
    for folder, file in ((f"snapshots/{COMMIT}", "model.safetensors"), ("refs", "main")):
        (cached / folder).mkdir(parents=True)
        (cached / folder / file).write_text(COMMIT)
    account, teacher, student = check()
    assert teacher[:2] == ["ok", f"TEACHER=hf-hub:{TEACHER} is in the local cache."]
    assert student[0] == "problem"


def test_a_proxy_that_the_client_cannot_use_is_told():
    error = ImportError("Using SOCKS proxy, but the 'socksio' package is not installed")
    finding = judge_account(Account("unreachable", error=error))
    assert finding.mark == "warning" and "proxy" in finding.fact
    assert "httpx[socks]" in finding.advice


@pytest.mark.parametrize(
    ("source", "mark", "expected"),
    [
        ("H-optimus-0", "problem", "TEACHER=hf-hub:bioptimus/H-optimus-0"),
        ("org/name", "problem", "TEACHER=hf-hub:org/name"),
        ("a name of nothing", "problem", "g2l models"),
        ("scratch:vith14", "problem", "g2l models"),
        ("scratch:vits14", "ok", "needs no download"),
        ("demo:teacher", "ok", "has its files"),
        ("timm:vit_tiny_patch16_224", "ok", "not looked into"),
    ],
)
def test_a_model_that_is_not_on_the_hub_is_judged_by_its_source(source, mark, expected):
    finding = check_local(Model("TEACHER", source))
    assert finding.mark == mark and expected in f"{finding.fact} {finding.advice}"


def test_a_local_model_needs_its_files(tmp_path):
    model = Model("STUDENT", f"local-dir:{tmp_path / 'student'}")
    finding = check_local(model)
    assert finding.mark == "problem" and "config.json" in f"{finding.fact} {finding.advice}"
    save_tiny_model(tmp_path / "student")
    assert check_local(model).mark == "ok"

"""What `forked.py` says of the commands of the tests; a server that fails would only be slow."""

import json
import os
import subprocess
import sys

import fork_server
import forked
import pytest

pytestmark = pytest.mark.skipif(forked.FOLDER not in os.environ, reason="commands are not forked")

SCRIPT = """
import json, os, signal, sys
if sys.argv[1:]:
    os.kill(os.getpid(), int(sys.argv[1]))
imported = [name for name in ("torch", "transformers", "eva") if name in sys.modules]
print(json.dumps([imported, os.getcwd(), os.environ.get("HF_HOME"), sys.stdin.read()]))
sys.exit("no more")
"""


@pytest.mark.parametrize(
    ("variables", "imported"),
    [
        ({"HF_HUB_OFFLINE": "1"}, ["torch", "transformers", "eva"]),
        ({"HF_HUB_OFFLINE": "1", "HF_HOME": "elsewhere"}, ["torch"]),
        ({"HF_HUB_OFFLINE": "1", "G2L_PLUGIN_AUTOLOAD": "0"}, []),
    ],
)
def test_a_command_is_as_in_a_process_of_its_own(tmp_path, variables, imported):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [fork_server.command("python"), tmp_path / "script.py"]
    options = {"cwd": tmp_path, "env": os.environ | variables, "text": True, "input": "said"}
    ended = subprocess.run(words, capture_output=True, **options)
    home = variables.get("HF_HOME", os.environ.get("HF_HOME"))
    assert json.loads(ended.stdout) == [imported, str(tmp_path), home, "said"]
    assert (ended.returncode, ended.stderr) == (1, "no more\n")
    for number in (9, 15):
        assert subprocess.run([*words, str(number)], **options).returncode == -number


def test_the_real_commands_are_those_beside_python():
    assert forked.real("python") == sys.executable
    assert os.access(forked.real("eva"), os.X_OK) and os.access(forked.real("g2l"), os.X_OK)

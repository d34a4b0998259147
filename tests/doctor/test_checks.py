import pytest
from helpers import run_g2l

from g2l_plugin import cli
from g2l_plugin.doctor import checks
from g2l_plugin.doctor.finding import ok


def works(settings):
    return [ok("This works.")]


def breaks(settings):
    raise OSError("no disk\nat all")


@pytest.fixture
def use(monkeypatch):
    def replace(*names):
        table = [(name, name if ":" in name else f"{__name__}:{name}") for name in names]
        monkeypatch.setattr(checks, "CHECKS", table)

    monkeypatch.setattr(checks.pkgutil, "resolve_name", _resolve(checks.pkgutil.resolve_name))
    return replace


def _resolve(resolve):
    ours = {f"{__name__}:{function.__name__}": function for function in (works, breaks)}
    return lambda name: ours[name] if name in ours else resolve(name)


def test_a_check_that_fails_is_a_line_and_the_others_run(use, capsys):
    use("breaks", "g2l_plugin.doctor.nowhere:check", "works")
    assert cli.main(["doctor"]) == 0
    broken, missing, fine = capsys.readouterr().out.splitlines()[:3]
    assert "could not be checked: OSError: no disk at all." in broken
    assert "ModuleNotFoundError" in missing and missing.startswith("warning")
    assert fine.split() == ["ok", "works", "This", "works."]


def test_wrong_settings_are_a_problem_in_one_line(use, monkeypatch, capsys):
    monkeypatch.setenv("BATCH_SIZE", "many")
    assert cli.main(["doctor"]) == 1
    line, _, summary = capsys.readouterr().out.splitlines()
    assert line.startswith("problem") and "BATCH_SIZE is 'many'" in line
    assert summary.startswith("1 problem, 0 warnings. Solve the problems, then: eva fit --config")
    assert cli.main(["doctor", "--config", "g2l_lnug"]) == 1
    assert "no config 'g2l_lnug'" in capsys.readouterr().out


def test_every_check_of_the_table_is_there():
    for _, name in checks.CHECKS:
        assert callable(checks.pkgutil.resolve_name(name))


def test_the_command_says_all_of_this_machine_offline(tmp_path, write_slide):
    write_slide(tmp_path / "slides" / "1.tiff", 256)
    result = run_g2l(
        "doctor",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hf"),
        HF_TOKEN="hf_that_nobody_may_read",
        SLIDES_ROOT=str(tmp_path / "slides"),
        OUTPUT_ROOT=str(tmp_path / "logs"),
        INDEX_ROOT=str(tmp_path / "index"),
        STUDENT="scratch:vits14",
    )
    *lines, _, summary = result.stdout.splitlines()
    assert {line[9:18].strip() for line in lines} >= {title for title, _ in checks.CHECKS}
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "problem"}
    assert not [line for line in lines if "could not be checked" in line]
    said = "\n".join(lines)
    assert "1 slide in" in said and "HF_HUB_OFFLINE is set" in said
    assert "H-optimus-0 is not in the local cache" in said and "scratch:vits14 needs no" in said
    assert result.returncode == 1 and "problem" in summary
    assert "hf_that" not in result.stdout + result.stderr
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["slides"]

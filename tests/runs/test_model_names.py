import pytest

from g2l_plugin import UserError
from g2l_plugin.runs.model_names import find_source


@pytest.fixture
def run(tmp_path):
    student = tmp_path / "session" / "run_0" / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    return student.parent


@pytest.mark.parametrize(
    "source",
    [
        "hf-hub:org/name@v1",
        "local-dir:somewhere",
        "timm:vit_small",
        "eva:pathology/x",
        "demo:teacher",
    ],
)
def test_a_source_is_itself(source):
    assert find_source(source) == source


def test_a_student_a_run_and_a_session_name_the_same_student(run):
    expected = f"local-dir:{run / 'student'}"
    names = [run / "student", run, run.parent]
    assert [find_source(str(name)) for name in names] == [expected] * 3


def test_a_known_name_is_found_in_any_case():
    assert find_source("VIRCHOW2") == "hf-hub:paige-ai/Virchow2"


def test_a_folder_goes_before_a_repository_of_its_name(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    assert find_source("session/run_0") == "local-dir:session/run_0/student"
    assert find_source("session/elsewhere") == "hf-hub:session/elsewhere"


def test_what_names_no_model_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no student.*a run that has ended"):
        find_source(str(tmp_path))
    with pytest.raises(UserError, match="Unknown model 'nothing'.*g2l models"):
        find_source("nothing")
    with pytest.raises(UserError, match="Unknown model '/no/such/folder'"):
        find_source("/no/such/folder")

"""The notebook, cell by cell in a kernel of its own: fewer steps than a user's, to save time."""

import nbformat
import pytest
from helpers import ROOT

NOTEBOOK = ROOT / "docs" / "tiles_to_student.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_tiles_to_a_student(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("MAX_STEPS", "30")  # after 10 it is further from its teacher than before
    monkeypatch.setenv("MAX_TILES", "100")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    for name in ("teacher", "student before", "student after"):
        assert f"{name:15s} {{'KNNAccuracy': " in printed
    assert "torch.Size([2, 96])" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "data" / "g2l_demo").is_dir()


def test_the_stored_notebook_has_run_to_its_end_and_holds_no_progress():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert len(NOTEBOOK.read_bytes()) < 400_000

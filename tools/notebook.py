"""Executes the notebook of the documentation and stores its results, without progress bars.

python tools/notebook.py docs/tiles_to_student.ipynb
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Runs the command."""
    path = Path(sys.argv[1])
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=1800, resources=resources).execute()
        for cell in notebook.cells:
            cell.metadata = {}  # when each cell ran
            if cell.cell_type == "code":
                cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
                for part in cell.outputs:
                    if "text" in part:
                        part["text"] = part["text"].replace(folder, ".")
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()

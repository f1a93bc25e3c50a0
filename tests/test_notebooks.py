"""Every notebook runs from the first cell to the last, and is kept with its outputs."""

import base64
import re
from pathlib import Path

import nbformat
import pytest

from docs.run_notebooks import MAX_PICTURE_BYTES, made_by

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def in_the_repository(monkeypatch):
    """What the notebook's own process reads when it starts."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, in_the_repository):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_of_this_version_and_this_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    again = f"python docs/run_notebooks.py {path.stem}"
    assert notebook.metadata.get("nutfree") == made_by(notebook), again
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = [
        o.data["image/png"] for o in outputs if "image/png" in o.get("data", ())
    ]
    assert pictures
    assert max(len(base64.b64decode(p)) for p in pictures) <= MAX_PICTURE_BYTES
    assert str(ROOT) not in path.read_text()
    assert "never moved" not in path.read_text()  # what a run that failed says


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_equations_have_single_backslashes(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for equation in re.findall(r"\$[^$]+\$", text):
        assert "\\\\" not in equation

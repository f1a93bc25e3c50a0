"""Execute notebooks and keep them with their outputs: `make notebooks`.

Each notes the version of nutfree that made its outputs, which a test compares with the
current one.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import nutfree

ROOT = Path(__file__).parents[1]


def execute(path: Path) -> None:
    """Run a notebook from the first cell to the last, and store it."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=3600, resources=resources).execute()
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)  # when each cell ran
    notebook.metadata["nutfree"] = nutfree.__version__
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    names = sys.argv[1:]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not names or path.stem in names:
            print(path.name, flush=True)
            execute(path)

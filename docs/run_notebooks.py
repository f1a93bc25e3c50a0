"""Execute notebooks and keep them with their outputs: `make notebooks`.

`python docs/run_notebooks.py NAME...` executes some of them. Each notes what made its
outputs, the version of nutfree and a digest of its code, which a test compares with the
current ones.
"""

import base64
import hashlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

import nutfree

ROOT = Path(__file__).parents[1]
MAX_PICTURE_BYTES = 100_000


def made_by(notebook: Any) -> dict[str, str]:
    """The version of nutfree and a digest of the code cells, in their order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    digest = hashlib.sha256("\0".join(code).encode()).hexdigest()
    return {"version": nutfree.__version__, "code": digest[:16]}


def small(picture: str) -> str:
    """A PNG in base 64, with 128 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(128).save(buffer, format="PNG", optimize=True)
    if len(buffer.getvalue()) > MAX_PICTURE_BYTES:
        raise SystemExit("A picture has more than 100 KB. Make the figure smaller.")
    return base64.b64encode(buffer.getvalue()).decode()


def tidy(output: Any) -> None:
    """Make pictures small, and leave out where on this machine the code ran."""
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = small(data["image/png"])
    if "text" in output:
        text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", output["text"])
        output["text"] = text.replace(f"{ROOT}/", "")


def execute(path: Path) -> None:
    """Run a notebook from the first cell to the last, and store it."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=3600, resources=resources).execute()
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)  # when each cell ran
        for output in cell.get("outputs", []):
            tidy(output)
    notebook.metadata["nutfree"] = made_by(notebook)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    names = sys.argv[1:]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not names or path.stem in names:
            print(path.name, flush=True)
            execute(path)

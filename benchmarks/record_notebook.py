"""Run the documentation's notebook and store its outputs: docs/notebooks/first-hour.ipynb.

    python benchmarks/record_notebook.py

The stored outputs are small and do not identify a machine: the working folder is written as ``.``, lines of text are
merged into one output, warnings of libraries are removed, and pictures have a palette.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path("docs/notebooks/first-hour.ipynb")
COLOURS = 64
WIDEST = 640


def small(picture: str) -> str:
    """A PNG in base64, limited in width and with a palette."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def tidied(outputs: list[Any], folder: str) -> list[Any]:
    """Outputs of a cell in the stored form.

    Args:
        outputs: the kernel's outputs
        folder: folder in which the notebook ran
    """
    kept: list[Any] = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr":
            continue
        text = output.get("text", "")
        if output.output_type == "display_data" and "image/png" not in data:
            text = data["text/plain"]
        if text:
            text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(folder, ".")
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += text
            else:
                kept.append(nbformat.v4.new_output("stream", name="stdout", text=text))
            continue
        if "image/png" in data:
            data["image/png"] = small(data["image/png"])
        kept.append(output)
    return kept


def tidy(notebook: Any, folder: str) -> None:
    """Tidy a notebook's outputs in place."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times at which each cell ran
        if cell.cell_type == "code":
            cell.outputs = tidied(cell.outputs, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notebook", type=Path, default=NOTEBOOK)
    path = parser.parse_args().notebook
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
        tidy(notebook, folder)
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

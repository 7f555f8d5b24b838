"""The documentation's notebook: every cell of it runs, and what is stored of it is fit to read."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "first-hour.ipynb"
SIZES = "n=120, image_size=96, max_epochs=6"
SMALL = "n=60, image_size=64, max_epochs=2, lr=3e-3"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in notebook.cells if cell.cell_type == "code" and SIZES in cell.source)
    training.source = training.source.replace(SIZES, SMALL)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    said = "".join(output.get("text", "") for output in outputs if output.get("name") == "stderr")
    assert "warn" not in re.sub(r".*IProgress not found.*", "", said).lower()  # that asks for ipywidgets
    tables = [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
    scores = next(text for text in tables if "dice_lesion" in text and "score" in text)
    assert "from" in scores
    assert (tmp_path / "mlruns" / "mlflow.db").is_file()


def test_what_is_stored_is_whole_small_and_names_no_machine() -> None:
    assert NOTEBOOK.stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "image/png" in str(cells)
    for cell in notebook.cells:
        assert not re.search(r"/(?:home|root|tmp|work|Users)/|sqlite:////", str(cell)), cell
    # pages and names that it speaks of
    for target in re.findall(r"\]\(([^)\s#]+)", "\n".join(cell.source for cell in notebook.cells)):
        assert (NOTEBOOK.parent / target).exists(), target

"""The notebook of the examples runs top to bottom, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "walkthrough.ipynb"


def test_it_is_kept_without_outputs() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert all(
        not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code"
    )


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path: Path) -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert "text/html" in shown[1][-1]["data"]  # the result
    assert "text/html" in shown[2][-1]["data"]  # the matrix
    assert "±" in shown[4][-1]["text"]
    assert "round 1:" in shown[6][-1]["text"]
    assert Path(shown[7][-1]["text"].strip()).is_file()

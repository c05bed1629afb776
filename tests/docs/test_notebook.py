"""The notebook of the tutorial, run as somebody would who opens it."""

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
PATH = ROOT / "docs" / "tutorial.ipynb"


def test_it_is_kept_without_what_it_said():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    assert not any(
        cell.outputs or cell.execution_count for cell in notebook.cells if cell.cell_type == "code"
    )


@pytest.mark.slow
def test_it_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir(mode=0o700)
    monkeypatch.setenv("FEDDAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(PATH.parent)}}
    )
    client.execute()
    said = ["".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells]
    first, answers, last = (text for text in said if text)
    assert "round 2/2" in first
    assert "low-resolution" in first
    assert all(branch in answers for branch in ("student", "local", "teacher"))
    assert "round 3/3" in last
    assert "3/3" in last.splitlines()[-2]
    (curves,) = (cell for cell in notebook.cells if "plt.plot" in cell.source)
    assert any("image/png" in out.get("data", {}) for out in curves.outputs)

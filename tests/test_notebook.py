"""The notebook in `examples/` runs from its first cell to its last."""

import json
from pathlib import Path

import pytest
from main_job import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]


@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = tmp_path / "examples"
    folder.mkdir()
    for name in ("data", "tiny-lm"):
        (folder / name).symlink_to(ROOT / "examples" / name)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    *_, shown, report = (cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code")
    assert shown[-1]["data"]["text/plain"].startswith("{'gsm8k': 30, 'gsm8k@Longest': 30")
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
    assert "report.html" in report[-1]["data"]["text/plain"]

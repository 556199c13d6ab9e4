"""Every notebook runs from top to bottom, shows pictures, leaves nothing behind, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all notebooks: they encode the same texts."""
    return tmp_path_factory.mktemp("home")


def test_outputs_are_stripped() -> None:
    assert len(NOTEBOOKS) == 7
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name


@pytest.mark.filterwarnings("default")  # the Jupyter machinery has deprecations of its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_runs(path: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    # the models are small: on a busy machine two threads wait for each other most of the time
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TEXT2SAM_HOME", str(home))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in each for each in data) >= 3
    assert not list(tmp_path.iterdir())

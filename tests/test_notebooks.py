"""Every notebook runs from top to bottom, shows pictures, leaves nothing behind, and is stored without outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One kernel in an empty folder, with one cache, for all notebooks: torch is imported once."""
    from jupyter_client.manager import KernelManager

    # the models are small: on a busy machine two threads wait for each other most of the time
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TEXT2SAM_HOME": str(tmp_path_factory.mktemp("home"))}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("folder")), env=environment)
    yield manager
    manager.shutdown_kernel(now=True)


def test_outputs_are_stripped() -> None:
    assert len(NOTEBOOKS) == 7
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name


@pytest.mark.filterwarnings("default")  # the Jupyter machinery has deprecations of its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_runs(path: Path, kernel: Any) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f\nimport os\nassert not os.listdir()"))
    notebook.cells.append(nbformat.v4.new_code_cell("import os\nassert not os.listdir()"))
    client = NotebookClient(notebook, kernel, timeout=240)
    client.execute()
    client.kc.stop_channels()
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in each for each in data) >= 3

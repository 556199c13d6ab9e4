"""Fixtures shared by the tests: where outside data lies, tiny models, drawn images."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from PIL import Image

_MOST_PIXELS = Image.MAX_IMAGE_PIXELS


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with parity/, weights/ and data/; tests that want it skip where it is absent."""
    folder = os.environ.get("TEXT2SAM_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TEXT2SAM_TEST_DATA does not name a folder with parity/, weights/ and data/")
    return Path(folder)


_HOMES = itertools.count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache or another test's; the folder is made by whoever writes there."""
    monkeypatch.setenv("TEXT2SAM_HOME", str(tmp_path_factory.getbasetemp() / "homes" / str(next(_HOMES))))
    monkeypatch.delenv("TEXT2SAM_OFFLINE", raising=False)


@pytest.fixture(autouse=True)
def _guard_against_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """labelme takes Pillow's guard away when it is imported."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", _MOST_PIXELS)

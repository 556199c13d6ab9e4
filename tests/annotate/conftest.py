"""Fixtures of the folder jobs' tests."""

from __future__ import annotations

import pytest

from text2sam.annotate import journal


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that was written, so the tests need not wait for the disk."""
    monkeypatch.setattr(journal, "SYNCHRONOUS", "OFF")

"""Fixtures of the folder jobs' tests."""

from __future__ import annotations

import pytest

from text2sam.annotate import journal


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is of no use against a killed process."""
    monkeypatch.setattr(journal, "SYNCHRONOUS", "OFF")

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from text2sam.errors import OutputError
from text2sam.tables import aligned, telling

LINES = [("what", "ours", "met"), ("a long one", "1", ""), ("b", "12345", "yes")]


def table(result: dict[str, Any]) -> str:
    return f"a table of {result['n']}"


def test_columns() -> None:
    assert aligned([("one",)]) == ["one"]
    assert aligned(LINES) == ["what        ours   met", "a long one  1", "b           12345  yes"]
    assert aligned(LINES, words=1) == ["what         ours  met", "a long one      1", "b           12345  yes"]
    assert aligned(LINES, words=0)[2] == "         b  12345  yes"


@pytest.mark.parametrize(("as_json", "printed"), [(False, "a table of 3\n"), (True, '{\n  "n": 3\n}\n')])
def test_told_on_paper_and_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool, printed: str) -> None:
    out = tmp_path / "new" / "found.json"
    with telling(table, out, as_json) as tell:
        tell({"n": 3})
        assert not out.exists()
        assert capsys.readouterr().out == ""
    assert json.loads(out.read_text()) == {"n": 3}
    assert capsys.readouterr().out == printed


def test_what_fails_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(ZeroDivisionError), telling(table, out, False) as tell:
        tell({"n": 1 / 0})
    with pytest.raises(ValueError, match="JSON"), telling(table, out, False) as tell:
        tell({"n": float("nan")})
    with pytest.raises(OutputError), telling(table, tmp_path, False):
        pytest.fail("measured although the file cannot be written")
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""

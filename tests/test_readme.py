"""The README's Python runs as it stands, offline, and names only what exists."""

from __future__ import annotations

import ast
import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from text2sam.files import write_png

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python(?P<tag>[^\n]*)\n(?P<code>.*?)^```", re.M | re.S)
MANUALS = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "text2sam").rglob("README.md")))]


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.demo import load_photos

    monkeypatch.chdir(tmp_path)
    for photo in load_photos():  # the pictures that "text2sam demo" leaves there
        if photo.name in ("chelsea", "coffee"):  # for the folder job
            write_png(tmp_path / "text2sam-demo" / photo.name / "image.png", photo.image)
    names: dict[str, Any] = {}
    blocks = [m for m in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8")) if "no-run" not in m["tag"]]
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block["code"], "README.md", "exec"), names)
    assert names["result"].present
    assert names["model"].segment_many(None, ["cat", "banana"])[1].box is None
    for mine in (names["Objects"](points=names["hottest"]), names["OneClick"]()):
        assert names["model"].segment(text="cat", strategy=mine).present
        assert not names["model"].segment(text="banana", strategy=mine).present
    own = names["TextPromptedSAM"](names["Square"](), names["Corner"]()).segment(names["chelsea"](), "cat")
    assert own.box.tolist() == [0, 0, 20, 20]
    assert (tmp_path / "demo-dataset" / "annotations.json").is_file()


@pytest.mark.parametrize("manual", MANUALS, ids=str)
def test_every_name_that_is_imported_exists(manual: Path) -> None:
    text = (ROOT / manual).read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        for node in ast.walk(ast.parse(block["code"])):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("text2sam"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
    for name in re.findall(r"`(text2sam(?:\.\w+)+)", text):
        if name != "text2sam.commands":  # the group of entry points
            resolve(name)


@pytest.mark.parametrize("manual", MANUALS, ids=str)
def test_every_file_that_is_linked_exists(manual: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", (ROOT / manual).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)\)", prose):
        if "://" not in target:
            assert (ROOT / manual.parent / target).exists(), target


def resolve(name: str) -> Any:
    """The module or attribute of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        with warnings.catch_warnings():
            try:
                found: Any = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)

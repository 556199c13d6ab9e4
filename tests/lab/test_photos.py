"""The real-photo check with a SAM that draws, on label files of a few pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from text2sam.errors import InputError, OutputError
from text2sam.lab.datasets import open_dataset
from text2sam.lab.datasets.names import CAMVID
from text2sam.lab.experiments import photos
from text2sam.lab.experiments.photos import (
    Settings,
    Strength,
    Target,
    main_command,
    make_map,
    measure,
    patch_means,
    peak_point,
    split_photos,
    summarize,
    table,
    targets,
)
from text2sam.recipes.choose import Choice, MaskRule
from text2sam.sam.build import build_predictor
from text2sam.types import SimilarityMap

CLASSES = CAMVID[:11]
CAR, SKY, TREE, ROAD, SIGN = (CLASSES.index(name) for name in ("car", "sky", "tree", "road", "sign"))
EXACT = Strength("exact", 0.0, 0.0, 0.0)
TINY = Settings(photos=2, stuff=0, grid=(16, 16), strengths=(EXACT, Strength("noisy", 0.5, 1.0, 0.1)), resamples=50)


class Drawing:
    """Answers with half of all that has the label under the last positive point, with all of it, and with everything; likes
    half best."""

    def __init__(self, folder: Path) -> None:
        self.labels = {read_label_key(p): np.array(Image.open(p)) for p in sorted((folder / "labels").glob("*.png"))}
        self.current: NDArray[np.uint8] | None = None
        self.encoded = 0
        self.prompts: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.encoded += 1
        self.current = self.labels[int(image[0, 0, 0])]

    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Any:
        assert self.current is not None
        assert multimask_output
        self.prompts.append((point_coords, point_labels))
        x, y = point_coords[point_labels == 1][-1].astype(int)
        whole = self.current == self.current[y, x]
        half = whole.copy()
        rows = np.flatnonzero(half.any(1))
        half[rows[len(rows) // 2] :] = False
        masks = np.stack([half, whole, np.ones_like(whole)])
        return masks, np.array([0.9, 0.7, 0.5], np.float32), np.zeros((3, 4, 4), np.float32)


def read_label_key(path: Path) -> int:
    return int(np.array(Image.open(path.parent.parent / "images" / path.name))[0, 0, 0])


def take(index: int) -> MaskRule:
    return lambda masks, scores, similarity, points, logits: Choice(index, "told so")


def scene() -> NDArray[np.uint8]:
    """(40, 60): sky above road, a car of 15 x 24."""
    labels = np.full((40, 60), SKY, np.uint8)
    labels[20:] = ROAD
    labels[20:35, 15:39] = CAR
    return labels


def folder_of(path: Path, count: int = 4) -> Path:
    (path / "images").mkdir(parents=True)
    (path / "labels").mkdir()
    for i in range(count):
        labels = np.roll(scene(), 3 * i, axis=1)
        Image.fromarray(labels).save(path / "labels" / f"{i}.png")
        Image.fromarray(np.full((40, 60, 3), 10 + i, np.uint8)).save(path / "images" / f"{i}.png")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "all"}, "split must be one of tune, report, not 'all'"),
        ({"photos": 0}, "photos must be at least 1, not 0"),
        ({"resamples": 0}, "resamples must be at least 1, not 0"),
        ({"strengths": ()}, "strengths"),
        ({"strengths": (EXACT, EXACT)}, "strengths must have different names"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Settings(), **change)


def names(folder: Path, split: str, limit: int) -> list[str]:
    dataset = open_dataset("camvid", folder)
    return [dataset.ids[place] for place in split_photos(dataset, split, limit)]


def test_halves_are_disjoint_whole_and_evenly_thinned(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "nine", 9)
    tune, report = names(folder, "tune", 99), names(folder, "report", 99)
    assert tune == ["0", "2", "4", "6", "8"]
    assert sorted(tune + report) == [str(i) for i in range(9)]
    assert names(folder, "tune", 2) == ["0", "4"]
    assert names(folder, "report", 2) == ["1", "5"]
    with pytest.raises(InputError, match="no photos for the split 'report'"):
        names(folder_of(tmp_path / "single", 1), "report", 3)


def test_photo_and_labels_of_different_size(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "images" / "1.png")
    with pytest.raises(InputError, match=r"1\.png"):
        measure(Drawing(folder), folder, TINY)


def test_nothing_of_the_right_size() -> None:
    assert targets(np.full((20, 20), 255, np.int32), CLASSES) == []
    assert targets(np.full((20, 20), CAR, np.int32), CLASSES) == []
    labels = np.full((50, 50), 255, np.int32)
    labels[3, 3:7] = CAR
    assert targets(labels, CLASSES) == []
    labels[3, 7] = CAR
    assert [t.mask.sum() for t in targets(labels, CLASSES)] == [5]


def test_targets_are_components_largest_of_each_class_first() -> None:
    labels = np.full((60, 60), 255, np.int32)
    labels[0:5, 0:5] = CAR
    labels[10:20, 0:10] = CAR
    labels[25:30, 0:8] = CAR
    labels[0:4, 20:24] = SIGN
    labels[40:50, 0:20] = TREE
    labels[40:45, 30:40] = SKY
    labels[50:56, 30:40] = ROAD
    found = targets(labels, CLASSES, replace(Settings(), things=3, stuff=2))
    assert [(t.name, int(t.mask.sum())) for t in found] == [
        ("car", 100),
        ("sign", 16),
        ("car", 40),
        ("tree", 200),
        ("road", 60),
    ]
    assert (found[0].mask | found[0].others).sum() == 165
    assert not (found[0].mask & found[0].others).any()
    assert [t.name for t in targets(labels, CLASSES, replace(Settings(), things=0, stuff=2), turn=4)] == ["sky", "tree"]


def test_pixels_that_touch_by_a_corner_are_one_component() -> None:
    labels = np.full((20, 20), 255, np.int32)
    labels[2:4, 2:4] = labels[4:6, 4:6] = CAR
    assert [int(t.mask.sum()) for t in targets(labels, CLASSES)] == [8]


def test_patch_means_of_whole_patches() -> None:
    mask = np.random.default_rng(0).random((24, 32)) > 0.5
    blocks = mask.reshape(6, 4, 4, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(patch_means(mask, (6, 4)), blocks, atol=1e-12)


def test_patch_means_of_split_pixels() -> None:
    mask = np.random.default_rng(0).random((10, 7)) > 0.5
    fine = mask.repeat(4, axis=0).repeat(3, axis=1)  # 40 x 21 is whole in 8 x 3 patches
    np.testing.assert_allclose(patch_means(mask, (8, 3)), fine.reshape(8, 5, 3, 7).mean(axis=(1, 3)), atol=1e-12)


def square(grid: int, top: int, left: int, size: int, others: NDArray[np.bool_] | None = None) -> Target:
    mask = np.zeros((grid, grid), bool)
    mask[top : top + size, left : left + size] = True
    return Target("car", mask, np.zeros_like(mask) if others is None else others)


def test_map_without_flaws_is_the_mask() -> None:
    target = square(16, 4, 6, 3)
    made = make_map(target, EXACT, (16, 16), np.random.default_rng(0))
    np.testing.assert_allclose(made.values, target.mask, atol=1e-6)
    assert made.text == "car"


def test_map_is_blurred_moved_and_noisy_as_told() -> None:
    target, grid = square(33, 14, 14, 5), (33, 33)
    rng = np.random.default_rng
    y, x = np.mgrid[:33, :33]

    def moments(values: NDArray[np.float32]) -> tuple[float, float, float]:
        w = values / values.sum()
        my, mx = (w * y).sum(), (w * x).sum()
        return float(my), float(mx), float((w * ((y - my) ** 2 + (x - mx) ** 2)).sum() / 2)

    plain = moments(make_map(target, EXACT, grid, rng(0)).values)
    blurred = moments(make_map(target, Strength("", 2.0, 0.0, 0.0), grid, rng(0)).values)
    assert blurred[2] - plain[2] == pytest.approx(4.0, rel=0.02)
    for seed in range(4):
        moved = moments(make_map(target, Strength("", 0.0, 3.0, 0.0), grid, rng(seed)).values)
        assert np.hypot(moved[0] - plain[0], moved[1] - plain[1]) == pytest.approx(3.0, rel=1e-3)
    noise = make_map(target, Strength("", 0.0, 0.0, 0.2), grid, rng(0)).values - target.mask
    assert noise.std() == pytest.approx(0.2, rel=0.1)
    strong = photos.STRENGTHS[2]
    once, again, other = (make_map(target, strong, grid, rng(seed)).values.tolist() for seed in (3, 3, 4))
    assert once == again != other


def test_noise_follows_the_range_of_the_map() -> None:
    target = Target("car", square(16, 4, 4, 1).mask, np.zeros((16, 16), bool))
    strength = Strength("", 1.5, 0.0, 0.5)
    clean = make_map(target, replace(strength, noise=0.0), (16, 16), np.random.default_rng(0)).values
    noisy = make_map(target, strength, (16, 16), np.random.default_rng(0)).values
    assert (noisy - clean).std() == pytest.approx(0.5 * np.ptp(clean), rel=0.1)


@pytest.mark.parametrize("corner", [(0, 0), (0, 15), (15, 0), (15, 15)])
def test_a_shift_never_leaves_the_picture(corner: tuple[int, int]) -> None:
    target = square(16, *corner, 1)
    for seed in range(8):
        made = make_map(target, Strength("", 0.0, 2.0, 0.0), (16, 16), np.random.default_rng(seed))
        assert made.values.max() >= 0.25  # at worst shared out among four patches
        x, y = made.peak((16, 16))
        assert np.hypot(x - 0.5 - corner[1], y - 0.5 - corner[0]) <= 3


def test_others_of_the_class_are_as_hot_as_told() -> None:
    others = square(16, 10, 10, 3).mask
    made = make_map(square(16, 2, 2, 3, others), replace(EXACT, others=0.8), (16, 16), np.random.default_rng(0)).values
    assert made[11, 11] == pytest.approx(0.8)
    assert made[3, 3] == pytest.approx(1.0)
    assert make_map(square(16, 2, 2, 3, others), EXACT, (16, 16), np.random.default_rng(0)).values[11, 11] == 0


def test_peak_point() -> None:
    assert len(peak_point(SimilarityMap(np.ones((3, 3), np.float32)), (30, 30))) == 0
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 1
    points = peak_point(SimilarityMap(values), (40, 80))
    assert points.coords.tolist() == [[50.0, 15.0]]
    assert points.labels.tolist() == [1]


def test_a_photo_is_encoded_once_and_every_prompt_is_asked(folder: Path) -> None:
    predictor = Drawing(folder)
    cases = measure(predictor, folder, TINY)["cases"]
    assert predictor.encoded == 2
    assert {c["photo"] for c in cases} == {"1.png", "3.png"}
    assert {(c["class"], c["number"]) for c in cases} == {("car", 0)}  # TINY wants no stuff
    assert len(cases) == len(predictor.prompts) == 2 * 2 * 2
    for case in cases:
        if case["strength"] == "exact":
            assert case["ious"] == pytest.approx([7 / 15, 1.0, 360 / 2400])


def test_a_map_does_not_depend_on_the_other_photos(folder: Path) -> None:
    def maps(settings: Settings) -> list[list[float]]:
        seen: list[list[float]] = []

        def rule(masks: Any, scores: Any, similarity: SimilarityMap, points: Any, logits: Any) -> Choice:
            seen.append(similarity.values.ravel().tolist())
            return Choice(0, "")

        measure(Drawing(folder), folder, settings, {"spy": rule})
        return seen

    both, alone = maps(TINY), maps(replace(TINY, photos=1))
    assert alone == both[: len(alone)]
    assert maps(replace(TINY, seed=1)) != both


def test_measure_tells_score_rule_and_best(folder: Path) -> None:
    rules = {"score": take(0), "best": take(1), "worst": take(2)}
    result = measure(Drawing(folder), folder, replace(TINY, strengths=(EXACT,)), rules)
    overall = {row["rule"]: row for row in result["rows"] if row["points"] == row["strength"] == "all"}
    assert [overall[name]["closed"] for name in rules] == pytest.approx([0.0, 1.0, (0.15 - 7 / 15) / (8 / 15)])
    assert [overall[name]["met"] for name in rules] == [False, True, False]
    assert [overall[name]["right"] for name in rules] == [0.0, 1.0, 0.0]
    assert [row["score"] for row in result["rows"]] == pytest.approx([7 / 15] * len(result["rows"]))
    assert result["photos"] == ["1", "3"]
    assert len(result["rows"]) == 3 * 3 * 2
    json.dumps(result, allow_nan=False)


def test_no_target_anywhere(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no component of a class covers 39\.0% to 40% of its photo"):
        measure(Drawing(folder), folder, replace(TINY, smallest=0.39), {})


def test_the_default_rule_is_that_of_the_objects_recipe(folder: Path) -> None:
    result = measure(Drawing(folder), folder, replace(TINY, strengths=(EXACT,)))
    assert {row["rule"] for row in result["rows"]} == {"objects"}
    assert all(row["closed"] == pytest.approx(1.0) for row in result["rows"])


def case(photo: str, ious: list[float], taken: int, strength: str = "mild", points: str = "peak") -> dict[str, Any]:
    return {
        "photo": photo,
        "ious": ious,
        "by_score": 0,
        "taken": {"ours": taken},
        "strength": strength,
        "points": points,
    }


def test_figures_worked_out_by_hand() -> None:
    cases = [case("a", [0.2, 0.6, 0.1], 1), case("a", [0.4, 0.3, 0.2], 0), case("b", [0.3, 0.5, 0.9], 1)]
    row = summarize(cases, ["ours"])[0]
    assert (row["score"], row["ours"], row["best"]) == pytest.approx((0.3, 0.5, 1.9 / 3))
    assert row["closed"] == pytest.approx(0.2 / (1.9 / 3 - 0.3))
    assert row["met"]
    assert (row["cases"], row["photos"]) == (3, 2)
    assert (row["right"], row["score_right"]) == pytest.approx((2 / 3, 1 / 3))
    # with two photos the bootstrap gives a alone, b alone or both
    assert (row["ours_low"], row["ours_high"]) == pytest.approx((0.5, 0.5))
    assert (row["score_low"], row["score_high"]) == pytest.approx((0.3, 0.3))
    assert (row["best_low"], row["best_high"]) == pytest.approx((0.5, 0.9))
    assert (row["closed_low"], row["closed_high"]) == pytest.approx((0.2 / 0.6, 1.0))


def test_rows_by_points_and_strength() -> None:
    cases = [case("a", [0.2, 0.6], 1, s, p) for p in ("paper", "peak") for s in ("mild", "strong")]
    rows = summarize(cases, ["ours"])
    assert [(r["points"], r["strength"], r["cases"]) for r in rows] == [
        *(("paper", "mild", 1), ("paper", "strong", 1), ("paper", "all", 2)),
        *(("peak", "mild", 1), ("peak", "strong", 1), ("peak", "all", 2)),
        *(("all", "mild", 2), ("all", "strong", 2), ("all", "all", 4)),
    ]


def test_nothing_to_close() -> None:
    row = summarize([case("a", [0.7, 0.6], 1)], ["ours"])[0]
    assert row["closed"] is row["closed_low"] is row["met"] is None
    assert row["ours"] == pytest.approx(0.6)


def test_the_bootstrap_narrows_with_more_photos() -> None:
    rng = np.random.default_rng(0)
    many = [case(str(i), [float(v)], 0) for i, v in enumerate(rng.random(200))]
    few, all_ = (summarize(c, ["ours"])[0] for c in (many[:10], many))
    assert few["ours_high"] - few["ours_low"] > 3 * (all_["ours_high"] - all_["ours_low"])
    assert all_["ours_low"] < all_["ours"] < all_["ours_high"]
    # 2 x 1.96 standard errors
    expected = 2 * 1.96 * np.std([c["ious"][0] for c in many]) / np.sqrt(200)
    assert all_["ours_high"] - all_["ours_low"] == pytest.approx(expected, rel=0.1)


def test_table(folder: Path) -> None:
    result = measure(Drawing(folder), folder, replace(TINY, strengths=(EXACT,)), {"ours": take(1)})
    lines = table(result).splitlines()
    assert lines[0].split()[:4] == ["rule", "points", "strength", "cases"]
    ones = "1.000 (1.000 to 1.000)"
    assert " ".join(lines[1].split()) == f"ours paper exact 2 0.467 (0.467 to 0.467) {ones} {ones} {ones} >= 0.5 yes"
    assert "2 photos of the split 'report', seed 0" in lines[-1]


@pytest.fixture
def drawn_sam(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint's file that stands for the drawing predictor."""
    monkeypatch.setattr(photos, "build_predictor", lambda *_, **__: Drawing(folder))
    path = tmp_path / "sam.pt"
    path.write_bytes(b"weights")
    return path


def test_command_writes_and_prints(folder: Path, drawn_sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "photos.json"
    main_command(folder, str(drawn_sam), TINY, out, True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {**json.loads(out.read_text()), "warnings": []}
    assert printed["sam"]["file"] == "sam.pt"
    assert printed["settings"]["strengths"][1] == {"name": "noisy", "blur": 0.5, "shift": 1.0, "noise": 0.1, "others": 0.0}
    main_command(folder, str(drawn_sam), TINY)
    assert capsys.readouterr().out.startswith("rule     points  strength")


def test_command_tries_everything_before_it_measures(
    folder: Path, drawn_sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "measure", lambda *_, **__: pytest.fail("measured first"))
    with pytest.raises(OutputError, match="folder"):
        main_command(folder, str(drawn_sam), TINY, tmp_path)
    with pytest.raises(InputError, match="CamVid"):
        main_command(tmp_path, str(drawn_sam), TINY)


@pytest.mark.slow
def test_real_sam_on_a_real_photo(shared_data: Path) -> None:
    folder, weights = shared_data / "data" / "camvid", shared_data / "weights" / "mobile_sam.pt"
    if not folder.is_dir() or not weights.is_file():
        pytest.skip("data/camvid or weights/mobile_sam.pt is not there")
    settings = replace(Settings(), split="tune", photos=1, strengths=photos.STRENGTHS[:1], resamples=50)
    result = measure(build_predictor(None, weights, device="cpu"), folder, settings, {"last": take(2)})
    peak = next(r for r in result["rows"] if (r["points"], r["strength"]) == ("peak", "all"))
    assert peak["cases"] >= 3
    assert peak["best"] > 0.5

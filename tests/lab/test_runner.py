"""The runner: figures against plain loops, one encoding per image, and killed runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import test_datasets_readers as readers
import torch
import typer
from helpers import RESNET, TEXT, VIT, count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery, tokenizer
from PIL import Image
from typer.testing import CliRunner

from text2sam.annotate.journal import Journal
from text2sam.clip.attention import METHODS
from text2sam.clip.generator import ClipSurgery
from text2sam.clip.prompts import SHORT_TEMPLATES
from text2sam.errors import InputError, MissingDependencyError, OutputError, PromptError, UnsupportedModelError, WeightsError
from text2sam.lab import cli as lab_cli
from text2sam.lab import runner
from text2sam.lab.datasets import Dataset, Sample, open_dataset, subset
from text2sam.lab.metrics import (
    SOFT_SCORES,
    ConfusionMatrix,
    MapSample,
    bootstrap_weights,
    explainability,
    explainability_samples,
    interval,
    map_sample,
    mean_average_precision,
)
from text2sam.lab.runner import ModelInfo, Settings, build_surgery, journal_path, key_of, measure
from text2sam.lab.runner.models import untrained_clip
from text2sam.lab.runner.onepass import OnePass
from text2sam.lab.runner.published import PUBLISHED, published_for
from text2sam.lab.runner.report import rows, table
from text2sam.lab.runner.tasks import Recognition, bootstrap_map
from text2sam.pipeline import TextPromptedSAM
from text2sam.tasks import recognize, regions, segment_semantic
from text2sam.tasks.recognition import SCORES

HAS_SOD = importlib.util.find_spec("py_sod_metrics") is not None
RUN_TASKS = [task for task in runner.settings.RUN_TASKS if task != "camouflage" or HAS_SOD]
CLASSES = ("background", "cat", "dog", "red apple")
SHAPE = (20, 28)
QUICK = {"resamples": 20}
COMPARED = {
    "recognition": SCORES,
    "semantic": ("architecture", "surgery", "itsm", "sclip"),
    "explainability": ("surgery", "itsm", "rclip", "gem"),
    "camouflage": ("surgery", "itsm", "rclip"),
}


@pytest.fixture(scope="module")
def surgery() -> ClipSurgery:
    return tiny_surgery()


def write_pictures(root: Path, count: int = 4) -> Path:
    """A data set in the layout ``folder``: blocks of the classes, and some ignored pixels."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for k in range(count):
        rng = np.random.default_rng(k)
        labels = rng.integers(0, len(CLASSES), (5, 7), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        labels[:3, :4] = 255
        Image.fromarray(picture(k, *SHAPE)).save(root / "images" / f"p{k}.png")
        Image.fromarray(labels).save(root / "masks" / f"p{k}.png")
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset("folder", write_pictures(tmp_path / "data"))


def one_picture(labels: Any, names: tuple[str, ...] = CLASSES, *, background: bool = True, **more: Any) -> Dataset:
    """A data set of a single image."""
    values = np.asarray(labels, np.int32)
    image = picture(0, *values.shape)
    sample = Sample("one", names, background, read_image=lambda: image, read_semantic=lambda: values)
    tasks = ("recognition", "semantic", "explainability")
    return Dataset("drawn", "drawn", names, background, tasks, ["one"], lambda _: sample, **more)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a run without times and machine."""
    return {key: value for key, value in result.items() if key not in ("seconds", "memory", "machine")}


def settings_of(task: Any, *methods: str, **more: Any) -> Settings:
    return Settings(task, methods or COMPARED[task], **{**QUICK, **more})


# degenerate inputs


@pytest.mark.parametrize("shape", [(1, 1), (1, 9)])
@pytest.mark.parametrize("task", RUN_TASKS)
def test_images_of_any_size(surgery: ClipSurgery, shape: tuple[int, int], task: Any) -> None:
    result = measure(surgery, one_picture(np.ones(shape)), settings_of(task))
    assert result["images"] == {"measured": 1, "failed": 0}
    for found in result["figures"].values():
        assert found["intervals"] == {}  # a single image has none
    if task == "explainability":
        assert result["figures"]["itsm"]["msc"] is None  # the mask covers the image
        assert result["figures"]["itsm"]["miou"] == 100
    json.dumps(result, allow_nan=False)
    assert table(result)


@pytest.mark.parametrize("value", [0, 255])
def test_images_without_classes(surgery: ClipSurgery, value: int) -> None:
    data = one_picture(np.full((6, 8), value))
    found = measure(surgery, data, settings_of("explainability"))["figures"]["surgery"]
    assert (found["samples"], found["miou"], found["threshold"], found["intervals"]) == (0, None, None, {})
    found = measure(surgery, data, settings_of("recognition"))["figures"]["surgery"]
    assert (found["classes"], found["map"]) == (0, None)
    found = measure(surgery, data, settings_of("semantic"))["figures"]["itsm"]
    assert found["pixels"] == (0 if value == 255 else 48)
    assert (found["pixel_accuracy"] is None) == (value == 255)


def test_a_single_class(surgery: ClipSurgery) -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[2:5, 2:5] = 1
    data = one_picture(labels, ("background", "cat"))
    found = measure(surgery, data, settings_of("explainability", "surgery"))["figures"]["surgery"]
    samples = []
    [similarity] = surgery.similarity(data[0].image, ["cat"])  # relative to the empty text
    samples.append(map_sample("cat", similarity.to_image((8, 8)), labels == 1))
    assert found["msc"] == pytest.approx(explainability(samples)["msc"], abs=1e-9)
    assert measure(surgery, data, settings_of("recognition"))["figures"]["cosine"]["map"] == 100


def test_settings_are_checked() -> None:
    for task, options, message in [
        ("semantic", {"methods": ("magic",)}, "there are surgery"),
        ("semantic", {"tiles": True}, "tiles must be"),
        ("recognition", {"methods": ("gem",)}, "cosine"),
        ("explainability", {"threshold_rule": "pixel"}, "dataset, class, image"),
        ("instances", {}, "recognition, semantic, explainability"),
        ("semantic", {"refine": "regions", "tiles": "auto"}, "leave out tiles"),
        ("semantic", {"refine": "crf"}, "no refinement 'crf'; there are regions"),
    ]:
        with pytest.raises(InputError, match=message):
            Settings(**{"task": task, "methods": ("surgery",), **options})  # type: ignore[arg-type]


def test_unusable_requests(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used for 'semantic'"):
        measure(surgery, dataclasses.replace(dataset, tasks=("recognition",)), settings_of("semantic"))
    with pytest.raises(InputError, match="iclip"):
        measure(surgery, dataset, settings_of("explainability", "iclip"))
    with pytest.raises(InputError, match="iclip"):
        measure(surgery, dataset, settings_of("explainability", "itsm"), iclip=tmp_path / "x")
    with pytest.raises(WeightsError, match="are not a file"):
        measure(surgery, dataset, settings_of("explainability", "iclip"), iclip=tmp_path / "x")
    with pytest.raises(OutputError, match="is a folder"):
        measure(surgery, dataset, settings_of("semantic"), out=tmp_path)
    plain = one_picture(np.zeros((4, 4)), background=False)
    with pytest.raises(InputError, match="has no class 'background'"):
        measure(surgery, plain, settings_of("semantic", background_words=("sky",)))
    with pytest.raises(PromptError):
        measure(surgery, one_picture(np.zeros((4, 4)), ("cat", "CAT"), background=False), settings_of("recognition"))
    resnet = tiny_surgery(tiny_clip("resnet"), image_size=64)
    with pytest.raises(UnsupportedModelError):
        measure(resnet, dataset, settings_of("semantic", "gem"))


# figures


def test_recognition_equals_a_plain_loop(surgery: ClipSurgery, dataset: Dataset) -> None:
    result = measure(surgery, dataset, settings_of("recognition"))
    names = CLASSES[1:]
    found = [recognize(surgery, sample.image, names) for sample in dataset]
    truth = np.array([[name in sample.labels for name in names] for sample in dataset])
    for kind in SCORES:
        expected = 100 * mean_average_precision(np.stack([result.scores[kind] for result in found]), truth)
        figures = result["figures"][kind]
        assert figures["map"] == pytest.approx(expected, abs=1e-9)
        assert figures["intervals"]["map"][0] <= expected <= figures["intervals"]["map"][1]


@pytest.mark.parametrize("options", [{}, {"window": 8, "stride": 8, "short_side": 12}])
def test_semantic_equals_a_plain_loop(surgery: ClipSurgery, dataset: Dataset, options: dict[str, int]) -> None:
    result = measure(surgery, dataset, settings_of("semantic", **options))
    for method in COMPARED["semantic"]:
        matrix = ConfusionMatrix(len(CLASSES))
        for sample in dataset:
            found = segment_semantic(surgery, sample.image, CLASSES, method=method, **options)  # type: ignore[arg-type]
            matrix.add(found.classes.astype(int), sample.semantic)
        figures = result["figures"][method]
        assert figures["confusion"] == matrix.counts.tolist()
        assert figures["miou"] == 100 * matrix.miou()
        assert figures["miou_without_background"] == 100 * matrix.miou(0)
        assert figures["pixels"] == 4 * (20 * 28 - 12)  # without the ignored pixels
        assert figures["intervals"]["miou"][0] <= figures["miou"] <= figures["intervals"]["miou"][1]


def test_camouflage_equals_the_package_over_all_samples(surgery: ClipSurgery, dataset: Dataset) -> None:
    sod = pytest.importorskip("py_sod_metrics")
    result = measure(surgery, dataset, settings_of("camouflage", "surgery"))
    measures = sod.Smeasure(), sod.Emeasure(), sod.WeightedFmeasure(), sod.MAE()
    for sample in dataset:
        maps = surgery.similarity(sample.image, CLASSES[1:], against=CLASSES[1:])
        for name, similarity in zip(CLASSES[1:], maps, strict=True):
            for each in measures:
                each.step(similarity.to_image(SHAPE).astype(np.float64), sample.masks[name], normalize=False)
    s, e, f, mae = (each.get_results() for each in measures)
    found = result["figures"]["surgery"]
    assert found["samples"] == 3 * len(dataset)
    expected = (s["sm"], e["em"]["curve"].mean(), f["wfm"], mae["mae"])
    assert [found[name] for name in SOFT_SCORES] == pytest.approx(list(expected), abs=1e-4)
    low, high = found["intervals"]["s_measure"]
    assert low < found["s_measure"] < high
    assert rows(result)[1][1].startswith(f"{found['s_measure']:.3f} [")


def test_without_pysodmetrics_nothing_is_encoded(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    surgery = tiny_surgery()
    encoded = count_calls(surgery.model.visual.conv1)
    monkeypatch.setitem(sys.modules, "py_sod_metrics", None)
    with pytest.raises(MissingDependencyError, match=r"'pysodmetrics'.*pip install"):
        measure(surgery, dataset, settings_of("camouflage"))
    assert not encoded


@pytest.mark.parametrize("refine", [None, "regions"])
def test_masks_of_sam_vote(surgery: ClipSurgery, dataset: Dataset, refine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "SIDE", 2)
    predictor = tiny_predictor()
    settings = settings_of("semantic", "corrclip", "itsm", refine=refine)
    with pytest.raises(InputError, match="need a SAM"):
        measure(surgery, dataset, settings)
    result = measure(surgery, dataset, settings, predictor=predictor)
    pair = TextPromptedSAM(predictor, surgery)
    for method in settings.methods:
        matrix = ConfusionMatrix(len(CLASSES))
        for sample in dataset:
            how = {"refine": None if method == "corrclip" else refine, "method": method}
            found = segment_semantic(pair, sample.image, CLASSES, **how)
            matrix.add(found.classes.astype(int), sample.semantic)
        assert result["figures"][method]["confusion"] == matrix.counts.tolist()
    assert result["sam"]["predictor"] == "segment_anything.predictor.SamPredictor"
    assert result["sam"]["fingerprint"]
    assert result["seconds"]["regions"]["mean"] > 0


def test_semantic_background(surgery: ClipSurgery, dataset: Dataset) -> None:
    words = {"background_words": ("sky", "wall"), "background_threshold": 0.3}
    found = measure(surgery, dataset, settings_of("semantic", "itsm", **words))["figures"]["itsm"]
    matrix = ConfusionMatrix(len(CLASSES))
    for sample in dataset:
        result = segment_semantic(surgery, sample.image, CLASSES[1:], background=["sky", "wall"], threshold=0.3, method="itsm")
        matrix.add(result.classes.astype(int), sample.semantic)
    assert found["confusion"] == matrix.counts.tolist()
    plain = one_picture(np.zeros((4, 4)), ("sky", "tree"), background=False)
    assert measure(surgery, plain, settings_of("semantic"))["figures"]["itsm"]["miou_without_background"] is None


@pytest.mark.parametrize("rule", ["dataset", "class", "image"])
def test_explainability_equals_a_plain_loop(surgery: ClipSurgery, dataset: Dataset, rule: Any) -> None:
    settings = settings_of("explainability", threshold_rule=rule)
    result = measure(surgery, dataset, settings)
    names = CLASSES[1:]
    weights = bootstrap_weights(len(dataset), settings.resamples)
    for method in settings.methods:
        samples, images = [], []
        for image, sample in enumerate(dataset):
            features = surgery.encode_image(sample.image, methods=[method])  # type: ignore[list-item]
            maps = surgery.maps(features, names, against=names, method=method)  # type: ignore[arg-type]
            for name, similarity in zip(names, maps, strict=True):
                values, mask = similarity.to_image(SHAPE)[3:], (sample.semantic == CLASSES.index(name))[3:]
                left = similarity.to_image(SHAPE)[:3, 4:], (sample.semantic == CLASSES.index(name))[:3, 4:]
                pixels = np.concatenate([values.ravel(), left[0].ravel()]), np.concatenate([mask.ravel(), left[1].ravel()])
                if pixels[1].any():
                    samples.append(map_sample(name, pixels[0][None], pixels[1][None]))
                    images.append(image)
        expected, found = explainability(samples), result["figures"][method]
        assert found["samples"] == expected["samples"]
        assert found["threshold"] == expected["threshold"]
        for name in ("msc", "miou_dataset", "miou_class", "miou_image"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4)
        assert found["miou"] == found[f"miou_{rule}"]
        copies = [[s for s, image in zip(samples, images, strict=True) for _ in range(row[image])] for row in weights]
        drawn = [explainability(drawn) for drawn in copies]
        for name, (low, high) in found["intervals"].items():
            values = np.array([figures[name if name != "miou" else f"miou_{rule}"] for figures in drawn])
            assert (low, high) == pytest.approx(interval(values - values.mean() + found[name]), abs=1e-3)
        assert found["intervals"].keys() == {"miou", "miou_dataset", "miou_class", "miou_image", "msc"}
        assert found["miou_image"] >= found["miou_class"] - 1e-9 >= found["miou_dataset"] - 2e-9


def test_empty_text_in_place_of_the_label_set(surgery: ClipSurgery, dataset: Dataset) -> None:
    found = measure(surgery, dataset, settings_of("explainability", "surgery", "itsm", label_set=False))["figures"]
    with_labels = measure(surgery, dataset, settings_of("explainability", "surgery", "itsm"))["figures"]
    assert found["itsm"] == with_labels["itsm"]
    assert found["surgery"]["msc"] != with_labels["surgery"]["msc"]
    samples = []
    for sample in dataset:
        for name, mask in sample.masks.items():
            [similarity] = surgery.similarity(sample.image, [name])
            kept = ~sample.ignored
            samples.append(map_sample(name, similarity.to_image(SHAPE)[kept][None], mask[kept][None]))
    assert found["surgery"]["msc"] == pytest.approx(explainability(samples)["msc"], abs=1e-4)


def test_gradcam_and_iclip(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam")
    from text2sam.lab.activation import class_activation
    from text2sam.tasks.iclip import ICLIP

    head = ICLIP(surgery)
    with torch.no_grad():
        head.interpretation.copy_(torch.randn(head.interpretation.shape, generator=torch.Generator().manual_seed(0)))
    file = head.save(tmp_path / "iclip.safetensors")
    few = subset(dataset, 2)
    result = measure(surgery, few, settings_of("explainability", "gradcam", "iclip", "itsm"), iclip=file)
    makers: dict[str, Callable[..., Any]] = {
        "gradcam": lambda *given: class_activation(surgery, *given),
        "iclip": head.maps,
        "itsm": lambda *given: surgery.similarity(*given, method="itsm"),
    }
    for method, maps in makers.items():
        samples = []
        for sample in few:
            kept = ~sample.ignored
            for name, mask in sample.masks.items():
                samples.append(map_sample(name, maps(sample.image, [name])[0].to_image(SHAPE)[kept][None], mask[kept][None]))
        assert result["figures"][method]["msc"] == pytest.approx(explainability(samples)["msc"], abs=1e-3)
    assert len({found["msc"] for found in result["figures"].values()}) == 3
    assert result["iclip"]["file"] == "iclip.safetensors"


def test_the_wording_of_a_data_set_is_queried(surgery: ClipSurgery) -> None:
    labels = np.arange(12).reshape(3, 4) % 2
    data = one_picture(labels, ("sofa", "cat"), background=False, wording={"sofa": "settee"})
    counts = ConfusionMatrix(2)
    counts.add(segment_semantic(surgery, data[0].image, ("settee", "cat"), method="itsm").classes.astype(int), labels)
    found = measure(surgery, data, settings_of("semantic", "itsm"))["figures"]["itsm"]
    assert found["confusion"] == counts.counts.tolist()


# bootstrap


def test_bootstraps_equal_the_figures_of_copies() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, (9, 4)).astype(float), rng.random((9, 4)) < 0.4
    truth[:, 3] = False
    weights = np.concatenate([np.ones((1, 9), np.int64), np.zeros((1, 9), np.int64), bootstrap_weights(9, 6)])
    found = bootstrap_map(scores, truth, weights)
    for row, value in zip(weights, found, strict=True):
        copies = (np.repeat(part, row, axis=0) for part in (scores, truth))
        assert value == pytest.approx(mean_average_precision(*copies), nan_ok=True)
    samples, images = [], np.array([0, 0, 1, 3, 3, 4, 8])
    for k in range(7):
        off = float("nan") if k == 2 else rng.random()
        samples.append(MapSample("abc"[k % 3], rng.random(101), rng.random(), off))
    drawn = explainability_samples(samples, weights[:, images])
    for k, row in enumerate(weights):
        if not row[images].any():
            assert np.isnan(drawn["miou_dataset"][k])
            continue
        expected = explainability([sample for sample, n in zip(samples, row[images], strict=True) for _ in range(n)])
        for name, values in drawn.items():
            assert values[k] == pytest.approx(expected[name])


# one pass


@pytest.mark.parametrize("task", RUN_TASKS)
def test_several_methods_give_the_figures_of_single_methods_with_one_encoding(dataset: Dataset, task: Any) -> None:
    surgery = tiny_surgery()
    encoded = count_calls(surgery.model.visual.conv1)
    result = measure(surgery, dataset, settings_of(task))
    assert len(encoded) == len(dataset)
    for method in COMPARED[task]:
        single = measure(surgery, dataset, settings_of(task, method))
        assert single["figures"] == {method: result["figures"][method]}
    assert len(encoded) == len(dataset) * (1 + len(COMPARED[task]))


def test_tiles_are_encoded_once(dataset: Dataset) -> None:
    surgery = tiny_surgery()
    encoded = count_calls(surgery.model.visual.conv1)
    one = subset(dataset, 1)
    matrix = ConfusionMatrix(len(CLASSES))
    features = surgery.encode_image(one[0].image, methods=["itsm"], tiles=10)
    assert features.grid != surgery.encode_image(one[0].image).grid
    matrix.add(segment_semantic(surgery, features, CLASSES, method="itsm").classes.astype(int), one[0].semantic)
    encoded.clear()
    surgery.encode_image(one[0].image, tiles=10)
    windows = sum(shape[0] for shape in encoded)
    encoded.clear()
    result = measure(surgery, one, settings_of("semantic", tiles=10))
    assert sum(shape[0] for shape in encoded) == windows > 1
    assert result["figures"]["itsm"]["confusion"] == matrix.counts.tolist()
    assert result["settings"]["tiles"] == 10


def test_one_pass_clears_its_cache_and_shares_the_model(surgery: ClipSurgery) -> None:
    passing = OnePass(surgery, ["gem"])
    image = picture(0)
    first = passing.encode_image(image)
    assert passing.encode_image(image.copy()) is first
    assert passing.encode([image])[0] is first
    assert passing.encode_image(np.ascontiguousarray(image[:, ::-1])) is not first
    tiled = passing.encode_image(image, tiles=8)
    assert tiled.grid != first.grid
    assert passing.encode_image(image, tiles=8) is tiled
    passing.forget()
    assert passing.encode_image(image) is not first
    assert passing.model is surgery.model
    assert passing.prompts is surgery.prompts
    assert set(first.paths) == {"raw", "architecture", "gem"}
    assert "_kept" not in vars(surgery)


# killed and resumed runs


def stop_after(monkeypatch: pytest.MonkeyPatch, pictures: int) -> None:
    """Makes the journal fail like a kill, in the middle of a line."""
    plain, written = Journal.append, []

    def append(self: Journal, key: str, value: Any) -> None:
        if len(written) == pictures:
            raise KeyboardInterrupt
        written.append(key)
        plain(self, key, value)

    monkeypatch.setattr(Journal, "append", append)


@pytest.mark.parametrize("task", RUN_TASKS)
def test_a_stopped_run_resumes(
    surgery: ClipSurgery, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    undisturbed = measure(surgery, dataset, settings_of(task))
    out = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            measure(surgery, dataset, settings_of(task), out=out)
    assert not out.exists()
    encoded = count_calls(surgery.model.visual.conv1)
    result = measure(surgery, dataset, settings_of(task), out=out)
    assert len(encoded) == len(dataset) - 2
    assert without_times(result) == without_times(undisturbed)
    assert json.loads(out.read_text()) == result
    again = measure(surgery, dataset, settings_of(task), out=out)  # every image is measured
    assert len(encoded) == len(dataset) - 2
    assert (without_times(again), again["seconds"]) == (without_times(result), result["seconds"])


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from helpers import tiny_surgery
from text2sam.lab.datasets import open_dataset
from text2sam.lab.runner import Settings, measure
from text2sam.lab.runner.tasks import Explainability
plain, seen = Explainability.measure, []
def measuring(self, sample):
    seen.append(sample.id)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, sample)
Explainability.measure = measuring
settings = Settings("explainability", ("surgery", "itsm"), resamples=20)
measure(tiny_surgery(), open_dataset("folder", sys.argv[1]), settings, out=Path(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_resumes(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    out, helpers = tmp_path / "r.json", str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(dataset.root), str(out), helpers], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    settings = Settings("explainability", ("surgery", "itsm"), resamples=20)
    encoded = count_calls(surgery.model.visual.conv1)
    result = measure(surgery, dataset, settings, out=out)
    assert len(encoded) == len(dataset) - 2
    assert without_times(result) == without_times(measure(surgery, dataset, settings))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"methods": ("itsm",)}, "measuring.methods"), ({"window": 64}, "measuring.window was null, now is 64")],
)
def test_other_settings_are_refused(
    surgery: ClipSurgery, dataset: Dataset, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    out = tmp_path / "r.json"
    settings = settings_of("semantic", "itsm", "gem")
    measure(surgery, dataset, settings, out=out)
    other = dataclasses.replace(settings, **changed)
    before = journal_path(out).read_bytes()
    with pytest.raises(InputError, match=f"other settings: .*{message}.*--overwrite"):
        measure(surgery, dataset, other, out=out)
    assert journal_path(out).read_bytes() == before
    result = measure(surgery, dataset, other, out=out, overwrite=True)
    assert without_times(result) == without_times(measure(surgery, dataset, other))


def test_other_images_and_models_are_refused(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    out, settings = tmp_path / "r.json", settings_of("semantic", "itsm")
    measure(surgery, subset(dataset, 3), settings, out=out)
    with pytest.raises(InputError, match="ids_sha256"):
        measure(surgery, dataset, settings, out=out)
    with pytest.raises(InputError, match="fingerprint"):
        measure(tiny_surgery(tiny_clip(seed=1)), subset(dataset, 3), settings, out=out)
    with pytest.raises(InputError, match="depth"):
        measure(tiny_surgery(depth=1), subset(dataset, 3), settings, out=out)
    with pytest.raises(InputError, match="templates"):
        measure(tiny_surgery(templates=("{}",)), subset(dataset, 3), settings, out=out)
    regional = dataclasses.replace(settings, refine="regions")
    with pytest.raises(InputError, match=r"measuring\.refine"):
        measure(surgery, subset(dataset, 3), regional, out=out, predictor=tiny_predictor())
    with pytest.raises(InputError, match="sam was null"):
        measure(surgery, subset(dataset, 3), settings, out=out, predictor=tiny_predictor())
    # settings of the summary may change
    more = measure(surgery, subset(dataset, 3), dataclasses.replace(settings, resamples=7), out=out)
    assert more["settings"]["resamples"] == 7


def test_a_data_set_may_be_moved(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    out, settings = tmp_path / "r.json", settings_of("semantic", "itsm")
    first = measure(surgery, dataset, settings, out=out)
    assert dataset.root is not None
    moved = open_dataset("folder", dataset.root.rename(tmp_path / "moved"))
    assert measure(surgery, moved, settings, out=out)["figures"] == first["figures"]


# the journal


def test_the_journal_keeps_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        journal.append(key_of(name), {"kept": 1})
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        assert journal.read(key_of(name)) == {"kept": 1}


@pytest.mark.parametrize("task", ["recognition", "semantic", "explainability", "camouflage"])
@pytest.mark.parametrize("broken", [{}, {"kept": {"scores": {}}, "seconds": {}}, {"kept": [], "seconds": {}}, 7])
def test_a_damaged_journal(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path, task: Any, broken: Any) -> None:
    out = tmp_path / "r.json"
    measure(surgery, dataset, settings_of(task), out=out)
    with sqlite3.connect(journal_path(out)) as database:
        database.execute("UPDATE results SET value = ?", [json.dumps(broken)])
    with pytest.raises(InputError, match=r"r\.json\.journal' was damaged, or written by another version.*--overwrite"):
        measure(surgery, dataset, settings_of(task), out=out)
    measure(surgery, dataset, settings_of(task), out=out, overwrite=True)


# images that fail


def test_a_broken_image_is_reported_and_tried_again(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.root is not None
    file = dataset.root / "images" / "p1.png"
    good = file.read_bytes()
    file.write_bytes(good[:60])
    Image.fromarray(np.full(SHAPE, 77, np.uint8)).save(dataset.root / "masks" / "p3.png")
    out = tmp_path / "r.json"
    result = measure(surgery, dataset, settings_of("semantic"), out=out)
    assert result["images"] == {"measured": 2, "failed": 2}
    assert [failure["id"] for failure in result["failed"]] == ["p1", "p3"]
    assert "77" in result["failed"][1]["reason"]
    assert "2 failed" in table(result)
    assert sum(line.startswith("Failed: p") for line in table(result).splitlines()) == 2
    file.write_bytes(good)  # repaired
    encoded = count_calls(surgery.model.visual.conv1)
    mended = measure(surgery, dataset, settings_of("semantic"), out=out)
    assert len(encoded) == 1
    assert mended["images"] == {"measured": 3, "failed": 1}
    fresh = measure(surgery, dataset, settings_of("semantic"))
    assert without_times(mended) == without_times(fresh)


def test_only_broken_images(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.root is not None
    for file in (dataset.root / "images").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"no image of folder can be read; the first error: .*p0"):
        measure(surgery, dataset, settings_of("semantic"), out=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_errors_of_measuring_are_raised(surgery: ClipSurgery, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: Any) -> Any:
        raise InputError("a bug")

    monkeypatch.setattr(Recognition, "measure", raising)
    with pytest.raises(InputError, match="a bug"):
        measure(surgery, dataset, settings_of("recognition"))


# published figures


def same_setting(figure: Any) -> tuple[Dataset, Settings, ModelInfo, ClipSurgery]:
    data = one_picture(np.zeros((4, 4)), background=figure.background)
    data = dataclasses.replace(data, name=figure.dataset, split=figure.split)
    clip = tiny_clip(vision={"patch_size": 32, "image_size": 64, "layers": 7})
    surgery = tiny_surgery(clip, image_size=figure.image_size, templates=None, depth=6)
    settings = settings_of(figure.task, figure.method, tiles=figure.tiles)
    return data, settings, ModelInfo(figure.model, figure.pretrained), surgery


def test_every_published_figure_is_shown_for_its_setting() -> None:
    for figure in PUBLISHED:
        data, settings, model, surgery = same_setting(figure)
        data = dataclasses.replace(data, options={"background": figure.background})
        assert published_for(data, settings, model, surgery)[figure.method][figure.figure] is figure


@pytest.mark.parametrize(
    "figure",
    {(p.task, p.tiles): p for p in PUBLISHED}.values(),
    ids=lambda figure: f"{figure.dataset}-{figure.method}-{figure.figure}",
)
def test_published_figures_are_shown_only_for_their_setting(figure: Any) -> None:
    data, settings, model, surgery = same_setting(figure)
    like: dict[str, Any] = {"image_size": figure.image_size, "templates": None, "depth": 6}
    other_clips: list[dict[str, Any]] = [{"image_size": 448}, {"image_size": (figure.image_size, 64)}, {"templates": ("{}",)}]
    other_clips += [{"scales": (1.0, 0.5)}, {"depth": 5}]
    other_method = next(name for name in COMPARED[figure.task] if name not in {p.method for p in PUBLISHED})
    others = [
        (dataclasses.replace(data, name="ade"), settings, model, surgery),
        (dataclasses.replace(data, split="train"), settings, model, surgery),
        (dataclasses.replace(data, options={"limit": 10}), settings, model, surgery),
        (dataclasses.replace(data, background=not data.background), settings, model, surgery),
        (data, dataclasses.replace(settings, methods=(other_method,)), model, surgery),
        (data, settings, dataclasses.replace(model, name="ViT-B-16"), surgery),  # without QuickGELU
        (data, settings, dataclasses.replace(model, pretrained="mine.pt"), surgery),
        (data, settings, dataclasses.replace(model, untrained=True), surgery),
        (data, settings, ModelInfo(), surgery),
        *((data, settings, model, tiny_surgery(surgery.model, **{**like, **change})) for change in other_clips),
    ]
    if figure.task == "semantic":
        changes: list[dict[str, Any]] = [{"window": 224}, {"stride": 112}, {"short_side": 336}, {"tiles": 64}]
        changes += [{"refine": "regions"}, {"background_words": ("wall",)}, {"background_threshold": 0.5}]
        others += [(data, dataclasses.replace(settings, **{"tiles": False, **change}), model, surgery) for change in changes]
    if figure.task == "explainability":
        others.append((data, dataclasses.replace(settings, threshold_rule="image"), model, surgery))
        others.append((data, dataclasses.replace(settings, label_set=False), model, surgery))
    if figure.dataset in ("coco", "potsdam", "cod10k"):
        changed = {"coco": {"annotations": "x.json"}, "potsdam": {"clutter": False}, "cod10k": {"label": "fish"}}
        others.append((dataclasses.replace(data, options=changed[figure.dataset]), settings, model, surgery))
    found = [by_name for other in others for by_name in published_for(*other).values()]
    assert figure not in [each for by_name in found for each in by_name.values()]


# the report


def test_report(surgery: ClipSurgery, dataset: Dataset, tmp_path: Path) -> None:
    data = subset(dataset, 3, 7)
    result = measure(surgery, data, settings_of("explainability"), out=tmp_path / "r.json")
    assert result["dataset"]["ids_sha256"] == data.describe()["ids_sha256"]
    assert result["seeds"] == {"subset": 7, "bootstrap": 0, "weights": None}
    assert {"text2sam", "torch", "open_clip", "numpy", "python"} == set(result["versions"])
    assert result["model"]["fingerprint"] == surgery.fingerprint()
    assert result["methods"]["gem"]["source"] == METHODS["gem"].source
    assert result["untrained"] is False
    assert {"read", "encode", "image", *COMPARED["explainability"]} == set(result["seconds"])
    parts = sum(result["seconds"][name]["mean"] for name in ("read", "encode", *COMPARED["explainability"]))
    assert 0 < parts <= result["seconds"]["image"]["mean"] * 1.001
    assert result["memory"]["process"] > 50 * 2**20
    assert result["memory"]["cuda"] is None
    assert "resamples of the images" in table(result)
    assert table(result).splitlines()[0].split() == ["method", "mIoU", "published", "threshold", "mSC", "published", "s/image"]


# models


@pytest.fixture
def tiny_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: dict[str, dict[str, Any]] = {
        "ViT-B-16": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
        "tiny-resnet": {"embed_dim": 16, "vision_cfg": RESNET, "text_cfg": TEXT, "quick_gelu": True},
        "foreign": {"embed_dim": 16, "vision_cfg": VIT | {"timm_model_name": "x"}, "text_cfg": TEXT},
        "other": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT, "multimodal_cfg": {}},
    }
    monkeypatch.setattr(open_clip, "list_models", lambda: list(configs))
    monkeypatch.setattr(open_clip, "get_model_config", configs.get)
    own = tokenizer()  # made before get_tokenizer is replaced
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: own)


@pytest.mark.usefixtures("tiny_architectures")
def test_untrained(dataset: Dataset, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    surgery, info = build_surgery(untrained=True, image_size=16, depth=2, device="cpu", templates=SHORT_TEMPLATES)
    assert torch.equal(torch.get_rng_state(), state)
    assert info == ModelInfo("ViT-B-16", None, None, True, 0)
    assert surgery.image_size == (16, 16)
    twin, _ = build_surgery(untrained=True, image_size=16, depth=2, device="cpu", templates=SHORT_TEMPLATES)
    assert twin.fingerprint() == surgery.fingerprint()
    other = untrained_clip("ViT-B-16", 1)
    assert not torch.equal(other.visual.proj, surgery.model.visual.proj)
    result = measure(surgery, subset(dataset, 1), settings_of("semantic", "itsm"), model=info)
    assert result["untrained"] is True
    assert result["model"]["untrained"] is True
    assert result["seeds"]["weights"] == 0
    assert table(result).splitlines()[0].split()[1:3] == ["mIoU", "(meaningless)"]
    assert "UNTRAINED WEIGHTS" in table(result)
    for name, message in (("foreign", "cannot be built"), ("other", "cannot be built"), ("none", "list_models")):
        with pytest.raises(InputError, match=message):
            untrained_clip(name)
    assert untrained_clip("tiny-resnet").visual.attnpool is not None
    with pytest.raises(InputError, match="no checkpoint"):
        build_surgery(untrained=True, clip_checkpoint="x.pt")


@pytest.mark.usefixtures("tiny_architectures")
@pytest.mark.parametrize(
    ("line", "heads"),
    [
        ("semantic coco", 81),
        ("semantic context --background", 60),
        ("semantic potsdam --tiles 4 --compare architecture,surgery", 6),
        ("camouflage cod10k --compare all", 1),
        ("recognition nus-wide", 81),
    ],
)
def test_commands_of_the_published_figures_on_small_folders(line: str, heads: int, tmp_path: Path) -> None:
    if line.startswith("camouflage"):
        pytest.importorskip("py_sod_metrics")
    name = line.split()[1]
    readers.WHOLE[name](tmp_path)
    if name == "coco":
        categories = [{"id": i, "name": each} for i, each in enumerate(readers.known.COCO)]
        readers.coco(tmp_path, readers.annotation(), categories=categories)
    app = typer.Typer()
    lab_cli.register(app)
    options = f"--root {tmp_path} --untrained --image-size 16 --depth 2 --templates short --device cpu --out {tmp_path}/r.json"
    result = CliRunner().invoke(app, f"evaluate {line} {options}".split())
    assert result.exit_code == 0, result.exception
    assert "meaningless" in result.stdout
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["images"]["measured"] >= 1
    assert written["published"] == {}
    dataset = written["dataset"]
    assert len(dataset["classes"]) - (name == "cod10k") == heads
    for figures in written["figures"].values():
        assert figures.get("miou", figures.get("s_measure", figures.get("map"))) is not None


def test_the_identity_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from text2sam.zoo import presets
    from text2sam.zoo import table as weights

    surgery, info = build_surgery(preset="sticker", device="cpu")
    assert (info.name, info.pretrained, surgery.image_size, surgery.depth) == ("sticker", "sticker", (192, 192), 7)
    assert surgery.scales == (1.0,)  # as in the papers, not as in the preset
    monkeypatch.setattr(presets, "load_clip", lambda *_, **__: (tiny_clip(), tokenizer()))
    _, info = build_surgery(preset="mobile", depth=2, device="cpu")
    assert (info.name, info.pretrained) == ("ViT-B-16-quickgelu", "openai")
    assert info.sha256 == weights.CHECKPOINTS["clip-vit-b-16-openai"].sha256
    _, info = build_surgery(clip_checkpoint="clip-rn50-openai", depth=2, device="cpu")
    assert (info.name, info.pretrained) == ("RN50-quickgelu", "openai")
    _, info = build_surgery(clip_checkpoint="clip-rn50-openai", clip_model="RN50", depth=2, device="cpu")
    assert info.name == "RN50"
    file = tmp_path / "mine.pt"
    file.write_bytes(b"weights")
    _, info = build_surgery(clip_checkpoint=str(file), depth=2, device="cpu")
    assert (info.name, info.pretrained) == ("ViT-B-16-quickgelu", "mine.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_bytes(b"weights")
    _, folder = build_surgery(preset="siglip2", clip_checkpoint=str(tmp_path / "folder"), depth=2, device="cpu")
    assert (folder.name, folder.pretrained, folder.sha256) == ("", "folder", info.sha256)
    known = dataclasses.replace(weights.CHECKPOINTS["clip-rn50-openai"], sha256=info.sha256 or "")
    monkeypatch.setitem(weights.CHECKPOINTS, "clip-rn50-openai", known)
    _, info = build_surgery(clip_checkpoint=str(file), clip_model="RN50-quickgelu", depth=2, device="cpu")
    assert (info.name, info.pretrained) == ("RN50-quickgelu", "openai")


# the command


def test_the_command(
    surgery: ClipSurgery, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "build_surgery", lambda *_, **__: (surgery, ModelInfo("tiny")))
    out = tmp_path / "r.json"
    data = lab_cli.DataOptions("folder", root=dataset.root, limit=2, seed=1, out=out)
    data.run("semantic", lab_cli.ClipOptions(), False, resamples=20)
    printed = capsys.readouterr()
    result = json.loads(out.read_text())
    assert printed.out == table(result) + "\n"
    assert printed.err == ""
    assert result["dataset"]["options"]["subset_seed"] == 1
    data.run("semantic", lab_cli.ClipOptions(), True, resamples=20)
    assert without_times(json.loads(capsys.readouterr().out)) == {**without_times(result), "warnings": []}
    assert sorted(os.listdir(tmp_path)) == ["data", "r.json", "r.json.journal", "r.json.journal.lock"]
    with pytest.raises(InputError, match="no data set 'nowhere'"):
        dataclasses.replace(data, dataset="nowhere").run("semantic", lab_cli.ClipOptions(), False)

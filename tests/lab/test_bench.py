"""The benchmarks' machinery on tiny sizes. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny_predictor, tiny_surgery

from text2sam.errors import OutputError
from text2sam.lab import bench
from text2sam.lab.bench import Settings, gpu, suites
from text2sam.lab.bench.peers import peer_pipeline
from text2sam.lab.bench.timing import Side, alternate, peak_tensor_bytes
from text2sam.pipeline import TextPromptedSAM
from text2sam.sam.cpu import CPUPredictor

TINY = Settings(
    device="cpu",
    text_model=(16, 32, 2, 2),
    templates=("a photo of a {}.", "{}", "the {} in the scene."),
    text_rounds=2,
    labels=(3, 5),
    tokens=17,
    channels=8,
    wide_channels=16,
    surgery_rounds=2,
    image_shape=(48, 64),
    image_rounds=1,
    checkpoint_rounds=1,
    folder_preset="sticker",
    folder_images=2,
    folder_rounds=1,
    sam_rounds=1,
    large_shape=(60, 90),
)


@pytest.fixture(autouse=True)
def _sticker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXT2SAM_TEST_DATA", raising=False)


@pytest.fixture(scope="module")
def surgery_result() -> dict[str, Any]:
    return bench.run("surgery", TINY)


def test_sides_take_turns_in_changing_order_and_are_prepared() -> None:
    calls: list[str] = []
    sides = {name: Side(lambda name=name: calls.append(name), lambda: calls.append("prepare")) for name in "ab"}  # type: ignore[misc]
    times = alternate(sides, 2)
    assert [name for i, name in enumerate(calls) if name != "prepare" and calls[i - 1] == "prepare"] == list("aabbbbaa")
    assert [len(side["samples_s"]) for side in times.values()] == [2, 2]
    assert all(min(side["samples_s"]) <= side["median_s"] <= max(side["samples_s"]) for side in times.values())


def test_peak_counts_what_lives_at_once() -> None:
    def in_turn() -> None:
        for _ in range(3):
            torch.ones(1000)

    assert peak_tensor_bytes(lambda: None) == 0
    assert peak_tensor_bytes(in_turn) == 4000
    assert peak_tensor_bytes(lambda: [torch.ones(1000) for _ in range(3)]) == 12000


def test_peak_sees_inside_compound_operators() -> None:
    # one operator to the caller; inside it the (100, 10) differences are made
    given = torch.ones(100, 10)
    assert peak_tensor_bytes(lambda: torch.nn.functional.pairwise_distance(given, given)) >= 4000


def test_memory_of_ours_does_not_grow_with_channels(surgery_result: dict[str, Any]) -> None:
    cases = surgery_result["benchmarks"]["surgery"]["cases"]
    assert [(c["labels"], c["channels"]) for c in cases] == [(3, 8), (5, 8), (3, 16)]
    narrow, _, wide = (c["peak_tensor_bytes"] for c in cases)
    assert narrow["ours"] == wide["ours"] <= 4 * 17 * 3 * 4
    assert narrow["plain"] > 17 * 3 * 8 * 4
    assert wide["plain"] > 1.8 * narrow["plain"]
    row = surgery_result["rows"][-1]
    assert row["ours"] == 1.0
    assert row["met"] is True


def test_surgery_figures(surgery_result: dict[str, Any]) -> None:
    cases = surgery_result["benchmarks"]["surgery"]["cases"]
    assert all(c["difference"] < 1e-6 for c in cases)
    assert [set(c.get("times", {})) for c in cases] == [{"ours", "plain"}, {"ours", "plain"}, set()]
    rows = surgery_result["rows"]
    assert [row["aim"] for row in rows] == [">= 100", None, None, None, "ours <= 1.01"]
    assert rows[0]["met"] is (rows[0]["ratio"] >= 100)
    assert rows[0]["ratio"] == pytest.approx(rows[0]["baseline"] / rows[0]["ours"])
    assert rows[0]["low"] <= rows[0]["high"]


def test_text_figures() -> None:
    result = bench.run("text", replace(TINY, texts=("cat", "dog")))
    text = result["benchmarks"]["text"]
    assert text["positions_plain"] == 77
    assert text["positions_ours"] < 12
    assert text["templates"] == 3
    assert text["difference"] < 1e-5
    assert set(text["times"]) == {"ours", "plain", "memory", "disk", "disk_with_fingerprint"}
    assert [row["aim"] for row in result["rows"]] == [">= 4", None, None, None]


def test_images_figures() -> None:
    result = bench.run("images", TINY)
    (pair,) = result["benchmarks"]["images"]["pairs"]
    assert pair["pair"] == "sticker"
    assert min(pair["points"].values()) >= 2  # else SAM was not asked and its time is not in the figure
    assert pair["map_difference"] < 1e-4
    assert pair["mask_iou"] > 0.95
    assert [row["aim"] for row in result["rows"]] == [">= 4", ">= 4", None]


@pytest.fixture(scope="module")
def sticker() -> TextPromptedSAM:
    return suites.build_pair(None, TINY)[0]


def test_models_calls_are_counted_until_the_end(sticker: TextPromptedSAM) -> None:
    image = suites.draw((48, 64))
    with suites.counted(sticker) as calls:
        sticker.set_image(image)
        assert calls == {"decoder": 0, "sam": 1, "clip": 1}
        sticker.segment(text="cat", strategy="paper")
        sticker.segment(text="dog", strategy="paper")
        assert calls == {"decoder": 2, "sam": 1, "clip": 1}
        sticker.segment_batch([image, image, image], ["cat"], strategy="paper")
        assert calls == {"decoder": 5, "sam": 4, "clip": 4}
    sticker.segment(image, "cat", strategy="paper")
    assert calls == {"decoder": 5, "sam": 4, "clip": 4}
    with pytest.raises(ZeroDivisionError), suites.counted(sticker):
        raise ZeroDivisionError
    parts = [*sticker.predictor.model.modules(), *sticker.generator.model.modules()]  # type: ignore[attr-defined]
    assert not any(module._forward_pre_hooks for module in parts)


class Scripted:
    """In place of the pipeline: two objects of "cat" and one of "dog" for five prompts each."""

    def __init__(self) -> None:
        self.decode, self.encode_sam, self.encode_clip = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
        self.predictor = SimpleNamespace(model=SimpleNamespace(mask_decoder=self.decode, image_encoder=self.encode_sam))
        visual = SimpleNamespace(conv1=self.encode_clip)
        self.generator = SimpleNamespace(model=SimpleNamespace(visual=visual), device=torch.device("cpu"))

    def set_image(self, image: Any) -> None:
        self.encode(1)

    def encode(self, times: int) -> None:
        for encoder in (self.encode_sam, self.encode_clip):
            encoder(torch.zeros(times, 3, 8, 8))

    def segment(self, image: Any = None, text: str = "", *, strategy: str = "objects") -> Any:
        if image is not None:
            self.encode(1)
        found = {"cat": 2, "dog": 1}.get(text, 0)
        for _ in range(1 if strategy == "paper" else 5 * bool(found)):
            self.decode(torch.zeros(1))
        return SimpleNamespace(instances=(0,) * (found if strategy == "objects" else 1))

    def segment_many(self, image: Any, texts: Any, *, strategy: str) -> None:
        for text in texts:
            self.segment(image, text, strategy=strategy)

    def reset_image(self) -> None:
        pass


@pytest.mark.parametrize(("absent", "per_object", "met"), [("rocket", 10 / 3, False), ("cat", 15 / 5, True)])
def test_recipe_figures(monkeypatch: pytest.MonkeyPatch, absent: str, per_object: float, met: bool) -> None:
    scene = SimpleNamespace(name="s", image="picture", find=("cat", "dog"), absent=absent)
    monkeypatch.setattr("text2sam.demo.load_scenes", lambda: (scene,))
    details, rows = suites.measure_recipe("x", Scripted(), 2)  # type: ignore[arg-type]
    of_objects, of_texts, clip, sam, timed = rows
    assert (of_objects.ours, of_objects.baseline, of_objects.met) == (pytest.approx(per_object), 1, met)
    assert of_objects.aim == "ours <= baseline + 2"
    assert of_texts.ours == pytest.approx((15 if met else 10) / 3)
    assert of_texts.baseline == 1
    for row in (clip, sam):
        assert (row.ours, row.baseline, row.aim, row.met) == (1, 2, "ours = 1", True)
    assert timed.unit == "s"
    assert [case["calls"]["objects"] for case in details["cases"]] == [5, 5, 5 * met]


def test_encoding_twice_misses_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(Scripted):
        def segment(self, image: Any = None, text: str = "", **options: Any) -> Any:
            self.encode(1)
            return super().segment(image, text, **options)

    scene = SimpleNamespace(name="s", image="picture", find=("cat", "dog"), absent="rocket")
    monkeypatch.setattr("text2sam.demo.load_scenes", lambda: (scene,))
    rows = suites.measure_recipe("x", Forgets(), 1)[1]  # type: ignore[arg-type]
    assert [(row.ours, row.met) for row in rows[2:4]] == [(3, False), (3, False)]


def test_annotate_figures() -> None:
    result = bench.run("annotate", TINY)
    details = result["benchmarks"]["annotate"]
    assert details["images"] == 2
    assert details["objects"]["job"] == details["objects"]["loop"] > 0  # both did the same work
    assert sum(details["shares"].values()) == pytest.approx(1)
    assert min(details["shares"].values()) > 0
    [row] = result["rows"]
    times = details["times"]
    assert row["ours"] == times["job"]["median_s"] == pytest.approx(times["job"]["samples_s"][0])
    assert row["ratio"] == pytest.approx(times["loop"]["median_s"] / times["job"]["median_s"])
    assert row["met"] == (row["ratio"] >= 1.6)
    assert min(side["cpu_s"] for side in times.values()) > 0
    shown = bench.table(result)
    assert "Shares of the loop's time: reading" in shown
    assert f"Seconds of processors per image: {times['job']['cpu_s']:.3g} in the job" in shown


def test_sam_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text2sam.sam.build.build_sam", lambda *_, **__: tiny_predictor().model)
    monkeypatch.setattr("text2sam.sam.build.build_predictor", lambda *_, **__: CPUPredictor(tiny_predictor().model))
    result = bench.run("sam", TINY)
    details = result["benchmarks"]["sam"]
    assert details["difference"] == details["difference_bfloat16"] == 0  # the same model three times
    assert {"prompt_48x64", "prompt_60x90"} <= details.keys()
    assert [row["aim"] for row in result["rows"]] == [">= 1.5", None, None, None]


def test_peers_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(suites, "peer_pipeline", lambda *_: lambda new: asked.append(new) or torch.ones(1000))
    built = suites.build_pair(None, TINY)[0]
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: built)
    with suites.counted(built) as calls:
        result = bench.run("peers", TINY)
    assert calls["sam"] == 3  # for memory, the first mask, and a picture of a folder
    assert calls["decoder"] >= 3
    assert asked == [True, True, False]
    assert result["benchmarks"]["peers"]["peak_tensor_bytes"]["peers"] == 4000
    assert [row["unit"] for row in result["rows"]] == ["s", "s", "s", "bytes"]
    monkeypatch.setattr(suites, "peer_pipeline", lambda *_: None)
    assert bench.run("peers", TINY)["rows"] == []


def test_peers_are_real_models() -> None:
    pytest.importorskip("transformers")
    small = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
    ask = peer_pipeline((48, 64), torch.device("cpu"), detector=small, short_side=64)
    assert ask is not None
    mask = ask(True)
    assert mask.shape[:3] == (1, 1, 1)
    assert mask.isfinite().all()
    assert torch.equal(ask(False), mask)


@pytest.mark.filterwarnings("ignore:No potential")
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(gpu, "_pair", lambda *_: TextPromptedSAM(tiny_predictor(), tiny_surgery()))
    monkeypatch.setattr(gpu, "peer_pipeline", lambda *_: lambda new: None)
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--images", "2", "--dtypes", "float32", "--sams", "vit_t", "--peer-images", "2"]
    results = gpu.main([*arguments, "--out", str(out)])
    assert json.loads(out.read_text()) == results == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["what"] for result in results] == [
        "annotate, ViT-B-16-quickgelu and SAM vit_t",
        "Grounding DINO tiny and SAM 2.1 tiny",
    ]
    assert all(result["images_per_second"] > 0 and result["busy"] is None for result in results)
    gpu.main([*arguments[:-1], "0"])
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_command_writes_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main_command("surgery", tmp_path / "new" / "bench.json", True, replace(TINY, sam_checkpoint=Path("x.pt")))
    printed = json.loads(capsys.readouterr().out)
    assert printed == {**json.loads((tmp_path / "new" / "bench.json").read_text()), "warnings": []}
    assert printed["suite"] == "surgery"
    assert printed["settings"]["tokens"] == 17
    assert {"torch", "open_clip_torch", "numpy", "python", "cpus", "threads"} <= set(printed["machine"])


def test_command_tries_the_file_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("measured first"))
    with pytest.raises(OutputError, match="folder"):
        bench.main_command("surgery", tmp_path)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0123, "s", "12.3 ms"), (2.5e8, "bytes", "250 MB"), (3.8181, "count", "3.82"), (0.0, "count", "0")],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert bench._quantity(value, unit) == text

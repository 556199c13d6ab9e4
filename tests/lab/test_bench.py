"""The benchmarks at tiny sizes; no test depends on times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import count_calls, tiny_predictor, tiny_surgery
from test_cli import run as command

from text2sam.errors import OutputError
from text2sam.lab import bench
from text2sam.lab.bench import Settings, gpu, suites
from text2sam.lab.bench.peers import peer_pipeline
from text2sam.lab.bench.timing import alternate, peak_tensor_bytes
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
    folder_preset="sticker",
    folder_images=2,
    peer_rounds=1,
    folder_rounds=1,
    sam_rounds=1,
    large_shape=(60, 90),
)


@pytest.fixture(scope="module")
def surgery_result() -> dict[str, Any]:
    return bench.run("surgery", TINY)


def test_sides_are_prepared_and_take_turns_in_changing_order() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    times = alternate(sides, 2, prepare=dict.fromkeys("ab", lambda: calls.append("prepare")))
    assert [name for i, name in enumerate(calls) if name != "prepare" and calls[i - 1] == "prepare"] == list("aabbbbaa")
    assert [len(side["samples_s"]) for side in times.values()] == [2, 2]
    assert all(min(side["samples_s"]) <= side["median_s"] <= max(side["samples_s"]) for side in times.values())


@pytest.mark.parametrize(("options", "counts"), [({"short": "a"}, (44, 6, 4)), ({"warm_up": False}, (2, 2, 2))])
def test_calls_of_a_sample(options: Any, counts: tuple[int, int, int]) -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}  # type: ignore[misc]
    alternate(sides, 2, prepare={"a": lambda: calls.append("prepare")}, **options)
    assert tuple(map(calls.count, ("a", "b", "prepare"))) == counts


def test_peak_is_of_tensors_that_exist_together() -> None:
    def in_turn() -> None:
        for _ in range(3):
            torch.ones(1000)

    assert peak_tensor_bytes(lambda: None) == 0
    assert peak_tensor_bytes(in_turn) == 4000
    assert peak_tensor_bytes(lambda: [torch.ones(1000) for _ in range(3)]) == 12000


def test_peak_includes_the_inside_of_compound_operators() -> None:
    # the operator makes the (100, 10) differences inside
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
    assert set(text["times"]) == {"ours", "plain"}
    assert [row["aim"] for row in result["rows"]] == [">= 4"]


def test_images_figures() -> None:
    result = bench.run("images", TINY)
    figures = result["benchmarks"]["images"]
    assert min(figures["points"].values()) >= 2  # without points SAM gets no prompt
    assert figures["map_difference"] < 1e-4
    assert figures["mask_iou"] > 0.95
    assert [row["aim"] for row in result["rows"]] == [">= 4", ">= 4", None]


class Scripted:
    """In place of the sticker pair: two objects of "cat" and one of "dog", with five prompts for each text."""

    def __init__(self) -> None:
        self.session = SimpleNamespace(calls=0)

    def set_image(self, image: Any) -> None:
        pass

    def segment(self, *, text: str, strategy: str) -> Any:
        found = {"cat": 2, "dog": 1}.get(text, 0)
        self.session.calls += 1 if strategy == "paper" else 5 * bool(found)
        return SimpleNamespace(instances=(0,) * (found if strategy == "objects" else 1))

    def segment_many(self, image: Any, texts: Any, *, strategy: str) -> None:
        for text in texts:
            self.segment(text=text, strategy=strategy)


@pytest.mark.parametrize(("absent", "per_object", "met"), [("rocket", 10 / 3, False), ("cat", 15 / 5, True)])
def test_recipe_figures(monkeypatch: pytest.MonkeyPatch, absent: str, per_object: float, met: bool) -> None:
    scene = SimpleNamespace(name="s", image="image", find=("cat", "dog"), absent=absent)
    monkeypatch.setattr("text2sam.demo.load_scenes", lambda: (scene,))
    monkeypatch.setattr(suites, "build_sticker", lambda _: Scripted())
    details, (prompts, timed) = suites.measure_recipe(TINY)
    assert (prompts["ours"], prompts["baseline"], prompts["met"]) == (pytest.approx(per_object), 1, met)
    assert prompts["aim"] == "ours <= baseline + 2"
    assert timed["unit"] == "s"
    assert [case["calls"]["objects"] for case in details["cases"]] == [5, 5, 5 * met]


def test_annotate_figures() -> None:
    result = bench.run("annotate", TINY)
    details = result["benchmarks"]["annotate"]
    assert details["images"] == 2
    assert details["objects"]["job"] == details["objects"]["loop"] > 0
    [row] = result["rows"]
    times = details["times"]
    assert row["ours"] == times["job"]["median_s"] == pytest.approx(times["job"]["samples_s"][0])
    assert row["ratio"] == pytest.approx(times["loop"]["median_s"] / times["job"]["median_s"])
    assert row["met"] == (row["ratio"] >= 1.6)
    assert min(side["cpu_s"] for side in times.values()) > 0
    assert sum(details["shares"].values()) == pytest.approx(1)
    assert min(details["shares"].values()) > 0
    assert f"Processor seconds per image: {times['job']['cpu_s']:.3g} in the job" in bench.table(result)


def test_sam_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("text2sam.sam.build.build_sam", lambda *_, **__: tiny_predictor().model)
    monkeypatch.setattr("text2sam.sam.build.build_predictor", lambda *_, **__: CPUPredictor(tiny_predictor().model))
    result = bench.run("sam", TINY)
    details = result["benchmarks"]["sam"]
    assert details["difference"] == details["difference_bfloat16"] == 0  # all three have the same weights
    assert {"prompt_48x64", "prompt_60x90"} <= details.keys()
    assert [row["aim"] for row in result["rows"]] == [">= 1.5", *[None] * 5]


def test_peers_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(suites, "peer_pipeline", lambda *_: lambda new: asked.append(new) or torch.ones(1000))
    pair = suites.build_sticker(TINY)
    monkeypatch.setattr(TextPromptedSAM, "from_pretrained", lambda *_, **__: pair)
    encoded = count_calls(pair.predictor.model.image_encoder)  # type: ignore[attr-defined]
    result = bench.run("peers", TINY)
    assert len(encoded) == 3  # for memory, the first mask and the four texts
    assert pair.session.calls >= 3
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
        "an image that is set, ten texts, SAM vit_t, prompts together",
        "the same, prompts one by one",
        "Grounding DINO tiny and SAM 2.1 tiny",
    ]
    assert all(result["images_per_second"] > 0 and result["busy"] is None for result in results)
    gpu.main([*arguments[:-1], "0"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_command_writes_and_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run", lambda suite, _, measured=bench.run: measured(suite, TINY))
    printed = json.loads(command(f"bench surgery --json --out {tmp_path / 'new' / 'bench.json'}").stdout)
    assert printed == {**json.loads((tmp_path / "new" / "bench.json").read_text()), "warnings": []}
    assert printed["suite"] == "surgery"
    assert printed["settings"]["tokens"] == 17
    assert {"torch", "open_clip_torch", "numpy", "python", "cpus", "threads"} <= set(printed["machine"])


def test_the_command_opens_the_file_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("measured first"))
    assert isinstance(command(f"bench surgery --out {tmp_path}").exception, OutputError)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0123, "s", "12.3 ms"), (2.5e8, "bytes", "250 MB"), (3.8181, "count", "3.82"), (0.0, "count", "0")],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert bench._quantity(value, unit) == text

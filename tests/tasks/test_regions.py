"""Regions, their vote, and CorrCLIP's attention inside them, against loops written apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import count_calls, picture, tiny_clip, tiny_predictor, tiny_surgery
from numpy.typing import NDArray

from text2sam import TextPromptedSAM
from text2sam.clip.towers.vit import vit_stream
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.sam.session import Session
from text2sam.tasks import segment_semantic
from text2sam.tasks.corrclip import patch_looks, patch_regions, region_attention
from text2sam.tasks.regions import check_regions, find_regions, majority, paint_regions

LABELS = ["cat", "black dog", "bus", "road"]


class Blocks:
    """A predictor that sees the quarter of the image a point lies in, and from the upper right one the upper half."""

    def __init__(self, scores: dict[tuple[int, int], float] | None = None, unsure: float = 0.0) -> None:
        self.scores, self.unsure, self.calls = scores or {}, unsure, 0

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self.image, self.calls = image, self.calls + 1

    def predict(self, point_coords: Any, point_labels: Any, box: Any = None, mask_input: Any = None, **options: Any) -> Any:
        assert options["multimask_output"] is False
        h, w = self.image.shape[:2]
        lower, right = (int(value >= half) for value, half in zip(point_coords[0][::-1], (h / 2, w / 2), strict=True))
        mask = np.zeros((1, h, w), bool)
        mask[0, lower * h // 2 : (lower + 1) * h // 2, right * w // 2 * (lower or not right) : (right + 1) * w // 2] = True
        logits = np.full((1, 4, 4), 9, np.float32)
        logits[0].flat[: round(16 * self.unsure)] = 0  # between the cuts at -1 and 1
        return mask, np.array([self.scores.get((lower, right), 0.9)], np.float32), logits


BLANK = np.zeros((8, 12, 3), np.uint8)


# regions


def test_regions_are_the_smallest_masks() -> None:
    predictor = Blocks()
    session = Session.of(predictor)
    regions = find_regions(session, session.image(BLANK))
    assert (session.calls, predictor.calls) == (64, 1)
    assert regions.dtype == np.uint16
    parts = [regions[:4, :6], regions[:4, 6:], regions[4:, :6], regions[4:, 6:]]
    assert all(len(np.unique(part)) == 1 for part in parts)
    numbers = [int(part[0, 0]) for part in parts]
    assert sorted(numbers) == [1, 2, 3, 4]  # though each was seen sixteen times
    assert numbers[1] == 1  # the upper half is the largest, and a quarter has a mask of its own


def test_poor_masks_are_no_regions() -> None:
    poor = Session.of(Blocks({(1, 0): 0.3}))
    regions = find_regions(poor, poor.image(BLANK))
    assert (regions[4:, :6] == 0).all()
    assert (regions[4:, 6:] > 0).all()
    for unsure, found in ((0.7, False), (0.5, True)):
        session = Session.of(Blocks(unsure=unsure))
        assert find_regions(session, session.image(BLANK)).any() == found


def test_masks_of_a_caller() -> None:
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2, :2], masks[1, :, :3] = True, True
    expected = np.zeros((4, 6), int)
    expected[:, :3], expected[:2, :2] = 1, 2
    assert check_regions(masks, (4, 6)).tolist() == paint_regions(list(masks), (4, 6)).tolist() == expected.tolist()
    assert check_regions(expected.astype(np.int64), (4, 6)) is not None
    for wrong in (expected[:2], expected - 1, expected.astype(float), masks[0], masks[:, :2], "regions"):
        with pytest.raises(InputError, match=r"regions must be whole numbers.*\(M, 4, 6\)"):
            check_regions(wrong, (4, 6))


# the vote


def test_the_vote_against_loops() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, (9, 11)).astype(np.uint16)
    regions = random.integers(0, 5, (9, 11)) * 1000
    found = majority(classes, regions)
    expected = classes.copy()
    for region in (1000, 2000, 3000, 4000):
        inside = regions == region
        counts = [int((classes[inside] == c).sum()) for c in range(3)]
        expected[inside] = counts.index(max(counts))
    assert found.dtype == np.uint16
    assert np.array_equal(found, expected)
    assert np.array_equal(found[regions == 0], classes[regions == 0])
    assert np.array_equal(majority(classes, np.zeros((9, 11), int)), classes)


# attention


def attention_by_loops(regions: NDArray[Any], looks: NDArray[Any]) -> NDArray[Any]:
    n = len(looks)
    centre = sum(looks) / n
    unit = [(look - centre) / np.linalg.norm(look - centre) for look in looks]
    cosines = np.array([[float(a @ b) for b in unit] for a in unit])
    out = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            same = regions[i] == regions[j] != 0
            free = (regions[i] == 0 or regions[j] == 0) and cosines[i, j] > cosines.mean()
            if same or free or i == j:
                out[i, j] = np.exp(4 * cosines[i, j])
        out[i] /= out[i].sum()
    return out


@pytest.mark.parametrize("names", [1, 2, 4])
def test_attention_against_loops(names: int) -> None:
    random = np.random.default_rng(names)
    regions = random.integers(0, names, 30)
    looks = (random.normal(size=(names, 8))[regions] + 0.3 * random.normal(size=(30, 8)) + 5).astype(np.float32)
    found = region_attention(regions, torch.from_numpy(looks)).numpy()
    np.testing.assert_allclose(found, attention_by_loops(regions, looks.astype(np.float64)), atol=1e-5)
    if names == 4:
        assert (found[np.ix_(regions == 1, regions == 2)] == 0).all()
        assert (found[np.ix_(regions == 1, regions == 1)] > 0).all()


def test_patches_that_all_look_the_same() -> None:
    for regions in (np.zeros(5, int), np.ones(5, int)):
        found = region_attention(regions, torch.ones(5, 3))
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.sum(1), torch.ones(5))


def test_regions_under_patches() -> None:
    regions = np.arange(24).reshape(4, 6)
    assert patch_regions(regions, (2, 3)).tolist() == [7, 9, 11, 19, 21, 23]
    # a window over the lower right quarter
    assert patch_regions(regions, (2, 3), (0.5, 0.5, 0.5, 0.5)).tolist() == [15, 16, 17, 21, 22, 23]
    assert patch_regions(regions, (1, 1), (0.0, 0.0, 0.5, 0.5)).tolist() == [7]
    assert len(patch_regions(regions, (9, 9))) == 81


def test_looks_under_patches() -> None:
    random = np.random.default_rng(0)
    embedding = random.normal(size=(3, 4, 6)).astype(np.float32)
    exact = patch_looks(embedding, (4, 6)).numpy()
    np.testing.assert_allclose(exact, embedding.reshape(3, -1).T, atol=1e-5)
    right = patch_looks(embedding, (4, 3), (0.0, 0.5, 1.0, 0.5)).numpy()
    np.testing.assert_allclose(right, embedding[:, :, 3:].reshape(3, -1).T, atol=1e-5)
    halved = patch_looks(embedding, (2, 3)).numpy()
    means = embedding.reshape(3, 2, 2, 3, 2).mean((2, 4))  # each middle lies between four places
    np.testing.assert_allclose(halved, means.reshape(3, -1).T, atol=1e-5)


@torch.no_grad()
def test_given_weights_in_the_last_block_against_open_clips_own_modules() -> None:
    surgery = tiny_surgery()
    visual: Any = surgery.model.visual
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1))
    calls: list[Any] = []
    tokens = surgery.tower.mixed(pixels, lambda grid, looks: (calls.append((grid, looks)), weights)[1])  # type: ignore[attr-defined]
    x, _ = vit_stream(visual, pixels)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    q, k, v = torch.nn.functional.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)
    [(grid, looks)] = calls
    assert grid == (4, 4)
    torch.testing.assert_close(looks, (q + k)[:, 1:])
    for image in range(2):
        for i in range(16):
            mixed = sum(weights[image, i, j] * v[image, 1 + j] for j in range(16))
            expected = visual.ln_post(last.attn.out_proj(mixed)) @ visual.proj
            torch.testing.assert_close(tokens.raw[image, 1 + i], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.raw[:, 0], surgery.model.encode_image(pixels))
    assert tokens.surgery is tokens.raw


def test_towers_without_attention_say_so() -> None:
    surgery = tiny_surgery(tiny_clip("resnet"), image_size=64)
    with pytest.raises(UnsupportedModelError, match=r"last block of a transformer, which ModifiedResNet has not"):
        segment_semantic(surgery, picture(), LABELS, method="corrclip", regions=np.ones((30, 44), int))
    predictor = Blocks()
    with pytest.raises(UnsupportedModelError):
        segment_semantic(TextPromptedSAM(predictor, surgery), picture(), LABELS, method="corrclip")
    assert not predictor.calls


# semantic segmentation


REGIONS = np.zeros((30, 44), int)
REGIONS[:, :20], REGIONS[:12, 20:] = 1, 2


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_corrclip_is_attention_inside_regions_and_their_vote(scales: tuple[float, ...]) -> None:
    surgery, image = tiny_surgery(image_size=32, scales=scales), picture()

    def weights(i: int, grid: tuple[int, int], looks: torch.Tensor) -> torch.Tensor:
        assert i == 0
        return region_attention(patch_regions(REGIONS, grid), looks)

    [features] = surgery.encode_mixed([image], weights)
    assert features.grid == (8, 8)
    similarities = features.raw[1:] @ surgery.encode_texts(LABELS).T
    maps = similarities.T.reshape(1, 4, 8, 8)
    classes = torch.nn.functional.interpolate(maps, (30, 44), mode="bilinear")[0].argmax(0).numpy().astype(np.uint16)
    found = segment_semantic(surgery, image, LABELS, method="corrclip", regions=REGIONS)
    assert np.array_equal(found.classes, majority(classes, REGIONS))
    assert (found.method, found.refined) == ("corrclip", True)
    np.testing.assert_allclose(found.probabilities, (40 * maps[0]).softmax(0).numpy(), atol=1e-5)
    other = segment_semantic(surgery, image, LABELS, method="corrclip", regions=np.ones((30, 44), int))
    assert not np.allclose(other.probabilities, found.probabilities, atol=1e-4)  # the scope counts, not only the vote


def test_windows_see_their_part_of_the_regions() -> None:
    surgery, image = tiny_surgery(), picture()
    options: dict[str, Any] = {"window": 16, "stride": 14, "batch_size": 3}
    found = segment_semantic(surgery, image, LABELS, method="corrclip", regions=REGIONS, **options)
    total, times = np.zeros((4, 30, 44)), np.zeros((30, 44))
    texts = surgery.encode_texts(LABELS)
    for y in (0, 14):
        for x in (0, 14, 28):
            under = REGIONS[y : y + 16, x : x + 16]
            [features] = surgery.encode_mixed(
                [image[y : y + 16, x : x + 16]],
                lambda i, grid, looks, under=under: region_attention(patch_regions(under, grid), looks),
            )
            maps = (features.raw[1:] @ texts.T).T.reshape(1, 4, 4, 4)
            total[:, y : y + 16, x : x + 16] += torch.nn.functional.interpolate(maps, (16, 16), mode="bilinear")[0].numpy()
            times[y : y + 16, x : x + 16] += 1
    assert np.array_equal(found.classes, majority((total / times).argmax(0).astype(np.uint16), REGIONS))


@pytest.mark.parametrize("method", ["architecture", "surgery", "sclip"])
def test_regions_vote_with_any_method(method: str) -> None:
    surgery, image = tiny_surgery(), picture()
    plain = segment_semantic(surgery, image, LABELS, method=method)
    voted = segment_semantic(surgery, image, LABELS, method=method, refine="regions", regions=REGIONS)
    assert np.array_equal(voted.classes, majority(plain.classes, REGIONS))
    assert np.array_equal(voted.probabilities, plain.probabilities)
    assert voted.refined
    assert not plain.refined
    masks = np.stack([REGIONS == 1, REGIONS == 2])
    assert np.array_equal(
        segment_semantic(surgery, image, LABELS, method=method, refine="regions", regions=masks).classes, voted.classes
    )


def test_the_pairs_own_sam_cuts_the_image() -> None:
    predictor = Blocks()
    pair = TextPromptedSAM(predictor, tiny_surgery())
    session = pair.session
    regions = find_regions(session, session.image(picture()))
    assert session.calls == 64
    for options in ({"method": "corrclip"}, {"refine": "regions"}):
        found = segment_semantic(pair, picture(), LABELS, **options)  # type: ignore[arg-type]
        given = segment_semantic(pair.generator, picture(), LABELS, regions=regions, **options)  # type: ignore[arg-type]
        assert np.array_equal(found.classes, given.classes)
        assert len(np.unique(found.classes[:15, :22])) == 1


def test_patches_look_as_sam_sees_them() -> None:
    predictor, surgery = tiny_predictor(), tiny_surgery()
    pair = TextPromptedSAM(predictor, surgery)
    embedding = pair.session.embedding(pair.session.image(picture()))
    assert embedding is not None

    def weights(i: int, grid: tuple[int, int], looks: torch.Tensor) -> torch.Tensor:
        return region_attention(patch_regions(REGIONS, grid), patch_looks(embedding, grid))

    [features] = surgery.encode_mixed([picture()], weights)
    maps = (features.raw[1:] @ surgery.encode_texts(LABELS).T).T.reshape(4, 4, 4)
    found = segment_semantic(pair, picture(), LABELS, method="corrclip", regions=REGIONS)
    np.testing.assert_allclose(found.probabilities, (40 * maps).softmax(0).numpy(), atol=1e-5)
    alone = segment_semantic(surgery, picture(), LABELS, method="corrclip", regions=REGIONS)
    assert not np.allclose(alone.probabilities, found.probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "corrclip"}, "method='corrclip' needs a TextPromptedSAM: a ClipSurgery has no SAM; or give regions"),
        ({"refine": "regions"}, "refine='regions' needs a TextPromptedSAM"),
        ({"regions": REGIONS}, "regions are for refine='regions'"),
        ({"method": "corrclip", "regions": REGIONS[:3]}, r"of shape \(30, 44\), that of the image"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    surgery = tiny_surgery()
    calls = count_calls(surgery.model.visual.conv1)
    with pytest.raises(InputError, match=message):
        segment_semantic(surgery, picture(), LABELS, **options)
    assert not calls
    features = surgery.encode_image(picture())
    with pytest.raises(InputError, match="need the image itself"):
        segment_semantic(surgery, features, LABELS, method="corrclip", regions=REGIONS)


def test_elsewhere_corrclip_is_refused_by_name() -> None:
    surgery = tiny_surgery()
    with pytest.raises(InputError, match="'corrclip' needs SAM's masks of the whole image, and is one of segment_semantic"):
        surgery.similarity(picture(), ["cat"], method="corrclip")
    with pytest.raises(InputError, match="'corrclip' needs SAM's masks"):
        TextPromptedSAM(Blocks(), surgery).segment(picture(), "cat", method="corrclip")

"""Tiny models, drawn images and counters shared by the tests of the core."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from text2sam.clip.generator import ClipSurgery
from text2sam.clip.towers import run_tower, tower_of
from text2sam.clip.towers.base import TowerTokens
from text2sam.export.annotated import AnnotatedImage
from text2sam.export.formats import make_exporter
from text2sam.export.losses import Losses
from text2sam.types import SimilarityMap

VIT = {"image_size": 16, "layers": 3, "width": 32, "patch_size": 4, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TEMPLATES = ("a {}.", "there is the {} in the scene.")

# a table of words as WordNet has them, for 11 classes, and what was learned besides
SYNSETS = {
    "n1": {"words": ["animal"], "classes": [0, 1, 2, 3]},
    "n2": {"words": ["cat", "true cat"], "classes": [0]},
    "n3": {"words": ["bird"], "classes": [2, 3]},
    "n4": {"words": ["crane"], "classes": [4]},
    "n5": {"words": ["crane"], "classes": [3]},
    "n6": {"words": ["mouse"], "classes": [1]},
    "n7": {"words": ["hot dog"], "classes": [5]},
    "n8": {"words": ["tee shirt", "T-shirt"], "classes": [6]},
    "n9": {"words": ["knife"], "classes": [7]},
    "n10": {"words": ["machine"], "classes": [4, 8]},
    "n11": {"words": ["Turkey"], "classes": [9]},
    "n12": {"words": ["turkey"], "classes": [2]},
    "n13": {"words": ["sunglasses"], "classes": [10]},
}
WORDS: dict[str, list[str]] = {}
for _name, _synset in SYNSETS.items():
    for _word in _synset["words"]:
        WORDS.setdefault(str(_word), []).append(_name)
LEARNED = [
    {"words": ["person", "man", "woman"], "synset": None},
    {"words": ["cat", "kitty"], "synset": "n2"},
]


def draw_weights(model: nn.Module, std: float = 0.05, seed: int = 0) -> nn.Module:
    """Weights by the recipe of DESIGN.md (Parity) with ``std`` 0.05; more makes attention sharper."""
    random = np.random.RandomState(seed)
    drawn = {}
    for key, old in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked") or key == "logit_scale":
            continue
        values = random.standard_normal(tuple(old.shape)).astype(np.float32)
        if key.endswith("running_var"):
            values = 1 + 0.1 * np.abs(values)
        elif old.ndim == 1 and key.endswith("weight"):
            values = 1 + 0.05 * values
        else:
            values = std * values
        drawn[key] = torch.from_numpy(np.asarray(values, np.float32))
    missing, unexpected = model.load_state_dict(drawn, strict=False)
    assert not unexpected
    assert all(key == "logit_scale" or key.endswith("num_batches_tracked") for key in missing)
    return model.eval()


def tiny_clip(
    family: str = "vit",
    *,
    seed: int = 0,
    quick_gelu: bool = False,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    embed_dim: int = 16,
    **options: Any,
) -> Any:
    """An open_clip CLIP that runs in a millisecond or two; CLIP's own tokenizer fits it."""
    towers = {"vit": VIT, "resnet": RESNET}[family] | (vision or {})
    model = CLIP(embed_dim, towers, TEXT | (text or {}), quick_gelu=quick_gelu, **options)
    return draw_weights(model, 0.15, seed)


def word_network(seed: int = 0) -> Any:
    """A classifier of timm for the 11 classes of :data:`SYNSETS`."""
    import timm

    return draw_weights(timm.create_model("test_efficientnet", pretrained=False, num_classes=11), 0.2, seed)


@functools.cache
def tokenizer() -> Any:
    return open_clip.get_tokenizer("ViT-B-32")


def tiny_surgery(model: Any = None, **options: Any) -> ClipSurgery:
    arguments = {"image_size": 16, "depth": 2, "device": "cpu", "templates": TEMPLATES} | options
    return ClipSurgery(tiny_clip() if model is None else model, tokenizer(), **arguments)


def surgery_tokens(visual: nn.Module, pixels: torch.Tensor, *, depth: int = 6, kinds: Iterable[str] = ()) -> TowerTokens:
    """What a tower gives for normalised pixels."""
    return run_tower(tower_of(visual), pixels, depth=depth, kinds=set(kinds))


def further(tokens: TowerTokens) -> dict[str, torch.Tensor]:
    """Tokens of the kinds of attention that have to be asked for."""
    return {name: path for name, path in tokens.paths.items() if name not in ("raw", "architecture")}


def tiny_predictor(seed: int = 0) -> SamPredictor:
    """A real ``SamPredictor`` on a segment-anything ``Sam`` of a few thousand weights."""
    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(img_size=64, patch_size=16, embed_dim=16, depth=1, num_heads=2, out_chans=16),
        PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4),
        MaskDecoder(
            transformer_dim=16,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, num_heads=2, mlp_dim=16),
            iou_head_hidden_dim=16,
        ),
    )
    return SamPredictor(sam.eval().requires_grad_(False))


def picture(seed: int = 0, height: int = 30, width: int = 44) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 noise in blobs."""
    small = np.random.default_rng(seed).integers(0, 256, ((height + 4) // 5, (width + 4) // 5, 3), dtype=np.uint8)
    return np.ascontiguousarray(small.repeat(5, 0).repeat(5, 1)[:height, :width])


def png(pixels: Any) -> bytes:
    """The content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def blobs(*spots: tuple[float, float, float], width: float = 1.5, grid: tuple[int, int] = (20, 20)) -> SimilarityMap:
    """A sum of Gaussians at (row, column, height)."""
    r, c = np.mgrid[: grid[0], : grid[1]]
    values = sum(height * np.exp(-((r - y) ** 2 + (c - x) ** 2) / (2 * width**2)) for y, x, height in spots)
    return SimilarityMap(np.asarray(values, np.float32), "blob")


def patch_disc(row: float, column: float, radius: float, side: int = 200, grid: int = 20) -> NDArray[np.bool_]:
    """(side, side) bool: a disc at a place in patches."""
    y, x = (np.mgrid[:side, :side] + 0.5) * grid / side - 0.5
    return np.asarray(np.hypot(y - row, x - column) <= radius)


class FakePredictor:
    """Answers with discs around the first positive point, and remembers what it was asked.

    Three masks, or one where it is asked for one. The logits are filled with the mean of the image it holds, so that a test
    sees which one that was.
    """

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []
        self.prompts: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self.mask_inputs: list[NDArray[Any] | None] = []
        self.boxes: list[NDArray[Any] | None] = []
        self.fail: str = ""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        self._fail("set_image")
        self.images.append(image.copy())

    def predict(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Any:
        self._fail("predict")
        assert not return_logits
        assert multimask_output or mask_input is not None
        self.prompts.append((point_coords.copy(), point_labels.copy()))
        self.mask_inputs.append(None if mask_input is None else mask_input.copy())
        self.boxes.append(None if box is None else box.copy())
        masks, scores = self.answer(self.images[-1], point_coords[point_labels == 1][0].astype(int), multimask_output)
        return masks, scores, np.full((len(masks), 4, 4), self.images[-1].mean(), np.float32)

    def answer(
        self, image: NDArray[np.uint8], point: NDArray[Any], several: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Masks (M, H, W) and scores (M,) for a point (x, y) of an image: three of each, or one."""
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        away = np.hypot(x - point[0], y - point[1])
        masks = np.stack([away <= radius for radius in ((2, 6, 4) if several else (3,))])
        return masks, np.array([0.3, 0.9, 0.5] if several else [0.4], np.float32)

    def _fail(self, where: str) -> None:
        if self.fail == where:
            raise ZeroDivisionError(where)


def count_calls(module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the first argument of every later call of ``module``, in a list that grows."""
    shapes: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    return shapes


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def condition(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call may not leave changed: weights, modes, hooks, attributes."""
    return {"weights": weights_hash(model)} | {
        name: (
            module.training,
            sorted(vars(module)),
            {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks")},
            [(k, id(v), v.requires_grad) for k, v in module.named_parameters(recurse=False)],
            type(module).forward,
        )
        for name, module in model.named_modules()
    }


def raising(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("on purpose")


def after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which raises from its call number ``calls`` on."""
    made = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return function(*arguments, **options) if made <= calls else raising()

    return wrapped


def exported(format: str, images: Iterable[AnnotatedImage], out: Path, labels: Sequence[str], **options: Any) -> Losses:
    """As ``text2sam.export.formats.export``, without its warning."""
    with make_exporter(out, format=format, labels=labels, **options) as exporter:
        for image in images:
            exporter.add(image)
    return exporter.close()

"""ClipSurgery: an image and texts -> similarity maps."""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from text2sam.clip.prompts import PromptEnsemble, Tokenizer, check_text
from text2sam.clip.similarity import Weighting, feature_surgery
from text2sam.clip.surgery import check_tower, operate, patch_size
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.image import ImageLike, read_image
from text2sam.types import SimilarityMap

Method = Literal["surgery", "architecture", "itsm"]
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What CLIP knows of one image: kept, so that further texts cost no further encoding.

    Attributes:
        operated: (1 + gh*gw, C) float32 L2-normalised tokens of the operated path, class token first.
        raw: (1 + gh*gw, C) float32 L2-normalised tokens of the original path.
        grid: (gh, gw).
        shape: (H, W) of the image in pixels.
    """

    operated: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]
    shape: tuple[int, int]


class ClipSurgery:
    """Similarity maps from a CLIP model by CLIP Surgery (arXiv 2304.05653).

    Args:
        model: a CLIP built by open_clip, with a ``VisionTransformer`` or ``ModifiedResNet`` image tower. Its
            weights are never changed; it is moved to ``device`` in place.
        tokenizer: the model's tokenizer, ``open_clip.get_tokenizer(name)``.
        image_size: side in pixels to which images are resized, squarely, as the papers do; or (height, width).
            Rounded to whole patches.
        depth: how many of the last blocks get the second path; at most the tower's number of blocks.
        device: None takes cuda, then mps, then cpu.
        dtype: floating point type of the model; float32 on the CPU, where None means it too; elsewhere
            None keeps the model's own.
        templates: prompt templates; the papers' 85 by default, ``prompts.SHORT_TEMPLATES`` for speed.
        text_cache: folder that keeps text features between runs; None keeps them in memory only.
        tau, weighting: see :func:`text2sam.clip.similarity.feature_surgery`.
        presence_offset: added to a text's logit in :meth:`presence`.
        mean, std: normalisation of pixels, RGB, for values in [0, 1]; the model's own or OpenAI's by default.

    Raises:
        UnsupportedModelError: the image tower cannot be operated on.
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        image_size: int | tuple[int, int] = 512,
        depth: int = 6,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        templates: Sequence[str] | None = None,
        text_cache: str | os.PathLike[str] | None = None,
        tau: float = 2.0,
        weighting: Weighting = "code",
        presence_offset: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        visual = getattr(model, "visual", None)
        if not isinstance(visual, torch.nn.Module):
            raise UnsupportedModelError(f"ClipSurgery needs a CLIP built by open_clip, not {type(model).__name__}")
        check_tower(visual, depth)
        self.device = pick_device(device)
        if dtype is not None or self.device.type == "cpu":
            dtype = check_dtype(dtype, self.device)
            model = model.to(dtype)
        self.model = model.to(self.device)
        self.depth = depth
        self.image_size = _whole_patches(image_size, patch_size(visual))
        if weighting not in get_args(Weighting):
            raise InputError(f"weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}")
        self.tau = tau
        self.weighting: Weighting = weighting
        self.presence_offset = presence_offset
        self.mean = _per_channel("mean", mean, getattr(visual, "image_mean", None) or OPENAI_MEAN)
        self.std = _per_channel("std", std, getattr(visual, "image_std", None) or OPENAI_STD)
        self.prompts = PromptEnsemble(model, tokenizer, templates=templates, cache=text_cache)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens of the operated path.

        Args:
            pixels: (B, 3, H, W) normalised pixels of any size of at least one patch.

        Returns:
            (B, 1 + gh*gw, C): class token first, after the projection, not L2-normalised.

        Raises:
            InputError: ``pixels`` has another shape.
        """
        if not isinstance(pixels, torch.Tensor):
            raise InputError(
                f"pixels must be a tensor (B, 3, H, W), not {type(pixels).__name__}; for an image call encode_image"
            )
        with torch.inference_mode():
            return operate(self.model.visual, self._cast(pixels), depth=self.depth).operated

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, C) float32 prompt-ensemble features of texts, L2-normalised.

        Raises:
            PromptError: there is no text, or one is not a string or too long.
        """
        return self.prompts(texts)

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """An image as the image tower wants it: (1, 3, h, w) float32 of ``image_size``, bicubic, normalised."""
        return self._pixels(read_image(image))

    def encode_image(self, image: ImageLike) -> ImageFeatures:
        """Features of one image, for :meth:`maps` and :meth:`scores`.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.encode_images([image])[0]

    def encode_images(self, images: Sequence[ImageLike]) -> list[ImageFeatures]:
        """Features of several images, encoded as one batch.

        Raises:
            ImageError: an image cannot be read.
        """
        read = [read_image(image) for image in images]
        if not read:
            return []
        pixels = torch.cat([self._pixels(image) for image in read])
        with torch.inference_mode():
            tokens = operate(self.model.visual, self._cast(pixels), depth=self.depth)
        operated, raw = (torch.nn.functional.normalize(t.float(), dim=-1) for t in (tokens.operated, tokens.raw))
        return [
            ImageFeatures(o, r, tokens.grid, (image.shape[0], image.shape[1]))
            for o, r, image in zip(operated, raw, read, strict=True)
        ]

    def similarity(
        self,
        image: ImageLike,
        texts: Sequence[str],
        *,
        against: Sequence[str] | None = None,
        method: Method = "surgery",
    ) -> list[SimilarityMap]:
        """Similarity maps of one image, one per text; see :meth:`maps`."""
        return self.maps(self.encode_image(image), texts, against=against, method=method)

    def compare(
        self,
        image: ImageLike,
        texts: Sequence[str],
        *,
        methods: Sequence[Method] = ("itsm", "architecture", "surgery"),
        against: Sequence[str] | None = None,
    ) -> dict[str, list[SimilarityMap]]:
        """Similarity maps by several methods from one encoding: method -> one map per text."""
        features = self.encode_image(image)
        return {method: self.maps(features, texts, against=against, method=method) for method in methods}

    def maps(
        self,
        features: ImageFeatures,
        texts: Sequence[str],
        *,
        against: Sequence[str] | None = None,
        method: Method = "surgery",
    ) -> list[SimilarityMap]:
        """Similarity maps from an image's features.

        Args:
            features: from :meth:`encode_image`.
            texts: T texts. Each is taken by itself: which others are asked for in the same call changes nothing.
            against: the label set for feature surgery. Each text is set against these, itself added. None
                subtracts the prompt ensemble of the empty text, as the papers do for a single text.
            method: ``"surgery"``, architecture and feature surgery; ``"architecture"``, cosine of the operated
                tokens; ``"itsm"``, cosine of the original tokens (image-text similarity map, arXiv 2209.07046).

        Returns:
            T maps whose ``values`` are (gh, gw) float32 similarities, not yet min-max.

        Raises:
            PromptError: a text is empty or too long.
            InputError: ``method`` is unknown, or, for surgery, ``against`` is empty or names nothing but the text.
        """
        wanted, labels = _request(texts, against, method)
        if not wanted:
            return []
        with torch.inference_mode():
            if method == "surgery":
                columns = self._surgery(features, wanted, labels)
            else:
                tokens = features.operated if method == "architecture" else features.raw
                columns = tokens @ self.encode_texts(wanted).T  # (1 + N, T)
        grids = columns[1:].T.reshape(len(wanted), *features.grid).float().cpu().numpy()
        return [SimilarityMap(np.ascontiguousarray(g), text, method) for g, text in zip(grids, wanted, strict=True)]

    def prepare(self, texts: Sequence[str], *, against: Sequence[str] | None = None, method: Method = "surgery") -> None:
        """Encodes texts ahead of an image, in one batch; raises what :meth:`maps` would raise for them."""
        wanted, labels = _request(texts, against, method)
        if wanted:
            self.encode_texts([*wanted, *(labels or ()), ""])

    def scores(self, features: ImageFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T,) float32 cosines in [-1, 1] of the image's class token (original path) and texts."""
        with torch.inference_mode():
            cosines = self.encode_texts(list(texts)) @ features.raw[0]
        return np.asarray(cosines.cpu().numpy(), np.float32)

    def presence(self, features: ImageFeatures, text: str, *, against: Sequence[str] | None = None) -> float:
        """Whether a text is in the image at all, as a score in [0, 1] that min-max cannot make up.

        The probability of the text in a softmax over the class token's similarities, times CLIP's own logit
        scale, to the text, the empty text and the texts of ``against``; ``presence_offset`` is added to the text's
        logit. How well it separates present from absent depends on the model.
        """
        text = check_text(text)
        others = [""] + [label for label in _labels(against) or () if label != text]
        scores = torch.from_numpy(self.scores(features, [text, *others]))
        scale = self.model.logit_scale.detach().float().exp().mean().cpu()
        logits = scale * scores
        logits[0] += self.presence_offset
        return float(logits.softmax(dim=0)[0])

    def _surgery(self, features: ImageFeatures, texts: list[str], labels: list[str] | None) -> torch.Tensor:
        tokens = features.operated[None]  # (1, 1 + N, C)
        if labels is None:
            return feature_surgery(tokens, self.encode_texts(texts), self.encode_texts([""]))[0]
        columns: dict[str, torch.Tensor] = {}
        # texts that are themselves in the label set share one feature surgery over it
        for text in dict.fromkeys(texts):
            if text in columns:
                continue
            label_set = labels if text in labels else [text, *labels]
            result = feature_surgery(tokens, self.encode_texts(label_set), tau=self.tau, weighting=self.weighting)[0]
            columns.update({label: result[:, i] for i, label in enumerate(label_set) if label == text or label_set is labels})
        return torch.stack([columns[text] for text in texts], dim=1)

    def _pixels(self, image: NDArray[np.uint8]) -> torch.Tensor:
        height, width = self.image_size
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
        mean, std = (torch.tensor(v, dtype=torch.float32).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def _cast(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = next(self.model.visual.parameters())
        return pixels.to(self.device, weight.dtype)


def _request(texts: Sequence[str], against: Sequence[str] | None, method: Method) -> tuple[list[str], list[str] | None]:
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    wanted = [check_text(text) for text in texts]
    labels = _labels(against)
    alone = [text for text in wanted if labels is not None and not set(labels) - {text}]
    if method == "surgery" and alone:
        raise InputError(
            f"against={labels!r} leaves {alone[0]!r} alone in its label set, where feature surgery gives 0 everywhere; "
            "name at least one other text or pass against=None"
        )
    return wanted, labels


def _labels(against: Sequence[str] | None) -> list[str] | None:
    if against is None:
        return None
    if isinstance(against, str) or not isinstance(against, Collection):
        raise InputError(f"against must be a sequence of strings, such as ['dog'], not {against!r}")
    return list(dict.fromkeys(check_text(text) for text in against))


def _per_channel(name: str, values: Sequence[float] | None, default: Sequence[float]) -> tuple[float, float, float]:
    given = default if values is None else values
    try:
        red, green, blue = (float(v) for v in given)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be three numbers, for red, green and blue, not {values!r}") from None
    return red, green, blue


def _whole_patches(size: int | tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(v) for v in (size if isinstance(size, Sequence) else (size, size)))
    except (TypeError, ValueError):
        raise InputError(f"image_size must be a side in pixels or (height, width), not {size!r}") from None
    if min(height, width) < 1:
        raise InputError(f"image_size must be positive, not {size!r}")
    rows, columns = (max(1, round(n / p)) for n, p in zip((height, width), patch, strict=True))
    return rows * patch[0], columns * patch[1]

"""ClipSurgery: an image and texts -> similarity maps."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from text2sam.clip.attention import KINDS, METHODS
from text2sam.clip.prompts import SHORT_TEMPLATES, PromptEnsemble, Tokenizer, check_text, text_tower_fingerprint
from text2sam.clip.scales import average_scales, check_scales
from text2sam.clip.similarity import Weighting, feature_surgery
from text2sam.clip.tiles import TileLayout, Tiles, blend_tiles, check_tiles, tile_layout
from text2sam.clip.towers import TowerTokens, check_kinds, check_tower, patch_size, surgery_tokens
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.image import ImageLike, read_image
from text2sam.types import SimilarityMap

Method = Literal["surgery", "architecture", "features", "itsm", "rclip", "maskclip", "sclip", "clearclip", "naclip", "gem"]
"""How a similarity map is made; :data:`text2sam.clip.attention.METHODS` has the source of each."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What CLIP knows of one image: kept, so that further texts cost no further encoding.

    Attributes:
        surgery: (1 + gh*gw, C) float32 L2-normalised tokens of the surgery path, class token first.
        raw: (1 + gh*gw, C) float32 L2-normalised tokens of the original path.
        grid: (gh, gw).
        shape: (H, W) of the image in pixels.
        others: kind of attention (:data:`text2sam.clip.attention.KINDS`) -> its tokens likewise, for the kinds that were asked
            for; their class token is that of ``raw``.
    """

    surgery: torch.Tensor
    raw: torch.Tensor
    grid: tuple[int, int]
    shape: tuple[int, int]
    others: Mapping[str, torch.Tensor] = field(default_factory=dict, kw_only=True)


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
        vocabulary: names of what else an image may show, which a text's presence is held against; see :meth:`presence`.
        presence_offset: added to a text's logit in :meth:`presence`.
        presence_peak: with a vocabulary, how much the log-odds at a map's peak add to its text's logit in :meth:`presence`.
        presence_rivals: how much of the other texts' weight, in [0, 1], counts against a text in :meth:`presence`.
        mean, std: normalisation of pixels, RGB, for values in [0, 1]; the model's own or OpenAI's by default.
        scales: at which shares of ``image_size`` an image is encoded; the mean of the tokens is taken, on the grid of
            ``image_size`` (:mod:`text2sam.clip.scales`). The papers use the one size. Each further scale costs its share,
            squared, of an encoding.

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
        vocabulary: Sequence[str] | None = None,
        presence_offset: float = 0.0,
        presence_peak: float = 0.0,
        presence_rivals: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scales: Sequence[float] = (1.0,),
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
        self.scales = check_scales(scales)
        if weighting not in get_args(Weighting):
            raise InputError(f"weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}")
        self.tau = tau
        self.weighting: Weighting = weighting
        self.presence_offset = presence_offset
        self.presence_peak = presence_peak
        if not 0.0 <= presence_rivals <= 1.0:
            raise InputError(f"presence_rivals must be in [0, 1], not {presence_rivals!r}")
        self.presence_rivals = presence_rivals
        self.mean = _per_channel("mean", mean, getattr(visual, "image_mean", None) or OPENAI_MEAN)
        self.std = _per_channel("std", std, getattr(visual, "image_std", None) or OPENAI_STD)
        self.prompts = PromptEnsemble(model, tokenizer, templates=templates, cache=text_cache)
        self.vocabulary = tuple(_labels(vocabulary, "vocabulary") or ())
        # a few templates do for telling names apart, and a vocabulary is long
        self._names = PromptEnsemble(model, tokenizer, templates=SHORT_TEMPLATES, cache=text_cache)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens of the surgery path.

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
            return surgery_tokens(self.model.visual, self._cast(pixels), depth=self.depth).surgery

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, C) float32 prompt-ensemble features of texts, L2-normalised.

        Raises:
            PromptError: there is no text, or one is not a string or too long.
        """
        return self.prompts(texts)

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """An image as the image tower wants it: (1, 3, h, w) float32 of ``image_size``, bicubic, normalised."""
        return self._pixels(read_image(image))

    def encode_image(
        self, image: ImageLike, *, methods: Sequence[Method] | None = None, tiles: Tiles = False, batch_size: int = 8
    ) -> ImageFeatures:
        """Features of one image, for :meth:`maps` and :meth:`scores`.

        Args:
            image: anything :func:`text2sam.image.read_image` accepts.
            methods: what maps will be asked for. ``"surgery"``, ``"architecture"``, ``"features"``, ``"itsm"`` and
                ``"rclip"`` can always be; each of the others costs some attention of its own beside the one encoding.
            tiles: for pictures far larger than ``image_size``, whose small objects are lost when it is resized to that.
                ``"auto"`` encodes overlapping tiles where a side is more than three times that of ``image_size``; an int
                is the side of a tile in pixels of the image; False never does. The features then have a grid of up to 16
                times as many patches, made of the tiles' (:mod:`text2sam.clip.tiles`), at the cost of encoding up to
                about 40 tiles, and the class token of the whole image encoded at once: scores are those without
                tiles, and presence but for what ``presence_peak`` adds. Where one tile covers the image the result is exactly
                that of False.
            batch_size: how many tiles are encoded at once.

        Raises:
            ImageError: the image cannot be read.
            InputError: ``methods``, ``tiles`` or ``batch_size`` is none of the above.
            UnsupportedModelError: a method is defined on a transformer's blocks, and the tower is a ResNet.
        """
        kinds = self._kinds(methods)
        side = check_tiles(tiles)
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise InputError(f"batch_size must be an int of at least 1, not {batch_size!r}")
        pixels = read_image(image)
        whole = self._encoded([pixels], kinds)[0]
        if side is False:
            return whole
        layout = tile_layout(whole.shape, self.image_size, whole.grid, side)
        if len(layout) == 1:
            return whole
        patches = blend_tiles(self._tiles(pixels, layout, batch_size, kinds), layout)  # (gh, gw, 2 + K, C)
        tiled = torch.nn.functional.normalize(patches, dim=-1).flatten(0, 1).unbind(1)
        surgery, raw, *others = (
            torch.cat([tokens[:1], blended])
            for tokens, blended in zip((whole.surgery, whole.raw, *whole.others.values()), tiled, strict=True)
        )
        return ImageFeatures(surgery, raw, layout.grid, whole.shape, others=dict(zip(whole.others, others, strict=True)))

    def encode(
        self, images: Sequence[ImageLike], *, methods: Sequence[Method] | None = None, tiles: Tiles = False
    ) -> list[ImageFeatures]:
        """Features of several images; see :meth:`encode_image`. Without tiles they are encoded as one batch."""
        if tiles is False:
            return self.encode_images(images, methods=methods)
        return [self.encode_image(image, methods=methods, tiles=tiles) for image in images]

    def encode_images(self, images: Sequence[ImageLike], *, methods: Sequence[Method] | None = None) -> list[ImageFeatures]:
        """Features of several images, encoded as one batch.

        Args:
            images: anything :func:`text2sam.image.read_image` accepts.
            methods: what maps will be asked for, see :meth:`encode_image`.

        Raises:
            ImageError: an image cannot be read.
            InputError: ``methods`` is not of method names.
            UnsupportedModelError: a method is defined on a transformer's blocks, and the tower is a ResNet.
        """
        kinds = self._kinds(methods)
        read = [read_image(image) for image in images]
        return self._encoded(read, kinds) if read else []

    def similarity(
        self,
        image: ImageLike,
        texts: Sequence[str],
        *,
        against: Sequence[str] | None = None,
        method: Method = "surgery",
        tiles: Tiles = False,
    ) -> list[SimilarityMap]:
        """Similarity maps of one image, one per text; see :meth:`maps`, and :meth:`encode_image` for ``tiles``."""
        return self.compare(image, texts, methods=[method], against=against, tiles=tiles)[method]

    def compare(
        self,
        image: ImageLike,
        texts: Sequence[str],
        *,
        methods: Sequence[Method] = ("itsm", "architecture", "surgery"),
        against: Sequence[str] | None = None,
        tiles: Tiles = False,
    ) -> dict[Method, list[SimilarityMap]]:
        """Similarity maps by several methods from one encoding: method -> one map per text.

        See :meth:`maps` for what is raised, and :meth:`encode_image` for ``tiles``.
        """
        features = self.encode_image(image, methods=methods, tiles=tiles)
        return {method: self.maps(features, texts, against=against, method=method) for method in methods}

    def maps(
        self,
        features: ImageFeatures,
        texts: Sequence[str],
        *,
        against: Sequence[str] | None = None,
        method: Method = "surgery",
        vocabulary: bool = False,
    ) -> list[SimilarityMap]:
        """Similarity maps from an image's features.

        Args:
            features: from :meth:`encode_image`.
            texts: T texts. Each is taken by itself: which others are asked for in the same call changes nothing.
            against: the label set for feature surgery. Each text is set against these, itself added. None
                subtracts the prompt ensemble of the empty text, as the papers do for a single text.
            method: ``"surgery"``, architecture and feature surgery; ``"architecture"``, cosine of the surgery
                tokens; ``"features"``, feature surgery on the original tokens; ``"itsm"``, cosine of the original tokens
                (image-text similarity map, arXiv 2209.07046), and ``"rclip"``, its negative. Cosine of the tokens of other
                kinds of attention, where the image was encoded for it: ``"maskclip"``, ``"sclip"``, ``"clearclip"``,
                ``"naclip"``, ``"gem"``; :data:`text2sam.clip.attention.METHODS` has the sources.
            vocabulary: where there is a vocabulary and ``against`` is None, feature surgery sets each text against
                that, embedded with the short templates, and not against the empty text.

        Returns:
            T maps whose ``values`` are (gh, gw) float32 similarities, not yet min-max.

        Raises:
            PromptError: a text is empty or too long.
            InputError: ``method`` is unknown, or its tokens are not in ``features``; or, for feature surgery, ``against`` is
                empty or names nothing but the text.
        """
        wanted, labels = _request(texts, against, method)
        if not wanted:
            return []
        recipe, tokens = METHODS[method], tokens_for(features, method)
        with torch.inference_mode():
            if recipe.removes and labels is None and vocabulary and self.vocabulary:
                columns = torch.stack([self._against_vocabulary(tokens, text) for text in wanted], dim=1)
            elif recipe.removes:
                columns = self._surgery(tokens, wanted, labels)
            else:
                columns = tokens @ self.encode_texts(wanted).T  # (1 + N, T)
            if recipe.reverses:
                columns = -columns
        grids = columns[1:].T.reshape(len(wanted), *features.grid).float().cpu().numpy()
        return [SimilarityMap(np.ascontiguousarray(g), text, method) for g, text in zip(grids, wanted, strict=True)]

    def prepare(self, texts: Sequence[str], *, against: Sequence[str] | None = None, method: Method = "surgery") -> None:
        """Encodes texts ahead of an image, in one batch; raises what :meth:`maps` would raise for them."""
        wanted, labels = _request(texts, against, method)
        if wanted:
            self.encode_texts([*wanted, *(labels or ()), ""])
            if self.vocabulary:
                self._names([*wanted, *(labels or ()), *self.vocabulary])

    def scores(self, features: ImageFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T,) float32 cosines in [-1, 1] of the image's class token (original path) and texts."""
        with torch.inference_mode():
            cosines = self.encode_texts(list(texts)) @ features.raw[0]
        return np.asarray(cosines.cpu().numpy(), np.float32)

    def presence(self, features: ImageFeatures, text: str, *, against: Sequence[str] | None = None) -> float:
        """Whether a text is in the image at all, as a score in [0, 1] that min-max cannot make up.

        With ``s`` the class token's similarities (original path) times CLIP's own logit scale, ``t`` the text and ``r`` the
        texts it stands against, it is::

            sigmoid(s_t + presence_offset - presence_rivals * log(sum_r exp(s_r)) + presence_peak * odds)

        which is a softmax when ``presence_rivals`` is 1 and the last term is not there. The text stands against the
        vocabulary and ``against``; without a vocabulary against the empty text and ``against``. With a vocabulary all of them
        are embedded with the short templates, and ``odds`` are the log-odds (:meth:`region_odds`) of the place where the
        text's map is hottest: a small thing shows less in the class token than in its place. The map is that of feature
        surgery against the vocabulary, the place its hottest patch and the patches around it. The less the rivals count, the
        less it costs a text that other things are there as well, and the less it helps it that a picture shows nothing clearly.
        How well the score separates present from absent depends on the model and on how well the vocabulary covers what its
        images show.

        Raises:
            PromptError: the text is empty or too long.
        """
        text = check_text(text)
        others = _without(text, [*(self.vocabulary or [""]), *(_labels(against) or ())]) or [""]
        encode = self._names if self.vocabulary else self.prompts
        with torch.inference_mode():
            logits = (encode([text, *others]) @ features.raw[0]).cpu()  # (1 + others,)
            logits *= self.model.logit_scale.detach().float().exp().mean().cpu()
            logit = logits[0] + self.presence_offset - self.presence_rivals * logits[1:].logsumexp(dim=0)
            if self.presence_peak and _without(text, self.vocabulary):
                logit += self.presence_peak * self.region_odds(features, text, self._hottest(features, text))
            return float(logit.sigmoid())

    def region_odds(self, features: ImageFeatures, text: str, shares: NDArray[np.float32]) -> float:
        """How much better a text fits a region than the vocabulary does.

        Args:
            features: from :meth:`encode_image`.
            text: what the region may show.
            shares: (gh, gw) float32 in [0, 1], how much of each patch belongs to the region, on the grid of ``features``.

        Returns:
            The natural logarithm of the odds of the text in a softmax over the cosines, times CLIP's logit scale, of the
            region's mean surgery token and the text and the vocabulary, all embedded with the short templates.

        Raises:
            PromptError: the text is empty or too long.
            InputError: there is no vocabulary, ``shares`` is not on the grid, or the region is empty.
        """
        others = _without(check_text(text), self.vocabulary)
        if not others:
            raise InputError("region_odds sets a text against a vocabulary; give ClipSurgery one")
        if shares.shape != features.grid or not shares.any():
            raise InputError(f"shares must be of shape {features.grid}, some of them above 0, not of shape {shares.shape}")
        with torch.inference_mode():
            weights = torch.from_numpy(shares).flatten().to(features.surgery)
            token = torch.nn.functional.normalize(weights @ features.surgery[1:], dim=0)  # (C,)
            logits = self._names([text, *others]) @ token * self.model.logit_scale.detach().float().exp().mean()
            return float(logits[0] - logits[1:].logsumexp(0))

    def _hottest(self, features: ImageFeatures, text: str) -> NDArray[np.float32]:
        """(gh, gw) float32: 1 in the patch most similar to a text and in the patches around it, else 0."""
        hottest = int(self._against_vocabulary(features.surgery, text)[1:].argmax())
        row, column = divmod(hottest, features.grid[1])
        shares = np.zeros(features.grid, np.float32)
        shares[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
        return shares

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for everything a presence score depends on: the model and its settings here."""
        digest = hashlib.sha256(text_tower_fingerprint(self.model).encode())
        settings: tuple[Any, ...] = (self.image_size, self.scales, self.mean, self.std, sorted(self.vocabulary))
        settings += (self.presence_offset, self.presence_rivals)
        if self.vocabulary and self.presence_peak:  # then on the maps too
            settings += (self.presence_peak, self.depth, self.tau, self.weighting, tuple(self.prompts.templates))
        templates = SHORT_TEMPLATES if self.vocabulary else tuple(self.prompts.templates)
        digest.update(repr((settings, templates, float(self.model.logit_scale.detach().float().mean()))).encode())
        for name, tensor in sorted(self.model.visual.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _surgery(self, tokens: torch.Tensor, texts: list[str], labels: list[str] | None) -> torch.Tensor:
        """(1 + N, T) feature surgery of (1 + N, C) tokens."""
        tokens = tokens[None]  # (1, 1 + N, C)
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

    def _against_vocabulary(self, tokens: torch.Tensor, text: str) -> torch.Tensor:
        """(1 + N,) feature surgery of (1 + N, C) tokens for one text, with the vocabulary as the label set."""
        others = _without(text, self.vocabulary)
        if not others:
            return self._surgery(tokens, [text], None)[:, 0]
        label_set = torch.cat([self.encode_texts([text]), self._names(others)])
        return feature_surgery(tokens[None], label_set, tau=self.tau, weighting=self.weighting)[0, :, 0]

    def _kinds(self, methods: Sequence[Method] | None) -> tuple[str, ...]:
        """The kinds of attention that must be computed for methods, besides what always is."""
        if methods is None:
            return ()
        if isinstance(methods, str) or not isinstance(methods, Collection):
            raise InputError(f"methods must be a sequence of method names, such as ['sclip'], not {methods!r}")
        further = {METHODS[_check_method(method)].tokens for method in methods} & set(KINDS)
        return tuple(kind.name for kind in check_kinds(self.model.visual, further))

    def _encoded(self, images: list[NDArray[np.uint8]], kinds: tuple[str, ...]) -> list[ImageFeatures]:
        tokens = self._at_scales(images, kinds)
        return [
            ImageFeatures(
                tokens.surgery[i],
                tokens.raw[i],
                tokens.grid,
                (image.shape[0], image.shape[1]),
                others={name: others[i] for name, others in tokens.others.items()},
            )
            for i, image in enumerate(images)
        ]

    def _at_scales(self, images: Sequence[NDArray[np.uint8]], kinds: tuple[str, ...]) -> TowerTokens:
        """Tokens of images, each resized to ``image_size`` at every scale: float32, L2-normalised, on its grid."""
        (height, width), patch = self.image_size, patch_size(self.model.visual)
        found = []
        for scale in self.scales:
            size = _whole_patches((max(1, round(height * scale)), max(1, round(width * scale))), patch)
            found.append(self._tokens(torch.cat([self._normalise(_resize(image, size)) for image in images]), kinds))
        return average_scales(found, (height // patch[0], width // patch[1]))

    def _tokens(self, pixels: torch.Tensor, kinds: tuple[str, ...]) -> TowerTokens:
        """(B, 3, h, w) -> tokens (B, 1 + gh*gw, C) float32 and, unlike the tower's, L2-normalised."""
        with torch.inference_mode():
            tokens = surgery_tokens(self.model.visual, self._cast(pixels), depth=self.depth, kinds=kinds)
        return TowerTokens(
            _normalized(tokens.surgery),
            _normalized(tokens.raw),
            tokens.grid,
            {name: _normalized(others) for name, others in tokens.others.items()},
        )

    def _tiles(
        self, image: NDArray[np.uint8], layout: TileLayout, batch_size: int, kinds: tuple[str, ...]
    ) -> Iterator[torch.Tensor]:
        """Patch tokens of the tiles of an image, a batch at a time: (B, th, tw, 2 + K, C), surgery, raw and K kinds."""
        (height, width), (th, tw) = self.image_size, layout.tile
        ph, pw = height // th, width // tw
        resized = _resize(image, (layout.grid[0] * ph, layout.grid[1] * pw))
        for start in range(0, len(layout), batch_size):
            corners = layout.corners[start : start + batch_size]
            cut = [resized[y * ph : y * ph + height, x * pw : x * pw + width] for y, x in corners]
            tokens = self._at_scales(cut, kinds)
            every = (tokens.surgery, tokens.raw, *tokens.others.values())
            yield torch.stack([one[:, 1:] for one in every], dim=2).unflatten(1, (th, tw))

    def _pixels(self, image: NDArray[np.uint8]) -> torch.Tensor:
        return self._normalise(_resize(image, self.image_size))

    def _normalise(self, image: NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
        mean, std = (torch.tensor(v, dtype=torch.float32).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def _cast(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = next(self.model.visual.parameters())
        return pixels.to(self.device, weight.dtype)


def _normalized(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(tokens.float(), dim=-1)


def tokens_for(features: ImageFeatures, method: Method) -> torch.Tensor:
    """(1 + gh*gw, C) tokens, class token first, that a method's maps are made of.

    Raises:
        InputError: the image was not encoded for the method.
    """
    name = METHODS[method].tokens
    found = {"architecture": features.surgery, "raw": features.raw}.get(name, features.others.get(name))
    if found is None:
        raise InputError(
            f"these features are of an image that was not encoded for method={method!r}; encode it with "
            f"encode_image(image, methods=[{method!r}])"
        )
    return found


def _check_method(method: Method) -> Method:
    if method not in get_args(Method):
        raise InputError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
    return method


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _request(texts: Sequence[str], against: Sequence[str] | None, method: Method) -> tuple[list[str], list[str] | None]:
    _check_method(method)
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    wanted = [check_text(text) for text in texts]
    labels = _labels(against)
    alone = [text for text in wanted if labels is not None and not set(labels) - {text}]
    if METHODS[method].removes and alone:
        raise InputError(
            f"against={labels!r} leaves {alone[0]!r} alone in its label set, where feature surgery gives 0 everywhere; "
            "name at least one other text or pass against=None"
        )
    return wanted, labels


def _without(text: str, others: Sequence[str]) -> list[str]:
    """``others`` without repeats and without the text itself; CLIP's tokenizer knows no case."""
    return [other for other in dict.fromkeys(others) if other.casefold() != text.casefold()]


def _labels(given: Sequence[str] | None, name: str = "against") -> list[str] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InputError(f"{name} must be a sequence of strings, such as ['dog'], not {given!r}")
    return list(dict.fromkeys(check_text(text) for text in given))


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

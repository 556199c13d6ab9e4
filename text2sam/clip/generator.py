"""ClipSurgery: an image and texts -> similarity maps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from text2sam.checks import check_number
from text2sam.clip.attention import METHODS, check_method
from text2sam.clip.attention import Method as Method
from text2sam.clip.features import ImageFeatures as ImageFeatures
from text2sam.clip.labels import check_labels, check_request, without
from text2sam.clip.pixels import MAX_SIDE, OPENAI_MEAN, OPENAI_STD, normalise, per_channel, resize, whole_patches
from text2sam.clip.prompts import SHORT_TEMPLATES, PromptEnsemble
from text2sam.clip.scales import average_scales, check_scales
from text2sam.clip.similarity import Weighting, feature_surgery, level_noise
from text2sam.clip.tiles import TileLayout, Tiles, blend_tiles, check_tiles, tile_layout
from text2sam.clip.towers import check_depth, check_faithful, image_tower, run_tower
from text2sam.clip.towers.base import TowerTokens, evaluating, exact
from text2sam.clip.towers.hf import opened
from text2sam.clip.towers.text import Tokenizer
from text2sam.devices import check_dtype, pick_device
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.fingerprint import fingerprint
from text2sam.image import ImageLike, check_several, read_image
from text2sam.presence import presence_logit
from text2sam.targets import check_text
from text2sam.types import SimilarityMap

Run = Callable[[torch.Tensor], TowerTokens]
"""A tower as a function of (B, 3, H, W) normalised pixels."""


class ClipSurgery:
    """Similarity maps from a CLIP model by CLIP Surgery (arXiv 2304.05653); a :class:`~text2sam.clip.protocol.MapGenerator`.

    Args:
        model: a CLIP built by open_clip, of a family in :mod:`text2sam.clip.towers`. Its weights are never changed; it is
            moved to ``device`` in place. Models of OpenAI's ``clip`` and transformers' ``CLIPModel``, ``SiglipModel``,
            ``Siglip2Model`` and ``MetaClip2Model`` become open_clip's first, without their hooks.
        tokenizer: the model's tokenizer, ``open_clip.get_tokenizer(name)``; or transformers' tokenizer or processor.
        image_size: side in pixels to which images are resized, squarely, as the papers do; or (height, width).
            Rounded to whole patches.
        depth: how many of the last blocks get the second path; at most the tower's number of blocks.
        device: None takes cuda, then mps, then cpu.
        dtype: floating point type of the model; float32 on the CPU, where None means it too; elsewhere
            None keeps the model's own.
        templates: prompt templates; the papers' 85 by default, ``prompts.SHORT_TEMPLATES`` for speed.
        text_cache: folder that keeps text features between runs; None keeps them in memory only.
        tau, weighting: see :func:`text2sam.clip.similarity.feature_surgery`.
        vocabulary: names of other things that an image may show. A text's presence is scored against them; see
            :meth:`presence`.
        presence_offset: added to a text's logit in :meth:`presence`. A larger one calls more texts present.
        presence_peak: with a vocabulary, how much the log-odds at a map's peak add to its text's logit in :meth:`presence`.
        presence_rivals: weight in [0, 1] of the other texts in :meth:`presence`. A smaller one makes the score less sensitive
            to other objects in the picture.
        mean, std: normalisation of pixels, RGB, for values in [0, 1]; the model's own or OpenAI's by default.
        scales: at which shares of ``image_size`` an image is encoded; the mean of the tokens is taken, on the grid of
            ``image_size`` (:mod:`text2sam.clip.scales`). The papers use one size. Each further scale costs its share,
            squared, of an encoding.
        fine: whether the maps part things that touch, see :class:`~text2sam.clip.protocol.MapGenerator`.
        check: compare the class token of one small picture with ``model.encode_image``'s, which shows hooks, adapters and
            other changes that surgery would not see.

    Raises:
        UnsupportedModelError: surgery cannot be applied to the image tower.
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
        fine: bool = False,
        check: bool = True,
    ) -> None:
        model, tokenizer = opened(model, tokenizer)
        self.tower = image_tower(model)
        self.depth = check_depth(self.tower, depth)
        self.device = pick_device(device)
        self.image_size = whole_patches(image_size, self.tower.patch)
        if max(self.image_size) > MAX_SIDE:
            raise InputError(f"image_size must be at most {MAX_SIDE}, not {image_size!r}")
        self.scales = check_scales(scales)
        self.fine = bool(fine)
        if weighting not in get_args(Weighting):
            raise InputError(f"weighting must be one of {', '.join(get_args(Weighting))}, not {weighting!r}")
        self.weighting: Weighting = weighting
        self.tau = check_number("tau", tau)
        self.presence_offset = check_number("presence_offset", presence_offset)
        self.presence_peak = check_number("presence_peak", presence_peak)
        self.presence_rivals = check_number("presence_rivals", presence_rivals, 0, 1)
        self.mean = per_channel("mean", mean if mean is not None else self.tower.mean or OPENAI_MEAN)
        self.std = per_channel("std", std if std is not None else self.tower.std or OPENAI_STD)
        self.vocabulary = tuple(check_labels(vocabulary, "vocabulary") or ())
        if dtype is not None or self.device.type == "cpu":
            dtype = check_dtype(dtype, self.device)
            model = model.to(dtype)
        self.model = model.to(self.device)
        self.prompts = PromptEnsemble(model, tokenizer, templates=templates, cache=text_cache)
        if check:
            check_faithful(model, self.tower)

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
        return self._run()(pixels).surgery

    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, C) float32 prompt-ensemble features of texts, L2-normalised.

        Raises:
            PromptError: there is no text, or one is not a string or too long.
        """
        return self.prompts(texts)

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """An image as the image tower wants it: (1, 3, h, w) float32 of ``image_size``, bicubic, normalised."""
        return normalise(resize(read_image(image), self.image_size), self.mean, self.std)

    def encode(
        self, images: Sequence[ImageLike], *, methods: Sequence[Method] | None = None, tiles: Tiles = False
    ) -> list[ImageFeatures]:
        """Features of several images, for :meth:`maps`, :meth:`presence` and :meth:`scores`.

        Args:
            images: anything :func:`text2sam.image.read_image` accepts. Without tiles they are encoded as one batch.
            methods: of the maps to come, names in :data:`text2sam.clip.attention.METHODS`. Maps of the original tokens or the
                surgery tokens, such as ``"surgery"``, can always be made; each of the others costs some attention of its own
                beside the one encoding.
            tiles: for pictures far larger than ``image_size``, whose small objects are lost in resizing. ``"auto"`` encodes
                overlapping tiles where a side is more than three times that of ``image_size``; an int is the side of a tile
                in pixels of the image; False makes none. Tiles give up to 16 times as many patches
                (:mod:`text2sam.clip.tiles`) and cost up to about 40 encodings. The class token is that of the whole image, so
                scores stay, and presence changes only by what ``presence_peak`` adds. Where one tile covers the image the
                result is exactly that of False.

        Raises:
            ImageError: an image cannot be read.
            InputError: ``methods`` or ``tiles`` is none of the above, or ``images`` is a single image.
            UnsupportedModelError: the tower does not offer a method's kind of attention.
        """
        check_several(images)
        if check_tiles(tiles) is not False:
            return [self.encode_image(image, methods=methods, tiles=tiles) for image in images]
        run = self._run(self._kinds(methods))
        return self._encoded([read_image(image) for image in images], run)

    def encode_image(
        self, image: ImageLike, *, methods: Sequence[Method] | None = None, tiles: Tiles = False, batch_size: int = 8
    ) -> ImageFeatures:
        """Features of one image, see :meth:`encode`; ``batch_size`` tiles are encoded at once."""
        side = check_tiles(tiles)
        batch_size = int(check_number("batch_size", batch_size, 1, whole=True))
        run = self._run(self._kinds(methods))
        pixels = read_image(image)
        [whole] = self._encoded([pixels], run)
        layout = tile_layout(whole.shape, self.image_size, whole.grid, side)
        if len(layout) == 1:
            return whole
        patches = blend_tiles(self._tiles(pixels, layout, batch_size, run), layout)  # (gh, gw, P, C)
        tiled = torch.nn.functional.normalize(patches, dim=-1).flatten(0, 1).unbind(1)
        paths = {
            name: torch.cat([tokens[:1], blended]) for (name, tokens), blended in zip(whole.paths.items(), tiled, strict=True)
        }
        return ImageFeatures(paths, layout.grid, whole.shape)

    def encode_mixed(
        self,
        images: Sequence[ImageLike],
        weights: Callable[[int, tuple[int, int], torch.Tensor], torch.Tensor],
    ) -> list[ImageFeatures]:
        """Features of images whose patches mix the values of the last block by the caller's weights, in every head.

        The block's residual and MLP are left out, as in ClearCLIP (arXiv 2407.12442).

        Args:
            images: anything :func:`text2sam.image.read_image` accepts, encoded as one batch; without any only the tower is
                checked.
            weights: called for each image and scale with the image's position, (gh, gw), and (gh*gw, D), queries plus keys of
                the patches, heads side by side; gives (gh*gw, gh*gw), what each patch takes of each.

        Returns:
            Features with these tokens on both paths; the class token is the model's own.

        Raises:
            ImageError: an image cannot be read.
            UnsupportedModelError: the tower has no transformer's blocks.
        """
        mixed = getattr(self.tower, "mixed", None)
        if mixed is None:
            raise UnsupportedModelError(
                f"patches are mixed in the last block of a transformer, which {type(self.tower.module).__name__} has not; a "
                "ViT such as ViT-B-16 has"
            )

        def run(pixels: torch.Tensor) -> TowerTokens:
            with exact(self.device), evaluating(self.tower.module):
                tokens: TowerTokens = mixed(
                    self._placed(pixels),
                    lambda grid, looks: torch.stack([weights(i, grid, own.float()) for i, own in enumerate(looks)]),
                )
            return tokens

        check_several(images)
        return self._encoded([read_image(image) for image in images], run)

    def similarity(
        self,
        image: ImageLike,
        texts: Sequence[str],
        *,
        against: Sequence[str] | None = None,
        method: Method = "surgery",
        tiles: Tiles = False,
    ) -> list[SimilarityMap]:
        """Similarity maps of one image, one per text; see :meth:`maps`, and :meth:`encode` for ``tiles``."""
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

        See :meth:`maps` for what is raised, and :meth:`encode` for ``tiles``.
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
            features: from :meth:`encode`.
            texts: T texts, independent of each other.
            against: the label set for feature surgery. Each text is set against these, itself added. None
                subtracts the prompt ensemble of the empty text, as the papers do for a single text.
            method: how a map is made; :data:`text2sam.clip.attention.METHODS` lists the methods with their sources.
            vocabulary: where there is a vocabulary and ``against`` is None, feature surgery sets each text against
                that, embedded with the short templates, and not against the empty text.

        Returns:
            T maps whose ``values`` are (gh, gw) float32 similarities, before min-max. Where feature surgery leaves only
            rounding noise, the map is flat.

        Raises:
            PromptError: a text is empty or too long.
            InputError: ``method`` is unknown, or its tokens are not in ``features``; or, for feature surgery, ``against`` is
                empty or names nothing but the text.
        """
        wanted, labels = check_request(texts, against, method)
        if not wanted:
            return []
        with exact(features.tokens(method).device):
            if not METHODS[method].removes:
                columns = self.similarities(features, self.encode_texts(wanted), method)
            elif labels is None and vocabulary and self.vocabulary:
                columns = torch.stack([self._against_vocabulary(features, text, method) for text in wanted], dim=1)
            elif labels is None:
                columns = self.similarities(features, self.encode_texts(wanted), method, self.encode_texts([""]))
            else:
                columns = self._against_labels(features, wanted, labels, method)
        grids = columns[1:].T.reshape(len(wanted), *features.grid).cpu().numpy()
        return [SimilarityMap(np.ascontiguousarray(g), text, method) for g, text in zip(grids, wanted, strict=True)]

    def similarities(
        self, features: ImageFeatures, texts: torch.Tensor, method: Method = "surgery", redundant: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Similarities of an image's tokens and text features.

        Args:
            features: from :meth:`encode`.
            texts: (T, C) L2-normalised; for methods with feature surgery they are the label set.
            method: see :meth:`maps`.
            redundant: (1, C), what feature surgery subtracts in place of what the label set has in common.

        Returns:
            (1 + gh*gw, T) float32, the class token's row first.

        Raises:
            InputError: ``method`` is unknown, or its tokens are not in ``features``.
        """
        recipe = METHODS[check_method(method)]
        tokens = features.tokens(method).float()
        with exact(tokens.device):
            if not recipe.removes:
                similarity = tokens @ texts.T
            else:
                similarity = feature_surgery(tokens[None], texts, redundant, tau=self.tau, weighting=self.weighting)[0]
                magnitude = (tokens[1:] @ texts.T).abs().amax(dim=0, keepdim=True)
                similarity = torch.cat([similarity[:1], level_noise(similarity[1:], magnitude, dim=0)])
            return -similarity if recipe.reverses else similarity

    def prepare(self, texts: Sequence[str], *, against: Sequence[str] | None = None, method: Method = "surgery") -> None:
        """Encodes texts ahead of an image, in one batch; raises what :meth:`maps` would raise for them."""
        wanted, labels = check_request(texts, against, method)
        if wanted:
            self.encode_texts([*wanted, *(labels or ()), ""])
            if self.vocabulary:
                self._names([*wanted, *(labels or ()), *self.vocabulary])

    def hint(self, text: str) -> str | None:
        """Advice about a text, such as one in a script that the tokenizer was not made for; None when there is none."""
        return self.prompts.tower.hint(text)

    def scores(self, features: ImageFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T,) float32 cosines in [-1, 1] of the image's class token (original path) and texts."""
        with exact(features.raw.device):
            cosines = self.encode_texts(list(texts)) @ features.raw[0]
        return np.asarray(cosines.cpu().numpy(), np.float32)

    def presence(self, features: ImageFeatures, text: str, *, against: Sequence[str] | None = None) -> float:
        """The presence score of a text, in [0, 1].

        It is the sigmoid of :func:`text2sam.presence.presence_logit` of the class token's similarities (original path)
        times CLIP's own logit scale. The text's rivals are the vocabulary and ``against``; without a vocabulary the empty text
        and ``against``. With a vocabulary all of them are embedded with the short templates, and the odds are those
        (:meth:`region_odds`) of the place where the text's map is hottest: its hottest patch and the patches around it, by
        feature surgery against the vocabulary. A small thing shows less in the class token than in its place.

        A model with a logit bias (SigLIP) was trained to say of each text alone whether it is there: its score is the sigmoid
        of scale times cosine plus bias, and rivals do not count.

        How well the score separates present from absent depends on the model and on how well the vocabulary covers what its
        images show.

        Raises:
            PromptError: the text is empty or too long.
        """
        text = check_text(text)
        rivals = without(text, [*(self.vocabulary or [""]), *(check_labels(against) or ())]) or [""]
        encode = self._names if self.vocabulary else self.prompts
        weights = {"offset": self.presence_offset, "rivals": self.presence_rivals, "peak": self.presence_peak}
        with exact(features.raw.device):
            logits = (encode([text, *rivals]) @ features.raw[0]).cpu()  # (1 + R,)
            logits *= self.logit_scale().cpu()
            odds = 0.0
            if self.presence_peak and without(text, self.vocabulary):
                odds = self.region_odds(features, text, self._hottest(features, text))
            if (bias := self.logit_bias()) is not None:
                logits, weights = logits + bias.cpu(), weights | {"rivals": 0.0}
            return float(presence_logit(logits, odds=odds, **weights).sigmoid())

    def region_odds(self, features: ImageFeatures, text: str, shares: NDArray[np.float32]) -> float:
        """How much better a text fits a region than the vocabulary does.

        Args:
            features: from :meth:`encode`.
            text: what the region may show.
            shares: (gh, gw) float32 in [0, 1], how much of each patch belongs to the region, on the grid of ``features``.

        Returns:
            The natural logarithm of the odds of the text in a softmax over the cosines, times CLIP's logit scale, of the
            region's mean surgery token and the text and the vocabulary, all embedded with the short templates.

        Raises:
            PromptError: the text is empty or too long.
            InputError: there is no vocabulary, ``shares`` is not on the grid, or the region is empty.
        """
        others = without(check_text(text), self.vocabulary)
        if not others:
            raise InputError("region_odds sets a text against a vocabulary; give ClipSurgery one")
        if shares.shape != features.grid or not shares.any():
            raise InputError(f"shares must be of shape {features.grid}, some of them above 0, not of shape {shares.shape}")
        with exact(features.surgery.device):
            weights = torch.from_numpy(shares).flatten().to(features.surgery)
            token = torch.nn.functional.normalize(weights @ features.surgery[1:], dim=0)  # (C,)
            logits = self._names([text, *others]) @ token * self.logit_scale()
            return float(logits[0] - logits[1:].logsumexp(0))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for everything a presence score depends on: the model and its settings here."""
        digest = hashlib.sha256(fingerprint(self.model).encode())
        settings: tuple[Any, ...] = (self.image_size, self.scales, self.mean, self.std, sorted(self.vocabulary))
        settings += (self.presence_offset, self.presence_rivals)
        if self.vocabulary and self.presence_peak:  # then on the maps too
            settings += (self.presence_peak, self.depth, self.tau, self.weighting, tuple(self.prompts.templates))
        templates = SHORT_TEMPLATES if self.vocabulary else tuple(self.prompts.templates)
        digest.update(repr((settings, templates)).encode())
        return digest.hexdigest()[:16]

    @property
    def settings(self) -> tuple[Any, ...]:
        """What an image's features depend on, besides the weights."""
        return self.image_size, self.scales, self.depth, self.mean, self.std

    def pack(self, features: ImageFeatures) -> dict[str, torch.Tensor]:
        """Features as named tensors, for files."""
        return features.pack()

    def unpack(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> ImageFeatures:
        """The features that :meth:`pack` made of an image of (H, W) pixels; KeyError or ValueError where they are others."""
        return ImageFeatures.unpack(tensors, shape)

    def logit_scale(self) -> torch.Tensor:
        """The factor that CLIP learned for its cosines, 100 for OpenAI's: a float32 scalar on the model's device."""
        scale: torch.Tensor = self.model.logit_scale.detach().float().exp().mean()
        return scale

    def logit_bias(self) -> torch.Tensor | None:
        """What a model trained with a sigmoid (SigLIP) adds to its logits, float32 on the model's device; None without."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.detach().float().mean()

    def _names(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, C) features; a few templates are enough to separate names, and a vocabulary is long."""
        return self.prompts(texts, SHORT_TEMPLATES)

    def _hottest(self, features: ImageFeatures, text: str) -> NDArray[np.float32]:
        """(gh, gw) float32: 1 in the patch most similar to a text and in the patches around it, else 0."""
        hottest = int(self._against_vocabulary(features, text, "surgery")[1:].argmax())
        row, column = divmod(hottest, features.grid[1])
        shares = np.zeros(features.grid, np.float32)
        shares[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1
        return shares

    def _against_labels(self, features: ImageFeatures, texts: list[str], labels: list[str], method: Method) -> torch.Tensor:
        """(1 + N, T) similarities of texts, each in the label set."""
        columns: dict[str, torch.Tensor] = {}
        # texts that are themselves in the label set share one feature surgery over it
        for text in dict.fromkeys(texts):
            if text in columns:
                continue
            label_set = labels if text in labels else [text, *without(text, labels)]
            result = self.similarities(features, self.encode_texts(label_set), method)
            columns.update({label: result[:, i] for i, label in enumerate(label_set) if label == text or label_set is labels})
        return torch.stack([columns[text] for text in texts], dim=1)

    def _against_vocabulary(self, features: ImageFeatures, text: str, method: Method) -> torch.Tensor:
        """(1 + N,) similarities of one text, with the vocabulary as the label set."""
        others = without(text, self.vocabulary)
        if not others:
            return self.similarities(features, self.encode_texts([text]), method, self.encode_texts([""]))[:, 0]
        return self.similarities(features, torch.cat([self.encode_texts([text]), self._names(others)]), method)[:, 0]

    def _kinds(self, methods: Sequence[Method] | None) -> set[str]:
        """The kinds of attention that must be computed for methods, besides architecture surgery."""
        if methods is None:
            return set()
        if isinstance(methods, str) or not isinstance(methods, Collection):
            raise InputError(f"methods must be a sequence of method names, such as ['sclip'], not {methods!r}")
        kinds = {METHODS[check_method(method)].tokens for method in methods} - {"raw", "architecture"}
        for name in sorted(kinds - set(self.tower.kinds)):
            raise UnsupportedModelError(
                f"attention of the kind {name!r} is defined on a transformer's blocks, which "
                f"{type(self.tower.module).__name__} has not; it offers {', '.join(self.tower.kinds)} and the original tokens. "
                "A ViT such as ViT-B-16 has all"
            )
        return kinds

    def _encoded(self, images: Sequence[NDArray[np.uint8]], run: Run) -> list[ImageFeatures]:
        if not images:
            return []
        tokens = self._at_scales(images, run)
        return [
            ImageFeatures({name: path[i] for name, path in tokens.paths.items()}, tokens.grid, (image.shape[0], image.shape[1]))
            for i, image in enumerate(images)
        ]

    def _at_scales(self, images: Sequence[NDArray[np.uint8]], run: Run) -> TowerTokens:
        """Tokens of images, each resized to ``image_size`` at every scale: float32, L2-normalised, on its grid."""
        (height, width), patch = self.image_size, self.tower.patch
        sets = []
        for scale in self.scales:
            size = whole_patches((height, width), patch, scale)
            tokens = run(torch.cat([normalise(resize(image, size), self.mean, self.std) for image in images]))
            paths = {name: torch.nn.functional.normalize(path.float(), dim=-1) for name, path in tokens.paths.items()}
            sets.append(TowerTokens(paths, tokens.grid))
        return average_scales(sets, (height // patch[0], width // patch[1]))

    def _run(self, kinds: Collection[str] = ()) -> Run:
        def run(pixels: torch.Tensor) -> TowerTokens:
            with exact(self.device):
                return run_tower(self.tower, self._placed(pixels), depth=self.depth, kinds=kinds)

        return run

    def _placed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels on the model's device, in its number format."""
        return pixels.to(self.device, next(self.tower.module.parameters()).dtype)

    def _tiles(self, image: NDArray[np.uint8], layout: TileLayout, batch_size: int, run: Run) -> Iterator[torch.Tensor]:
        """Patch tokens of the tiles of an image, a batch at a time: (B, th, tw, P, C) of P paths."""
        (height, width), (th, tw) = self.image_size, layout.tile
        ph, pw = height // th, width // tw
        resized = resize(image, (layout.grid[0] * ph, layout.grid[1] * pw))
        for start in range(0, len(layout), batch_size):
            corners = layout.corners[start : start + batch_size]
            cut = [resized[y * ph : y * ph + height, x * pw : x * pw + width] for y, x in corners]
            tokens = self._at_scales(cut, run)
            yield torch.stack([path[:, 1:] for path in tokens.paths.values()], dim=2).unflatten(1, (th, tw))

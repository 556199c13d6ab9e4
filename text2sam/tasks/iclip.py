"""ICLIP: maps from a projection of their own, trained with masked max pooling on a frozen CLIP (arXiv 2209.07046).

What the two versions of the paper say (*theirs*), as far as it could be found:

- CLIP's attention pooling moves meaning to the wrong tokens ("semantic shift"), so that its maps prefer the background.
- *Masked max pooling*: train with max pooling of patch tokens in place of attention pooling, under a mask from an attention
  map: a self-supervised encoder's in the first version, "free attention during training" in the second.
- *Dual projections* (first version): one projection for interpretation, another for recognition, because the two tasks want
  different representations.
- The loss is CLIP's contrastive one; the map is the image-text similarity map, the min-max of patch-text cosines.

Formulas, layers and training data are not in reach, so the rest is *our reading*:

- Nothing of CLIP is trained, the text side neither. The two projections are square matrices behind CLIP's own projection,
  starting at the identity: before the first step ICLIP is CLIP, and every text feature stays CLIP's.
- The recognition projection takes the class token, the interpretation projection the patch tokens of the original path (or of
  architecture surgery, which the papers do not combine with this).
- Max pooling is per channel over the patches under the mask, after the projection (``pooling="channel"``). In the other
  reading, ``"similarity"``, each text takes its best patch: the maximum is taken over cosines.
- The mask keeps the given share of an image's patches, those to which the class token attends most in CLIP's last block, mean
  over heads. Another encoder's attention can be given as a function.
- An image may have several captions that fit it (a label set): every one is set against those that do not fit, alone.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from text2sam.clip.generator import ClipSurgery, ImageFeatures
from text2sam.clip.loss import contrastive_loss
from text2sam.clip.prompts import check_text
from text2sam.clip.towers import (
    evaluating,
    is_resnet,
    queries_keys_values,
    resize_positions,
    resnet_features,
    step,
    surgery_tokens,
    vit_stream,
)
from text2sam.devices import pick_device
from text2sam.errors import InputError, StateError, WeightsError
from text2sam.files import write_bytes
from text2sam.image import ImageLike, read_image
from text2sam.tasks._inputs import logit_scale_of
from text2sam.types import SimilarityMap

TokenPath = Literal["raw", "architecture"]
Pooling = Literal["channel", "similarity"]
Guide = Literal["attention", "none"]
GuideFunction = Callable[[torch.Tensor], torch.Tensor]
Caption = str | Sequence[str]

_FORMAT = "text2sam-iclip-1"
_HIGHEST_SCALE = 100.0


@dataclass(frozen=True, eq=False)
class FrozenTokens:
    """What a frozen CLIP makes of images: all that training reads of them.

    Attributes:
        tokens: (S, 1 + N, C) float32 or float16, L2-normalised, the original path's class token first.
        mask: (S, N) bool, the patches that max pooling looks at; at least one per image.

    Raises:
        InputError: shapes or dtypes are not those, or an image has an empty mask.
    """

    tokens: torch.Tensor
    mask: torch.Tensor

    def __post_init__(self) -> None:
        t, m = self.tokens, self.mask
        ok = isinstance(t, torch.Tensor) and t.ndim == 3 and t.shape[1] > 1 and t.dtype in (torch.float32, torch.float16)
        if not ok:
            raise InputError(f"tokens must be (S, 1 + N, C) of float32 or float16, not {_told(t)}")
        if not isinstance(m, torch.Tensor) or m.shape != (len(t), t.shape[1] - 1) or m.dtype != torch.bool:
            raise InputError(f"mask must be bool of shape {(len(t), t.shape[1] - 1)}, not {_told(m)}")
        if not bool(m.any(dim=1).all()):
            raise InputError("every image needs at least one patch under its mask; with none, max pooling has nothing to take")

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, which: torch.Tensor) -> FrozenTokens:
        """Some of the images, by index (K,) int64."""
        return FrozenTokens(self.tokens[which], self.mask[which])

    @classmethod
    def join(cls, parts: Sequence[FrozenTokens]) -> FrozenTokens:
        """Several batches as one.

        Raises:
            InputError: there is none, or they differ in N or C.
        """
        if not parts or len({part.tokens.shape[1:] for part in parts}) > 1:
            raise InputError("join takes one or more batches with the same number of patches and channels")
        return cls(torch.cat([p.tokens for p in parts]), torch.cat([p.mask for p in parts]))


Images = FrozenTokens | torch.Tensor | Sequence[ImageLike]
"""Tokens from :meth:`ICLIP.extract`; or normalised pixels (B, 3, H, W); or images of any kind ``read_image`` accepts."""


class TokenBatches:
    """A loader of tokens extracted once: batches in a new random order every time round.

    The order is drawn from torch's global generator, as a ``DataLoader``'s is; :meth:`ICLIP.fit` seeds it.

    Args:
        tokens: of S images.
        captions: S captions or label sets.
        batch_size: images per batch; the last one of a round may be smaller.

    Raises:
        InputError: their numbers differ, there is no image, or ``batch_size`` is below 1.
    """

    def __init__(self, tokens: FrozenTokens, captions: Sequence[Caption], batch_size: int = 64) -> None:
        if len(tokens) != len(captions) or not len(tokens):
            raise InputError(f"tokens and captions must be as many, at least one, not {len(tokens)} and {len(captions)}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        self.tokens, self.captions, self.batch_size = tokens, list(captions), batch_size

    def __iter__(self) -> Iterator[tuple[FrozenTokens, list[Caption]]]:
        for which in torch.randperm(len(self.tokens)).split(self.batch_size):
            yield self.tokens.take(which), [self.captions[int(i)] for i in which]


@dataclass(frozen=True)
class FitReport:
    """How a training went.

    Attributes:
        steps, lr, seed: as asked for.
        images: how many images were seen, repeats counted.
        recognition, interpretation: loss of either projection at every step.
        seconds: wall time.
    """

    steps: int
    lr: float
    seed: int
    images: int
    recognition: tuple[float, ...]
    interpretation: tuple[float, ...]
    seconds: float


class ICLIP(nn.Module):
    """Two projections behind a frozen CLIP; see the module for what is the papers' and what is ours.

    Args:
        surgery: the CLIP, its preprocessing and its text features. It is not a submodule: ``parameters()``, ``state_dict()``
            and ``train()`` concern the projections alone.
        path: whose patch tokens the interpretation projection takes: ``"raw"``, the original path's, or ``"architecture"``.
        pooling: ``"channel"`` or ``"similarity"``.
        guide: where the mask comes from: ``"attention"``, CLIP's own; ``"none"``, plain max pooling; or a function of
            normalised pixels (B, 3, H, W) that returns an attention map (B, h, w), such as a self-supervised encoder's,
            brought to CLIP's grid bilinearly. Training reads it, maps do not.
        keep: share of the patches under the mask, in (0, 1].

    Attributes:
        recognition, interpretation: (C, C) float32 parameters D of the projections ``x + D x``, 0 at first.

    Raises:
        InputError: an argument is none of the above.
    """

    def __init__(
        self,
        surgery: ClipSurgery,
        *,
        path: TokenPath = "raw",
        pooling: Pooling = "channel",
        guide: Guide | GuideFunction = "attention",
        keep: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(surgery, ClipSurgery):
            raise InputError(f"surgery must be a ClipSurgery, not {type(surgery).__name__}")
        for name, value, kind in (("path", path, TokenPath), ("pooling", pooling, Pooling)):
            if value not in get_args(kind):
                raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}")
        if not callable(guide) and guide not in get_args(Guide):
            raise InputError(f"guide must be one of {', '.join(get_args(Guide))}, or a function of pixels, not {guide!r}")
        if not 0 < keep <= 1:
            raise InputError(f"keep must be in (0, 1], not {keep!r}")
        self._surgery = surgery
        self.path, self.pooling, self.guide, self.keep = path, pooling, guide, float(keep)
        channels = _channels(surgery.model)
        self.recognition = nn.Parameter(torch.zeros(channels, channels, device=surgery.device))
        self.interpretation = nn.Parameter(torch.zeros(channels, channels, device=surgery.device))

    @property
    def surgery(self) -> ClipSurgery:
        """The frozen CLIP."""
        return self._surgery

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected tokens, not normalised.

        Args:
            tokens: (B, 1 + N, C) float32, class token first.

        Returns:
            The class tokens by the recognition projection, (B, C), and the patch tokens by the interpretation projection,
            (B, N, C).
        """
        cls, patches = tokens[:, 0], tokens[:, 1:]
        return cls + cls @ self.recognition.T, patches + patches @ self.interpretation.T

    def extract(self, images: torch.Tensor | Sequence[ImageLike], *, batch_size: int = 8) -> FrozenTokens:
        """Tokens and masks of images, which training reads; extracted once, they need no image any more.

        Args:
            images: normalised pixels (B, 3, H, W), or images of any kind ``read_image`` accepts.
            batch_size: images encoded at once.

        Returns:
            (B, 1 + N, C) float32 tokens on the CLIP's device and their masks.

        Raises:
            InputError: there is no image, pixels have another shape, or the guide returns something else than maps.
            ImageError: an image cannot be read.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size!r}")
        if isinstance(images, (str, os.PathLike)) or not isinstance(images, (torch.Tensor, Sequence)) or not len(images):
            raise InputError(f"images must be pixels (B, 3, H, W) or a sequence of at least one image, not {_told(images)}")
        parts = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            if not isinstance(part, torch.Tensor):
                part = torch.cat([self._surgery.preprocess(read_image(image)) for image in part])
            parts.append(self._extract(part))
        return FrozenTokens.join(parts)

    def fit(
        self,
        loader: Iterable[tuple[Images, Sequence[Caption]]],
        *,
        steps: int,
        lr: float = 1e-3,
        device: str | torch.device | None = None,
        seed: int = 0,
        negatives: Sequence[str] = (),
        templates: Sequence[str] | None = None,
        weight_decay: float = 0.01,
        progress: bool = False,
    ) -> FitReport:
        """Trains both projections, each with its own contrastive loss; CLIP is not touched.

        AdamW, the rate falling along half a cosine. Weight decay pulls a projection back to the identity. Calling it again
        trains on.

        The same loader, seed, device and number of threads give the same weights. torch's global CPU generator is seeded for
        the length of the call, so that a ``DataLoader(shuffle=True)`` follows the seed too, and has its state back afterwards.

        Args:
            loader: gives (images, captions): images as :data:`Images`, and for each a caption or a label set, of which every
                text fits it. A text that fits no image of a batch is a negative for all. When it is exhausted it is
                iterated again.
            steps: optimizer steps, one batch each.
            lr: highest learning rate.
            device: where to train; None is where the CLIP is. The projections end up beside the CLIP again.
            seed: see above.
            negatives: texts every batch is set against besides its own, where they do not fit.
            templates: for the texts; None is the surgery's prompt ensemble. ``("{}",)`` for captions that are sentences.
            weight_decay: AdamW's.
            progress: show a bar on standard error.

        Raises:
            InputError: an argument is out of range, a batch is not of the kind above, or the loader is empty.
            PromptError: a text is empty or too long.
            StateError: the loss is not finite, or an iterator ran out of batches.
        """
        if steps < 1 or not 0 < lr < math.inf or weight_decay < 0:
            raise InputError(f"steps, lr and weight_decay must be positive, not {steps!r}, {lr!r} and {weight_decay!r}")
        encode = self._surgery.prompts if templates is None else self._surgery.prompts.using(templates)
        where = self._surgery.device if device is None else pick_device(device)
        scale = min(_HIGHEST_SCALE, logit_scale_of(self._surgery))
        losses: list[tuple[float, float]] = []
        seen, started = 0, time.perf_counter()
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            # a caller's inference mode would leave nothing to train
            with torch.inference_mode(False), torch.enable_grad():
                self.to(where)
                optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
                for images, captions in _bar(_batches(loader, steps), steps, progress):
                    tokens = self._tokens(images, captions)
                    names, fits = _label_sets(captions, negatives)
                    texts = encode(names).detach().clone().to(where)  # (M, C)
                    recognition, interpretation = self._losses(
                        _trainable(tokens.tokens).to(where).float(), tokens.mask.to(where), texts, fits.to(where), scale
                    )
                    loss = recognition + interpretation
                    if not bool(torch.isfinite(loss)):
                        raise StateError(
                            f"the loss of step {len(losses) + 1} is {float(loss.detach())}; train with a lower lr than {lr}"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
                    optimizer.step()
                    schedule.step()
                    losses.append((float(recognition.detach()), float(interpretation.detach())))
                    seen += len(tokens)
        finally:
            self.to(self._surgery.device)
            for parameter in self.parameters():
                parameter.grad = None
            torch.set_rng_state(state)
        return FitReport(
            steps,
            lr,
            seed,
            seen,
            tuple(r for r, _ in losses),
            tuple(i for _, i in losses),
            time.perf_counter() - started,
        )

    def maps(self, image: ImageLike | ImageFeatures, texts: Sequence[str]) -> list[SimilarityMap]:
        """Similarity maps by the interpretation projection.

        Args:
            image: anything ``read_image`` accepts, or its features by the CLIP's ``encode_image``.
            texts: T texts.

        Returns:
            T maps of cosines, (gh, gw) float32, before min-max, with method ``"iclip"``.

        Raises:
            PromptError: a text is empty or too long.
            ImageError: the image cannot be read.
        """
        wanted = _texts(texts)
        features = self._features(image)
        if not wanted:
            return []
        with torch.inference_mode():
            tokens = features.raw if self.path == "raw" else features.surgery
            patches = F.normalize(self(tokens[None])[1][0], dim=-1)  # (N, C)
            columns = (patches @ self._surgery.encode_texts(wanted).T).T  # (T, N)
        grids = columns.reshape(len(wanted), *features.grid).float().cpu().numpy()
        return [SimilarityMap(np.ascontiguousarray(g), text, "iclip") for g, text in zip(grids, wanted, strict=True)]

    def scores(self, image: ImageLike | ImageFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
        """(T,) float32 cosines in [-1, 1] of the class token by the recognition projection and texts.

        Raises:
            PromptError: there is no text, or one is empty or too long.
            ImageError: the image cannot be read.
        """
        wanted = _texts(texts)
        features = self._features(image)
        with torch.inference_mode():
            cls = F.normalize(self(features.raw[None])[0][0], dim=-1)  # (C,)
            cosines = self._surgery.encode_texts(wanted) @ cls
        return np.asarray(cosines.cpu().numpy(), np.float32)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the projections and which CLIP they belong to as safetensors, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        from safetensors.torch import save

        told = {
            "format": _FORMAT,
            "clip": clip_fingerprint(self._surgery.model),
            "path": self.path,
            "pooling": self.pooling,
            "guide": "function" if callable(self.guide) else self.guide,
            "keep": repr(self.keep),
        }
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        return write_bytes(path, save(state, told))

    @classmethod
    def load(cls, path: str | os.PathLike[str], surgery: ClipSurgery) -> ICLIP:
        """Reads projections back.

        Args:
            path: a file of :meth:`save`.
            surgery: the CLIP they were trained on, of any image size. Where the guide was a function, which a file cannot
                hold, it is ``"attention"``; only further training would tell.

        Raises:
            WeightsError: the file is missing, damaged, no ICLIP, of other sizes, or belongs to another CLIP.
        """
        import safetensors

        file = Path(path).expanduser()
        if not file.is_file():
            raise WeightsError(f"ICLIP weights {str(file)!r} are not a file; give one that ICLIP.save has written")
        try:
            with safetensors.safe_open(str(file), "pt") as opened:
                told = opened.metadata() or {}
                state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, no mapping
        except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"ICLIP weights {str(file)!r} cannot be read ({error}); copy the file again") from error
        if told.get("format") != _FORMAT:
            raise WeightsError(
                f"{str(file)!r} does not hold ICLIP weights: its format is {told.get('format')!r}, not {_FORMAT!r}"
            )
        if told.get("clip") != clip_fingerprint(surgery.model):
            raise WeightsError(
                f"ICLIP weights {str(file)!r} were trained on another CLIP (fingerprint {told.get('clip')}, this one has "
                f"{clip_fingerprint(surgery.model)}); load them with that CLIP, or train them on this one"
            )
        guide = "attention" if told.get("guide") == "function" else told.get("guide")
        try:
            made = cls(surgery, path=told["path"], pooling=told["pooling"], guide=guide, keep=float(told["keep"]))  # type: ignore[arg-type]
        except (KeyError, ValueError) as error:  # InputError is a ValueError
            raise WeightsError(f"the settings in {str(file)!r} are damaged: {error}") from error
        expected = made.state_dict()
        for key, value in expected.items():
            found = state.pop(key, None)
            if found is None or found.shape != value.shape or found.dtype != value.dtype or not bool(found.isfinite().all()):
                raise WeightsError(f"{str(file)!r} must hold {key!r} as finite {_told(value)}, not {_told(found)}")
            value.copy_(found)
        if state:
            raise WeightsError(f"{str(file)!r} holds tensors ICLIP does not have: {', '.join(sorted(state))}")
        return made

    def _features(self, image: ImageLike | ImageFeatures) -> ImageFeatures:
        return image if isinstance(image, ImageFeatures) else self._surgery.encode_image(image)

    def _tokens(self, images: Images, captions: Sequence[Caption]) -> FrozenTokens:
        tokens = images if isinstance(images, FrozenTokens) else self.extract(images)
        if len(tokens) != len(captions):
            raise InputError(f"a batch needs one caption or label set per image, not {len(captions)} for {len(tokens)} images")
        return tokens

    def _extract(self, pixels: torch.Tensor) -> FrozenTokens:
        visual = self._surgery.model.visual
        pixels = pixels.to(self._surgery.device, next(visual.parameters()).dtype)
        with torch.no_grad():
            found = surgery_tokens(visual, pixels, depth=self._surgery.depth)
            patches = found.raw if self.path == "raw" else found.surgery
            tokens = F.normalize(torch.cat([found.raw[:, :1], patches[:, 1:]], dim=1).float(), dim=-1)
            if callable(self.guide):
                attention = _on_grid(self.guide(pixels), len(pixels), found.grid)
            elif self.guide == "attention":
                attention = attention_map(visual, pixels)
            else:
                return FrozenTokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)[:, 1:])
        return FrozenTokens(tokens, most_attended(attention, self.keep))

    def _losses(
        self, tokens: torch.Tensor, mask: torch.Tensor, texts: torch.Tensor, fits: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cls, patches = self(tokens)
        pooled = masked_max_pooling(patches, mask, texts if self.pooling == "similarity" else None)
        recognised = F.normalize(cls, dim=-1) @ texts.T
        interpreted = pooled if self.pooling == "similarity" else F.normalize(pooled, dim=-1) @ texts.T
        return contrastive_loss(scale * recognised, fits), contrastive_loss(scale * interpreted, fits)


def masked_max_pooling(patches: torch.Tensor, mask: torch.Tensor, texts: torch.Tensor | None = None) -> torch.Tensor:
    """Maximum over the patches under a mask.

    Args:
        patches: (B, N, C) projected patch tokens.
        mask: (B, N) bool, at least one True per image.
        texts: (M, C) L2-normalised, to take the maximum of each text's cosines; None takes that of each channel.

    Returns:
        (B, C) channels, not normalised; with texts (B, M) cosines.
    """
    values = patches if texts is None else F.normalize(patches, dim=-1) @ texts.T
    return values.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


def attention_map(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """How much the class token attends to each patch in a CLIP tower's last attention, mean over heads.

    Args:
        visual: open_clip ``VisionTransformer`` (its last block) or ``ModifiedResNet`` (its attention pool).
        pixels: (B, 3, H, W) normalised, in the tower's dtype.

    Returns:
        (B, N) float32 in [0, 1], patches row by row; with the class token's attention to itself a row adds up to 1.
    """
    with evaluating(visual):
        if is_resnet(visual):
            q, k = _pool_queries_keys(visual, resnet_features(visual, pixels))
        else:
            x, _ = vit_stream(visual, pixels)
            *blocks, last = visual.transformer.resblocks
            for block in blocks:
                x = step(block, x, *queries_keys_values(block, block.ln_1(x)))
            q, k, _ = queries_keys_values(last, last.ln_1(x))  # (B, heads, 1 + N, D / heads)
    logits = q[:, :, :1] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, heads, 1, 1 + N)
    attention: torch.Tensor = logits.float().softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    return attention


def most_attended(attention: torch.Tensor, keep: float) -> torch.Tensor:
    """(B, N) bool mask of the share ``keep`` of each image's patches with the highest attention (B, N), at least one.

    Of equal ones the first are taken.
    """
    count = max(1, math.ceil(keep * attention.shape[1]))
    order = attention.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order, True)


def clip_fingerprint(model: Any) -> str:
    """16 hexadecimal digits for a CLIP's modules and weights, the same in float32 as in float16 made of it."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__qualname__}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        values = values.half() if values.is_floating_point() else values
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _pool_queries_keys(visual: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pool = visual.attnpool
    grid, side = (int(x.shape[2]), int(x.shape[3])), round((len(pool.positional_embedding) - 1) ** 0.5)
    x = x.flatten(2).transpose(1, 2)  # (B, N, D)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    x = x + resize_positions(pool.positional_embedding, (side, side), grid).to(x.dtype)
    q, k = (linear(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2) for linear in (pool.q_proj, pool.k_proj))
    return q, k


def _channels(model: Any) -> int:
    """Width of the space that images and texts share."""
    return int(model.visual.output_dim)


def _on_grid(attention: Any, images: int, grid: tuple[int, int]) -> torch.Tensor:
    ok = isinstance(attention, torch.Tensor) and attention.ndim == 3 and len(attention) == images
    if not ok or not bool(attention.isfinite().all()):
        raise InputError(f"the guide must return finite attention maps ({images}, h, w), not {_told(attention)}")
    resized = F.interpolate(attention[:, None].float(), grid, mode="bilinear", align_corners=False)
    return resized.flatten(1)


def _batches(loader: Iterable[Any], steps: int) -> Iterator[tuple[Images, Sequence[Caption]]]:
    """``steps`` batches, going round the loader as often as needed."""
    given = 0
    while given < steps:
        before = given
        for batch in loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InputError(f"the loader must give (images, captions), not {type(batch).__name__}")
            yield batch[0], batch[1]
            given += 1
            if given == steps:
                return
        if given == before and given:
            raise StateError(
                f"the loader can be read once only and ended after {given} of {steps} steps; give one to read again"
            )
        if given == before:
            raise InputError("the loader is empty; it must give (images, captions)")


def _label_sets(captions: Sequence[Caption], negatives: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """The M different texts of a batch and of ``negatives``, and (B, M) bool, which fits which image."""
    sets = [[check_text(t) for t in ([c] if isinstance(c, str) else c)] for c in captions]
    names = list(dict.fromkeys([t for s in sets for t in s] + _texts(negatives)))
    if not any(sets):
        raise InputError("no image of a batch has a caption; there is nothing to learn from it")
    column = {name: k for k, name in enumerate(names)}
    fits = torch.zeros(len(sets), len(names), dtype=torch.bool)
    for i, texts in enumerate(sets):
        fits[i, [column[t] for t in texts]] = True
    return names, fits


def _texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError(f"texts must be a sequence of strings; for one text pass [{texts!r}]")
    return [check_text(text) for text in texts]


def _bar(batches: Iterator[Any], steps: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return batches
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(batches, total=steps, desc="ICLIP", unit="step", file=sys.stderr, leave=False)
    return bar


def _trainable(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens that autograd accepts: those extracted in inference mode are not among them."""
    return tokens.clone() if tokens.is_inference() else tokens


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return "nothing" if value is None else type(value).__name__

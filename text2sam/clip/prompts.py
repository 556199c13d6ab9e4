"""Prompt templates and the text tower: texts -> L2-normalised text features.

CLIP Surgery averages each text over an ensemble of templates (80 by CLIP's authors for ImageNet, as
open_clip lists them, and five about scenes). A prompt needs about 10 to 20 of the text tower's 77
positions, and the tower is causal, so running it on the longest prompt's length alone gives the
same features several times faster.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from text2sam.clip.towers import evaluating
from text2sam.errors import OutputError, PromptError, UnsupportedModelError
from text2sam.files import write_bytes
from text2sam.targets import check_text as check_text

SCENE_TEMPLATES: tuple[str, ...] = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
SHORT_TEMPLATES: tuple[str, ...] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's authors' short list for ImageNet, for speed."""

Tokenizer = Callable[[list[str]], torch.Tensor]


def ensemble_templates() -> tuple[str, ...]:
    """The 85 templates of the papers' prompt ensemble, each with one ``{}`` for the text."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return (*(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), *SCENE_TEMPLATES)


def encode_tokens(model: Any, tokens: torch.Tensor, *, trim: bool = True) -> torch.Tensor:
    """Text features of tokens, before normalisation: what open_clip's ``encode_text`` returns.

    Args:
        model: an open_clip model.
        tokens: (P, L) int64 token ids, padded behind the end token, which has the highest id.
        trim: run the tower only on as many positions as the longest prompt has. That needs a causal
            tower pooled at the end token, where what stands behind that token cannot change the
            features; any other text tower runs on all positions.

    Returns:
        (P, C) features in the tower's dtype.
    """
    if not (trim and _plain(model) and model.attn_mask is not None and model.text_pool_type == "argmax"):
        features: torch.Tensor = model.encode_text(tokens)
        return features
    ends = tokens.argmax(dim=-1)  # (P,)
    x = _positions(model, tokens[:, : int(ends.max()) + 1])  # (P, l, D)
    return _project(model, x[torch.arange(len(x), device=x.device), ends])


def encode_token_features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features of every position, before the end token is pooled.

    The text tower ends in a layer norm and a projection that are meant for the end token alone; here they are applied to all
    positions, as CLIP Surgery (arXiv 2304.05653) does for its image-text visualisation. The tower being causal, a position
    knows the text up to itself: the start token's feature is the same for every text, the end token's is the text's own.

    Args:
        model: an open_clip ``CLIP`` whose text tower is pooled at the end token.
        tokens: (P, L) int64 token ids, padded behind the end token, which has the highest id.

    Returns:
        (P, l, C) features in the tower's dtype, not normalised, with l the longest prompt's length from start to end token
        (L where the tower is not causal). What stands behind a prompt's own end token means nothing. At the end token they
        are :func:`encode_tokens`' features.

    Raises:
        UnsupportedModelError: the text tower is of another kind, or pooled elsewhere.
    """
    if not _plain(model) or model.text_pool_type != "argmax":
        pooled = getattr(model, "text_pool_type", None)
        what = f"{type(model).__name__}" + (f", which pools at {pooled!r}" if pooled else ", which keeps its text tower apart")
        raise UnsupportedModelError(
            f"features of single tokens need open_clip's CLIP with a text tower pooled at the end token, not {what}"
        )
    length = tokens.shape[1] if model.attn_mask is None else int(tokens.argmax(dim=-1).max()) + 1
    return _project(model, _positions(model, tokens[:, :length]))


def _plain(model: Any) -> bool:
    return isinstance(getattr(model, "token_embedding", None), nn.Module)


def _positions(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(P, l, D): the text tower's stream behind its last layer norm."""
    dtype, length = model.transformer.get_cast_dtype(), tokens.shape[1]
    x: torch.Tensor = model.token_embedding(tokens).to(dtype)  # (P, l, D)
    x = x + model.positional_embedding[:length].to(dtype)
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    normed: torch.Tensor = model.ln_final(model.transformer(x, attn_mask=mask))
    return normed


def _project(model: Any, x: torch.Tensor) -> torch.Tensor:
    projection = model.text_projection
    if projection is None:
        return x
    projected: torch.Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return projected


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Templates as a tuple.

    Raises:
        PromptError: there is none, or one does not have exactly one ``{}``.
    """
    given = (templates,) if isinstance(templates, str) else tuple(templates)
    wrong = [t for t in given if not isinstance(t, str) or t.count("{}") != 1]
    if wrong or not given:
        raise PromptError(f"each template has exactly one '{{}}' for the text; there is {wrong[0] if wrong else 'none'!r}")
    return given


class PromptEnsemble:
    """Text features of a model, averaged over templates and cached.

    Features are kept in memory and, with ``cache``, on disk, under a key made of the text tower's
    weights, the templates' tokens and the text's tokens. A file that is damaged is computed again.

    Args:
        model: an open_clip model; a causal text tower runs on the longest prompt's length only.
        tokenizer: strings -> (P, L) int64 token ids.
        templates: strings with one ``{}`` each; the papers' 85 by default.
        cache: folder for features, or None to keep them in memory only.
        batch: prompts encoded at once.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        templates: Sequence[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        batch: int = 64,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.templates = ensemble_templates() if templates is None else check_templates(templates)
        self._cache = None if cache is None else Path(cache)
        self._batch = batch
        self._memory: dict[str, torch.Tensor] = {}
        self._fingerprint: str | None = None
        self._siblings: dict[tuple[str, ...], PromptEnsemble] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: strings -> (P, L) int64 token ids."""
        return self._tokenizer

    def using(self, templates: Sequence[str] | None) -> PromptEnsemble:
        """The same model and cache with other templates; None gives this ensemble itself. It is kept for the next time.

        Raises:
            PromptError: the templates are none.
        """
        wanted = self.templates if templates is None else check_templates(templates)
        if wanted == self.templates:
            return self
        if wanted not in self._siblings:
            self._siblings[wanted] = PromptEnsemble(
                self._model, self._tokenizer, templates=wanted, cache=self._cache, batch=self._batch
            )
        return self._siblings[wanted]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Text features.

        Args:
            texts: T strings; the empty string gives the redundant feature of a single text.

        Returns:
            (T, C) float32 on the model's device: mean over the templates of the L2-normalised features,
            L2-normalised again.

        Raises:
            PromptError: there is no text, one is not a string, or one is longer than the text tower's context.
        """
        if isinstance(texts, str) or not len(texts) or not all(isinstance(t, str) for t in texts):
            raise PromptError(f"texts must be a non-empty sequence of strings, not {texts!r}")
        missing = [t for t in dict.fromkeys(texts) if t not in self._memory]
        if missing:
            self._fill(missing)
        device = next(self._model.parameters()).device
        return torch.stack([self._memory[t] for t in texts]).to(device)

    def forget(self) -> None:
        """Drops the features in memory and the weights' fingerprint; needed after the weights were changed."""
        self._memory.clear()
        self._fingerprint = None
        self._siblings.clear()

    def _fill(self, texts: list[str]) -> None:
        prompts = [template.replace("{}", text) for text in texts for template in self.templates]
        tokens = self._tokenizer(prompts)  # (T * P, L)
        self._check_length(texts, tokens)
        grouped = tokens.reshape(len(texts), len(self.templates), -1)
        todo = []
        for i, text in enumerate(texts):
            stored = self._read(grouped[i])
            if stored is None:
                todo.append(i)
            else:
                self._memory[text] = stored
        if not todo:
            return
        device = next(self._model.parameters()).device
        wanted = grouped[todo].flatten(0, 1)
        order = wanted.argmax(dim=-1).argsort()  # prompts of like length together: each batch runs on its own longest
        with torch.inference_mode(), evaluating(self._model):
            parts = [encode_tokens(self._model, part.to(device)).float() for part in wanted[order].split(self._batch)]
        encoded = torch.cat(parts)[order.argsort().to(device)]
        features = torch.nn.functional.normalize(encoded, dim=-1).unflatten(0, (len(todo), -1))  # (t, P, C)
        features = torch.nn.functional.normalize(features.mean(dim=1), dim=-1).cpu().clone()  # (t, C)
        for i, feature in zip(todo, features, strict=True):
            self._memory[texts[i]] = feature
            self._write(grouped[i], feature)

    def _check_length(self, texts: list[str], tokens: torch.Tensor) -> None:
        # CLIP's tokenizer cuts silently and puts the end token last, so a full row may have lost words
        full = (tokens[:, -1] == tokens.max()).reshape(len(texts), -1).any(dim=1)
        for text, cut in zip(texts, full.tolist(), strict=True):
            if cut:
                raise PromptError(
                    f"the text {text[:60]!r}... has {len(text)} characters, more than the text tower's {tokens.shape[1]} "
                    "tokens can hold inside every template; shorten it or use shorter templates"
                )

    def _path(self, tokens: torch.Tensor) -> Path | None:
        if self._cache is None:
            return None
        if self._fingerprint is None:
            self._fingerprint = text_tower_fingerprint(self._model)
        digest = hashlib.sha256(self._fingerprint.encode())
        digest.update(repr(tuple(tokens.shape)).encode())
        digest.update(tokens.cpu().to(torch.int64).numpy().tobytes())
        return self._cache / f"{digest.hexdigest()}.text"

    def _read(self, tokens: torch.Tensor) -> torch.Tensor | None:
        path = self._path(tokens)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except (OSError, ValueError):  # ValueError: a NUL in the folder's name
            return None
        checksum, payload = content[:32], content[32:]
        if not payload or len(payload) % 4 or hashlib.sha256(payload).digest() != checksum:
            return None
        return torch.frombuffer(bytearray(payload), dtype=torch.float32)

    def _write(self, tokens: torch.Tensor, feature: torch.Tensor) -> None:
        path = self._path(tokens)
        if path is None:
            return
        payload = feature.numpy().astype("<f4").tobytes()
        # the cache is a convenience: where it cannot be written, the features are computed again next time
        with contextlib.suppress(OutputError):
            write_bytes(path, hashlib.sha256(payload).digest() + payload)


def text_tower_fingerprint(model: Any) -> str:
    """SHA-256 over what everything but the image tower is made of: modules with their settings, weights, buffers.

    Weights alone would not do: with GELU and with QuickGELU the same ones give different features.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if not f"{name}.".startswith("visual."):
            settings = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str)) and k != "training"}
            digest.update(f"{name} {type(module).__qualname__} {sorted(settings.items())}".encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if not name.startswith("visual.") and name != "logit_scale":
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

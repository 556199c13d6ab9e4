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
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from text2sam.clip.towers.base import evaluating
from text2sam.clip.towers.text import TextTower, Tokenizer, encode_tokens
from text2sam.errors import OutputError, PromptError, UnsupportedModelError
from text2sam.files import write_bytes
from text2sam.fingerprint import fingerprint

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

_NOT_TEXT = ("visual", "logit_scale", "logit_bias")
_EQUAL = 1e-6  # features nearer than this in every channel are the same
_PROBES = ("cat", "a red car in front of a house", "the sky at night")


def ensemble_templates() -> tuple[str, ...]:
    """The 85 templates of the papers' prompt ensemble, each with one ``{}`` for the text."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return (*(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), *SCENE_TEMPLATES)


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
        tokenizer: strings -> (P, L) token ids.
        templates: strings with one ``{}`` each; the papers' 85 by default.
        cache: folder for features, or None to keep them in memory only.
        batch: prompts encoded at once.

    Raises:
        UnsupportedModelError: the model encodes no texts.
        PromptError: a template has not exactly one ``{}``.
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
        self._tower = TextTower(model, tokenizer)
        self.templates = ensemble_templates() if templates is None else check_templates(templates)
        self._cache = None if cache is None else Path(cache)
        self._batch = batch
        self._memory: dict[str, torch.Tensor] = {}
        self._texts: dict[bytes, str] = {}  # digest of a text's tokens -> the text
        # what all ensembles of one model have in common
        self._weights: dict[str, str] = {}
        self._family: dict[tuple[str, ...], PromptEnsemble] = {self.templates: self}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: strings -> (P, L) token ids."""
        return self._tokenizer

    def using(self, templates: Sequence[str] | None) -> PromptEnsemble:
        """The same model and cache with other templates; None gives this ensemble itself. It is kept for the next time.

        Raises:
            PromptError: a template has not exactly one ``{}``.
        """
        wanted = self.templates if templates is None else check_templates(templates)
        if wanted not in self._family:
            other = PromptEnsemble(self._model, self._tokenizer, templates=wanted, cache=self._cache, batch=self._batch)
            other._weights, other._family = self._weights, self._family
            self._family[wanted] = other
        return self._family[wanted]

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Text features.

        Args:
            texts: T strings; the empty string gives the redundant feature of a single text.

        Returns:
            (T, C) float32 on the model's device: mean over the templates of the L2-normalised features,
            L2-normalised again. They are computed with autocast off.

        Raises:
            PromptError: there is no text, one is not a string or longer than the text tower's context, or the tokenizer makes
                the same tokens of different texts.
            UnsupportedModelError: the tokenizer does not go with the model.
        """
        if isinstance(texts, str) or not len(texts) or not all(isinstance(t, str) for t in texts):
            raise PromptError(f"texts must be a non-empty sequence of strings, not {texts!r}")
        missing = [t for t in dict.fromkeys(texts) if t not in self._memory]
        if missing:
            self._fill(missing)
        device = next(self._model.parameters()).device
        return torch.stack([self._memory[t] for t in texts]).to(device)

    def hint(self, text: str) -> str | None:
        """Advice about a text that can be encoded, but that the text tower is unlikely to know; None when there is none."""
        return self._tower.hint(text)

    def forget(self) -> None:
        """Drops what was computed from the weights, also by ensembles made with :meth:`using`; needed after they changed."""
        self._weights.clear()
        for ensemble in self._family.values():
            ensemble._memory.clear()
            ensemble._texts.clear()

    def _fill(self, texts: list[str]) -> None:
        tokens = self._tokenize(texts)
        digests = [hashlib.blake2b(rows.numpy().tobytes(), digest_size=16).digest() for rows in tokens]
        self._check_tokens(texts, digests)
        stored = [self._read(rows) for rows in tokens]
        new = [i for i, feature in enumerate(stored) if feature is None]
        if new:
            # what is kept must serve later calls too, which may want gradients
            with torch.inference_mode(False), torch.no_grad():
                features = self._encode(tokens[new])
            self._check_features([texts[i] for i in new], features)
            for i, feature in zip(new, features, strict=True):
                stored[i] = feature
                self._write(tokens[i], feature)
        self._texts.update(zip(digests, texts, strict=True))
        self._memory.update((text, feature) for text, feature in zip(texts, stored, strict=True) if feature is not None)

    def _tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """(T, P, L) tokens of every text in every template."""

        def inside(some: Sequence[str]) -> list[str]:
            return [template.replace("{}", text) for text in some for template in self.templates]

        try:
            tokens = self._tower.tokenize(inside(texts))
            return tokens.reshape(len(texts), len(self.templates), -1)
        except PromptError:
            for text in texts:
                try:
                    self._tower.tokenize(inside([text]))
                except PromptError as error:
                    raise PromptError(
                        f"the text {text[:60]!r}... has {len(text)} characters, more than the text tower can hold inside every "
                        f"template: {error}; shorten it or use shorter templates"
                    ) from None
            raise

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T, C) float32 on the CPU of (T, P, L)."""
        device = next(self._model.parameters()).device
        prompts = tokens.flatten(0, 1)
        order = prompts.argmax(dim=-1).argsort()  # prompts of like length together: each batch runs on its own longest
        with torch.autocast(device.type, enabled=False), evaluating(self._model):
            parts = [encode_tokens(self._model, part.to(device)).float() for part in prompts[order].split(self._batch)]
            encoded: torch.Tensor = torch.cat(parts)[order.argsort().to(device)]
            features = torch.nn.functional.normalize(encoded, dim=-1).unflatten(0, (len(tokens), -1))  # (T, P, C)
            means: torch.Tensor = torch.nn.functional.normalize(features.mean(dim=1), dim=-1)
            return means.cpu().clone()  # (T, C)

    def _check_tokens(self, texts: list[str], digests: list[bytes]) -> None:
        seen = dict(self._texts)
        for text, digest in zip(texts, digests, strict=True):
            other = seen.setdefault(digest, text)
            if _bare(other) != _bare(text):
                raise PromptError(
                    f"the tokenizer makes the same tokens of {other!r} and {text!r}: it does not know their script, or "
                    "does not belong to this model"
                )

    def _check_features(self, texts: list[str], features: torch.Tensor) -> None:
        """Raises when the tower gives the same feature for everything, as with a wrong tokenizer."""
        known = dict(zip(texts, features, strict=True)) | self._memory
        first, *others = known
        different = [known[text] for text in others if _bare(text) != _bare(first)]
        if not different or any((feature - known[first]).abs().max() > _EQUAL for feature in different):
            return
        # texts of words that the model has never seen may look the same; these do not
        probes = self._encode(torch.stack([self._tower.tokenize([probe]) for probe in _PROBES]))
        if (probes - probes[0]).abs().max() <= _EQUAL:
            raise UnsupportedModelError(
                f"the text tower gives {first!r} and {others[-1]!r}, and all else, the same features: the tokenizer does not "
                "belong to this model; take open_clip.get_tokenizer with the model's name"
            )

    def _path(self, tokens: torch.Tensor) -> Path | None:
        if self._cache is None:
            return None
        if "text" not in self._weights:
            self._weights["text"] = text_tower_fingerprint(self._model)
        digest = hashlib.sha256(self._weights["text"].encode())
        digest.update(repr(tuple(tokens.shape)).encode())
        digest.update(tokens.numpy().tobytes())
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
    """The :func:`~text2sam.fingerprint.fingerprint` of everything in a model but the image tower and the logits' scale."""
    return fingerprint(model, skip=_NOT_TEXT)


def _bare(text: str) -> str:
    """A text's letters and digits without case and accents, which tokenizers may leave out; the text itself without any."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in decomposed if c.isalnum()) or text.strip()

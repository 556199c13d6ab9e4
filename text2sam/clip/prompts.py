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
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from text2sam.clip.towers.base import evaluating
from text2sam.clip.towers.text import TextTower, Tokenizer, encode_tokens
from text2sam.errors import OutputError, PromptError, UnsupportedModelError
from text2sam.files import write_bytes
from text2sam.fingerprint import fingerprint

Templates: TypeAlias = tuple[str, ...]

SCENE_TEMPLATES: Templates = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
SHORT_TEMPLATES: Templates = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's authors' short list for ImageNet, for speed."""

_BATCH = 64  # prompts encoded at once
_NOT_TEXT = ("visual", "logit_scale", "logit_bias")
_EQUAL = 1e-6  # features nearer than this in every channel are the same
_PROBES = ("cat", "a red car in front of a house", "the sky at night")


def ensemble_templates() -> Templates:
    """The 85 templates of the papers' prompt ensemble, each with one ``{}`` for the text."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return (*(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), *SCENE_TEMPLATES)


def check_templates(templates: Sequence[str]) -> Templates:
    """Templates as a tuple.

    Raises:
        PromptError: there is none, or one does not have exactly one ``{}``.
    """
    given = tuple(templates) if isinstance(templates, Iterable) and not isinstance(templates, str) else (templates,)
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
    ) -> None:
        self.tokenizer = tokenizer
        self.tower = TextTower(model, tokenizer)
        self.templates = ensemble_templates() if templates is None else check_templates(templates)
        self._model = model
        self._cache = None if cache is None else Path(cache)
        self._weights: str | None = None
        self._memory: defaultdict[Templates, dict[str, torch.Tensor]] = defaultdict(dict)
        self._texts: defaultdict[Templates, dict[bytes, str]] = defaultdict(dict)  # digest of a text's tokens -> the text

    def __call__(self, texts: Sequence[str], templates: Sequence[str] | None = None) -> torch.Tensor:
        """Text features.

        Args:
            texts: T strings; the empty string gives the redundant feature of a single text.
            templates: in place of the ensemble's own.

        Returns:
            (T, C) float32 on the model's device: mean over the templates of the L2-normalised features,
            L2-normalised again. They are computed with autocast off.

        Raises:
            PromptError: there is no text, one is not a string or longer than the text tower's context, the tokenizer makes
                the same tokens of different texts, or a template has not exactly one ``{}``.
            UnsupportedModelError: the tokenizer does not go with the model.
        """
        if isinstance(texts, str) or not len(texts) or not all(isinstance(t, str) for t in texts):
            raise PromptError(f"texts must be a non-empty sequence of strings, not {texts!r}")
        wanted = self.templates if templates is None else check_templates(templates)
        memory = self._memory[wanted]
        missing = [t for t in dict.fromkeys(texts) if t not in memory]
        if missing:
            self._fill(missing, wanted)
        device = next(self._model.parameters()).device
        return torch.stack([memory[t] for t in texts]).to(device)

    def forget(self) -> None:
        """Drops what was computed from the weights; needed after they changed."""
        self._weights = None
        self._memory.clear()
        self._texts.clear()

    def _fill(self, texts: list[str], templates: Templates) -> None:
        tokens = self._tokenize(texts, templates)
        digests = [hashlib.blake2b(rows.numpy().tobytes(), digest_size=16).digest() for rows in tokens]
        _check_tokens(texts, digests, self._texts[templates])
        files = [self._file(rows) for rows in tokens]
        stored = {text: feature for text, file in zip(texts, files, strict=True) if (feature := _read(file)) is not None}
        new = [i for i, text in enumerate(texts) if text not in stored]
        if new:
            # what is kept must serve later calls too, which may want gradients
            with torch.inference_mode(False), torch.no_grad():
                features = dict(zip((texts[i] for i in new), self._encode(tokens[new]), strict=True))
            self._check_features(features | self._memory[templates])
            for i in new:
                _write(files[i], features[texts[i]])
            stored |= features
        self._texts[templates].update(zip(digests, texts, strict=True))
        self._memory[templates].update(stored)

    def _tokenize(self, texts: Sequence[str], templates: Templates) -> torch.Tensor:
        """(T, P, L) tokens of every text in every template."""

        def inside(text: str) -> list[str]:
            return [template.replace("{}", text) for template in templates]

        try:
            tokens = self.tower.tokenize([prompt for text in texts for prompt in inside(text)])
            return tokens.reshape(len(texts), len(templates), -1)
        except PromptError:
            for text in texts:
                try:
                    self.tower.tokenize(inside(text))
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
            parts = [encode_tokens(self._model, part.to(device)).float() for part in prompts[order].split(_BATCH)]
            encoded: torch.Tensor = torch.cat(parts)[order.argsort().to(device)]
            features = torch.nn.functional.normalize(encoded, dim=-1).unflatten(0, (len(tokens), -1))  # (T, P, C)
            means: torch.Tensor = torch.nn.functional.normalize(features.mean(dim=1), dim=-1)
            return means.cpu().clone()  # (T, C)

    def _check_features(self, known: Mapping[str, torch.Tensor]) -> None:
        """Raises when the tower gives the same feature for everything, as with a wrong tokenizer."""
        first, *others = known
        different = [known[text] for text in others if _bare(text) != _bare(first)]
        if not different or any((feature - known[first]).abs().max() > _EQUAL for feature in different):
            return
        # texts of words that the model has never seen may look the same; these do not
        probes = self._encode(torch.stack([self.tower.tokenize([probe]) for probe in _PROBES]))
        if (probes - probes[0]).abs().max() <= _EQUAL:
            raise UnsupportedModelError(
                f"the text tower gives {first!r} and {others[-1]!r}, and all else, the same features: the tokenizer does not "
                "belong to this model; take open_clip.get_tokenizer with the model's name"
            )

    def _file(self, tokens: torch.Tensor) -> Path | None:
        """The file of a text's (P, L) tokens; None without a cache."""
        if self._cache is None:
            return None
        if self._weights is None:
            self._weights = fingerprint(self._model, skip=_NOT_TEXT)
        digest = hashlib.sha256(self._weights.encode())
        digest.update(repr(tuple(tokens.shape)).encode())
        digest.update(tokens.numpy().tobytes())
        return self._cache / f"{digest.hexdigest()}.text"


def _read(file: Path | None) -> torch.Tensor | None:
    try:
        content = b"" if file is None else file.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the folder's name
        return None
    checksum, payload = content[:32], content[32:]
    if not payload or len(payload) % 4 or hashlib.sha256(payload).digest() != checksum:
        return None
    return torch.frombuffer(bytearray(payload), dtype=torch.float32)


def _write(file: Path | None, feature: torch.Tensor) -> None:
    payload = feature.numpy().astype("<f4").tobytes()
    # the cache is a convenience: where it cannot be written, the features are computed again next time
    with contextlib.suppress(OutputError):
        if file is not None:
            write_bytes(file, hashlib.sha256(payload).digest() + payload)


def _check_tokens(texts: list[str], digests: list[bytes], known: Mapping[bytes, str]) -> None:
    seen = dict(known)
    for text, digest in zip(texts, digests, strict=True):
        other = seen.setdefault(digest, text)
        if _bare(other) != _bare(text):
            raise PromptError(
                f"the tokenizer makes the same tokens of {other!r} and {text!r}: it does not know their script, or "
                "does not belong to this model"
            )


def _bare(text: str) -> str:
    """A text's letters and digits without case and accents, which tokenizers may leave out; the text itself without any."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in decomposed if c.isalnum()) or text.strip()

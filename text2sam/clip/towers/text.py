"""open_clip's text towers, part of the model in ``CLIP``, apart in ``CustomTextCLIP``."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from text2sam.errors import PromptError, UnsupportedModelError

Tokenizer = Callable[[list[str]], torch.Tensor]

_CLIPS_A = (49406, 320, 49407)  # "a" in every implementation of CLIP's own tokenizer
_LATIN = ("LATIN", "FEMININE", "MASCULINE")  # beginnings of Unicode names; the latter two are Spanish ordinals
_WORD = " x"  # put behind a prompt, to see whether the tokenizer still reads what stands there


class TextTower:
    """An open_clip model's text tower with its tokenizer.

    Args:
        model: with ``encode_text``.
        tokenizer: strings -> (P, L) token ids, padded on either side with any token.

    Raises:
        UnsupportedModelError: the model encodes no texts, or the tokenizer is none.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        if not callable(getattr(model, "encode_text", None)):
            raise UnsupportedModelError(
                f"{type(model).__name__} has no encode_text; ClipSurgery needs a CLIP built by open_clip"
            )
        if not callable(tokenizer):
            raise UnsupportedModelError(
                f"a tokenizer turns strings into token ids, as open_clip.get_tokenizer(name) does, and is not {tokenizer!r:.80}"
            )
        self.model = model
        self.tokenizer = tokenizer

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """(P, L) int64 token ids on the CPU.

        Tokenizers cut long prompts silently. A prompt fits when another word behind it changes its tokens.

        Raises:
            PromptError: a prompt does not fit.
            UnsupportedModelError: the tokenizer gives no token ids, or ids that the text tower does not know.
        """
        tokens = self._ids(prompts)
        padding = int(self._short[-1])
        # rows that end in two padding tokens are not cut; padding may be the end token, which a cut row has once
        rows = (tokens[:, -2:] != padding).any(dim=1).nonzero().flatten().tolist()
        longer = self._ids([prompts[row] + _WORD for row in rows]) if rows else tokens[:0]
        for row, other in zip(rows, longer, strict=True):
            if torch.equal(tokens[row], other):
                start = prompts[row][:60]
                raise PromptError(f"the prompt {start!r}... has more than {tokens.shape[1]} tokens")
        return tokens

    def hint(self, text: str) -> str | None:
        """Advice about a text in a script that the tokenizer was not made for; None for others."""
        letters = [c for c in text if c.isalpha()]
        foreign = [c for c in letters if not unicodedata.name(c, "LATIN").startswith(_LATIN)]
        if 2 * len(foreign) <= len(letters) or tuple(self._short[:3].tolist()) != _CLIPS_A:
            return None
        return (
            f"{text!r} is not written in Latin letters, and this CLIP was trained on English texts: what it finds, or misses, "
            "says little; translate the text, or use a multilingual CLIP"
        )

    @functools.cached_property
    def _short(self) -> torch.Tensor:
        """(L,) token ids of a text that is padded for certain."""
        return self._ids(["a"])[0]

    def _ids(self, prompts: Sequence[str]) -> torch.Tensor:
        try:
            tokens = self.tokenizer(list(prompts))
        except (RuntimeError, ValueError) as error:  # some tokenizers refuse a text that is too long
            raise PromptError(f"the tokenizer cannot take {prompts[0][:60]!r} and the like: {error}") from error
        except TypeError as error:
            raise UnsupportedModelError(
                f"a tokenizer turns strings into token ids, as open_clip.get_tokenizer(name) does, and "
                f"{type(self.tokenizer).__name__} takes no strings: {error}"
            ) from error
        ok = isinstance(tokens, torch.Tensor) and tokens.ndim == 2 and len(tokens) == len(prompts) and tokens.shape[1] > 1
        if not ok or tokens.is_floating_point():
            raise UnsupportedModelError(
                f"a tokenizer turns P strings into a (P, L) tensor of token ids, not into a {type(tokens).__name__}; of a "
                "tokenizer of transformers take ['input_ids'], padded to the tower's context with return_tensors='pt'"
            )
        known = _vocabulary_size(self.model)
        if known and not 0 <= int(tokens.min()) <= int(tokens.max()) < known:
            raise UnsupportedModelError(
                f"the tokenizer gives token ids up to {int(tokens.max())}, and the text tower knows {known}: the tokenizer "
                "belongs to another model; take open_clip.get_tokenizer with the name of this one"
            )
        return tokens.to("cpu", torch.int64)


def encode_tokens(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features of tokens, before normalisation: what open_clip's ``encode_text`` returns.

    A causal tower pooled at the end token runs only on as many positions as the longest prompt has: what stands behind that
    token cannot change the features. Any other tower runs on all positions.

    Args:
        model: an open_clip model.
        tokens: (P, L) int64 token ids, padded behind the end token, which has the highest id.

    Returns:
        (P, C) features in the tower's dtype.
    """
    tower = _open(model)
    if tower is None or tower.attn_mask is None or _pool_type(tower) != "argmax":
        features: torch.Tensor = model.encode_text(tokens)
        return features
    ends = tokens.argmax(dim=-1)  # (P,)
    x = _positions(tower, tokens[:, : int(ends.max()) + 1])  # (P, l, D)
    return _project(tower, x[torch.arange(len(x), device=x.device), ends])


def encode_token_features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Text features of every position, before the end token is pooled.

    The text tower ends in a layer norm and a projection that are meant for the end token alone; here they are applied to all
    positions, as CLIP Surgery (arXiv 2304.05653) does for its image-text visualisation. In a causal tower a position knows the
    text up to itself: the start token's feature is the same for every text, the end token's is the text's own.

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP`` whose text tower is pooled at the end token.
        tokens: (P, L) int64 token ids, padded behind the end token, which has the highest id.

    Returns:
        (P, l, C) features in the tower's dtype, not normalised, with l the longest prompt's length from start to end token
        (L where the tower is not causal). What stands behind a prompt's own end token means nothing. At the end token they
        are :func:`encode_tokens`' features.

    Raises:
        UnsupportedModelError: the text tower is of another kind, or pooled elsewhere.
    """
    tower = _open(model)
    if tower is None or _pool_type(tower) != "argmax":
        text = getattr(model, "text", model)
        what = f"its {type(text).__name__} is of another kind" if tower is None else f"it pools at {_pool_type(tower)!r}"
        raise UnsupportedModelError(
            f"features of single tokens need a text tower of open_clip that is pooled at the end token, and of this "
            f"{type(model).__name__} {what}"
        )
    length = tokens.shape[1] if tower.attn_mask is None else int(tokens.argmax(dim=-1).max()) + 1
    return _project(tower, _positions(tower, tokens[:, :length]))


def _open(model: Any) -> Any:
    """What holds the parts of open_clip's plain text tower: the model itself, or its ``text``; None for any other tower."""
    from open_clip.transformer import TextTransformer

    if isinstance(getattr(model, "token_embedding", None), nn.Module):
        return model
    text: Any = getattr(model, "text", None)
    plain = type(text) is TextTransformer and text.cls_emb is None and not getattr(text, "use_pad_mask", False)
    return text if plain else None


def _pool_type(tower: Any) -> str:
    """Where a text tower is pooled; ``CLIP`` and ``TextTransformer`` call it differently."""
    return str(getattr(tower, "text_pool_type", None) or tower.pool_type)


def _vocabulary_size(model: Any) -> int:
    """How many token ids the text tower knows; 0 when that is unknown."""
    for part in (model, getattr(model, "text", None)):
        size = getattr(part, "vocab_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return 0


def _positions(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(P, l, D): the text tower's stream behind its last layer norm."""
    dtype, length = _cast_dtype(model.transformer), tokens.shape[1]
    x: torch.Tensor = model.token_embedding(tokens).to(dtype)  # (P, l, D)
    x = x + model.positional_embedding[:length].to(dtype)
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    normed: torch.Tensor = model.ln_final(model.transformer(x, attn_mask=mask))
    return normed


def _cast_dtype(transformer: Any) -> torch.dtype:
    weight = getattr(transformer.resblocks[0].mlp.c_fc, "weight", None)
    if not isinstance(weight, torch.Tensor):  # of a quantised layer it is a method, which open_clip does not expect
        return next(iter(transformer.parameters())).dtype  # type: ignore[no-any-return]
    dtype: torch.dtype = transformer.get_cast_dtype()
    return dtype


def _project(model: Any, x: torch.Tensor) -> torch.Tensor:
    projection = model.text_projection
    if projection is None:
        return x
    projected: torch.Tensor = projection(x) if isinstance(projection, nn.Module) else x @ projection
    return projected

"""Shared by the tasks: checks of models and labels, and the text features of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from text2sam.clip.generator import ClipSurgery
from text2sam.errors import InputError, PromptError
from text2sam.pipeline import TextPromptedSAM
from text2sam.targets import check_different, check_text

Labels = Sequence[str] | Mapping[str, Sequence[str]]
"""Class names; a mapping holds the words for each name. Texts are taken literally: ``"c++"`` joins nothing."""


def surgery_of(model: ClipSurgery | TextPromptedSAM) -> ClipSurgery:
    """The ClipSurgery, or that of a pair.

    Raises:
        InputError: ``model`` is neither.
    """
    surgery = getattr(model, "generator", model)
    if not isinstance(surgery, ClipSurgery):
        kind = type(surgery).__name__ if surgery is model else f"a {type(model).__name__} with a {type(surgery).__name__}"
        raise InputError(
            f"this task needs a CLIP: model must be a ClipSurgery or a TextPromptedSAM with one, not {kind}; the presets "
            "mobile and sticker have one"
        )
    return surgery


def parse_labels(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Class name -> the words for it, in order.

    Raises:
        PromptError: there is no label, a label is empty or given twice (case does not count: CLIP's tokenizer knows none), or
            a word stands for two classes.
        InputError: ``labels`` is not a sequence of texts or a mapping from names to texts.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise InputError(f"labels must be a sequence of texts, such as ['cat', 'dog'], not {labels!r}")
    if isinstance(labels, Mapping):
        nameless = [name for name in labels if not isinstance(name, str) or not name.strip()]
        if nameless:
            raise PromptError(f"the name of a class must be a text, not {nameless[0]!r}")
        pairs = [(name.strip(), check_words(words, f"the words for {name!r}")) for name, words in labels.items()]
    else:
        pairs = [(text, (text,)) for text in (check_text(label) for label in labels)]
    if not pairs:
        raise PromptError("there must be at least one label")
    check_different([name for name, _ in pairs], "a label")
    check_different([word for _, words in pairs for word in words], "a text")
    return dict(pairs)


def check_words(words: Sequence[str], what: str) -> tuple[str, ...]:
    """Stripped texts.

    Raises:
        PromptError: there is no text, or a text is empty or given twice.
        InputError: ``words`` is not a sequence of texts.
    """
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise InputError(f"{what} must be a sequence of texts, such as ['sky', 'wall'], not {words!r}")
    if not words:
        raise PromptError(f"{what} must be at least one text")
    checked = tuple(check_text(word) for word in words)
    check_different(checked, "a text")
    return checked


def class_features(surgery: ClipSurgery, classes: Iterable[Sequence[str]], templates: Sequence[str] | None) -> torch.Tensor:
    """(T, C) float32 L2-normalised: the mean of the features of each class's words, each an ensemble over templates."""
    words = [tuple(group) for group in classes]
    features = surgery.prompts([word for group in words for word in group], templates)
    means = torch.stack([part.mean(dim=0) for part in features.split([len(group) for group in words])])
    return torch.nn.functional.normalize(means, dim=-1)

"""The errors of text2sam.

Each says which value was wrong, what was expected and what to do about it. Everything the package
raises on purpose derives from :class:`Text2SamError`, so one ``except`` catches it all.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

_HOME = os.path.dirname(__file__) + os.sep


class Text2SamError(Exception):
    """Base class of every error text2sam raises on purpose.

    Attributes:
        results: of :meth:`text2sam.TextPromptedSAM.segment_batch`, the results of the images before the one at which it
            ended; otherwise empty.
    """

    results: Sequence[Any] = ()


class InputError(Text2SamError, ValueError):
    """An argument has the wrong type, shape, range or combination."""


class ImageError(InputError):
    """An image cannot be read or is of a kind that is not accepted."""


class PromptError(InputError):
    """A text prompt is empty, too long or otherwise unusable."""


class StateError(Text2SamError, RuntimeError):
    """A method was called before the state it needs was set."""


class UnsupportedModelError(Text2SamError, TypeError):
    """A model is of a kind that surgery or prompting cannot be applied to."""


class WeightsError(Text2SamError):
    """A checkpoint is missing, unreadable or does not fit the model."""


class ChecksumError(WeightsError):
    """A checkpoint's SHA-256 is not the one in the table."""


class DownloadError(WeightsError):
    """A checkpoint could not be downloaded from any of its addresses."""


class OfflineError(WeightsError):
    """A checkpoint is not in the cache and downloads are switched off."""


class OutputError(Text2SamError, OSError):
    """A file cannot be written."""


class Text2SamWarning(UserWarning):
    """Advice about an input that was used all the same."""


class MissingDependencyError(Text2SamError, ImportError):
    """An optional package is not installed; the message quotes the pip line."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        target = f'"text2sam[{extra}]"' if extra else package
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install {target}")
        self.package = package


def needed(module: str, package: str, purpose: str, extra: str | None = None) -> Any:
    """A module of an optional package; the other arguments are those of :class:`MissingDependencyError`.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(package, purpose, extra) from error


def warn(message: str, category: type[Warning] = Text2SamWarning) -> None:
    """Warns at the line that called text2sam."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HOME):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def one_line(text: str) -> str:
    """``text`` on one line, with characters that a terminal would act on as escapes."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)

"""Is a text in the image at all: presence scores, and thresholds fitted to examples.

A text is absent when its score is below the threshold: :meth:`text2sam.TextPromptedSAM.segment` compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from text2sam.checks import check_number
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.files import write_json

if TYPE_CHECKING:
    import torch

_FORMAT = "text2sam calibration"
_VERSION = 1
_SUREST = 2.0**-24  # presence comes from float32, which knows nothing between 1 - 2**-24 and 1


def presence_scores(generator: Any, features: Any, texts: Sequence[str], against: Sequence[str] | None) -> list[float]:
    """The presence score in [0, 1] of each text in an image; 1 where the map generator has none.

    Args:
        generator: a :class:`text2sam.clip.protocol.MapGenerator`.
        features: what it knows of the image.
        texts: T texts.
        against: what else may be in the image.

    Raises:
        UnsupportedModelError: the generator's score is no number in [0, 1].
    """
    score = getattr(generator, "presence", None)
    if not callable(score):
        return [1.0] * len(texts)
    return [_check_score(generator, score(features, text, against=against)) for text in texts]


def _check_score(generator: Any, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:
        raise UnsupportedModelError(f"{type(generator).__name__}.presence must return a score in [0, 1], not {value!r:.80}")
    return number


def presence_logit(
    logits: torch.Tensor, *, offset: float = 0.0, rivals: float = 1.0, odds: float | torch.Tensor = 0.0, peak: float = 0.0
) -> torch.Tensor:
    """The logit of a presence score: ``s_t + offset - rivals * log(sum_r exp(s_r)) + peak * odds``.

    Its sigmoid is a softmax over the text and its rivals when ``rivals`` is 1 and ``offset`` and ``peak`` are 0.

    Args:
        logits: (1 + R,) similarities of the image times CLIP's logit scale: of the text, and of the R rivals.
        offset: added. A larger one calls more texts present.
        rivals: how much the rivals count, in [0, 1]. A smaller one makes the score less sensitive to other objects in the
            picture.
        odds: log-odds of the text where its map is hottest.
        peak: how much these count.

    Returns:
        A scalar.
    """
    return logits[0] + offset - rivals * logits[1:].logsumexp(dim=0) + peak * odds


@dataclass(frozen=True)
class Calibration:
    """A presence threshold, and how it does on the examples it was fitted to.

    Attributes:
        threshold: in [0, 1]; a text is present when its presence score is at least this.
        n_present: number of examples whose text is in the image, at least 1.
        n_absent: number of examples whose text is not, at least 1.
        missed_rate: share of the present examples below the threshold, in [0, 1].
        false_rate: share of the absent examples not below it, in [0, 1].
        auroc: chance that a present example scores higher than an absent one, equal scores counting half, in [0, 1]:
            1 when some threshold makes no error, 0.5 when the score tells nothing.
        model: fingerprint of the pair of models whose scores these were; "" when unknown.

    Raises:
        InputError: a field is not of the kind above.
    """

    threshold: float
    n_present: int
    n_absent: int
    missed_rate: float
    false_rate: float
    auroc: float
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("threshold", "missed_rate", "false_rate", "auroc"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("n_present", "n_absent"):
            check_number(name, getattr(self, name), 1, whole=True)
        if not isinstance(self.model, str):
            raise InputError(f"model must be a string, not {self.model!r}")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the calibration as JSON, whole or not at all; returns ``path``. Raises OutputError where it cannot."""
        return write_json(path, {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Reads what :meth:`save` wrote; the numbers come back bit by bit.

        Raises:
            InputError: the file is missing or unreadable, is no calibration, is of another version, or a value is missing
                or out of range.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"a calibration is the path of a file, not {path!r}")
        where = f"the calibration {os.fspath(path)!r}"
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{where} cannot be read ({reason}); save one with Calibration.save") from error
        kind = {"format": _FORMAT, "version": _VERSION}
        own = isinstance(record, dict) and all(record.get(name) == value for name, value in kind.items())
        if not own or isinstance(record["version"], bool):
            raise InputError(f"{where} lacks {kind}: it is none, or of another text2sam; calibrate anew")
        try:
            return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, InputError) as error:
            raise InputError(f"{where} lacks a value or holds a wrong one: {error}; calibrate anew") from error


def fit_threshold(presence: ArrayLike, present: ArrayLike, *, false_cost: float = 1.0) -> Calibration:
    """The presence threshold that errs least on examples.

    It minimises ``missed_rate + false_cost * false_rate``. Each rate is taken within its own class, so many more examples
    of one class than of the other move nothing.

    Every threshold between two neighbouring scores errs alike, so the scores' gaps are compared, and the threshold is put in
    the middle of one. Widths and middles are on the logit scale ``log(p / (1 - p))``: presence is a softmax's probability,
    crowded near 0 and 1, and its logit is the difference the model sees. Logits are cut at +-16.6 (``p = 2**-24``), beyond
    which float32 cannot tell a probability from 1; where that leaves no width, the plain middle is taken.

    Of gaps that cost the same, in this order: one between two scores goes before the ends (everything present, threshold 0;
    everything absent, threshold 1), the widest goes first, then the lower.

    Args:
        presence: (N,) presence scores in [0, 1].
        present: (N,) bool, whether the text is in the image.
        false_cost: what finding an absent text costs, relative to missing a present one; above 0.

    Returns:
        The threshold with its error rates on these examples; ``model`` is "".

    Raises:
        InputError: an array is of another kind, there is no present or no absent example, or ``false_cost`` is not a
            positive finite number.
    """
    scores, there = _check_examples(presence, present)
    check_number("false_cost", false_cost, 0, float(np.finfo(np.float64).max), above=True)
    hits, misses = np.sort(scores[there]), np.sort(scores[~there])
    levels = np.unique(scores)  # (K,) ascending
    above = np.append(levels, np.inf)  # gap k of K + 1: the scores from above[k] on count as present
    missed, false = np.searchsorted(hits, above), len(misses) - np.searchsorted(misses, above)
    weight, unit = float(false_cost).as_integer_ratio()  # whole numbers: in floats rounding would decide ties
    costs = [unit * int(a) * len(misses) + weight * int(b) * len(hits) for a, b in zip(missed, false, strict=True)]
    widths = np.pad(np.diff(_logit(levels)).round(9), 1)  # equal in spite of rounding; 0 at the ends
    ends = (0, len(levels))
    # nothing in [0, 1] is above a score of 1
    best = min(range(len(levels) + bool(levels[-1] < 1)), key=lambda gap: (costs[gap], gap in ends, -widths[gap], gap))
    threshold = float(best > 0) if best in ends else _middle(float(levels[best - 1]), float(levels[best]))
    below = np.searchsorted(misses, hits, "left") + np.searchsorted(misses, hits, "right")  # twice the misses below a hit
    return Calibration(
        threshold=threshold,
        n_present=len(hits),
        n_absent=len(misses),
        missed_rate=int(missed[best]) / len(hits),
        false_rate=int(false[best]) / len(misses),
        auroc=float(below.sum() / 2) / (len(hits) * len(misses)),
    )


def _check_examples(presence: ArrayLike, present: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    try:
        scores, there = np.asarray(presence), np.asarray(present)
    except ValueError as error:
        raise InputError(f"presence and present must be one number and one bool per example: {error}") from error
    if scores.ndim != 1 or there.shape != scores.shape:
        raise InputError(
            f"presence and present must be one number and one bool per example, not shapes {scores.shape} and {there.shape}"
        )
    if len(scores) and (scores.dtype.kind not in "fiu" or there.dtype != np.bool_):
        raise InputError(f"presence must hold numbers and present bools, not {scores.dtype} and {there.dtype}")
    scores, there = scores.astype(np.float64), there.astype(np.bool_)
    outside = scores[~((scores >= 0) & (scores <= 1))]  # NaN is outside
    if len(outside):
        raise InputError(f"presence scores lie in [0, 1], not {outside[0]!r}")
    for kind, word, count in (("present", "is in its", there.sum()), ("absent", "is not in its", (~there).sum())):
        if not count:
            raise InputError(f"a threshold needs examples of both kinds; add at least one whose text {word} image ({kind})")
    return scores, there


def _logit(p: Any) -> Any:
    """log(p / (1 - p)), cut at what float32 can tell from 1."""
    inner = np.clip(p, _SUREST, 1 - _SUREST)
    return np.log(inner) - np.log1p(-inner)


def _middle(low: float, high: float) -> float:
    """A threshold in (low, high]: their middle on the logit scale, or the plain one where that leaves the gap."""
    middle = float(1 / (1 + np.exp(-(_logit(low) + _logit(high)) / 2)))
    if not low < middle <= high:
        middle = low + (high - low) / 2
    return middle if low < middle <= high else high  # neighbouring floats have nothing between them

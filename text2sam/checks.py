"""Checks of arguments that many modules make."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real

from text2sam.errors import InputError


def check_number(
    name: str,
    value: object,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    whole: bool = False,
    above: bool = False,
) -> float:
    """A number in a range.

    Args:
        name: of the argument, for the message.
        value: Python or NumPy number; bools are not numbers.
        low, high: the range, both ends included.
        whole: only whole numbers are accepted.
        above: the lower end is excluded.

    Returns:
        The number as a float, or as an int with ``whole``.

    Raises:
        InputError: it is no number or outside the range. NaN is outside every range.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and whole:
        try:
            operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            number = False
    if number and low <= float(value) <= high and not (above and float(value) == low):  # type: ignore[arg-type]
        return operator.index(value) if whole else float(value)  # type: ignore[arg-type]
    kind = "a whole number" if whole else "a number"
    if high == float("inf"):
        span = "" if low == float("-inf") else f" {'above' if above else 'of at least'} {low:g}"
    else:
        span = f" in {'(' if above else '['}{low:g}, {high:g}]"
    raise InputError(f"{name} must be {kind}{span}, not {value!r}")


def check_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(H, W) as two positive ints.

    Raises:
        InputError: it is anything else.
    """
    try:
        h, w = (operator.index(v) for v in shape)
    except (TypeError, ValueError):
        raise InputError(f"shape must be (H, W) in pixels, not {shape!r}") from None
    if h < 1 or w < 1:
        raise InputError(f"shape must be (H, W) with both at least 1, not {shape!r}")
    return h, w

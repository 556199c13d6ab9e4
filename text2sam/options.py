"""How texts are segmented: the options that ``segment`` and its relatives, the command line and folder jobs share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypeVar, cast

from text2sam.checks import check_known, check_number
from text2sam.clip.tiles import Tiles, check_tiles
from text2sam.errors import InputError
from text2sam.image import ChannelOrder, ReadOptions, check_reading
from text2sam.recipes import Recipe, get_recipe

Thresholds: TypeAlias = float | Mapping[str, float] | None

_Method = TypeVar("_Method", bound=Callable[..., Any])


class SegmentOptions(ReadOptions, total=False):
    """The keyword arguments of ``segment``; :class:`Options` describes them."""

    against: Sequence[str] | None
    exclude: Sequence[str] | None
    threshold: Thresholds
    strategy: str | Recipe
    method: str
    max_objects: int
    tiles: Tiles


@dataclass(frozen=True)
class Options:
    """How texts are segmented.

    Attributes:
        against: the label set for feature surgery: what else may be in the image. None subtracts the empty text instead,
            as the papers do for a single text.
        exclude: texts whose places are avoided: no positive point lies on what they find, negative points may, and the mask
            leaves it out. A negative point acts on the whole mask, so that a thing beside an excluded one may lose parts.
        threshold: the presence score from which a text counts as present, in [0, 1]; or a mapping from texts (names) to
            scores. None takes the model's ``presence_threshold``.
        strategy: the recipe for points and masks, by name or an object of your own. ``"objects"`` finds every object of the
            text, and nothing for a text that is not there; ``"paper"`` is the papers' recipe, which always proposes a mask,
            also for an absent text: read ``present``. ``Objects(smooth=False)`` and ``Paper(smooth=True)`` switch smoothing
            over SAM's embedding off and on, see :class:`~text2sam.recipes.view.Recipe`.
        method: how the map is made, see :data:`text2sam.clip.attention.METHODS`.
        max_objects: how many objects of a text are looked for at most. A warning says when the search ended there.
        tiles: for pictures far larger than CLIP's input, see :mod:`text2sam.clip.tiles`.
        channel_order, value_range, page, max_pixels: how an image is read, see :func:`text2sam.image.read_image`.

    Raises:
        InputError: a value is not of the kind above; thresholds are checked with the texts that they are for.
    """

    against: Sequence[str] | None = None
    exclude: Sequence[str] | None = None
    threshold: Thresholds = None
    strategy: str | Recipe = "objects"
    method: str = "surgery"
    max_objects: int = 100
    tiles: Tiles = False
    channel_order: ChannelOrder = "RGB"
    value_range: tuple[float, float] | None = None
    page: int = 0
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        get_recipe(self.strategy)
        check_tiles(self.tiles)
        check_number("max_objects", self.max_objects, 1, whole=True)
        if not isinstance(self.method, str):
            raise InputError(f"method must be the name of a method, not {self.method!r}")
        check_reading(**self.reading)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Options from keyword arguments.

        Raises:
            InputError: an option is unknown, or its value is not usable.
        """
        check_known("option", options, [field.name for field in fields(cls)])
        return cls(**options)

    @property
    def reading(self) -> ReadOptions:
        """How an image is read: keyword arguments of :func:`text2sam.image.read_image`."""
        return cast("ReadOptions", {name: getattr(self, name) for name in ReadOptions.__annotations__})

    @property
    def encoding(self) -> dict[str, Any]:
        """How an image is encoded: keyword arguments of :func:`text2sam.encoded.encode`."""
        return {"methods": [self.method], "tiles": self.tiles}

    @property
    def recipe(self) -> Recipe:
        """The recipe that ``strategy`` names or is."""
        return get_recipe(self.strategy)


def named_options(method: _Method) -> _Method:
    """Gives a method that takes ``**options`` a signature that names them, for notebooks and ``help``."""
    signature = inspect.signature(method)
    given = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    named = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Options)
    ]
    method.__signature__ = signature.replace(parameters=[*given, *named])  # type: ignore[attr-defined]
    return method

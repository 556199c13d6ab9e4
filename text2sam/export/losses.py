"""What a data format could not hold, counted."""

from __future__ import annotations

from dataclasses import dataclass

from text2sam.tables import counted


class LossWarning(UserWarning):
    """A data format could not hold everything; the message counts what."""


@dataclass(frozen=True)
class Losses:
    """What an export could not write as it was.

    Attributes:
        format: name of the data format.
        images: images written.
        objects: objects written, those counted below among them; without the empty ones.
        empty: objects without a pixel, left out.
        holes: holes joined to the outline around them by a slit of no width.
        parts: parts joined to the rest of their object by a bridge of no width.
        overlaps: objects that left pixels to another one that lies over them, but not all.
        hidden: objects of which other ones left no pixel.
        converted: images written as PNG, as readers of the format do not open their own, or not as they were read.
        renamed: images that share all but the suffix with an earlier one, written under a longer name.
    """

    format: str
    images: int = 0
    objects: int = 0
    empty: int = 0
    holes: int = 0
    parts: int = 0
    overlaps: int = 0
    hidden: int = 0
    converted: int = 0
    renamed: int = 0

    @property
    def total(self) -> int:
        """All losses together."""
        return sum(getattr(self, kind) for kind in _LOST)

    def __str__(self) -> str:
        """One sentence that counts the losses."""
        head = f"{self.format}: {counted(self.objects, 'object')} in {counted(self.images, 'image')} written"
        lost = [f"{counted(getattr(self, kind), noun)} {what}" for kind, (noun, what) in _LOST.items() if getattr(self, kind)]
        return f"{head}; {', '.join(lost) if lost else 'nothing was lost'}"


_LOST = {
    "empty": ("object", "without pixels left out"),
    "holes": ("hole", "joined to the outline by a slit"),
    "parts": ("part", "joined to the rest of the object by a bridge"),
    "overlaps": ("object", "partly hidden by another"),
    "hidden": ("object", "wholly hidden by others"),
    "converted": ("image", "converted to PNG, as readers of the format do not open them, or not as they were read"),
    "renamed": ("image", "written under a longer name, another has the short one"),
}

COUNTS = tuple(_LOST)
"""The kinds of loss, as the fields of :class:`Losses` are named."""

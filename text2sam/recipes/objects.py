"""The default recipe: one object of a text after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_number, name_of
from text2sam.errors import InputError, warn
from text2sam.masks import SPECKS, without_specks
from text2sam.recipes.choose import MaskRule, choose_by_agreement, distinct
from text2sam.recipes.points import PeakRule, PointRule, RegionRule, patch_of, patch_shares, pixel_of
from text2sam.recipes.resemblance import Appearance, resemblance
from text2sam.recipes.view import Found, Prompt, Recipe, Steps, View
from text2sam.targets import Query
from text2sam.types import PointPrompts, SimilarityMap

PEAKS = PeakRule(hot=0.7, negatives=1, regions=(RegionRule(0.5), RegionRule(0.65, box=True)))
"""The default points. Lower peaks are mostly other things, and one negative point parts objects that touch. Points spread over
half the height of a peak ask for large things, the box of its top for small ones; chosen on tuning photos."""

SAME, ALIKE = 0.9, 1.1
"""Resemblance plus half of the likeness must reach the first for an object to be an example of its kind, and the second for a
further object to be kept. Chosen on tuning photos, as the next two are."""
RESEMBLING = 0.5
"""Smallest cosine at which a place is tried for further objects."""
FAILED = 3
"""The search for further objects ends after this many consecutive places without one."""
FREE, OVERLAP = 0.3, 0.3
"""Shares of a place, and of the smaller of two masks, that may be taken already."""


@dataclass(frozen=True)
class Objects(Recipe):
    """Every object of a text: prompts for each peak of the map, and the mask that agrees best with the map.

    The map is smoothed over SAM's embedding first, and similarity outside objects counts for less where the predictor has
    ``objectness`` (:meth:`~text2sam.recipes.view.View.smoothed`). The first object, which is the only one in most images, gets
    further prompts where the points rule has a method ``around``, as :class:`~text2sam.recipes.points.PeakRule` has. So
    SAM is asked three times for the first object and once for each other one, until an object comes that the map does not
    support, and then at places that look like the objects found (``further``); no prompt is sent twice. Where the generator
    scores how well a mask matches a text (:attr:`~text2sam.recipes.view.View.has_likeness`), the search goes on
    to the third place at least, since the hottest is often beside a small thing. Maps that are fine
    (:attr:`~text2sam.recipes.view.View.fine`) are not smoothed, get no further prompts, and are searched to the end.

    Points and mask rule can be exchanged; presence, ``exclude`` and the vocabulary stay as they are::

        def hottest(similarity, shape, taken):
            return PointPrompts.empty() if len(taken) else PointPrompts([similarity.peak(shape)], [1])

        model.segment(image, "cat", strategy=Objects(points=hottest))

    Attributes:
        points: the points of the next object: called with the map, (H, W) and the masks found or tried so far; no points end
            the search.
        choose: chooses among SAM's masks.
        name: what ``Segmentation.strategy`` says.
        support: an object stays when the map's contrast at it reaches this share of the contrast at the object where it is
            highest, in [0, 1] (the figure ``"contrast"``; a mask rule that gives none keeps all).
        fine_support: the same for fine maps, whose weaker peaks are more often objects, and for generators that score
            likeness.
        alike: an object stays when its likeness reaches this share of that of the object of the highest score, in [0, 1] (the
            figure ``"likeness"``).
        places: the smallest number of places that are tried where the generator scores likeness.
        margin: an object stays when its log-odds against the model's vocabulary are at most this far below those of the best
            object; only for generators with a vocabulary.
        further: the largest number of further places that are tried where the objects found look like one another. The places
            look like them in SAM's embedding, and an object there is kept when its cutout looks like them and like the text.
            For generators with ``likeness`` and ``cutouts``, see :class:`~text2sam.clip.protocol.MapGenerator`. 0 tries none.
        specks: islands of a mask, and holes in it, that are smaller than this share of it are removed, in [0, 1]; 0 keeps masks
            as SAM makes them.
        answers_absent: whether a text that is not there by its presence score gets a mask all the same.
        smooth: see :class:`~text2sam.recipes.view.Recipe`; None smooths what is searched, unless maps are fine; False
            also lets similarity outside objects count fully.

    Raises:
        InputError: a number is out of range.
    """

    points: PointRule = PEAKS
    choose: MaskRule = choose_by_agreement
    name: str = "objects"
    support: float = 0.7
    fine_support: float = 0.5
    alike: float = 0.6
    places: int = 3
    margin: float = 5.0
    further: int = 16
    specks: float = SPECKS
    answers_absent: bool = False
    smooth: bool | None = None

    def __post_init__(self) -> None:
        check_number("support", self.support, 0, 1)
        check_number("fine_support", self.fine_support, 0, 1)
        check_number("alike", self.alike, 0, 1)
        check_number("places", self.places, 1, whole=True)
        check_number("margin", self.margin, 0)
        check_number("further", self.further, 0, whole=True)
        check_number("specks", self.specks, 0, 1)

    def steps(self, view: View, query: Query) -> Steps:
        """The objects of a target, highest score first."""
        found: list[Found] = []
        for similarity in view.maps(query):
            words = query.texts if query.synonyms else (similarity.text,)
            searched = yield from self._search(view, similarity)
            several = yield from self._more(view, similarity, self._supported(view, searched))
            found += self._fitting(view, several, words)
        cut = [view.avoid.cut(each) for each in found]
        rest = [new for new, old in zip(cut, found, strict=True) if 2 * new.mask.sum() > old.mask.sum()]
        different = distinct([each.mask for each in rest], [each.score for each in rest])
        return [self._clean(view, rest[k]) for k in different[: view.max_objects]]

    def _search(self, view: View, similarity: SimilarityMap) -> Steps:
        """One object after the other, until the points end."""
        found: list[Found] = []
        prompted, asked = set[bytes](), set[bytes]()
        smoothed = view.smoothed(similarity)
        around = None if view.fine else getattr(self.points, "around", None)
        taken = [] if view.avoid.mask is None else [view.avoid.mask]
        least = self.places if view.has_likeness else 1
        most = max(view.max_objects, least)
        for _ in range(3 * most):  # a rule need not heed what was tried
            points = self.points(smoothed, view.shape, taken)
            if not isinstance(points, PointPrompts):
                raise InputError(
                    f"the points rule {name_of(self.points)} must return PointPrompts, not {type(points).__name__}"
                )
            if not len(points.positive):  # a flat map points nowhere
                break
            if len(found) == most:
                if len(self._supported(view, found)) >= view.max_objects:
                    _warn_of_end(view, similarity)
                break
            # a point comes again where its peak lies in the patch beside it; SAM would answer as before
            again = points.coords.tobytes() in prompted
            prompted.add(points.coords.tobytes())
            taken.append(_patch_at(points.positive[0], smoothed.values.shape, view.shape, reach=int(again)))
            if again:
                continue
            prompts = []
            further = around(smoothed, view.shape, points) if around and not found else []
            for prompt, box in [(points, None), *further]:
                allowed = view.avoid.points(prompt)
                key = allowed.coords.tobytes() + (b"" if box is None else box.tobytes())
                if len(allowed) and key not in asked:
                    asked.add(key)
                    prompts.append(Prompt(smoothed, allowed, self.choose, box))
            if prompts:
                answers = yield prompts
                best = max(answers, key=lambda found: found.score)
                found.append(replace(best, similarity=similarity))
                taken[-1] |= best.mask
                # lower peaks are mostly other things still, and each costs a call
                if not view.fine and len(found) >= least and found[-1] not in self._supported(view, found):
                    break
        return found

    def _more(self, view: View, similarity: SimilarityMap, found: list[Found]) -> Steps:
        """The objects found and, where several of them look alike, others that look like them, whatever the map is there."""
        different = [found[k] for k in distinct([each.mask for each in found], [each.score for each in found])]
        possible = len(different) > 1 and len(found) < view.max_objects and not view.fine
        resembling = view.resemblance() if self.further and possible else None
        if resembling is None:
            return found
        appearances = [resembling.appearance(each.mask) for each in different]
        examples = [
            appearance
            for k, (each, appearance) in enumerate(zip(different, appearances, strict=True))
            if _alike(each, appearance, appearances[:k] + appearances[k + 1 :]) >= SAME
        ]
        found, smoothed, failed = list(found), view.smoothed(similarity), 0
        taken = np.logical_or.reduce([each.mask for each in found])
        if view.avoid.mask is not None:
            taken |= view.avoid.mask
        for _ in range(self.further if examples else 0):
            cosines = resembling.cosines(examples)
            cosines[patch_shares(taken[None], cosines.shape)[0] > FREE] = -1
            at = np.unravel_index(int(cosines.argmax()), cosines.shape)
            if cosines[at] < RESEMBLING or failed == FAILED:
                break
            if len(found) >= view.max_objects:
                _warn_of_end(view, similarity)
                break
            point = np.array([pixel_of((int(at[0]), int(at[1])), view.shape, cosines.shape)], np.float32)
            taken |= _patch_at(point[0], cosines.shape, view.shape, reach=1)
            failed += 1
            allowed = view.avoid.points(PointPrompts(point, np.ones(1, np.uint8)))
            if not len(allowed):
                continue
            [answer] = yield [Prompt(smoothed, allowed, self.choose)]
            new, size = answer.mask, int(answer.mask.sum())
            if not size or any(int((new & each.mask).sum()) >= OVERLAP * min(size, each.mask.sum()) for each in found):
                continue
            appearance = resembling.appearance(new)
            if _alike(answer, appearance, examples) >= ALIKE:
                found.append(replace(answer, similarity=similarity))
                examples.append(appearance)
                taken |= new
                failed = 0
        return found

    def _clean(self, view: View, found: Found) -> Found:
        """An object without specks; the search itself sees SAM's masks as they are."""
        mask = without_specks(found.mask, self.specks) if self.specks else found.mask
        return found if mask is found.mask else view.avoid.cut(replace(found, mask=mask))

    def _supported(self, view: View, found: Sequence[Found]) -> list[Found]:
        """The objects that look enough like what is meant, compared with the best, and whose contrast is high enough,
        compared with the highest among these."""
        best = max(found, key=lambda each: each.score, default=None)
        if best is None:
            return []
        likeness = best.figure("likeness")
        alike = self.alike * likeness if likeness > 0 else likeness
        found = [each for each in found if each.figure("likeness") >= alike]
        values = [each.figure("contrast") for each in found]
        share = self.fine_support if view.fine or view.has_likeness else self.support
        least = share * max(values) if max(values) > 0 else max(values)  # where nothing stands out, the least bad stays
        return [each for each, value in zip(found, values, strict=True) if value >= least]

    def _fitting(self, view: View, found: list[Found], words: Sequence[str]) -> list[Found]:
        """The objects that another name of the vocabulary does not fit far better than it fits the best of them."""
        odds = view.odds(words, [each.mask for each in found]) if len(found) > 1 and np.isfinite(self.margin) else None
        if odds is None:
            return found
        return [each for each, value in zip(found, odds, strict=True) if value >= odds.max() - self.margin]


def _alike(found: Found, appearance: Appearance, examples: Sequence[Appearance]) -> float:
    """How well an object matches the text, and the example that is most like it."""
    return found.figure("likeness", 0.0) / 2 + resemblance(appearance, examples)


def _warn_of_end(view: View, similarity: SimilarityMap) -> None:
    warn(
        f"the search for {similarity.text!r} ended at {view.max_objects} objects; max_objects= (--max-objects) "
        "sets how many are looked for"
    )


def _patch_at(
    point: NDArray[np.float32], grid: tuple[int, ...], shape: tuple[int, int], *, reach: int = 0
) -> NDArray[np.bool_]:
    """(H, W) bool: the patch a point lies in, which SAM's answer need not cover, and ``reach`` patches around it."""
    (gh, gw), (h, w) = grid, shape
    row, column = patch_of(point, shape, (gh, gw))
    top, left = max(row - reach, 0) * h // gh, max(column - reach, 0) * w // gw
    out = np.zeros(shape, bool)
    out[top : -(-(row + 1 + reach) * h // gh), left : -(-(column + 1 + reach) * w // gw)] = True
    return out

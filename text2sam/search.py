"""What a call finds in an image: is a text there at all, where does the recipe find it, and the result."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from text2sam.encoded import EncodedImage
from text2sam.presence import presence_scores
from text2sam.recipes import find_objects
from text2sam.recipes.points import joint_map
from text2sam.recipes.view import Avoid, Found, View
from text2sam.request import Request
from text2sam.sam.session import Session
from text2sam.targets import Query
from text2sam.types import PointPrompts, Segmentation, box_of


def search(generator: Any, session: Session, encoded: EncodedImage, request: Request) -> list[Segmentation]:
    """Looks for texts in an encoded image; one result per target, in order.

    Raises:
        Text2SamError: as :meth:`text2sam.TextPromptedSAM.segment`.
    """
    options = request.options
    view = View(
        encoded.shape,
        generator,
        encoded.features,
        session,
        encoded.sam,
        against=options.against,
        method=options.method,
        max_objects=options.max_objects,
        vocabulary=options.recipe.vocabulary,
        smooth=options.recipe.smooth,
    )
    view = replace(view, avoid=_excluded(view, request))
    looked = [_looked_for(view, query, threshold, request) for query, threshold in request.queries]
    found = find_objects(options.recipe, view, [query for query, _ in looked if query is not None])
    return [
        _result(encoded, view, query, threshold, presence, [] if wanted is None else next(found), request)
        for (query, threshold), (wanted, presence) in zip(request.queries, looked, strict=True)
    ]


def _excluded(view: View, request: Request) -> Avoid:
    """Where the excluded texts are, as far as they are there at all."""
    view = replace(view, against=request.against_excluded)
    there = [
        Query(text, (text,))
        for text in (request.exclude if request.queries else ())
        if presence_scores(view.generator, view.features, [text], request.options.against)[0] >= request.presence_threshold
    ]
    found = list(itertools.chain.from_iterable(find_objects(request.options.recipe, view, there)))
    if not found:
        return Avoid()
    return Avoid(np.logical_or.reduce([each.mask for each in found]), np.concatenate([f.points.positive for f in found]))


def _looked_for(view: View, query: Query, threshold: float, request: Request) -> tuple[Query | None, float]:
    """What of a target is looked for, None where it is not there; and its presence score."""
    scores = presence_scores(view.generator, view.features, query.texts, request.options.against)
    presence = max(scores)
    if request.options.recipe.answers_absent:
        return query, presence
    if presence < threshold:
        return None, presence
    # of joined texts those are looked for that are there
    there = tuple(text for text, score in zip(query.texts, scores, strict=True) if score >= threshold)
    return query if query.synonyms else replace(query, texts=there), presence


def _result(
    encoded: EncodedImage,
    view: View,
    query: Query,
    threshold: float,
    presence: float,
    found: Sequence[Found],
    request: Request,
) -> Segmentation:
    """The answer to one target."""
    recipe = request.options.recipe
    if not recipe.single:
        found = sorted((each for each in found if each.mask.any()), key=lambda each: -each.score)
    # an answer that may be "not here" is only as good as the chance that the text is there
    sure = 1.0 if recipe.answers_absent else presence

    def result(parts: Sequence[Found], objects: tuple[Segmentation, ...] = ()) -> Segmentation:
        mask = np.logical_or.reduce([part.mask for part in parts]) if parts else np.zeros(encoded.shape, bool)
        return Segmentation(
            mask=mask,
            score=parts[0].score * sure if mask.any() else 0.0,
            box=box_of(mask),
            points=PointPrompts.joined(part.points for part in parts),
            similarity=parts[0].similarity if len(parts) == 1 else joint_map(view.maps(query)),
            candidates=parts[0].candidates if parts else None,
            text=query.label,
            present=presence >= threshold and bool(mask.any()),
            presence=presence,
            strategy=recipe.name,
            threshold=threshold,
            objects=objects,
            looked_for=() if query.plain else query.texts,
            excluded=request.exclude,
            thumbnail=encoded.thumbnail,
        )

    return result(found, () if recipe.single else tuple(result([each]) for each in found))

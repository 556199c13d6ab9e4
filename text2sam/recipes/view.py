"""What a recipe sees of one image, and what it finds there."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import as_array, check_returned, check_shares, name_of
from text2sam.clip.protocol import make_maps
from text2sam.errors import InputError, UnsupportedModelError
from text2sam.masks import keeps
from text2sam.recipes.choose import Choice, Offer
from text2sam.recipes.points import mean_map, patch_shares, pixels_under
from text2sam.recipes.resemblance import Resemblance
from text2sam.recipes.smoothing import affinity, on_things, smooth
from text2sam.targets import Query
from text2sam.types import Candidates, PointPrompts, SimilarityMap

if TYPE_CHECKING:
    from text2sam.recipes.choose import MaskRule
    from text2sam.sam.predictor import Answer
    from text2sam.sam.session import SamImage, Session


@dataclass(frozen=True, eq=False)
class _Embedded:
    """SAM's embedding of an image, and the affinity of its places: 40 MB for most photos."""

    values: NDArray[np.float32]

    @functools.cached_property
    def affinity(self) -> NDArray[np.float32]:
        return affinity(self.values)


_EMBEDDED: WeakKeyDictionary[SamImage, _Embedded] = WeakKeyDictionary()
"""Of the image that was last asked about, for its next texts."""


@keeps("mask", once=True)
@dataclass(frozen=True, eq=False)
class Found:
    """One object that a recipe found.

    Attributes:
        mask: (H, W) bool.
        points: the prompts its mask answers.
        candidates: the masks SAM offered.
        similarity: the map the points came from.
    """

    mask: NDArray[np.bool_]
    points: PointPrompts
    candidates: Candidates
    similarity: SimilarityMap

    @property
    def score(self) -> float:
        """The figure ``"total"`` of the chosen candidate where the mask rule gives one, else SAM's score."""
        return self.figure("total", float(self.candidates.scores[self.candidates.chosen]))

    def figure(self, name: str, otherwise: float = 1.0) -> float:
        """A figure of the chosen candidate, by name; ``otherwise`` where the mask rule does not give it."""
        values = self.candidates.figures.get(name)
        return otherwise if values is None else float(values[self.candidates.chosen])


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for SAM.

    Attributes:
        similarity: the map the points came from.
        points: at least one.
        choose: the mask rule, which chooses one of SAM's masks.
        box: (4,) float32 xyxy in pixels, or None.

    Raises:
        InputError: points or rule are of another kind.
    """

    similarity: SimilarityMap
    points: PointPrompts
    choose: MaskRule
    box: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.points, PointPrompts):
            raise InputError(f"a Prompt's points must be PointPrompts, not {type(self.points).__name__}")
        if not callable(self.choose):
            raise InputError(f"a Prompt's mask rule must be a function, not {type(self.choose).__name__}")


Steps: TypeAlias = Generator[Sequence[Prompt], list[Found], list[Found]]
"""A search in steps: it yields prompts, is sent their answers, and returns the objects."""


@dataclass(frozen=True, eq=False)
class Avoid:
    """Where excluded texts are.

    Attributes:
        mask: (H, W) bool, the union of their objects; None where there is none.
        coords: (N, 2) float32, (x, y) of points on them.
    """

    mask: NDArray[np.bool_] | None = None
    coords: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    def points(self, points: PointPrompts) -> PointPrompts:
        """Points without positive ones on the mask, and with negative ones there; none where no positive point is left."""
        if self.mask is None or not len(points):
            return points
        keep = (points.labels == 0) | ~self.mask[pixels_under(points.coords, self.mask.shape)]
        coords, labels = points.coords[keep], points.labels[keep]
        if not (labels == 1).any():
            return PointPrompts.empty()
        new = np.array([c for c in self.coords if not (coords == c).all(1).any()], np.float32).reshape(-1, 2)
        return PointPrompts(np.concatenate([coords, new]), np.concatenate([labels, np.zeros(len(new), np.uint8)]))

    def cut(self, found: Found) -> Found:
        """An object without its pixels on the mask."""
        return found if self.mask is None else replace(found, mask=found.mask & ~self.mask)


@dataclass(frozen=True, eq=False)
class View:
    """One image, as a recipe sees it.

    Attributes:
        shape: (H, W) of the image in pixels.
        avoid: where excluded texts are.
        max_objects: how many objects of a text are wanted at most.
        generator, features, session, image: the map generator with what it knows of the image, and the SAM session with the
            image; recipes go through the methods below.
        against, method: the options of that name.
        vocabulary: whether texts are set against the generator's vocabulary, where it has one and no label set is given.
        smooth: whether :meth:`maps` smooths over SAM's embedding; None leaves it to the recipe, which may use :meth:`smoothed`.
    """

    shape: tuple[int, int]
    generator: Any
    features: Any
    session: Session
    image: SamImage
    against: Sequence[str] | None = None
    method: str = "surgery"
    max_objects: int = 100
    avoid: Avoid = Avoid()
    vocabulary: bool = False
    smooth: bool | None = None
    _made: dict[Query, list[SimilarityMap]] = field(default_factory=dict, init=False, repr=False)
    _words: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)  # of maps, by their text

    def maps(self, query: Query) -> list[SimilarityMap]:
        """Similarity maps of what is looked for: one for synonyms, one per text joined in a target; made once per query.

        Raises:
            UnsupportedModelError: they are to be smoothed, and the predictor keeps no embedding.
        """
        if query not in self._made:
            made = self._make(query)
            self._made[query] = [self._over_embedding(each) for each in made] if self.smooth else made
        return list(self._made[query])

    def _make(self, query: Query) -> list[SimilarityMap]:
        # a generator of the user's own need not know options that are not used
        options: dict[str, Any] = {} if self.method == "surgery" else {"method": self.method}
        if self.vocabulary and self._names:
            options["vocabulary"] = True
        maps = make_maps(self.generator, self.features, query.texts, against=self.against, **options)
        self._words.update({each.text: (text,) for each, text in zip(maps, query.texts, strict=True)})
        self._words[query.label] = query.texts
        return [mean_map(maps, query.label)] if query.synonyms else maps

    @property
    def fine(self) -> bool:
        """Whether the generator's maps part things that touch; see :class:`~text2sam.clip.protocol.MapGenerator`."""
        return bool(getattr(self.generator, "fine", False))

    @property
    def has_likeness(self) -> bool:
        """Whether the generator scores how well what a mask cuts out matches a text."""
        return callable(getattr(self.generator, "likeness", None))

    def smoothed(self, similarity: SimilarityMap) -> SimilarityMap:
        """A map smoothed over SAM's embedding of the image (:mod:`text2sam.recipes.smoothing`), unless :attr:`smooth` decides.

        Where the predictor has objectness (:meth:`~text2sam.sam.session.Session.objectness`), similarity outside objects counts
        for less. The map is unchanged where the generator's maps are :attr:`fine`, where :attr:`smooth` is False, where the
        predictor keeps no embedding, and where the map has more places than the embedding, which could add nothing to it.
        """
        if self.fine or self.smooth is False:
            return similarity
        smoothed = similarity if self.smooth else self._over_embedding(similarity)
        embedded = None if smoothed.flat else self._embedded
        if embedded is None or embedded.values.shape[1:] != smoothed.values.shape:
            return smoothed
        objectness = self.session.objectness(embedded.values)
        return smoothed if objectness is None else on_things(smoothed, objectness)

    def _over_embedding(self, similarity: SimilarityMap) -> SimilarityMap:
        if similarity.flat:
            return similarity
        embedded = self._embedded
        if embedded is None and self.smooth:
            raise UnsupportedModelError(
                "maps are smoothed over SAM's embedding of the image, and this predictor keeps none; leave out smooth=True "
                "(--smooth)"
            )
        if embedded is None or similarity.values.size > embedded.values[0].size:
            return similarity
        return smooth(similarity, embedded.affinity)

    @property
    def _embedded(self) -> _Embedded | None:
        """None where the predictor keeps no embedding."""
        held = _EMBEDDED.get(self.image)
        if held is None and (embedding := self.session.embedding(self.image)) is not None:
            held = _Embedded(embedding)
            _EMBEDDED.clear()
            _EMBEDDED[self.image] = held
        return held

    def prompt(
        self, similarity: SimilarityMap, points: PointPrompts, choose: MaskRule, box: NDArray[np.float32] | None = None
    ) -> Found:
        """SAM's answer to points, with one of its masks chosen; arguments and errors are those of :class:`Prompt` and
        :meth:`answers`."""
        return self.answers([Prompt(similarity, points, choose, box)])[0]

    def answers(self, prompts: Sequence[Prompt]) -> list[Found]:
        """SAM's answers to prompts, with one of its masks chosen for each; see
        :meth:`~text2sam.sam.session.Session.ask_all`.

        Raises:
            InputError: a mask rule returned no :class:`~text2sam.recipes.choose.Choice` of one of the masks.
            UnsupportedModelError: the predictor's answer is not usable.
        """
        answers = self.session.ask_all(self.image, [(prompt.points, prompt.box) for prompt in prompts])
        return [self._chosen(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _chosen(self, prompt: Prompt, answer: Answer) -> Found:
        similarity, points, choose = prompt.similarity, prompt.points, prompt.choose
        masks, scores, logits = answer
        words = self._words.get(similarity.text) if self.has_likeness else None  # none for a map of the recipe's own
        look = None if words is None else functools.partial(self._likeness, words)
        offer = Offer(masks, scores, similarity, points, logits, look)
        choice, rule = choose(offer), f"the mask rule {name_of(choose)}"
        if not isinstance(choice, Choice):
            raise InputError(f"{rule} must return a Choice, not {type(choice).__name__}")
        try:
            candidates = offer.taken(choice)
        except InputError as error:
            raise InputError(f"{rule} returned a Choice that does not fit: {error}") from error
        for name in ("total", "contrast", "likeness"):  # an object stays or goes by these
            if not np.isfinite(candidates.figures.get(name, 0)).all():
                raise InputError(f"{rule} must return {name!r} figures that are finite, not {candidates.figures[name]}")
        return Found(offer.only(choice.index), points, candidates, similarity)

    def _likeness(self, words: tuple[str, ...], masks: NDArray[np.bool_]) -> NDArray[np.float32]:
        answer = self.generator.likeness(self.image.pixels, masks, words)
        name = f"{type(self.generator).__name__}.likeness"
        return check_shares(name, answer, (len(masks),), "one number in [0, 1] per mask")

    def resemblance(self) -> Resemblance | None:
        """Compares the appearance of regions of the image; None where the generator has no ``likeness`` or no ``cutouts``, or
        the predictor keeps no embedding."""
        compares = self.has_likeness and callable(getattr(self.generator, "cutouts", None))
        embedded = self._embedded if compares else None
        return None if embedded is None else Resemblance(embedded.values, functools.partial(self._cutout, set()))

    def _cutout(self, lengths: set[int], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The vector of a cutout; ``lengths`` is that of the first, from then on."""
        answer, name = self.generator.cutouts(self.image.pixels, [mask]), f"{type(self.generator).__name__}.cutouts"
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # ragged lists, sparse tensors
            vectors = as_array(answer)
            if vectors.dtype.kind in "biuf" and vectors.ndim == 2 and len(vectors) == 1:
                lengths.add(vectors.shape[1])
                large = np.abs(vectors[0].astype(np.float64)).max(initial=0)
                if len(lengths) == 1 and large < 1e15:  # not NaN, and the square is finite in float32
                    vector: NDArray[np.float32] = vectors[0].astype(np.float32)
                    return vector
        raise UnsupportedModelError(
            f"{name} must return a vector of finite numbers per mask, all of one length, not {answer!r:.80}"
        )

    def odds(self, texts: Sequence[str], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64] | None:
        """How much better a place fits the best of texts than it fits the generator's vocabulary.

        Args:
            texts: words for one thing.
            masks: M masks (H, W) bool.

        Returns:
            (M,) log-odds, minus infinity for an empty mask; None where the generator has no vocabulary.
        """
        if not self._names or not masks:
            return None
        shares = patch_shares(np.stack(masks), self.features.grid)
        odds = np.array(
            [
                max(self.generator.region_odds(self.features, text, share) for text in texts) if share.any() else -np.inf
                for share in shares
            ],
            np.float64,
        )
        if np.isnan(odds).any():
            raise UnsupportedModelError(f"{type(self.generator).__name__}.region_odds must return numbers, not NaN")
        return odds

    @property
    def _names(self) -> bool:
        return bool(getattr(self.generator, "vocabulary", ()))


class Recipe:
    """A way from similarity maps to masks; subclass it and write :meth:`find` or :meth:`steps`.

    Attributes:
        name: what ``Segmentation.strategy`` says.
        answers_absent: whether a text that is not there by its presence score is looked for all the same.
        single: whether the recipe makes one mask for all objects of a text, so that results have no ``objects``.
        vocabulary: see :class:`View`.
        smooth: True smooths every map over SAM's embedding (:mod:`text2sam.recipes.smoothing`), also those in results, and
            those of texts that are not there, which costs SAM's encoding; maps of more places than the embedding, as those of
            tiles, stay as they are. False smooths none. None leaves it to the recipe.
    """

    name: str = "recipe"
    answers_absent: bool = False
    single: bool = False
    vocabulary: bool = True
    smooth: bool | None = None

    def find(self, view: View, query: Query) -> list[Found]:
        """The objects of a target in an image, highest score first; empty where there is none."""
        return in_step(view, [self.steps(view, query)])[0]

    def steps(self, view: View, query: Query) -> Steps:
        """:meth:`find` as a generator, so that on a GPU several texts are answered together: lists of :class:`Prompt` are
        yielded, not given to ``view.prompt``, and their answers, lists of :class:`Found`, come back."""
        raise InputError(
            f"{type(self).__name__} must define find(view, query), which returns a list of Found, or steps(view, query)"
        )


def in_step(view: View, searches: Sequence[Steps]) -> list[list[Found]]:
    """What searches in one image find, with the prompts of all of them answered together, step by step."""
    for search in searches:
        if not isinstance(search, Generator):
            raise InputError(f"a recipe's steps must be a generator that yields lists of Prompt, not {type(search).__name__}")
    found: list[list[Found]] = [[] for _ in searches]
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        asked: dict[int, Sequence[Prompt]] = {}
        for number, answer in answers.items():
            try:
                prompts = searches[number].send(answer)
                asked[number] = check_returned(name_of(searches[number]), prompts, Prompt, "lists of Prompt")
            except StopIteration as end:
                found[number] = end.value
        given = iter(view.answers(list(itertools.chain.from_iterable(asked.values()))))
        answers = {number: list(itertools.islice(given, len(prompts))) for number, prompts in asked.items()}
    return found

"""Which image a predictor holds: the only module that reads or writes a predictor's state.

``SamPredictor`` holds one image at a time. A :class:`Session` lets many images take turns on one predictor: an image is
encoded once, its state is kept, and it is put back when the image is asked about again. Somebody else may set an image of
their own in between, another pipeline or a cell of a notebook; the session notices, or sets its own image again.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from text2sam.checks import check_shares
from text2sam.errors import ImageError, InputError, UnsupportedModelError
from text2sam.sam.predictor import Answer, MaskPredictor, check_predictor, checked_answer, predict_points, prompt_of

if TYPE_CHECKING:
    from text2sam.types import PointPrompts

SAM = frozenset({"features", "is_image_set"})
"""Attributes in which ``SamPredictor`` and its relatives (MobileSAM, HQ-SAM) keep an image."""
SAM2 = frozenset({"_features", "_orig_hw", "_is_image_set"})
"""Attributes in which ``SAM2ImagePredictor`` and its relatives keep an image."""

PLAIN = SAM | {"model", "transform", "original_size", "input_size", "orig_h", "orig_w", "input_h", "input_w", "objectness"}
"""All attributes of a plain ``SamPredictor``, and ``objectness``, which may be added to it."""


class SamImage:
    """An image as a predictor knows it; made by :meth:`Session.image`, encoded when it is first asked about.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        state: the attributes of the predictor that hold the encoded image, by name; None before the image is encoded, and for
            predictors that keep their state elsewhere than ``SamPredictor`` and ``SAM2ImagePredictor`` do.
    """

    def __init__(self, pixels: NDArray[np.uint8], model: Any, state: Mapping[str, Any] | None = None) -> None:
        self.pixels = pixels
        self.state = state
        self._model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> SamImage:
        """A copy of the same model."""
        return SamImage(copy.deepcopy(self.pixels, memo), self._model, copy.deepcopy(self.state, memo))

    def __reduce__(self) -> Any:
        raise TypeError(
            "an encoded image belongs to its model and cannot be pickled; pickle the image and encode it again, or keep "
            "embeddings on the disk (text2sam annotate --embeddings)"
        )


class Session:
    """The images of one predictor.

    Calls from several threads wait for one another.

    Args:
        predictor: any :class:`~text2sam.sam.predictor.MaskPredictor`. All pipelines on one predictor must share its session:
            :meth:`of` gives it.

    Attributes:
        calls: how many times the predictor was asked for masks.

    Raises:
        UnsupportedModelError: the predictor lacks a method or an argument.
    """

    _sessions: ClassVar[weakref.WeakValueDictionary[int, Session]] = weakref.WeakValueDictionary()  # by id of the predictor
    _making = threading.Lock()

    def __init__(self, predictor: MaskPredictor) -> None:
        self._predictor: Any = check_predictor(predictor)
        self.calls = 0
        self._lock = threading.RLock()
        self._current: SamImage | None = None
        self._left: dict[str, tuple[Any, ...]] | None = None  # the predictor's attributes, as this session left them

    @classmethod
    def of(cls, predictor: MaskPredictor) -> Session:
        """The one session of a predictor."""
        with cls._making:
            session = cls._sessions.get(id(predictor))
            if session is None:
                session = cls._sessions[id(predictor)] = cls(predictor)
            return session

    @property
    def keeps_state(self) -> bool:
        """Whether an encoded image can be kept and put back. Otherwise it is encoded again after every other image."""
        held = _vars(self._predictor).keys()
        return held >= SAM or held >= SAM2

    def image(self, pixels: NDArray[np.uint8], state: Mapping[str, Any] | None = None) -> SamImage:
        """An image to ask about.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            state: as :attr:`SamImage.state` was for this image and the same weights, to skip the encoding.
        """
        return SamImage(pixels, self._model, state)

    def encode(self, images: Sequence[SamImage]) -> None:
        """Encodes images ahead of questions.

        A ``SamPredictor`` on a GPU encodes them as one batch; on a CPU, where a batch only costs memory, and with any other
        predictor, one after the other. A predictor that keeps one image only holds the last of them.
        """
        waiting = [image for image in images if image.state is None]
        with self._lock:
            if len(waiting) > 1 and self.batches:
                self._encode_batch(waiting)
                return
            for image in waiting:
                self._use(image)

    def ask(
        self,
        image: SamImage,
        points: PointPrompts,
        *,
        multimask_output: bool = True,
        mask_input: NDArray[np.float32] | None = None,
        box: NDArray[np.float32] | None = None,
    ) -> Answer:
        """Masks of an image for point prompts; see :func:`~text2sam.sam.predictor.predict_points`, with ``lazy``."""
        sam, (h, w) = self._predictor, image.pixels.shape[:2]
        with self._asking(image):
            self.calls += 1
            return predict_points(
                sam, points, multimask_output=multimask_output, mask_input=mask_input, box=box, shape=(h, w), lazy=True
            )

    def ask_all(self, image: SamImage, prompts: Sequence[tuple[PointPrompts, NDArray[np.float32] | None]]) -> list[Answer]:
        """:meth:`ask` for several prompts, each points and a box or None; a ``SamPredictor`` on a GPU answers them together."""
        if len(prompts) < 2 or not self.batches:
            return [self.ask(image, points, box=box) for points, box in prompts]
        from text2sam.sam.batch import predict_batch

        checked = [(points, prompt_of(points, None, box).get("box")) for points, box in prompts]
        with self._asking(image):
            self.calls += len(prompts)
            answers = predict_batch(self._predictor, checked)
        return [checked_answer(self._predictor, answer) for answer in answers]

    @contextlib.contextmanager
    def _asking(self, image: SamImage) -> Iterator[None]:
        with self._lock, self._float32():
            self._use(image)
            try:
                yield
            finally:
                if self._left is not None:  # what predict left behind is no other image
                    self._left = _held(self._predictor)

    def embedding(self, image: SamImage) -> NDArray[np.float32] | None:
        """What SAM's image encoder made of an image, which is encoded where it is not yet.

        Returns:
            (C, gh, gw) float32 over the image, without padding; None for predictors that do not keep it as ``SamPredictor``,
            ``SAM2ImagePredictor`` and :class:`~text2sam.sam.hf.HFPredictor` do.
        """
        import torch

        if not self.keeps_state:
            return None
        with self._lock:
            self._use(image)
        state = image.state or {}
        held = state.get("features")
        if held is None and isinstance(state.get("_features"), Mapping):
            held = state["_features"].get("image_embed")
        elif isinstance(held, Mapping):
            held = held.get("image_embeddings")
            held = held[-1] if isinstance(held, (list, tuple)) else held  # SAM 2's come with finer ones
        if not isinstance(held, torch.Tensor) or held.ndim != 4 or len(held) != 1:
            return None
        features = held.detach().float().cpu()
        side = getattr(getattr(self._predictor, "transform", None), "target_length", None)
        padded = (side, side) if side else state.get("padded_size")
        if "input_size" not in state or not padded:  # SAM 2 squashes the image to a square
            return features[0].numpy()
        # the image fills a part of the square, which need not end between two places
        sizes = zip(state["input_size"], padded, features.shape[2:], strict=True)
        filled = [length / whole * places for length, whole, places in sizes]
        at = [
            (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) * (share / count) * (2 / places) - 1
            for share, places in zip(filled, features.shape[2:], strict=True)
            for count in [max(1, round(share))]
        ]
        grid = torch.stack(torch.meshgrid(*at, indexing="ij")[::-1], dim=-1)[None]
        sampled = torch.nn.functional.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled[0].numpy()

    def objectness(self, embedding: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """How likely each place of an embedding is on an object, from a predictor with ``objectness``.

        Args:
            embedding: (C, gh, gw) float32, of :meth:`embedding`.

        Returns:
            (gh, gw) float32 in [0, 1]; None for predictors without ``objectness``, see
            :class:`~text2sam.sam.predictor.MaskPredictor`.

        Raises:
            UnsupportedModelError: ``objectness`` cannot be called, or its answer is not of this kind.
        """
        head = getattr(self._predictor, "objectness", None)
        if head is None:
            return None
        name, shape = f"{type(self._predictor).__name__}.objectness", embedding.shape[1:]
        if not callable(head):
            raise UnsupportedModelError(f"{name} must be called with an embedding, and is a {type(head).__name__}")
        answer = head(embedding.copy())  # it may compute in place
        return check_shares(name, answer, shape, f"numbers in [0, 1] of shape {shape}")

    def reset(self) -> None:
        """Makes the predictor forget its image. States that images keep stay with them."""
        with self._lock:
            self._current = self._left = None
            for name in ("reset_image", "reset_predictor"):
                reset = getattr(self._predictor, name, None)
                if callable(reset):
                    reset()
                    break

    @property
    def _model(self) -> Any:
        return getattr(self._predictor, "model", None)

    def _use(self, image: SamImage) -> None:
        """Makes an image the predictor's own, unless it is already."""
        if image._model is not self._model:
            raise InputError("the image was encoded by another model; encode it again with this predictor")
        if image.state is not None and self.keeps_state:
            _vars(self._predictor).update(image.state)
            self._current = image
            return
        if self._current is image and self._left is not None and _same(self._left, _held(self._predictor)):
            return
        self._current = self._left = None
        side, (h, w) = getattr(getattr(self._predictor, "transform", None), "target_length", None), image.pixels.shape[:2]
        if isinstance(side, int) and round(min(h, w) * side / max(h, w)) < 1:
            raise ImageError(
                f"an image of {w} x {h} pixels is too thin for SAM, which resizes its longer side to {side}; crop it"
            )
        before = _held(self._predictor)
        with self._float32():
            self._predictor.set_image(image.pixels)
        self._current = image
        if self.keeps_state:
            image.state = _state(self._predictor)
        after = _held(self._predictor)
        # where setting an image changes nothing that can be seen, another image could be set unseen
        self._left = None if _same(before, after) else after

    @property
    def batches(self) -> bool:
        """Whether several images, or prompts of one, are cheaper together: on a GPU, for ``SamPredictor`` itself."""
        kind, held = type(self._predictor), _vars(self._predictor)
        # a subclass, a relative of that name, or a method put in place of its own may do more
        plain = (kind.__module__, kind.__name__) == ("segment_anything.predictor", "SamPredictor") and held.keys() <= PLAIN
        return plain and self._predictor.device.type != "cpu"

    def _encode_batch(self, images: Sequence[SamImage]) -> None:
        from text2sam.sam.batch import encode_batch

        predictor = self._predictor
        self._current = None
        with self._float32():
            encoded = encode_batch(predictor, [image.pixels for image in images])
        for image, made in zip(images, encoded, strict=True):
            predictor.reset_image()
            vars(predictor).update(made)
            image.state = _state(predictor)
        predictor.reset_image()

    @contextlib.contextmanager
    def _float32(self) -> Iterator[None]:
        """SAM computes in float32, whatever autocast or default number format surrounds the call.

        Models of SAM 2's kind are made for autocast and keep the caller's.
        """
        import torch

        default = torch.get_default_dtype()
        kind = getattr(getattr(self._predictor, "device", None), "type", "cpu")
        with contextlib.ExitStack() as stack:
            if not _vars(self._predictor).keys() >= SAM2:
                stack.enter_context(torch.autocast(kind, enabled=False))
            if default != torch.float32:
                torch.set_default_dtype(torch.float32)
                stack.callback(torch.set_default_dtype, default)
            yield


def _vars(predictor: Any) -> dict[str, Any]:
    held = getattr(predictor, "__dict__", None)
    return held if isinstance(held, dict) else {}


def _state(predictor: Any) -> dict[str, Any]:
    """The predictor's attributes, with the image it holds, but for objectness, which is no part of an image."""
    return {name: value for name, value in _vars(predictor).items() if not callable(value) and name != "objectness"}


def _held(predictor: Any) -> dict[str, tuple[Any, ...]]:
    """What a predictor's attributes hold, and what is in those that are lists or dictionaries."""
    held: dict[str, tuple[Any, ...]] = {}
    for name, value in _vars(predictor).items():
        inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        held[name] = (value, *inside)
    return held


def _same(one: Mapping[str, tuple[Any, ...]], other: Mapping[str, tuple[Any, ...]]) -> bool:
    return one.keys() == other.keys() and all(
        len(values) == len(other[name]) and all(a is b for a, b in zip(values, other[name], strict=True))
        for name, values in one.items()
    )

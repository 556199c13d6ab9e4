"""A backend for Label Studio: texts and clicks in, brush regions out.

It speaks the HTTP interface of Label Studio's ML backends: ``/health``, ``/setup``, ``/predict``. The package
``label-studio-ml`` on the package index (1.0.9) needs Flask 1 and speaks an older one.

FastAPI reads the annotations of this module, so they are no strings here.
"""

# ruff: noqa: E402
import base64
import binascii
import contextlib
import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

from text2sam.serve.queue import check_installed

check_installed()

import numpy as np
from fastapi import FastAPI, HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from text2sam import __version__
from text2sam.errors import ImageError, InputError, OutputError, PromptError
from text2sam.export.exporter import inside
from text2sam.export.label_studio import brush_region
from text2sam.serve.queue import Limits, ModelQueue, check_texts, decode
from text2sam.types import PointPrompts, Segmentation

if TYPE_CHECKING:
    from text2sam.pipeline import EncodedImage, TextPromptedSAM

log = logging.getLogger(__name__)

_KEPT = 4
"""Encoded images that wait for the next click."""
_LONGEST_CONFIG = 1_000_000
_MOST_LABELS = 1_000
_MOST_TASKS = 1_000
_COMMAS = re.compile(r"\s*,\s*")


@dataclass(frozen=True)
class Config:
    """What a labeling configuration says about brushes on images.

    Attributes:
        image: name of the ``Image`` tag.
        key: of the image's address in a task's data.
        brush: name of the ``BrushLabels`` tag for that image.
        labels: its labels.
    """

    image: str
    key: str
    brush: str
    labels: tuple[str, ...]

    @classmethod
    def parse(cls, xml: str) -> "Config":
        """Reads a configuration.

        Raises:
            InputError: it is no XML, or has no ``BrushLabels`` with labels for an ``Image``, or too many labels.
        """
        if len(xml) > _LONGEST_CONFIG or "<!DOCTYPE" in xml or "<!ENTITY" in xml:
            raise InputError("the labeling configuration is too long, or declares a document type")
        try:
            root = ElementTree.fromstring(xml)
        except (ElementTree.ParseError, ValueError) as error:  # half a surrogate pair is a ValueError
            raise InputError(f"the labeling configuration is no XML: {error}") from error
        images = {tag.get("name"): str(tag.get("value", "")).removeprefix("$") for tag in root.iter("Image")}
        for brush in root.iter("BrushLabels"):
            labels = tuple(str(tag.get("value")) for tag in brush.iter("Label") if tag.get("value"))
            image, name = brush.get("toName"), brush.get("name")
            if len(labels) > _MOST_LABELS:
                raise InputError(f"the labeling configuration has {len(labels)} labels; at most {_MOST_LABELS} are looked for")
            if name and image in images and labels:
                return cls(str(image), images[image], name, labels)
        raise InputError(
            "the labeling configuration has no BrushLabels with labels for an Image: text2sam paints brushes, so give it "
            '<BrushLabels name="label" toName="image"><Label value="cat"/></BrushLabels>'
        )


class Pictures:
    """Where the backend may take pictures from: a folder, Label Studio's own address, and the request itself.

    Args:
        folder: what Label Studio serves as local files (``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``); None for none.
        url: Label Studio's address, such as ``http://localhost:8080``; None for none.
        token: Label Studio's access token, sent to that address alone.
        limits: of a picture.

    Raises:
        InputError: ``url`` is no http or https address.
    """

    def __init__(self, folder: Path | None, url: str | None, token: str | None, limits: Limits) -> None:
        self.folder, self.token, self.limits = folder, token, limits
        self.url = None if url is None else url.rstrip("/")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise InputError(f"Label Studio's address begins with http:// or https://, not {url!r}")

    def read(self, address: str) -> bytes:
        """The bytes of the picture that a task names.

        Raises:
            ImageError: it lies elsewhere, is missing or too large.
        """
        if address.startswith("data:"):
            try:
                return base64.b64decode(address.partition(",")[2], validate=True)
            except (binascii.Error, ValueError) as error:
                raise ImageError(f"the picture in the task is no base64: {error}") from error
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise ImageError(f"the picture {address[:200]!r} has no address: {error}") from error
        local = parse_qs(parts.query).get("d") if parts.path.endswith("/data/local-files/") else None
        if local and self.folder is not None and not parts.netloc:
            return self._file(local[0])
        if self.url is not None and (not parts.netloc or address.startswith(f"{self.url}/")):
            return self._download(address if parts.netloc else f"{self.url}/{address.lstrip('/')}")
        raise ImageError(
            f"the picture {address[:200]!r} is not where this backend may read: give --images for local files, or --url and "
            "the environment variable LABEL_STUDIO_API_KEY for what Label Studio serves"
        )

    def _file(self, name: str) -> bytes:
        try:
            path = inside(Path(str(self.folder)), name)
            if path.stat().st_size > self.limits.bytes:
                raise ImageError(f"the picture {name!r} has more than {self.limits.megabytes} MB")
            return path.read_bytes()
        except ImageError:
            raise
        except OutputError as error:  # which names folders of this machine
            raise ImageError(f"the picture {name!r} is not in the folder of --images") from error
        except (OSError, ValueError, InputError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ImageError(f"the picture {name!r} cannot be read: {why}") from error

    def _download(self, address: str) -> bytes:
        import httpx

        headers = {"Authorization": f"Token {self.token}"} if self.token else {}
        data = bytearray()
        try:
            with httpx.stream("GET", address, headers=headers, timeout=30) as response:  # a redirect may lead elsewhere
                if response.status_code != 200:
                    raise ImageError(f"Label Studio answered {response.status_code} for the picture {address[:200]!r}")
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > self.limits.bytes:
                        raise ImageError(f"the picture {address[:200]!r} has more than {self.limits.megabytes} MB")
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise ImageError(f"the picture {address[:200]!r} cannot be had: {error}") from error
        return bytes(data)


class Setup(BaseModel):
    """What Label Studio sends when it connects."""

    labels: str = Field(alias="schema")


class Task(BaseModel):
    """A task, as far as it matters here."""

    data: dict[str, Any]


class Context(BaseModel):
    """What an annotator has just drawn or written, as regions."""

    result: list[dict[str, Any]] | None = None


class Params(BaseModel):
    """Further parameters."""

    context: Context | None = None


class Request(BaseModel):
    """What Label Studio sends for predictions."""

    tasks: list[Task] = Field(max_length=_MOST_TASKS)
    label_config: str
    params: Params | None = None


class Painter:
    """Answers requests with a model; keeps the images of the last few tasks encoded."""

    def __init__(self, pictures: Pictures, version: str) -> None:
        self.pictures, self.limits, self.version = pictures, pictures.limits, version
        self._encoded: OrderedDict[str, EncodedImage] = OrderedDict()

    def predict(self, model: "TextPromptedSAM", request: Request) -> list[dict[str, Any]]:
        """One prediction per task."""
        config = Config.parse(request.label_config)
        context = request.params and request.params.context
        drawn = (context and context.result) or []
        predictions = []
        for task in request.tasks:
            address = task.data.get(config.key)
            if not isinstance(address, str):
                raise InputError(f"the task has no {config.key!r}, which the configuration shows as its image")
            image = self._image(model, address)
            objects = self._drawn(model, image, config, drawn) if drawn else self._texts(model, image, config.labels, config)
            regions = [
                brush_region(mask, label, score, f"t2s-{number}", config.brush, config.image)
                for number, (label, mask, score) in enumerate(objects)
            ]
            mean = sum(score for _, _, score in objects) / max(1, len(objects))
            predictions.append({"result": regions, "score": mean, "model_version": self.version})
        return predictions

    def _image(self, model: "TextPromptedSAM", address: str) -> "EncodedImage":
        data = self.pictures.read(address)
        key = hashlib.sha256(data).hexdigest()
        if key not in self._encoded:
            [self._encoded[key]] = model.encode([decode(data, self.limits)])
        self._encoded.move_to_end(key)
        while len(self._encoded) > _KEPT:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _texts(
        self, model: "TextPromptedSAM", image: "EncodedImage", texts: Iterable[str], config: Config
    ) -> list[tuple[str, NDArray[np.bool_], float]]:
        """The objects of texts. A text that the model does not know is left out: a label need not be a word for it."""
        objects = []
        for text in texts:
            try:
                result = model.segment(image, text)
            except PromptError as error:
                log.warning("%s", error)
                continue
            label = next((each for each in config.labels if each.casefold() == text.casefold()), config.labels[0])
            objects += [(label, part.mask, part.score) for part in result.instances]
        return objects

    def _drawn(
        self, model: "TextPromptedSAM", image: "EncodedImage", config: Config, drawn: Sequence[Mapping[str, Any]]
    ) -> list[tuple[str, NDArray[np.bool_], float]]:
        """What an annotator asks for: texts in a text field, or points and a box on one object."""
        texts = [str(text) for item in drawn for text in _listed(_value(item).get("text"))]
        words = [word for text in texts for word in _COMMAS.split(text.strip()) if word]
        if words:
            check_texts(words, self.limits)
            return self._texts(model, image, words, config)
        points, box, label = read_clicks(drawn, image.shape)
        if label not in config.labels:
            label = config.labels[0]
        if not len(points) and box is None:
            return []
        mask, score = self._clicked(model, image, label, points, box)
        return [(label, mask, score)] if mask.any() else []

    def _clicked(
        self,
        model: "TextPromptedSAM",
        image: "EncodedImage",
        label: str,
        points: PointPrompts,
        box: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.bool_], float]:
        """The object under clicks: what the label's text found there, corrected by them, or else SAM's own answer.

        Negative clicks alone take away from an object; where there is none they give nothing."""
        if box is None:
            known: Segmentation | None = None
            with contextlib.suppress(PromptError):  # a label need not be a word for the model
                known = model.segment(image, label)
            x, y = (int(value) for value in (*points.positive, *points.coords)[0])
            at = [k for k, part in enumerate(known.instances) if part.mask[y, x]] if known is not None else []
            if known is not None and at:
                changed = model.refine(image, known, points, number=at[0])
                if len(changed.instances) == len(known.instances):
                    return changed.instances[at[0]].mask, changed.instances[at[0]].score
            if not len(points.positive):
                return np.zeros(image.shape, np.bool_), 0.0
        masks, scores, _ = model.session.ask(image.sam, points, box=box)
        best = int(np.argmax(scores))
        return masks[best], float(scores[best])


def read_clicks(
    drawn: Sequence[Mapping[str, Any]], shape: tuple[int, int]
) -> tuple[PointPrompts, NDArray[np.float32] | None, str | None]:
    """Points, box and label of what an annotator drew with smart tools.

    Args:
        drawn: regions; positions are percents of the image's sides.
        shape: (H, W) of the image in pixels.

    Returns:
        Points in pixels, the last rectangle as (4,) float32 xyxy or None, and the label of the last region or None.

    Raises:
        InputError: a region has no position, or a value that is no mapping.
    """
    height, width = shape
    coords: list[tuple[float, float]] = []
    labels: list[int] = []
    box, label = None, None
    for item in drawn:
        kind, value = str(item.get("type", "")), _value(item)
        if kind not in ("keypointlabels", "keypoint", "rectanglelabels", "rectangle"):
            continue
        try:
            x, y = float(value["x"]) * width / 100, float(value["y"]) * height / 100
            names = _listed(value.get(kind))
            label = str(names[0]) if names else label
            if kind.startswith("keypoint"):
                coords.append((min(max(x, 0), width - 1), min(max(y, 0), height - 1)))
                labels.append(int(bool(item.get("is_positive", 1))))
            else:
                right, lower = x + float(value["width"]) * width / 100, y + float(value["height"]) * height / 100
                box = np.array([x, y, right, lower], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a {kind} region must have x and y, and a rectangle width and height, in percent") from error
    points = PointPrompts(np.array(coords, np.float32).reshape(-1, 2), np.array(labels, np.uint8))
    return points, box, label


def _value(item: Mapping[str, Any]) -> Mapping[str, Any]:
    value = item.get("value") or {}
    if not isinstance(value, Mapping):
        raise InputError(f"the value of a region must be a mapping, not {type(value).__name__}")
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def create_backend(model: "TextPromptedSAM", pictures: Pictures, *, name: str = "") -> FastAPI:
    """The backend, as an ASGI application.

    Without anything drawn each label of the configuration is looked for. Points (``KeyPointLabels``) and rectangles of smart
    tools give the object under them; negative points alone take away from what the label's text finds there; words in a text
    field (``TextArea``) are looked for, and get the label of that name or the first one.

    Args:
        model: used by the backend alone.
        pictures: where they come from; their limits are those of requests too.
        name: of the model, such as the preset.
    """
    limits = pictures.limits
    version = f"text2sam {__version__} {name}".strip()
    painter = Painter(pictures, version)
    queue = ModelQueue(model, limits)
    app = FastAPI(title="text2sam for Label Studio", version=__version__, max_body_size=limits.bytes)

    @app.get("/")
    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "text2sam"}

    @app.post("/setup")
    def setup(request: Setup) -> dict[str, str]:
        try:
            Config.parse(request.labels)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        return {"model_version": version}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, list[dict[str, Any]]]:
        return {"results": await queue.run(lambda model: painter.predict(model, request))}

    @app.post("/webhook")
    def webhook() -> dict[str, str]:
        return {"status": "ignored"}

    return app

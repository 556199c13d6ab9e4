"""The service behind ``text2sam serve``: an image and texts in, masks and figures out.

FastAPI reads the annotations of this module, so they are no strings here.
"""

# ruff: noqa: E402
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from text2sam.serve.queue import check_installed

check_installed()

from fastapi import FastAPI, File, Form, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from text2sam import __version__
from text2sam.checks import check_known
from text2sam.rle import pack_counts, roll
from text2sam.serve.queue import Limits, ModelQueue, check_texts, decode
from text2sam.types import Segmentation

if TYPE_CHECKING:
    from text2sam.pipeline import TextPromptedSAM


class Mask(BaseModel):
    """A mask as COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="height and width in pixels")
    counts: str


class Instance(BaseModel):
    """One object, or the union of several."""

    mask: Mask
    score: float = Field(ge=0, le=1)
    area: int = Field(description="pixels of the mask")
    box: tuple[float, float, float, float] | None = Field(description="x0, y0, x1, y1 in pixels; x1 and y1 exclusive")

    @classmethod
    def fields_of(cls, result: Segmentation) -> dict[str, Any]:
        """The fields above, from a result."""
        return {
            "mask": Mask(size=(result.mask.shape[0], result.mask.shape[1]), counts=pack_counts(roll(result.mask))),
            "score": result.score,
            "area": result.area,
            "box": None if result.box is None else tuple(result.box.tolist()),
        }


class Points(BaseModel):
    """The point prompts, as ``text2sam segment --json`` has them."""

    coords: list[tuple[float, float]] = Field(description="x, y in pixels")
    labels: list[int] = Field(description="1 on the object, 0 off it")


class Answer(Instance):
    """What was found for a text."""

    text: str
    present: bool
    presence: float = Field(ge=0, le=1)
    objects: list[Instance]
    points: Points

    @classmethod
    def of(cls, result: Segmentation) -> "Answer":
        """The answer that a result is."""
        return cls(
            **cls.fields_of(result),
            text=result.text,
            present=result.present,
            presence=result.presence,
            objects=[Instance(**Instance.fields_of(part)) for part in result.instances],
            points=Points(coords=result.points.coords.tolist(), labels=result.points.labels.tolist()),
        )


class Answers(BaseModel):
    """The answer to a request: one for each text, in order."""

    width: int
    height: int
    seconds: float
    results: list[Answer]


class Health(BaseModel):
    """Whether the service is up."""

    status: Literal["ok"] = "ok"
    text2sam: str = __version__
    model: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the image, a text or a field cannot be used"},
    413: {"description": "the request is too large"},
    503: {"model": Problem, "description": "too many requests wait"},
}


def create_app(model: "TextPromptedSAM", limits: Limits | None = None, *, name: str = "") -> FastAPI:
    """The service, as an ASGI application.

    ``POST /v1/segment`` takes a form with an image file and texts; ``GET /health`` says whether the service is up; ``/docs``,
    to which ``/`` leads, shows the OpenAPI page. Nothing in a request names a file or an address. Errors are
    ``{"detail": ...}``: 400 for what cannot be used, 413 for what is too large, 422 for a form of another shape, 503 when too
    many wait.

    Args:
        model: used by the service alone.
        limits: of requests.
        name: what ``/health`` calls the model, such as the preset.
    """
    limits = limits or Limits()
    queue = ModelQueue(model, limits)
    app = FastAPI(
        title="text2sam",
        version=__version__,
        description="From a text to a segmentation mask.",
        max_body_size=limits.bytes,
    )
    texts_of = {"max_length": limits.texts}

    @app.get("/", include_in_schema=False)
    def top() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/health")
    def health() -> Health:
        """Whether the service is up."""
        return Health(model=name)

    @app.post("/v1/segment", responses=PROBLEMS)
    async def segment(
        request: Request,
        image: Annotated[bytes, File(description=f"an image file of at most {limits.pixels:,} pixels")],
        texts: Annotated[list[str], Form(min_length=1, **texts_of, description="what to look for; a+b is any of two")],
        against: Annotated[list[str] | None, Form(**texts_of, description="what else may be in the image")] = None,
        exclude: Annotated[list[str] | None, Form(**texts_of, description="what masks leave out")] = None,
        threshold: Annotated[float | None, Form(ge=0, le=1, description="presence from which a text counts as there")] = None,
        strategy: Annotated[Literal["objects", "paper"], Form(description="objects, or the papers' recipe")] = "objects",
        max_objects: Annotated[int, Form(ge=1, le=100, description="of each text")] = 100,
    ) -> Answers:
        """Segment everything that each text names in an image."""
        started = time.perf_counter()
        given = await request.form()

        def work(model: "TextPromptedSAM") -> Answers:
            check_known("field", given, [name for name in segment.__annotations__ if name not in ("request", "return")])
            check_texts(texts, limits)
            pixels = decode(image, limits)
            results = model.segment_many(
                pixels,
                list(texts),
                against=against or None,
                exclude=exclude or None,
                threshold=threshold,
                strategy=strategy,
                max_objects=max_objects,
            )
            answers = [Answer.of(result) for result in results]
            seconds = time.perf_counter() - started
            return Answers(width=pixels.shape[1], height=pixels.shape[0], seconds=seconds, results=answers)

        return await queue.run(work)

    return app

"""What all commands share: the top of the tree, exit codes, options, output."""

from __future__ import annotations

import json
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from text2sam import __version__
from text2sam.errors import InputError, OutputError, Text2SamError, UnsupportedModelError, WeightsError
from text2sam.tables import aligned, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from text2sam.clip.generator import ClipSurgery
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.presence import Calibration
    from text2sam.targets import Target
    from text2sam.types import Segmentation

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INPUT = 2
EXIT_WEIGHTS = 3
EXIT_CORRUPT = 4
EXIT_ABSENT = 5
EXIT_FAILED = 6
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "done, every text was handled",
    EXIT_ERROR: "a file could not be written, or an unexpected error",
    EXIT_INPUT: "wrong usage or unusable input",
    EXIT_WEIGHTS: "weights are missing, cannot be downloaded or do not fit",
    EXIT_CORRUPT: "models verify found a file corrupt or missing",
    EXIT_ABSENT: "a text is not in the image (only with --require-present)",
    EXIT_FAILED: "an image failed (only with annotate --strict)",
    EXIT_INTERRUPTED: "interrupted",
}
"""Exit codes and what they mean; scripts may rely on them."""

_NAME_BYTES = 80
CODES_HELP = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {what}" for code, what in EXIT_CODES.items())


class Method(str, Enum):
    """How the similarity map is made, see :meth:`text2sam.ClipSurgery.maps`."""

    surgery = "surgery"
    architecture = "architecture"
    features = "features"
    itsm = "itsm"
    rclip = "rclip"
    maskclip = "maskclip"
    sclip = "sclip"
    clearclip = "clearclip"
    naclip = "naclip"
    gem = "gem"


class Templates(str, Enum):
    """Which prompt templates are averaged."""

    full = "full"
    short = "short"


def exit_code(error: Text2SamError) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, WeightsError):
        return EXIT_WEIGHTS
    if isinstance(error, (InputError, UnsupportedModelError)):
        return EXIT_INPUT
    return EXIT_ERROR


_ORDER = ("demo", "segment", "annotate", "explain", "calibrate", "warm", "models", "evaluate", "bench")


class _Commands(TyperGroup):
    """The top of the commands: turns errors into one line and an exit code."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names as ``--help`` lists them: what most people want comes first."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        with _quiet():
            try:
                return super().invoke(ctx)
            except Text2SamError as error:
                echo(f"text2sam: error: {one_line(str(error))}", to_stderr=True)
                raise typer.Exit(exit_code(error)) from error
            except KeyboardInterrupt:
                echo("text2sam: interrupted", to_stderr=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="From a text to a segmentation mask: CLIP Surgery finds the points, Segment Anything makes the mask.",
    epilog=CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps other packages' warnings and log lines off the terminal; text2sam's own log lines stay."""
    root, own = logging.getLogger(), logging.getLogger("text2sam")
    silent, notes = logging.NullHandler(), logging.StreamHandler(sys.stderr)
    notes.setFormatter(logging.Formatter("text2sam: %(message)s"))
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        # with a handler on the root, logging.warning() does not set one up that prints
        root.addHandler(silent)
        own.addHandler(notes)
        try:
            yield
        finally:
            root.removeHandler(silent)
            own.removeHandler(notes)


def echo(text: str, *, to_stderr: bool = False) -> None:
    """Prints a line; what the terminal's encoding lacks as escapes."""
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=to_stderr)


def print_json(document: Any) -> None:
    """Prints a document as ASCII, so that any terminal and pipe takes it."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, as plain text."""
    cells = [[one_line(cell) for cell in row] for row in (headers, *rows)]
    return "\n".join(aligned(cells))


def _version(value: bool) -> None:
    if value:
        echo(f"text2sam {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def split_list(values: Sequence[str] | None) -> list[str]:
    """An option given several times, or once as a comma list, as one list without repeats."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return list(dict.fromkeys(part for part in parts if part))


def slug(text: str) -> str:
    """``text`` as part of a file name, safe on every file system.

    Letters, digits, marks, ``_`` and ``+`` stay; every run of other characters (separators, dots, control
    characters, lone surrogates) becomes one ``-``. At most 80 bytes of UTF-8 and never empty.
    """
    kept = [
        c if c.isalnum() or c in "_+" or unicodedata.category(c).startswith("M") else " "
        for c in unicodedata.normalize("NFKC", text)
    ]
    name = "-".join("".join(kept).split()).encode()[:_NAME_BYTES].decode(errors="ignore").strip("-_+")
    return name or "text"


def file_stems(image: Path, texts: Sequence[str]) -> list[str]:
    """One file name stem per text, ``IMAGE_TEXT``: all different, also where case does not count."""
    taken: set[str] = set()
    stems = []
    for text in texts:
        base, number = slug(text), 1
        name = base
        while unicodedata.normalize("NFC", name).casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(unicodedata.normalize("NFC", name).casefold())
        stems.append(f"{slug(image.stem)}_{name}")
    return stems


def check_folder(out: Path) -> None:
    """Finds out before the work begins whether a folder can be written to; creates nothing.

    Raises:
        OutputError: it cannot.
    """
    place = Path(os.path.abspath(out))
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(f"cannot write to the folder {str(out)!r}: {str(place)!r} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to the folder {str(out)!r}: no permission to write in {str(place)!r}")


Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where files are written.")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N or mps; by default the best.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output and nothing else.")]

PresetName = Annotated[str, typer.Option("--preset", metavar="NAME", help="The pair of models: sticker, mobile, base or huge.")]
ClipCheckpoint = Annotated[
    str | None, typer.Option("--clip-checkpoint", metavar="FILE|NAME", help="Other CLIP weights: a file, or a listed name.")
]
ClipModel = Annotated[
    str | None, typer.Option("--clip-model", metavar="NAME", help="open_clip's architecture of --clip-checkpoint.")
]
SamCheckpoint = Annotated[
    str | None, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="Other SAM weights: a file, or a listed name.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="NAME", help="float32; on a GPU also float16 or bfloat16.")]
WhichTemplates = Annotated[Templates, typer.Option("--templates", help="Prompt templates: the papers' 85, or a few for speed.")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", metavar="PIXELS", min=1, help="Side of what CLIP sees; by default the preset's."),
]
Scales = Annotated[
    str | None,
    typer.Option(
        "--scales",
        metavar="SHARE,...",
        help="Shares of --image-size at which CLIP sees the image; the mean counts. Such as 0.75,1; by default the preset's.",
    ),
]
Depth = Annotated[int | None, typer.Option("--depth", min=1, help="How many of CLIP's last blocks get the second path.")]
Against = Annotated[
    list[str] | None,
    typer.Option("--against", metavar="TEXT", help="What else may be in the image; repeat it or give a comma list."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="TEXT", help="What masks leave out and points avoid; repeat it or give a comma list."),
]
Threshold = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="[TEXT=]NUMBER",
        help="From which presence score on a text counts as there: for all texts, or for one; repeat it or give a comma list.",
    ),
]
Synonym = Annotated[
    list[str] | None,
    typer.Option(
        "--synonym",
        metavar="TEXT=WORD",
        help="Another word for a TEXT, which gives it its name: car=automobile, or car=automobile,auto; may be repeated.",
    ),
]
NoZoom = Annotated[bool, typer.Option("--no-zoom", help="Do not look again at small objects in a crop around them.")]
TileSide = Annotated[
    str | None,
    typer.Option("--tiles", metavar="auto|PIXELS", help="For large pictures: CLIP sees overlapping tiles, of this side."),
]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="The presence threshold that calibrate wrote.")
]
How = Annotated[Method, typer.Option("--method", help="How the similarity map is made.")]
Recipe = Annotated[
    str, typer.Option("--strategy", metavar="NAME", help="Recipe for points and mask: objects, or paper, the papers' own.")
]


def targets_of(texts: Sequence[str], synonyms: Sequence[str] | None = None) -> list[Target]:
    """Texts with the values of ``--synonym`` that belong to them.

    Args:
        texts: what to look for.
        synonyms: ``"car=automobile"`` or ``"car=automobile,auto"``; the text itself is always looked for as well.

    Raises:
        PromptError: a text is empty.
        InputError: a synonym is of another form, belongs to no text, or to one that joins several.
    """
    from text2sam.targets import parse_target

    words: dict[str, list[str]] = {}
    for value in synonyms or ():
        name, _, rest = (part.strip() for part in value.partition("="))
        more = split_list([rest])
        if not name or not more:
            raise InputError(f"--synonym must be TEXT=WORD, such as car=automobile, not {value!r}")
        words.setdefault(name, [name]).extend(more)
    queries = [parse_target(text) for text in texts]
    labels = [query.label for query in queries]
    for name in words:
        if name not in labels:
            raise InputError(f"--synonym is given for {name!r}, which is not looked for; the texts are {labels}")
        if len(queries[labels.index(name)].texts) > 1:
            raise InputError(f"--synonym is given for {name!r}, which joins several texts; give it for one text")
    return [{label: list(dict.fromkeys(words[label]))} if label in words else label for label in labels]


def thresholds_of(values: Sequence[str] | None, labels: Sequence[str]) -> float | dict[str, float] | None:
    """The values of ``--threshold``: numbers for all texts, ``TEXT=NUMBER`` for one.

    Args:
        values: as given.
        labels: the texts looked for, as results call them.

    Returns:
        What :meth:`text2sam.TextPromptedSAM.segment` takes as ``threshold``.

    Raises:
        InputError: a value is of another form or out of range, or there are two for the same texts.
    """
    every: float | None = None
    own: dict[str, float] = {}
    for value in split_list(values):
        name, sign, number = (part.strip() for part in value.rpartition("="))
        try:
            limit = float(number)
        except ValueError:
            limit = float("nan")
        if not 0 <= limit <= 1:
            raise InputError(f"--threshold must be a number in [0, 1], or TEXT=NUMBER, not {value!r}")
        if name in own or (not sign and every is not None):
            raise InputError(f"--threshold is given twice for {repr(name) if sign else 'all texts'}; give it once")
        if sign:
            own[name] = limit
        else:
            every = limit
    if every is None or not own:
        return own or every
    return {**dict.fromkeys(labels, every), **own}


def scales_of(value: str | None) -> tuple[float, ...] | None:
    """The value of ``--scales`` as :class:`text2sam.ClipSurgery` takes it; None where it was not given.

    Raises:
        InputError: it is not a comma list of numbers in range.
    """
    if value is None:
        return None
    from text2sam.clip.scales import check_scales

    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"--scales must be a comma list of numbers, such as 0.75,1, not {value!r}") from None
    return check_scales(numbers)


def tiles_of(value: str | None) -> Any:
    """The value of ``--tiles`` as :meth:`text2sam.ClipSurgery.encode_image` takes it.

    Raises:
        InputError: it is neither ``auto`` nor a usable number of pixels.
    """
    from text2sam.clip.tiles import check_tiles

    side: Any = value or False
    if value is not None and value != "auto":
        try:
            side = int(value)
        except ValueError:
            raise InputError(f"--tiles must be auto or the side of a tile in pixels, not {value!r}") from None
    return check_tiles(side)


@dataclass(frozen=True)
class Asked:
    """What ``segment`` and ``explain`` ask of the models, seen to be usable before these are built.

    Attributes:
        targets: what to look for.
        options: further arguments of :meth:`text2sam.TextPromptedSAM.segment_many`.
        calibration: the presence threshold to take, if any.
    """

    targets: list[Target]
    options: dict[str, Any]
    calibration: Calibration | None

    def of(self, model: TextPromptedSAM, pixels: NDArray[np.uint8]) -> list[Segmentation]:
        """One result per target in an image (H, W, 3) uint8 RGB."""
        if self.calibration is not None:
            model.use(self.calibration)
        return model.segment_many(pixels, self.targets, **self.options)


def check_request(
    texts: Sequence[str],
    *,
    against: Sequence[str] | None,
    exclude: Sequence[str] | None,
    threshold: Sequence[str] | None,
    synonyms: Sequence[str] | None,
    strategy: str,
    method: Method,
    no_zoom: bool,
    tiles: str | None,
    calibration: Path | None,
) -> Asked:
    """The options that ``segment`` and ``explain`` share, as values.

    Raises:
        PromptError, InputError: one of them is not usable, or contradicts another.
    """
    from text2sam.presence import Calibration
    from text2sam.recipes import get_strategy
    from text2sam.targets import check_exclude, parse_targets
    from text2sam.targets import thresholds_of as check_thresholds

    targets = targets_of(texts, synonyms)
    queries = parse_targets(targets)
    limits = thresholds_of(threshold, [query.label for query in queries])
    check_thresholds(limits, queries, 0.0)
    avoid = split_list(exclude)
    check_exclude(avoid, queries)
    options = {
        "against": split_list(against) or None,
        "exclude": avoid or None,
        "threshold": limits,
        "strategy": get_strategy(strategy).name,
        "method": method.value,
        "zoom": False if no_zoom else "auto",
        "tiles": tiles_of(tiles),
    }
    return Asked(targets, options, None if calibration is None else Calibration.load(calibration))


def build_model(preset: str, templates: Templates, **options: Any) -> TextPromptedSAM:
    """The models that the shared options name; ``options`` are further ones of ``from_pretrained``."""
    from text2sam.pipeline import TextPromptedSAM

    return TextPromptedSAM.from_pretrained(preset, templates=_template_list(templates), progress=sys.stderr.isatty(), **options)


def build_surgery(preset: str, templates: Templates, **options: Any) -> ClipSurgery:
    """The CLIP of the shared options, where no SAM is asked."""
    from text2sam.zoo.presets import build_clip

    return build_clip(preset, templates=_template_list(templates), progress=sys.stderr.isatty(), **options)


def _template_list(templates: Templates) -> tuple[str, ...] | None:
    from text2sam.clip.prompts import SHORT_TEMPLATES

    return SHORT_TEMPLATES if templates is Templates.short else None

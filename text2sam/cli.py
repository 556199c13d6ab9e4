"""The command ``text2sam``.

Answers go to standard output, everything said to a person to standard error; with ``--json`` standard
output holds one JSON document. Errors that text2sam raises on purpose are one line,
``text2sam: error: ...``, and one of the exit codes below; a traceback means a bug.

Heavy packages are imported by the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from text2sam import __version__
from text2sam.errors import InputError, OutputError, PromptError, Text2SamError, UnsupportedModelError, WeightsError
from text2sam.evaluation.tables import aligned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from text2sam.calibration import Calibration
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.targets import Target
    from text2sam.types import Segmentation
    from text2sam.weights import VerifyResult

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_INPUT = 2
EXIT_WEIGHTS = 3
EXIT_CORRUPT = 4
EXIT_ABSENT = 5
EXIT_INTERRUPTED = 130

EXIT_CODES: dict[int, str] = {
    EXIT_OK: "done, every text was handled",
    EXIT_ERROR: "a file could not be written, or an unexpected error",
    EXIT_INPUT: "wrong usage or unusable input",
    EXIT_WEIGHTS: "weights are missing, cannot be downloaded or do not fit",
    EXIT_CORRUPT: "models verify found a file corrupt or missing",
    EXIT_ABSENT: "a text is not in the image (only with --require-present)",
    EXIT_INTERRUPTED: "interrupted",
}
"""Exit codes and what they mean; scripts may rely on them."""

FORMATS = ("mask", "overlay", "cutout", "map", "npz", "explain", "instances")
"""What ``segment --format`` writes: binary PNG, picture with mask and points, RGBA crop, similarity in colour, arrays, the
figure of :func:`text2sam.plot.explain`, and a numbered binary PNG per object."""

_NAME_BYTES = 80
_STICKER_LICENCE = "CC-BY-SA-4.0"
_CODES_HELP = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {what}" for code, what in EXIT_CODES.items())


class Method(str, Enum):
    """How the similarity map is made, see :meth:`text2sam.ClipSurgery.maps`."""

    surgery = "surgery"
    architecture = "architecture"
    itsm = "itsm"


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


class _Commands(TyperGroup):
    """The top of the commands: turns errors into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        with _quiet():
            try:
                return super().invoke(ctx)
            except Text2SamError as error:
                _print(f"text2sam: error: {one_line(str(error))}", to_stderr=True)
                raise typer.Exit(exit_code(error)) from error
            except KeyboardInterrupt:
                _print("text2sam: interrupted", to_stderr=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="From a text to a segmentation mask: CLIP Surgery finds the points, Segment Anything makes the mask.",
    epilog=_CODES_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models = typer.Typer(
    help="List, download and check model weights.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(models, name="models")


def main() -> None:
    """Entry point of the command ``text2sam``."""
    app(prog_name="text2sam")


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


def one_line(text: str) -> str:
    """``text`` on one line, with what a terminal would act on as escapes."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def _print(text: str, *, to_stderr: bool = False) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=to_stderr)


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False))  # ASCII, so any terminal and pipe takes it


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces, as plain text."""
    cells = [[one_line(cell) for cell in row] for row in (headers, *rows)]
    return "\n".join(aligned(cells))


def _version(value: bool) -> None:
    if value:
        _print(f"text2sam {__version__}")
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
    from text2sam.calibration import Calibration
    from text2sam.clip.tiles import check_tiles
    from text2sam.strategy import get_strategy
    from text2sam.targets import check_exclude, parse_targets
    from text2sam.targets import thresholds_of as check_thresholds

    targets = targets_of(texts, synonyms)
    queries = parse_targets(targets)
    limits = thresholds_of(threshold, [query.label for query in queries])
    check_thresholds(limits, queries, 0.0)
    side: Any = tiles or False
    if tiles is not None and tiles != "auto":
        try:
            side = int(tiles)
        except ValueError:
            raise InputError(f"--tiles must be auto or the side of a tile in pixels, not {tiles!r}") from None
    avoid = split_list(exclude)
    check_exclude(avoid, queries)
    options = {
        "against": split_list(against) or None,
        "exclude": avoid or None,
        "threshold": limits,
        "strategy": get_strategy(strategy).name,
        "method": method.value,
        "zoom": False if no_zoom else "auto",
        "tiles": check_tiles(side),
    }
    return Asked(targets, options, None if calibration is None else Calibration.load(calibration))


def build_model(preset: str, templates: Templates, **options: Any) -> TextPromptedSAM:
    """The models that the shared options name; ``options`` are further ones of ``from_pretrained``."""
    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.pipeline import TextPromptedSAM

    short = SHORT_TEMPLATES if templates is Templates.short else None
    return TextPromptedSAM.from_pretrained(preset, templates=short, progress=sys.stderr.isatty(), **options)


@app.command(epilog=_CODES_HELP)
def demo(
    out: Out = Path("text2sam-demo"),
    device: Device = None,
    scene: Annotated[
        list[str] | None, typer.Option("--scene", metavar="NAME", help="Only this scene; repeat it or give a comma list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find three things, and one that is not there, in scenes that ship with text2sam. Needs no network."""
    from text2sam.demo import run_demo

    check_folder(out)
    rows, record = run_demo(out, device=device, scenes=split_list(scene) or None)
    if as_json:
        _print_json({**record, "out": str(out)})
        return
    _print(
        table(
            ["scene", "text", "answer", "presence", "score", "IoU", "box", "files"],
            [
                [
                    row.scene,
                    row.text,
                    row.answer,
                    *_figures(row.result),
                    "(not there)" if row.iou is None else f"{row.iou:.2f}",
                    _box(row.result),
                    ", ".join(row.files.values()),
                ]
                for row in rows
            ],
        )
    )
    _print(f"{len(record['scenes'])} scenes in {record['seconds']:.1f} s; files in {out}", to_stderr=True)


@app.command(epilog=_CODES_HELP)
def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)],
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="What to look for; 'person+bench' is one target.", show_default=False)
    ],
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("text2sam-out"),
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"What to write per text: {', '.join(FORMATS)}; repeat it or give a comma list (default: mask,overlay).",
            show_default=False,
        ),
    ] = ["mask", "overlay"],  # noqa: B006 (Typer reads it, nobody changes it)
    against: Against = None,
    exclude: Exclude = None,
    synonym: Synonym = None,
    threshold: Threshold = None,
    calibration: CalibrationFile = None,
    method: How = Method.surgery,
    strategy: Recipe = "objects",
    no_zoom: NoZoom = False,
    tiles: TileSide = None,
    templates: WhichTemplates = Templates.full,
    image_size: ImageSize = None,
    depth: Depth = None,
    require_present: Annotated[
        bool, typer.Option("--require-present", help=f"Exit with {EXIT_ABSENT} when a text is not in the image.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment every object that each TEXT names in IMAGE.

    A text that is not in the image gets an empty mask: read the column "present". Only --strategy paper proposes a mask for
    every text.
    """
    wanted = split_list(formats)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise InputError(f"--format must be of {', '.join(FORMATS)}, not {unknown[0] if unknown else ''!r}")
    from text2sam.image import read_image
    from text2sam.presets import get_preset

    get_preset(preset)
    pixels = read_image(image)
    check_folder(out)
    asked = check_request(
        texts,
        against=against,
        exclude=exclude,
        threshold=threshold,
        synonyms=synonym,
        strategy=strategy,
        method=method,
        no_zoom=no_zoom,
        tiles=tiles,
        calibration=calibration,
    )
    model = build_model(
        preset,
        templates,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        depth=depth,
        image_size=image_size,
    )
    results = asked.of(model, pixels)
    stems = file_stems(image, [result.text for result in results])
    files = [write_result(out, stem, pixels, result, wanted) for stem, result in zip(stems, results, strict=True)]
    if as_json:
        from text2sam.demo import result_record

        _print_json(
            {
                "text2sam": __version__,
                "image": {"path": str(image), "width": pixels.shape[1], "height": pixels.shape[0]},
                "preset": preset,
                "clip_checkpoint": clip_checkpoint,
                "sam_checkpoint": sam_checkpoint,
                "against": asked.options["against"] or [],
                "out": str(out),
                "results": [
                    {
                        **result_record(result),
                        "files": {
                            kind: str(path) if isinstance(path, Path) else [str(each) for each in path]
                            for kind, path in written.items()
                        },
                    }
                    for result, written in zip(results, files, strict=True)
                ],
            }
        )
    else:
        _print(
            table(
                ["text", "present", "presence", "score", "objects", "box", "files"],
                [
                    [
                        _shorten(r.text),
                        _yes(r.present),
                        *_figures(r),
                        str(len(r.objects) or "-"),
                        _box(r),
                        _names(written) or "-",
                    ]
                    for r, written in zip(results, files, strict=True)
                ],
            )
        )
        _print(f"files in {out}", to_stderr=True)
    if require_present and not all(r.present for r in results):
        raise typer.Exit(EXIT_ABSENT)


@app.command(epilog=_CODES_HELP)
def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.", show_default=False)],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)],
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("text2sam-out"),
    width: Annotated[int, typer.Option("--width", metavar="PIXELS", min=320, max=8192, help="Of the picture.")] = 1200,
    against: Against = None,
    exclude: Exclude = None,
    synonym: Synonym = None,
    threshold: Threshold = None,
    calibration: CalibrationFile = None,
    method: How = Method.surgery,
    strategy: Recipe = "objects",
    no_zoom: NoZoom = False,
    tiles: TileSide = None,
    templates: WhichTemplates = Templates.full,
    image_size: ImageSize = None,
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Say and draw why TEXT gets the mask it gets in IMAGE, or none."""
    from text2sam.image import read_image
    from text2sam.presets import get_preset

    get_preset(preset)
    pixels = read_image(image)
    check_folder(out)
    asked = check_request(
        [text],
        against=against,
        exclude=exclude,
        threshold=threshold,
        synonyms=synonym,
        strategy=strategy,
        method=method,
        no_zoom=no_zoom,
        tiles=tiles,
        calibration=calibration,
    )
    model = build_model(
        preset,
        templates,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        depth=depth,
        image_size=image_size,
    )
    [result] = asked.of(model, pixels)
    from text2sam.files import write_png
    from text2sam.plot import explain as draw

    picture = write_png(out / f"{file_stems(image, [result.text])[0]}_explain.png", draw(result, pixels, width=width))
    explained = result.explain()
    if as_json:
        _print_json({**explained, "image": str(image), "picture": str(picture)})
        return
    _print(explanation(explained))
    _print(f"picture in {picture}", to_stderr=True)


def explanation(explained: Mapping[str, Any]) -> str:
    """What :meth:`text2sam.Segmentation.explain` tells, as lines for a terminal.

    Args:
        explained: that dictionary.

    Returns:
        What was asked and found, then a table of the objects of a union and one of the masks SAM offered (of a union, those
        for its first object).
    """
    points, heat_map = explained["points"], explained["map"]
    on = [heat for heat, label in zip(points["heat"], points["labels"], strict=True) if label]
    off = [heat for heat, label in zip(points["heat"], points["labels"], strict=True) if not label]
    height, width = explained["shape"]
    gh, gw = heat_map["grid"]
    facts = [
        ("text", explained["text"]),
        ("looked for", ", ".join(explained["looked_for"])),
        ("excluded", ", ".join(explained["excluded"])),
        ("present", _yes(explained["present"])),
        ("presence", f"{explained['presence']:.6g}, threshold {explained['threshold']:.6g}"),
        ("score", f"{explained['score']:.3f}"),
        ("area", f"{explained['area']} pixels, {100 * explained['area'] / (height * width):.1f} % of {width} x {height}"),
        ("box", _corners(explained["box"])),
        ("points", f"{_heats(on)} on it, {_heats(off)} off it"),
        ("map", f"{heat_map['method']}, {gw} x {gh} patches, {heat_map['lowest']:.4g} to {heat_map['highest']:.4g}"),
        ("peak", ",".join(f"{v:.0f}" for v in heat_map["peak"])),
        ("looked closer", "" if explained["zoomed"] is None else _corners(explained["zoomed"])),
        ("strategy", explained["strategy"]),
        ("why", explained["reason"] or "SAM was not asked"),
    ]
    kept = [(name, value) for name, value in facts if value]
    parts = [table(kept[0], kept[1:])]
    objects, masks = explained["objects"], explained["candidates"]
    if objects:
        rows = [
            [f"{number}", f"{o['score']:.3f}", _corners(o["box"]), str(o["area"]), _corners(o["zoomed"])]
            for number, o in enumerate(objects, 1)
        ]
        parts.append(table(["object", "score", "box", "area", "looked closer"], rows))
    if masks:
        names = list(masks[0]["figures"])
        rows = [
            [
                f"{number}",
                "yes" if m["chosen"] else "",
                _number(m["score"]),
                *(_number(m["figures"][n]) for n in names),
                str(m["area"]),
            ]
            for number, m in enumerate(masks, 1)
        ]
        parts.append(table(["mask", "taken", "score", *names, "area"], rows))
    return "\n\n".join(parts)


def _heats(values: Sequence[float]) -> str:
    """How many points, and the map's values under them."""
    if not values:
        return "0"
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{len(values)} (heat {low if low == high else f'{low} to {high}'})"


def _corners(box: Sequence[float | None] | None) -> str:
    return "-" if box is None else ",".join("?" if v is None else f"{v:.0f}" for v in box)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@dataclass(frozen=True)
class Example:
    """One row of the CSV that ``calibrate`` reads.

    Attributes:
        line: of the file, from 1.
        image: where the picture lies.
        text: what is or is not in it.
        present: which of both.
    """

    line: int
    image: Path
    text: str
    present: bool


_PRESENT = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_COLUMNS = ("image", "text", "present")


def read_examples(path: Path) -> list[Example]:
    """The rows of a CSV file with the columns image, text and present; other columns are left alone.

    Args:
        path: UTF-8, with commas. A relative image path starts at the file's folder; ``present`` is 1 or 0, true or false,
            yes or no. Empty lines are skipped.

    Returns:
        The examples, those of one image together; the images are not opened.

    Raises:
        InputError: the file or a row of it is not usable, which is named by its line, or the examples are all of one kind.
    """
    import csv

    from text2sam.targets import parse_target

    examples: dict[Path, list[Example]] = {}
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            head = [name.strip().casefold() for name in next(reader, [])]
            missing = [name for name in _COLUMNS if name not in head]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}: its first line must hold the names {','.join(_COLUMNS)}"
                )
            line = reader.line_num
            for cells in reader:
                first, line = line + 1, reader.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                with _at_line(path, first):
                    if len(cells) != len(head):
                        raise InputError(f"{len(cells)} values for {len(head)} columns; put text with a comma in quotes")
                    image, text, present = (cells[head.index(name)].strip() for name in _COLUMNS)
                    if not image:
                        raise InputError("the image is empty")
                    parse_target(text)
                    if present.casefold() not in _PRESENT:
                        raise InputError(f"present must be 1 or 0, true or false, yes or no, not {present!r}")
                    place = path.parent / image
                    examples.setdefault(place, []).append(Example(first, place, text, _PRESENT[present.casefold()]))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise InputError(f"{path} line {line + 1}: {error}") from error
    except ValueError as error:  # what is read ahead tells no line; or a NUL in the path
        raise InputError(f"{path} is not a text file in UTF-8 ({error})") from error
    found = [example for of_image in examples.values() for example in of_image]
    if {example.present for example in found} != {True, False}:
        raise InputError(f"{path} must have at least one row whose text is present and one whose text is not")
    return found


@contextmanager
def _at_line(path: Path, line: int) -> Iterator[None]:
    """Tells in which line of a file an input is not usable."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path} line {line}: {error}") from error


@app.command(epilog=_CODES_HELP)
def calibrate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CSV",
            help="Examples: columns image (relative to this file), text and present (1 or 0).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the calibration is written, as JSON.", show_default=False)
    ],
    preset: PresetName = "mobile",
    clip_checkpoint: ClipCheckpoint = None,
    clip_model: ClipModel = None,
    sam_checkpoint: SamCheckpoint = None,
    device: Device = None,
    dtype: Dtype = None,
    against: Against = None,
    false_cost: Annotated[
        float,
        typer.Option("--false-cost", metavar="NUMBER", help="What an absent text called present costs, against a missed one."),
    ] = 1.0,
    templates: WhichTemplates = Templates.full,
    image_size: ImageSize = None,
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Fit the presence threshold to examples of your own, for --calibration of segment and explain.

    It belongs to the CLIP and the settings it was made with, also to --against.
    """
    from text2sam.image import read_image
    from text2sam.presets import get_preset
    from text2sam.targets import parse_target

    get_preset(preset)
    if not 0 < false_cost < float("inf"):
        raise InputError(f"--false-cost must be a number above 0, not {false_cost!r}")
    examples = read_examples(source)
    seen = None
    for example in examples:
        if example.image != seen:
            with _at_line(source, example.line):
                read_image(example.image)
            seen = example.image
    if out.is_dir():
        raise OutputError(f"cannot write the file {str(out)!r}: it is a folder")
    check_folder(out.parent)
    model = build_model(
        preset,
        templates,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        depth=depth,
        image_size=image_size,
    )
    paths = {example.image: example.image for example in examples}  # one object per image: it is encoded once
    try:
        calibration = model.calibrate(
            [paths[example.image] for example in examples],
            [example.text for example in examples],
            [example.present for example in examples],
            against=split_list(against) or None,
            false_cost=false_cost,
        )
    except PromptError:
        for example in examples:  # a text too long shows only now
            with _at_line(source, example.line):
                model.surgery.encode_texts(parse_target(example.text).texts)
        raise
    calibration.save(out)
    if as_json:
        _print_json({**asdict(calibration), "file": str(out)})
        return
    rows = [
        ["examples present", f"{calibration.n_present}"],
        ["examples absent", f"{calibration.n_absent}"],
        ["missed", f"{100 * calibration.missed_rate:.1f} % of the present"],
        ["falsely found", f"{100 * calibration.false_rate:.1f} % of the absent"],
        ["AUROC", f"{calibration.auroc:.3f}"],
    ]
    _print(table(["threshold", f"{calibration.threshold:.6g}"], rows))
    _print(f"calibration in {out}", to_stderr=True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _figures(result: Segmentation) -> list[str]:
    return [f"{result.presence:.2f}", "-" if result.box is None else f"{result.score:.2f}"]


def _names(written: Mapping[str, Path | list[Path]]) -> str:
    return ", ".join(path.name for paths in written.values() for path in (paths if isinstance(paths, list) else [paths]))


def _box(result: Segmentation) -> str:
    return _corners(None if result.box is None else result.box.tolist())


def _shorten(text: str, longest: int = 40) -> str:
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def write_result(
    out: Path, stem: str, image: NDArray[np.uint8], result: Segmentation, formats: Sequence[str]
) -> dict[str, Path | list[Path]]:
    """Writes one result in the formats asked for.

    Args:
        out: the folder.
        stem: start of the file names, see :func:`file_stems`.
        image: (H, W, 3) uint8 RGB.
        result: its segmentation.
        formats: of :data:`FORMATS`.

    Returns:
        format -> file; for instances a list of files, best object first. An empty mask has no cut-out and no instances.

    Raises:
        OutputError: a file cannot be written.
    """
    import numpy as np

    from text2sam.files import write_bytes, write_png
    from text2sam.plot import explain as draw
    from text2sam.plot import heat, overlay

    written: dict[str, Path | list[Path]] = {}
    for name in formats:
        path = out / (f"{stem}.npz" if name == "npz" else f"{stem}_{name}.png")
        if name == "mask":
            write_png(path, result.mask)
        elif name == "overlay":
            write_png(path, overlay(image, result))
        elif name == "map":
            write_png(path, heat(image, result.similarity))
        elif name == "npz":
            write_bytes(path, _npz(result))
        elif name == "explain":
            write_png(path, draw(result, image))
        elif name == "instances":
            written[name] = [
                write_png(out / f"{stem}_instance-{number}.png", each.mask) for number, each in enumerate(result.instances, 1)
            ]
            continue
        else:
            if result.box is None:
                continue
            x0, y0, x1, y1 = (int(v) for v in result.box)
            alpha = result.mask.astype(np.uint8) * np.uint8(255)
            write_png(path, np.dstack([image, alpha])[y0:y1, x0:x1])
        written[name] = path
    return written


def _npz(result: Segmentation) -> bytes:
    """The arrays of a result as an NPZ file; ``candidates`` and their scores only where SAM was asked."""
    import io

    import numpy as np

    arrays: dict[str, Any] = {
        "mask": result.mask,
        "score": np.float32(result.score),
        "presence": np.float32(result.presence),
        "present": np.bool_(result.present),
        "text": np.array(result.text),
        "point_coords": result.points.coords,
        "point_labels": result.points.labels,
        "similarity": result.similarity.values,
    }
    if result.box is not None:
        arrays["box"] = result.box
    if result.candidates is not None:
        arrays["candidates"] = result.candidates.masks
        arrays["candidate_scores"] = result.candidates.scores
        arrays["chosen"] = np.int64(result.candidates.chosen)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@app.command(epilog=_CODES_HELP)
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="What to measure: all, text, surgery, images or recipe.")
    ] = "all",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option("--sam-checkpoint", metavar="FILE", help="Measure this SAM too, such as mobile_sam.pt.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure text2sam against a plain implementation of the reference's way, and its default recipe against the papers'."""
    from text2sam.evaluation.bench import Settings, main_command

    main_command(suite, out, as_json, Settings(device=device, sam_checkpoint=sam_checkpoint))


@dataclass(frozen=True)
class ModelFile:
    """One row of ``text2sam models list``.

    Attributes:
        name: what commands call it.
        kind: ``"clip"`` or ``"sam"``.
        size: bytes; None where it is not known.
        licence: SPDX identifier.
        path: where it lies or would lie.
        cached: whether it is there, by its size; ``models verify`` looks inside.
        shipped: whether it is part of the package.
        description: one line.
    """

    name: str
    kind: str
    size: int | None
    licence: str
    path: Path
    cached: bool
    shipped: bool
    description: str


def model_files() -> dict[str, ModelFile]:
    """Every file a preset can need, by name: the shipped pair, then the table of checkpoints."""
    from text2sam.sticker import models as sticker
    from text2sam.weights import CHECKPOINTS, cache_path, local_path

    files = []
    for kind in ("clip", "sam"):
        path = sticker.WEIGHTS / f"{kind}.safetensors"
        there = path.is_file()
        size = path.stat().st_size if there else None
        name = f"sticker-{kind}"
        files.append(ModelFile(name, kind, size, _STICKER_LICENCE, path, there, True, "ships with the package"))
    for item in CHECKPOINTS.values():
        path, there = cache_path(item.name), local_path(item.name) is not None
        size = path.stat().st_size if there and item.size is None else item.size
        files.append(ModelFile(item.name, item.kind, size, item.licence, path, there, False, item.description))
    return {file.name: file for file in files}


def preset_files(name: str) -> list[str]:
    """The names of a preset's two files.

    Raises:
        InputError: there is no preset of that name.
    """
    from text2sam.presets import get_preset

    preset = get_preset(name)
    return [preset.clip_checkpoint or "sticker-clip", preset.sam_checkpoint or "sticker-sam"]


def named_files(names: Sequence[str]) -> list[ModelFile]:
    """The files that names of checkpoints and presets stand for, each once.

    Raises:
        InputError: a name is neither.
    """
    import difflib

    from text2sam.presets import PRESETS

    known = model_files()
    chosen: dict[str, ModelFile] = {}
    for name in names:
        if name not in known and name not in PRESETS:
            close = difflib.get_close_matches(name, [*PRESETS, *known], n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            listed = f"presets: {', '.join(PRESETS)}; files: {', '.join(known)}"
            raise InputError(f"no model or preset is called {name!r}; {hint}{listed}")
        for each in [name] if name in known else preset_files(name):
            chosen[each] = known[each]
    return list(chosen.values())


Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Names of files or presets.", show_default=False)]


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """List the presets and the files they are made of."""
    from text2sam.presets import PRESETS
    from text2sam.weights import cache_folder

    files = model_files()
    presets = {name: preset_files(name) for name in PRESETS}
    if as_json:
        _print_json(
            {
                "cache": str(cache_folder()),
                "files": [
                    {
                        "name": f.name,
                        "kind": f.kind,
                        "size": f.size,
                        "licence": f.licence,
                        "cached": f.cached,
                        "shipped": f.shipped,
                        "path": str(f.path),
                        "description": f.description,
                    }
                    for f in files.values()
                ],
                "presets": [
                    {"name": name, "files": parts, "description": PRESETS[name].description} for name, parts in presets.items()
                ],
            }
        )
        return
    rows = [[f.name, f.kind, _size(f.size), f.licence, _state(f), f.description] for f in files.values()]
    _print(table(["name", "kind", "size", "licence", "cached", "what it is"], rows))
    _print("")
    _print(
        table(
            ["preset", "clip", "sam", "ready", "what it is"],
            [
                [name, *parts, "yes" if all(files[p].cached for p in parts) else "no", PRESETS[name].description]
                for name, parts in presets.items()
            ],
        )
    )
    _print(f"cache folder: {cache_folder()}", to_stderr=True)


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f} MB"


def _state(file: ModelFile) -> str:
    if file.shipped:
        return "ships" if file.cached else "lost"
    if file.cached:
        return "yes"
    return "damaged" if file.path.is_file() else "no"


@models.command("pull")
def pull_models(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Download even what is in the cache.")] = False,
) -> None:
    """Download weights into the cache; prints where each file lies. A preset's name stands for both its files."""
    from text2sam.weights import pull

    for file in named_files(names):
        if file.shipped:
            _print(f"{file.name} ships with the package", to_stderr=True)
            _print(str(_existing(file)))
        else:
            _print(str(pull(file.name, progress=sys.stderr.isatty(), force=force)))


@models.command("verify", epilog=_CODES_HELP)
def verify_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="By default all that is there.", show_default=False)
    ] = None,
) -> None:
    """Compare the SHA-256 of weights with the table's."""
    chosen = named_files(names) if names else [f for f in model_files().values() if f.shipped or f.path.is_file()]
    results = [_verify(file) for file in chosen]
    _print(table(["name", "status", "finding"], [[r.name, r.status, r.detail] for r in results]))
    if not all(r.ok for r in results):
        raise typer.Exit(EXIT_CORRUPT)


def _verify(file: ModelFile) -> VerifyResult:
    from text2sam.weights import VerifyResult, file_sha256, verify

    if not file.shipped:
        return verify(file.name)
    from text2sam.sticker import models as sticker

    try:
        expected = sticker.recorded_sha256(file.path.name)
    except WeightsError:
        expected = ""
    if not file.cached or not expected:
        lost = file.path if expected else sticker.RECORD
        return VerifyResult(file.name, file.path, "missing", expected, None, f"{lost} is lost; reinstall text2sam")
    actual = file_sha256(file.path)
    if actual != expected:
        detail = f"SHA-256 {actual} instead of {expected}; reinstall text2sam"
        return VerifyResult(file.name, file.path, "corrupt", expected, actual, detail)
    return VerifyResult(file.name, file.path, "ok", expected, actual, "SHA-256 as in the record")


@models.command("path")
def path_of_model(name: Annotated[str, typer.Argument(metavar="NAME", help="A file or a preset.", show_default=False)]) -> None:
    """Print where a file lies (a preset's two files on a line each), and nothing else."""
    for path in [_existing(file) for file in named_files([name])]:
        _print(str(path))


def _existing(file: ModelFile) -> Path:
    if not file.cached:
        help_ = "reinstall text2sam" if file.shipped else f"get it with: text2sam models pull {file.name}"
        raise WeightsError(f"{file.name} is not whole at {file.path}; {help_}")
    return file.path


evaluate = typer.Typer(
    help="Measure how well text2sam does.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(evaluate, name="evaluate")


class Split(str, Enum):
    """Which scenes are drawn, see :data:`text2sam.evaluation.sticker.SPLITS`."""

    report = "report"
    tune = "tune"


@evaluate.command("sticker", epilog=_CODES_HELP)
def evaluate_sticker(
    scenes: Annotated[int, typer.Option("--scenes", metavar="N", min=1, help="How many scenes are drawn.")] = 300,
    split: Annotated[
        Split, typer.Option("--split", help="Scenes for reporting, or others for choosing thresholds.")
    ] = Split.report,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="A recipe; repeat it or give a comma list (default: paper,objects). Differences are against the first.",
        ),
    ] = None,
    sam_checkpoint: Annotated[
        str | None, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="Other SAM weights: a file, or a listed name.")
    ] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="FOLDER", help="Draw the largest gains and the worst failures into this folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare recipes on drawn scenes whose masks are known: 1 to 6 things, repeated names, absent names."""
    from text2sam.evaluation.sticker import Settings, main_command

    if pictures is not None:
        check_folder(pictures)
    options: dict[str, Any] = {"strategies": tuple(split_list(strategies))} if strategies else {}
    settings = Settings(scenes=scenes, split=split.value, sam_checkpoint=sam_checkpoint, device=device, **options)
    main_command(settings, out, as_json, pictures)


@evaluate.command("photos", epilog=_CODES_HELP)
def evaluate_photos(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder with images/ and labels/, as CamVid's.", show_default=False),
    ],
    photos: Annotated[int, typer.Option("--photos", metavar="N", min=1, help="At most so many photos of the split.")] = 24,
    split: Annotated[
        Split, typer.Option("--split", help="Photos for reporting, or the others, for choosing a rule.")
    ] = Split.report,
    sam_checkpoint: Annotated[
        str, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="SAM weights: a file, or a listed name.")
    ] = "mobile-sam",
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    as_json: Json = False,
) -> None:
    """Compare ways to choose among SAM's three masks, on photos, with maps made from the true masks."""
    from text2sam.evaluation.photos import Settings
    from text2sam.evaluation.photos import evaluate_photos as evaluate_on

    settings = Settings(split=split.value, photos=photos)
    evaluate_on(folder, sam_checkpoint=sam_checkpoint, settings=settings, out=out, json_output=as_json, device=device)

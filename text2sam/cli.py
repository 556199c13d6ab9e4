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

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

FORMATS = ("mask", "overlay", "cutout", "map", "npz")
"""What ``segment --format`` writes: binary PNG, picture with mask and points, RGBA crop, similarity in colour, arrays."""

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
    widths = [max(len(row[k]) for row in cells) for k in range(len(headers))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


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
            ["scene", "text", "present", "presence", "score", "IoU", "box", "files"],
            [
                [
                    row.scene,
                    row.text,
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
    preset: Annotated[
        str, typer.Option("--preset", metavar="NAME", help="The pair of models: sticker, mobile, base or huge.")
    ] = "mobile",
    clip_checkpoint: Annotated[
        str | None, typer.Option("--clip-checkpoint", metavar="FILE|NAME", help="Other CLIP weights: a file, or a listed name.")
    ] = None,
    clip_model: Annotated[
        str | None, typer.Option("--clip-model", metavar="NAME", help="open_clip's architecture of --clip-checkpoint.")
    ] = None,
    sam_checkpoint: Annotated[
        str | None, typer.Option("--sam-checkpoint", metavar="FILE|NAME", help="Other SAM weights: a file, or a listed name.")
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="float32; on a GPU also float16 or bfloat16.")
    ] = None,
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
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="TEXT", help="What else may be in the image; repeat it or give a comma list."),
    ] = None,
    method: Annotated[Method, typer.Option("--method", help="How the similarity map is made.")] = Method.surgery,
    strategy: Annotated[str, typer.Option("--strategy", metavar="NAME", help="Recipe for points and mask.")] = "paper",
    templates: Annotated[
        Templates, typer.Option("--templates", help="Prompt templates: the papers' 85, or a few for speed.")
    ] = Templates.full,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="PIXELS", min=1, help="Side of what CLIP sees; by default the preset's."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, help="How many of CLIP's last blocks get the second path.")
    ] = None,
    require_present: Annotated[
        bool, typer.Option("--require-present", help=f"Exit with {EXIT_ABSENT} when a text is not in the image.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment what each TEXT names in IMAGE.

    A mask is proposed for every text, also for one that is not in the image: read the column "present".
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

    from text2sam.clip.prompts import SHORT_TEMPLATES
    from text2sam.demo import result_record
    from text2sam.pipeline import TextPromptedSAM
    from text2sam.strategy import get_strategy
    from text2sam.targets import parse_targets

    parse_targets(texts)
    get_strategy(strategy)
    model = TextPromptedSAM.from_pretrained(
        preset,
        device=device,
        dtype=dtype,
        clip_checkpoint=clip_checkpoint,
        clip_model=clip_model,
        sam_checkpoint=sam_checkpoint,
        templates=SHORT_TEMPLATES if templates is Templates.short else None,
        depth=depth,
        image_size=image_size,
        progress=sys.stderr.isatty(),
    )
    others = split_list(against)
    results = model.segment_many(pixels, texts, against=others or None, strategy=strategy, method=method.value)
    files = [
        write_result(out, stem, pixels, result, wanted) for stem, result in zip(file_stems(image, texts), results, strict=True)
    ]
    if as_json:
        _print_json(
            {
                "text2sam": __version__,
                "image": {"path": str(image), "width": pixels.shape[1], "height": pixels.shape[0]},
                "preset": preset,
                "clip_checkpoint": clip_checkpoint,
                "sam_checkpoint": sam_checkpoint,
                "against": others,
                "out": str(out),
                "results": [
                    {**result_record(result), "files": {kind: str(path) for kind, path in written.items()}}
                    for result, written in zip(results, files, strict=True)
                ],
            }
        )
    else:
        _print(
            table(
                ["text", "present", "presence", "score", "box", "files"],
                [
                    [_shorten(r.text), *_figures(r), _box(r), ", ".join(path.name for path in written.values()) or "-"]
                    for r, written in zip(results, files, strict=True)
                ],
            )
        )
        _print(f"files in {out}", to_stderr=True)
    if require_present and not all(r.present for r in results):
        raise typer.Exit(EXIT_ABSENT)


def _figures(result: Segmentation) -> list[str]:
    return ["yes" if result.present else "no", f"{result.presence:.2f}", f"{result.score:.2f}"]


def _box(result: Segmentation) -> str:
    return "-" if result.box is None else ",".join(f"{v:.0f}" for v in result.box)


def _shorten(text: str, longest: int = 40) -> str:
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def write_result(
    out: Path, stem: str, image: NDArray[np.uint8], result: Segmentation, formats: Sequence[str]
) -> dict[str, Path]:
    """Writes one result in the formats asked for.

    Args:
        out: the folder.
        stem: start of the file names, see :func:`file_stems`.
        image: (H, W, 3) uint8 RGB.
        result: its segmentation.
        formats: of :data:`FORMATS`.

    Returns:
        format -> file. An empty mask has no cut-out.

    Raises:
        OutputError: a file cannot be written.
    """
    import numpy as np

    from text2sam.files import write_bytes, write_png
    from text2sam.plot import heat, overlay

    written: dict[str, Path] = {}
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
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="What to measure: all, text, surgery or images.")] = "all",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the figures to this JSON file.")] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option("--sam-checkpoint", metavar="FILE", help="Measure this SAM too, such as mobile_sam.pt.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure text2sam against a plain implementation of the reference's way, in the same process."""
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

"""``text2sam demo | segment | explain | calibrate``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam import __version__
from text2sam.cli.common import (
    CODES_HELP,
    EXIT_ABSENT,
    Against,
    CalibrationFile,
    ClipCheckpoint,
    ClipModel,
    Depth,
    Device,
    Dtype,
    Exclude,
    How,
    ImageSize,
    Json,
    Method,
    NoZoom,
    Out,
    PresetName,
    Recipe,
    SamCheckpoint,
    Scales,
    Synonym,
    Templates,
    Threshold,
    TileSide,
    WhichTemplates,
    app,
    build_model,
    build_surgery,
    check_folder,
    check_request,
    echo,
    file_stems,
    print_json,
    scales_of,
    split_list,
    table,
)
from text2sam.errors import InputError, OutputError, PromptError
from text2sam.tables import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from text2sam.types import Segmentation


FORMATS = ("mask", "overlay", "cutout", "map", "npz", "explain", "instances")
"""What ``segment --format`` writes: binary PNG, picture with mask and points, RGBA crop, similarity in colour, arrays, the
figure of :func:`text2sam.plot.explain`, and a numbered binary PNG per object."""


@app.command(epilog=CODES_HELP)
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
        print_json({**record, "out": str(out)})
        return
    echo(
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
    echo(f"{len(record['scenes'])} scenes in {record['seconds']:.1f} s; files in {out}", to_stderr=True)


@app.command(epilog=CODES_HELP)
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
    scales: Scales = None,
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
    from text2sam.zoo.presets import get_preset

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
        scales=scales_of(scales),
    )
    results = asked.of(model, pixels)
    stems = file_stems(image, [result.text for result in results])
    files = [write_result(out, stem, pixels, result, wanted) for stem, result in zip(stems, results, strict=True)]
    if as_json:
        from text2sam.demo import result_record

        print_json(
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
        echo(
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
        echo(f"files in {out}", to_stderr=True)
    if require_present and not all(r.present for r in results):
        raise typer.Exit(EXIT_ABSENT)


@app.command(epilog=CODES_HELP)
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
    scales: Scales = None,
    depth: Depth = None,
    words: Annotated[
        bool, typer.Option("--words", help="Instead: which words of TEXT the image bears out, and where. SAM is not asked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say and draw why TEXT gets the mask it gets in IMAGE, or none; or, with --words, which of its words fit where."""
    from text2sam.image import read_image
    from text2sam.zoo.presets import get_preset

    get_preset(preset)
    pixels = read_image(image)
    check_folder(out)
    if words:
        given = [against, exclude, synonym, threshold, calibration, tiles, sam_checkpoint]
        if any(given) or no_zoom:
            raise InputError(
                "--words takes the text as it is and asks no SAM: leave --against, --exclude, --synonym, --threshold, "
                "--calibration, --no-zoom, --tiles and --sam-checkpoint out"
            )
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
    from text2sam.files import write_png

    models = {
        "device": device,
        "dtype": dtype,
        "clip_checkpoint": clip_checkpoint,
        "clip_model": clip_model,
        "depth": depth,
        "image_size": image_size,
        "scales": scales_of(scales),
    }
    if words:
        from text2sam.plot import explain_text as draw_words
        from text2sam.tasks import explain_text

        told = explain_text(build_surgery(preset, templates, **models), pixels, text, method=method.value)
        picture = write_png(out / f"{file_stems(image, [text])[0]}_words.png", draw_words(told, pixels, width=width))
        if as_json:
            print_json({**told.to_json(), "image": str(image), "picture": str(picture)})
            return
        echo(table(["word", "carries"], [[word, f"{value:+.4f}"] for word, value in told.ranked()]))
        echo(f"picture in {picture}", to_stderr=True)
        return
    model = build_model(preset, templates, sam_checkpoint=sam_checkpoint, **models)
    [result] = asked.of(model, pixels)
    from text2sam.plot import explain as draw

    picture = write_png(out / f"{file_stems(image, [result.text])[0]}_explain.png", draw(result, pixels, width=width))
    explained = result.explain()
    if as_json:
        print_json({**explained, "image": str(image), "picture": str(picture)})
        return
    echo(explanation(explained))
    echo(f"picture in {picture}", to_stderr=True)


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


@app.command(epilog=CODES_HELP)
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
    scales: Scales = None,
    depth: Depth = None,
    as_json: Json = False,
) -> None:
    """Fit the presence threshold to examples of your own, for --calibration of segment and explain.

    It belongs to the CLIP and the settings it was made with, also to --against.
    """
    from text2sam.image import read_image
    from text2sam.targets import parse_target
    from text2sam.zoo.presets import get_preset

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
        scales=scales_of(scales),
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
                model.generator.encode_texts(parse_target(example.text).texts)
        raise
    calibration.save(out)
    if as_json:
        print_json({**asdict(calibration), "file": str(out)})
        return
    rows = [
        ["examples present", f"{calibration.n_present}"],
        ["examples absent", f"{calibration.n_absent}"],
        ["missed", f"{100 * calibration.missed_rate:.1f} % of the present"],
        ["falsely found", f"{100 * calibration.false_rate:.1f} % of the absent"],
        ["AUROC", f"{calibration.auroc:.3f}"],
    ]
    echo(table(["threshold", f"{calibration.threshold:.6g}"], rows))
    echo(f"calibration in {out}", to_stderr=True)


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

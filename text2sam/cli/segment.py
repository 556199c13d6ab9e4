"""``text2sam segment``."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2sam import __version__
from text2sam.cli.common import (
    CODES_HELP,
    EXIT_ABSENT,
    ImageFile,
    Json,
    app,
    file_stems,
    split_list,
)
from text2sam.cli.options import ImageOptions, ModelOptions, SegmentOptions, option, with_options
from text2sam.cli.output import corners, echo, figures, hints, print_json
from text2sam.errors import InputError, one_line
from text2sam.files import check_folder
from text2sam.tables import aligned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from text2sam.types import Segmentation

FORMATS = ("mask", "overlay", "cutout", "map", "npz", "explain", "instances")
"""What ``--format`` names: a PNG with the mask, with the objects and points over the image, with the object alone (RGBA), with
the similarity map; the arrays; the figure of :func:`text2sam.plot.explain`; and a numbered mask for each object."""

_FIGURES = ("map", "explain")


@app.command(epilog=CODES_HELP)
@with_options
def segment(
    image: ImageFile,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="What to look for; 'person+bench' is either of two things.")
    ],
    models: ModelOptions,
    how: SegmentOptions,
    reading: ImageOptions,
    formats: Annotated[
        list[str] | None,
        option(
            "--format",
            "NAME",
            f"Files for each text: {', '.join(FORMATS)}; repeat it or give a comma list (default: mask,overlay).",
        ),
    ] = None,
    out: Annotated[
        Path, option("--out", "FOLDER", "Folder for the files IMAGE_TEXT_FORMAT.png; those of the same name are replaced.")
    ] = Path("text2sam-out"),
    require_present: Annotated[
        bool, typer.Option("--require-present", help=f"Exit with code {EXIT_ABSENT} when a text is not in the image.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment all objects that each TEXT names in IMAGE.

    A text that is not in the image has an empty mask. Only --strategy paper proposes a mask for every text: read the column
    "present".
    """
    wanted = ["mask", "overlay"] if formats is None else split_list(formats)
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        raise InputError(f"--format must be of {', '.join(FORMATS)}, not {unknown[0] if unknown else ''!r}")
    if set(wanted) & set(_FIGURES):
        from text2sam import plot

        plot.check_installed()
    others = [text for text in texts if "." in text and os.path.isfile(text)]
    if others:
        raise InputError(
            f"{others[0]!r} is a file, not a text; segment takes one image, text2sam annotate a folder of them, which --glob "
            "and --list choose from"
        )
    models.check()
    pixels = reading.read(image)
    check_folder(out)
    build = how.builder(models)
    targets, options = how.request(texts)
    results = build().segment_many(pixels, targets, **options)
    stems = file_stems(image, [result.text for result in results])
    there = (path for stem in stems for path in out.glob(f"{glob.escape(stem)}[_.]*"))
    before = {path: path.read_bytes() for path in there if path.is_file() and os.access(path, os.R_OK)}
    files = [write_result(out, stem, pixels, result, wanted) for stem, result in zip(stems, results, strict=True)]
    replaced = [path.name for path, content in before.items() if path.read_bytes() != content]
    if replaced:
        more = f" and {len(replaced) - 1} more" if replaced[1:] else ""
        hints.add(f"replaced {min(replaced)!r}{more} in {str(out)!r}, which held the result of another image or other options")
    if as_json:
        print_json(
            {
                "text2sam": __version__,
                "image": {"path": str(image), "width": pixels.shape[1], "height": pixels.shape[0]},
                "preset": models.preset,
                "clip_checkpoint": models.clip_checkpoint,
                "sam_checkpoint": models.sam_checkpoint,
                "against": options["against"] or [],
                "out": str(out),
                "results": [
                    {
                        **result.to_json(),
                        "files": {
                            name: [*map(str, paths)] if name == "instances" else str(paths[0])
                            for name, paths in written.items()
                        },
                    }
                    for result, written in zip(results, files, strict=True)
                ],
            }
        )
    else:
        rows = [
            [
                _short(result.text),
                "yes" if result.present else "no",
                *figures(result),
                str(len(result.objects) or "-"),
                corners(result.box),
                ", ".join(path.name for paths in written.values() for path in paths) or "-",
            ]
            for result, written in zip(results, files, strict=True)
        ]
        echo(aligned(["text", "present", "presence", "score", "objects", "box", "files"], rows))
        echo(f"files in {out}", to_stderr=True)
    if require_present and not all(result.present for result in results):
        raise typer.Exit(EXIT_ABSENT)


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 40 else f"{line[:37]}..."


def write_result(
    out: Path, stem: str, image: NDArray[np.uint8], result: Segmentation, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Writes the files of a result, whose names begin with ``stem``, into a folder.

    Returns:
        The files of each format: one, or for ``"instances"`` one for each object, the best first. An empty mask has no cutout.
    """
    import numpy as np

    from text2sam import plot
    from text2sam.files import write_bytes, write_png

    written: dict[str, list[Path]] = {}
    for name in formats:
        path = out / (f"{stem}.npz" if name == "npz" else f"{stem}_{name}.png")
        if name == "mask":
            result.save(path)
        elif name == "overlay":
            result.save(path, image)
        elif name == "map":
            figure: Any = plot.heat(image, result.similarity).figure
            write_png(path, plot.to_png(figure, image.shape[1]))
        elif name == "explain":
            write_png(path, plot.to_png(plot.explain(image, result)))
        elif name == "npz":
            write_bytes(path, _npz(result))
        elif name == "instances":
            numbered = enumerate(result.instances, 1)
            written[name] = [part.save(out / f"{stem}_instance-{number}.png") for number, part in numbered]
            continue
        elif result.box is None:
            continue
        else:  # cutout
            x0, y0, x1, y1 = (int(v) for v in result.box)
            alpha = result.mask.astype(np.uint8) * np.uint8(255)
            write_png(path, np.dstack([image, alpha])[y0:y1, x0:x1])
        written[name] = [path]
    return written


def _npz(result: Segmentation) -> bytes:
    """The arrays of a result as an NPZ file. ``candidates`` and their scores are in it where SAM was asked."""
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

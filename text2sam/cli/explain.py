"""``text2sam explain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from text2sam.cli.common import CODES_HELP, ImageFile, Json, Out, app, file_stems
from text2sam.cli.options import ImageOptions, ModelOptions, SegmentOptions, option, with_options
from text2sam.cli.output import corners, echo, print_json
from text2sam.errors import InputError
from text2sam.files import check_folder
from text2sam.tables import aligned


@app.command(epilog=CODES_HELP)
@with_options
def explain(
    image: ImageFile,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
    models: ModelOptions,
    how: SegmentOptions,
    reading: ImageOptions,
    words: Annotated[
        bool,
        typer.Option("--words", help="Show instead how much each word of TEXT adds to the match, and where. SAM is not used."),
    ] = False,
    width: Annotated[int, option("--width", "PIXELS", "Width of the figure.", min=320, max=8192)] = 1200,
    out: Out = Path("text2sam-out"),
    as_json: Json = False,
) -> None:
    """Show why TEXT has its mask in IMAGE, or none: figures, and a drawing of map, points and SAM's masks."""
    from text2sam import plot

    plot.check_installed()
    models.check()
    if words:
        given = []
        for name, default in ((field.name, field.default) for field in fields(how) if field.name != "method"):
            if (value := getattr(how, name)) not in (default, []):
                given.append(f"--{'no-' * (value is False)}{name.replace('_', '-')}")
        given += ["--sam-checkpoint"] * bool(models.sam_checkpoint)
        if given:
            raise InputError(f"--words takes the text as it is and uses no SAM; leave out {', '.join(given)}")
    pixels = reading.read(image)
    check_folder(out)
    build = how.builder(models)
    request = None if words else how.request([text])
    from text2sam.files import write_png

    document: dict[str, Any]
    if request is None:
        from text2sam.tasks import explain_text

        explanation = explain_text(models.build_clip(), pixels, text, method=how.method)
        stem = f"{file_stems(image, [text])[0]}_words"
        figure = plot.words(pixels, explanation)
        document = explanation.to_json()
        lines = aligned(["word", "carries"], [[word, f"{value:+.4f}"] for word, value in explanation.ranked()])
    else:
        targets, options = request
        [result] = build().segment_many(pixels, targets, **options)
        stem = f"{file_stems(image, [result.text])[0]}_explain"
        figure = plot.explain(pixels, result)
        document = result.to_json()
        lines = describe(document)
    picture = write_png(out / f"{stem}.png", plot.to_png(figure, width))
    if as_json:
        print_json({**document, "image": str(image), "picture": str(picture)})
    else:
        echo(lines)
        echo(f"picture in {picture}", to_stderr=True)


def describe(result: Mapping[str, Any]) -> str:
    """The document of :meth:`text2sam.Segmentation.to_json` as tables for a terminal.

    The first holds the texts and the figures of the result, the next its objects, if there are several, the last the masks
    that SAM offered, of several objects for the first.
    """
    points, similarity = result["points"], result["map"]
    on = sum(points["labels"])
    height, width = result["shape"]
    gh, gw = similarity["grid"]
    facts = [
        ("text", result["text"]),
        ("looked for", ", ".join(result["looked_for"])),
        ("excluded", ", ".join(result["excluded"])),
        ("present", "yes" if result["present"] else "no"),
        ("presence", f"{result['presence']:.6g}, threshold {result['threshold']:.6g}"),
        ("score", f"{result['score']:.3f}"),
        ("area", f"{result['area']} pixels, {100 * result['area'] / (height * width):.1f} % of {width} x {height}"),
        ("box", corners(result["box"])),
        ("points", f"{on} on it, {len(points['labels']) - on} off it"),
        ("map", f"{similarity['method']}, {gw} x {gh} patches, {similarity['lowest']:.4g} to {similarity['highest']:.4g}"),
        ("peak", corners(similarity["peak"])),
        ("strategy", result["strategy"]),
        ("why", result["reason"] or "SAM was not asked"),
    ]
    parts = [aligned(None, [[name, value] for name, value in facts if value])]
    objects, masks = result["objects"], result["candidates"]
    if objects:
        rows = [[str(n), f"{o['score']:.3f}", corners(o["box"]), str(o["area"])] for n, o in enumerate(objects, 1)]
        parts.append(aligned(["object", "score", "box", "area"], rows))
    if masks:
        names = list(masks[0]["figures"])
        rows = [
            [
                str(number),
                "yes" if mask["chosen"] else "",
                *(_figure(value) for value in (mask["score"], *(mask["figures"][name] for name in names))),
                str(mask["area"]),
            ]
            for number, mask in enumerate(masks, 1)
        ]
        parts.append(aligned(["mask", "chosen", "score", *names, "area"], rows))
    return "\n\n".join(parts)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

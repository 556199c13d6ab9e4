"""``text2sam demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from text2sam.cli.common import CODES_HELP, Json, Out, app, split_list
from text2sam.cli.options import Device, option
from text2sam.cli.output import corners, echo, figures, print_json
from text2sam.files import check_folder
from text2sam.tables import aligned


@app.command(epilog=CODES_HELP)
def demo(
    out: Out = Path("text2sam-demo"),
    preset: Annotated[str, option("--preset", "NAME", "photo, with photos, or sticker, with drawn scenes.")] = "photo",
    device: Device = None,
    scene: Annotated[list[str] | None, option("--scene", "NAME", "Only this scene; repeat it or give a comma list.")] = None,
    as_json: Json = False,
) -> None:
    """Find things, and one that is not there, in pictures that need no download."""
    from text2sam.demo import run_demo

    check_folder(out)
    rows, record = run_demo(out, preset=preset, device=device, scenes=split_list(scene) or None)
    if as_json:
        print_json({**record, "out": str(out)})
        return
    drawn = any(row.iou is not None for row in rows)
    echo(
        aligned(
            ["picture", "text", "answer", "presence", "score", *(["IoU"] if drawn else []), "box", "mask"],
            [
                [
                    row.scene,
                    row.text,
                    row.answer,
                    *figures(row.result),
                    *(["(not there)" if row.iou is None else f"{row.iou:.2f}"] if drawn else []),
                    corners(row.result.box),
                    row.files["mask"],
                ]
                for row in rows
            ],
        )
    )
    count, seconds = len(record["scenes"]), record["seconds"]
    echo(f"{count} pictures in {seconds:.1f} s; {out / record['contact']} shows all answers", to_stderr=True)

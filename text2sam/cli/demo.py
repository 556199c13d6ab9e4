"""``text2sam demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from text2sam.cli.common import CODES_HELP, Json, Out, app, check_folder, split_list
from text2sam.cli.options import Device
from text2sam.cli.output import corners, echo, figures, print_json
from text2sam.tables import aligned


@app.command(epilog=CODES_HELP)
def demo(
    out: Out = Path("text2sam-demo"),
    device: Device = None,
    scene: Annotated[
        list[str] | None, typer.Option("--scene", metavar="NAME", help="Only this scene; repeat it or give a comma list.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find three things, and a fourth that is not there, in scenes that ship with text2sam. Needs no network."""
    from text2sam.demo import run_demo

    check_folder(out)
    rows, record = run_demo(out, device=device, scenes=split_list(scene) or None)
    if as_json:
        print_json({**record, "out": str(out)})
        return
    echo(
        aligned(
            ["scene", "text", "answer", "presence", "score", "IoU", "box", "files"],
            [
                [
                    row.scene,
                    row.text,
                    row.answer,
                    *figures(row.result),
                    "(not there)" if row.iou is None else f"{row.iou:.2f}",
                    corners(row.result.box),
                    ", ".join(row.files.values()),
                ]
                for row in rows
            ],
        )
    )
    echo(f"{len(record['scenes'])} scenes in {record['seconds']:.1f} s; files in {out}", to_stderr=True)

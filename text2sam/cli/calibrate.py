"""``text2sam calibrate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from text2sam.cli.common import CODES_HELP, Json, app, split_list
from text2sam.cli.options import Against, ImageOptions, ModelOptions, option, with_options
from text2sam.cli.output import echo, print_json
from text2sam.errors import InputError, warn
from text2sam.examples import in_line, read_examples
from text2sam.files import check_file
from text2sam.tables import aligned

_FEW = 10


@app.command(epilog=CODES_HELP)
@with_options
def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="CSV", help="Examples: columns image (relative to this file), text and present (1 or 0).")
    ],
    out: Annotated[Path, option("--out", "FILE", "The calibration is written to this JSON file.")],
    models: ModelOptions,
    reading: ImageOptions,
    against: Against = None,
    false_cost: Annotated[
        float, option("--false-cost", "NUMBER", "Cost of finding an absent text relative to missing a present one.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Fit the presence threshold to your own examples, for --calibration of other commands.

    A calibration belongs to the models and the settings it was made with, including --against.
    """
    models.check()
    if not 0 < false_cost < float("inf"):
        raise InputError(f"--false-cost must be a number above 0, not {false_cost!r}")
    examples = read_examples(source)
    pictures = {}
    for example in examples:
        if example.image not in pictures:
            with in_line(source, example.line):
                pictures[example.image] = reading.read(example.image)
    check_file(out)
    model = models.build()
    for example in examples:  # only the model knows which texts are too long
        with in_line(source, example.line):
            model.check_texts([example.text])
    calibration = model.calibrate(
        [pictures[example.image] for example in examples],
        [example.text for example in examples],
        [example.present for example in examples],
        against=split_list(against) or None,
        false_cost=false_cost,
    )
    calibration.save(out)
    fewest = min(calibration.n_present, calibration.n_absent)
    if fewest < _FEW:
        warn(
            f"the threshold rests on {calibration.n_present} present and {calibration.n_absent} absent examples; with fewer "
            f"than {_FEW} of a kind it is a guess"
        )
    if as_json:
        print_json({**asdict(calibration), "file": str(out)})
        return
    rows = [
        ["threshold", f"{calibration.threshold:.6g}"],
        ["examples present", f"{calibration.n_present}"],
        ["examples absent", f"{calibration.n_absent}"],
        ["missed", f"{100 * calibration.missed_rate:.1f} % of the present"],
        ["falsely found", f"{100 * calibration.false_rate:.1f} % of the absent"],
        ["AUROC", f"{calibration.auroc:.3f}"],
    ]
    echo(aligned(None, rows))
    echo(f"calibration in {out}", to_stderr=True)

"""``text2sam calibrate``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from text2sam.cli.common import CODES_HELP, Json, app, split_list
from text2sam.cli.options import Against, ImageOptions, ModelOptions, option, with_options
from text2sam.cli.output import echo, print_json
from text2sam.errors import InputError, warn
from text2sam.files import check_file
from text2sam.tables import aligned

_PRESENT = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_COLUMNS = ("image", "text", "present")
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
            with _in_line(source, example.line):
                pictures[example.image] = reading.read(example.image)
    check_file(out)
    model = models.build()
    for example in examples:  # only the model knows which texts are too long
        with _in_line(source, example.line):
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


@dataclass(frozen=True)
class Example:
    """A row of the CSV file, and the line at which it ends."""

    line: int
    image: Path
    text: str
    present: bool


def read_examples(path: Path) -> list[Example]:
    """The rows of a CSV file with the columns image, text and present, grouped by image. The images are not opened.

    Other columns and empty lines are ignored. A relative image path starts at the file's folder. A row that is not usable is an
    InputError that names its line.
    """
    examples: list[Example] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
            missing = [name for name in _COLUMNS if name not in rows.fieldnames]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}: its first line must have the names {','.join(_COLUMNS)}"
                )
            try:
                for row in rows:
                    if any(row.values()):
                        with _in_line(path, rows.line_num):
                            examples.append(_example(path.parent, rows.line_num, row))
            except csv.Error as error:
                raise InputError(f"{path} line {rows.reader.line_num}: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except InputError:
        raise
    except (csv.Error, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if {example.present for example in examples} != {True, False}:
        raise InputError(f"{path} must have at least one row whose text is present and one whose text is not")
    first = {example.image: n for n, example in reversed(list(enumerate(examples)))}
    return sorted(examples, key=lambda example: first[example.image])


def _example(folder: Path, line: int, row: dict[str | None, str | None]) -> Example:
    from text2sam.targets import parse_target

    if None in row or None in row.values():
        raise InputError("the number of values is not that of the columns; put text with a comma in quotes")
    image, text, present = ((row[name] or "").strip() for name in _COLUMNS)
    if not image:
        raise InputError("the image is empty")
    parse_target(text)
    if present.casefold() not in _PRESENT:
        raise InputError(f"present must be 1 or 0, true or false, yes or no, not {present!r}")
    return Example(line, folder / image, text, _PRESENT[present.casefold()])


@contextmanager
def _in_line(path: Path, line: int) -> Iterator[None]:
    """Adds file and line to errors of inputs."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path} line {line}: {error}") from error

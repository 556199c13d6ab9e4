"""``text2sam models list | words | towers | pull | verify | path``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from text2sam.cli.common import CODES_HELP, EXIT_CORRUPT, Json, app, new_app
from text2sam.cli.options import option
from text2sam.cli.output import echo, print_json
from text2sam.errors import ChecksumError, InputError, WeightsError
from text2sam.tables import aligned

if TYPE_CHECKING:
    from text2sam.zoo.download import VerifyResult
    from text2sam.zoo.shipped import Shipped

models = new_app(help="List, download and check model weights.", no_args_is_help=True)
app.add_typer(models, name="models")


@dataclass(frozen=True)
class ModelFile:
    """One row of ``text2sam models list``.

    Attributes:
        name: as commands take it.
        kind: ``"clip"`` or ``"sam"``.
        size: bytes; None where it is not known.
        licence: SPDX identifier.
        path: its place, whether or not it is there; None for a file that users get themselves.
        cached: whether it is there and of the right size; ``models verify`` compares the contents.
        shipped: the weights of the package that it is part of; None for a checkpoint.
        description: one line.
    """

    name: str
    kind: str
    size: int | None
    licence: str
    path: Path | None
    cached: bool
    shipped: Shipped | None
    description: str


def model_files() -> dict[str, ModelFile]:
    """All files of the presets by name: the pairs that ship, then the table of checkpoints."""
    from text2sam.zoo.download import cache_path
    from text2sam.zoo.photo.models import SHIPPED as PHOTO
    from text2sam.zoo.sticker.models import SHIPPED as STICKER
    from text2sam.zoo.table import CHECKPOINTS

    files = []
    for pair in (PHOTO, STICKER):
        for kind in ("clip", "sam"):
            path = pair.folder / f"{kind}.safetensors"
            size = path.stat().st_size if path.is_file() else None
            licence, about = pair.licences[path.name], "ships with the package"
            files.append(ModelFile(f"{pair.name}-{kind}", kind, size, licence, path, size is not None, pair, about))
    for item in CHECKPOINTS.values():
        place = None if item.sha256 is None else cache_path(item.name)
        size = place.stat().st_size if place is not None and place.is_file() else None
        there = size is not None and item.size in (None, size)
        files.append(ModelFile(item.name, item.kind, item.size or size, item.licence, place, there, None, item.description))
    return {file.name: file for file in files}


def preset_files(name: str) -> list[str]:
    """The names of a preset's two files."""
    from text2sam.zoo.presets import get_preset

    preset = get_preset(name)
    return [preset.clip_checkpoint or f"{name}-clip", preset.sam_checkpoint or f"{name}-sam"]


def named_files(names: Sequence[str]) -> list[ModelFile]:
    """The files of checkpoints and presets, each once; an unknown name is an InputError."""
    import difflib

    from text2sam.zoo.presets import PRESETS

    known = model_files()
    chosen: dict[str, ModelFile] = {}
    for name in names:
        if name not in known and name not in PRESETS:
            close = difflib.get_close_matches(name, [*PRESETS, *known], n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            listed = f"presets are {', '.join(PRESETS)}, files {', '.join(known)}"
            raise InputError(f"no model is called {name!r}; {hint}{listed}")
        for file in [name] if name in known else preset_files(name):
            chosen[file] = known[file]
    return list(chosen.values())


Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Names of files or presets.")]


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """List the presets and their files."""
    from text2sam.zoo.download import cache_folder
    from text2sam.zoo.presets import PRESETS

    files = model_files()
    presets = {name: preset_files(name) for name in PRESETS}
    if as_json:
        described = [{"name": n, "files": parts, "description": PRESETS[n].description} for n, parts in presets.items()]
        listed = [
            {**vars(file), "path": file.path and str(file.path), "shipped": file.shipped is not None} for file in files.values()
        ]
        print_json({"cache": str(cache_folder()), "files": listed, "presets": described})
        return
    rows = [[f.name, f.kind, _size(f.size), f.licence, _state(f), f.description] for f in files.values()]
    echo(aligned(["name", "kind", "size", "licence", "cached", "what it is"], rows))
    echo("")
    echo(
        aligned(
            ["preset", "clip", "sam", "ready", "what it is"],
            [
                [name, *parts, "yes" if all(files[p].cached for p in parts) else "no", PRESETS[name].description]
                for name, parts in presets.items()
            ],
        )
    )
    echo(f"cache folder: {cache_folder()}", to_stderr=True)


@models.command("towers")
def list_towers(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names of open_clip (default: all there are).")
    ] = None,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
) -> None:
    """List open_clip's models: which work as --clip-model, and with which methods."""
    from text2sam.clip.towers.table import markdown, methods, tower_rows

    rows = tower_rows(names or None)
    if as_markdown:
        echo(markdown(rows).rstrip())
        return
    if as_json:
        print_json({"towers": [asdict(row) for row in rows]})
        return
    columns = [[r.name, r.adapter or "refused", "x".join(map(str, r.patch or ())), methods(r), r.hub, r.note] for r in rows]
    echo(aligned(["name", "adapter", "patch", "methods", "from the hub", "note"], columns))
    echo(f"{sum(bool(r.adapter) for r in rows)} of {len(rows)} work", to_stderr=True)


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f} MB"


def _state(file: ModelFile) -> str:
    if file.shipped:
        return "ships" if file.cached else "missing"
    if file.cached:
        return "yes"
    if file.path is None:
        return "your own file"
    return "damaged" if file.path.is_file() else "no"


@models.command("pull")
def pull_models(
    names: Names,
    force: Annotated[bool, typer.Option("--force", help="Download files again that are in the cache.")] = False,
) -> None:
    """Download files into the cache and print their paths. The name of a preset stands for its two files."""
    from text2sam.zoo.download import pull

    for file in sorted(named_files(names), key=lambda file: file.path is None):  # what can be downloaded comes first
        if file.shipped:
            echo(f"{file.name} ships with the package", to_stderr=True)
            echo(str(_existing(file)))
        else:
            echo(str(pull(file.name, progress=sys.stderr.isatty(), force=force)))


@models.command("verify", epilog=CODES_HELP)
def verify_models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Files or presets (default: all there are).")
    ] = None,
) -> None:
    """Compare the SHA-256 of files with the recorded one."""
    there = [f for f in model_files().values() if f.shipped or (f.path is not None and f.path.is_file())]
    chosen = named_files(names) if names else there
    results = [_verify(file) for file in chosen]
    echo(aligned(["name", "status", "finding"], [[r.name, r.status, r.detail] for r in results]))
    if not all(r.ok for r in results):
        raise typer.Exit(EXIT_CORRUPT)


def _verify(file: ModelFile) -> VerifyResult:
    from text2sam.zoo.download import VerifyResult, verify

    if file.path is None:
        return VerifyResult(file.name, "own", "your own file, of which no SHA-256 is published")
    if not file.shipped:
        return verify(file.name)
    try:
        file.shipped.file(file.path.name)
    except WeightsError as error:
        return VerifyResult(file.name, "corrupt" if isinstance(error, ChecksumError) else "missing", str(error))
    return VerifyResult(file.name, "ok", "SHA-256 as in the record")


@models.command("words")
def list_words(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Part of a word, or a pattern such as '*dog'.", show_default=False)
    ] = "*",
    preset: Annotated[str, option("--preset", "NAME", "Only photo has a list of words.")] = "photo",
    as_json: Json = False,
) -> None:
    """List the words that a preset knows; with several meanings, the first is taken, and "crane bird" asks for another."""
    from text2sam.zoo.photo.models import load_words
    from text2sam.zoo.presets import PHOTO, get_preset

    if get_preset(preset).name != PHOTO:
        raise InputError(f"the preset {preset!r} takes any text and has no list of words; --preset {PHOTO} has")
    table = load_words()
    words = {word: [table.kind(meaning) for meaning in table.senses(word)] for word in table.search(pattern)}
    if as_json:
        print_json(
            {"preset": preset, "known": len(table), "words": [{"word": w, "kinds": kinds} for w, kinds in words.items()]}
        )
        return
    echo(
        aligned(
            ["word", "is a kind of"],
            [[word, " | ".join(kind or "(learned from photos)" for kind in kinds)] for word, kinds in words.items()],
        )
    )
    echo(f"{len(words):,} of {len(table):,} words", to_stderr=True)


@models.command("path")
def path_of_model(name: Annotated[str, typer.Argument(metavar="NAME", help="A file or a preset.")]) -> None:
    """Print the path of a file, or the paths of a preset's two files, and nothing else."""
    for path in [_existing(file) for file in named_files([name])]:
        echo(str(path))


def _existing(file: ModelFile) -> Path:
    if file.path is None:
        from text2sam.zoo.download import cache_path

        return cache_path(file.name)  # which says how to get it
    if not file.cached:
        help_ = "reinstall text2sam" if file.shipped else f"get it with: text2sam models pull {file.name}"
        raise WeightsError(f"{file.name} is not at {file.path}, or not complete; {help_}")
    return file.path

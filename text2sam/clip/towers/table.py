"""Which of open_clip's models work, and what for: one row a name, read off the models themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from text2sam.clip.attention import METHODS
from text2sam.errors import InputError, UnsupportedModelError


@dataclass(frozen=True)
class TowerRow:
    """One of open_clip's models.

    Attributes:
        name: as in ``open_clip.list_models()``.
        adapter: class of its adapter; empty, as the next three, when its image tower is refused.
        patch: (height, width) in pixels that one token stands for.
        size: (height, width) in pixels of the images the model was trained on.
        methods: names in :data:`text2sam.clip.attention.METHODS` that it offers.
        note: what is an approximation; why it is refused.
        hub: what has to come from the Hugging Face hub besides the weights, or from a folder of its files.
    """

    name: str
    adapter: str = ""
    patch: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    methods: tuple[str, ...] = ()
    note: str = ""
    hub: str = ""


def tower_rows(names: Sequence[str] | None = None) -> list[TowerRow]:
    """The rows of models, all of open_clip's by default. Towers are built without weights.

    Raises:
        InputError: open_clip has no model of a name.
    """
    import open_clip

    known = open_clip.list_models()
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"open_clip has no model {unknown[0]!r}; open_clip.list_models() lists them")
    return [_row(name) for name in (known if names is None else names)]


def markdown(rows: Iterable[TowerRow]) -> str:
    """The rows as a table of Markdown."""
    lines = ["| name | adapter | patch | methods | from the hub | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        patch = "" if row.patch is None else f"{row.patch[0]} x {row.patch[1]}"
        lines.append(f"| {row.name} | {row.adapter or 'refused'} | {patch} | {methods(row)} | {row.hub} | {row.note} |")
    return "\n".join(lines) + "\n"


def methods(row: TowerRow) -> str:
    """The methods of a row in a few words."""
    return "all" if len(row.methods) == len(METHODS) else ", ".join(row.methods)


def from_hub(name: str) -> str:
    """What a model of open_clip needs from the Hugging Face hub besides its weights; empty when nothing."""
    import open_clip

    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if text.get("hf_model_name"):
        return f"text tower and tokenizer {text['hf_model_name']}"
    return f"tokenizer {text['hf_tokenizer_name']}" if text.get("hf_tokenizer_name") else ""


def _row(name: str) -> TowerRow:
    import open_clip
    import torch
    from open_clip.model import _build_vision_tower

    from text2sam.clip.towers import tower_of

    config = open_clip.get_model_config(name)
    hub = from_hub(name)
    arguments = config["embed_dim"], config["vision_cfg"], bool(config.get("quick_gelu"))
    try:
        with torch.device("meta"):
            visual = _build_vision_tower(*arguments)
    except (NotImplementedError, RuntimeError):  # some towers of older timm compute while they are built
        try:
            visual = _build_vision_tower(*arguments)
        except RuntimeError as error:
            return TowerRow(name, note=f"this timm cannot build it: {error}", hub=hub)
    try:
        tower = tower_of(visual)
    except UnsupportedModelError as error:
        return TowerRow(name, note=str(error).split(". ")[0], hub=hub)
    offered = tuple(method for method, made in METHODS.items() if made.tokens == "raw" or made.tokens in tower.kinds)
    return TowerRow(name, type(tower).__name__, tower.patch, tower.size, offered, getattr(tower, "note", ""), hub)

"""What a folder is annotated with: labels, other words for them, and what they must not be confused with."""

from __future__ import annotations

import codecs
import datetime
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from text2sam.checks import check_known, check_number
from text2sam.decode import short
from text2sam.errors import InputError, PromptError, warn
from text2sam.targets import Target, check_different, check_exclude, check_text, parse_target, split_target, text_key

MOST_BYTES = 1_000_000
"""A label file larger than this is refused."""

SUFFIXES = (".yaml", ".yml", ".json", ".txt", ".names")
"""The endings of label files."""

_OTHER_FILES = (".csv", ".tsv", ".toml", ".xml", ".ini", ".cfg", ".data", ".lst", ".list", ".pbtxt", ".md", ".xls", ".xlsx")
_FORM = f"ends in {', '.join(SUFFIXES)}; write the names one a line into a .txt file"


@dataclass(frozen=True)
class LabelSpec:
    """One label of a dataset.

    Texts are stripped, and a synonym equal to the name is dropped. A name without synonyms is a target as everywhere:
    ``"person+bench"`` joins two texts. A name with synonyms is taken literally; ``LabelSpec("c++", ("c++",))`` keeps its signs.

    Attributes:
        name: what objects are called in the dataset.
        synonyms: other words for the same thing.
        exclude: texts whose places are avoided.
        threshold: the presence score from which the label counts as present, in [0, 1]; None takes the model's.

    Raises:
        PromptError: a text is empty, unusable or given twice (CLIP does not distinguish case), or is both looked for and
            excluded.
        InputError: a field is of another type, or the threshold is not in [0, 1].
    """

    name: str
    synonyms: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        synonyms = _texts(self.synonyms, f"synonyms of {_short(self.name)}")
        name = _text(self.name)
        if not synonyms:
            if "+" in name and not all(part.strip() for part in name.split("+")):
                raise PromptError(
                    f"{name!r} joins an empty text; for a literal '+' name it among its own synonyms as well: "
                    f"name: {name!r}, synonyms: [{name!r}]"
                )
            name = "+".join(split_target(name))  # what results are called
        elif "+" not in name:
            synonyms = tuple(word for word in synonyms if text_key(word) != text_key(name))
        check_different(synonyms, f"a synonym of {name!r}")
        exclude = _texts(self.exclude, f"exclude of {_short(self.name)}")
        check_different(exclude, f"a text that {name!r} excludes")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "synonyms", synonyms)
        object.__setattr__(self, "exclude", check_exclude(exclude, [parse_target(self.target)]))
        if self.threshold is not None:
            object.__setattr__(self, "threshold", check_number(f"threshold of {name!r}", self.threshold, 0, 1))

    @property
    def target(self) -> Target:
        """What ``TextPromptedSAM.segment_many`` takes; its result is called by ``name``."""
        return {self.name: list(dict.fromkeys([self.name, *self.synonyms]))} if self.synonyms else self.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, every field."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


_FIELDS = tuple(field.name for field in fields(LabelSpec))


@dataclass(frozen=True)
class LabelGroup:
    """Labels with the same ``exclude``, which one call of ``TextPromptedSAM.segment_many`` answers.

    Attributes:
        labels: in the order of the set.
        targets: what is looked for, one per label.
        exclude: what all of them avoid, or None.
        thresholds: those given, by name, or None.
    """

    labels: tuple[LabelSpec, ...]
    targets: list[Target]
    exclude: tuple[str, ...] | None
    thresholds: dict[str, float] | None


@dataclass(frozen=True)
class LabelSet:
    """The labels of a dataset, in the order of their classes.

    Attributes:
        labels: at least one.
        against: what else may be in the images, see ``TextPromptedSAM.segment``; empty is None there.

    Raises:
        PromptError: a word stands for two labels (case does not count), or a text in ``against`` is unusable or given twice.
        InputError: there are no labels, a field is of another type, or ``against`` leaves a label alone in its label set.
    """

    labels: tuple[LabelSpec, ...]
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.labels, tuple) or not all(isinstance(label, LabelSpec) for label in self.labels):
            raise InputError("labels must be a tuple of LabelSpec; label_set makes them from texts")
        if not self.labels:
            raise InputError("there are no labels; name at least one thing to look for")
        owners: dict[str, int] = {}
        for index, label in enumerate(self.labels):
            for word in (label.name, *label.synonyms):
                owner = owners.setdefault(text_key(word), index)
                if owner == index:
                    continue
                other = self.labels[owner].name
                if text_key(other) == text_key(label.name) == text_key(word):
                    raise PromptError(f"the label {label.name!r} is given twice (case does not count)")
                raise PromptError(f"{word!r} stands for both {other!r} and {label.name!r}; take it out of one of the two")
        against = _texts(self.against, "against")
        check_different(against, "a text of against")
        if len(against) == 1 and text_key(against[0]) in owners:
            raise InputError(
                f"against names only {against[0]!r}, which is itself looked for and would stand alone in its label set; "
                "name at least one other text or leave against out"
            )
        object.__setattr__(self, "against", against)

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called, in order."""
        return tuple(label.name for label in self.labels)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, the same for sets that mean the same: ``labels`` in order with every field, and ``against``."""
        return {"labels": [label.to_json() for label in self.labels], "against": list(self.against)}

    def with_options(
        self, against: Sequence[str] | None = None, threshold: float | Mapping[str, float] | None = None
    ) -> LabelSet:
        """The labels with further texts in ``against``, and with thresholds.

        Args:
            against: texts; those that are there already are not repeated.
            threshold: a number for all labels that have none of their own, or a mapping from names to numbers.

        Raises:
            InputError: a name is no label's, or a text or number is not usable.
        """
        named = threshold if isinstance(threshold, Mapping) else {}
        unknown = [name for name in named if name not in self.names]
        if unknown:
            raise InputError(f"a threshold is given for {unknown[0]!r}, which is no label; they are {list(self.names)}")
        general = None if isinstance(threshold, Mapping) else threshold
        labels = tuple(
            replace(label, threshold=named.get(label.name, general if label.threshold is None else label.threshold))
            for label in self.labels
        )
        extra = [text for text in _texts(against or (), "against") if text not in self.against]
        return LabelSet(labels, (*self.against, *extra))

    def groups(self) -> tuple[LabelGroup, ...]:
        """The calls that answer all labels, in the order of their first labels; each label is in one of them."""
        sharing: dict[tuple[str, ...], list[LabelSpec]] = {}
        for label in self.labels:
            sharing.setdefault(label.exclude, []).append(label)
        groups = []
        for exclude, labels in sharing.items():
            thresholds = {label.name: label.threshold for label in labels if label.threshold is not None}
            targets = [label.target for label in labels]
            groups.append(LabelGroup(tuple(labels), targets, exclude or None, thresholds or None))
        return tuple(groups)


Labels: TypeAlias = "LabelSet | str | os.PathLike[str] | Iterable[str | LabelSpec]"
"""What :func:`label_set` accepts."""


def label_set(
    labels: Labels, against: Sequence[str] | None = None, threshold: float | Mapping[str, float] | None = None
) -> LabelSet:
    """Labels from a comma list, from several, or from a file.

    ``"cat,dog"``, ``["cat", "dog"]`` and ``["cat,dog"]`` are the same. A text that ends in one of :data:`SUFFIXES`, or a path,
    is a file, see :func:`load_labels`. Other texts that look like files are refused: those with a slash, with the ending of
    another kind of table, or a single text with any ending where there is a file of this name. A label with a comma or slash in
    its name comes as a :class:`LabelSpec` or from a file.

    Args:
        labels: the labels.
        against, threshold: see :meth:`LabelSet.with_options`.

    Raises:
        PromptError, InputError: a label is not usable, looks like a file that is not there, or the file is not usable.
    """
    if isinstance(labels, os.PathLike) or (isinstance(labels, str) and labels.strip().lower().endswith(SUFFIXES)):
        parsed = load_labels(os.fspath(labels).strip())
    elif isinstance(labels, LabelSet):
        parsed = labels
    else:
        if isinstance(labels, str) and os.path.isfile(name := labels.strip()):
            if Path(name).suffix:
                raise _no_label(name)
            endings = ", ".join(SUFFIXES)
            warn(f"{_short(name)} is taken as a label, though there is a file of this name; files of labels end in {endings}")
        parsed = _listed([labels] if isinstance(labels, str) else labels)
    return parsed.with_options(against, threshold)


def _listed(labels: Any) -> LabelSet:
    if isinstance(labels, (bytes, Mapping)) or not isinstance(labels, Iterable):
        raise InputError(f"labels must be a comma list such as 'cat,dog', texts, or a file of labels, not {_short(labels)}")
    specs: list[LabelSpec] = []
    for given in labels:
        if isinstance(given, LabelSpec):
            specs.append(given)
            continue
        if not isinstance(given, str):
            raise InputError(f"a label must be a text or a LabelSpec, not {_short(given)}")
        for part in (part.strip() for part in given.split(",")):
            if not part:
                raise PromptError(f"label {len(specs) + 1} in {given!r} is empty; take the extra comma out")
            if part.lower().endswith((*SUFFIXES, *_OTHER_FILES)) or "/" in part or os.sep in part:
                raise _no_label(part)
            specs.append(_spec(f"label {len(specs) + 1}", {"name": part}))
    return LabelSet(tuple(specs))


def _no_label(name: str) -> PromptError:
    return PromptError(
        f"the label {_short(name)} looks like a file; a file of labels stands alone and {_FORM}. For a label of this name give "
        f"LabelSpec({_short(name)}), or write it into a file of labels"
    )


def load_labels(path: str | os.PathLike[str]) -> LabelSet:
    """Labels from a file: YAML, JSON by the suffix ``.json``, or by ``.txt`` and ``.names`` one name per line.

    YAML and JSON hold a list, a mapping, or either under ``labels`` beside ``against``::

        labels:                               # a list of names, or of names with more to say ...
          - cat
          - name: car
            synonyms: [automobile, taxi]
            exclude: [truck]
            threshold: 0.6
        against: [grass, sky]

        cat:                                  # ... or a mapping from names
        car: [automobile, taxi]
        dog: {exclude: [wolf], threshold: 0.4}

    Names that YAML reads as something other than text (``no``, ``on``, ``12``) must be quoted. In a ``.txt`` or ``.names`` file
    blank lines and lines that start with ``#`` are ignored.

    Args:
        path: a file in UTF-8, or in UTF-16 with a byte order mark, of at most :data:`MOST_BYTES`.

    Raises:
        InputError: the file cannot be read, is too large, or has another form; PromptError: a text is unusable. The message
            names the file.
    """
    name, suffix = _short(os.fsdecode(path)), Path(os.fsdecode(path)).suffix.lower()
    if suffix in _OTHER_FILES:
        raise InputError(f"{name}: a file of labels {_FORM}")
    text = _read(path, name)
    try:
        if suffix in (".txt", ".names"):
            lines = [line.strip() for line in text.splitlines()]
            return LabelSet(tuple(_entries([line for line in lines if line and not line.startswith("#")])))
        value = _parse(text, suffix == ".json")
        if isinstance(value, dict) and "labels" in value:
            check_known("field", value, ("labels", "against"))
            return LabelSet(tuple(_entries(value["labels"])), _texts(value.get("against"), "against"))
        if isinstance(value, dict) and "against" in value:
            raise InputError("'against' needs 'labels' beside it; if it is a label itself, write the labels as a list")
        return LabelSet(tuple(_entries(value)))
    except InputError as error:
        raise type(error)(f"{name}: {error}") from error


def _read(path: str | os.PathLike[str], name: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"the label file {name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"the label file {name} is larger than {MOST_BYTES:,} bytes; is it a label file?")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the label file {name} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def _parse(text: str, is_json: bool) -> Any:
    """The value of a JSON or YAML document in which no key comes twice, which parsers otherwise pass over in silence."""
    import yaml

    def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            raise InputError(f"{_short(next(key for key in keys if keys.count(key) > 1))} is given twice")
        return value

    class _Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            """A mapping without repeated keys; all inside is constructed first, so that keys can be compared."""
            return unique([(self.construct_object(k, deep=True), self.construct_object(v, deep=True)) for k, v in node.value])

    try:
        return json.loads(text, object_pairs_hook=unique) if is_json else yaml.load(text, _Loader)
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise InputError(f"{where}not YAML: {error.problem or error.context}") from error
    except Exception as error:  # parsers let ValueError, RecursionError and others through
        raise InputError(f"not {'JSON' if is_json else 'YAML'}: {type(error).__name__}: {error}") from error


def _entries(value: Any) -> list[LabelSpec]:
    """The labels of a list or a mapping."""
    if not isinstance(value, (list, dict)):
        if value is None:
            raise InputError("it holds no labels; name at least one thing to look for")
        raise InputError(f"labels must be a list or a mapping, such as '- cat', not {_short(value)}")
    entries: list[dict[str, Any]] = []
    for given in value:
        more: Any = value[given] if isinstance(value, dict) else None
        if isinstance(value, list) and isinstance(given, dict):
            check_known("field", given, _FIELDS)
            if "name" not in given:
                raise InputError(f"label {len(entries) + 1} has fields but no 'name'")
            entries.append(given)
        elif isinstance(more, dict):
            check_known("field", more, _FIELDS[1:])
            entries.append({"name": given, **more})
        elif more is None or isinstance(more, list):
            entries.append({"name": given, "synonyms": more})
        else:
            raise InputError(f"the value of {_short(given)} must be empty, a list of synonyms, or fields, not {_short(more)}")
    return [_spec(f"label {number}", entry) for number, entry in enumerate(entries, 1)]


def _spec(where: str, entry: Mapping[str, Any]) -> LabelSpec:
    try:
        return LabelSpec(**entry)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def _text(given: Any) -> str:
    """A text that models, file formats and terminals can take."""
    if given is None or isinstance(given, (bool, int, float, datetime.date)):  # what YAML makes of no, on, 12, 2020-01-01
        raise PromptError(
            f"a label or word must be a text, not {given!r}; YAML reads no, on, 12 and dates as other things: quote it"
        )
    text: str = check_text(given)
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise PromptError(f"{_short(text)} holds the control character {bad!r}; take it out")
    return text


def _texts(texts: Any, what: str) -> tuple[str, ...]:
    if texts is None:
        return ()
    if not isinstance(texts, (tuple, list)):
        raise InputError(f"{what} must be a list of texts, such as ['taxi', 'cab'], not {_short(texts)}")
    return tuple(_text(text) for text in texts)


def _short(value: Any) -> str:
    return short(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"

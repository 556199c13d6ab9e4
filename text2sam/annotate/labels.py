"""What a folder is annotated with: labels, the words for them, and what they must not be confused with.

Label files are data from outside: they are parsed, never constructed into objects, and bounded in size and depth.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from text2sam.errors import InputError, PromptError, Text2SamError

if TYPE_CHECKING:
    from text2sam.targets import Target

MOST_BYTES = 1_000_000
"""A label file larger than this is refused."""

_DEEPEST = 8
_FIELDS = ("name", "synonyms", "exclude", "threshold")
_TOP = ("labels", "against")
_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class LabelSpec:
    """One label of a dataset.

    Texts are stripped, and a synonym that repeats the name is dropped. A name without synonyms is a target as everywhere:
    ``"person+bench"`` joins two texts. A name with synonyms is taken literally; ``LabelSpec("c++", ("c++",))`` keeps its signs.

    Attributes:
        name: what objects are called in the dataset.
        synonyms: other words for the same thing.
        exclude: texts whose places are to be avoided.
        threshold: in [0, 1], from which presence score on it counts as present; None takes the model's.

    Raises:
        PromptError: a text is empty, unusable or given twice (case does not count, as CLIP knows none), or is both looked for
            and excluded.
        InputError: a field is of another type, or the threshold is not in [0, 1].
    """

    name: str
    synonyms: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        from text2sam.targets import check_exclude, parse_target, split_target

        synonyms = _texts(self.synonyms, "synonyms")
        name = _text(self.name)
        if not synonyms:
            if "+" in name and not all(part.strip() for part in name.split("+")):
                raise PromptError(
                    f"{name!r} joins an empty text; for a literal '+' name it among its own synonyms as well: "
                    f"name: {name!r}, synonyms: [{name!r}]"
                )
            name = "+".join(split_target(name))  # what results are called
        elif "+" not in name:
            synonyms = tuple(word for word in synonyms if _key(word) != _key(name))
        _all_different(synonyms, f"a synonym of {name!r}")
        exclude = _texts(self.exclude, "exclude")
        _all_different(exclude, f"a text that {name!r} excludes")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "synonyms", synonyms)
        object.__setattr__(self, "exclude", check_exclude(exclude, [parse_target(self.target)]))
        if self.threshold is not None:
            given: Any = self.threshold
            if isinstance(given, bool) or not isinstance(given, Real) or not 0.0 <= float(given) <= 1.0:
                raise InputError(f"threshold of {name!r} must be a number in [0, 1], not {given!r}")
            object.__setattr__(self, "threshold", float(given))

    @property
    def target(self) -> Target:
        """What ``TextPromptedSAM.segment_many`` takes; its result is called by ``name``."""
        return {self.name: list(dict.fromkeys([self.name, *self.synonyms]))} if self.synonyms else self.name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, every field."""
        return {
            "name": self.name,
            "synonyms": list(self.synonyms),
            "exclude": list(self.exclude),
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class LabelGroup:
    """Labels that one call of ``TextPromptedSAM.segment_many`` answers, since they exclude the same.

    Attributes:
        labels: in the order of the set.
        indexes: the place of each in the set, where its result belongs.
        targets: what is looked for, one per label.
        exclude: what all of them avoid, or None.
        thresholds: those given, by name, or None.
    """

    labels: tuple[LabelSpec, ...]
    indexes: tuple[int, ...]
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
        if not isinstance(self.labels, tuple) or not all(isinstance(one, LabelSpec) for one in self.labels):
            raise InputError("labels must be a tuple of LabelSpec; parse_labels makes them from texts")
        if not self.labels:
            raise InputError("there are no labels; name at least one thing to look for")
        owners: dict[str, int] = {}
        for index, one in enumerate(self.labels):
            for word in (one.name, *one.synonyms):
                owner = owners.setdefault(_key(word), index)
                if owner == index:
                    continue
                other = self.labels[owner].name
                if _key(other) == _key(one.name) == _key(word):
                    raise PromptError(f"the label {one.name!r} is given twice (case does not count)")
                raise PromptError(f"{word!r} stands for both {other!r} and {one.name!r}; take it out of one of the two")
        against = _texts(self.against, "against")
        _all_different(against, "a text of against")
        if len(against) == 1 and _key(against[0]) in owners:
            raise InputError(
                f"against names only {against[0]!r}, which is itself looked for and would stand alone in its label set; "
                "name at least one other text or leave against out"
            )
        object.__setattr__(self, "against", against)

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called, in order."""
        return tuple(one.name for one in self.labels)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, the same for sets that mean the same: ``labels`` in order with every field, and ``against``."""
        return {"labels": [one.to_json() for one in self.labels], "against": list(self.against)}

    def groups(self) -> tuple[LabelGroup, ...]:
        """The calls that answer all labels, in the order of their first labels; each label is in one of them."""
        places: dict[tuple[str, ...], list[int]] = {}
        for index, one in enumerate(self.labels):
            places.setdefault(one.exclude, []).append(index)
        groups = []
        for exclude, indexes in places.items():
            labels = tuple(self.labels[index] for index in indexes)
            thresholds = {one.name: one.threshold for one in labels if one.threshold is not None}
            targets = [one.target for one in labels]
            groups.append(LabelGroup(labels, tuple(indexes), targets, exclude or None, thresholds or None))
        return tuple(groups)


def parse_labels(labels: str | Iterable[str | LabelSpec]) -> LabelSet:
    """Labels from a comma list, or from several; ``"cat,dog"``, ``["cat", "dog"]`` and ``["cat,dog"]`` are the same.

    A label with a comma in its name comes as a :class:`LabelSpec` or from a file.

    Raises:
        PromptError, InputError: as :class:`LabelSpec` and :class:`LabelSet`; an entry that is unusable is named.
    """
    if isinstance(labels, str):
        labels = [labels]
    elif isinstance(labels, (bytes, Mapping)) or not isinstance(labels, Iterable):
        raise InputError(f"labels must be a comma list such as 'cat,dog', or a sequence of texts, not {labels!r}")
    specs: list[LabelSpec] = []
    for given in labels:
        if isinstance(given, LabelSpec):
            specs.append(given)
            continue
        if not isinstance(given, str):
            raise InputError(f"a label must be a text or a LabelSpec, not {type(given).__name__} {given!r}")
        for part in given.split(","):
            if not part.strip():
                raise PromptError(f"label {len(specs) + 1} in {given!r} is empty; take the extra comma out")
            specs.append(_spec(f"label {len(specs) + 1}", part))
    return LabelSet(tuple(specs))


def load_labels(path: str | os.PathLike[str]) -> LabelSet:
    """Labels from a file: YAML (so JSON as well), or with the suffix ``.txt`` one name per line.

    YAML holds a list, a mapping, or either under ``labels`` beside ``against``::

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

    Anchors, aliases, tags and repeated keys are refused, and so are names that YAML reads as something other than text
    (``no``, ``on``, ``12``) unless they are quoted. In a ``.txt`` file blank lines and lines that start with ``#`` are left
    out.

    Args:
        path: a file of UTF-8 or UTF-16 with a byte order mark, of at most :data:`MOST_BYTES`.

    Raises:
        InputError: the file cannot be read, is too large, or is not of one of these forms; PromptError: a text is unusable.
            The message names the file, and the line where there is one.
    """
    name = _short(os.fsdecode(path))
    text = _read(path, name)
    if Path(os.fsdecode(path)).suffix.lower() == ".txt":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        specs = [_spec(f"{name}, line {n}", line) for n, line in lines if line and not line.startswith("#")]
        against: tuple[str, ...] = ()
    else:
        specs, against = _Document(name).labels(text)
    if not specs:
        raise InputError(f"{name} holds no labels; name at least one thing to look for")
    try:
        return LabelSet(tuple(specs), against)
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


class _Document:
    """A YAML file of labels, read from its nodes: these know their lines and the words as written."""

    def __init__(self, name: str) -> None:
        self.name = name

    def labels(self, text: str) -> tuple[list[LabelSpec], tuple[str, ...]]:
        root = self._compose(text)
        if root is None:
            return [], ()
        if root.id == "mapping":
            fields = self._mapping(root)
            if "labels" in fields:
                self._known(root, fields, _TOP)
                return self._entries(fields["labels"]), self._texts(fields.get("against"), "against")
            if "against" in fields:
                self._fail(root, "'against' needs 'labels' beside it; if it is a label itself, write the labels as a list")
        return self._entries(root), ()

    def _compose(self, text: str) -> Any:
        import yaml

        name = self.name

        class _Loader(yaml.SafeLoader):  # type: ignore[misc]
            depth = 0

            def compose_node(self, parent: Any, index: Any) -> Any:
                event = self.peek_event()
                where = f"{name}, line {event.start_mark.line + 1}"
                if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
                    raise InputError(f"{where}: anchors (&) and aliases (*) are not accepted; write it out, or quote the text")
                if self.depth == _DEEPEST:
                    raise InputError(f"{where}: nested deeper than label files are")
                self.depth += 1
                node = super().compose_node(parent, index)
                self.depth -= 1
                return node

        try:
            return _Loader(text).get_single_node()
        except Text2SamError:
            raise
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = name if mark is None else f"{name}, line {mark.line + 1}"
            raise InputError(f"{where}: not YAML: {error.problem or error.context}") from error
        except Exception as error:  # the scanner lets ValueError and others through
            raise InputError(f"{name} is not YAML: {type(error).__name__}: {error}") from error

    def _entries(self, node: Any) -> list[LabelSpec]:
        if node.id == "sequence":
            return [self._entry(item) for item in node.value]
        if node.id == "mapping":
            return [self._named(node, name, value) for name, value in self._mapping(node).items()]
        if node.tag == _NULL:
            return []
        return self._fail(node, f"labels must be a list or a mapping, such as '- cat', not {_short(node.value)}")

    def _entry(self, node: Any) -> LabelSpec:
        """One entry of a list: a name, or a mapping of fields."""
        if node.id != "mapping":
            return self._spec(node, self._text(node, "a label"))
        fields = self._mapping(node)
        self._known(node, fields, _FIELDS)
        if "name" not in fields:
            self._fail(node, "a label with fields needs a 'name'")
        return self._fields(node, self._text(fields["name"], "a name"), fields)

    def _named(self, parent: Any, name: str, node: Any) -> LabelSpec:
        """One entry of a mapping: nothing, a list of synonyms, or a mapping of fields behind the name."""
        if node.id == "sequence":
            return self._spec(node, name, synonyms=self._texts(node, f"the synonyms of {_short(name)}"))
        if node.id == "mapping":
            fields = self._mapping(node)
            self._known(node, fields, _FIELDS[1:])
            return self._fields(node, name, fields)
        if node.tag != _NULL:
            self._fail(node, f"behind {_short(name)} stand nothing, a list of synonyms or fields, not {_short(node.value)}")
        return self._spec(node, name)

    def _fields(self, node: Any, name: str, fields: Mapping[str, Any]) -> LabelSpec:
        return self._spec(
            node,
            name,
            synonyms=self._texts(fields.get("synonyms"), f"the synonyms of {_short(name)}"),
            exclude=self._texts(fields.get("exclude"), f"what {_short(name)} excludes"),
            threshold=self._number(fields.get("threshold"), f"the threshold of {_short(name)}"),
        )

    def _spec(self, node: Any, name: str, **fields: Any) -> LabelSpec:
        return _spec(f"{self.name}, line {node.start_mark.line + 1}", name, **fields)

    def _mapping(self, node: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in node.value:
            name = self._text(key, "a key")
            if name in out:
                self._fail(key, f"{_short(name)} is given twice")
            out[name] = value
        return out

    def _known(self, node: Any, fields: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in fields:
            if name not in known:
                self._fail(node, f"there is no field {_short(name)}; the fields are {', '.join(known)}")

    def _text(self, node: Any, what: str) -> str:
        if node.id == "scalar" and node.tag == _TEXT:
            return str(node.value)
        if node.id != "scalar":
            return self._fail(node, f"{what} must be a text, not a {node.id}")
        if not node.value:
            return self._fail(node, f"{what} is empty")
        kind = node.tag.rpartition(":")[2]
        return self._fail(node, f'{what} must be a text; YAML reads {node.value[:80]} as {kind}, put it in quotes: "..."')

    def _texts(self, node: Any, what: str) -> tuple[str, ...]:
        if node is None or (node.id == "scalar" and node.tag == _NULL):
            return ()
        if node.id != "sequence":
            self._fail(node, f"{what} must be a list of texts, such as [taxi, cab]")
        return tuple(self._text(item, f"a text in {what}") for item in node.value)

    def _number(self, node: Any, what: str) -> float | None:
        if node is None or (node.id == "scalar" and node.tag == _NULL):
            return None
        if node.id == "scalar" and not node.style:  # plain, without quotes; YAML 1.1 takes 1e-1 for a text
            try:
                return float(node.value)
            except ValueError:
                pass
        return self._fail(node, f"{what} must be a number in [0, 1]")

    def _fail(self, node: Any, what: str) -> NoReturn:
        raise InputError(f"{self.name}, line {node.start_mark.line + 1}: {what}")


def _spec(where: str, name: str, **fields: Any) -> LabelSpec:
    try:
        return LabelSpec(name, **fields)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def _text(given: Any) -> str:
    """A text that models, file formats and terminals can take."""
    from text2sam.clip.prompts import check_text

    text: str = check_text(given)
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise PromptError(f"{_short(text)} holds the control character {bad!r}; take it out")
    return text


def _texts(texts: Any, what: str) -> tuple[str, ...]:
    if not isinstance(texts, (tuple, list)):
        raise InputError(f"{what} must be a tuple of texts, not {_short(texts)}")
    return tuple(_text(text) for text in texts)


def _all_different(texts: Sequence[str], what: str) -> None:
    seen: dict[str, str] = {}
    for text in texts:
        if _key(text) in seen:
            raise PromptError(f"{what} is given twice (case does not count): {seen[_key(text)]!r} and {text!r}")
        seen[_key(text)] = text


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]}...{text[-40:]}"

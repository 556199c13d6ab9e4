from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2sam.annotate.labels import MOST_BYTES, LabelSet, LabelSpec, label_set, load_labels
from text2sam.errors import InputError, PromptError, Text2SamError, Text2SamWarning
from text2sam.targets import check_exclude, parse_targets, thresholds_of

# a comma in a name is worth a hint, which is tested elsewhere
pytestmark = pytest.mark.filterwarnings("ignore::text2sam.errors.Text2SamWarning")


def read(tmp_path: Path, text: str | bytes, name: str = "labels.yaml") -> LabelSet:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_labels(path)


# one label


def test_a_label_is_its_name() -> None:
    label = LabelSpec(" cat ")
    assert label == LabelSpec("cat")
    assert label.target == "cat"
    assert label.to_json() == {"name": "cat", "synonyms": [], "exclude": [], "threshold": None}


@pytest.mark.parametrize(
    ("spec", "label", "texts"),
    [
        (LabelSpec("cat"), "cat", ("cat",)),
        (LabelSpec(" person + bench "), "person+bench", ("person", "bench")),
        (LabelSpec("car", ("automobile", " taxi")), "car", ("car", "automobile", "taxi")),
        (LabelSpec("car", ("Car", "automobile")), "car", ("car", "automobile")),
        (LabelSpec("car", ("car",)), "car", ("car",)),
        (LabelSpec("c++", ("c++",)), "c++", ("c++",)),
        (LabelSpec("c++", ("c++ book",)), "c++", ("c++", "c++ book")),
    ],
)
def test_the_target_is_called_by_the_name(spec: LabelSpec, label: str, texts: tuple[str, ...]) -> None:
    [query] = parse_targets([spec.target])
    assert query.label == label == spec.name
    assert query.texts == texts


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"name": ""}, PromptError, "names something"),
        ({"name": None}, PromptError, "must be a text, not None"),
        ({"name": "c++"}, PromptError, r"literal '\+' name it among its own synonyms"),
        ({"name": "a\nb"}, PromptError, "control character"),
        ({"name": "a\ud800b"}, PromptError, "control character"),
        ({"name": "car", "synonyms": "taxi"}, InputError, "synonyms of 'car' must be a list of texts"),
        ({"name": "car", "synonyms": ("taxi", "Taxi ")}, PromptError, "synonym of 'car' is given twice.*'taxi' and 'Taxi'"),
        ({"name": "car", "exclude": ("truck", "TRUCK")}, PromptError, "excludes is given twice"),
        ({"name": "car", "exclude": ("caf\u00e9", "cafe\u0301")}, PromptError, "excludes is given twice"),
        ({"name": "car", "synonyms": ("taxi",), "exclude": ("Taxi",)}, PromptError, "both looked for and excluded"),
        ({"name": "a", "threshold": 1.1}, InputError, r"number in \[0, 1\]"),
    ],
)
def test_unusable_labels(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LabelSpec(**fields)


# several


def test_no_labels() -> None:
    for none in ((), [LabelSpec("cat")], ("cat",)):
        with pytest.raises(InputError):
            LabelSet(none)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", ["cat", "CAT", " cat"])
def test_a_label_given_twice(other: str) -> None:
    with pytest.raises(PromptError, match="given twice"):
        LabelSet((LabelSpec("cat"), LabelSpec("dog"), LabelSpec(other)))


def test_a_word_for_two_labels() -> None:
    car = LabelSpec("car", ("automobile",))
    with pytest.raises(PromptError, match="'automobile' stands for both 'car' and 'automobile'"):
        LabelSet((car, LabelSpec("automobile")))
    with pytest.raises(PromptError, match="'Automobile' stands for both 'car' and 'van'"):
        LabelSet((car, LabelSpec("van", ("Automobile",))))
    assert LabelSet((LabelSpec("a"), LabelSpec("b"), LabelSpec("a+b"))).names == ("a", "b", "a+b")


def test_against() -> None:
    cat = LabelSpec("cat")
    assert LabelSet((cat,), (" grass", "cat")).against == ("grass", "cat")
    with pytest.raises(InputError, match="alone in its label set"):
        LabelSet((cat,), ("cat",))
    with pytest.raises(PromptError, match="given twice"):
        LabelSet((cat,), ("sky", "Sky"))
    with pytest.raises(InputError, match="against must be a list"):
        LabelSet((cat,), "sky")  # type: ignore[arg-type]


def test_groups_share_an_exclude_and_cover_every_label_once() -> None:
    labels = (
        LabelSpec("cat", threshold=0.4),
        LabelSpec("car", ("taxi",), ("truck", "bus")),
        LabelSpec("dog"),
        LabelSpec("van", (), ("truck", "bus"), 0.0),
        LabelSpec("boat", (), ("ship",)),
    )
    groups = LabelSet(labels).groups()
    assert [[label.name for label in g.labels] for g in groups] == [["cat", "dog"], ["car", "van"], ["boat"]]
    assert [g.exclude for g in groups] == [None, ("truck", "bus"), ("ship",)]
    assert [g.thresholds for g in groups] == [{"cat": 0.4}, {"van": 0.0}, None]
    assert [g.targets for g in groups] == [["cat", "dog"], [{"car": ["car", "taxi"]}, "van"], ["boat"]]
    for group in groups:
        queries = parse_targets(group.targets)  # as segment_many takes them
        check_exclude(group.exclude, queries)
        thresholds_of(group.thresholds, queries, 0.5)
        assert [query.label for query in queries] == [label.name for label in group.labels]


def test_json_tells_sets_apart_and_only_those() -> None:
    full = LabelSet((LabelSpec("cat"), LabelSpec("car", ("taxi",), threshold=1)), ("sky",))
    assert json.loads(json.dumps(full.to_json())) == full.to_json()
    same = LabelSet((LabelSpec("cat ", ("cat",)), LabelSpec("car", ("car", "taxi"), threshold=1.0)), ("sky",))
    assert json.dumps(same.to_json()) == json.dumps(full.to_json())
    others = [
        LabelSet(full.labels),
        LabelSet(full.labels[::-1], ("sky",)),
        LabelSet((LabelSpec("cat"), LabelSpec("car", ("taxi",))), ("sky",)),
        LabelSet((LabelSpec("cat", exclude=("dog",)), full.labels[1]), ("sky",)),
    ]
    assert len({json.dumps(labels.to_json()) for labels in (full, *others)}) == 5


# from texts


def test_comma_lists() -> None:
    assert label_set("cat, dog").names == ("cat", "dog")
    assert label_set(["cat", "dog,red car"]).names == ("cat", "dog", "red car")
    odd = LabelSpec("black, white cat")
    assert label_set(["dog", odd]).labels == (LabelSpec("dog"), odd)
    labels = LabelSet((odd,))
    assert label_set(labels) == labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "label 1 in '' is empty"),
        ("cat,,dog", "label 2 in .* is empty"),
        ([], "no labels"),
        ("cat,?", "label 2: .*names something"),
        ("cat,Cat", "given twice"),
        (None, "comma list"),
        (b"cat", "comma list"),
        ({"cat": []}, "comma list"),
        ([3], "a text or a LabelSpec, not 3"),
        ("nothing/labels.yaml", "cannot be read: No such file"),
        (Path("labels"), "cannot be read: No such file"),
        ("labels.JSON", "cannot be read"),
        (["labels.yaml"], "looks like a file"),
        ("cat,words.txt,dog", "looks like a file"),
        ("photos/cats", "looks like a file"),
        ("l.csv", r"looks like a file.* names one a line into a \.txt file"),
        ("cat,l.TOML", "looks like a file"),
        (Path("l.xlsx"), r"'l\.xlsx': a file of labels ends in"),
    ],
)
def test_texts_that_are_no_labels(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        label_set(labels)


@pytest.mark.parametrize("name", ["labels.yaml", "labels.yml", "labels.json", "labels.JSON"])
def test_a_file_is_read_wherever_labels_are_given(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        json.dumps(
            {"labels": {"cat": None, "car": {"synonyms": ["taxi"], "threshold": 0.25}}, "against": ["sky"]},
            indent="\t" if "json" in name.lower() else None,
        )
    )
    expected = LabelSet((LabelSpec("cat"), LabelSpec("car", ("taxi",), threshold=0.25)), ("sky",))
    assert label_set(path) == label_set(str(path)) == load_labels(path) == expected


def test_other_files_are_no_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("l.classes", "l.csv"):
        Path(name).write_text("- cat\n- dog\n")
        with pytest.raises(PromptError, match=f"'{name}' looks like a file"):
            label_set(f" {name}")
    Path("dog").mkdir()
    Path("cat").write_text("cat\ndog\n")
    assert label_set("dog").names == ("dog",)
    with pytest.warns(Text2SamWarning, match=r"'cat' is taken as a label.*files of labels end in \.yaml"):
        assert label_set("cat").names == ("cat",)
    assert label_set("cat,dog").names == ("cat", "dog")
    with pytest.raises(InputError, match=r"'l\.csv': a file of labels ends in \.yaml"):
        label_set(Path("l.csv"))


def test_thresholds_and_against_beside_the_labels() -> None:
    labels = LabelSet((LabelSpec("cat", threshold=0.1), LabelSpec("dog")), ("sky",))
    assert [label.threshold for label in label_set(labels, threshold=0.7).labels] == [0.1, 0.7]
    assert [label.threshold for label in label_set(labels, threshold={"cat": 0.2}).labels] == [0.2, None]
    assert label_set("cat,dog", ["sky", "sea"]).against == ("sky", "sea")
    assert label_set(labels, ["sky", "sea"]).against == ("sky", "sea")
    with pytest.raises(InputError, match="'bird', which is no label"):
        label_set(labels, threshold={"bird": 0.2})
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        label_set(labels, threshold=2)


# from files


CAR = LabelSpec("car", ("automobile", "taxi"), ("truck",), 0.6)


@pytest.mark.parametrize(
    "text",
    [
        "- cat\n- name: car\n  synonyms: [automobile, taxi]\n  exclude: [truck]\n  threshold: .6\n- dog",
        "cat:\ncar: {synonyms: [automobile, taxi], exclude: [truck], threshold: 0.6}\ndog: []\n",
        'labels: [cat, {name: "car", synonyms: [car, automobile, taxi], exclude: [truck], threshold: 0.6}, dog: ]'.replace(
            "dog: ", "{name: dog, synonyms: null, threshold: }"
        ),
        '{"cat": null, "car": {"synonyms": ["automobile", "taxi"], "exclude": ["truck"], "threshold": 0.6}, "dog": null}',
        "---\nlabels:\n  cat: ~\n  car:\n    synonyms:\n    - automobile\n    - taxi\n    exclude:\n    - truck\n"
        "    threshold: 0.6\n  dog:\nagainst:   # nothing\n...\n",
    ],
)
def test_forms_of_a_file(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == LabelSet((LabelSpec("cat"), CAR, LabelSpec("dog")))


def test_against_in_a_file(tmp_path: Path) -> None:
    assert read(tmp_path, "labels: [cat]\nagainst: [grass, sky]") == LabelSet((LabelSpec("cat"),), ("grass", "sky"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["labels.yml", "labels.txt", "labels"])
def test_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    text = "château\r\n犬\r\n" if name.endswith("txt") else "- château\r\n- 犬\r\n"
    assert read(tmp_path, text.encode(encoding), name).names == ("château", "犬")


@pytest.mark.parametrize("name", ["labels.TXT", "coco.names"])
def test_a_text_file_has_a_name_per_line(tmp_path: Path, name: str) -> None:
    read(tmp_path, "# animals\ncat\n\n  black, white dog \nno\n12\n", name)
    labels = label_set(str(tmp_path / name))
    assert labels.names == ("cat", "black, white dog", "no", "12")
    with pytest.raises(PromptError, match=r"labels\.txt': label 2: .*names something"):
        read(tmp_path, "cat\n\n--\n", "labels.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no labels"),
        ("[]", "no labels"),
        ("labels:", "holds no labels"),
        ("cat", "labels must be a list or a mapping"),
        ("- cat\n- no", "label 2: .* must be a text, not False.*quote it"),
        ("- cat\n- 12", "label 2: .*not 12"),
        ("- 2020-01-01", "not datetime.date"),
        ("- ''", "names something"),
        ("cat:\non:\n", "not True"),
        ("- [cat, dog]", "a string, not list"),
        ("- cat\n- Cat", "given twice"),
        ("cat:\ndog:\ncat: [kitty]", "'cat' is given twice"),
        ("- name: cat\n  name: dog", "'name' is given twice"),
        ("- name: cat\n  color: red", "no field 'color'; there are name, synonyms, exclude, threshold"),
        ("cat: {name: dog}", "no field 'name'; there are synonyms, exclude, threshold"),
        ("- name: cat\n  1: red", "no field 1; there are name"),
        (f"cat: {{threshold: 1{'0' * 400}}}", "threshold .*must be"),
        ("- synonyms: [cat]", "label 1 has fields but no 'name'"),
        ("car: taxi", "the value of 'car' must be empty, a list"),
        ("- name: car\n  synonyms: taxi", "synonyms of 'car' must be a list of texts"),
        ("- name: car\n  synonyms: [1]", "must be a text, not 1"),
        ("- name: car\n  exclude: [Car]", "label 1: 'Car' is both looked for and excluded"),
        ("- name: car\n  threshold: high", "threshold of 'car' must be a number"),
        ("- name: car\n  threshold: .nan", "must be a number in"),
        ("labels: [cat]\nagain: [sky]", "no field 'again'; there are labels, against"),
        ("labels: [cat]\nagainst: [cat]", "alone in its label set"),
        ("cat:\nagainst: [sky]", "'against' needs 'labels' beside it"),
        ("- *a", "line 1: not YAML"),
        ("- !!python/object/apply:os.system [echo]", "not YAML"),
        ("- !!binary Y2F0", "a string, not bytes"),
        ("<<: {cat: }", "not YAML"),
        ("[cat", "line 1: not YAML"),
        ('- "\\UFFFFFFFF"', "not YAML"),
        ("- cat\x00", "not YAML"),
        ("- " * 5000, "not YAML"),
        ("{a: " * 5000, "not YAML"),
        (b"\xff\xfecat", "not text in UTF-8"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text)
    assert "labels.yaml" in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_json_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    for text, message in (
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[", "not JSON"),
        ('["a", 1]', "not 1"),
        ("[" * 10**5, "not JSON"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, text, "labels.json")


def test_laughs_stay_few(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, he]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(InputError, match="a string, not list"):
        read(tmp_path, "\n".join(lines))


def test_size_is_bounded(tmp_path: Path) -> None:
    assert read(tmp_path, "#" * (MOST_BYTES - 4) + "\ncat", "l.txt").names == ("cat",)
    with pytest.raises(InputError, match="larger than 1,000,000 bytes"):
        read(tmp_path, "#" * (MOST_BYTES - 3) + "\ncat", "l.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"the label file .* cannot be read"):
            load_labels(path)


# any file

PIECES = [*"ab- :,[]{}&*!|>'\"#%@?<~.0123456789\n\t\\", "\n- ", "\n  ", "labels:", "name: ", "threshold: ", "é", "\ud800"]
YAMLISH = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
NAMES = st.one_of(st.text(max_size=8), st.sampled_from(["cat", "dog", "labels", "against", "name", "synonyms", "threshold"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)
CONTENT = st.one_of(
    st.binary(max_size=200),
    YAMLISH.map(lambda text: text.encode("utf-8", "surrogatepass")),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
)


@settings(max_examples=100, deadline=None)
@given(content=CONTENT, suffix=st.sampled_from([".yaml", ".txt"]))
def test_any_file_gives_labels_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"labels{suffix}"
    path.write_bytes(content)
    try:
        labels = load_labels(path)
    except Text2SamError:
        return
    for group in labels.groups():
        queries = parse_targets(group.targets)
        assert tuple(query.label for query in queries) == tuple(label.name for label in group.labels)
        check_exclude(group.exclude, queries)
        thresholds_of(group.thresholds, queries, 0.5)
    assert json.loads(json.dumps(labels.to_json())) == labels.to_json()


@settings(max_examples=100, deadline=None)
@given(given_=st.one_of(st.text(), st.lists(st.one_of(st.text(), st.integers(), st.none()))))
def test_any_comma_list_gives_labels_or_an_error_of_ours(given_: Any) -> None:
    try:
        labels = label_set(given_)
    except Text2SamError:
        return
    assert labels.names == tuple(query.label for query in parse_targets([label.target for label in labels.labels]))

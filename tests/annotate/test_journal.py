"""The journal of a folder job: torn, damaged, forged and locked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from text2sam import lines
from text2sam.annotate import journal as module
from text2sam.annotate.journal import STATE, Chunk, Journal, Record, RunFolder, chunks_of, differences
from text2sam.annotate.sources import ImageItem
from text2sam.errors import InputError, OutputError, StateError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject

SETTINGS: dict[str, Any] = {"labels": [{"name": "cat", "synonyms": []}], "model": {"clip": "1", "sam": "2"}, "tiles": False}


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time of these tests would go by in waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def item(name: str, size: int = 1, time: int = 2) -> ImageItem:
    return ImageItem(name, Path("/images") / name, size, time)


def record(name: str, *, failed: bool = False) -> Record:
    if failed:
        return Record(name, reason="it is broken")
    mask = np.zeros((3, 5), bool)
    mask[1, 2:4] = True
    image = AnnotatedImage(name, 3, 5, (AnnotatedObject.from_mask("cat", mask, 0.1 + 0.2),))
    return Record(name, image, {"cat": 0.1 + 0.2})


def chunk(*names: str) -> Chunk:
    return Chunk(tuple(item(name) for name in names))


CHUNKS = [chunk("a", "b"), chunk("c"), chunk("d", "e")]


def written(path: Path) -> bytes:
    """A journal of three chunks."""
    with Journal(path) as journal:
        for one in CHUNKS:
            journal.append(one, [record(i.path, failed=i.path == "b") for i in one.items])
    return path.read_bytes()


def found(path: Path) -> list[int]:
    with Journal(path) as journal:
        return [k for k, one in enumerate(CHUNKS) if one.key in journal and journal.read(one.key)]


# records and chunks


@pytest.mark.parametrize("failed", [False, True])
def test_records_come_back_as_they_were(failed: bool) -> None:
    one = record("ä b/c.png", failed=failed)
    assert Record.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"path": "a"},
        {"path": "../a", "reason": "x"},
        {"path": "a", "reason": ""},
        {"path": "a", "reason": 3},
        {"image": {}, "presence": {}},
        {"image": record("a").to_json()["image"], "presence": {"cat": 2}},
        {"image": record("a").to_json()["image"], "presence": [1]},
        {"image": record("a").to_json()["image"], "presence": {"cat": float("nan")}},
    ],
)
def test_what_is_no_record(value: Any) -> None:
    with pytest.raises(InputError):
        Record.from_json(value)


def test_a_record_is_of_its_own_image() -> None:
    with pytest.raises(InputError, match="another one"):
        Record("b", record("a").image)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, None])
def test_sizes_of_chunks(size: Any) -> None:
    with pytest.raises(InputError, match="batch_size"):
        chunks_of([item("a")], size)


def test_chunks_hold_every_image_once_in_order() -> None:
    items = [item(f"{k:04}.png") for k in range(300)]
    for size in (1, 3, 8, 1000):
        chunks = chunks_of(items, size)
        assert [i for c in chunks for i in c.items] == items
        assert max(map(len, chunks)) <= size
        assert chunks == chunks_of(items, size)
        assert sum(map(len, chunks)) / len(chunks) > 0.6 * min(size, 100)
    assert chunks_of([], 8) == []


def test_one_file_more_changes_few_chunks() -> None:
    items = [item(f"{k:04}.png") for k in range(1000)]
    keys = {c.key for c in chunks_of(items, 8)}
    for k in (0, 77, 500):
        more = sorted([*items, item(f"{k:04}a.png")], key=lambda i: i.path)
        fewer = items[:k] + items[k + 1 :]
        for changed in (more, fewer):
            new = {c.key for c in chunks_of(changed, 8)}
            assert 1 <= len(new - keys) <= 10


def test_a_chunk_stands_for_paths_sizes_and_times() -> None:
    keys = {Chunk(items).key for items in [(item("a"),), (item("b"),), (item("a", 2),), (item("a", 1, 3),), (item("a"),) * 2]}
    assert len(keys) == 5


# the file


def test_what_was_appended_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        assert len(journal) == 0
        with pytest.raises(StateError, match="not finished"):
            journal.read(CHUNKS[0].key)
    written(path)
    with Journal(path) as journal:
        assert journal.damaged == 0
        assert [journal.failed(one.key) for one in CHUNKS] == [1, 0, 0]
        assert journal.read(CHUNKS[2].key) == [record("d"), record("e")]
        # of two lines for one chunk the later counts
        journal.append(CHUNKS[0], [record("a"), record("b")])
        assert journal.read(CHUNKS[0].key) == [record("a"), record("b")]
    with Journal(path) as journal:
        assert journal.failed(CHUNKS[0].key) == 0
        with pytest.raises(InputError, match="one record per image"):
            journal.append(CHUNKS[0], [record("a")])


def test_torn_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    ends = [k + 1 for k, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 3
    for cut in range(ends[0] - 3, len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = [end for end in ends if end <= cut]
        with Journal(path) as journal:
            assert [one.key in journal for one in CHUNKS] == [k < len(kept) for k in range(3)]
            assert path.read_bytes() == whole[: kept[-1] if kept else 0]
            for one in CHUNKS[len(kept) :]:
                journal.append(one, [record(i.path, failed=i.path == "b") for i in one.items])
        assert path.read_bytes() == whole


def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    first, second = (k + 1 for k, byte in enumerate(whole) if byte == 10 and k < len(whole) - 1)
    for k in range(first, second):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        # a lost line end joins two lines
        assert found(path) == ([0] if k == second - 1 else [0, 2])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=200), place=st.integers(0, 3))
def test_random_bytes_among_the_lines(tmp_path: Path, junk: bytes, place: int) -> None:
    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:place], junk, *lines[place:]]))
    with Journal(path) as journal:
        kept = [one for one in CHUNKS if one.key in journal]
        assert len(kept) >= 2  # junk without a line end spoils the line behind it
        for one in kept:
            assert [r.path for r in journal.read(one.key)] == [i.path for i in one.items]
        again = chunk("z")
        journal.append(again, [record("z")])
    with Journal(path) as journal:
        assert journal.read(again.key) == [record("z")]


def sealed(key: str, text: str) -> bytes:
    body = f"{key} 0 {text}".encode()
    return hashlib.blake2b(body, digest_size=8).hexdigest().encode() + b" " + body + b"\n"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "reason", "image"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30).filter(lambda t: "\n" not in t) | JSON.map(json.dumps) | st.just("[" * 100_000))
def test_forged_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "journal"
    path.write_bytes(sealed(CHUNKS[0].key, text.encode("utf-8", "replace").decode()))
    with Journal(path) as journal:
        try:
            journal.read(CHUNKS[0].key)
        except InputError:
            return
    assert json.loads(text) == []


def test_damage_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    with Journal(path) as journal:
        with open(path, "r+b") as file:
            file.seek(60)
            file.write(b"###")
        with pytest.raises(InputError, match="start again"):
            journal.read(CHUNKS[0].key)
        os.truncate(path, 70)
        with pytest.raises(InputError, match="start again"):
            journal.read(CHUNKS[2].key)
    assert found(path) == []


@pytest.mark.parametrize("name", ["fsync", "write"])
def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "journal"
    whole = written(path)
    more = chunk("x", "y")
    with Journal(path) as journal:

        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        if name == "fsync":
            monkeypatch.setattr(lines.os, "fsync", full)
        else:
            real = journal._lines.file
            wrapped = type("Half", (), {"__getattr__": lambda _, n: getattr(real, n)})()
            writes = iter([real.write, real.write, full])
            wrapped.write = lambda data: next(writes)(data[:7])
            monkeypatch.setattr(journal._lines, "file", wrapped)
        with pytest.raises(OutputError, match="No space left on device"):
            journal.append(more, [record(i.path) for i in more.items])
        monkeypatch.undo()
        assert path.read_bytes() == whole
        assert more.key not in journal
        journal.append(more, [record(i.path) for i in more.items])
    with Journal(path) as journal:
        assert len(journal.read(more.key)) == len(more)


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "journal"
    path.mkdir() if what == "folder" else os.mkfifo(path)
    with pytest.raises(OutputError, match="no ordinary file"):
        Journal(path)


# the run's folder


def test_a_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with RunFolder(out, SETTINGS, notes={"root": "x"}) as folder:
        assert folder.before == {"root": "x"}
        folder.journal.append(CHUNKS[1], [record("c")])
    with RunFolder(out, dict(reversed(SETTINGS.items())), notes={"root": "y"}) as folder:
        assert folder.before == {"root": "x"}
        assert CHUNKS[1].key in folder.journal
    assert json.loads((out / STATE / "run.json").read_text())["settings"] == SETTINGS
    with RunFolder(out, {"labels": []}, overwrite=True) as folder:
        assert len(folder.journal) == 0
    assert json.loads((out / STATE / "run.json").read_text())["settings"] == {"labels": []}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tiles": "auto"}, 'tiles was false, now is "auto"'),
        ({"labels": [{"name": "dog", "synonyms": []}]}, r'labels was \["cat"\], now is \["dog"\]'),
        ({"labels": [{"name": "cat", "synonyms": ["tom"]}]}, "tom"),
        ({"model": {"clip": "1", "sam": "3"}}, 'model.sam was "2", now is "3"'),
        ({"new": 1}, "new was not set, now is 1"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    RunFolder(tmp_path, SETTINGS).close()
    before = (tmp_path / STATE / "run.json").read_bytes()
    with pytest.raises(InputError, match=told) as caught:
        RunFolder(tmp_path, SETTINGS | change)
    assert "--overwrite" in str(caught.value)
    assert (tmp_path / STATE / "run.json").read_bytes() == before
    RunFolder(tmp_path, SETTINGS).close()  # the lock is free again


def test_differences_of_equal_settings() -> None:
    assert differences(SETTINGS, json.loads(json.dumps(SETTINGS))) == []


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS), pytest.raises(OutputError, match="another process works in"):
        RunFolder(tmp_path, SETTINGS, overwrite=True)
    RunFolder(tmp_path, SETTINGS).close()


def test_a_journal_without_settings_is_not_trusted(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.journal.append(CHUNKS[1], [record("c")])
    (tmp_path / STATE / "run.json").unlink()
    with pytest.raises(InputError, match="cannot be carried on"):
        RunFolder(tmp_path, SETTINGS)
    with RunFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        assert len(folder.journal) == 0


RUNS = (
    st.binary(max_size=100)
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.builds(lambda v, s: json.dumps({"version": v, "settings": s, "notes": s}).encode(), st.integers(0, 2), JSON)
    | st.sampled_from([b"[" * 100_000, b'{"version": 1, "settings": ' + b"9" * 5000 + b"}", b"\xff\xfe{}"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=RUNS, lines=st.binary(max_size=100))
def test_random_bytes_as_an_earlier_run(tmp_path: Path, run: bytes, lines: bytes) -> None:
    state = tmp_path / STATE
    state.mkdir(exist_ok=True)
    (state / "run.json").write_bytes(run)
    (state / "journal.jsonl").write_bytes(lines)
    try:
        RunFolder(tmp_path, SETTINGS).close()
    except Text2SamError:
        assert (state / "run.json").read_bytes() == run
    with RunFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        assert len(folder.journal) == 0


@pytest.mark.parametrize("name", ["", "run.json", "journal.jsonl", "lock"])
def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    out = tmp_path / "out"
    (out / STATE).mkdir(parents=True) if name else out.mkdir()
    elsewhere.mkdir()
    (out / STATE / name).symlink_to(elsewhere / name)
    with pytest.raises(OutputError, match="not in the folder"):
        RunFolder(out, SETTINGS, overwrite=True)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["out", f"out/{STATE}"])
def test_a_file_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="cannot write in"):
        RunFolder(tmp_path / "out", SETTINGS)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_read_only_folder_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        RunFolder(tmp_path, SETTINGS)

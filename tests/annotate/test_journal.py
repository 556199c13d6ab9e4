"""The journal: killed in the middle of a commit, damaged, forged and locked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import forked

from text2sam.annotate.journal import JOURNAL, STATE, Chunk, Journal, Record, RunFolder, chunks_of
from text2sam.annotate.sources import ImageItem
from text2sam.errors import InputError, OutputError, StateError, Text2SamError
from text2sam.export.annotated import AnnotatedImage, AnnotatedObject

SETTINGS: dict[str, Any] = {"labels": [{"name": "cat", "synonyms": []}], "model": {"clip": "1", "sam": "2"}, "tiles": False}


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


# records and chunks


@pytest.mark.parametrize("failed", [False, True])
def test_records_come_back_as_they_were(failed: bool) -> None:
    before = record("ä b/c.png", failed=failed)
    assert Record.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"path": "a"},
        {"path": "../a", "reason": "x"},
        {"path": "a", "reason": ""},
        {"image": {}, "presence": {}},
        {"image": record("a").to_json()["image"], "presence": {"cat": 2}},
        {"image": record("a").to_json()["image"], "presence": {"cat": float("nan")}},
    ],
)
def test_values_that_are_no_record(value: Any) -> None:
    with pytest.raises(InputError):
        Record.from_json(value)


def test_chunks_hold_every_image_once_in_order() -> None:
    items = [item(f"{k:04}.png") for k in range(300)]
    for size in (1, 3, 8, 1000):
        chunks = chunks_of(items, size)
        assert [i for c in chunks for i in c.items] == items
        assert max(map(len, chunks)) <= size
        assert sum(map(len, chunks)) / len(chunks) > 0.6 * min(size, 100)
    assert chunks_of([], 8) == []
    for size in (0, True, 2.0):
        with pytest.raises(InputError, match="batch_size"):
            chunks_of(items, size)  # type: ignore[arg-type]


def test_one_file_more_or_less_changes_few_chunks() -> None:
    items = [item(f"{k:04}.png") for k in range(1000)]
    keys = {c.key for c in chunks_of(items, 8)}
    for k in (0, 77, 500):
        more = sorted([*items, item(f"{k:04}a.png")], key=lambda i: i.path)
        for changed in (more, items[:k] + items[k + 1 :]):
            assert 1 <= len({c.key for c in chunks_of(changed, 8)} - keys) <= 10


def test_the_key_of_a_chunk_stands_for_paths_sizes_and_times() -> None:
    variants = [(item("a"),), (item("b"),), (item("a", 2),), (item("a", 1, 3),), (item("a"),) * 2]
    assert len({Chunk(items).key for items in variants}) == 5


# the file


def test_results_are_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    with Journal(path, SETTINGS, notes={"root": "x"}) as journal:
        assert len(journal) == 0
        with pytest.raises(StateError, match="no result"):
            journal.read("a")
        journal.append("a", {"é": [1, None, 0.1]})
        journal.append("b", 1)
        journal.append("b", 2)
    with Journal(path, dict(reversed(SETTINGS.items())), notes={"root": "y"}) as journal:
        assert (len(journal), journal.notes) == (2, {"root": "x"})
        assert (journal.read("a"), journal.read("b")) == ({"é": [1, None, 0.1]}, 2)
    with Journal(path, {"labels": []}, overwrite=True) as journal:
        assert len(journal) == 0
    with Journal(path, {"labels": []}) as journal:
        assert "a" not in journal
    with Journal(None, {}) as journal:
        journal.append("a", 1)
        assert journal.read("a") == 1


@pytest.mark.parametrize("instruction", [0, 1, 2, 3, 4, 10_000])
def test_killed_in_the_middle_of_a_commit(tmp_path: Path, instruction: int) -> None:
    """SQLite calls back before every instruction of a statement; the kill comes at one of them."""
    path = tmp_path / "journal"
    with Journal(path, SETTINGS) as journal:
        journal.append("a", "x" * 10_000)

    def work() -> None:
        left = instruction

        def kill() -> int:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return 0

        with Journal(path, SETTINGS) as journal:
            journal._database.set_progress_handler(kill, 1)
            journal.append("b", "y" * 100_000)
            journal._database.set_progress_handler(None, 1)
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL
    with Journal(path, SETTINGS) as journal:
        assert journal.read("a") == "x" * 10_000
        assert "b" not in journal or journal.read("b") == "y" * 100_000
        assert instruction not in (0, 10_000) or ("b" in journal) == bool(instruction)
        journal.append("b", "z")
        assert journal.read("b") == "z"


def test_commits_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of conftest.py
    with Journal(tmp_path / "journal", SETTINGS) as journal:
        assert journal._database.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, SETTINGS) as journal:
        journal.append("a", 1)
        journal._database.execute("PRAGMA max_page_count = 8")
        with pytest.raises(OutputError, match=r"full.*kept"):
            journal.append("b", "x" * 1_000_000)
        assert "b" not in journal
        journal._database.execute("PRAGMA max_page_count = 1000")
        journal.append("b", 2)
    with Journal(path, SETTINGS) as journal:
        assert (journal.read("a"), journal.read("b")) == (1, 2)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"tiles": "auto"}, 'tiles was false, now is "auto"'),
        ({"labels": [{"name": "dog", "synonyms": []}]}, r'labels was \["cat"\], now is \["dog"\]'),
        ({"labels": [{"name": "cat", "synonyms": ["tom"]}]}, "tom"),
        ({"model": {"clip": "1", "sam": "3"}}, 'model.sam was "2", now is "3"'),
        ({"new": 1}, "new was not set, now is 1"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], shown: str) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.append("a", 1)
    with pytest.raises(InputError, match=shown) as caught:
        RunFolder(tmp_path, SETTINGS | change)
    assert "--overwrite" in str(caught.value)
    with RunFolder(tmp_path, SETTINGS) as folder:  # the lock is free again, and nothing was lost
        assert "a" in folder


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS), pytest.raises(OutputError, match="another process works in"):
        RunFolder(tmp_path, SETTINGS, overwrite=True)
    RunFolder(tmp_path, SETTINGS).close()


def test_records_of_another_chunk_are_refused(tmp_path: Path) -> None:
    first, second = chunk("a", "b"), chunk("c")
    with RunFolder(tmp_path, SETTINGS) as folder:
        with pytest.raises(InputError, match="one record per image"):
            folder.commit(first, [record("a")])
        folder.commit(first, [record("a"), record("b", failed=True)])
        assert folder.records(first) == [record("a"), record("b", failed=True)]
        for value in ([], 3, [{}], [record("d").to_json()]):
            folder.append(second.key, value)
            with pytest.raises(InputError, match="was damaged"):
                folder.records(second)


# forged and damaged


ITEMS = [chunk(name) for name in "abc"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal of three chunks."""
    out = tmp_path_factory.mktemp("journal")
    with RunFolder(out, SETTINGS) as folder:
        for each in ITEMS:
            folder.commit(each, [record(each.items[0].path)])
    return (out / STATE / JOURNAL).read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=300), place=st.integers(0, 40_000), cut=st.booleans())
def test_a_damaged_file_is_an_error_of_ours_and_can_be_overwritten(
    tmp_path: Path, whole: bytes, junk: bytes, place: int, cut: bool
) -> None:
    path = tmp_path / STATE / JOURNAL
    path.parent.mkdir(exist_ok=True)
    place %= len(whole)
    path.write_bytes(whole[:place] + junk + (b"" if cut else whole[place + len(junk) :]))
    try:
        with RunFolder(tmp_path, SETTINGS) as folder:
            for each in ITEMS:
                if each.key in folder:
                    folder.records(each)
    except Text2SamError:
        pass
    with RunFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        assert len(folder) == 0


def test_a_header_that_forbids_writing_can_be_overwritten(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / STATE / JOURNAL
    path.parent.mkdir()
    path.write_bytes(whole[:18] + b"\x09" + whole[19:])  # the version of the format for writing
    with RunFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        assert len(folder) == 0


@pytest.mark.parametrize(
    "statement", ["DROP TABLE run", "UPDATE run SET settings = '['", "UPDATE run SET version = 1", "DROP TABLE results"]
)
def test_forged_tables(tmp_path: Path, statement: str) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.append("a", 1)
    database = sqlite3.connect(tmp_path / STATE / JOURNAL)
    database.execute(statement)
    database.commit()
    database.close()
    with contextlib.suppress(InputError), RunFolder(tmp_path, SETTINGS) as folder:
        assert "a" not in folder
    with RunFolder(tmp_path, SETTINGS, overwrite=True) as folder:
        assert len(folder) == 0


@pytest.mark.parametrize("name", ["", JOURNAL, f"{JOURNAL}-journal", f"{JOURNAL}.lock"])
def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
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


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_a_journal_that_is_no_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "journal"
    path.mkdir() if what == "folder" else os.mkfifo(path)
    with pytest.raises(OutputError, match="not a regular file"):
        Journal(path, {})

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from text2sam.annotate.report import LONGEST_REASON, Failure, Report
from text2sam.errors import ImageError, OutputError
from text2sam.image import read_image

NOTHING: dict[str, Any] = {
    "done": 0,
    "empty": 0,
    "failed": (),
    "skipped": 0,
    "objects": {},
    "seconds": 0.0,
    "images_per_second": 0.0,
}


def report(**fields: Any) -> Report:
    return Report(**{**NOTHING, **fields})


def test_the_table() -> None:
    full = report(
        done=380,
        empty=20,
        failed=(Failure("b.png", "no"), Failure("a.png", "no")),
        skipped=9,
        objects={"dog": 12, "cat": 400},
        seconds=12.34,
        images_per_second=32.5,
        notes=("2 holes\nwere lost",),
    )
    assert full.table() == (
        "images   411\n"
        "done     380  something was found\n"
        "empty    20   nothing was found\n"
        "failed   2\n"
        "skipped  9    finished in an earlier run\n"
        "objects  412\n"
        "dog      12\n"
        "cat      400\n"
        "12.3 s in all, 32.50 images/s while annotating\n"
        "2 holes were lost\n"
        "failed, 2: no\n"
        "  a.png\n"
        "  b.png"
    )


def test_json_holds_everything(tmp_path: Path) -> None:
    failed = tuple(Failure(f"{i:03}.png", f"reason {i}") for i in range(100))
    full = report(done=1, failed=failed, objects={"cat": 3}, seconds=2, images_per_second=50.5, notes=("a note",))
    saved = json.loads(full.save(tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert saved == full.to_json()
    assert saved["images"] == 101
    assert saved["failed"] == [{"path": f"{i:03}.png", "reason": f"reason {i}"} for i in range(100)]
    assert (saved["objects"], saved["seconds"], saved["notes"]) == ({"cat": 3}, 2.0, ["a note"])
    with pytest.raises(OutputError):
        full.save(tmp_path)


def test_rejected_images_are_counted_on_their_own() -> None:
    some = report(failed=(Failure("a.png", "no"),), rejected=("c.png", "b.png"))
    assert some.images == 3
    assert "rejected  2  left out by a person" in some.table().splitlines()
    assert "rejected" not in report(done=1).table(), "who never opens the page reads nothing of it"
    assert some.to_json()["rejected"] == ["b.png", "c.png"]


# failures


def test_reasons_are_one_short_line() -> None:
    assert Failure("a", "x\n\ty\x1b[2J\ud800").reason == "x y\\x1b[2J\\ud800"
    assert Failure("a", " \n").reason == "no reason was given"
    long = Failure("a", "x" * 9999 + "end").reason
    assert len(long) == LONGEST_REASON
    assert long.endswith("end")


def test_reasons_of_broken_files_fall_together(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    names = ["a.png", "it's.png", 'say "x".png', "b" * 200 + ".png", "new\nline.png", "back\\slash.png", "日本.png"]
    failed = []
    for k, name in enumerate(names):
        folder = tmp_path / f"folder{k}"
        folder.mkdir()
        for content, sub in ((b"", "0"), (b"no image", "1"), (data[: 60 + k], "2")):
            path = folder / sub / name
            path.parent.mkdir()
            path.write_bytes(content)
            with pytest.raises(ImageError) as caught:
                read_image(path)
            failed.append(Failure(f"folder{k}/{sub}/{name}", str(caught.value)))
    assert len({failure.reason for failure in failed}) == len(failed)
    text = report(failed=tuple(failed)).table()
    headers = [line for line in text.splitlines() if line.startswith("failed, ")]
    assert len(headers) == 3
    assert all(header.startswith("failed, 7: the file is ") for header in headers)
    assert "\x1b" not in text
    assert text.count("  and 4 more") == 3


def test_groups_by_count_and_a_single_one_in_full() -> None:
    failed = [Failure(f"{i}.png", f"'/x/{i}.png' has {i} bytes") for i in range(5)] + [Failure("z.png", "'/x/z.png' is 7 wide")]
    lines = report(failed=tuple(failed)).table().splitlines()
    assert lines[-7:] == [
        "failed, 5: the file has N bytes",
        "  0.png",
        "  1.png",
        "  2.png",
        "  and 2 more",
        "failed, 1: '/x/z.png' is 7 wide",
        "  z.png",
    ]


def test_files_that_are_gone() -> None:
    failed = tuple(Failure(f"{i}.png", f"there is no file '/x/{i}.png'; check the path") for i in range(2))
    assert "failed, 2: there is no such file; check the path" in report(failed=failed).table()


def test_the_table_is_bounded() -> None:
    words = ["".join(chr(97 + int(d)) for d in str(i)) for i in range(100)]
    failed = tuple(Failure(f"{word}{i}.png", f"reason {word}") for word in words for i in range(2))
    lines = report(failed=failed).table().splitlines()
    headers = [line for line in lines if line.startswith("failed, ")]
    assert sum(int(line.split()[1].rstrip(":")) for line in headers) == 200  # every failure is counted
    assert sum(line.endswith(".png") for line in lines) == 20
    assert len(headers) == 21


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text(), st.text()), max_size=6), st.dictionaries(st.text(), st.integers(0, 9), max_size=3), st.text()
)
def test_any_words_can_be_shown(
    tmp_path_factory: pytest.TempPathFactory, failed: list[tuple[str, str]], objects: dict[str, int], note: str
) -> None:
    full = report(failed=tuple(Failure(*fields) for fields in failed), objects=objects, notes=(note,))
    lines = full.table().split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(line.encode() for line in lines if line)
    path = full.save(tmp_path_factory.getbasetemp() / "report.json")
    assert json.loads(path.read_text(encoding="utf-8")) == full.to_json()

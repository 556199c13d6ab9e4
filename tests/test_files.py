from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from text2sam.errors import InputError, OutputError
from text2sam.files import atomic_path, check_file, check_folder, write_bytes, write_json, write_png, write_text

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and links are POSIX's")


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    assert write_bytes(str(path), b"\x00\xff") == path
    assert path.read_bytes() == b"\x00\xff"
    assert listing(path.parent) == ["c.bin"]


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("a much longer text from before")
    write_text(path, "å\nb\r\n")
    assert path.read_bytes() == "å\nb\r\n".encode()


def test_target_is_untouched_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    path.write_bytes(b"old")
    with atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert listing(tmp_path) == ["c.png"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_exception_in_the_block_leaves_no_trace(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
def test_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OutputError, match=r"c\.txt.*No space left"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["c.txt"]


def test_flushes_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("replace"), replace(a, b))[1])
    write_bytes(tmp_path / "c", b"1")
    assert seen == ["fsync", "replace"]


def test_oserror_in_the_block_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"c\.txt.*File too large"), atomic_path(tmp_path / "c.txt"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert listing(tmp_path) == []


def test_output_error_of_an_inner_write_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="inner"), atomic_path(tmp_path / "outer"):
        raise OutputError("cannot write inner")


def test_folders_and_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"folder.*is a folder"):
        write_bytes(tmp_path / "folder", b"")
    with pytest.raises(OutputError, match="file"):
        write_bytes(tmp_path / "file" / "below", b"")
    with pytest.raises(OutputError, match="is a folder"):
        write_bytes("", b"")
    with pytest.raises(OutputError, match="null"):
        write_bytes(tmp_path / "a\0b", b"")
    with pytest.raises(OutputError, match="None"):
        write_bytes(None, b"")  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="too long"):
        write_bytes(tmp_path / ("n" * 300), b"")
    assert listing(tmp_path) == ["file", "folder"]


@POSIX
def test_devices_are_refused_not_replaced() -> None:
    with pytest.raises(OutputError, match="device"):
        write_bytes(os.devnull, b"")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@POSIX
def test_read_only_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.txt"
    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda p, mode: bool(os.stat(p).st_mode & 0o200))  # root may write anything
    with pytest.raises(OutputError, match="read-only"):
        write_text(path, "new")
    assert path.read_text() == "old"


@POSIX
def test_places_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    check_folder(tmp_path / "not" / "yet")
    check_file(tmp_path / "not" / "yet.json")
    check_file(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name not in ("locked", "file"))  # root may write anything
    for check, path, told in (
        (check_folder, tmp_path / "locked" / "out", "no permission to write in .*locked"),
        (check_file, tmp_path / "locked" / "a.html", "no permission to write in .*locked"),
        (check_folder, tmp_path / "file" / "out", "file' is a file"),
        (check_file, tmp_path / "file" / "a.html", "file' is a file"),
        (check_file, tmp_path / "file", "read-only"),
        (check_file, tmp_path, "is a folder"),
        (check_file, tmp_path / ("a" * 300), "too long"),
        (check_file, tmp_path / "loop", "symbolic links"),
        (check_file, 5, "5"),
    ):
        with pytest.raises(OutputError, match=told):
            check(path)  # type: ignore[operator]
    assert listing(tmp_path) == ["file", "locked", "loop"]


@POSIX
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_honours_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "c", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == mode


@POSIX
def test_mode_of_a_replaced_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"")
    path.chmod(0o640)
    write_bytes(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@POSIX
def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_longest_name_fits(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_bytes(path, b"1")
    assert path.read_bytes() == b"1"


def test_json_layout(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "å", "a": [1, 2.5, None, True]})
    expected = '{\n  "z": "å",\n  "a": [\n    1,\n    2.5,\n    null,\n    true\n  ]\n}\n'
    assert (tmp_path / "a.json").read_bytes() == expected.encode()


def test_json_numpy_and_undecodable_names(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    obj = {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "a": np.arange(3), "n": name}
    write_json(tmp_path / "a.json", obj)
    read = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert read == {"f": 0.5, "i": 3, "b": True, "a": [0, 1, 2], "n": name}


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), np.array([np.nan]), {1, 2}, object()])
def test_json_refuses(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {"v": value})
    assert listing(tmp_path) == []


def test_text_refuses_surrogates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt.*UTF-8"):
        write_text(tmp_path / "a.txt", "\udc80")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "bool"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3)])
def test_png_grey_round_trip(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    array = values % 2 == 0 if dtype == "bool" else values.astype(dtype)
    # the suffix does not choose the format
    path = write_png(tmp_path / "a.dat", array)
    with Image.open(path) as image:
        assert image.format == "PNG"
        read = np.asarray(image)
    expected = array * 255 if dtype == "bool" else array
    assert image.mode.startswith("I") == ("2" in dtype or "16" in dtype)  # 16 bits, which older Pillows read as int32
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_colour_round_trip(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 4, channels)).astype(np.uint8)[::2, ::-1]
    with Image.open(write_png(tmp_path / "a.png", array)) as image:
        assert np.array_equal(np.asarray(image), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((2, 2, 3), np.uint16),
        np.zeros((2, 2), np.float32),
        [[0, 1]],
    ],
    ids=lambda a: f"{a.dtype}{a.shape}" if isinstance(a, np.ndarray) else "list",
)
def test_png_refuses(tmp_path: Path, array: Any) -> None:
    with pytest.raises(InputError, match="PNG is written from"):
        write_png(tmp_path / "a.png", array)
    assert listing(tmp_path) == []

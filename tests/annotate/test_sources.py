from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2sam.annotate import sources
from text2sam.annotate.sources import UNKNOWN, ImageItem, Listing, count_endings, find_images
from text2sam.errors import InputError, Text2SamError
from text2sam.export.annotated import check_relative

POSIX = pytest.mark.skipif(os.name != "posix", reason="names, links and permissions are POSIX's")


def fill(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def paths(found: Listing) -> list[str]:
    return [item.path for item in found]


def reasons(found: Listing) -> dict[str, str]:
    assert len(dict(found.refused)) == len(found.refused)
    return dict(found.refused)


# folders


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no images in .*it holds no files$"):
        find_images(tmp_path)
    fill(tmp_path, "notes.txt", "sub/a.png", ".hidden.png")
    with pytest.raises(InputError, match=r"of 1 file none .*its folders \(1\) as well, say recursive$"):
        find_images(tmp_path)
    fill(tmp_path, "b.png")
    with pytest.raises(InputError, match=r"^of 2 images in .* none matches '\*\.gif'$"):
        find_images(tmp_path, recursive=True, glob="*.gif")


def test_no_folder(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    for root, message in (
        (tmp_path / "none", "cannot be read: No such"),
        (tmp_path / "a.png", "is a file"),
        ("a\0b", "cannot be"),
    ):
        with pytest.raises(InputError, match=message):
            find_images(root)


@pytest.mark.parametrize(
    "path", ["", "/a.png", "../a.png", "a/../b.png", "a\\b.png", "c:/a.png", "a//b.png", "\udcff.png", "a\0b"]
)
def test_items_stay_in_the_folder(path: str) -> None:
    with pytest.raises(InputError):
        ImageItem(path, Path("/x"), 0, 0)


def test_what_is_left_out_is_counted_by_its_ending(tmp_path: Path) -> None:
    fill(tmp_path, "a.PNG", "b.txt", "c.TXT", "sub/d.pdf", "sub/e", ".hidden.txt")
    assert find_images(tmp_path, recursive=True).others == {"": 1, ".pdf": 1, ".txt": 2}
    assert find_images(tmp_path).others == {".txt": 2}
    assert find_images(tmp_path, glob="[ab]*").others == {".txt": 1}, "others were not asked for"
    others = {".txt": 2, "": 3, **{f".{k}": 1 for k in range(9)}}
    assert count_endings(others) == "3 without an ending, 2 .txt, 1 .0, 1 .1, 1 .2, 6 others"


def test_order_and_choice(tmp_path: Path) -> None:
    names = [
        "b.png",
        "a.JPG",
        "Z.webp",
        "é.png",
        "a/b.png",
        "a.png",
        "a-b.png",
        "-rf.png",
        "b b .gif",
        "日/本.tiff",
        "it's.ppm",
    ]
    fill(tmp_path, *names, "x.txt", "png", "x.png.bak", ".h.png", ".git/a.png", "a/.h/b.png", "._a.png")
    (tmp_path / "folder.png").mkdir()
    assert paths(find_images(tmp_path, recursive=True)) == sorted(names)
    assert paths(find_images(tmp_path)) == sorted(name for name in names if "/" not in name)


def test_order_is_not_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "b.png", "a.png", "c/d.png", "c/a.png")
    expected = find_images(tmp_path, recursive=True)
    walk = os.walk
    monkeypatch.setattr(
        sources.os, "walk", lambda top, **how: ((w, d[::-1], f[::-1]) for w, d, f in list(walk(top, **how))[::-1])
    )
    assert find_images(tmp_path, recursive=True) == expected


def test_the_output_folder_is_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "out/masks/a.png", "outer/b.png", "sub/out/c.png")
    monkeypatch.chdir(tmp_path)
    for skip in (tmp_path / "out", "out", "sub/../out/"):
        assert paths(find_images(tmp_path, recursive=True, skip=skip)) == ["a.png", "outer/b.png", "sub/out/c.png"]
    for skip in (tmp_path, tmp_path.parent, tmp_path / "none"):
        assert len(find_images(tmp_path, recursive=True, skip=skip)) == 4


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.png", ["a.png"]),
        ("a*", ["a.jpg", "a.png"]),
        ("A*", []),
        ("[!a].jpg", ["b.jpg"]),
        ("?.jpg", ["a.jpg", "b.jpg"]),
        ("t/*.png", ["t/a.png"]),
        ("./t/*", ["t/a.png"]),
        ("**/*.png", ["a.png", "t/a.png", "t/u/a.png", "v/a.png"]),
        ("t/**/a.png", ["t/a.png", "t/u/a.png"]),
        ("**/u/**", ["t/u/a.png", "t/u/w/c.jpg"]),
        ("**/**/c.*", ["t/u/w/c.jpg"]),
        ("*/u/*", ["t/u/a.png"]),
        ("t", []),
        ("*.txt", []),
    ],
)
def test_globs(tmp_path: Path, glob: str, expected: list[str]) -> None:
    fill(tmp_path, "a.png", "a.jpg", "b.jpg", "a.txt", "t/a.png", "t/u/a.png", "t/u/w/c.jpg", "v/a.png")
    if not expected:
        with pytest.raises(InputError, match=r"of 3 images in .* none matches"):
            find_images(tmp_path, glob=glob)
        return
    assert paths(find_images(tmp_path, glob=glob)) == expected


@pytest.mark.parametrize("glob", ["", "/", "/a.png", "../*.png", "a/../b", "a/", "."])
def test_unusable_globs(tmp_path: Path, glob: str) -> None:
    fill(tmp_path, "a.png")
    with pytest.raises(InputError, match="glob must be a pattern"):
        find_images(tmp_path, glob=glob)


# hostile folders


@POSIX
def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(tmp_path, "outside.png", "elsewhere/b.png", "root/a.png", "root/sub/c.png")
    (root / "to_file.png").symlink_to(tmp_path / "outside.png")
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "round.png").symlink_to("round.png")
    (root / "loop").symlink_to(root)
    (root / "sub" / "up").symlink_to("..")
    (root / "away").symlink_to(tmp_path / "elsewhere")
    (root / "everything").symlink_to("/")
    found = find_images(root, recursive=True)
    assert paths(found) == ["a.png", "broken.png", "round.png", "sub/c.png", "to_file.png"]
    sizes = {item.path: item.size_bytes for item in found}
    assert sizes["to_file.png"] == len("outside.png")
    assert sizes["broken.png"] == sizes["round.png"] == UNKNOWN
    assert sorted(reasons(found)) == ["away", "everything", "loop", "sub/up"]
    assert "link to a folder" in reasons(found)["away"]
    assert find_images(root).refused == ()

    (tmp_path / "link").symlink_to(root)
    (tmp_path / "out").symlink_to(root / "sub")
    through = find_images(tmp_path / "link", recursive=True, skip=tmp_path / "out")
    assert paths(through) == ["a.png", "broken.png", "round.png", "to_file.png"]


@POSIX
def test_pipes_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = find_images(tmp_path)
    assert paths(found) == ["a.png"]
    assert reasons(found) == dict.fromkeys(["null.png", "pipe.png", "socket.png"], "it is a pipe or device, not a file")


@POSIX
def test_names_that_no_dataset_can_hold_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "a\\b.png", "c:/x.png", "new\nline.png", "\x1b[2J.png", "sub\\dir/a.png")
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb"):
        pass
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    with open(os.fsencode(tmp_path) + b"/\xfe/a.png", "wb"):
        pass
    found = find_images(tmp_path, recursive=True)
    assert paths(found) == ["\x1b[2J.png", "a.png", "new\nline.png"]
    refused = reasons(found)
    assert sorted(refused) == ["a\\b.png", "c:/x.png", "sub\\dir/a.png", "\udcfe/a.png", "\udcff.png"]
    assert "backslash" in refused["a\\b.png"]
    assert "not valid Unicode" in refused["\udcff.png"]


def test_files_and_folders_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "b/c.png", "d/e.png")
    scandir, stat = os.scandir, os.stat

    def forbidden(path: str) -> Any:
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def gone(path: Any, **how: Any) -> os.stat_result:
        if str(path).endswith("e.png"):
            raise FileNotFoundError(2, "No such file or directory")
        return stat(path, **how)

    monkeypatch.setattr(os, "scandir", forbidden)
    monkeypatch.setattr(sources.os, "stat", gone)
    found = find_images(tmp_path, recursive=True)
    assert [(i.path, i.size_bytes) for i in found] == [("a.png", 5), ("d/e.png", UNKNOWN)]
    assert reasons(found) == {"b": "the folder cannot be listed: Permission denied"}


@POSIX
def test_a_deep_folder_does_not_end_the_run(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    home = os.open(".", os.O_RDONLY)
    try:  # deeper than a path can name
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("b.png").touch()
        os.fchdir(home)
        found = find_images(tmp_path, recursive=True)
        assert paths(found) == ["a.png"]
        assert [reason for _, reason in found.refused] == ["the folder cannot be listed: File name too long"]
    finally:
        os.chdir(tmp_path)
        depth = 0
        while os.path.isdir("d" * 250):
            os.chdir("d" * 250)
            depth += 1
        Path("b.png").unlink(missing_ok=True)
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d" * 250)
        os.fchdir(home)
        os.close(home)


# lists


def listed(root: Path, content: str | bytes, folder: Path | None = None, glob: str | None = None) -> Listing:
    path = (folder or root) / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return find_images(root, list_file=path, glob=glob)


def test_a_list(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, "b.png", "a.png", "sub/c.png", ".hidden/d.png", "no_suffix", "not listed.png", "#e.png", " f.png")
    lines = f"b.png\r\n\n  \n{root / 'a.png'}\nsub/c.png\n.hidden/d.png\nno_suffix\n#e.png\n f.png\ngone.png"
    found = listed(root, lines)
    assert paths(found) == [" f.png", "#e.png", ".hidden/d.png", "a.png", "b.png", "gone.png", "no_suffix", "sub/c.png"]
    sizes = {item.path: item.size_bytes for item in found}
    assert (sizes["b.png"], sizes["gone.png"]) == (5, UNKNOWN)
    assert all(item.file == root / item.path for item in found)
    assert found.refused == ()
    assert paths(listed(root, "b.png\nsub/c.png\na.png", glob="**/[ac].png")) == ["a.png", "sub/c.png"]


def test_a_list_is_relative_to_its_own_folder(tmp_path: Path) -> None:
    fill(tmp_path, "root/a.png", "lists/x", "lists/a.png")
    found = listed(tmp_path / "root", "../root/a.png\na.png", tmp_path / "lists")
    assert paths(found) == ["a.png"]
    assert list(reasons(found)) == [str(tmp_path / "lists" / "a.png")]


def test_a_list_made_in_the_folder_of_the_images(tmp_path: Path) -> None:
    """Its own folder comes first; what is nowhere is said to be nowhere."""
    fill(
        tmp_path,
        "lists/x",
        "lists/both.png",
        "lists/root/c.png",
        "lists/root/both.png",
        "lists/root/sub/a.png",
        "lists/root/b.png",
    )
    away = str(tmp_path / "away.png")
    lines = f"b.png\nsub/a.png\nsub/../b.png\nroot/c.png\nboth.png\ngone.png\n{away}"
    found = listed(tmp_path / "lists" / "root", lines, tmp_path / "lists")
    assert paths(found) == ["b.png", "c.png", "sub/a.png"]
    refused = reasons(found)
    assert sorted(refused) == [away, str(tmp_path / "lists" / "both.png"), "gone.png"]
    assert refused[away] == "there is no such file"
    assert refused["gone.png"].startswith("there is no such file, neither beside the list nor in ")


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, "sub/a.png", "b.png")
    spellings = ["sub/a.png", "./sub//a.png", "sub/../sub/a.png", str(root / "sub/a.png"), f"../{root.name}/sub/a.png"]
    for order in (spellings, spellings[::-1]):
        found = listed(root, "\n".join(order))
        assert paths(found) == ["sub/a.png"]
        assert found.refused == ()


@POSIX
def test_lists_and_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(tmp_path, "root/real/a.png", "away/b.png", "away/deep/c.png")
    (root / "also").symlink_to("real")
    (root / "ext").symlink_to(tmp_path / "away")
    (root / "d").symlink_to(tmp_path / "away" / "deep")
    (root / "link.png").symlink_to("real/a.png")
    (tmp_path / "alias").symlink_to(root)
    for order in (["real/a.png", "also/a.png"], ["also/a.png", "real/a.png"]):
        assert paths(listed(root, "\n".join(order))) == ["also/a.png"]  # one file, two ways to it
    assert paths(listed(root, "real/a.png\nlink.png")) == ["link.png", "real/a.png"]  # two names
    assert paths(listed(root, "ext/b.png")) == ["ext/b.png"]  # its name lies in the folder
    assert paths(listed(root, str(tmp_path / "alias" / "real" / "a.png"))) == ["real/a.png"]
    assert paths(listed(tmp_path / "alias", str(root / "real" / "a.png"))) == ["real/a.png"]
    # 'd/..' is where the link leads, not the folder it lies in
    assert list(reasons(listed(root, "d/../b.png"))) == [str(tmp_path / "away" / "b.png")]


def test_lines_that_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, "sub/a.png")
    fill(tmp_path, "rooted.png")
    found = listed(
        root,
        "sub\n.\n../rooted.png\n/etc/passwd\n../../../../../../../../../../../..\ns3://bucket/a.png\na\0b.png\n\udcff.png\nsub/a.png",
    )
    assert paths(found) == ["sub/a.png"]
    refused = reasons(found)
    assert refused["sub"] == refused["."] == "it is a folder, not an image"
    assert "outside of the folder" in refused[str(tmp_path / "rooted.png")]
    assert "outside of the folder" in refused[os.path.realpath("/etc/passwd")]
    assert "outside of the folder" in refused["/"]
    assert "address" in refused["s3://bucket/a.png"]
    assert "NUL" in refused["a\0b.png"]
    assert "not valid Unicode" in refused["\udcff.png"]
    assert len(refused) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no paths"),
        (b"\n \r\n\t\n", "holds no paths"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"a.png\n" + b"x" * 70000, "line 2 .*longer than any path"),
    ],
)
def test_unusable_lists(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        listed(tmp_path, content)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(InputError, match=r"the list .* cannot be read"):
            find_images(tmp_path, list_file=path)
    if os.path.exists("/dev/zero"):
        with pytest.raises(InputError, match="longer than any path"):
            find_images(tmp_path, list_file="/dev/zero")
    fill(tmp_path, "a.png")
    assert paths(listed(tmp_path, b"\xef\xbb\xbfa.png")) == ["a.png"]
    with pytest.raises(InputError, match=r"holds no paths that match '\*\.gif'"):
        listed(tmp_path, "a.png", glob="*.gif")


# any input

LINES = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from([*"a./\\ -:#~\n\x85é\udcff", "..", "/root/", "sub"]), max_size=20).map(
        lambda pieces: "".join(pieces).encode("utf-8", "surrogateescape")
    ),
)


def check(found: Listing, root: Path) -> None:
    assert paths(found) == sorted(set(paths(found)))
    for item in found:
        assert check_relative(item.path) == item.path
        assert os.path.normpath(root / item.path) == str(item.file)
        assert item.file.is_relative_to(root)
        json.dumps(item.path, ensure_ascii=False).encode()
    assert all(name and reason for name, reason in found.refused)


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINES, max_size=6))
def test_any_list_gives_images_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    root = tmp_path_factory.getbasetemp() / "root"
    fill(root, "a", "sub/a")
    try:
        found = listed(root, b"\n".join(lines))
        other = listed(root, b"\n".join(lines[::-1]))
    except Text2SamError:
        return
    check(found, root)
    assert found == other


@settings(max_examples=100, deadline=None)
@given(glob=st.one_of(st.text(max_size=20), st.text("a*?[]!-/.bgnp", max_size=20)))
def test_any_glob_gives_images_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, glob: str) -> None:
    root = tmp_path_factory.getbasetemp() / "globbed"
    fill(root, "a.png", "b/a.png", "b/a/b.png")
    try:
        found = find_images(root, glob=glob)
    except Text2SamError:
        return
    check(found, root)
    assert set(paths(found)) <= {"a.png", "b/a.png", "b/a/b.png"}


@POSIX
@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.binary(min_size=1, max_size=20), max_size=6))
def test_any_names_give_images_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    root = tmp_path_factory.mktemp("named")
    made = 0
    for name in names:
        if b"/" not in name and b"\0" not in name and not name.startswith(b"."):
            with open(os.fsencode(root) + b"/" + name + b".png", "wb"):
                made += 1
    if not made:
        return
    found = find_images(root)
    check(found, root)
    assert len(found) + len(found.refused) == len(list(root.iterdir()))

"""The cache, and downloads from a server of our own."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from text2sam.errors import ChecksumError, DownloadError, OfflineError, OutputError, WeightsError
from text2sam.zoo import download
from text2sam.zoo.download import cache_path, resolve, verify
from text2sam.zoo.table import CHECKPOINTS, Checkpoint, checkpoint

BODY = bytes(range(256)) * 2000  # 512,000 bytes, no period that hides a wrong offset at chunk borders
SHA = hashlib.sha256(BODY).hexdigest()


@dataclasses.dataclass
class Route:
    """How the server answers for one path."""

    body: bytes = BODY
    statuses: list[int] = dataclasses.field(default_factory=list)  # failures to answer with first
    cut: list[int] = dataclasses.field(default_factory=list)  # bytes after which to hang up, one per answer
    ranges: bool = True
    length: bool = True
    delay: float = 0.0
    range_start: int | None = None  # answer any Range from here instead
    gone: bool = False
    redirect: str = ""


class Server:
    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        requested = handler.headers.get("Range")
        self.requests.append((handler.path, requested))
        route = self.routes.get(handler.path)
        if route is None or route.gone:
            return handler.send_error(404)
        if route.statuses:
            return handler.send_error(route.statuses.pop(0))
        if route.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.url(route.redirect))
            return handler.end_headers()
        time.sleep(route.delay)
        start = 0
        if requested and route.ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-")) if route.range_start is None else route.range_start
            if start >= len(route.body):
                return handler.send_error(416)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(route.body) - 1}/{len(route.body)}")
        else:
            handler.send_response(200)
        body = route.body[start:]
        if route.length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: route.cut.pop(0)] if route.cut else body
        self.sent.append(len(body))
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            handler.wfile.write(body)
        handler.close_connection = True
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "TEXT2SAM_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)
    made = Server()
    yield made
    made.close()


Register = Callable[..., Checkpoint]


@pytest.fixture
def register(server: Server, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts a fake checkpoint ``tiny`` into the table, to be had at the given paths; ``route`` answers for the first."""

    def make(*paths: str, size: int | None = len(BODY), route: Route | None = None, **other: Any) -> Checkpoint:
        if route is not None:
            server.routes[paths[0]] = route
        urls = tuple(path if "://" in path else server.url(path) for path in paths)
        fields: dict[str, Any] = {"name": "tiny", "filename": "tiny.pt", "licence": "MIT", "kind": "sam", "model": "vit_t"}
        item = Checkpoint(**{**fields, **other}, urls=urls, sha256=SHA, size=size, description="a fake")
        monkeypatch.setitem(CHECKPOINTS, item.name, item)
        return item

    return make


def pull(**options: Any) -> Path:
    return download.pull("tiny", progress=False, **options)


def part() -> Path:
    path = cache_path("tiny")
    return path.with_name(f"{path.name}.{checkpoint('tiny').sha256[:12]}.part")


def leave_part(content: bytes) -> None:
    part().parent.mkdir(parents=True, exist_ok=True)
    part().write_bytes(content)


# the cache


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SAM_HOME", str(tmp_path))
    assert cache_path("mobile-sam") == tmp_path / "checkpoints" / "mobile_sam.pt"
    monkeypatch.setenv("TEXT2SAM_HOME", "~/there")
    assert download.cache_folder() == Path.home() / "there"
    monkeypatch.delenv("TEXT2SAM_HOME")
    assert "text2sam" in download.cache_folder().name.lower()


# pull


def test_fresh_then_cached(server: Server, register: Register) -> None:
    register("/tiny.pt", size=None, route=Route())
    path = pull()
    assert path == cache_path("tiny")
    assert path.read_bytes() == BODY
    assert not list(path.parent.glob("*.part"))
    assert pull() == path
    assert server.requests == [("/tiny.pt", None)]


def test_a_cached_file_is_not_hashed_twice(server: Server, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt", route=Route())
    path = pull()
    hashed: list[Path] = []
    real = download._digest
    monkeypatch.setattr(download, "_digest", lambda file: (hashed.append(file), real(file))[1])  # type: ignore[func-returns-value]
    pull()
    assert hashed == []
    os.utime(path, ns=(0, 0))
    pull()
    pull()
    assert hashed == [path]
    assert len(server.requests) == 1


def test_a_file_put_there_by_hand_is_hashed_and_taken(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    path = cache_path("tiny")
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    assert pull() == path


@pytest.mark.parametrize("damage", [b"short", b"\x01" + BODY[1:]], ids=["other size", "same size"])
def test_a_corrupt_cached_file_is_reported_and_replaced(
    server: Server, register: Register, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    register("/tiny.pt", route=Route())
    path = pull()
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "1")
    with pytest.raises(OfflineError, match="corrupt"):
        pull()
    monkeypatch.delenv("TEXT2SAM_OFFLINE")
    assert pull().read_bytes() == BODY
    assert "is corrupt" in caplog.text
    assert len(server.requests) == 2


def test_verify_always_hashes(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route())
    missing = verify("tiny")
    assert (missing.status, missing.ok) == ("missing", False)
    path = pull()
    assert verify("tiny").ok
    kept = path.stat()
    path.write_bytes(b"\x01" + BODY[1:])
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    found = verify("tiny")
    assert found.status == "corrupt"
    assert hashlib.sha256(b"\x01" + BODY[1:]).hexdigest() in found.detail
    assert SHA in found.detail
    assert pull().read_bytes() == BODY  # the note of an earlier check is gone, although size and time fit


def test_force_downloads_again(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route())
    leave_part(BODY[:100])
    pull()
    pull(force=True)
    leave_part(BODY[:100])
    assert pull(force=True).read_bytes() == BODY
    assert server.requests == [("/tiny.pt", "bytes=100-"), ("/tiny.pt", None), ("/tiny.pt", None)]


@pytest.mark.parametrize("length", [True, False], ids=["content-length", "no length"])
def test_interrupted_then_resumed(server: Server, register: Register, length: bool) -> None:
    register("/tiny.pt", route=Route(cut=[200_000], length=length))
    assert pull().read_bytes() == BODY
    assert [requested for _, requested in server.requests] == [None, "bytes=200000-"]
    assert server.sent == [200_000, len(BODY) - 200_000]


def test_a_line_that_breaks_often_gets_there_as_long_as_bytes_arrive(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route(cut=[50_000] * 8))
    assert pull().read_bytes() == BODY
    assert sum(server.sent) == len(BODY)


def test_a_later_call_resumes(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route(cut=[300_000, 0, 0, 0, 0]))
    with pytest.raises(DownloadError, match="RemoteProtocolError"):
        pull()
    assert part().stat().st_size == 300_000
    assert not cache_path("tiny").exists()
    server.routes["/tiny.pt"] = Route()
    assert pull().read_bytes() == BODY
    assert server.requests[-1] == ("/tiny.pt", "bytes=300000-")


def test_a_whole_part_needs_no_request(server: Server, register: Register) -> None:
    register("/tiny.pt")
    leave_part(BODY)
    assert pull().read_bytes() == BODY
    assert server.requests == []


@pytest.mark.parametrize("size", [len(BODY), None])
@pytest.mark.parametrize("left", [b"<html>not it</html>", b"\x00" * len(BODY), BODY + b"more"], ids=["start", "same", "long"])
def test_a_wrong_part_is_thrown_away(server: Server, register: Register, left: bytes, size: int | None) -> None:
    register("/tiny.pt", size=size, route=Route())
    leave_part(left)
    assert pull().read_bytes() == BODY
    assert server.requests[-1] == ("/tiny.pt", None)


@pytest.mark.parametrize("route", [Route(ranges=False), Route(range_start=7)], ids=["answers 200", "another range"])
def test_a_server_that_ignores_the_range(server: Server, register: Register, route: Route) -> None:
    register("/tiny.pt", route=route)
    leave_part(BODY[:1000])
    assert pull().read_bytes() == BODY
    assert server.requests[0] == ("/tiny.pt", "bytes=1000-")


def test_the_next_address_is_asked_after_404_and_goes_on_with_the_part(server: Server, register: Register) -> None:
    register("/a/tiny.pt", "/b/tiny.pt", "/c/tiny.pt")
    server.routes["/b/tiny.pt"] = Route(cut=[100_000, 0, 0, 0, 0])
    server.routes["/c/tiny.pt"] = Route()
    assert pull().read_bytes() == BODY
    paths = [path for path, _ in server.requests]
    assert paths.count("/a/tiny.pt") == 1
    assert server.requests[-1] == ("/c/tiny.pt", "bytes=100000-")


@pytest.mark.parametrize(("kind", "option"), [("sam", "sam_checkpoint"), ("clip", "clip_checkpoint")])
def test_when_no_address_serves_it_the_error_says_all(server: Server, register: Register, kind: str, option: str) -> None:
    register("/a/tiny.pt", "/b/tiny.pt", "nonsense://x/tiny.pt", kind=kind)
    server.routes["/b/tiny.pt"] = Route(statuses=[403])
    with pytest.raises(DownloadError) as caught:
        pull()
    text = str(caught.value)
    for wanted in (
        f"{server.url('/a/tiny.pt')}: HTTP 404",
        f"{server.url('/b/tiny.pt')}: HTTP 403",
        "nonsense://x/tiny.pt: UnsupportedProtocol",
        "tiny.pt with SHA-256 " + SHA,
        str(cache_path("tiny")),
        f"{option}=",
        f"--{option.replace('_', '-')}",
        "--preset photo",
    ):
        assert wanted in text
    assert len(server.requests) == 2
    assert not part().exists()


def test_a_wrong_hash_tries_the_next_address_and_then_says_so(server: Server, register: Register) -> None:
    register("/a/tiny.pt", "/b/tiny.pt")
    wrong = b"\x01" + BODY[1:]
    server.routes["/a/tiny.pt"] = Route(body=wrong)
    server.routes["/b/tiny.pt"] = Route()
    assert pull().read_bytes() == BODY
    assert server.requests == [("/a/tiny.pt", None), ("/b/tiny.pt", None)]
    server.routes["/b/tiny.pt"] = Route(body=wrong)
    with pytest.raises(ChecksumError) as caught:
        pull(force=True)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert SHA in str(caught.value)
    assert not part().exists()
    assert cache_path("tiny").read_bytes() == BODY  # the good file is still there


@pytest.mark.parametrize("body", [b"<html>log in first</html>", BODY + b"x"], ids=["shorter", "longer"])
@pytest.mark.parametrize("length", [True, False])
def test_another_size_is_refused(server: Server, register: Register, body: bytes, length: bool) -> None:
    register("/tiny.pt", route=Route(body=body, length=length))
    with pytest.raises(DownloadError, match=r"another file|the connection ended after"):
        pull()
    assert not cache_path("tiny").exists()
    if length:
        assert len(server.requests) == 1


@pytest.mark.parametrize("answer", ["a login page", "404", "503"])
def test_a_refusal_leaves_the_part_for_the_next_address(server: Server, register: Register, answer: str) -> None:
    register("/a", "/b")
    page = Route(body=b"<html>log in first</html>", ranges=False)
    server.routes["/a"] = {"a login page": page, "404": Route(gone=True), "503": Route(statuses=[503] * 9)}[answer]
    server.routes["/b"] = Route()
    leave_part(BODY[:1000])
    assert pull().read_bytes() == BODY
    assert server.requests[-1] == ("/b", "bytes=1000-")


def test_5xx_is_asked_again_but_not_for_ever(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route(statuses=[503, 500]))
    assert pull().read_bytes() == BODY
    assert len(server.requests) == 3
    server.routes["/tiny.pt"] = Route(statuses=[503] * 10)
    with pytest.raises(DownloadError, match="HTTP 503"):
        pull(force=True)
    assert len(server.requests) == 3 + 1 + download.RETRIES


def test_nobody_listens(register: Register) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        register(f"http://127.0.0.1:{taken.getsockname()[1]}/tiny.pt")
        with pytest.raises(DownloadError, match="ConnectError"):
            pull()


def test_redirects_are_followed(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route(redirect="/real"))
    server.routes["/real"] = Route(cut=[1000])
    assert pull().read_bytes() == BODY
    assert server.requests[-1] == ("/real", "bytes=1000-")


def test_the_mirror_is_asked_first(server: Server, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")
    for path in ("/mirror/tiny.pt", "/tiny.pt"):
        server.routes[path] = Route()
    monkeypatch.setenv("TEXT2SAM_MIRROR", server.url("/mirror/"))
    pull()
    server.routes["/mirror/tiny.pt"].gone = True
    pull(force=True)
    assert [path for path, _ in server.requests] == ["/mirror/tiny.pt", "/mirror/tiny.pt", "/tiny.pt"]


def test_unusable_proxy_settings_are_named(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")
    monkeypatch.setenv("HTTP_PROXY", "wrong://127.0.0.1:1")
    with pytest.raises(DownloadError, match="proxy settings"):
        pull()


@pytest.mark.parametrize("value", ["1", " YES "])
def test_offline_opens_no_socket(register: Register, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    register("/tiny.pt")
    monkeypatch.setenv("TEXT2SAM_OFFLINE", value)

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(OfflineError) as caught:
        pull()
    for wanted in ("TEXT2SAM_OFFLINE", SHA, str(cache_path("tiny")), "--sam-checkpoint", "--preset photo"):
        assert wanted in str(caught.value)


def test_offline_0_is_online(server: Server, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt", route=Route())
    monkeypatch.setenv("TEXT2SAM_OFFLINE", "0")
    assert pull().is_file()


def test_a_cache_that_cannot_be_made(tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TEXT2SAM_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="TEXT2SAM_HOME"):
        pull()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache(tmp_path: Path, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")
    monkeypatch.setenv("TEXT2SAM_HOME", str(tmp_path))
    folder = cache_path("tiny").parent
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        pull()
    folder.chmod(0o700)
    (folder / "tiny.pt").write_bytes(BODY)
    folder.chmod(0o500)
    assert pull() == folder / "tiny.pt"  # a read-only cache still serves what it has
    folder.chmod(0o700)


def test_a_lock_that_cannot_be_taken(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt")

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        pull()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route())
    part().parent.mkdir(parents=True)
    part().symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        pull()
    assert not cache_path("tiny").exists()
    assert len(server.requests) == 1


def test_progress_goes_to_stderr(server: Server, register: Register, capsys: pytest.CaptureFixture[str]) -> None:
    register("/tiny.pt", route=Route())
    download.pull("tiny")
    out, err = capsys.readouterr()
    assert out == ""
    assert "tiny.pt" in err
    assert "500.0/500.0 KiB" in err
    download.pull("tiny", force=True, progress=False)
    assert capsys.readouterr() == ("", "")


def test_two_threads_share_one_download(server: Server, register: Register) -> None:
    register("/tiny.pt", route=Route(delay=0.2))
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(pull().read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [BODY] * 3
    assert len(server.requests) == 1


def test_two_processes_share_one_download(server: Server, register: Register) -> None:
    item = register("/tiny.pt", route=Route(delay=0.5))
    program = (
        "import json, sys; from text2sam.zoo.download import file_sha256, pull; "
        "from text2sam.zoo.table import CHECKPOINTS, Checkpoint; "
        "CHECKPOINTS['tiny'] = Checkpoint(**json.loads(sys.argv[1])); "
        "print(file_sha256(pull('tiny', progress=False)))"
    )
    command = [sys.executable, "-c", program, json.dumps(dataclasses.asdict(item))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [SHA, SHA]
    assert len(server.requests) == 1


# resolve


def test_resolve_names_and_files(server: Server, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("/tiny.pt", route=Route())
    assert resolve("tiny", "sam", progress=False) == cache_path("tiny")
    local = tmp_path / "own.bin"
    local.write_bytes(b"x")
    assert resolve(local, "clip") == resolve(str(local), "sam") == local
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/own.bin", "sam") == local
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").touch()
    assert resolve("tiny", "sam") == cache_path("tiny")
    assert resolve("./tiny", "sam") == Path("tiny") == resolve(Path("tiny"), "sam")


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("", "sam", "neither an existing file"),
        ("vit_b", "sam", "did you mean sam-vit-b"),
        ("qqqq", "clip", r"name: known are (\S+, )+\S+$"),
        ("mobile-sam", "clip", "is a sam checkpoint, not a clip checkpoint"),
        (Path("mobile-sam"), "sam", "neither an existing file"),
        (Path.home(), "sam", "is a folder"),
    ],
)
def test_resolve_refuses_with_advice(spec: Any, kind: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        resolve(spec, kind)

"""Checkpoint files: downloaded, resumed, verified and kept in a cache folder.

A file in the cache is hashed once. Its size and modification time are then kept beside it in ``<file>.verified``; as long as
both still fit, :func:`pull` returns the file without reading it again. :func:`verify` always hashes.

Environment:
    TEXT2SAM_HOME: cache folder, instead of the platform's own.
    TEXT2SAM_OFFLINE: ``1`` forbids downloads, also those of the Hugging Face hub's client.
    TEXT2SAM_MIRROR: address of a folder that holds the files under their table names, asked first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from text2sam.errors import ChecksumError, DownloadError, InputError, OfflineError, OutputError, WeightsError
from text2sam.zoo.table import CHECKPOINTS, Checkpoint, Kind, checkpoint, known_names

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress

log = logging.getLogger(__name__)

RETRIES = 2
"""Number of retries at an address after a failure that may pass, counted anew whenever more bytes arrive."""
BACKOFF_SECONDS = 1.0
"""Pause before the first retry; it doubles with each further retry."""

_CHUNK = 1 << 20

_hub_lock = threading.RLock()


@dataclass(frozen=True)
class VerifyResult:
    """Whether a file is what it should be.

    Attributes:
        name: of the file.
        status: ``"ok"``, ``"missing"`` or ``"corrupt"``; ``"own"`` for a file that users get themselves.
        detail: the reason in words.
    """

    name: str
    status: Literal["ok", "missing", "corrupt", "own"]
    detail: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with the file."""
        return self.status in ("ok", "own")


def cache_folder() -> Path:
    """The folder of all cached files: ``TEXT2SAM_HOME``, else the platform's cache folder. It need not exist."""
    home = os.environ.get("TEXT2SAM_HOME", "").strip()
    if home:
        return Path(home).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("text2sam", appauthor=False))


def cache_path(name: str) -> Path:
    """The place of a checkpoint in the cache, ``<cache>/checkpoints/<filename>``, whether or not it is there.

    Raises:
        WeightsError: no checkpoint has that name, or it is one that users get themselves.
    """
    item = checkpoint(name)
    known_sha256(item)
    return cache_folder() / "checkpoints" / item.filename


def known_sha256(item: Checkpoint) -> str:
    """The SHA-256 of a checkpoint.

    Raises:
        DownloadError: there is none in the table; the message says how to get the weights without us.
    """
    if item.sha256 is None:
        raise DownloadError(
            f"{item.name} is not downloaded, as no SHA-256 of it is published: get {item.get}, and {_own(item)}"
        )
    return item.sha256


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in lower-case hexadecimal digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    return _digest(Path(path)).hexdigest()


def verify(name: str) -> VerifyResult:
    """Hashes a checkpoint in the cache and compares it with the table.

    Raises:
        WeightsError: no checkpoint has that name, or its file cannot be read.
    """
    item, path = checkpoint(name), cache_path(name)
    if not os.path.isfile(path):
        return VerifyResult(name, "missing", f"not in the cache; text2sam models pull {name}")
    before, actual = path.stat(), file_sha256(path)
    if actual == item.sha256:
        _note(path, item, before)
        return VerifyResult(name, "ok", f"{before.st_size:,} bytes, SHA-256 as in the table")
    with suppress(OSError):
        _sidecar(path).unlink()
    size = f", {item.size:,} expected" if item.size is not None and item.size != before.st_size else ""
    detail = (
        f"{before.st_size:,} bytes{size}; SHA-256 {actual} instead of {item.sha256}; text2sam models pull {name} replaces it"
    )
    return VerifyResult(name, "corrupt", detail)


def pull(name: str, *, progress: bool = True, force: bool = False) -> Path:
    """A checkpoint's file from the cache, or else from the network; its SHA-256 is the table's.

    An interrupted download resumes where it stopped, also in a later call and from another address. The file appears under
    its name only when its hash is right. Processes that need the same file wait for the one that downloads it. A corrupt
    file in the cache is logged and replaced.

    Args:
        name: a name in :data:`~text2sam.zoo.table.CHECKPOINTS`.
        progress: draw a progress bar on standard error.
        force: download even when the file is in the cache.

    Returns:
        The path in the cache.

    Raises:
        WeightsError: no checkpoint has that name, the cached file cannot be read, or it is one that users get themselves.
        OfflineError: it is not in the cache and ``TEXT2SAM_OFFLINE`` is set; no socket is opened.
        ChecksumError: an address served other bytes than the table's and none served the right ones.
        DownloadError: no address served it.
        OutputError: the cache folder cannot be written, or its disk is full.
    """
    item, path = checkpoint(name), cache_path(name)
    if not force and _intact(path, item):
        return path
    corrupt = not force and os.path.isfile(path)
    if offline():
        state = "is corrupt in the cache" if corrupt else "is not in the cache" if not force else "would be downloaded again"
        raise OfflineError(f"{name} {state} and TEXT2SAM_OFFLINE forbids downloads.\n{_help(item, path)}")
    if corrupt:
        log.warning("%s is corrupt (its SHA-256 is not %s); downloading it again", path, item.sha256)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        # The process that held the lock may have downloaded it.
        if not force and _intact(path, item):
            return path
        part = path.with_name(f"{path.name}.{known_sha256(item)[:12]}.part")
        if force:
            with _writing(part):
                part.unlink(missing_ok=True)
        _download(item, path, part, progress)
        with _writing(path):
            os.replace(part, path)
            _note(path, item, path.stat())
    return path


def resolve(spec: str | os.PathLike[str], kind: Kind, *, progress: bool = True) -> Path:
    """The file that a name or a path stands for.

    Args:
        spec: a name in :data:`~text2sam.zoo.table.CHECKPOINTS`, pulled when needed, or a path; ``~`` is expanded. A name wins
            over a file of the same name (write ``./name`` for the file). Local files are not hashed.
        kind: ``"sam"`` or ``"clip"``, the kind of checkpoint that is needed.
        progress: draw a progress bar when it is downloaded.

    Raises:
        InputError: ``spec`` is neither text nor path.
        WeightsError: ``spec`` is neither name nor file, or a checkpoint of the other kind; also the errors of :func:`pull`.
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise InputError(f"a checkpoint must be a name or a path, not {type(spec).__name__} {spec!r}")
    text = os.fspath(spec)
    item = CHECKPOINTS.get(text) if isinstance(spec, str) else None
    if item is not None:
        if item.kind != kind:
            raise WeightsError(f"{text!r} is a {item.kind} checkpoint, not a {kind} checkpoint; {known_names(text, kind)}")
        return pull(item.name, progress=progress)
    path = Path(text).expanduser() if text else Path()
    if os.path.isfile(path):
        return path
    state = "a folder" if text and os.path.isdir(path) else "neither an existing file nor a name in the table"
    raise WeightsError(f"{kind} checkpoint {text!r} is {state}; give the path of a file, or a name: {known_names(text, kind)}")


def _help(item: Checkpoint, path: Path) -> str:
    return f"Get the file {item.filename} with SHA-256 {item.sha256} in another way and put it at\n  {path}\nor {_own(item)}"


def _own(item: Checkpoint) -> str:
    """How a user gives a file of their own."""
    option = f"{item.kind}_checkpoint"
    return (
        f"give its path as {option}= (on the command line --{option.replace('_', '-')}). The preset photo (--preset photo) "
        'needs no download; "text2sam models words" lists the words it knows.'
    )


def offline() -> bool:
    """Whether ``TEXT2SAM_OFFLINE`` forbids downloads."""
    return os.environ.get("TEXT2SAM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


@contextmanager
def obeying_offline() -> Iterator[None]:
    """Keeps the client of the Hugging Face hub to the files in its cache where ``TEXT2SAM_OFFLINE`` forbids downloads."""
    from huggingface_hub import constants

    with _hub_lock:  # the setting is the whole process's
        before = constants.HF_HUB_OFFLINE
        constants.HF_HUB_OFFLINE = before or offline()
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _addresses(item: Checkpoint) -> tuple[str, ...]:
    mirror = os.environ.get("TEXT2SAM_MIRROR", "").strip().rstrip("/")
    return (f"{mirror}/{item.filename}", *item.urls) if mirror else item.urls


def _digest(path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    return digest


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _stamp(item: Checkpoint, stat: os.stat_result) -> dict[str, str | int]:
    return {"sha256": known_sha256(item), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _note(path: Path, item: Checkpoint, stat: os.stat_result) -> None:
    """Remembers that the file was hashed in this state; in a folder that cannot be written it is hashed each time."""
    from text2sam.files import write_json

    with suppress(OSError):
        write_json(_sidecar(path), _stamp(item, stat))


def _intact(path: Path, item: Checkpoint) -> bool:
    """Whether the cached file is intact: by its note, else by its hash, which is then noted."""
    if not os.path.isfile(path):
        return False
    stat = path.stat()
    if item.size is not None and stat.st_size != item.size:
        return False
    with suppress(OSError, ValueError):
        if json.loads(_sidecar(path).read_text(encoding="utf-8")) == _stamp(item, stat):
            return True
    if file_sha256(path) != item.sha256:
        return False
    _note(path, item, stat)
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the system's errors about writing into one that names the path and the way out."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot write {str(path)!r}: {reason}; make room or set TEXT2SAM_HOME to a folder that can be written "
            "(what was downloaded so far is kept and used)"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file's lock among all threads and processes; the system frees it when its holder dies."""
    from filelock import FileLock

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with _writing(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _AddressError(Exception):
    """One address did not serve the file: why, whether a retry may help, and the SHA-256 of other bytes that came instead."""

    def __init__(self, reason: str, *, passing: bool = False, actual: str | None = None) -> None:
        super().__init__(reason)
        self.passing = passing
        self.actual = actual


def _download(item: Checkpoint, path: Path, part: Path, progress: bool) -> None:
    """Fills ``part`` from the first address that serves the right bytes."""
    import httpx

    failures: list[tuple[str, _AddressError]] = []
    try:
        client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(30.0, connect=10.0),
            # Ranges and sizes count the stored bytes only when nothing compresses them on the way.
            headers={"User-Agent": "text2sam", "Accept-Encoding": "identity"},
        )
    except (ImportError, ValueError) as error:
        raise DownloadError(f"the proxy settings in the environment cannot be used: {error}.\n{_help(item, path)}") from error
    with client:
        transfer = _Transfer(client, item, part, progress)
        for url in _addresses(item):
            try:
                return transfer.fill_from(url)
            except _AddressError as error:
                failures.append((url, error))
    if not transfer.size:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    size = "" if item.size is None else f", {item.size:,} bytes"
    reasons = "\n".join(f"  {url}: {error}" for url, error in failures) or "  it has none"
    message = f"could not get {item.name} ({item.filename}{size}) from any of its addresses:\n{reasons}.\n{_help(item, path)}"
    if any(error.actual for _, error in failures):
        raise ChecksumError(message)
    raise DownloadError(message)


@dataclass(frozen=True)
class _Transfer:
    """Brings a checkpoint into ``part``, which keeps what arrived when the connection breaks."""

    client: httpx.Client
    item: Checkpoint
    part: Path
    progress: bool

    @property
    def size(self) -> int:
        """Bytes in ``part``."""
        return self.part.stat().st_size if os.path.isfile(self.part) else 0

    def fill_from(self, url: str) -> None:
        """Fills ``part`` from one address, with retries as long as they may help.

        Raises:
            _AddressError: the address does not serve the file.
        """
        failures, furthest, restarted = 0, self.size, False
        while True:
            resumed = self.size > 0
            try:
                actual = self._request(url)
            except _AddressError as error:
                if not error.passing:
                    raise
                # An attempt that brought new bytes was not in vain, however often the connection breaks.
                if self.size > furthest:
                    failures, furthest = 0, self.size
                failures += 1
                if failures > RETRIES:
                    raise
                time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
                continue
            if actual == self.item.sha256:
                return
            self._clear()
            # The bytes that were already there may be the wrong ones, not this address's.
            if not resumed or restarted:
                raise _AddressError(f"other content: SHA-256 {actual} instead of {self.item.sha256}", actual=actual)
            restarted = True

    def _clear(self) -> None:
        with _writing(self.part):
            self.part.unlink(missing_ok=True)

    def _request(self, url: str) -> str:
        """Appends the missing bytes in one request; returns the SHA-256 of the whole part.

        Raises:
            _AddressError: not all bytes came.
        """
        import httpx

        item, done, digest = self.item, self.size, hashlib.sha256()
        if done:
            digest = _digest(self.part)
            if digest.hexdigest() == item.sha256 or (item.size is not None and done >= item.size):
                return digest.hexdigest()
        try:
            with self.client.stream("GET", url, headers={"Range": f"bytes={done}-"} if done else {}) as response:
                status, content_range = response.status_code, response.headers.get("Content-Range", "")
                if done and (status == 416 or (status == 206 and not content_range.startswith(f"bytes {done}-"))):
                    # The part is not the beginning of this file, or another range was sent: from the start.
                    self._clear()
                    return self._request(url)
                if status not in (200, 206):
                    raise _AddressError(f"HTTP {status} {response.reason_phrase}".rstrip(), passing=status >= 500)
                if status == 200:
                    done, digest = 0, hashlib.sha256()
                length = response.headers.get("Content-Length", "")
                total = done + int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
                if None not in (total, item.size) and total != item.size:
                    raise _AddressError(f"another file: {total:,} bytes instead of {item.size:,}")
                done = self._store(response, done, digest, total or item.size)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise _AddressError(f"{type(error).__name__}: {error}") from error
        except httpx.HTTPError as error:
            raise _AddressError(f"{type(error).__name__}: {error}", passing=True) from error
        if item.size is not None and done < item.size:
            raise _AddressError(f"the connection ended after {done:,} of {item.size:,} bytes", passing=True)
        return digest.hexdigest()

    def _store(self, response: httpx.Response, done: int, digest: hashlib._Hash, total: int | None) -> int:
        """Writes the response after the first ``done`` bytes; returns the number of bytes in the part."""
        limit, bar = self.item.size, _progress_bar()
        shown = bar if self.progress else nullcontext()
        with _writing(self.part), shown, self.part.open("ab" if done else "wb") as stream:
            task = bar.add_task(self.item.filename, total=total, completed=done)
            # Without a chunk size: httpx would drop what it gathers for a chunk when the connection breaks.
            for piece in response.iter_bytes():
                stream.write(piece)
                digest.update(piece)
                done += len(piece)
                bar.update(task, completed=done)
                if limit is not None and done > limit:
                    stream.truncate(0)
                    raise _AddressError(f"another file: more than {limit:,} bytes")
            stream.flush()
            os.fsync(stream.fileno())
        return done


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))

"""Checkpoints: where they come from, where they lie, whether they are whole, what is in them.

A file in the cache is hashed once. Its size and modification time are then noted beside it in
``<file>.verified``; as long as both still fit, :func:`pull` hands the file over without reading it
again, and hashes it afresh as soon as one differs. :func:`verify` always hashes.

Environment:
    TEXT2SAM_HOME: cache folder, instead of the platform's own.
    TEXT2SAM_OFFLINE: ``1`` forbids downloads.
    TEXT2SAM_MIRROR: address of a folder that holds the files under their table names, asked first.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
import struct
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from text2sam.errors import ChecksumError, DownloadError, InputError, OfflineError, OutputError, WeightsError

if TYPE_CHECKING:
    import httpx
    import torch

log = logging.getLogger(__name__)

RETRIES = 2
"""How often an address is asked again after a failure that may pass, as long as nothing more arrives."""
BACKOFF_SECONDS = 1.0
"""Wait before the first retry; doubles with each further one."""

_CHUNK = 1 << 20
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_ACCEPTED = "accepted are state dicts saved by torch.save, safetensors files and OpenAI's TorchScript archives of CLIP"

Kind = Literal["sam", "clip"]


@dataclass(frozen=True)
class Checkpoint:
    """One row of the table.

    Attributes:
        name: what it is called here.
        filename: its file name, as its publisher has it.
        urls: addresses of the same bytes, in order of preference.
        sha256: 64 lower-case hexadecimal digits.
        size: bytes; None where it is not known for sure.
        licence: SPDX identifier of the weights' licence.
        kind: ``"sam"`` or ``"clip"``.
        model: SAM's registry key (``"vit_b"``; ``"vit_t"`` is MobileSAM) or open_clip's model name.
        description: one line for people.
        pretrained: open_clip's tag for these weights; None for SAM.
    """

    name: str
    filename: str
    urls: tuple[str, ...]
    sha256: str
    size: int | None
    licence: str
    kind: Kind
    model: str
    description: str
    pretrained: str | None = None


@dataclass(frozen=True)
class VerifyResult:
    """What :func:`verify` found.

    Attributes:
        name: the checkpoint.
        path: where its file lies or would lie.
        status: ``"ok"``, ``"missing"`` or ``"corrupt"``.
        expected: SHA-256 of the table.
        actual: SHA-256 of the file; None when it is missing.
        detail: the finding in words.
    """

    name: str
    path: Path
    status: Literal["ok", "missing", "corrupt"]
    expected: str
    actual: str | None
    detail: str

    @property
    def ok(self) -> bool:
        """True when the file is there and whole."""
        return self.status == "ok"


def _sam(model: str, filename: str, size: int, sha256: str) -> Checkpoint:
    return Checkpoint(
        name=f"sam-{model.replace('_', '-')}",
        filename=filename,
        urls=(f"https://dl.fbaipublicfiles.com/segment_anything/{filename}",),
        sha256=sha256,
        size=size,
        licence="Apache-2.0",
        kind="sam",
        model=model,
        description=f"Segment Anything, ViT-{model[-1].upper()} image encoder (Meta AI)",
    )


def _clip(model: str, sha256: str, stem: str | None = None) -> Checkpoint:
    filename = f"{stem or model}.pt"
    return Checkpoint(
        name=f"clip-{model.lower()}-openai",
        filename=filename,
        urls=(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{filename}",),
        sha256=sha256,
        size=None,
        licence="MIT",
        kind="clip",
        model=model,
        description=f"CLIP {model} (OpenAI)",
        pretrained="openai",
    )


CHECKPOINTS: dict[str, Checkpoint] = {
    item.name: item
    for item in (
        Checkpoint(
            name="mobile-sam",
            filename="mobile_sam.pt",
            urls=(
                "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
                "https://huggingface.co/dhkim2810/MobileSAM/resolve/main/mobile_sam.pt",
            ),
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            size=40_728_226,
            licence="Apache-2.0",
            kind="sam",
            model="vit_t",
            description="MobileSAM, TinyViT image encoder (Kyung Hee University)",
        ),
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        _clip("ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        _clip("ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        _clip("ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        _clip("ViT-L-14-336", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px"),
        _clip("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
        _clip("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        _clip("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        _clip("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        _clip("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    )
}
"""The table, by name. CLIP hashes are the ones in OpenAI's addresses."""


def checkpoint(name: str) -> Checkpoint:
    """The table's row for a name.

    Raises:
        WeightsError: there is none; the message lists close names.
    """
    item = CHECKPOINTS.get(name)
    if item is None:
        raise WeightsError(f"no checkpoint is called {name!r}; {_names(name)}")
    return item


def cache_folder() -> Path:
    """The folder for everything text2sam keeps: ``TEXT2SAM_HOME``, else the platform's cache folder. Not created."""
    home = os.environ.get("TEXT2SAM_HOME", "").strip()
    if home:
        return Path(home).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("text2sam", appauthor=False))


def cache_path(name: str) -> Path:
    """Where a checkpoint's file lies or would lie: ``<cache>/checkpoints/<filename>``.

    Two checkpoints that share a file name get a folder each, called by the start of their SHA-256.

    Raises:
        WeightsError: no checkpoint has that name.
    """
    item = checkpoint(name)
    folder = cache_folder() / "checkpoints"
    if any(other.filename == item.filename and other.sha256 != item.sha256 for other in CHECKPOINTS.values()):
        folder /= item.sha256[:12]
    return folder / item.filename


def local_path(name: str) -> Path | None:
    """The file in the cache, or None. Looks only at its size: :func:`pull` or :func:`verify` check it.

    Raises:
        WeightsError: no checkpoint has that name.
    """
    item, path = checkpoint(name), cache_path(name)
    if not os.path.isfile(path) or (item.size is not None and path.stat().st_size != item.size):
        return None
    return path


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in lower-case hexadecimal digits, read piece by piece.

    Raises:
        WeightsError: the file cannot be read.
    """
    return _digest(Path(path)).hexdigest()


def verify(name: str) -> VerifyResult:
    """Hash a checkpoint in the cache and compare it with the table.

    Raises:
        WeightsError: no checkpoint has that name, or its file cannot be read.
    """
    item, path = checkpoint(name), cache_path(name)
    if not os.path.isfile(path):
        return VerifyResult(name, path, "missing", item.sha256, None, f"not in the cache; text2sam models pull {name}")
    before = path.stat()
    actual = file_sha256(path)
    if actual == item.sha256:
        _note(path, item, before)
        return VerifyResult(name, path, "ok", item.sha256, actual, f"{before.st_size:,} bytes, SHA-256 as in the table")
    with suppress(OSError):
        _sidecar(path).unlink()
    size = f", {item.size:,} expected" if item.size is not None and item.size != before.st_size else ""
    found = f"{before.st_size:,} bytes{size}; SHA-256 {actual} instead of {item.sha256}"
    detail = f"{found}; text2sam models pull {name} replaces it"
    return VerifyResult(name, path, "corrupt", item.sha256, actual, detail)


def pull(name: str, *, progress: bool = True, force: bool = False, urls: Sequence[str] | None = None) -> Path:
    """A checkpoint's file, from the cache or else from the network, whole by its SHA-256.

    A download that breaks off goes on where it stopped, also in the next call and from another
    address. The file appears under its name only when its hash is right. Processes that want the
    same file wait for the one that fetches it. A corrupt file in the cache is logged and replaced.

    Args:
        name: a name of :data:`CHECKPOINTS`.
        progress: draw a progress bar on standard error.
        force: download even when the cache has the file.
        urls: addresses to ask instead of ``TEXT2SAM_MIRROR`` and the table's.

    Returns:
        The path in the cache.

    Raises:
        WeightsError: no checkpoint has that name, or the cached file cannot be read.
        OfflineError: it is not in the cache and ``TEXT2SAM_OFFLINE`` is set; no socket is opened.
        ChecksumError: an address served other bytes than the table's and none served the right ones.
        DownloadError: no address served it.
        OutputError: the cache folder cannot be written, or its disk is full.
    """
    item, path = checkpoint(name), cache_path(name)
    if not force and _intact(path, item):
        return path
    corrupt = not force and os.path.isfile(path)
    if _offline():
        state = "is corrupt in the cache" if corrupt else "is not in the cache" if not force else "would be downloaded again"
        raise OfflineError(f"{name} {state} and TEXT2SAM_OFFLINE forbids downloads.\n{_help(item, path)}")
    if corrupt:
        log.warning("%s is corrupt (its SHA-256 is not %s); downloading it again", path, item.sha256)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        # Whoever held the lock may have fetched it meanwhile.
        if not force and _intact(path, item):
            return path
        part = path.with_name(f"{path.name}.{item.sha256[:12]}.part")
        if force:
            with _writing(part):
                part.unlink(missing_ok=True)
        _download(item, path, part, _addresses(item) if urls is None else tuple(urls), progress)
        with _writing(path):
            os.replace(part, path)
            _note(path, item, path.stat())
    return path


def resolve(spec: str | os.PathLike[str], kind: Kind, *, progress: bool = True) -> Path:
    """The file behind what a person wrote: a name of the table (pulled when needed) or a local file.

    Args:
        spec: a name of :data:`CHECKPOINTS`, or a path; ``~`` is expanded. A name wins over a file of
            the same name (write ``./name`` for the file). Local files are not hashed.
        kind: ``"sam"`` or ``"clip"``, what is wanted.
        progress: draw a progress bar when it has to be downloaded.

    Raises:
        InputError: ``kind`` is another word, or ``spec`` neither text nor path.
        WeightsError: ``spec`` is neither, or a checkpoint of the other kind; and all that :func:`pull` raises.
    """
    if kind not in ("sam", "clip"):
        raise InputError(f"kind must be 'sam' or 'clip', not {kind!r}")
    if not isinstance(spec, (str, os.PathLike)):
        raise InputError(f"a checkpoint is given as a name or a path, not as {type(spec).__name__} {spec!r}")
    text = os.fspath(spec)
    item = CHECKPOINTS.get(text) if isinstance(spec, str) else None
    if item is not None:
        if item.kind != kind:
            raise WeightsError(f"{text!r} is a {item.kind} checkpoint where a {kind} one is wanted; {_names(text, kind)}")
        return pull(item.name, progress=progress)
    path = Path(text).expanduser() if text else Path()
    if os.path.isfile(path):
        return path
    found = "a folder" if text and os.path.isdir(path) else "neither an existing file nor a name of the table"
    raise WeightsError(f"{kind} checkpoint {text!r} is {found}; give the path of a file, or a name: {_names(text, kind)}")


def load_state_dict(path: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, whatever it was saved as, without running Python code from it.

    What the file is shows in its content, not in its name: safetensors, a TorchScript archive (as
    OpenAI publishes CLIP; it may hold float16), or what ``torch.save`` writes, read with
    ``weights_only=True``. ``{"state_dict": ...}`` and ``{"model": ...}`` are unwrapped, a prefix
    ``module.`` common to all keys is cut off, and the three integers that OpenAI stores among the
    weights (``input_resolution``, ``context_length``, ``vocab_size``) are left out.

    Args:
        path: a local file. It is not hashed here: :func:`pull` does that.
        map_location: device of the tensors.

    Returns:
        Tensors by key, shapes and dtypes as stored, without gradient.

    Raises:
        WeightsError: the file is missing, cut short, no checkpoint, or holds pickled objects other than tensors.
    """
    file = Path(path).expanduser()
    if not os.path.isfile(file):
        raise WeightsError(f"checkpoint {str(file)!r} is {'a folder' if file.is_dir() else 'missing'}; {_ACCEPTED}")
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
        size = file.stat().st_size
    except OSError as error:
        raise WeightsError(f"checkpoint {str(file)!r} cannot be read: {error.strerror or error}") from error
    if not size:
        raise WeightsError(f"checkpoint {str(file)!r} is empty; {_ACCEPTED}")
    if _looks_like_safetensors(head, size) or file.suffix == ".safetensors":
        loaded = _load_safetensors(file, map_location)
    elif _is_torchscript(file):
        loaded = _load_torchscript(file, map_location)
    elif head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file):
        raise WeightsError(f"checkpoint {str(file)!r} is cut short ({size:,} bytes): its directory is missing; copy it again")
    else:
        loaded = _load_pickled(file, map_location)
    return _only_tensors(loaded, file)


def _names(spec: str, kind: str | None = None) -> str:
    """The names on offer, those close to what was written first."""
    fitting = [item for item in CHECKPOINTS.values() if kind in (None, item.kind)]
    aliases = {alias.lower(): item.name for item in fitting for alias in (item.name, item.filename, item.model)}
    wanted = re.split(r"[\\/]", spec.lower())[-1]
    close = list(dict.fromkeys(aliases[alias] for alias in difflib.get_close_matches(wanted, aliases, n=3, cutoff=0.6)))
    listed = "known are " + ", ".join(item.name for item in fitting)
    return f"did you mean {' or '.join(close)}? {listed}" if close else listed


def _help(item: Checkpoint, path: Path) -> str:
    option = f"{item.kind}_checkpoint"
    return (
        f"Get the file {item.filename} with SHA-256 {item.sha256} in another way and put it at\n"
        f"  {path}\n"
        f"or give its place as {option}= (on the command line --{option.replace('_', '-')}). "
        "--preset sticker runs without any download."
    )


def _offline() -> bool:
    return os.environ.get("TEXT2SAM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


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
    return {"sha256": item.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _note(path: Path, item: Checkpoint, stat: os.stat_result) -> None:
    """Remember that the file was hashed in this state; in a folder that cannot be written it is hashed each time."""
    target = _sidecar(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}")
    with suppress(OSError):
        temporary.write_text(json.dumps(_stamp(item, stat)), encoding="utf-8")
        os.replace(temporary, target)


def _intact(path: Path, item: Checkpoint) -> bool:
    """Whether the cached file is whole: by its note, else by its hash, which is then noted."""
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
    """Turn the system's errors about writing into one that names the path and the way out."""
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
    """Hold the file's lock among all threads and processes; the system frees it when its holder dies."""
    from filelock import FileLock

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    with _writing(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _AddressError(Exception):
    """One address did not serve the file: why, whether to ask again, and the hash of what came instead."""

    def __init__(self, reason: str, *, passing: bool = False, actual: str | None = None) -> None:
        super().__init__(reason)
        self.passing = passing
        self.actual = actual


def _download(item: Checkpoint, path: Path, part: Path, urls: Sequence[str], progress: bool) -> None:
    """Fill ``part`` from the first address that serves the right bytes."""
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
        for url in urls:
            try:
                _from_address(client, url, item, part, progress)
            except _AddressError as error:
                failures.append((url, error))
            else:
                return
    if not _size(part):
        with suppress(OSError):
            part.unlink(missing_ok=True)
    size = "" if item.size is None else f", {item.size:,} bytes"
    reasons = "\n".join(f"  {url}: {error}" for url, error in failures) or "  it has none"
    message = f"could not get {item.name} ({item.filename}{size}) from any of its addresses:\n{reasons}\n{_help(item, path)}"
    if any(error.actual for _, error in failures):
        raise ChecksumError(message)
    raise DownloadError(message)


def _from_address(client: httpx.Client, url: str, item: Checkpoint, part: Path, progress: bool) -> None:
    """Fill ``part`` from one address, asking again as long as that may help.

    Raises:
        _AddressError: it does not help.
    """
    failures, furthest, restarted = 0, _size(part), False
    while True:
        resumed = _size(part) > 0
        try:
            actual = _transfer(client, url, item, part, progress)
        except _AddressError as error:
            if not error.passing:
                raise
            # An attempt that brought new bytes was not in vain, however often the line breaks.
            if _size(part) > furthest:
                failures, furthest = 0, _size(part)
            failures += 1
            if failures > RETRIES:
                raise
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
            continue
        if actual == item.sha256:
            return
        with _writing(part):
            part.unlink(missing_ok=True)
        # The bytes that were already there may be the wrong ones, not this address's.
        if not resumed or restarted:
            raise _AddressError(f"other content: SHA-256 {actual} instead of {item.sha256}", actual=actual)
        restarted = True


def _size(part: Path) -> int:
    return part.stat().st_size if os.path.isfile(part) else 0


def _transfer(client: httpx.Client, url: str, item: Checkpoint, part: Path, progress: bool) -> str:
    """Append what is missing to ``part`` in one request and return the SHA-256 of all of it.

    Raises:
        _AddressError: nothing or not all of it came.
    """
    import httpx

    done, digest = _size(part), hashlib.sha256()
    if done:
        digest = _digest(part)
        if digest.hexdigest() == item.sha256:
            return item.sha256
        if item.size is not None and done >= item.size:
            return digest.hexdigest()
    try:
        with client.stream("GET", url, headers={"Range": f"bytes={done}-"} if done else {}) as response:
            status, piece = response.status_code, response.headers.get("Content-Range", "")
            if done and (status == 416 or (status == 206 and not piece.startswith(f"bytes {done}-"))):
                # The part is no beginning of this file, or another piece of it was sent: from the start.
                with _writing(part):
                    part.unlink(missing_ok=True)
                return _transfer(client, url, item, part, progress)
            if status not in (200, 206):
                raise _AddressError(f"HTTP {status} {response.reason_phrase}".rstrip(), passing=status >= 500)
            if status == 200:
                done, digest = 0, hashlib.sha256()
            total = _announced(response, done)
            if None not in (total, item.size) and total != item.size:
                raise _AddressError(f"another file: {total:,} bytes instead of {item.size:,}")
            done = _store(response, part, done, digest, item, total, progress)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise _AddressError(f"{type(error).__name__}: {error}") from error
    except httpx.HTTPError as error:
        raise _AddressError(f"{type(error).__name__}: {error}", passing=True) from error
    if item.size is not None and done < item.size:
        raise _AddressError(f"the connection ended after {done:,} of {item.size:,} bytes", passing=True)
    return digest.hexdigest()


def _announced(response: httpx.Response, done: int) -> int | None:
    """Bytes of the whole file by the answer's own word."""
    length = response.headers.get("Content-Length", "")
    return done + int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _store(
    response: httpx.Response,
    part: Path,
    done: int,
    digest: hashlib._Hash,
    item: Checkpoint,
    total: int | None,
    progress: bool,
) -> int:
    """Write the answer's bytes behind the ``done`` that are there; returns how many there are then."""
    from tqdm import tqdm

    bar = tqdm(
        desc=item.filename,
        total=total or item.size,
        initial=done,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=not progress,
        file=sys.stderr,
    )
    with _writing(part), bar, part.open("ab" if done else "wb") as stream:
        # Without a chunk size: httpx would drop what it gathers for a chunk when the line breaks.
        for piece in response.iter_bytes():
            stream.write(piece)
            digest.update(piece)
            bar.update(len(piece))
            done += len(piece)
            if item.size is not None and done > item.size:
                stream.truncate(0)
                raise _AddressError(f"another file: more than {item.size:,} bytes")
        stream.flush()
        os.fsync(stream.fileno())
    return done


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """A little-endian header length that fits into the file, then JSON."""
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8


def _is_torchscript(file: Path) -> bool:
    """A zip with ``constants.pkl`` and ``code/`` beside its data, which torch.save does not write."""
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [name.split("/")[1:] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise _unreadable(file, error) from error
    return ["constants.pkl"] in inside or any(parts[:1] == ["code"] for parts in inside)


def _unreadable(file: Path, error: Exception) -> WeightsError:
    reason = next(iter(str(error).strip().splitlines()), "")
    # torch's own text advises to load such a file unsafely; that is not ours to advise.
    told = f"{type(error).__name__}: {reason}" if reason and "weights_only" not in str(error) else type(error).__name__
    return WeightsError(
        f"checkpoint {str(file)!r} cannot be read ({told}): it is cut short, damaged or no checkpoint; {_ACCEPTED}"
    )


def _load_safetensors(file: Path, map_location: str | torch.device) -> Any:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(file, device=str(map_location))
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(file, error) from error


def _load_torchscript(file: Path, map_location: str | torch.device) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.* is deprecated")
            archive = torch.jit.load(str(file), map_location=map_location)  # type: ignore[no-untyped-call, unused-ignore]
    except (RuntimeError, OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    return archive.state_dict()


def _load_pickled(file: Path, map_location: str | torch.device) -> Any:
    import pickle

    import torch

    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise _unreadable(file, error) from None
        raise WeightsError(
            f"checkpoint {str(file)!r} holds a pickled {named[1]}, and unpickling such objects can run code, so it was not "
            f"loaded; save its weights alone, torch.save(model.state_dict(), path); {_ACCEPTED}"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(file, error) from error


def _only_tensors(loaded: Any, file: Path) -> dict[str, torch.Tensor]:
    import torch

    for _ in range(2):  # {"state_dict": {"model": ...}} at most
        for key in ("state_dict", "model"):
            if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"checkpoint {str(file)!r} holds a {type(loaded).__name__}, not tensors by name; {_ACCEPTED}")
    found = {key: value for key, value in loaded.items() if key not in _OPENAI_EXTRAS}
    strange = [key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if strange or not found:
        what = f"entries that are no tensors ({', '.join(map(repr, strange[:5]))})" if strange else "no tensors"
        raise WeightsError(f"checkpoint {str(file)!r} holds {what}; {_ACCEPTED}")
    cut = len("module.") if all(key.startswith("module.") for key in found) else 0
    return {key[cut:]: value.detach() for key, value in found.items()}

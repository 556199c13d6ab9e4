"""Whatever bytes lie in a file that text2sam reads, nothing but a ``Text2SamError`` comes out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_surgery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from text2sam.annotate.journal import Journal
from text2sam.errors import Text2SamError
from text2sam.examples import read_examples
from text2sam.image import read_image
from text2sam.lab.experiments.hostile import CANARY, HOSTILE
from text2sam.presence import Calibration
from text2sam.tasks.iclip import ICLIP
from text2sam.zoo.state_dicts import load_state_dict


def journal(path: Path) -> None:
    with Journal(path, {"task": "semantic", "seed": 0}) as found:
        for key in ["a.png", "b.png"]:
            if key in found:
                found.read(key)


def heads(path: Path) -> None:
    ICLIP.load(path, SURGERY)


SURGERY = tiny_surgery()
READERS: dict[str, Callable[[Path], object]] = {
    "calibration": Calibration.load,
    "examples": read_examples,
    "journal": journal,
    "iclip": heads,
    "weights": load_state_dict,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
HEADS = st.sampled_from([b"", b"\xef\xbb\xbf", b"image,text,present\n", b"PK\x03\x04", b"\x80\x04", b"\x10\0\0\0\0\0\0\0{"])


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=HEADS, tail=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(tmp_path: Path, name: str, head: bytes, tail: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(head + tail)
    with contextlib.suppress(Text2SamError):
        READERS[name](file)


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(Text2SamError):
        READERS[name](tmp_path)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = f"import pathlib; pathlib.Path({str(canary)!r}).touch()"
    payload = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    for name, reader in READERS.items():
        file = tmp_path / name
        file.write_bytes(payload)
        with pytest.raises(Text2SamError):
            reader(file)
    assert not canary.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the hostile files are of a POSIX system")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pictures(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, make = HOSTILE[kind]
    file = tmp_path / "images" / name
    file.parent.mkdir(parents=True)
    make(file, np.random.default_rng(0))
    with pytest.raises(Text2SamError):
        read_image(file)
    assert not (tmp_path / CANARY).exists()
